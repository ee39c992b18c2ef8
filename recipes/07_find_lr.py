"""07 Find a learning rate (beyond tutorial 7).

    python recipes/07_find_lr.py

A range test: the rate grows from 1e-5 to 1 over 100 steps; a tenth of the one with the
lowest smoothed loss is good to train with. Watch: the test wrecks what it trains, so
it works on a deep copy of the state. Draws find_lr.png where matplotlib is installed.

prints:

    lowest loss at lr 0.09: take 0.009
    lr 0.001: val_loss 0.15 after 10 epochs
    lr 0.009: val_loss 0.01 after 10 epochs
    lr 0.089: val_loss 0.13 after 10 epochs
"""

import copy
import sys
from importlib.util import find_spec
from itertools import chain, islice, repeat
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # a clone without an install

import torch
from torch import nn

import kit


def find_lr(state, loader, *, loss_fn, low=1e-5, high=1.0, steps=100):
    """The rates tried, and their smoothed losses until one is 4 times the lowest."""
    state = copy.deepcopy(state)
    for group in state.optimizer.param_groups:
        group["lr"] = low
    gamma = (high / low) ** (1 / steps)
    grow = torch.optim.lr_scheduler.ExponentialLR(state.optimizer, gamma)
    state = state._replace(scheduler=grow, per_step=True)
    rates, losses, mean = [], [], 0.0
    for batch in islice(chain.from_iterable(repeat(loader)), steps):
        rate = grow.get_last_lr()[0]
        state, sums = kit.train_step(state, batch, loss_fn=loss_fn)
        rates.append(rate)
        mean = 0.9 * mean + 0.1 * float(sums["loss"] / sums["weight"])
        losses.append(mean / (1 - 0.9 ** len(rates)))  # as the mean began at 0
        if not losses[-1] < 4 * min(losses):
            break
    return rates, losses


def make_state(lr):
    torch.manual_seed(42)
    layers = [nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(64, 1))
    return kit.make_state(model, torch.optim.Adam(model.parameters(), lr=lr))


X = 4 * torch.rand(1280, 2, generator=torch.Generator().manual_seed(42)) - 2
train, val = kit.split((X, (2 * X[:, :1]).sin() * X[:, 1:]))
train, val = kit.make_loader(train, batch_size=64, shuffle=True), kit.make_loader(val)
state, loss_fn = make_state(lr=0.001), nn.MSELoss()

before = kit.predict(state.model, X)
rates, losses = find_lr(state, train, loss_fn=loss_fn)
assert torch.equal(kit.predict(state.model, X), before)  # the state is untouched
assert state.optimizer.state_dict() == make_state(lr=0.001).optimizer.state_dict()

lowest = rates[losses.index(min(losses))]
lr = lowest / 10
print(f"lowest loss at lr {lowest:.2f}: take {lr:.3f}")
val_loss = {}
for each in (lr / 10, lr, lr * 10):
    history = kit.fit(make_state(each), train, val, loss_fn=loss_fn, epochs=10).history
    val_loss[each] = history[-1]["val_loss"]
    print(f"lr {each:.3f}: val_loss {val_loss[each]:.2f} after 10 epochs")

if find_spec("matplotlib"):
    from matplotlib.figure import Figure

    axes = Figure(figsize=(7, 4), layout="constrained").subplots()
    axes.plot(rates, losses)
    axes.axvline(lr, color="gray", linestyle=":")
    axes.set(xscale="log", xlabel=f"learning rate (dotted: {lr:.3f})", ylabel="loss")
    axes.figure.savefig("find_lr.png")

assert min(val_loss, key=val_loss.get) == lr
