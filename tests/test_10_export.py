"""Section 10, export: files that give the model's numbers, in the runtimes that use them."""

import csv
import io
import itertools
import json
import logging
import math
import os
import sys
import warnings
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn
from torch.nn import functional as F

import kit

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

SUFFIXES = pytest.mark.parametrize("suffix", [".onnx", ".pt2"])


def rows(n, *shape):
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(n))


def table_model(outputs):
    """As `kit fit` makes it: raw columns in, of very different sizes, numbers out."""
    scale = torch.tensor([1000.0, 0.01, 1.0])
    inner = nn.Linear(3, 32), nn.ReLU(), nn.Linear(32, outputs)
    X = rows(50, 3) * scale + 5 * scale
    if outputs > 1:
        return nn.Sequential(kit.Standardize(X), *inner)
    price = kit.Standardize(rows(50, 1) * 3e4 + 2e5, inverse=True)
    return nn.Sequential(kit.Standardize(X), *inner, price)


def cnn():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(8 * 5 * 5, 10),
    )  # fmt: skip


def with_dropout():
    """Trained a little, so that BatchNorm has seen data, and left in training mode."""
    model = nn.Sequential(
        nn.Linear(3, 16),
        nn.BatchNorm1d(16),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(16, 1),
    )
    state = kit.make_state(model, torch.optim.Adam(model.parameters(), lr=0.01))
    data = rows(64, 3) + 2, rows(64, 1)
    return kit.fit(state, [data], loss_fn=F.mse_loss, epochs=5).model


MODELS = {
    "line": (partial(nn.Linear, 1, 1), (1,)),
    "regression": (partial(table_model, 1), (3,)),
    "classifier": (partial(table_model, 4), (3,)),
    "cnn": (cnn, (1, 12, 12)),
    "dropout and batchnorm": (with_dropout, (3,)),
}


def load(path):
    """The function of an exported file, by the runtime alone."""
    if path.suffix == ".pt2":
        return torch.export.load(path).module()
    session = onnxruntime.InferenceSession(path)
    return lambda x: torch.from_numpy(session.run(None, {"input": x.numpy()})[0])


@SUFFIXES
@pytest.mark.parametrize("name", MODELS)
def test_the_file_gives_the_models_numbers_at_every_batch_size(name, suffix):
    torch.manual_seed(0)
    make, shape = MODELS[name]
    model = make()
    exported = load(kit.export(model, f"a{suffix}", example=rows(5, *shape)))
    for n in (1, 7, 1000):
        expected = kit.predict(model, rows(n, *shape))
        got = exported(rows(n, *shape))
        assert got.shape == expected.shape and not got.requires_grad
        assert (got - expected).abs().max() <= 1e-6 * expected.abs().max().clamp(min=1)


@pytest.mark.parametrize("n", [1, 2, 3])
@SUFFIXES
def test_the_batch_size_is_free_whatever_the_examples(suffix, n):
    model = nn.Linear(2, 3)  # 2 and 3 are columns too
    exported = load(kit.export(model, f"a{suffix}", example=rows(n, 2)))
    assert [len(exported(rows(size, 2))) for size in range(1, 6)] == [1, 2, 3, 4, 5]


@SUFFIXES
def test_the_model_is_left_as_it_was(suffix):
    model = with_dropout()
    model[1].eval()  # a frozen part of a training model
    modes = [module.training for module in model.modules()]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    grads = [p.grad.clone() for p in model.parameters()]
    kit.export(model, f"a{suffix}", example=rows(4, 3))
    assert [module.training for module in model.modules()] == modes
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), grads))
    assert all(p.requires_grad for p in model.parameters())


class InPlace(nn.Linear):
    def forward(self, x):
        x -= 1
        return super().forward(x)


@SUFFIXES
def test_a_model_that_changes_its_inputs_in_place_leaves_the_example(suffix):
    model, example = InPlace(3, 1), rows(4, 3)
    exported = load(kit.export(model, f"a{suffix}", example=example))
    assert torch.equal(example, rows(4, 3))
    expected = kit.predict(model, rows(9, 3))
    torch.testing.assert_close(exported(rows(9, 3)), expected)


WRAPS = {
    "amp": lambda model: kit.amp(model, "bf16"),
    "compiled": partial(torch.compile, backend="eager"),
    "compiled amp": lambda m: torch.compile(kit.amp(m, "bf16"), backend="eager"),
    "averaged": torch.optim.swa_utils.AveragedModel,
}


@pytest.mark.parametrize("wrap", WRAPS)
def test_a_wrapped_model_is_exported_bare_in_float32(wrap):
    model = table_model(4)
    exported = load(kit.export(WRAPS[wrap](model), "a.pt2", example=rows(4, 3)))
    assert torch.equal(exported(rows(9, 3)), kit.predict(model, rows(9, 3)))


def test_whole_numbers_may_be_the_inputs():
    model = nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.Linear(8, 2))
    X = torch.arange(10).reshape(5, 2)
    for suffix in (".onnx", ".pt2"):
        got = load(kit.export(model, f"a{suffix}", example=X))(X)
        torch.testing.assert_close(got, kit.predict(model, X))


FACTS = {"columns": ["größe", "rooms"], "classes": [], "metrics": {"val_loss": 0.5}}


def test_onnx_has_named_ends_a_free_batch_size_and_metadata():
    path = kit.export(nn.Linear(2, 3), "a.onnx", example=rows(4, 2), metadata=FACTS)
    onnx.checker.check_model(str(path), full_check=True)
    session = onnxruntime.InferenceSession(path)
    ends = [*session.get_inputs(), *session.get_outputs()]
    shapes = [(end.name, end.shape) for end in ends]
    assert shapes == [("input", ["batch", 2]), ("output", ["batch", 3])]
    texts = session.get_modelmeta().custom_metadata_map
    assert {key: json.loads(text) for key, text in texts.items()} == FACTS


def test_pt2_has_metadata():
    path = kit.export(nn.Linear(2, 3), "a.pt2", example=rows(4, 2), metadata=FACTS)
    texts = dict.fromkeys(FACTS, "")
    torch.export.load(path, extra_files=texts)
    assert {key: json.loads(text) for key, text in texts.items()} == FACTS


class Branch(nn.Module):
    """A condition, which has a graph for each branch."""

    def forward(self, x):
        return torch.cond(x.sum() > 0, lambda x: x.relu(), lambda x: -x, (x,))


@SUFFIXES
def test_the_file_holds_no_paths_of_this_machine_and_no_rows_of_the_example(suffix):
    secret = torch.full((4, 3), 123.456)
    model = nn.Sequential(nn.Linear(3, 3), Branch())
    content = kit.export(model, f"a{suffix}", example=secret).read_bytes()
    if suffix == ".pt2":
        archive = zipfile.ZipFile(io.BytesIO(content))
        content = b"\n".join(archive.read(name) for name in archive.namelist())
    assert b".py" not in content and os.path.expanduser("~").encode() not in content
    assert secret[0].numpy().tobytes() not in content


class Function(nn.Module):
    """A module of a function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def counted(x, count=itertools.count(1)):  # noqa: B008
    return x * next(count)


UNEQUAL = {
    "dropout that stays on": lambda x: F.dropout(x, training=True),
    "a count": counted,
    "not a number": torch.log,
    "infinite": lambda x: x / 0,
}


@pytest.mark.parametrize(
    "name, suffix", [*((name, ".pt2") for name in UNEQUAL), ("a count", ".onnx")]
)
def test_other_numbers_are_an_error_and_leave_no_file(name, suffix):
    model = nn.Sequential(nn.Linear(3, 40), Function(UNEQUAL[name]))
    with pytest.raises(ValueError, match=r"^a\.\w+ differs from the model by .+$"):
        kit.export(model, f"a{suffix}", example=rows(4, 3))
    assert not os.listdir()


@pytest.mark.parametrize(
    "off, passes", [(0.0, True), (9e-5, True), (1.2e-4, False), (-1.0, False)]
)
def test_the_tolerance_is_1e_4_of_the_largest_output(off, passes, monkeypatch):
    def make(program, texts):  # outputs are 1 and 1000; off by a share of 1000
        return b"made", lambda x: torch.tensor([[1 + 1000 * off, 1000.0]] * len(x))

    monkeypatch.setattr(kit, "_make_pt2", make)
    model = Function(lambda x: x * torch.tensor([1.0, 1000.0]))
    export = partial(kit.export, model, "a.pt2", example=torch.ones(3, 2))
    if passes:
        assert export().read_bytes() == b"made"
    else:
        pytest.raises(ValueError, export).match("in outputs up to 1e[+]03 of 1 rows")


def test_an_infinite_output_is_near_to_nothing(monkeypatch):
    def make(program, texts):
        return b"made", lambda x: torch.ones(len(x), 2)

    monkeypatch.setattr(kit, "_make_pt2", make)
    with pytest.raises(ValueError, match="differs from the model by inf"):
        kit.export(Function(lambda x: x / 0), "a.pt2", example=torch.ones(3, 2))


@pytest.mark.parametrize("n", [1, 3, 4])
def test_a_file_that_is_wrong_at_one_batch_size_is_refused(n, monkeypatch):
    def make(program, texts):
        return b"made", lambda x: x if len(x) != n else x[:, :1]

    monkeypatch.setattr(kit, "_make_pt2", make)
    with pytest.raises(ValueError, match=f"by inf, in outputs up to 1 of {n} rows"):
        kit.export(nn.Identity(), "a.pt2", example=torch.ones(3, 2))


CANNOT = {
    "data decide": (lambda x: x if x.sum() > 0 else -x, "data-dependent"),
    "numpy": (lambda x: torch.from_numpy(x.numpy() * 2), r"\.numpy\(\)"),
    "a fixed size": (lambda x: x.reshape(4, 3) * 2, "invalid for input of size 3"),
    "a size to guess": (lambda x: x * 2 if len(x) == 2 else x, "constant"),
    "a tuple": (lambda x: (x, x), "one tensor, got tuple"),
}


@SUFFIXES
@pytest.mark.parametrize("name", CANNOT)
def test_what_torch_cannot_export_is_its_reason_in_one_line(name, suffix, capfd):
    function, reason = CANNOT[name]
    line = rf"^a\.\w+ cannot be made of the model: [^\n]*{reason}[^\n]*$"
    with pytest.raises(ValueError, match=line):
        kit.export(Function(function), f"a{suffix}", example=rows(4, 3))
    assert not os.listdir()
    assert capfd.readouterr() == ("", "")


def test_what_only_onnx_lacks_is_its_reason_and_the_pt2_is_made():
    model = Function(torch.special.bessel_j0)
    with pytest.raises(ValueError, match=r"^a\.onnx .*No ONNX function .*bessel_j0"):
        kit.export(model, "a.onnx", example=rows(4, 3))
    kit.export(model, "a.pt2", example=rows(4, 3))
    assert os.listdir() == ["a.pt2"]


def test_a_failure_keeps_the_old_file_and_leaves_no_litter(monkeypatch):
    path = kit.export(nn.Linear(3, 1), "models/a.pt2", example=rows(4, 3))
    before = path.read_bytes()
    with pytest.raises(ValueError, match="differs"):
        kit.export(Function(torch.log), path, example=rows(4, 3))

    def fail(*paths):
        raise OSError("no space")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match=r"^models/a\.pt2 could not be written: no space"):
        kit.export(nn.Linear(3, 1), path, example=rows(4, 3))
    assert path.read_bytes() == before and os.listdir("models") == ["a.pt2"]


def test_what_is_no_example_or_no_export_is_said_in_one_line():
    export = partial(kit.export, nn.Linear(3, 1))
    line = r"^an export must be an \.onnx or \.pt2 file, got a\.pt$"
    with pytest.raises(ValueError, match=line):
        export("a.pt", example=rows(4, 3))
    with pytest.raises(TypeError, match="^example must be a tensor, got ndarray$"):
        export("a.pt2", example=np.ones((4, 3)))
    for empty in (torch.ones(0, 3), torch.tensor(1.0)):
        line = "^rows of example must be at least 1, got 0$"
        with pytest.raises(ValueError, match=line):
            export("a.pt2", example=empty)
    with pytest.raises(ValueError, match=r"^a\.pt2 cannot be made .*4x2 and 3x1|1x2"):
        export("a.pt2", example=rows(4, 2))


def test_without_a_package_the_error_is_the_command_that_installs_it(child):
    code = """
import sys
import kit, torch
for name in ("onnx", "onnxscript", "onnxruntime"):
    sys.modules[name] = None  # as if it were not installed
    kit.export(torch.nn.Linear(1, 1), "a.pt2", example=torch.ones(1, 1))
    try:
        kit.export(torch.nn.Linear(1, 1), "a.onnx", example=torch.ones(1, 1))
    except ImportError as error:
        print(error)
    del sys.modules[name]
"""
    printed, errors = child("-c", code).communicate(timeout=60)
    line = ".onnx needs: pip install onnx onnxscript onnxruntime"
    assert printed.splitlines() == [line] * 3, errors
    assert os.listdir() == ["a.pt2"]


def test_warnings_logs_and_prints_of_the_caller_come_through_afterwards(capfd, caplog):
    kit.export(nn.Linear(1, 1), "a.onnx", example=torch.ones(1, 1))
    with pytest.raises(ValueError):
        kit.export(Function(torch.log), "b.onnx", example=-torch.ones(1, 1))
    assert capfd.readouterr() == ("", "")
    assert all(record.levelno == logging.DEBUG for record in caplog.records)
    caplog.clear()
    print("print", file=sys.stderr)
    logging.getLogger("mine").warning("log")
    with pytest.warns(UserWarning, match="warning"):
        warnings.warn("warning", stacklevel=1)
    assert capfd.readouterr().err == "print\n" and caplog.messages == ["log"]


# ------------------------------------------------------------------ the command line


def call(*arguments, code=0):
    result = CliRunner().invoke(kit.main, [str(a) for a in arguments])
    assert result.exit_code == code, result.output
    return result.stderr if code else result.stdout


def write_table(path, target):
    """Columns of very different sizes, and a target of them."""
    X = (
        rows(60, 2) * torch.tensor([1.0, 500.0]) + torch.tensor([3.0, 2000.0])
    ).tolist()
    with open(path, "w", newline="", encoding="utf-8") as file:
        lines = [[*row, target(*row)] for row in X]
        csv.writer(file).writerows([["rooms", "year", "y"], *lines])
    return np.array(X, np.float32)


TARGETS = {
    "regression": lambda rooms, year: 1000 * rooms + year,
    "classification": lambda rooms, year: "old" if year < 2000 else "new",
}


@pytest.mark.parametrize("task", TARGETS)
def test_an_exported_table_takes_raw_columns_without_kit_or_torch(task, child):
    X = write_table("a.csv", TARGETS[task])
    fit = "fit", "--data", "a.csv", "--target", "y", "--epochs", 3, "--quiet"
    call(*fit, "--no-plot", "--amp", "bf16", "--out", "run")
    printed = call("export", "run/best.pt", "out/a.onnx")
    line = "out/a.onnx: gives the numbers of run/best.pt, for batches of any size\n"
    assert printed == line
    np.save("X.npy", X)
    code = """
import json, sys
import numpy as np, onnxruntime
session = onnxruntime.InferenceSession("out/a.onnx")
np.save("y.npy", session.run(None, {"input": np.load("X.npy")})[0])
assert not {"torch", "kit"} & sys.modules.keys()
print(json.dumps(session.get_modelmeta().custom_metadata_map))
"""
    printed, errors = child("-c", code).communicate(timeout=60)
    assert errors == ""
    facts = {key: json.loads(text) for key, text in json.loads(printed).items()}
    classes = ["new", "old"] if task == "classification" else []
    assert (
        facts.pop("metrics")["epoch"]
        == kit.read_checkpoint("run/best.pt")["history"][-1]["epoch"]
    )
    assert facts == {
        "task": task, "target": "y", "columns": ["rooms", "year"], "classes": classes,
    }  # fmt: skip
    predicted = list(
        csv.DictReader(call("predict", "run/best.pt", "--data", "a.csv").splitlines())
    )
    got = torch.from_numpy(np.load("y.npy"))
    if classes:
        got = got.softmax(1)
        expected = [[float(row[f"p_{name}"]) for name in classes] for row in predicted]
    else:
        expected = [[float(row["prediction"])] for row in predicted]
    torch.testing.assert_close(got, torch.tensor(expected), rtol=1e-5, atol=1e-5)


def test_the_example_is_like_the_tables_rows(monkeypatch):
    X = torch.from_numpy(write_table("a.csv", TARGETS["regression"]))
    fit = "fit", "--data", "a.csv", "--target", "y", "--epochs", 1, "--quiet"
    call(*fit, "--no-plot", "--out", "run")
    given = []
    monkeypatch.setattr(kit, "export", lambda *_, example, **__: given.append(example))
    call("export", "run/best.pt", "a.onnx")
    (example,) = given
    assert example.shape[1:] == X.shape[1:]
    assert ((example.mean(0) - X.mean(0)).abs() < 2 * X.std(0)).all()
    assert (example.std(0) > 0.2 * X.std(0)).all()


def test_metrics_that_are_no_numbers_are_left_out_of_the_metadata():
    write_table("a.csv", TARGETS["regression"])
    fit = "fit", "--data", "a.csv", "--target", "y", "--epochs", 1, "--quiet"
    call(*fit, "--no-plot", "--ratios", "0.99,0.01", "--out", "run")
    assert math.isnan(kit.read_checkpoint("run/best.pt")["history"][-1]["val_r2"])
    call("export", "run/best.pt", "a.onnx")
    texts = onnxruntime.InferenceSession("a.onnx").get_modelmeta().custom_metadata_map
    assert "NaN" not in texts["metrics"] and "val_r2" not in texts["metrics"]
    assert json.loads(texts["metrics"])["val_mae"] > 0


def test_the_line_is_exported_from_a_process_without_a_warning(child):
    call("fit", "--epochs", 200, "--quiet", "--no-plot", "--out", "run")
    process = child("-m", "kit", "export", "run/last.pt", "line.onnx")
    printed, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (0, "") and printed.startswith("line.onnx")
    line = load(Path("line.onnx"))
    bias, end = line(torch.tensor([[0.0], [1.0]]))[:, 0].tolist()
    assert (round(end - bias, 4), round(bias, 4)) == (0.6968, 0.3025)


def test_mistakes_are_one_line():
    call("fit", "--epochs", 1, "--quiet", "--no-plot", "--out", "run")
    wrong = call("export", "run/last.pt", "a.pth", code=1)
    assert wrong == "Error: an export must be an .onnx or .pt2 file, got a.pth\n"
    assert call("export", "no.pt", "a.onnx", code=1).count("\n") == 1
    assert "FILE" in call("export", "run/last.pt", code=2)
    assert os.listdir() == ["run"]
