"""What an export and int8 bring: size, time, and the largest difference.

    python tests/bench/export.py [ROUNDS]

An mlp of 64-1024-1024-1024-10 on one thread: by torch, by kit's .pt2, by kit's .onnx in
onnxruntime, and by that file in int8.
"""

import os
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import onnxruntime
import torch
from distributed import make_mlp
from onnxruntime.quantization import quantize_dynamic
from turns import argument, report, take_turns

import kit


def open_onnx(path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options)

    def run(X):
        return torch.from_numpy(session.run(None, {"input": X.numpy()})[0])

    return run


def compare(rounds):
    model, X = make_mlp((64, 1024, 1024, 1024, 10)).eval(), torch.randn(256, 64)
    kit.export(model, "mlp.pt2", example=X[:4])
    kit.export(model, "mlp.onnx", example=X[:4])
    quantize_dynamic("mlp.onnx", "int8.onnx")
    ways = {
        "torch": model,
        "mlp.pt2": torch.export.load("mlp.pt2").module(),
        "mlp.onnx": open_onnx("mlp.onnx"),
        "int8.onnx": open_onnx("int8.onnx"),
    }
    for rows in (1, 256):
        runs = {name: partial(run, X[:rows]) for name, run in ways.items()}
        report(f"{rows} rows", take_turns(runs, rounds), "ms", 1000)

    expected = model(X)
    for name in ("mlp.pt2", "mlp.onnx", "int8.onnx"):
        size = Path(name).stat().st_size / 1e6
        difference = (ways[name](X) - expected).abs().max() / expected.abs().max()
        print(
            f"{name}: {size:.1f} MB, differs by {difference:.0e} of the largest output"
        )


if __name__ == "__main__":
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder, torch.inference_mode():
        os.chdir(folder)
        compare(argument(50))
