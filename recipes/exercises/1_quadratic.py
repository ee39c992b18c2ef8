"""Exercise 1, a quadratic: learn a, b and c of y = a x² + b x + c.

    python recipes/exercises/1_quadratic.py

The true curve is y = 2 x² - 3 x + 1, with a little noise. The model is written with
three parameters of one's own, as the line in section 2.2 is. Least squares gives the
best values at once, without training, and so tells how well the training has done. The
script shows a model that cannot bend, one that can, and data on which it learns far too
slowly.

prints:

    a line, x from -1 to 1 (b, c)
      learned          -3.03    1.69
      least squares    -3.03    1.69
      R2                0.87

    a quadratic, x from -1 to 1 (a, b, c)
      learned           1.98   -3.00    1.02
      least squares     1.99   -3.00    1.01
      R2                1.00

    a quadratic, x from 0 to 1 (a, b, c)
      learned          -0.17   -0.77    0.62
      least squares     1.97   -2.96    1.00
      R2                0.70

    the same, standardised (a, b, c of the standardised x)
      learned           0.17   -0.32    0.04
      least squares     0.17   -0.32    0.04
      R2                0.98
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # so that a clone finds kit.py

import torch
from torch import nn

import kit

# --- The models --------------------------------------------------------------------


class Line(nn.Module):
    def __init__(self):
        super().__init__()
        self.coefficients = nn.Parameter(torch.zeros(2, 1))  # b, c

    def terms(self, x):  # (N, 1) to (N, 2)
        return torch.cat([x, torch.ones_like(x)], dim=1)

    def forward(self, x):  # (N, 1) to (N, 1)
        return self.terms(x) @ self.coefficients


class Quadratic(Line):
    def __init__(self):
        super().__init__()
        self.coefficients = nn.Parameter(torch.zeros(3, 1))  # a, b, c

    def terms(self, x):  # (N, 1) to (N, 3)
        return torch.cat([x**2, x, torch.ones_like(x)], dim=1)


# --- The data ----------------------------------------------------------------------

generator = torch.Generator().manual_seed(42)
uniform = torch.rand(200, 1, generator=generator)  # from 0 to 1
noise = 0.05 * torch.randn(200, 1, generator=generator)


def make_quadratic_data(x):
    y = 2 * x**2 - 3 * x + 1 + noise
    return kit.split((x, y), seed=42)


# --- Learn -------------------------------------------------------------------------


def show(name, coefficients):
    numbers = "".join(f"{value:8.2f}" for value in coefficients.flatten().tolist())
    print(f"  {name:14}{numbers}")


def learn(name, curve, data, scale):
    """Train on scaled inputs; print the coefficients beside those of least squares."""
    train, val = data
    model = nn.Sequential(scale, curve)
    state = kit.make_state(model, torch.optim.SGD(model.parameters(), lr=0.1))
    state = kit.fit(
        state,
        kit.make_loader(train),
        kit.make_loader(val),
        loss_fn=nn.MSELoss(),
        epochs=300,
        metrics=kit.metrics,
    )
    inputs, targets = train
    best = torch.linalg.lstsq(curve.terms(scale(inputs)), targets).solution

    print(name)
    show("learned", curve.coefficients.detach())
    show("least squares", best)
    print(f"  {'R2':14}{state.history[-1]['val_r2']:8.2f}")
    print()


around_zero = make_quadratic_data(2 * uniform - 1)
as_it_is = nn.Identity()

# A line stays a line, however long it is trained. It learns the best b and c that a
# line can have, and that is the end of it.
learn("a line, x from -1 to 1 (b, c)", Line(), around_zero, as_it_is)

learn("a quadratic, x from -1 to 1 (a, b, c)", Quadratic(), around_zero, as_it_is)

# Between 0 and 1, as in section 1.3, x² rises nearly as x does. More a and less b is
# then almost the same curve, and gradient descent goes from one to the other very
# slowly.
above_zero = make_quadratic_data(uniform)
learn("a quadratic, x from 0 to 1 (a, b, c)", Quadratic(), above_zero, as_it_is)

# Standardised inputs have a mean of 0 and a spread of 1, and the trouble is over. The
# coefficients are those of the standardised x. (Section 12, question 7.)
train_inputs, train_targets = above_zero[0]
learn(
    "the same, standardised (a, b, c of the standardised x)",
    Quadratic(),
    above_zero,
    kit.Standardize(train_inputs),
)
