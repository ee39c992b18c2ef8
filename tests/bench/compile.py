"""What torch.compile gains on this machine, and what it costs before the first step.

    OMP_NUM_THREADS=1 python tests/bench/compile.py [--rounds 11] [--jobs line,table]

Blocks of train_step, eager and compiled in turns: the jobs of libraries.py, and its CNN
with batch norm. A ratio is of one round, the median over the rounds is printed. First
steps: one of a full and one of a short batch in a new process, where nothing is compiled
yet (cold), or all of it is in torch's cache (warm).
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from statistics import median

import torch
from libraries import make_job, make_optimizer
from torch import nn

import kit

STEPS = {"line": 200, "table": 100, "images": 10, "batch-norm": 10}  # in a block


def make_stepper(name, *, compiled):
    """A function that takes so many steps, and returns their seconds."""
    job = make_job("images" if name == "batch-norm" else name)
    if name == "batch-norm":
        job.model.insert(4, nn.BatchNorm2d(32))  # behind the second convolution
        job.model.insert(1, nn.BatchNorm2d(16))  # and the first
    # as kit fit --compile does
    model = torch.compile(job.model, dynamic=False) if compiled else job.model
    start_state = kit.make_state(model, make_optimizer(job, fused=True))
    loss_fn, (X, y) = job.loss(), job.train

    def take(steps, rows=job.batch_size):
        state, start = start_state, time.perf_counter()
        for _ in range(steps):
            state, _ = kit.train_step(state, (X[:rows], y[:rows]), loss_fn=loss_fn)
        return time.perf_counter() - start

    return take


def first_steps(name, cache):
    """The seconds of the first steps in a new process, with this cache of kernels."""
    command = [sys.executable, __file__, "--first", name]
    env = os.environ | {"TORCHINDUCTOR_CACHE_DIR": cache}
    printed = subprocess.run(command, env=env, check=True, capture_output=True).stdout
    return float(printed)


def compare(name, rounds):
    with tempfile.TemporaryDirectory() as cache:
        cold, warm = first_steps(name, cache), first_steps(name, cache)
    steps = STEPS[name]
    eager = make_stepper(name, compiled=False)
    compiled = make_stepper(name, compiled=True)
    pairs = [(eager(steps), compiled(steps)) for _ in range(rounds + 1)]
    pairs = pairs[1:]  # the first warmed up
    ratios = sorted(slow / fast for slow, fast in pairs)
    eager_ms, compiled_ms = (1000 * median(times) / steps for times in zip(*pairs))
    print(
        f"{name:10} {eager_ms:.3f} ms a step eager, {compiled_ms:.3f} compiled: "
        f"{median(ratios):.2f} times as fast ({ratios[0]:.2f} to {ratios[-1]:.2f}); "
        f"first steps {cold:.1f} s cold, {warm:.1f} s warm",
        flush=True,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--jobs", default=",".join(STEPS), help="default: %(default)s")
    parser.add_argument("--first", help=argparse.SUPPRESS)  # for the new processes
    given = parser.parse_args()
    if given.first:
        take = make_stepper(given.first, compiled=True)
        print(take(1) + take(1, rows=5))
    else:
        for name in given.jobs.split(","):
            compare(name, given.rounds)
