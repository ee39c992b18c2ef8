"""What an export and int8 bring: size, time, and the largest difference.

    python tests/bench/export.py [--rounds 50]

An mlp of 64-1024-1024-1024-10 on one thread: by torch, by kit's .pt2, by kit's .onnx in
onnxruntime, and by that file in int8. The four take turns; times are medians, and so are
the ratios to torch, which are of one round. recipes/10_onnx.py compares the numbers of
five kinds of models.
"""

import argparse
import os
import time
from itertools import pairwise
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import onnxruntime
import torch
from onnxruntime.quantization import quantize_dynamic
from tabulate import tabulate
from torch import nn

import kit


def make_mlp(*widths):
    layers = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1]).eval()


def open_onnx(path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options)

    def run(X):
        return torch.from_numpy(session.run(None, {"input": X.numpy()})[0])

    return run


def measure(ways, X, rounds):
    """The ms of each way, and how many times as fast as torch it is."""
    times = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, run in ways.items():
            start = time.perf_counter()
            run(X)
            times[name].append(time.perf_counter() - start)
    found = {}
    for name, seconds in times.items():
        pairs = zip(times["torch"][1:], seconds[1:])  # the first round warmed up
        ratio = median(theirs / mine for theirs, mine in pairs)
        found[name] = [1000 * median(seconds[1:]), ratio]
    return found


def compare(rounds):
    torch.manual_seed(0)
    model, X = make_mlp(64, 1024, 1024, 1024, 10), torch.randn(256, 64)
    files = {
        "torch": None,
        ".pt2": kit.export(model, "mlp.pt2", example=X[:4]),
        ".onnx": kit.export(model, "mlp.onnx", example=X[:4]),
        "int8": Path("int8.onnx"),
    }
    quantize_dynamic(files[".onnx"], files["int8"])
    ways = {
        "torch": model,
        ".pt2": torch.export.load("mlp.pt2").module(),
        ".onnx": open_onnx("mlp.onnx"),
        "int8": open_onnx("int8.onnx"),
    }
    one, many = measure(ways, X[:1], 5 * rounds), measure(ways, X, rounds)
    rows, expected = [], model(X)
    for name, run in ways.items():
        size = files[name].stat().st_size / 1e6 if files[name] else None
        difference = (run(X) - expected).abs().max() / expected.abs().max()
        rows.append([name, size, *one[name], *many[name], float(difference)])
    titles = ["", "MB", "ms, 1 row", "speed", "ms, 256", "speed", "largest difference"]
    print(
        tabulate(rows, titles, floatfmt=("", ".1f", ".3f", ".2f", ".3f", ".2f", ".0e"))
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=50)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder, torch.inference_mode():
        os.chdir(folder)
        compare(given.rounds)
