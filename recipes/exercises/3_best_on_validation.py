"""Exercise 3, the best on validation: 70/15/15, and which model to keep.

    python recipes/exercises/3_best_on_validation.py

Three networks of different width are trained for 100 epochs each. Every epoch of every
network is a candidate, and the validation rows choose one of the 300. The test rows
have chosen nothing; they say how good the chosen one is.

prints:

    validation loss
    width  best epoch   there  epoch 100
        4          96    0.82       0.83
       64          63    0.45       0.56
      256          40    0.54       0.66

    chosen: width 64
                  train loss  val loss  test loss
    epoch 63            0.05      0.45       0.37
    epoch 100           0.02      0.56       0.44
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # so that a clone finds kit.py

import torch
from torch import nn

import kit

WIDTHS = (4, 64, 256)

# 300 rows of eight inputs, of which two matter, and noise with a variance of 0.25: no
# model can have a loss below that.
columns = torch.randn(300, 9, generator=torch.Generator().manual_seed(42))
X = columns[:, :8]
noise = 0.5 * columns[:, 8:]
y = (2 * X[:, :1]).sin() + X[:, 1:2] + noise

train, val, test = kit.split((X, y), ratios=(0.7, 0.15, 0.15), seed=42)
train_loader = kit.make_loader(train)
val_loader = kit.make_loader(val)
test_loader = kit.make_loader(test)


def make_state(width):
    torch.manual_seed(42)
    model = nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 1))
    return kit.make_state(model, torch.optim.Adam(model.parameters(), lr=0.02))


# --- Train and keep the best -------------------------------------------------------

# The loop is ours: after each epoch, save the state if it is the best so far.
best_rows = {}
last_states = {}

print("validation loss")
print(f"{'width':>5}{'best epoch':>12}{'there':>8}{'epoch 100':>11}")
for width in WIDTHS:
    for state in kit.run(
        make_state(width), train_loader, val_loader, loss_fn=nn.MSELoss(), epochs=100
    ):
        if kit.is_best(state.history):
            kit.save_checkpoint(state, f"models/width_{width}.pt")
            best_rows[width] = state.history[-1]
    last_states[width] = state

    best = best_rows[width]
    last = state.history[-1]
    print(f"{width:5}{best['epoch']:12}{best['val_loss']:8.2f}{last['val_loss']:11.2f}")


# --- Choose by validation, judge by test -------------------------------------------

chosen = min(WIDTHS, key=lambda width: best_rows[width]["val_loss"])
best = kit.load_checkpoint(make_state(chosen), f"models/width_{chosen}.pt")
last = last_states[chosen]

print()
print(f"chosen: width {chosen}")
print(f"{'':12}{'train loss':>12}{'val loss':>10}{'test loss':>11}")
for name, state in ((f"epoch {best_rows[chosen]['epoch']}", best), ("epoch 100", last)):
    losses = []
    for loader in (train_loader, val_loader, test_loader):
        row = kit.evaluate(state.model, loader, loss_fn=nn.MSELoss())
        losses.append(row["loss"])
    print(f"{name:12}{losses[0]:12.2f}{losses[1]:10.2f}{losses[2]:11.2f}")

# The last epoch knows the training rows better and all others worse. The result to
# report is the test loss of the chosen epoch. Its validation loss is no result: it was
# picked because it is low, and would be called luck on any other 45 rows.
