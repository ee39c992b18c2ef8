"""09 Weights & Biases: config, metrics, the model file (tutorial 9.3).

    python recipes/09_wandb.py

Needs neither account nor network: the run is written to runs/wandb, and `wandb sync`
uploads it. With an account, WANDB_MODE=online shows it live. Watch: unless it is told
so, wandb asks for an account and waits, and leaves files in the home folder.

prints:

    offline: 20 epochs, {'lr': 0.01, 'optimizer': 'sgd'}, line.pt
"""

import os
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # a clone without an install
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("WANDB_SILENT", "true")
for name in ("DIR", "CACHE_DIR", "CONFIG_DIR", "DATA_DIR"):
    os.environ.setdefault(f"WANDB_{name}", str(Path("runs").resolve()))

import torch
from torch import nn

import kit

try:
    import wandb
except ImportError:
    sys.exit("this recipe needs wandb: pip install wandb")

Path("runs").mkdir(exist_ok=True)
train, val = (kit.make_loader(part) for part in kit.split(kit.make_data()))
with wandb.init(project="line", config={"lr": 0.01, "optimizer": "sgd"}) as run:
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=run.config["lr"])
    state = kit.make_state(model, optimizer)
    options = {"loss_fn": nn.L1Loss(), "epochs": 20}
    options["on_epoch"] = lambda state: run.log(state.history[-1])
    state = kit.fit(state, train, val, **options)
    file = kit.save_checkpoint(state, "models/line.pt")
    run.log_model(file, name="line")
wandb.teardown()  # waits until all is written; else the end of the process does

(log,) = Path(run.dir).parent.glob("*.wandb")  # what `wandb sync` uploads
log = log.read_bytes()
found = [row for row in state.history if repr(row["val_loss"]).encode() in log]
print(f"{run.settings.mode}: {len(found)} epochs, {dict(run.config)}, {file.name}")

assert len(found) == 20 and b'"sgd"' in log and b"line.pt" in log
if run.settings.mode == "offline":  # then the checkpoint waits in a copy
    staged = Path(os.environ["WANDB_DATA_DIR"], "artifacts", "staging").iterdir()
    assert file.read_bytes() in [path.read_bytes() for path in staged]
