"""Exercise 9 Tracking: a search of hyper-parameters in TensorBoard, and read back.

    python recipes/exercise_9_tracking.py

Six runs, each with its curves and its choice, to sort and compare under HPARAMS in
`tensorboard --logdir runs/search`. What is in the files is enough to find the best choice
and to make its run again. Watch: without run_name="." add_hparams makes a run of its own
beside the curves; and whole numbers come back as floats.

prints:

    lr 0.1   width 32: best val_loss 0.016
    lr 0.1   width  4: best val_loss 0.017
    lr 0.01  width 32: best val_loss 0.035
    lr 0.01  width  4: best val_loss 0.166
    lr 0.001 width 32: best val_loss 0.444
    lr 0.001 width  4: best val_loss 0.477
    learned again, of the best choice: 0.016
"""

import shutil
import sys
from itertools import product
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # a clone without an install

import torch
from torch import nn

import kit

try:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
    from torch.utils.tensorboard import SummaryWriter
except ImportError:
    sys.exit("this recipe needs tensorboard: pip install tensorboard")

X, noise = torch.randn(2, 300, 1, generator=torch.Generator().manual_seed(42))
data, root = (X, (2 * X).sin() + 0.1 * noise), Path("runs/search")
train, val = (kit.make_loader(part) for part in kit.split(data, seed=42))


def learn(lr, width):
    torch.manual_seed(42)
    model = nn.Sequential(nn.Linear(1, width), nn.Tanh(), nn.Linear(width, 1))
    state = kit.make_state(model, torch.optim.Adam(model.parameters(), lr=lr))
    state = kit.fit(state, train, val, loss_fn=nn.MSELoss(), epochs=100)
    return torch.tensor([row["val_loss"] for row in state.history])


def read(folder):
    """The best val_loss, the choice and the curve, of the files alone."""
    reader = EventAccumulator(str(folder), {"scalars": 0}).Reload()
    start = reader.summary_metadata["_hparams_/session_start_info"].plugin_data
    hparams = HParamsPluginData.FromString(start.content).session_start_info.hparams
    choice = hparams["lr"].number_value, int(hparams["width"].number_value)
    curve = torch.tensor([event.value for event in reader.Scalars("val_loss")])
    return reader.Scalars("best")[0].value, choice, curve


shutil.rmtree(root, ignore_errors=True)
made = {choice: learn(*choice) for choice in product((0.001, 0.01, 0.1), (4, 32))}
for (lr, width), curve in made.items():
    with SummaryWriter(root / f"lr={lr},width={width}") as writer:
        for epoch, loss in enumerate(curve):
            writer.add_scalar("val_loss", loss, epoch)
        choice = {"lr": lr, "width": width}
        writer.add_hparams(choice, {"best": curve.min()}, run_name=".")

found = sorted(map(read, root.iterdir()), key=lambda run: run[0])
for best, choice, curve in found:
    print("lr {:<5} width {:2}: best val_loss {:.3f}".format(*choice, best))
    assert curve.equal(made.pop(choice)) and best == curve.min()
best, choice, curve = found[0]
again = learn(*choice)
print("learned again, of the best choice:", f"{again.min():.3f}")

assert not made and again.equal(curve)
