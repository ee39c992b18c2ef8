"""Exercise 9, tracking: a search of hyper-parameters in TensorBoard, and read back.

    python recipes/exercises/9_tracking.py

Three learning rates times two widths make six runs. Each writes its choice, its curve
and its best loss to a folder of its own, and `tensorboard --logdir runs/search` sorts
and compares them under HPARAMS. What is in these folders is enough to find the best
choice and to make its run again, number by number.

prints:

    what is in runs/search, the best first
       lr   width   best val_loss
      0.1      32           0.016
      0.1       4           0.017
     0.01      32           0.035
     0.01       4           0.166
    0.001      32           0.444
    0.001       4           0.477

    lr 0.1 and width 32 once more
    best val_loss: 0.016
    largest difference of an epoch's loss: 0.000000
"""

import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # so that a clone finds kit.py

import torch
from torch import nn

import kit

try:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
    from torch.utils.tensorboard import SummaryWriter
except ImportError:
    sys.exit("this recipe needs tensorboard: pip install tensorboard")

FOLDER = Path("runs/search")

X, noise = torch.randn(2, 300, 1, generator=torch.Generator().manual_seed(42))
y = (2 * X).sin() + 0.1 * noise
train, val = kit.split((X, y), seed=42)
train_loader = kit.make_loader(train)
val_loader = kit.make_loader(val)


def learn(lr, width):
    """The validation loss of every epoch."""
    torch.manual_seed(42)
    model = nn.Sequential(nn.Linear(1, width), nn.Tanh(), nn.Linear(width, 1))
    state = kit.make_state(model, torch.optim.Adam(model.parameters(), lr=lr))
    state = kit.fit(state, train_loader, val_loader, loss_fn=nn.MSELoss(), epochs=100)
    return [row["val_loss"] for row in state.history]


# --- Search and write --------------------------------------------------------------

shutil.rmtree(FOLDER, ignore_errors=True)  # an old search would be mixed with this one

for lr in (0.001, 0.01, 0.1):
    for width in (4, 32):
        losses = learn(lr, width)
        with SummaryWriter(FOLDER / f"lr={lr},width={width}") as writer:
            for epoch, loss in enumerate(losses, start=1):
                writer.add_scalar("val_loss", loss, epoch)

            # Without run_name, add_hparams makes a second run beside the one with the
            # curve.
            writer.add_hparams(
                {"lr": lr, "width": width}, {"best": min(losses)}, run_name="."
            )


# --- Read back ---------------------------------------------------------------------


def read(folder):
    """The choice, its best loss and its curve, from the files alone."""
    reader = EventAccumulator(str(folder), {"scalars": 0}).Reload()

    # the hyper-parameters are in a message of their own
    tag = "_hparams_/session_start_info"
    message = reader.summary_metadata[tag].plugin_data.content
    choice = HParamsPluginData.FromString(message).session_start_info.hparams

    return {
        "lr": choice["lr"].number_value,
        "width": int(choice["width"].number_value),  # all numbers come back as floats
        "best": reader.Scalars("best")[0].value,
        "curve": [event.value for event in reader.Scalars("val_loss")],
    }


runs = [read(folder) for folder in FOLDER.iterdir()]
runs.sort(key=lambda run: run["best"])

print("what is in runs/search, the best first")
print(f"{'lr':>5}{'width':>8}{'best val_loss':>16}")
for run in runs:
    print(f"{run['lr']:5g}{run['width']:8}{run['best']:16.3f}")


# --- Make the best run again -------------------------------------------------------

best = runs[0]
again = learn(best["lr"], best["width"])
largest = max(abs(new - old) for new, old in zip(again, best["curve"]))

print()
print(f"lr {best['lr']:g} and width {best['width']} once more")
print(f"best val_loss: {min(again):.3f}")
print(f"largest difference of an epoch's loss: {largest:.6f}")
