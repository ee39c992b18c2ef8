"""09 TensorBoard: losses, rate, histograms, hyper-parameters (tutorial 9.2).

    python recipes/09_tensorboard.py

Three learning rates, watched by an on_epoch function, to look at with `tensorboard
--logdir runs/board`; the command line has it built in, as `python -m kit fit
--tensorboard`. Watch: without purge_step a resumed run may show an epoch twice, and
without run_name add_hparams makes a run of its own.

prints:

    lr 0.001: best val_loss 0.5134
    lr 0.01: best val_loss 0.0066
    lr 0.1: best val_loss 0.0047
    read back: scalars epoch, step, lr, train_loss, val_loss, seconds, best
    histograms weight, bias; hyper-parameters lr
"""

import shutil
import sys
from functools import partial
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # a clone without an install

import torch
from torch import nn
from torch.optim.lr_scheduler import StepLR

import kit

try:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
    from torch.utils.tensorboard import SummaryWriter
except ImportError:
    sys.exit("this recipe needs tensorboard: pip install tensorboard")


def log(writer, state):
    row = state.history[-1]
    for key, value in row.items():
        writer.add_scalar(key, value, row["epoch"])
    for name, p in state.model.named_parameters():
        writer.add_histogram(name, p, row["epoch"])


loaders = [kit.make_loader(part) for part in kit.split(kit.make_data())]
shutil.rmtree("runs/board", ignore_errors=True)
for lr in (0.001, 0.01, 0.1):
    torch.manual_seed(42)
    model, folder = nn.Linear(1, 1), f"runs/board/lr={lr}"
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    state = kit.make_state(model, optimizer, scheduler=StepLR(optimizer, 50))
    with SummaryWriter(folder, purge_step=len(state.history)) as writer:
        options = {"epochs": 100, "on_epoch": partial(log, writer)}
        state = kit.fit(state, *loaders, loss_fn=nn.L1Loss(), **options)
        best = min(row["val_loss"] for row in state.history)
        writer.add_hparams({"lr": lr}, {"best": best}, run_name=".")
    print(f"lr {lr}: best val_loss {best:.4f}")

    reader = EventAccumulator(folder, {"scalars": 0, "histograms": 0}).Reload()
    tags, content = reader.Tags(), reader.summary_metadata
    start = content["_hparams_/session_start_info"].plugin_data.content
    hparams = HParamsPluginData.FromString(start).session_start_info.hparams
    for key in state.history[0]:
        events = [(event.step, event.value) for event in reader.Scalars(key)]
        rows = [(row["epoch"], float(row[key])) for row in state.history]
        torch.testing.assert_close(torch.tensor(events), torch.tensor(rows))
    assert len(reader.Histograms("weight")) == 100 and hparams["lr"].number_value == lr
print("read back: scalars", ", ".join(tags["scalars"]))
print("histograms", ", ".join(tags["histograms"]) + "; hyper-parameters", *hparams)
