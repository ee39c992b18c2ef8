"""What a step of kit.fit costs beside the same step in a bare loop, and what a row costs.

    python tests/bench/step.py [ROUNDS]

The bare loop has its tensors in memory and keeps no books: no totals, no seeds, no
checks. Neither loop validates; the optimizer is fused. The second part is of one mlp and
one batch size: what a row costs must not depend on how many there are.
"""

import math
import sys
from functools import partial

import torch
from libraries import make_job, make_optimizer
from turns import take_turns

import kit


def bare(job):
    model, loss_fn, (X, y) = job.model, job.loss(), job.train
    optimizer = make_optimizer(job, fused=True)
    for _ in range(job.epochs):
        for rows in torch.randperm(len(X)).split(job.batch_size):
            loss = loss_fn(model(X.index_select(0, rows)), y.index_select(0, rows))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def with_kit(job):
    state = kit.make_state(job.model, make_optimizer(job, fused=True))
    loader = kit.make_loader(job.train, batch_size=job.batch_size, shuffle=True)
    kit.fit(state, loader, loss_fn=job.loss(), epochs=job.epochs)


def compare(label, job, count, rounds):
    ways = {"bare": partial(bare, job), "kit": partial(with_kit, job)}
    (theirs, *_), (ours, ratio, spread) = take_turns(ways, rounds).values()
    us = 1e6 / (count * job.epochs)
    print(
        f"{label:15} bare {us * theirs:8.3f} us, kit {us * ours:8.3f}, "
        f"ratio {ratio:.3f} ({spread})",
        flush=True,
    )


if __name__ == "__main__":
    rounds = int(sys.argv[1]) if sys.argv[1:] else 15
    torch.set_num_threads(1)
    for name, epochs in {"line": 40, "table": 1, "images": 1}.items():
        job = make_job(name)._replace(epochs=epochs)
        steps = math.ceil(len(job.train[0]) / job.batch_size)
        compare(f"{name}, a step", job, steps, rounds)

    job = make_job("table")
    for n in (10_000, 100_000, 1_000_000, 3_000_000):
        X = torch.randn(n, 32)
        job = job._replace(train=(X, X[:, :1]), epochs=max(1, 100_000 // n))
        compare(f"1 of {n:,}", job, n, min(rounds, 3))
