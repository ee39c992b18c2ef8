"""Exercise 2, learning rates: 0.001, 0.01 and 0.1 for SGD, Adam and AdamW.

    python recipes/exercises/2_learning_rates.py

Nine runs from the same weights over the same batches, so that nothing but optimizer and
rate differ. The table has their validation losses; the curves are drawn to
runs/learning_rates.png where matplotlib is installed.

prints:

    mean validation loss of epochs 91 to 100
    lr           SGD    Adam   AdamW
    0.001       0.41    0.17    0.17
    0.01        0.20    0.06    0.06
    0.1         0.11    0.06    0.05

    lowest and highest of these ten
    lr                 SGD          Adam         AdamW
    0.001     0.41 to 0.42  0.16 to 0.18  0.16 to 0.18
    0.01      0.20 to 0.21  0.06 to 0.07  0.06 to 0.07
    0.1       0.07 to 0.19  0.04 to 0.11  0.04 to 0.05
"""

import sys
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # so that a clone finds kit.py

import torch
from torch import nn, optim

import kit

RATES = (0.001, 0.01, 0.1)
OPTIMIZERS = (optim.SGD, optim.Adam, optim.AdamW)

# A sine with a little noise, and a small network for it.
X = torch.linspace(-3, 3, 200)[:, None]
noise = 0.1 * torch.randn(200, 1, generator=torch.Generator().manual_seed(42))
y = (2 * X).sin() + noise
train, val = kit.split((X, y), seed=42)
train_loader = kit.make_loader(train, batch_size=32, shuffle=True)
val_loader = kit.make_loader(val)


def learn(optimizer_class, lr):
    """The validation loss of every epoch."""
    torch.manual_seed(42)
    model = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 1))
    state = kit.make_state(model, optimizer_class(model.parameters(), lr=lr))
    state = kit.fit(state, train_loader, val_loader, loss_fn=nn.MSELoss(), epochs=100)
    return [row["val_loss"] for row in state.history]


curves = {}
for optimizer_class in OPTIMIZERS:
    for lr in RATES:
        curves[optimizer_class.__name__, lr] = learn(optimizer_class, lr)


# --- Compare -----------------------------------------------------------------------

# With large steps the loss jumps up and down, and any single epoch may be a lucky one.
# So compare the mean of the last ten.
print("mean validation loss of epochs 91 to 100")
print(f"{'lr':8}" + "".join(f"{each.__name__:>8}" for each in OPTIMIZERS))
for lr in RATES:
    line = f"{lr:<8}"
    for optimizer_class in OPTIMIZERS:
        losses = curves[optimizer_class.__name__, lr]
        line += f"{sum(losses[-10:]) / 10:8.2f}"
    print(line)

# Rates cannot be compared between optimizers: 0.001 is a sensible rate for Adam, and
# with SGD hardly anything is learned. AdamW is Adam with weight decay, which in 100
# epochs of so small a network makes little difference.
print()
print("lowest and highest of these ten")
print(f"{'lr':8}" + "".join(f"{each.__name__:>14}" for each in OPTIMIZERS))
for lr in RATES:
    line = f"{lr:<8}"
    for optimizer_class in OPTIMIZERS:
        losses = curves[optimizer_class.__name__, lr][-10:]
        line += f"{f'{min(losses):.2f} to {max(losses):.2f}':>14}"
    print(line)


# --- Draw --------------------------------------------------------------------------

if find_spec("matplotlib"):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    for axes, optimizer_class in zip(panels, OPTIMIZERS):
        for lr in RATES:
            axes.plot(curves[optimizer_class.__name__, lr], label=f"lr {lr}")
        axes.set(title=optimizer_class.__name__, xlabel="epoch", yscale="log")
    panels[0].set_ylabel("validation loss")
    panels[0].legend(frameon=False)

    Path("runs").mkdir(exist_ok=True)
    figure.savefig("runs/learning_rates.png")
