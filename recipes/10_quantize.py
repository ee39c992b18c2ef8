"""Quantization: weights of 8 bits instead of 32 (section 10.2).

    python recipes/10_quantize.py

An int8 weight takes a quarter of a float32's memory, and a processor multiplies more of
them at a time. "Dynamic" means that the weights are rounded once, now, and what flows
between the layers is rounded anew for every batch. torch.quantization, which the
tutorial calls, is deprecated; here onnxruntime rounds the exported file. The tutorial
claims 2 to 4 times the speed, 75 % less space and next to no loss of accuracy, and
tries it on a model of two weights, whose file grows instead.

prints (figures vary):

    2 million weights      float32      int8   change       claimed
    file, MB                  8.71      2.19   x 0.25       x 0.25
    accuracy                 0.921     0.922   x 1.00       a tiny loss
    ms for   1 rows           0.09      0.03   x 0.39       x 0.25 to 0.5
    ms for 256 rows           8.67      1.43   x 0.16       x 0.25 to 0.5

    2 weights              float32      int8   change       claimed
    file, kB                  1.59      1.97   x 1.23       x 0.25
"""

import logging
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that a clone finds kit.py

import torch
from torch import nn

import kit

try:
    import onnx  # noqa: F401
    import onnxruntime
    import onnxscript  # noqa: F401
    from onnxruntime.quantization import quantize_dynamic
except ImportError:
    sys.exit("this recipe needs: pip install onnx onnxscript onnxruntime")

logging.disable(logging.WARNING)  # onnxruntime logs advice that a small model ignores


def export_and_quantize(model, example, name):
    """Two files: the model in float32, and the same with int8 weights."""
    float32 = Path(f"models/{name}.onnx")
    int8 = Path(f"models/{name}_int8.onnx")

    kit.export(model, float32, example=example)
    quantize_dynamic(float32, int8)
    return float32, int8


def predict(session, inputs):
    outputs = session.run(None, {"input": inputs.numpy()})
    return torch.from_numpy(outputs[0])


def median_milliseconds(sessions, inputs):
    """The median time of each session, measured in turns.

    In turns, so that a busy moment of the machine meets all of them alike.
    """
    times = [[] for _ in sessions]
    for _ in range(40):
        for session, own_times in zip(sessions, times):
            start = time.perf_counter()
            predict(session, inputs)
            own_times.append(1000 * (time.perf_counter() - start))

    return [statistics.median(own_times) for own_times in times]


# --- A model that is worth it: 2 million weights -------------------------------------

# Ten classes of 64 numbers each, every class around a point of its own.
torch.manual_seed(42)
classes = torch.arange(4000) % 10
centres = torch.randn(10, 64)
inputs = centres[classes] + 2.2 * torch.randn(4000, 64)
train, test = kit.split((inputs, classes), ratios=(0.75, 0.25))
test_inputs, test_classes = test

model = nn.Sequential(
    nn.Linear(64, 1024),
    nn.ReLU(),
    nn.Linear(1024, 1024),
    nn.ReLU(),
    nn.Linear(1024, 1024),
    nn.ReLU(),
    nn.Linear(1024, 10),
)
state = kit.make_state(model, torch.optim.Adam(model.parameters(), lr=3e-4))
loader = kit.make_loader(train, batch_size=128, shuffle=True)
kit.fit(state, loader, loss_fn=nn.CrossEntropyLoss(), epochs=2)

files = export_and_quantize(model, test_inputs[:5], "large")
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = torch.get_num_threads()
sessions = [onnxruntime.InferenceSession(file, options) for file in files]

megabytes = [file.stat().st_size / 1e6 for file in files]
accuracies = []
for session in sessions:
    scores = kit.metrics(predict(session, test_inputs), test_classes)
    accuracies.append(scores["accuracy"])

print("2 million weights      float32      int8   change       claimed")
print(
    f"file, MB             {megabytes[0]:9.2f} {megabytes[1]:9.2f}"
    f"   x {megabytes[1] / megabytes[0]:4.2f}       x 0.25"
)
print(
    f"accuracy             {accuracies[0]:9.3f} {accuracies[1]:9.3f}"
    f"   x {accuracies[1] / accuracies[0]:4.2f}       a tiny loss"
)
for rows in (1, 256):
    times = median_milliseconds(sessions, test_inputs[:rows])
    print(
        f"ms for {rows:3} rows      {times[0]:9.2f} {times[1]:9.2f}"
        f"   x {times[1] / times[0]:4.2f}       x 0.25 to 0.5"
    )


# --- A model that is not: 2 weights ---------------------------------------------------

line = nn.Linear(1, 1)
files = export_and_quantize(line, torch.rand(5, 1), "line")
kilobytes = [file.stat().st_size / 1e3 for file in files]

print()
print("2 weights              float32      int8   change       claimed")
print(
    f"file, kB             {kilobytes[0]:9.2f} {kilobytes[1]:9.2f}"
    f"   x {kilobytes[1] / kilobytes[0]:4.2f}       x 0.25"
)
