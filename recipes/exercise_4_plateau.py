"""Exercise 4 A plateau: ReduceLROnPlateau, and the picture of the learning rate.

    python recipes/exercise_4_plateau.py

A constant rate of 0.05 bounces to the end; a tenth of it, once 10 epochs brought nothing
better, settles. Watch: epochs without a gain may be noise, and with patience 5 the rate is
gone before the curve is learned. Draws plateau.png where matplotlib is installed.

prints:

    constant:    last 20 val_losses 0.028 to 0.077
    patience 10: last 20 val_losses 0.031 to 0.033, lr 0.005 from epoch 111
    patience 5:  last 20 val_losses 0.069 to 0.069, lr 0.005 from epoch 23
"""

import sys
from importlib.util import find_spec
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # a clone without an install

import torch
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

import kit

X = torch.linspace(-3, 3, 200)[:, None]
noise = torch.randn(200, 1, generator=torch.Generator().manual_seed(42))
train, val = kit.split((X, (2 * X).sin() + 0.1 * noise), seed=42)
loaders = kit.make_loader(train, batch_size=32, shuffle=True), kit.make_loader(val)


def learn(patience):
    torch.manual_seed(42)
    model = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 1))
    adam = torch.optim.Adam(model.parameters(), lr=0.05)
    scheduler = patience and ReduceLROnPlateau(adam, factor=0.1, patience=patience)
    state = kit.make_state(model, adam, scheduler=scheduler)
    return kit.fit(state, *loaders, loss_fn=nn.MSELoss(), epochs=150).history


def by_hand(losses, patience):
    """The epochs that a tenth of the rate begins in."""
    epochs, best, bad = [], float("inf"), 0
    for epoch, loss in enumerate(losses):
        better = loss < best * (1 - 1e-4)
        best, bad = (loss, 0) if better else (best, bad + 1)
        if bad > patience:
            epochs, bad = [*epochs, epoch + 1], 0
    return epochs


ends = {}
for patience in (None, 10, 5):
    history = learn(patience)
    losses, rates = ([row[key] for row in history] for key in ("val_loss", "lr"))
    falls = [i for i in range(1, 150) if rates[i] < rates[i - 1]]
    low, high = ends[patience] = min(losses[-20:]), max(losses[-20:])
    name = f"patience {patience}:" if patience else "constant:"
    print(f"{name:12} last 20 val_losses {low:.3f} to {high:.3f}", end="")
    print(f", lr {rates[falls[0]]:.3f} from epoch {falls[0]}" if falls else "")
    if patience:
        assert falls and falls == by_hand(losses, patience)[: len(falls)]
    if patience == 10 and find_spec("matplotlib"):
        kit.plot_history(history).savefig("plateau.png")

assert ends[None][1] - ends[None][0] > 10 * (ends[10][1] - ends[10][0])
assert ends[10][1] < 0.04 < ends[5][0]
