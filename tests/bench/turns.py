"""What the benchmarks share: taking turns on a machine that others use too, and figures."""

import sys
import time
from statistics import median


def argument(default):
    """The whole number on the command line, or the default."""
    return int(sys.argv[1]) if sys.argv[1:] else default


def take_turns(ways, rounds):
    """By name: the CPU seconds of every round.

    In a round each way takes one turn. A ratio is of two turns of one round, so that
    what slows the machine down for a while slows both; the median over the rounds
    counts, without the first. CPU seconds leave out what other processes take.
    """
    times = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, way in ways.items():
            start = time.process_time()
            way()
            times[name].append(time.process_time() - start)
    return {name: seconds[1:] for name, seconds in times.items()}


def report(label, times, unit, scale):
    """Print a line for each way: its median, and its ratio to the first way."""
    first = next(iter(times.values()))
    for name, seconds in times.items():
        middle, spread = ratio(seconds, first)
        figure = (
            f"{scale * median(seconds):10.3f} {unit}, ratio {middle:.2f} ({spread})"
        )
        print(f"{label:16} {name:12} {figure}", flush=True)


def ratio(times, others):
    """The median ratio of the times of the same rounds, and its spread as text."""
    ratios = sorted(mine / other for mine, other in zip(times, others))
    return median(ratios), f"{ratios[0]:.2f} to {ratios[-1]:.2f}"
