"""What torch.compile gains on this machine, and what it costs before the first step.

    python tests/bench/compile.py [ROUNDS]

Blocks of train_step, eager and compiled in turns. The first steps, of a full and of a
short batch, compile; their seconds are those of a cache without any kernels.
"""

import os
import time
from functools import partial
from tempfile import TemporaryDirectory

import torch
from libraries import make_job, make_optimizer
from turns import argument, report, take_turns

import kit

STEPS = {"line": 200, "table": 100, "images": 10}  # in one turn


def make_stepper(name, *, compiled):
    """A function that takes so many steps, each on the first rows."""
    job = make_job(name)
    # as kit fit --compile does
    model = torch.compile(job.model, dynamic=False) if compiled else job.model
    start = kit.make_state(model, make_optimizer(job, fused=True))
    loss_fn, (X, y) = job.loss(), job.train

    def take(steps, rows=job.batch_size):
        state = start
        for _ in range(steps):
            state, _ = kit.train_step(state, (X[:rows], y[:rows]), loss_fn=loss_fn)

    return take


if __name__ == "__main__":
    torch.set_num_threads(1)
    with TemporaryDirectory() as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        for name, steps in STEPS.items():
            compiled = make_stepper(name, compiled=True)
            start = time.perf_counter()
            compiled(1)
            compiled(1, rows=5)
            print(f"{name}: first steps {time.perf_counter() - start:.1f} s")

            eager = make_stepper(name, compiled=False)
            ways = {
                "compiled": partial(compiled, steps),
                "eager": partial(eager, steps),
            }
            report(name, take_turns(ways, argument(11)), "ms a step", 1000 / steps)
