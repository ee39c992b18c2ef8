"""03 Train: losses, optimizers, the loop, its curves (tutorial 3.1-3.5).

    python recipes/03_train.py

The tutorial's loop averages the means of its batches, wrong when the last one is short;
waits for the device (.item()) at every batch; and records only the epochs it prints.

prints:

    off by 1, 1, 10: l1 4, mse 34
    sure, wrong: bce 100, of logits 200, cross-entropy 200
    epoch        0     10     20     30     50     90
    SGD     0.4811 0.3464 0.2173 0.1446 0.0992 0.0647
    Adam    0.4756 0.2866 0.0987 0.0055 0.0410 0.0038
    AdamW   0.4757 0.2872 0.1000 0.0054 0.0420 0.0031
    RMSprop 0.3055 0.0460 0.0314 0.0288 0.0264 0.0255
    Adagrad 0.4756 0.3939 0.3469 0.3100 0.2509 0.1609
    SGD ends at 0.0569, by hand at 0.0569
"""

import sys
from importlib.util import find_spec
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # a clone without an install

import torch
from torch import nn
from torch.nn import functional as F

import kit

# Numbers: l1, or mse where large errors matter most. One of many classes: cross-entropy.
# Yes or no: bce with logits. Plain bce is cut off, and learns nothing, where it is sure.
e, yes, no = torch.tensor([1.0, 1.0, 10.0]), torch.tensor([200.0]), torch.tensor([0.0])
print(f"off by 1, 1, 10: l1 {F.l1_loss(e, 0 * e):.0f}, mse {F.mse_loss(e, 0 * e):.0f}")
bce = F.binary_cross_entropy(yes.sigmoid(), no)
logits = F.binary_cross_entropy_with_logits(yes, no)
cross = F.cross_entropy(torch.tensor([0.0, 200.0]), torch.tensor(0))
print(f"sure, wrong: bce {bce:.0f}, of logits {logits:.0f}, cross-entropy {cross:.0f}")

(X, y), val = kit.split(kit.make_data())
loaders = kit.make_loader((X, y)), kit.make_loader(val)
torch.manual_seed(42)
start = {"weight": torch.randn(1, 1), "bias": torch.randn(1)}  # as in 02_model.py
epochs = (0, 10, 20, 30, 50, 90)
print("epoch  ", *(f"{epoch:6}" for epoch in epochs))
runs = []
for make in (
    torch.optim.SGD,  # one rate for all parameters: the best understood
    torch.optim.Adam,  # a rate for each: the usual first choice
    torch.optim.AdamW,  # Adam, its weight decay set apart: large networks
    torch.optim.RMSprop,  # rates by recent gradients: recurrent networks
    torch.optim.Adagrad,  # rates by all gradients so far, falling: sparse inputs
):
    model = nn.Linear(1, 1)
    model.load_state_dict(start)
    state = kit.make_state(model, make(model.parameters(), lr=0.01))
    runs += [kit.fit(state, *loaders, loss_fn=nn.L1Loss(), epochs=100)]
    losses = [runs[-1].history[epoch]["val_loss"] for epoch in epochs]
    print(f"{make.__name__:7}", *(f"{loss:.4f}" for loss in losses))

by_hand = nn.Linear(1, 1)
by_hand.load_state_dict(start)
optimizer = torch.optim.SGD(by_hand.parameters(), lr=0.01)
for epoch in range(100):
    loss = F.l1_loss(by_hand(X), y)  # forward
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    with torch.no_grad():
        val_loss = F.l1_loss(by_hand(val[0]), val[1])
sgd = runs[0]
print(f"SGD ends at {sgd.history[-1]['val_loss']:.4f}, by hand at {val_loss:.4f}")
if find_spec("matplotlib"):
    kit.plot_history(sgd.history).savefig("curves.png")

assert all(map(torch.equal, by_hand.parameters(), sgd.model.parameters()))
assert abs(sgd.history[30]["train_loss"] - 0.05314853) < 1e-6
assert abs(sgd.history[90]["val_loss"] - 0.06473556) < 1e-6
