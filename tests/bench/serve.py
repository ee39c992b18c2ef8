"""10,000 requests over 32 connections to recipes/10_serve.py, a third of them bad.

    python tests/bench/serve.py

Every answer is compared with the model's own; the times are a client's, with its own cost
on the same machine. For a fuzzer's view of the same: `schemathesis run URL/openapi.json`.
"""

import http.client
import json
import os
import random
import re
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

import kit

RECIPE = Path(__file__).parents[2] / "recipes" / "10_serve.py"
BAD = (
    "[NaN, 1]",
    '["a", 1]',
    "[]",
    "{",
    '{"a": 1}',
    "[1, 1e39]",
    "[1, 2, 3]",
    "[" * 9999,
)


def train(folder):
    """A run on a table of two columns, as `kit fit` leaves it, and the table."""
    rows = torch.randn(500, 2, generator=torch.Generator().manual_seed(0)).tolist()
    lines = ["a,b,y", *(f"{a},{b},{2 * a - b}" for a, b in rows)]
    Path(folder, "a.csv").write_text("\n".join(lines))
    fit = f"fit --quiet --no-plot --epochs 5 --data {folder}/a.csv --target y"
    kit.main([*fit.split(), "--out", f"{folder}/run"], standalone_mode=False)
    return f"{folder}/run/best.pt", rows


def client(port, seed, rows, expected, requests):
    """(status, seconds, right) of so many requests over one connection."""
    rng, found = random.Random(seed), []
    connection = http.client.HTTPConnection("127.0.0.1", port)
    for _ in range(requests):
        bad, i = rng.random() < 1 / 3, rng.randrange(len(rows))
        body = rng.choice(BAD) if bad else json.dumps(rows[i])
        start = time.perf_counter()
        kind = {"content-type": "application/json"}
        connection.request("POST", "/predict", body, kind)
        response = connection.getresponse()
        answer = json.loads(response.read())
        seconds = time.perf_counter() - start
        right = response.status == 422 and "detail" in answer
        if not bad:
            near = abs(answer.get("prediction", np.nan) - expected[i]) < 1e-5
            right = response.status == 200 and near
        found.append((response.status, seconds, right))
    connection.close()
    return found


def load(path, rows, connections=32, requests=10_000):
    """Ask a process that serves the file, and print how it did."""
    model = kit._open(path)[0]
    expected = kit.predict(model, torch.tensor(rows))[:, 0].tolist()
    shares = [len(range(i, requests, connections)) for i in range(connections)]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    env = os.environ | {"PORT": "0"}
    with subprocess.Popen([sys.executable, RECIPE, path], env=env, **pipes) as server:
        line = next(line for line in server.stderr if "running on" in line)
        port = int(re.search(r":(\d+) ", line)[1])
        start = time.perf_counter()
        with ThreadPoolExecutor(connections) as pool:
            jobs = [
                pool.submit(client, port, seed, rows, expected, count)
                for seed, count in enumerate(shares)
            ]
            found = [one for job in jobs for one in job.result()]
        seconds = time.perf_counter() - start
        server.terminate()
    statuses, times, rights = zip(*found)
    p50, p99, worst = 1000 * np.quantile(times, [0.5, 0.99, 1.0])
    print(f"{len(found)} requests, {connections} connections, {Counter(statuses)}")
    print(f"{len(found) / seconds:.0f} a second, p50 {p50:.1f} ms, p99 {p99:.1f} ms,")
    print(f"longest {worst:.0f} ms, wrong answers: {len(rights) - sum(rights)}")


if __name__ == "__main__":
    with TemporaryDirectory() as folder:
        load(*train(folder))
