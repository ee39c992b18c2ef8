"""Exercise 4, a plateau: ReduceLROnPlateau, and a picture of the learning rate.

    python recipes/exercises/4_plateau.py

A large learning rate is quick and then jumps around the minimum to the end. A plateau
scheduler makes it ten times smaller once the validation loss has stopped falling. How
long it waits, its patience, decides whether it helps. The curves and the rate are drawn
to runs/plateau.png where matplotlib is installed.

prints:

    epochs in which the rate became ten times smaller
    constant rate   none
    patience 10     112
    patience 5      24, 36, 42, 48, 54, 60, 66

    validation loss of the last 20 epochs
                      lowest  highest  lr at the end
    constant rate      0.028    0.077           0.05
    patience 10        0.031    0.033          0.005
    patience 5         0.069    0.069          5e-09
"""

import sys
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # so that a clone finds kit.py

import torch
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

import kit

X = torch.linspace(-3, 3, 200)[:, None]
noise = 0.1 * torch.randn(200, 1, generator=torch.Generator().manual_seed(42))
y = (2 * X).sin() + noise
train, val = kit.split((X, y), seed=42)
train_loader = kit.make_loader(train, batch_size=32, shuffle=True)
val_loader = kit.make_loader(val)


def learn(patience):
    torch.manual_seed(42)
    model = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    scheduler = None
    if patience is not None:
        scheduler = ReduceLROnPlateau(optimizer, factor=0.1, patience=patience)
    state = kit.make_state(model, optimizer, scheduler=scheduler)
    state = kit.fit(state, train_loader, val_loader, loss_fn=nn.MSELoss(), epochs=150)
    return state.history


histories = {
    "constant rate": learn(None),
    "patience 10": learn(10),
    "patience 5": learn(5),
}

# --- When the rate fell ------------------------------------------------------------

# An epoch without a better loss may be an accident of its batches. With a patience of 5
# the scheduler takes six of them for a plateau, long before the curve is learned, and
# then the steps are too small to get anywhere.
print("epochs in which the rate became ten times smaller")
for name, history in histories.items():
    falls = []
    for before, row in pairwise(history):
        if row["lr"] < before["lr"]:
            falls.append(row["epoch"])
    print(f"{name:16}{', '.join(str(epoch) for epoch in falls) or 'none'}")


# --- What came of it ---------------------------------------------------------------

print()
print("validation loss of the last 20 epochs")
print(f"{'':16}{'lowest':>8}{'highest':>9}{'lr at the end':>15}")
for name, history in histories.items():
    losses = [row["val_loss"] for row in history[-20:]]
    lr = history[-1]["lr"]
    print(f"{name:16}{min(losses):8.3f}{max(losses):9.3f}{lr:15.2g}")

if find_spec("matplotlib"):
    Path("runs").mkdir(exist_ok=True)
    kit.plot_history(histories["patience 10"]).savefig("runs/plateau.png")
