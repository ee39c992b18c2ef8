"""07 Gradient accumulation (tutorial 7.2).

    python recipes/07_accumulation.py

accumulate=4 eats a batch in 4 pieces, for less memory: losses, steps and rates stay as
they are, with short batches and class weights too, but not with BatchNorm or dropout.
Watch: by hand, losses / 4 weigh short pieces wrongly; a last window under 4 is dropped.

prints:

    mean: loss 0.45961 in one pass, 0.45961 in 4 pieces
    class weights: loss 0.46050 in one pass, 0.46050 in 4 pieces
"""

import sys
from functools import partial
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # a clone without an install

import torch
from torch import nn
from torch.nn import functional as F

import kit

X = torch.randn(71, 4, generator=torch.Generator().manual_seed(42))
y = (X.square().sum(1) > 6).long()  # batches of 32, 32 and 7 rows
loader = kit.make_loader((X, y), batch_size=32)
class_weight = torch.tensor([1.0, 10.0])


def weighted(logits, y):
    """The pair (total, weight), for a loss that is no mean over samples."""
    total = F.cross_entropy(logits, y, weight=class_weight, reduction="sum")
    return total, class_weight[y].sum()


def train(loss, accumulate):
    torch.manual_seed(42)
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(sgd, max_lr=0.1, total_steps=30)
    state = kit.make_state(model, sgd, scheduler=schedule)  # advances by step
    step = partial(kit.train_step, accumulate=accumulate)
    return kit.fit(state, loader, [(X, y)], loss_fn=loss, epochs=10, step=step).history


for name, loss, pair in (
    ("mean", F.cross_entropy, F.cross_entropy),
    ("class weights", nn.CrossEntropyLoss(class_weight), weighted),  # torch's own, ours
):
    whole, pieces = train(loss, 1), train(pair, 4)
    a, b = whole[-1]["val_loss"], pieces[-1]["val_loss"]
    print(f"{name}: loss {a:.5f} in one pass, {b:.5f} in 4 pieces")
    assert abs(a - b) < 1e-6
    for key in ("step", "lr"):
        assert [row[key] for row in whole] == [row[key] for row in pieces]
