"""Exercise 5 Regularisation: L1 and L2, with and without.

    python recipes/exercise_5_regularisation.py

Three of twenty columns matter; with 40 rows the other weights learn noise. L2, which is
the optimizer's weight_decay (of Adam, take AdamW), makes weights smaller, L1 makes many
zero. Watch: a penalty in fit's loss_fn is in val_loss too, which then compares nothing:
add it in the step. And added to a loss L1 makes small weights, not zeros; for these,
shrink the weights by lr times L1 after the update.

prints:

              val_loss  weights that matter zeros  rms of the 17
    true           3.9   1.00 -2.00  3.00    17      0.00
    without        8.0   0.86 -1.68  3.16     0      0.56
    L2             5.9   0.98 -1.22  2.49     0      0.37
    L1 added       4.8   0.80 -1.18  2.73     0      0.16
    L1 shrunk      4.8   0.79 -1.18  2.74    12      0.16
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # a clone without an install

import torch
from torch import nn
from torch.nn import functional as F

import kit

LR, L1, L2 = 0.05, 0.6, 0.3
columns = torch.randn(240, 21, generator=torch.Generator().manual_seed(42))
X, noise = columns.split(20, 1)
true = torch.tensor([1.0, -2.0, 3.0, *[0.0] * 17])
y = X @ true[:, None] + 2 * noise
train, val = kit.split((X, y), ratios=(1 / 6, 5 / 6))


def added(state, batch, *, loss_fn):
    def penalised(prediction, y):
        return loss_fn(prediction, y) + L1 * state.model.weight.abs().sum()

    return kit.train_step(state, batch, loss_fn=penalised)


def shrunk(state, batch, *, loss_fn):
    state, sums = kit.train_step(state, batch, loss_fn=loss_fn)
    with torch.no_grad():
        state.model.weight.copy_(F.softshrink(state.model.weight, LR * L1))
    return state, sums


def learn(name, step=kit.train_step, weight_decay=0.0):
    torch.manual_seed(42)
    model = nn.Linear(20, 1, bias=False)  # a bias would be left unpenalised
    sgd = torch.optim.SGD(model.parameters(), lr=LR, weight_decay=weight_decay)
    loaders = kit.make_loader(train), kit.make_loader(val)
    state = kit.make_state(model, sgd)
    state = kit.fit(state, *loaders, loss_fn=nn.MSELoss(), epochs=500, step=step)
    val_loss = state.history[-1]["val_loss"]
    show(name, val_loss, model.weight.detach()[0])
    return model.weight.detach()[0], val_loss


def show(name, val_loss, weight):
    zeros, others = (weight == 0).sum(), weight[3:].square().mean().sqrt()
    three = " ".join(f"{w:5.2f}" for w in weight[:3].tolist())
    print(f"{name:9} {val_loss:8.1f}  {three} {zeros:5} {others:9.2f}")


print("          val_loss  weights that matter zeros  rms of the 17")
show("true", (val[0] @ true - val[1][:, 0]).square().mean(), true)
free, l2 = learn("without"), learn("L2", weight_decay=L2)
addend, l1 = learn("L1 added", added), learn("L1 shrunk", shrunk)

A, b = 2 / 40 * train[0].T @ train[0], 2 / 40 * train[0].T @ train[1][:, 0]
torch.testing.assert_close(l2[0], torch.linalg.solve(A + L2 * torch.eye(20), b))
slope, zero = A @ l1[0] - b, l1[0] == 0  # of the loss without the penalty
torch.testing.assert_close(slope[~zero], -L1 * l1[0][~zero].sign())
assert (slope[zero].abs() <= L1).all() and zero.sum() > 8 and addend[0].all()
assert l1[1] < l2[1] < free[1] and l2[0].norm() < free[0].norm()
