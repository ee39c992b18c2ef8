"""Metrics: how wrong the predictions are, in numbers (sections 8.1 and 8.2).

    python recipes/08_metrics.py

Four numbers describe a regression. MAE and RMSE are in the unit of the target; RMSE
counts large errors more. R2 says how much better the model is than one that always
predicts the mean: 1 is perfect, 0 is no better. The script computes them three ways:
by formula, by kit.metrics, and by torchmetrics, which is updated batch by batch. Then
it shows three ways to get R2 wrong, and ends with the numbers of a classifier.

prints:

    the same 40 rows, three ways
                       MAE     MSE    RMSE      R2
    formula         0.0980  0.0129  0.1134  0.7610
    kit.metrics     0.0980  0.0129  0.1134  0.7610
    torchmetrics    0.0980  0.0129  0.1134  0.7610

    R2 batch by batch
    R2 of all rows                0.7610   right
    mean of the batches' R2      -0.3630   wrong

    R2 of a target that is always 3
                    predicts 3  predicts 4
    formula                nan        -inf
    kit.metrics            1.0         0.0
    torchmetrics           1.0         0.0

    R2 of targets from 999,999 to 1,000,001, each predicted 0.5 too high
    in float64          0.25
    kit.metrics         0.25
    torchmetrics        1.00

    a classifier that always says 0, where 8 of 10 rows are 0
    accuracy          0.80
    precision         0.40
    recall            0.50
    f1                0.44
    confusion matrix (a line for each true class, a column for each prediction)
           8       0
           2       0
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that a clone finds kit.py

import torch
from torch import nn

import kit

try:
    import torchmetrics
except ImportError:
    sys.exit("this recipe needs torchmetrics: pip install torchmetrics")


# --- 8.1 The formulas -------------------------------------------------------------


def by_formula(prediction, target):
    error = prediction - target
    mse = (error**2).mean()

    # R2 compares the squared errors with those of the mean as the only prediction.
    around_the_mean = ((target - target.mean()) ** 2).sum()
    r2 = 1 - (error**2).sum() / around_the_mean

    return {"mae": error.abs().mean(), "mse": mse, "rmse": mse.sqrt(), "r2": r2}


# The predictions are the true line, the targets are noisy: 40 rows.
_, prediction = kit.make_data(40)
_, target = kit.make_data(40, noise=0.1, seed=42)


# --- 8.2 The same by kit and by torchmetrics ---------------------------------------

# evaluate wants a model and a loader. A model that returns its input is enough here.
model = nn.Identity()
loader = kit.make_loader((prediction, target), batch_size=7)  # the last batch has 5

# kit.metrics is a plain function: evaluate calls it once, with the rows of all batches.
# torchmetrics' objects are updated with every batch, and asked for a result at the end.
by_torchmetrics = torchmetrics.MetricCollection(
    {
        "mae": torchmetrics.MeanAbsoluteError(),
        "mse": torchmetrics.MeanSquaredError(),
        "rmse": torchmetrics.MeanSquaredError(squared=False),
        "r2": torchmetrics.R2Score(),
    }
)
ways = {
    "formula": by_formula,
    "kit.metrics": kit.metrics,
    "torchmetrics": by_torchmetrics,
}

print("the same 40 rows, three ways")
print(f"{'':14}{'MAE':>8}{'MSE':>8}{'RMSE':>8}{'R2':>8}")
for name, way in ways.items():
    row = kit.evaluate(model, loader, loss_fn=nn.MSELoss(), metrics=way)
    print(
        f"{name:14}{row['mae']:8.4f}{row['mse']:8.4f}{row['rmse']:8.4f}{row['r2']:8.4f}"
    )


# --- Three ways to get R2 wrong ----------------------------------------------------

# 1. R2 is not a mean over rows, so the mean of the batches' R2 is a different number.
of_batches = []
for batch_prediction, batch_target in loader:
    of_batches.append(by_formula(batch_prediction, batch_target)["r2"].item())

print()
print("R2 batch by batch")
print(f"R2 of all rows              {row['r2']:8.4f}   right")
print(f"mean of the batches' R2     {sum(of_batches) / len(of_batches):8.4f}   wrong")

# 2. Where all targets are equal, the formula divides by zero.
constant = torch.full((5, 1), 3.0)

print()
print("R2 of a target that is always 3")
print(f"{'':14}{'predicts 3':>12}{'predicts 4':>12}")
for name, way in ways.items():
    perfect = float(way(constant, constant)["r2"])
    wrong = float(way(constant + 1, constant)["r2"])
    print(f"{name:14}{perfect:12.1f}{wrong:12.1f}")

# 3. torchmetrics keeps sums of squares in float32, which has 7 digits. Where the targets
#    are far from zero beside their spread, those digits are used up by the mean.
far = 1_000_000 + torch.linspace(-1, 1, 1001)[:, None]

print()
print("R2 of targets from 999,999 to 1,000,001, each predicted 0.5 too high")
in_float64 = by_formula((far + 0.5).double(), far.double())
print(f"{'in float64':14}{in_float64['r2']:10.2f}")
for name in ("kit.metrics", "torchmetrics"):
    r2 = float(ways[name](far + 0.5, far)["r2"])
    print(f"{name:14}{r2:10.2f}")


# --- Classes -----------------------------------------------------------------------

# For class numbers as targets, kit.metrics counts instead. Here 8 rows are of class 0
# and 2 of class 1, and the "model" always says 0.
classes = torch.tensor([0, 0, 0, 0, 0, 0, 0, 0, 1, 1])
always_0 = torch.tensor([[1.0, 0.0]]).repeat(10, 1)  # a score for each class

print()
print("a classifier that always says 0, where 8 of 10 rows are 0")
for name, value in kit.metrics(always_0, classes).items():
    print(f"{name:14}{value:8.2f}")
print("confusion matrix (a line for each true class, a column for each prediction)")
for line in kit.confusion_matrix(always_0, classes).tolist():
    print(f"{line[0]:8}{line[1]:8}")
