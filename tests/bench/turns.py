"""Timing several ways to do the same thing on a machine that others use too."""

import time
from statistics import median


def take_turns(ways, rounds):
    """By name: the median CPU seconds, and the ratio to the first way, with its spread.

    In a round each way takes one turn. A ratio is of two turns of one round, so that
    what slows the machine down for a while slows both; the median over the rounds
    counts. CPU seconds leave out the time that other processes take. The first round
    warms up.
    """
    times = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, way in ways.items():
            start = time.process_time()
            way()
            times[name].append(time.process_time() - start)

    first, found = next(iter(times.values()))[1:], {}
    for name, (_, *seconds) in times.items():
        found[name] = (median(seconds), *ratio(seconds, first))
    return found


def ratio(times, others):
    """The median ratio of the times of the same rounds, and its spread as text."""
    ratios = sorted(mine / other for mine, other in zip(times, others))
    return median(ratios), f"{ratios[0]:.2f} to {ratios[-1]:.2f}"
