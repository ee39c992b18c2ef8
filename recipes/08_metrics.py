"""08 Metrics: by formula, by kit, by torchmetrics (tutorial 8.1, 8.2).

    python recipes/08_metrics.py

Watch: R2 is no mean, so averaging that of batches is wrong. A constant target makes the
formula divide by zero. torchmetrics' sums lose the R2 of targets far from zero.

prints:

                     mae     mse    rmse      r2
    formula       0.0980  0.0129  0.1134  0.7610
    kit           0.0980  0.0129  0.1134  0.7610
    torchmetrics  0.0980  0.0129  0.1134  0.7610
    the mean of the batches' r2: -0.3630
    a constant target, off by 0: formula nan, kit 1, torchmetrics 1
    a constant target, off by 1: formula -inf, kit 0, torchmetrics 0
    targets of 1e6 +- 1: torchmetrics is off
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # a clone without an install

import torch
from torch import nn

import kit

try:
    import torchmetrics as tm
except ImportError:
    sys.exit("this recipe needs torchmetrics: pip install torchmetrics")


def formula(prediction, y):
    error = prediction - y
    mse = error.square().mean()
    r2 = 1 - error.square().sum() / (y - y.mean()).square().sum()
    return {"mae": error.abs().mean(), "mse": mse, "rmse": mse.sqrt(), "r2": r2}


(_, line), (_, y) = kit.make_data(40), kit.make_data(40, noise=0.1, seed=42)
model = nn.Identity()  # whose predictions are its inputs: here the line without noise
loader = kit.make_loader((line, y), batch_size=7)  # the last batch has 5

errors = {"mae": tm.MeanAbsoluteError(), "mse": tm.MeanSquaredError()}
errors |= {"rmse": tm.MeanSquaredError(squared=False), "r2": tm.R2Score()}
ways = {"formula": formula, "kit": kit.metrics}  # functions get all outputs at once,
ways |= {"torchmetrics": tm.MetricCollection(errors)}  # an object batch by batch
print(f"{'':12}", *(f"{name:>7}" for name in errors))
rows = []
for name, metrics in ways.items():
    row = kit.evaluate(model, loader, loss_fn=nn.MSELoss(), metrics=metrics)
    rows.append([row[key] for key in errors])
    print(f"{name:12}", *(f"{value:7.4f}" for value in rows[-1]))
each = [kit.metrics(*batch)["r2"] for batch in loader]
print(f"the mean of the batches' r2: {sum(each) / len(each):.4f}")

y, far = torch.full((5, 1), 3.0), 1e6 + torch.linspace(-1, 1, 1001)[:, None]
for wrong in (0, 1):
    r2 = (f"{name} {metric(y + wrong, y)['r2']:g}" for name, metric in ways.items())
    print(f"a constant target, off by {wrong}:", ", ".join(r2))
_, ours, theirs = (metric(far + 0.5, far)["r2"] for metric in ways.values())
off = abs(theirs - ours) > 0.1
print("targets of 1e6 +- 1: torchmetrics", "is off" if off else "agrees")

rows = torch.tensor(rows)
assert (rows - rows[1]).abs().max() < 1e-6 and rows[1, -1] - sum(each) / len(each) > 0.2
assert off and abs(ours - formula(far.double() + 0.5, far.double())["r2"]) < 1e-12
