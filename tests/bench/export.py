"""What an export and int8 bring: differences, sizes and times, in one run.

    python tests/bench/export.py

An mlp of 64-1024-1024-1024-10 on one thread, by torch, by an exported .pt2, by onnxruntime
and by onnxruntime in int8. The ways take turns; times are medians, and so are the ratios
to torch within a round. Then the largest difference to the model for five kinds of model.
"""

import os
import runpy
import statistics
import time
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import onnxruntime
import torch
from onnxruntime.quantization import quantize_dynamic
from tabulate import tabulate
from torch import nn

import kit

RECIPE = Path(__file__).parents[2] / "recipes" / "10_onnx.py"


def mlp():
    widths = 64, 1024, 1024, 1024
    layers = []
    for inputs, width in pairwise(widths):
        layers += [nn.Linear(inputs, width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(1024, 10)).eval()


def session(path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    run = onnxruntime.InferenceSession(path, options).run
    return lambda X: torch.from_numpy(run(None, {"input": X.numpy()})[0])


def timed(ways, X, rounds):
    """Seconds of each way in each of the rounds, the first of which warms up."""
    times = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way(X)
            times[name].append(time.perf_counter() - start)
    return {name: seconds[1:] for name, seconds in times.items()}


def speeds():
    torch.manual_seed(0)
    model, X = mlp(), torch.randn(256, 64)
    paths = {"eager": kit.export(model, "mlp.pt2", example=X[:4])}
    paths[".pt2"] = paths["eager"]
    paths[".onnx"] = kit.export(model, "mlp.onnx", example=X[:4])
    paths["int8"] = Path("int8.onnx")
    quantize_dynamic(paths[".onnx"], paths["int8"])
    ways = {"eager": model, ".pt2": torch.export.load("mlp.pt2").module()}
    ways |= {name: session(paths[name]) for name in (".onnx", "int8")}
    claims = {".onnx": "1.2 to 2 times", "int8": "2 to 4 times, -75%"}
    small, large = timed(ways, X[:1], 300), timed(ways, X, 50)
    expected = model(X)
    rows = []
    for name, way in ways.items():
        row = [name, paths[name].stat().st_size / 1e6]
        for times in (small, large):
            ratios = [a / b for a, b in zip(times["eager"], times[name])]
            row += [1000 * statistics.median(times[name]), statistics.median(ratios)]
        rows.append([*row, (way(X) - expected).abs().max().item(), claims.get(name)])
    titles = ["", "MB", "ms, 1 row", "x", "ms, 256", "x", "difference", "claimed"]
    print(tabulate(rows, titles, floatfmt=".3g"))


def differences():
    recipe = runpy.run_path(str(RECIPE))
    rows = []
    for name, (model, X) in recipe["models"].items():
        for suffix in (".onnx", ".pt2"):
            exported = recipe["load"](Path("models", name + suffix))
            row = [name, suffix, kit.predict(model, X).abs().max().item()]
            for n in (1, 7, 1000):
                difference = exported(X[:n]) - kit.predict(model, X[:n])
                row.append(difference.abs().max().item())
            rows.append(row)
    titles = ["", "", "largest output", "1 row", "7 rows", "1000 rows"]
    print(tabulate(rows, titles, floatfmt=".2g"))


if __name__ == "__main__":
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder, torch.inference_mode():
        os.chdir(folder)
        speeds()
        differences()
