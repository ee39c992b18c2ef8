"""Workflow: everything end to end (section 6.1).

    python recipes/06_workflow.py

The six steps in one page: data, model, training, evaluation, a checkpoint, predictions.
After 200 epochs the line has a weight of 0.6968 and a bias of 0.3025, where 0.7 and 0.3
are right. At its end the script looks at what the last two digits are worth.

prints:

    training
    epoch  train loss  test loss   weight    bias
        1      0.5552     0.5740   0.7606  0.8200
       50      0.0247     0.0469   0.5861  0.3545
      100      0.0066     0.0145   0.6691  0.3130
      101      0.0062     0.0141   0.6707  0.3120
      150      0.0103     0.0003   0.6968  0.3025
      200      0.0103     0.0003   0.6968  0.3025

    on the test rows
    loss      0.0003
    mae       0.0003
    mse       0.0000
    rmse      0.0004
    r2        0.9999

    new rows
         x  saved model  loaded model    true
       1.0       0.9993        0.9993  1.0000
       2.0       1.6961        1.6961  1.7000

    the same run, a few epochs longer
    epoch  train loss  test loss   weight    bias
      200      0.0103     0.0003   0.6968  0.3025
      201      0.0013     0.0138   0.6929  0.2925
      202      0.0103     0.0003   0.6968  0.3025
      203      0.0013     0.0138   0.6929  0.2925
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that a clone finds kit.py

import torch
from torch import nn

import kit

# --- 1 Data ------------------------------------------------------------------------

train, test = kit.split(kit.make_data(50, weight=0.7, bias=0.3))
train_loader = kit.make_loader(train)  # all 40 rows in one batch
test_loader = kit.make_loader(test)


# --- 2 Model, optimizer, state -----------------------------------------------------


def make_state():
    torch.manual_seed(42)
    model = nn.Linear(1, 1)  # model.to(device) would come here, before the optimizer
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    return kit.make_state(model, optimizer)


# --- 3 Train -----------------------------------------------------------------------

# run yields the state after every epoch, so that the body of the loop can look at it.
# kit.fit is the same without a loop of one's own.
print("training")
print(f"{'epoch':>5}{'train loss':>12}{'test loss':>11}{'weight':>9}{'bias':>8}")


def report(state):
    row = state.history[-1]
    model = state.model
    print(
        f"{row['epoch']:5}{row['train_loss']:12.4f}{row['val_loss']:11.4f}"
        f"{model.weight.item():9.4f}{model.bias.item():8.4f}"
    )


for state in kit.run(
    make_state(), train_loader, test_loader, loss_fn=nn.L1Loss(), epochs=200
):
    if state.history[-1]["epoch"] in (1, 50, 100, 101, 150, 200):
        report(state)


# --- 4 Evaluate --------------------------------------------------------------------

scores = kit.evaluate(
    state.model, test_loader, loss_fn=nn.L1Loss(), metrics=kit.metrics
)

print()
print("on the test rows")
for name, value in scores.items():
    print(f"{name:8}{value:8.4f}")


# --- 5 Save and load ---------------------------------------------------------------

path = kit.save_checkpoint(state, "models/line.pt")
loaded = kit.load_checkpoint(make_state(), path)


# --- 6 Predict ---------------------------------------------------------------------

new_inputs = torch.tensor([[1.0], [2.0]])
before = kit.predict(state.model, new_inputs)
after = kit.predict(loaded.model, new_inputs)

print()
print("new rows")
print(f"{'x':>6}{'saved model':>13}{'loaded model':>14}{'true':>8}")
for x, old, new in zip(new_inputs, before, after):
    x = x.item()
    print(f"{x:6.1f}{old.item():13.4f}{new.item():14.4f}{0.7 * x + 0.3:8.4f}")


# --- What 0.6968 is worth ----------------------------------------------------------

# The slope of the L1 loss is as steep near the minimum as it is far away, so that with
# a constant learning rate the line jumps over the minimum and back, forever. The
# tutorial prints one of the two points: had it stopped an epoch later, it would have
# printed the other. A learning rate that falls ends the bounce: 07_scheduler.py.
print()
print("the same run, a few epochs longer")
print(f"{'epoch':>5}{'train loss':>12}{'test loss':>11}{'weight':>9}{'bias':>8}")
report(loaded)
for state in kit.run(
    loaded, train_loader, test_loader, loss_fn=nn.L1Loss(), epochs=203
):
    report(state)
