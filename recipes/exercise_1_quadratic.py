"""Exercise 1 A quadratic: learn a, b and c of y = 2 x² - 3 x + 1.

    python recipes/exercise_1_quadratic.py

Three parameters by hand, as in 2.2; least squares says what is best. Watch: a line cannot
bend, however long it trains. And on x from 0 to 1, as in 1.3, x² rises nearly as x does,
so that descent can hardly tell a from b. Standardise x (12, question 7; a, b and c are
then those of the standardised x).

prints:

    line, x from -1 to 1: val_r2 0.87, learned -3.03 1.69, best -3.03 1.69
    quadratic, x from -1 to 1: val_r2 1.00, learned 1.98 -3.00 1.02, best 1.99 -3.00 1.01
    quadratic, x from 0 to 1: val_r2 0.70, learned -0.17 -0.77 0.62, best 1.97 -2.96 1.00
    the same, standardised: val_r2 0.98, learned 0.17 -0.32 0.04, best 0.17 -0.32 0.04
"""

import sys
from functools import partial
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # a clone without an install

import torch
from torch import nn

import kit


class Polynomial(nn.Module):
    def __init__(self, terms):
        super().__init__()
        self.coefficients = nn.Parameter(torch.zeros(terms, 1))

    def forward(self, x):
        return powers(x, len(self.coefficients)) @ self.coefficients


def powers(x, terms):
    return x ** torch.arange(terms - 1, -1, -1)  # (N, 1) to (N, terms): x², x, 1


def learn(name, low, terms, standardize=False):
    x = low + (1 - low) * uniform
    train, val = kit.split((x, 2 * x**2 - 3 * x + 1 + noise), seed=42)
    scale = kit.Standardize(train[0]) if standardize else nn.Identity()
    model = nn.Sequential(scale, Polynomial(terms))
    state = kit.make_state(model, torch.optim.SGD(model.parameters(), lr=0.1))
    fit = partial(kit.fit, loss_fn=nn.MSELoss(), metrics=kit.metrics, epochs=300)
    state = fit(state, kit.make_loader(train), kit.make_loader(val))
    r2 = state.history[-1]["val_r2"]
    learned = model[1].coefficients.detach()
    best = torch.linalg.lstsq(powers(scale(train[0]), terms), train[1]).solution
    print(f"{name}: val_r2 {r2:.2f}", end="")
    for what, values in (("learned", learned), ("best", best)):
        print(f", {what}", *(f"{v:.2f}" for v in values.flatten().tolist()), end="")
    print()
    return r2, (learned - best).abs().max()


generator = torch.Generator().manual_seed(42)
uniform = torch.rand(200, 1, generator=generator)
noise = 0.05 * torch.randn(200, 1, generator=generator)
line = learn("line, x from -1 to 1", -1, 2)
good = learn("quadratic, x from -1 to 1", -1, 3)
poor = learn("quadratic, x from 0 to 1", 0, 3)
mended = learn("the same, standardised", 0, 3, standardize=True)

assert good[0] > 0.99 > line[0] and good[1] < 0.02
assert poor[1] > 1 and mended[1] < 0.001 and poor[0] < mended[0] - 0.2
