"""kit.fit in two processes, beside a bare loop over DistributedDataParallel.

    python tests/bench/distributed.py [ROUNDS]

Two gloo processes, of one thread each, share every batch of 256 rows. The bare loop gives
each process its half and does no more: no totals, no seeds, no checks, no signals. The
loops take turns in the same processes, each with an epoch that warms up and one that is
timed; a ratio is of one round, and the median over the rounds is printed.
"""

import os
import subprocess
import sys
import time
from itertools import pairwise

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import mse_loss
from torch.nn.parallel import DistributedDataParallel
from turns import argument, report

import kit

BATCH_SIZE = 256
JOBS = {  # the widths of an mlp, inputs and output included; the steps of an epoch
    "64-64-64": ((32, 64, 64, 64, 1), 300),
    "1024-1024-1024": ((1024, 1024, 1024, 1024, 1), 30),
}


def make_mlp(widths):
    torch.manual_seed(0)
    layers = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def bare(model, optimizer, X, y, mark):
    ddp, rank = DistributedDataParallel(model), dist.get_rank()
    for epoch in range(2):
        generator = torch.Generator().manual_seed(epoch)  # one order for both
        for rows in torch.randperm(len(X), generator=generator).split(BATCH_SIZE):
            mine = rows.chunk(2)[rank]
            loss = mse_loss(ddp(X.index_select(0, mine)), y.index_select(0, mine))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        mark()


def with_kit(model, optimizer, X, y, mark):
    state = kit.make_state(model, optimizer)
    loader = kit.make_loader((X, y), batch_size=BATCH_SIZE, shuffle=True)
    # on_epoch is called in the process of rank 0
    on_epoch = lambda state: mark()
    kit.fit(state, loader, loss_fn=mse_loss, epochs=2, on_epoch=on_epoch)


def seconds_a_step(loop, widths, steps):
    model, times = make_mlp(widths), []
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    X = torch.randn(BATCH_SIZE * steps, widths[0])
    dist.barrier()
    loop(model, optimizer, X, X[:, :1], lambda: times.append(time.perf_counter()))
    return (times[-1] - times[0]) / steps if times else None


def measure(rounds):
    """What each of the two processes runs."""
    dist.init_process_group("gloo")
    for name, job in JOBS.items():
        times = {"bare": [], "kit": []}
        for _ in range(rounds):
            times["bare"].append(seconds_a_step(bare, *job))
            times["kit"].append(seconds_a_step(with_kit, *job))
        if dist.get_rank() == 0:
            report(name, times, "ms a step", 1000)
    dist.destroy_process_group()


if __name__ == "__main__":
    if "RANK" in os.environ:
        measure(argument(9))
    else:  # start this script again, by torchrun
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command = [*torchrun, "--nproc-per-node=2", *sys.argv]
        env = os.environ | {"OMP_NUM_THREADS": "1"}
        sys.exit(subprocess.run(command, env=env, check=False).returncode)
