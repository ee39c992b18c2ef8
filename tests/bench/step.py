"""What a step of kit.fit costs beside the same step in a bare loop, and what a row costs.

    OMP_NUM_THREADS=1 python tests/bench/step.py [--rounds 9]

The bare loop has its tensors in memory and keeps no books: no totals, no seeds, no
checks. Neither loop validates. They take turns in one process, with the same weights and
a fused optimizer; a ratio is of one round, the median over the rounds is printed.

The second table is of one mlp and batch size, and more and more rows: all that a row
costs should be the reading of it and its share of a step, however many there are.
"""

import argparse
import time
from statistics import median

import torch
from libraries import JOBS, make_job, make_optimizer

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


def seconds(loop, job):
    weights = {name: value.clone() for name, value in job.model.state_dict().items()}
    start = time.perf_counter()
    loop(job)
    found = time.perf_counter() - start
    job.model.load_state_dict(weights)
    return found


def compare(job, rounds):
    """Seconds of both loops, and the ratios by round, sorted."""
    for loop in (bare, with_kit):  # warm up
        seconds(loop, job)
    pairs = [(seconds(bare, job), seconds(with_kit, job)) for _ in range(rounds)]
    bares, kits = zip(*pairs)
    return median(bares), median(kits), sorted(k / b for b, k in pairs)


def print_steps(rounds):
    print(f"{'':8}{'bare, us a step':>16}{'kit':>8}{'ratio':>8}   spread")
    for name in JOBS:
        job = make_job(name)
        theirs, ours, ratios = compare(job, rounds)
        steps = job.epochs * -(-len(job.train[0]) // job.batch_size)
        print(
            f"{name:8}{1e6 * theirs / steps:16.0f}{1e6 * ours / steps:8.0f}"
            f"{median(ratios):8.2f}   {ratios[0]:.2f} to {ratios[-1]:.2f}",
            flush=True,
        )


def print_rows(rounds):
    print(f"\n{'rows':>10}{'bare, us a row':>16}{'kit':>8}{'ratio':>8}")
    for rows in (10_000, 100_000, 1_000_000, 3_000_000):
        X = torch.randn(rows, 32)
        epochs = max(1, 100_000 // rows)
        job = make_job("table")._replace(train=(X, X[:, :1]), epochs=epochs)
        theirs, ours, ratios = compare(job, rounds)
        each = 1e6 / (rows * epochs)
        print(
            f"{rows:10,}{each * theirs:16.3f}{each * ours:8.3f}{median(ratios):8.2f}",
            flush=True,
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    given = parser.parse_args()
    torch.manual_seed(0)
    print_steps(given.rounds)
    print_rows(min(given.rounds, 3))
