"""Weights & Biases: config, metrics and the model file (section 9.3).

    python recipes/09_wandb.py

The tutorial's code needs an account and a network. This one needs neither: the run is
written to the folder runs/wandb, and `wandb sync` uploads it later, or never. With an
account, WANDB_MODE=online shows the run live.

prints:

    mode:       offline
    config:     lr 0.01, optimizer sgd, epochs 20
    epochs:     20 of 20 in the log
    model file: in the log
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that a clone finds kit.py

# To be set before wandb is imported. In its default mode it asks for an account, and
# waits for the answer; and it keeps files in the home folder.
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("WANDB_SILENT", "true")
folder = str(Path("runs").resolve())
os.environ.setdefault("WANDB_DIR", folder)
os.environ.setdefault("WANDB_CACHE_DIR", folder)
os.environ.setdefault("WANDB_CONFIG_DIR", folder)
os.environ.setdefault("WANDB_DATA_DIR", folder)

import torch
from torch import nn

import kit

try:
    import wandb
except ImportError:
    sys.exit("this recipe needs wandb: pip install wandb")

Path("runs").mkdir(exist_ok=True)
train_data, val_data = kit.split(kit.make_data())

# The config is what the run was made with. Runs can be sorted and filtered by it.
config = {"lr": 0.01, "optimizer": "sgd", "epochs": 20}
with wandb.init(project="line", config=config) as run:
    torch.manual_seed(42)
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=run.config["lr"])
    state = kit.make_state(model, optimizer)

    # A row of the history is a dict of numbers: what run.log takes.
    state = kit.fit(
        state,
        kit.make_loader(train_data),
        kit.make_loader(val_data),
        loss_fn=nn.L1Loss(),
        epochs=run.config["epochs"],
        on_epoch=lambda state: run.log(state.history[-1]),
    )

    # The model file goes with the run, under a name and with a version.
    file = kit.save_checkpoint(state, "models/line.pt")
    run.log_model(file, name="line")
    files = Path(run.dir).parent

wandb.teardown()  # wait until everything is on disk

# What has been written: one log file, which `wandb sync` would upload. It is binary,
# but the numbers stand in it as text.
(log,) = files.glob("*.wandb")
content = log.read_bytes()
found = 0
for row in state.history:
    if repr(row["val_loss"]).encode() in content:
        found += 1

print("mode:      ", run.settings.mode)
print("config:    ", ", ".join(f"{key} {value}" for key, value in config.items()))
print("epochs:    ", f"{found} of {len(state.history)} in the log")
print("model file:", "in the log" if file.name.encode() in content else "missing")
