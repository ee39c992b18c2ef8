"""What torch.compile gains on this machine, and what it costs before the first step.

    python tests/bench/compile.py [ROUNDS]

Epochs of kit.fit without a validation, eager and compiled in turns, from an empty cache.
"""

import math
import os
import time
from functools import partial
from tempfile import TemporaryDirectory

import torch
from libraries import make_job, with_kit
from turns import argument, report, take_turns


def compare(name, rounds):
    job = make_job(name)
    epochs = 40 if name == "line" else 1  # in one turn
    steps = epochs * math.ceil(len(job.train[0]) / job.batch_size)
    job = job._replace(val=None)
    # as kit fit --compile does
    compiled = job._replace(model=torch.compile(job.model, dynamic=False))
    fit = partial(with_kit, epochs=epochs, mark=lambda val_loss: None, fused=True)

    first = tuple(t[: job.batch_size + 5] for t in job.train)
    start = time.perf_counter()
    fit(compiled._replace(train=first), epochs=1)
    print(f"{name}: first steps {time.perf_counter() - start:.1f} s")
    ways = {"compiled": partial(fit, compiled), "eager": partial(fit, job)}
    report(name, take_turns(ways, rounds), "ms a step", 1000 / steps)


if __name__ == "__main__":
    torch.set_num_threads(1)
    with TemporaryDirectory() as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        for name in ("line", "table", "images"):
            compare(name, argument(11))
