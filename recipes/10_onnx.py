"""10 ONNX: files that give the model's numbers without kit (tutorial 10.1).

    python recipes/10_onnx.py

The tutorial's way freezes the batch size at its example's, and compares nothing;
kit.export frees it, and compares before it writes. Raw columns go in, as the
standardisation is part of the model. .onnx needs onnxruntime alone, .pt2 torch.

prints:

    the tutorial's way: input [1, 1], output [1, 1]
    kit.export: input ['batch', 1], output ['batch', 1]
    line        .onnx and .pt2 within 1e-06 for 1, 7, 1000 rows
    regression  .onnx and .pt2 within 1e-06 for 1, 7, 1000 rows
    classifier  .onnx and .pt2 within 1e-06 for 1, 7, 1000 rows
    small CNN   .onnx and .pt2 within 1e-06 for 1, 7, 1000 rows
    dropout     .onnx and .pt2 within 1e-06 for 1, 7, 1000 rows
"""

import sys
import warnings
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # a clone without an install

import torch
from torch import nn

import kit


def session(path):
    import onnxruntime

    return onnxruntime.InferenceSession(path)


def load(path):
    """The function of an exported file."""
    if path.suffix == ".pt2":
        return torch.export.load(path).module()
    run = session(path).run
    return lambda X: torch.from_numpy(run(["output"], {"input": X.numpy()})[0])


torch.manual_seed(42)
x, table, images = (torch.randn(1000, *n) for n in ((1,), (3,), (1, 14, 14)))
table = table * torch.tensor([1.0, 0.1, 500.0]) + 2000
scale, price = kit.Standardize(table), kit.Standardize(90 * x + 200, inverse=True)
hidden, pixels = (nn.Linear(3, 64), nn.ReLU()), (nn.Conv2d(1, 16, 3), nn.Flatten())
models = {
    "line": (nn.Linear(1, 1), x),
    "regression": (nn.Sequential(scale, *hidden, nn.Linear(64, 1), price), table),
    "classifier": (nn.Sequential(scale, *hidden, nn.Linear(64, 4)), table),
    "small CNN": (nn.Sequential(*pixels, nn.ReLU(), nn.Linear(2304, 10)), images),
    "dropout": (nn.Sequential(scale, *hidden, nn.BatchNorm1d(64), nn.Dropout()), table),
}
line = models["line"][0]

kit.export(line, "models/free.onnx", example=x[:5])
names = {"input_names": ["input"], "output_names": ["output"], "verbose": False}
with warnings.catch_warnings():  # torch's, of itself
    warnings.simplefilter("ignore")
    torch.onnx.export(line, (x[:1],), "models/frozen.onnx", **names)
for way, name in (("the tutorial's way", "frozen"), ("kit.export", "free")):
    one = session(f"models/{name}.onnx")
    ends = one.get_inputs()[0].shape, one.get_outputs()[0].shape
    print(f"{way}: input {ends[0]}, output {ends[1]}")
assert ends[0] == ["batch", 1]

for name, (model, X) in models.items():
    model(X)  # BatchNorm learns its means
    worst = 0.0
    for suffix in (".onnx", ".pt2"):
        exported = load(kit.export(model, f"models/{name}{suffix}", example=X[:5]))
        for n in (1, 7, 1000):
            expected = kit.predict(model, X[:n])
            difference = (exported(X[:n]) - expected).abs().max()
            worst = max(worst, (difference / expected.abs().max()).item())
    assert worst < 1e-6, worst
    print(f"{name:11} .onnx and .pt2 within 1e-06 for 1, 7, 1000 rows")
