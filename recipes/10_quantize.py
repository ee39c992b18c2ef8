"""10 Quantize: 8 bits instead of 32 for weights and activations (tutorial 10.2).

    python recipes/10_quantize.py

torch.quantization is deprecated; onnxruntime quantizes the exported file, which then runs
without torch. torchao, torch's own successor, is made for other hardware: on a CPU of
AVX2 alone it took 30 times as long as float32. How much faster int8 is depends on the
machine, so only that it is stands here; tests/bench/export.py prints figures.

prints:

                       float32    int8    change    the tutorial's claim
    -----------------  ---------  ------  --------  ----------------------
    file               8.7 MB     2.2 MB  -75%      -75%
    accuracy           92%        92%     none      a tiny loss
    time of 1 row                         faster    2 to 4 times faster
    time of 256 rows                      faster    2 to 4 times faster
    file of 2 weights                     larger    -75%
"""

import statistics
import sys
import time
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # a clone without an install

import torch
from tabulate import tabulate
from torch import nn

import kit


def quantized(model, X):
    """onnxruntime's sessions of the model, in float32 and in int8, and their sizes."""
    paths = "models/float32.onnx", "models/int8.onnx"
    kit.export(model, paths[0], example=X[:5])
    import onnxruntime
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(*paths)
    sessions = [onnxruntime.InferenceSession(path) for path in paths]
    return sessions, [Path(path).stat().st_size for path in paths]


def seconds(sessions, X):
    """The median time of each, taken in turns."""
    times = []
    for _ in range(40):
        for session in sessions:
            start = time.perf_counter()
            session.run(None, {"input": X.numpy()})
            times.append(time.perf_counter() - start)
    return statistics.median(times[0::2]), statistics.median(times[1::2])


torch.manual_seed(42)
y = torch.arange(4000) % 10  # ten classes, each around a point of its own
X = torch.randn(10, 64)[y] + 2.2 * torch.randn(4000, 64)
train, (X, y) = kit.split((X, y), ratios=(0.75, 0.25))
layers = [nn.Linear(64, 1024), nn.ReLU()]
for _ in range(2):
    layers += [nn.Linear(1024, 1024), nn.ReLU()]
model = nn.Sequential(*layers, nn.Linear(1024, 10))
state = kit.make_state(model, torch.optim.Adam(model.parameters(), lr=3e-4))
loader = kit.make_loader(train, batch_size=128, shuffle=True)
kit.fit(state, loader, loss_fn=nn.CrossEntropyLoss(), epochs=2)

sessions, (large, small) = quantized(model, X)
outputs = [session.run(None, {"input": X.numpy()})[0] for session in sessions]
before, after = (kit.metrics(torch.from_numpy(o), y)["accuracy"] for o in outputs)
_, (line, larger) = quantized(nn.Linear(1, 1), X[:, :1])
change, verdict = f"{small / large - 1:.0%}", ["", "", "faster", "2 to 4 times faster"]
rows = [
    ["file", f"{large / 1e6:.1f} MB", f"{small / 1e6:.1f} MB", change, "-75%"],
    ["accuracy", f"{before:.0%}", f"{after:.0%}", "none", "a tiny loss"],
    ["time of 1 row", *verdict],
    ["time of 256 rows", *verdict],
    ["file of 2 weights", "", "", "larger", "-75%"],
]
titles = ["", "float32", "int8", "change", "the tutorial's claim"]
print(tabulate(rows, titles, disable_numparse=True))

assert small < 0.26 * large and larger > line
assert abs(after - before) < 0.005
for n in (1, 256):
    slow, fast = seconds(sessions, X[:n])
    assert fast < slow, (n, slow, fast)
