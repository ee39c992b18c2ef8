"""What a step of kit.fit costs beside the same step in a bare loop, and what a row costs.

    python tests/bench/step.py [ROUNDS]

The bare loop has no totals, no seeds, no checks. Neither loop validates; the optimizer is
fused. The second part: what a row costs must not depend on how many there are.
"""

import math
from functools import partial

import torch
from libraries import bare, make_job, with_kit
from turns import argument, report, take_turns


def compare(label, job, count, rounds):
    options = {"epochs": job.epochs, "mark": lambda val_loss: None, "fused": True}
    ways = {"bare": partial(bare, job, **options)}
    ways["kit"] = partial(with_kit, job, **options)
    report(label, take_turns(ways, rounds), "us", 1e6 / (count * job.epochs))


if __name__ == "__main__":
    rounds = argument(15)
    torch.set_num_threads(1)
    for name, epochs in {"line": 40, "table": 1, "images": 1}.items():
        job = make_job(name)._replace(epochs=epochs, val=None)
        steps = math.ceil(len(job.train[0]) / job.batch_size)
        compare(f"{name}, a step", job, steps, rounds)

    job = make_job("table")
    for n in (10_000, 100_000, 1_000_000, 3_000_000):
        X = torch.randn(n, 32)
        epochs = max(1, 100_000 // n)
        job = job._replace(train=(X, X[:, :1]), val=None, epochs=epochs)
        compare(f"1 of {n:,}", job, n, min(rounds, 3))
