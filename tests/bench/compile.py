"""What torch.compile gains on this machine, and what it costs before the first step.

    python tests/bench/compile.py

Steps of step.py's jobs, and of its CNN with batch norm, eager and compiled in turns;
medians of blocks of steps, the ratio within a round. First steps: one of a whole and one
of a short batch in a new process, where nothing is compiled yet (cold) or all is (warm).
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time

import torch
from step import JOBS, cnn
from torch import nn

import kit


def normed():
    layers = list(cnn())
    for at, channels in ((4, 32), (1, 16)):  # behind the convolutions
        layers.insert(at, nn.BatchNorm2d(channels))
    return nn.Sequential(*layers)


JOBS["normed"] = (normed, *JOBS["images"][1:])
STEPS = {"line": 200, "table": 100, "images": 10, "normed": 10}  # in a block


def stepper(name, *, compiled):
    """The seconds of so many steps on the first n rows, as a function."""
    make, _, loss_fn, (X, y), _, batch_size, _ = JOBS[name]
    model = make()
    adam = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    if compiled:
        model = torch.compile(model, dynamic=False)  # as kit fit --compile does
    state = kit.make_state(model, adam)

    def seconds(steps, n=batch_size):
        now, start = state, time.perf_counter()
        for _ in range(steps):
            now, _ = kit.train_step(now, (X[:n], y[:n]), loss_fn=loss_fn)
        return time.perf_counter() - start

    return seconds


def first(name, cache):
    env = os.environ | {"TORCHINDUCTOR_CACHE_DIR": cache}
    command = [sys.executable, __file__, name]
    return float(
        subprocess.run(command, env=env, check=True, capture_output=True).stdout
    )


def measure(name, rounds=11):
    with tempfile.TemporaryDirectory() as cache:
        cold, warm = first(name, cache), first(name, cache)
    ways = [stepper(name, compiled=compiled) for compiled in (False, True)]
    pairs = [[seconds(STEPS[name]) for seconds in ways] for _ in range(rounds + 1)][1:]
    ratios = sorted(eager / compiled for eager, compiled in pairs)
    ms = [1e3 * statistics.median(times) / STEPS[name] for times in zip(*pairs)]
    print(
        f"{name:6} {ms[0]:.3f} ms a step eager, {ms[1]:.3f} compiled: "
        f"{statistics.median(ratios):.2f} times as fast ({ratios[0]:.2f} to "
        f"{ratios[-1]:.2f}); first steps {cold:.1f} s cold, {warm:.1f} s warm"
    )


if __name__ == "__main__":
    for name in sys.argv[1:]:
        seconds = stepper(name, compiled=True)
        print(seconds(1) + seconds(1, 5))
    if not sys.argv[1:]:
        for name in JOBS:
            measure(name)
