"""Exercise 2 Learning rates: 0.001, 0.01 and 0.1 for SGD, Adam and AdamW.

    python recipes/exercise_2_learning_rates.py

Nine runs from the same weights over the same batches; the nine curves are drawn to
learning_rates.png where matplotlib is installed. Watch: rates are not comparable, as
Adam with 0.001 gets further than SGD with 0.01; at 0.1 the curves wobble, so that a single
epoch ranks nothing. AdamW is Adam with weight decay, which hardly shows here.

prints:

    mean val_loss of the last 10 of 100 epochs
       lr    SGD    Adam    AdamW
    0.001   0.41    0.17     0.17
    0.01    0.20    0.06     0.06
    0.1     0.11    0.06     0.05
"""

import sys
from importlib.util import find_spec
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # a clone without an install

import torch
from tabulate import tabulate
from torch import nn, optim

import kit

RATES = 0.001, 0.01, 0.1
OPTIMIZERS = {make.__name__: make for make in (optim.SGD, optim.Adam, optim.AdamW)}
X = torch.linspace(-3, 3, 200)[:, None]
noise = torch.randn(200, 1, generator=torch.Generator().manual_seed(42))
train, val = kit.split((X, (2 * X).sin() + 0.1 * noise), seed=42)
loaders = kit.make_loader(train, batch_size=32, shuffle=True), kit.make_loader(val)


def curve(name, lr):
    torch.manual_seed(42)
    model = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 1))
    state = kit.make_state(model, OPTIMIZERS[name](model.parameters(), lr=lr))
    state = kit.fit(state, *loaders, loss_fn=nn.MSELoss(), epochs=100)
    return [row["val_loss"] for row in state.history]


curves = {name: {lr: curve(name, lr) for lr in RATES} for name in OPTIMIZERS}
ends = {k: [sum(c[-10:]) / 10 for c in by_lr.values()] for k, by_lr in curves.items()}
print("mean val_loss of the last 10 of 100 epochs")
table = {"lr": RATES} | ends
print(tabulate(table, headers="keys", tablefmt="plain", floatfmt=("g", *[".2f"] * 3)))

if find_spec("matplotlib"):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, name in zip(figure.subplots(1, 3, sharey=True), curves):
        for lr, losses in curves[name].items():
            axes.plot(losses, label=f"lr {lr}")
        axes.set(title=name, xlabel="epoch", yscale="log")
    figure.axes[0].set_ylabel("val_loss")
    figure.axes[0].legend(frameon=False)
    figure.savefig("learning_rates.png")

assert ends["Adam"][0] < ends["SGD"][1] < ends["SGD"][0]
assert abs(ends["Adam"][0] - ends["AdamW"][0]) < 0.01
for lr, losses in curves["SGD"].items():
    assert (max(losses[-10:]) > 2 * min(losses[-10:])) == (lr == 0.1)
