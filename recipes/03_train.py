"""03 Train: losses, optimizers, the loop, its curves (tutorial 3.1-3.5).

    python recipes/03_train.py

The tutorial's loop averages the means of its batches, wrong when the last one is short;
waits for the device (.item()) at every batch; and records only the epochs it prints.

prints:

    l1 4.0, mse 34.0, cross-entropy 200.0, bce 100.0, with logits 200.0
    Adam 0.0039, AdamW 0.0019, RMSprop 0.0011, Adagrad 0.1448, SGD 0.0569, by hand 0.0569
"""

import sys
from importlib.util import find_spec
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # a clone without an install

import torch
from torch import nn, optim

import kit

# Numbers: l1, or mse where large errors matter most. One of many classes: cross-entropy.
# Yes or no: bce with logits. Plain bce is cut off, and learns nothing, where it is sure.
off, yes, no = torch.tensor([1.0, 1.0, 10.0]), torch.tensor([200.0]), torch.zeros(1)
l1, mse = nn.L1Loss()(off, 0 * off), nn.MSELoss()(off, 0 * off)
cross = nn.CrossEntropyLoss()(torch.tensor([0.0, 200.0]), torch.tensor(0))
bce, logits = nn.BCELoss()(yes.sigmoid(), no), nn.BCEWithLogitsLoss()(yes, no)
print(f"l1 {l1}, mse {mse}, cross-entropy {cross}, bce {bce}, with logits {logits}")

(X, y), val = kit.split(kit.make_data())
torch.manual_seed(42)
start = {"weight": torch.randn(1, 1), "bias": torch.randn(1)}  # as in 02_model.py
by_hand, model = nn.Linear(1, 1), nn.Linear(1, 1)
by_hand.load_state_dict(start)
sgd = optim.SGD(by_hand.parameters(), lr=0.01)
for epoch in range(100):
    loss = nn.L1Loss()(by_hand(X), y)  # forward
    sgd.zero_grad()
    loss.backward()
    sgd.step()

# Adam adapts the rate of each parameter: the usual first choice. AdamW: large networks;
# RMSprop: recurrent ones; Adagrad: sparse inputs. SGD, one rate for all: understood best.
loaders = kit.make_loader((X, y)), kit.make_loader(val)
for make in (optim.Adam, optim.AdamW, optim.RMSprop, optim.Adagrad, optim.SGD):
    model.load_state_dict(start)
    state = kit.make_state(model, make(model.parameters(), lr=0.01))
    history = kit.fit(state, *loaders, loss_fn=nn.L1Loss(), epochs=100).history
    print(f"{make.__name__} {history[-1]['val_loss']:.4f}", end=", ")
print(f"by hand {nn.L1Loss()(by_hand(val[0]), val[1]):.4f}")
if find_spec("matplotlib"):
    kit.plot_history(history).savefig("curves.png")

assert all(map(torch.equal, by_hand.parameters(), model.parameters()))
assert abs(history[90]["val_loss"] - 0.06473556) < 1e-6
