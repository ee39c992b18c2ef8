"""Find a learning rate: try all of them in one short run (beyond section 7).

    python recipes/07_find_lr.py

The range test trains with a rate that grows from far too small to far too large, and
looks at the loss: at first nothing happens, then the loss falls, then it explodes. A
tenth of the rate at the lowest point is a good one to start with. It draws
runs/find_lr.png where matplotlib is installed.

prints:

    the range test
    epoch        lr  train loss
        1   0.00001      0.5604
       11   0.00003      0.5602
       21   0.00010      0.5595
       31   0.00032      0.5573
       41   0.00100      0.5505
       51   0.00316      0.5288
       61   0.01000      0.4604
       71   0.03162      0.2439
       81   0.10000      0.0201
       91   0.31623      0.1809
      100   0.89125      0.5141
    lowest at 0.100, so take 0.010

    200 epochs with that rate, with a tenth and with ten times of it
        lr  val loss
     0.001    0.3132
     0.010    0.0074
     0.100    0.0454
    the model that was tested is unchanged
"""

import copy
import sys
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that a clone finds kit.py

import torch
from torch import nn
from torch.optim.lr_scheduler import ExponentialLR

import kit

# --- The range test ----------------------------------------------------------------


def find_lr(state, loader, *, loss_fn, highest=1.0, epochs=100):
    """The history of a run whose rate grows by the same factor every epoch.

    The run would spoil what it trains, so it trains a copy.
    """
    state = copy.deepcopy(state)
    lowest = state.optimizer.param_groups[0]["lr"]
    factor = (highest / lowest) ** (1 / epochs)
    scheduler = ExponentialLR(state.optimizer, factor)
    state = state._replace(scheduler=scheduler)
    return kit.fit(state, loader, loss_fn=loss_fn, epochs=epochs).history


def make_state(lr):
    torch.manual_seed(42)
    model = nn.Linear(1, 1)
    return kit.make_state(model, torch.optim.SGD(model.parameters(), lr=lr))


train, val = kit.split(kit.make_data(), seed=42)
train_loader = kit.make_loader(train)  # one batch, so an epoch is a step
val_loader = kit.make_loader(val)

state = make_state(lr=1e-5)
history = find_lr(state, train_loader, loss_fn=nn.L1Loss())

print("the range test")
print(f"{'epoch':>5}{'lr':>10}{'train loss':>12}")
for row in history:
    if row["epoch"] % 10 == 1 or row["epoch"] == 100:
        print(f"{row['epoch']:5}{row['lr']:10.5f}{row['train_loss']:12.4f}")

lowest_point = min(history, key=lambda row: row["train_loss"])
suggested = lowest_point["lr"] / 10
print(f"lowest at {lowest_point['lr']:.3f}, so take {suggested:.3f}")

if find_spec("matplotlib"):
    Path("runs").mkdir(exist_ok=True)
    kit.plot_history(history).savefig("runs/find_lr.png")


# --- Is it a good one? -------------------------------------------------------------

print()
print("200 epochs with that rate, with a tenth and with ten times of it")
print(f"{'lr':>6}{'val loss':>10}")
for lr in (suggested / 10, suggested, suggested * 10):
    trained = kit.fit(
        make_state(lr), train_loader, val_loader, loss_fn=nn.L1Loss(), epochs=200
    )
    print(f"{lr:6.3f}{trained.history[-1]['val_loss']:10.4f}")

untouched = torch.equal(
    nn.utils.parameters_to_vector(state.model.parameters()),
    nn.utils.parameters_to_vector(make_state(lr=1e-5).model.parameters()),
)
print("the model that was tested is", "unchanged" if untouched else "changed")
