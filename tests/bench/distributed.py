"""kit.fit in two processes, beside a bare loop over DistributedDataParallel.

    python tests/bench/distributed.py [--rounds 5]

Two gloo processes, of one thread each, share every batch of 256 rows. The bare loop gives
each process its half and does no more: no totals, no seeds, no checks, no signals. The
loops take turns in the same processes, each with an epoch that warms up and one that is
timed; a ratio is of one round, and the median over the rounds is printed.
"""

import argparse
import os
import subprocess
import sys
import time
from itertools import pairwise
from statistics import median

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import kit

BATCH_SIZE = 256
MLPS = {  # the widths, inputs and output included, and the steps of an epoch
    "64-64-64": ((32, 64, 64, 64, 1), 400),
    "1024-1024-1024": ((1024, 1024, 1024, 1024, 1), 30),
}


def make_parts(widths):
    torch.manual_seed(0)
    layers = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    model = nn.Sequential(*layers[:-1])
    return model, torch.optim.Adam(model.parameters(), fused=True)


def bare(widths, X, y, mark):
    model, optimizer = make_parts(widths)
    ddp, rank = DistributedDataParallel(model), dist.get_rank()
    for epoch in range(2):
        # the same order in both processes
        generator = torch.Generator().manual_seed(epoch)
        for rows in torch.randperm(len(X), generator=generator).split(BATCH_SIZE):
            mine = rows.chunk(2)[rank]
            outputs = ddp(X.index_select(0, mine))
            loss = nn.functional.mse_loss(outputs, y.index_select(0, mine))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        mark()


def with_kit(widths, X, y, mark):
    state = kit.make_state(*make_parts(widths))
    loader = kit.make_loader((X, y), batch_size=BATCH_SIZE, shuffle=True)

    def on_epoch(state):  # is called in the process of rank 0
        mark()

    loss_fn = nn.functional.mse_loss
    kit.fit(state, loader, loss_fn=loss_fn, epochs=2, on_epoch=on_epoch)


def seconds_a_step(loop, widths, steps):
    torch.manual_seed(0)
    X, times = torch.randn(BATCH_SIZE * steps, widths[0]), []
    dist.barrier()
    loop(widths, X, X[:, :1], lambda: times.append(time.perf_counter()))
    return (times[1] - times[0]) / steps if dist.get_rank() == 0 else 1.0


def measure(rounds):
    """What each of the two processes runs."""
    dist.init_process_group("gloo")
    for name, job in MLPS.items():
        pairs = []
        for _ in range(rounds):
            pairs.append((seconds_a_step(bare, *job), seconds_a_step(with_kit, *job)))
        if dist.get_rank() == 0:
            theirs, ours = (1000 * median(times) for times in zip(*pairs))
            ratios = sorted(mine / other for other, mine in pairs)
            print(
                f"{name:16} bare {theirs:.2f} ms a step, kit {ours:.2f}; ratio "
                f"{median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})",
                flush=True,
            )
    dist.destroy_process_group()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    if "RANK" in os.environ:
        measure(rounds)
    else:  # start this script again, by torchrun
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command = [*torchrun, "--nproc-per-node=2", __file__, f"--rounds={rounds}"]
        env = os.environ | {"OMP_NUM_THREADS": "1"}
        sys.exit(subprocess.run(command, env=env, check=False).returncode)
