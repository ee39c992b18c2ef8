"""07 Find a learning rate (beyond tutorial 7).

    python recipes/07_find_lr.py

A range test: the rate grows from 1e-5 to 1 in 100 epochs of one batch each; a tenth of
the one with the lowest loss is good to train with. Watch: the test wrecks what it trains,
so it works on a deep copy of the state. Draws find_lr.png where matplotlib is installed.

prints:

    lowest loss at lr 0.100: take 0.010, as the tutorial does
    lr 0.001: val_loss 0.313 after 200 epochs
    lr 0.010: val_loss 0.007 after 200 epochs
    lr 0.100: val_loss 0.045 after 200 epochs
"""

import copy
import sys
from importlib.util import find_spec
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # a clone without an install

import torch
from torch import nn, optim

import kit


def find_lr(state, loader, *, loss_fn, high=1.0, epochs=100):
    """The history of a copy of the state, whose rate grows from its own to high."""
    state = copy.deepcopy(state)
    gamma = (high / state.optimizer.param_groups[0]["lr"]) ** (1 / epochs)
    grow = optim.lr_scheduler.ExponentialLR(state.optimizer, gamma)
    state = state._replace(scheduler=grow, history=())
    return kit.fit(state, loader, loss_fn=loss_fn, epochs=epochs).history


def make_state(lr):
    torch.manual_seed(42)
    model = nn.Linear(1, 1)
    return kit.make_state(model, optim.SGD(model.parameters(), lr=lr))


train, val = (kit.make_loader(part) for part in kit.split(kit.make_data(), seed=42))
state, fresh = make_state(lr=1e-5), make_state(lr=1e-5)
test = find_lr(state, train, loss_fn=nn.L1Loss())
assert all(map(torch.equal, state.model.parameters(), fresh.model.parameters()))
assert state.optimizer.state_dict() == fresh.optimizer.state_dict()
if find_spec("matplotlib"):
    kit.plot_history(test).savefig("find_lr.png")
lr = min(test, key=lambda row: row["train_loss"])["lr"] / 10
print(f"lowest loss at lr {10 * lr:.3f}: take {lr:.3f}, as the tutorial does")
for each in (lr / 10, lr, lr * 10):
    trained = kit.fit(make_state(each), train, val, loss_fn=nn.L1Loss(), epochs=200)
    loss = trained.history[-1]["val_loss"]
    print(f"lr {each:.3f}: val_loss {loss:.3f} after 200 epochs")
    assert (loss < 0.01) == (each == lr)
