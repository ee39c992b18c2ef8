"""Requests to recipes/10_serve.py over many connections, a third of them bad.

    python tests/bench/serve.py [--requests 10000] [--connections 32]

A model of a small table is served by a process of its own. Every answer is compared with
what kit predict wrote, and a bad body must get the status 422. The times are those of the
clients, which take their share of the same cores.
"""

import argparse
import csv
import http.client
import json
import random
import re
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import kit

RECIPE = Path(__file__).parents[2] / "recipes" / "10_serve.py"
BAD_BODIES = [
    "{",
    "[]",
    '{"rows": []}',
    '{"rows": [{"area": NaN, "heating": "gas"}]}',
    '{"rows": [{"area": 1e39, "heating": "gas"}]}',
    '{"rows": [{"area": "large", "heating": "gas"}]}',
    '{"rows": [{"area": 50}]}',
    '{"rows": [{"area": 50, "heating": "gas", "floor": 3}]}',
    "[" * 9999,
]


def run_command(*arguments):
    kit.main([str(argument) for argument in arguments], standalone_mode=False)


def make_run(folder):
    """The rows of a table, and a fitted model's prediction for each."""
    table, predicted = folder / "flats.csv", folder / "predicted.csv"
    draw, rows = random.Random(0), []
    for _ in range(400):
        rows.append({"area": draw.randint(20, 120), "heating": draw.choice("abc")})
    lines = [f"{row['area']},{row['heating']},{10.5 * row['area']}" for row in rows]
    table.write_text("\n".join(["area,heating,rent", *lines]))

    options = ["--target", "rent", "--epochs", 5, "--quiet"]
    run_command("fit", "--data", table, *options, "--out", folder / "run")
    run_command("predict", folder / "run", "--data", table, "--output", predicted)
    with open(predicted) as file:
        return rows, [float(row["prediction"]) for row in csv.DictReader(file)]


def ask(port, seed, count, rows, expected):
    """(status, seconds, right) of so many requests over one connection."""
    draw, found = random.Random(seed), []
    connection = http.client.HTTPConnection("127.0.0.1", port)
    for _ in range(count):
        i, bad = draw.randrange(len(rows)), draw.random() < 1 / 3
        body = draw.choice(BAD_BODIES) if bad else json.dumps({"rows": [rows[i]]})
        start = time.perf_counter()
        connection.request("POST", "/predict", body)
        response = connection.getresponse()
        answer = json.loads(response.read())
        seconds = time.perf_counter() - start

        if bad:
            right = response.status == 422 and "detail" in answer
        else:
            prediction = answer["predictions"][0]["prediction"]
            right = abs(prediction - expected[i]) < 1e-4 * abs(expected[i])
        found.append((response.status, seconds, right))
    connection.close()
    return found


def main(requests, connections):
    with TemporaryDirectory() as folder:
        rows, expected = make_run(Path(folder))
        command = [sys.executable, RECIPE, f"{folder}/run/best.pt", "--port", "0"]
        pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        with subprocess.Popen(command, **pipes) as server:
            try:
                line = next(line for line in server.stderr if "running on" in line)
                port = int(re.search(r":(\d+) ", line)[1])
                start = time.perf_counter()
                with ThreadPoolExecutor(connections) as pool:
                    jobs = []
                    for seed in range(connections):
                        share = requests // connections
                        jobs.append(pool.submit(ask, port, seed, share, rows, expected))
                    found = [answer for job in jobs for answer in job.result()]
                seconds = time.perf_counter() - start
            finally:
                server.terminate()

    statuses, times, rights = zip(*found)
    slowest = sorted(times)
    print(f"{len(found)} requests over {connections} connections: {Counter(statuses)}")
    print(f"wrong answers: {rights.count(False)}; {len(found) / seconds:.0f} a second")
    print(
        f"median {1000 * median(times):.1f} ms, 99 % within "
        f"{1000 * slowest[int(0.99 * len(times))]:.1f} ms, longest "
        f"{1000 * slowest[-1]:.1f} ms"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--connections", type=int, default=32)
    given = parser.parse_args()
    main(given.requests, given.connections)
