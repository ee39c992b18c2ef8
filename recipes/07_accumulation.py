"""07 Gradient accumulation (tutorial 7.2).

    python recipes/07_accumulation.py

accumulate=4 eats a batch in 4 pieces, for less memory: losses, steps and rates stay
those of one pass, with a short last batch and with class weights too. Watch: by hand,
losses / 4 weigh short pieces wrongly, and a last window of fewer than 4 is dropped.
Nothing is exact where the forward sees its batch (BatchNorm) or draws (dropout).

prints:

    mean: loss 0.45961 in one pass, 0.45961 in 4 pieces
    class weights: loss 0.46050 in one pass, 0.46050 in 4 pieces
    both in 30 steps, by the same learning rates
    BatchNorm: loss 0.39 in one pass, 0.42 in 4 pieces
    by hand, losses / 4: the gradient of the 7 rows is 31% off
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
class_weight = torch.tensor([1.0, 10.0])


def weighted(logits, y):
    """The pair (total, weight), for a loss that is no mean over samples."""
    total = F.cross_entropy(logits, y, weight=class_weight, reduction="sum")
    return total, class_weight[y].sum()


def train(loss_fn, *, accumulate, rows=71, norm=nn.Identity):
    torch.manual_seed(42)
    model = nn.Sequential(nn.Linear(4, 16), norm(), nn.ReLU(), nn.Linear(16, 2))
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(sgd, max_lr=0.1, total_steps=30)
    state = kit.make_state(model, sgd, scheduler=schedule)  # advances by step
    loader = kit.make_loader((X[:rows], y[:rows]), batch_size=32)
    step = partial(kit.train_step, accumulate=accumulate)
    val = [(X, y)]
    return kit.fit(state, loader, val, loss_fn=loss_fn, epochs=10, step=step).history


losses = {
    "mean": (F.cross_entropy, F.cross_entropy),
    "class weights": (nn.CrossEntropyLoss(class_weight), weighted),  # torch's own, ours
}
for name, (loss_fn, pair) in losses.items():
    whole, pieces = train(loss_fn, accumulate=1), train(pair, accumulate=4)
    a, b = whole[-1]["val_loss"], pieces[-1]["val_loss"]
    print(f"{name}: loss {a:.5f} in one pass, {b:.5f} in 4 pieces")
    assert abs(a - b) < 1e-6
    for key in ("step", "lr"):
        assert [row[key] for row in whole] == [row[key] for row in pieces]
print(f"both in {pieces[-1]['step']} steps, by the same learning rates")

norm = partial(nn.BatchNorm1d, 16)
runs = [train(F.cross_entropy, accumulate=n, rows=64, norm=norm) for n in (1, 4)]
a, b = (history[-1]["val_loss"] for history in runs)
print(f"BatchNorm: loss {a:.2f} in one pass, {b:.2f} in 4 pieces")
assert abs(a - b) > 0.01

torch.manual_seed(42)
model = nn.Linear(4, 2)
F.cross_entropy(model(X[64:]), y[64:]).backward()
whole, model.weight.grad = model.weight.grad, None
for inputs, targets in zip(X[64:].split(2), y[64:].split(2)):  # 2, 2, 2 and 1 rows
    (F.cross_entropy(model(inputs), targets) / 4).backward()
error = (model.weight.grad - whole).norm() / whole.norm()
print(f"by hand, losses / 4: the gradient of the 7 rows is {error:.0%} off")
assert error > 0.1
