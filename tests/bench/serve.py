"""10,000 requests to recipes/10_serve.py over 32 connections, a third of them bad.

    python tests/bench/serve.py [REQUESTS]

The model of a small table is served by a process of its own. Every answer is compared
with kit predict's, a bad body must get a 422; the clients share the cores.
"""

import contextlib
import csv
import http.client
import json
import random
import re
import runpy
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory

from turns import argument

import kit

FILE = Path(__file__).parents[2] / "recipes" / "10_serve.py"
RECIPE = runpy.run_path(FILE)
CONNECTIONS = 32
BAD_BODIES = ["{", '{"rows": [{"area": NaN, "heating": "gas"}]}', "[" * 9999]


def make_run():
    """A fitted model in the folder run; a table's rows, and what is predicted of each."""
    RECIPE["write_flats"]("flats.csv")
    for command in (
        "fit --data flats.csv --target rent --epochs 5 --quiet --out run",
        "predict run --data flats.csv --with-inputs --output predicted.csv",
    ):
        kit.main(command.split(), standalone_mode=False)
    with open("predicted.csv") as file:
        table = list(csv.DictReader(file))
    rows = [{"area": float(r["area"]), "heating": r["heating"]} for r in table]
    return rows, [float(row["prediction"]) for row in table]


def ask(port, rows, expected, count, seed):
    """(status, milliseconds, right) of so many requests over one connection."""
    draw, found = random.Random(seed), []
    connection = http.client.HTTPConnection("127.0.0.1", port)
    headers = {"content-type": "application/json"}
    for _ in range(count):
        i, bad = draw.randrange(len(rows)), draw.random() < 1 / 3
        body = draw.choice(BAD_BODIES) if bad else json.dumps({"rows": [rows[i]]})
        start = time.perf_counter()
        connection.request("POST", "/predict", body, headers)
        response = connection.getresponse()
        answer = json.loads(response.read())
        ms = 1000 * (time.perf_counter() - start)

        right = response.status == 422
        if not bad:
            (row,) = answer["predictions"]
            right = abs(row["prediction"] / expected[i] - 1) < 1e-4
        found.append((response.status, ms, right))
    connection.close()
    return found


def load(port, rows, expected, requests):
    start = time.perf_counter()
    one = partial(ask, port, rows, expected, requests // CONNECTIONS)
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        found = list(chain(*pool.map(one, range(CONNECTIONS))))
    each = len(found) / (time.perf_counter() - start)

    statuses, times, rights = zip(*found)
    ms = sorted(times)
    print(f"{len(ms)} requests: {dict(Counter(statuses))}, {each:.0f} a second")
    print(f"wrong answers: {rights.count(False)}")
    middle, late = ms[len(ms) // 2], ms[int(0.99 * len(ms))]
    print(f"half within {middle:.1f} ms, 99 % within {late:.1f}, longest {ms[-1]:.1f}")


if __name__ == "__main__":
    with TemporaryDirectory() as folder, contextlib.chdir(folder):
        rows, expected = make_run()
        command = [sys.executable, FILE, "run/best.pt", "--port", "0"]
        pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        with subprocess.Popen(command, **pipes) as server:
            line = next(line for line in server.stderr if "running on" in line)
            port = int(re.search(r":(\d+) ", line)[1])
            try:
                load(port, rows, expected, argument(10_000))
            finally:
                server.terminate()
