"""Exercise 5, regularisation: L1 and L2, with and without.

    python recipes/exercises/5_regularisation.py

Of twenty inputs only three matter, and there are 40 noisy rows: enough for the weights
of the other seventeen to learn noise. A penalty on the weights keeps them small. L2
adds up their squares and makes all of them smaller; L1 adds up their absolute values
and can make weights exactly 0, if it is done right.

prints:

                 val loss      the 3 that matter      other 17    zeros
    the truth         3.9     1.00  -2.00   3.00          0.00       17
    no penalty        8.0     0.86  -1.68   3.16          0.56        0
    L2                5.9     0.98  -1.22   2.49          0.37        0
    L1 added          4.8     0.80  -1.18   2.73          0.16        0
    L1 shrinking      4.8     0.79  -1.18   2.74          0.16       12
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # so that a clone finds kit.py

import torch
from torch import nn
from torch.nn import functional as F

import kit

LR = 0.05
L1 = 0.6
L2 = 0.3

# 40 rows to train on, 200 to validate on; the noise has a variance of 4.
columns = torch.randn(240, 21, generator=torch.Generator().manual_seed(42))
X = columns[:, :20]
noise = 2 * columns[:, 20:]
true_weights = torch.zeros(20)
true_weights[:3] = torch.tensor([1.0, -2.0, 3.0])
y = X @ true_weights[:, None] + noise

train, val = kit.split((X, y), ratios=(1 / 6, 5 / 6))
train_loader = kit.make_loader(train)
val_loader = kit.make_loader(val)


# --- L1 in two ways ----------------------------------------------------------------

# A penalty belongs into the step, not into the loss function of the whole run: that one
# is used for validation as well, and would make the validation losses of different
# penalties impossible to compare.


def step_with_l1_added(state, batch, *, loss_fn, forward):
    """The usual way: the penalty is a part of the loss that is minimised."""

    def penalised_loss(outputs, targets):
        penalty = state.model.weight.abs().sum()
        return loss_fn(outputs, targets) + L1 * penalty

    return kit.train_step(state, batch, loss_fn=penalised_loss, forward=forward)


# The slope of |w| is +1 or -1 however small w is. So gradient descent jumps over 0 and
# back, and no weight is ever exactly 0. Shrinking them after the update stops them at
# it.


def step_with_l1_shrinking(state, batch, *, loss_fn, forward):
    """Update without the penalty, then move every weight towards 0 by lr times L1."""
    state, totals = kit.train_step(state, batch, loss_fn=loss_fn, forward=forward)
    with torch.no_grad():
        state.model.weight.copy_(F.softshrink(state.model.weight, LR * L1))
    return state, totals


# --- Learn -------------------------------------------------------------------------


def show(name, weights, val_loss):
    three = "".join(f"{weight:7.2f}" for weight in weights[:3].tolist())
    others = weights[3:].square().mean().sqrt()  # root mean square: their usual size
    zeros = (weights == 0).sum()
    print(f"{name:12}{val_loss:9.1f}  {three}{others:14.2f}{zeros:9}")


def learn(name, step=kit.train_step, weight_decay=0.0):
    torch.manual_seed(42)
    model = nn.Linear(20, 1, bias=False)  # a bias would be left without a penalty
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, weight_decay=weight_decay)
    state = kit.make_state(model, optimizer)
    state = kit.fit(
        state, train_loader, val_loader, loss_fn=nn.MSELoss(), epochs=500, step=step
    )
    show(name, model.weight.detach()[0], state.history[-1]["val_loss"])


print(f"{'':12}{'val loss':>9}  {'the 3 that matter':>21}{'other 17':>14}{'zeros':>9}")
val_inputs, val_targets = val
noise_alone = F.mse_loss(val_inputs @ true_weights[:, None], val_targets)
show("the truth", true_weights, noise_alone)

learn("no penalty")

# L2 is built into the optimizers, as weight_decay. (With Adam, take AdamW: Adam divides
# the penalty by the size of the gradient, as it does with everything.)
learn("L2", weight_decay=L2)

learn("L1 added", step=step_with_l1_added)
learn("L1 shrinking", step=step_with_l1_shrinking)

# The price: the three that matter are pulled towards 0 as well.
