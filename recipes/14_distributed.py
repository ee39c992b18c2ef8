"""14 Distributed: the same script in two processes, with the same result.

    python recipes/14_distributed.py

It trains alone, then starts itself under torchrun, as you would with

    torchrun --nproc-per-node 2 recipes/14_distributed.py

Each takes its share of every batch of 32, so steps, losses and weights are those of one
process. Watch: each runs the whole script; seed what you draw, print in one only.

prints:

    in 1: 140 steps, val_loss 0.1457, accuracy 0.9500
    in 2: 140 steps, val_loss 0.1457, accuracy 0.9500
"""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # a clone without an install

import torch
from torch import nn

import kit

PROCESSES = int(os.environ.get("WORLD_SIZE", "1"))


def make_state():
    torch.manual_seed(42)
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
    adam = torch.optim.Adam(model.parameters(), lr=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(adam, max_lr=0.05, total_steps=140)
    return kit.make_state(model, adam, scheduler=schedule)


X = torch.randn(270, 4, generator=torch.Generator().manual_seed(42))
y = (X.square().sum(1) > 3).long()
train, val = kit.split((X, y), ratios=(7 / 9, 2 / 9))  # 210 rows, 60 rows
train = kit.make_loader(train, batch_size=32, shuffle=True)  # the last batch has 18
val = kit.make_loader(val, batch_size=32)
step = partial(kit.train_step, accumulate=4, clip=1.0)
options = {"loss_fn": nn.CrossEntropyLoss(), "metrics": kit.metrics, "step": step}
state = kit.fit(make_state(), train, val, epochs=20, **options)
if os.environ.get("RANK", "0") == "0":  # not in the other processes
    kit.save_checkpoint(state, f"models/{PROCESSES}.pt")
    row = state.history[-1]
    scores = f"val_loss {row['val_loss']:.4f}, accuracy {row['val_accuracy']:.4f}"
    print(f"in {PROCESSES}: {state.step} steps, {scores}", flush=True)
if PROCESSES == 1:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    subprocess.run([*torchrun, "--nproc-per-node", "2", __file__], check=True)
    two = kit.load_checkpoint(make_state(), "models/2.pt").model
    for one, other in zip(state.model.parameters(), two.parameters()):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
