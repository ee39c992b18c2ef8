"""Early stopping: end when validation no longer gets better (section 7.5).

    python recipes/07_early_stopping.py

A network that is large for its rows learns their noise too: the training loss keeps
falling while the validation loss rises. early_stopping ends the run once the last
epochs have brought nothing better. It is a function of the history, and so is what
counts as the best epoch: nothing about them has to be remembered or saved.

prints:

    300 epochs without stopping
    epoch  train loss  val loss
        1       0.723     0.468
       12       0.070     0.105
       22       0.075     0.172
       50       0.053     0.130
      100       0.051     0.137
      300       0.049     0.142

    with a patience of 10
                      epoch  val loss
    best.pt              12     0.105
    last.pt, stopped     22     0.172
    without stopping    300     0.142

    resumed from last.pt: 0 more epochs

    is the last epoch the best?
    val_loss     nan                 no
    val_loss     nan, 1.0            yes
    val_loss     nan, 1.0, 2.0       no
    val_loss     nan, 1.0, 2.0, nan  no
    val_accuracy 0.8, 0.9            yes
"""

import sys
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that a clone finds kit.py

import torch
from torch import nn

import kit

# 40 noisy rows to train on, 40 to validate on, and 193 parameters.
X, noise = torch.randn(2, 80, 1, generator=torch.Generator().manual_seed(42))
y = (2 * X).sin() + 0.3 * noise
train, val = kit.split((X, y), ratios=(0.5, 0.5))
train_loader = kit.make_loader(train)
val_loader = kit.make_loader(val)


def make_state():
    torch.manual_seed(42)
    model = nn.Sequential(nn.Linear(1, 64), nn.ReLU(), nn.Linear(64, 1))
    return kit.make_state(model, torch.optim.Adam(model.parameters(), lr=0.03))


# --- Without -----------------------------------------------------------------------

full = kit.fit(make_state(), train_loader, val_loader, loss_fn=nn.MSELoss(), epochs=300)

print("300 epochs without stopping")
print(f"{'epoch':>5}{'train loss':>12}{'val loss':>10}")
for row in full.history:
    if row["epoch"] in (1, 12, 22, 50, 100, 300):
        print(f"{row['epoch']:5}{row['train_loss']:12.3f}{row['val_loss']:10.3f}")


# --- With --------------------------------------------------------------------------

# patience    how many epochs may bring nothing better; the tutorial's class has 7
# min_delta   how much better counts: less than 0.001 is no progress
stop = partial(kit.early_stopping, patience=10, min_delta=0.001)

# fit returns the weights of the last epoch, which are past the best. With checkpoint=
# it writes the best to best.pt and the last to last.pt as it goes.
with TemporaryDirectory() as folder:
    kit.fit(
        make_state(),
        train_loader,
        val_loader,
        loss_fn=nn.MSELoss(),
        epochs=300,
        stop=stop,
        checkpoint=folder,
    )
    best = kit.load_checkpoint(make_state(), Path(folder, "best.pt"))
    last = kit.load_checkpoint(make_state(), Path(folder, "last.pt"))

print()
print("with a patience of 10")
print(f"{'':18}{'epoch':>5}{'val loss':>10}")
for name, state in (
    ("best.pt", best),
    ("last.pt, stopped", last),
    ("without stopping", full),
):
    loss = kit.evaluate(state.model, val_loader, loss_fn=nn.MSELoss())["loss"]
    print(f"{name:18}{state.history[-1]['epoch']:5}{loss:10.3f}")


# --- After a resume ----------------------------------------------------------------

# The tutorial's EarlyStopping is an object that counts. It is not in the checkpoint, so
# after a resume it starts counting from 0 and may call a worse epoch the best. The
# history is in the checkpoint: resumed, this run knows that it is over.
again = kit.fit(
    last, train_loader, val_loader, loss_fn=nn.MSELoss(), epochs=300, stop=stop
)

print()
print("resumed from last.pt:", len(again.history) - len(last.history), "more epochs")


# --- What counts as the best -------------------------------------------------------

# NaN compares as False with everything, so that a loop with `if loss > best: wait` and
# `else: best = loss` takes it for the best. Here it is never the best and never better.
# And where higher is better, say so: mode="max".
nan = float("nan")

print()
print("is the last epoch the best?")
for losses in ([nan], [nan, 1.0], [nan, 1.0, 2.0], [nan, 1.0, 2.0, nan]):
    history = [{"val_loss": loss} for loss in losses]
    answer = "yes" if kit.is_best(history) else "no"
    print(f"{'val_loss':13}{', '.join(str(loss) for loss in losses):20}{answer}")

history = [{"val_accuracy": 0.8}, {"val_accuracy": 0.9}]
answer = "yes" if kit.is_best(history, key="val_accuracy", mode="max") else "no"
print(f"{'val_accuracy':13}{'0.8, 0.9':20}{answer}")
