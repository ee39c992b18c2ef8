"""How the cost of a step grows with processes on one machine; the batch is the same.

    OMP_NUM_THREADS=1 python tests/bench/distributed.py

By fit, and bare: DistributedDataParallel on a share of each batch, no sum of losses, no
word about signals. Of six turns the quickest, by the median of the ms from step to step.
"""

import os
import statistics
import subprocess
import sys
import time
from itertools import pairwise

import torch
from torch import nn

import kit

JOBS = {"table": ((32, 64, 64, 1), 100_000), "large": ((*[1024] * 4, 1), 256 * 30)}


def by_fit(state, loader, times):
    def step(state, batch, *, loss_fn):
        times.append(time.perf_counter())
        return kit.train_step(state, batch, loss_fn=loss_fn)

    kit.fit(state, loader, loss_fn=nn.functional.mse_loss, epochs=1, step=step)


def bare(state, loader, times):
    with kit._together(state) as now:
        for X, y in kit._batches(loader, kit._peers(now.model)):
            times.append(time.perf_counter())
            loss = nn.functional.mse_loss(now.model(X), y)
            now.optimizer.zero_grad()
            loss.backward()
            now.optimizer.step()


def measure(widths, rows):
    data = torch.randn(rows, widths[0]), torch.randn(rows, 1)
    layers = [m for pair in pairwise(widths) for m in (nn.Linear(*pair), nn.ReLU())]
    model = nn.Sequential(*layers[:-1])
    state = kit.make_state(model, torch.optim.Adam(model.parameters()))
    for way in (bare, by_fit) * 2:
        way(state, kit.make_loader(data, batch_size=256), times := [])
        steps = [end - start for start, end in pairwise(times)][5:]
        if os.environ.get("RANK", "0") == "0":
            print(1000 * statistics.median(steps), flush=True)


def main():
    print("job, processes: bare, fit, in ms a step")
    for name in JOBS:
        found = {1: [], 2: [], 3: []}
        for n in 3 * list(found):
            run = f"-m torch.distributed.run --standalone --nproc-per-node {n}".split()
            command = [sys.executable, *run[: 5 * (n > 1)], __file__, name]
            found[n] += map(float, subprocess.check_output(command).split())
        for n, ms in found.items():
            print(f"{name}, {n}: {min(ms[::2]):.2f}, {min(ms[1::2]):.2f}", flush=True)


if __name__ == "__main__":
    measure(*JOBS[sys.argv[1]]) if len(sys.argv) > 1 else main()
