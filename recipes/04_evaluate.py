"""Evaluate: without gradients, in eval mode, beside the truth (sections 4.1 and 4.2).

    python recipes/04_evaluate.py

To evaluate is to predict rows that training has not seen, and to measure how wrong that
is. Two switches belong to it: one turns gradients off, the other turns dropout off. The
script shows what each of them does, measures a trained line, and compares it with the
true one. It draws runs/predictions.png where matplotlib is installed.

prints:

    three ways to predict
                            notes operations    may be trained with later
    model(inputs)           yes                 yes
    torch.no_grad           no                  yes
    torch.inference_mode    no                  no

    three predictions of one row by a model with dropout
    no_grad alone     -0.4244  -0.4339   0.0149
    kit.predict       -0.0514  -0.0514  -0.0514
    and afterwards the mode is train

    the test loss (L1) of 10 rows
    kit.evaluate, batches of 10         0.0569
    kit.evaluate, batches of 4          0.0569
    mean of the batches of 4, 4 and 2   0.0585   wrong

    the line
                weight    bias
    learned     0.5784  0.3513
    true        0.7000  0.3000

    test rows
         x   predicted     true    error
      0.80      0.8141   0.8600  -0.0459
      0.82      0.8256   0.8740  -0.0484
      0.84      0.8372   0.8880  -0.0508
      0.86      0.8488   0.9020  -0.0532
      0.88      0.8603   0.9160  -0.0557
      0.90      0.8719   0.9300  -0.0581
      0.92      0.8835   0.9440  -0.0605
      0.94      0.8950   0.9580  -0.0630
      0.96      0.9066   0.9720  -0.0654
      0.98      0.9182   0.9860  -0.0678
"""

import sys
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that a clone finds kit.py

import torch
from torch import nn

import kit

# The line of 03_train.py, after 100 epochs.
train, test = kit.split(kit.make_data())
test_inputs, test_targets = test

torch.manual_seed(42)
weight = torch.randn(1, 1)
bias = torch.randn(1)
model = nn.Linear(1, 1)
model.load_state_dict({"weight": weight, "bias": bias})

state = kit.make_state(model, torch.optim.SGD(model.parameters(), lr=0.01))
state = kit.fit(state, kit.make_loader(train), loss_fn=nn.L1Loss(), epochs=100)


# --- 4.1 Without gradients ---------------------------------------------------------

# torch notes every operation, so that backward can go through them in reverse. Testing
# has no backward, and the notes would only take memory. Two switches turn them off.
# inference_mode saves a little more, but what it returns can never be used in training,
# and the error comes much later, in other code. kit evaluates under no_grad.
print("three ways to predict")
print(f"{'':24}{'notes operations':20}may be trained with later")
for name, switch in (
    ("model(inputs)", torch.enable_grad),
    ("torch.no_grad", torch.no_grad),
    ("torch.inference_mode", torch.inference_mode),
):
    with switch():
        predictions = model(test_inputs)
    notes = "yes" if predictions.requires_grad else "no"
    try:
        model(predictions).sum().backward()
        usable = "yes"
    except RuntimeError:
        usable = "no"
    print(f"{name:24}{notes:20}{usable}")

# The other switch is the mode. Dropout, which sets random values to 0 to make a model
# robust, must do so in training only, and BatchNorm must use what it has learned. No
# switch for gradients does that: it takes model.eval(), and model.train() afterwards.
torch.manual_seed(42)
with_dropout = nn.Sequential(nn.Linear(1, 100), nn.Dropout(0.5), nn.Linear(100, 1))
row = test_inputs[:1]

print()
print("three predictions of one row by a model with dropout")
with torch.no_grad():
    in_train_mode = [with_dropout(row).item() for _ in range(3)]
by_kit = [kit.predict(with_dropout, row).item() for _ in range(3)]
for name, values in (
    ("no_grad alone", in_train_mode),
    ("kit.predict", by_kit),
):
    print(f"{name:16}" + "".join(f"{value:9.4f}" for value in values))
print("and afterwards the mode is", "train" if with_dropout.training else "eval")


# --- 4.2 The loss, and the line beside the true one --------------------------------

# The loss of the 10 test rows does not depend on how they are batched. The mean of the
# batches' losses does: with 4, 4 and 2 rows, each row of the last batch counts double.
print()
print("the test loss (L1) of 10 rows")
for batch_size in (10, 4):
    loader = kit.make_loader(test, batch_size=batch_size)
    loss = kit.evaluate(model, loader, loss_fn=nn.L1Loss())["loss"]
    print(f"{f'kit.evaluate, batches of {batch_size}':34}{loss:8.4f}")

losses = []
for batch_inputs, batch_targets in loader:
    prediction = kit.predict(model, batch_inputs)
    losses.append(nn.L1Loss()(prediction, batch_targets).item())
mean = sum(losses) / len(losses)
print(f"{'mean of the batches of 4, 4 and 2':34}{mean:8.4f}   wrong")

# 100 epochs are too few: 06_workflow.py trains for 200.
print()
print("the line")
print(f"{'':10}{'weight':>8}{'bias':>8}")
print(f"{'learned':10}{model.weight.item():8.4f}{model.bias.item():8.4f}")
print(f"{'true':10}{0.7:8.4f}{0.3:8.4f}")

print()
print("test rows")
print(f"{'x':>6}{'predicted':>12}{'true':>9}{'error':>9}")
predictions = kit.predict(model, test_inputs)
for x, prediction, target in zip(test_inputs, predictions, test_targets):
    error = prediction - target
    print(
        f"{x.item():6.2f}{prediction.item():12.4f}{target.item():9.4f}"
        f"{error.item():9.4f}"
    )

# Red points, the predictions, should lie on the green ones.
if find_spec("matplotlib"):
    Path("runs").mkdir(exist_ok=True)
    figure = kit.plot_predictions(train, test, predictions)
    figure.savefig("runs/predictions.png")
