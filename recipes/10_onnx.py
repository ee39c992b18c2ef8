"""ONNX: a file that gives the model's predictions without PyTorch (section 10.1).

    python recipes/10_onnx.py

An .onnx file needs onnxruntime alone, a .pt2 file needs torch, and neither needs the
model's code. The tutorial's export has two faults, which are shown first: the file
takes only as many rows as the example had, and nothing compares its numbers with the
model's. kit.export frees the number of rows, and compares before it writes. Then five
models are exported, and the files are compared with the models once more.

prints:

    way         input         output        given 5 rows
    tutorial    [1, 1]        [1, 1]        is refused
    kit         ['batch', 1]  ['batch', 1]  gives 5

    largest difference from the model, of outputs up to 1, for 1, 7 and 1000 rows
    model              .onnx        .pt2
    line          below 1e-6  below 1e-6
    regression    below 1e-6  below 1e-6
    classifier    below 1e-6  below 1e-6
    dropout       below 1e-6  below 1e-6
    small CNN     below 1e-6  below 1e-6
"""

import logging
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that a clone finds kit.py

import torch
from torch import nn

import kit

try:
    import onnx  # noqa: F401
    import onnxruntime
    import onnxscript  # noqa: F401
    from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument
except ImportError:
    sys.exit("this recipe needs: pip install onnx onnxscript onnxruntime")

Path("models").mkdir(exist_ok=True)
torch.manual_seed(42)


def open_onnx(path):
    """A function from a tensor of inputs to a tensor of outputs."""
    session = onnxruntime.InferenceSession(path)

    def run(inputs):
        outputs = session.run(["output"], {"input": inputs.numpy()})
        return torch.from_numpy(outputs[0])

    return run


def open_pt2(path):
    return torch.export.load(path).module()


# --- The tutorial's way, and kit's --------------------------------------------------

line = nn.Linear(1, 1)
one_row = torch.rand(1, 1)
five_rows = torch.rand(5, 1)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch's exporter warns of torch's own code,
    logging.disable(logging.WARNING)  # and logs which packages it did not find
    torch.onnx.export(
        line,
        (one_row,),
        "models/tutorial.onnx",
        input_names=["input"],
        output_names=["output"],
        verbose=False,
    )
    logging.disable(logging.NOTSET)

kit.export(line, "models/kit.onnx", example=five_rows)

print("way         input         output        given 5 rows")
for way in ("tutorial", "kit"):
    session = onnxruntime.InferenceSession(f"models/{way}.onnx")
    taken = session.get_inputs()[0].shape
    given = session.get_outputs()[0].shape

    try:
        outputs = open_onnx(f"models/{way}.onnx")(five_rows)
        answer = f"gives {len(outputs)}"
    except InvalidArgument:
        answer = "is refused"

    print(f"{way:10}  {taken!s:12}  {given!s:12}  {answer}")


# --- Five models, two formats -------------------------------------------------------

# Columns of very different scales: Standardize is a layer of the model, so it goes into
# the file, and whoever uses the file gives it the columns as they are.
table = torch.randn(1000, 3) * torch.tensor([1.0, 0.1, 500.0]) + 2000
price = 90 * torch.randn(1000, 1) + 200
image = torch.randn(1000, 1, 14, 14)

regression = nn.Sequential(
    kit.Standardize(table),
    nn.Linear(3, 64),
    nn.ReLU(),
    nn.Linear(64, 1),
    kit.Standardize(price, inverse=True),  # back to the unit of the price
)
classifier = nn.Sequential(
    kit.Standardize(table),
    nn.Linear(3, 64),
    nn.ReLU(),
    nn.Linear(64, 4),
)
dropout = nn.Sequential(
    kit.Standardize(table),
    nn.Linear(3, 64),
    nn.BatchNorm1d(64),
    nn.Dropout(0.5),  # is off in the file, as in every prediction
    nn.Linear(64, 1),
)
small_cnn = nn.Sequential(
    nn.Conv2d(1, 16, 3),
    nn.ReLU(),
    nn.Flatten(),
    nn.Linear(16 * 12 * 12, 10),
)
examples = {
    "line": (line, torch.rand(1000, 1)),
    "regression": (regression, table),
    "classifier": (classifier, table),
    "dropout": (dropout, table),
    "small CNN": (small_cnn, image),
}

print()
print("largest difference from the model, of outputs up to 1, for 1, 7 and 1000 rows")
print(f"{'model':12}{'.onnx':>12}{'.pt2':>12}")
for name, (model, inputs) in examples.items():
    model.eval()
    print(f"{name:12}", end="")

    for suffix, open_file in {".onnx": open_onnx, ".pt2": open_pt2}.items():
        file = f"models/{name.replace(' ', '_')}{suffix}"
        kit.export(model, file, example=inputs[:5])
        exported = open_file(file)

        largest = 0.0
        for rows in (1, 7, 1000):
            expected = kit.predict(model, inputs[:rows])
            difference = (exported(inputs[:rows]) - expected).abs().max()
            largest = max(largest, float(difference / expected.abs().max()))

        below = "below 1e-6" if largest < 1e-6 else f"{largest:.0e}"
        print(f"{below:>12}", end="")
    print()
