"""kit.fit in two processes, beside a bare loop over DistributedDataParallel.

    python tests/bench/distributed.py [ROUNDS]

Two gloo processes, of one thread each, share every batch of 256 rows. The bare loop gives
each process its half and does no more. The loops take turns in the same processes, each
with an epoch that warms up and one that is timed; a ratio is of one round.
"""

import os
import subprocess
import sys
import time
from itertools import pairwise

import torch
import torch.distributed as dist
from libraries import Job, make_optimizer, with_kit
from torch import nn
from torch.nn.functional import mse_loss
from torch.nn.parallel import DistributedDataParallel
from turns import argument, report

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


def bare_ddp(job, epochs, mark, **options):
    ddp, rank, (X, y) = DistributedDataParallel(job.model), dist.get_rank(), job.train
    optimizer = make_optimizer(job, **options)
    for epoch in range(epochs):
        generator = torch.Generator().manual_seed(epoch)  # one order for both
        for rows in torch.randperm(len(X), generator=generator).split(BATCH_SIZE):
            mine = rows.chunk(2)[rank]
            loss = mse_loss(ddp(X.index_select(0, mine)), y.index_select(0, mine))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        mark(None)


def seconds_a_step(loop, widths, steps):
    X, times = torch.randn(BATCH_SIZE * steps, widths[0]), []
    parts = make_mlp(widths), torch.optim.Adam, 0.001, nn.MSELoss, (X, X[:, :1])
    job = Job(*parts, val=None, batch_size=BATCH_SIZE, epochs=2)
    dist.barrier()
    mark = lambda val_loss: times.append(time.perf_counter())
    loop(job, job.epochs, mark, fused=True)
    # kit calls mark in the process of rank 0 only
    return (times[-1] - times[0]) / steps if times else None


def measure(rounds):
    """What each of the two processes runs."""
    dist.init_process_group("gloo")
    for name, job in JOBS.items():
        times = {"bare": [], "kit": []}
        for _ in range(rounds):
            times["bare"].append(seconds_a_step(bare_ddp, *job))
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
