"""Exported files give the model's numbers in the runtimes that use them."""

import io
import itertools
import json
import logging
import os
import zipfile
from functools import partial

import helpers
import numpy as np
import onnx
import onnxruntime
import pandas
import pytest
import torch
from helpers import call, refused
from torch import nn
from torch.nn import functional as F

import kit

SUFFIXES = pytest.mark.parametrize("suffix", [".onnx", ".pt2"])


def rows(n, columns):
    return torch.randn(n, columns, generator=torch.Generator().manual_seed(n))


def table_model(outputs):
    """As `kit fit` makes it: raw columns in, one of codes, with gaps."""
    X = rows(50, 3) * torch.tensor([1000.0, 0.01, 1.0]) + 5
    X[:, 2] = torch.arange(50) % 3
    inner = nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, outputs)
    model = nn.Sequential(kit.Standardize(X, categories=(0, 0, 3)), *inner)
    if outputs == 1:
        model.append(kit.Standardize(rows(50, 1) * 3e4 + 2e5, inverse=True))
    return model


def with_dropout():
    """Trained a little, so that BatchNorm has seen data, and left in training mode."""
    layers = nn.Linear(3, 16), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.Linear(16, 1)
    state = helpers.make_state(nn.Sequential(*layers))
    kit.fit(state, [(rows(64, 3) + 2, rows(64, 1))], loss_fn=F.mse_loss, epochs=5)
    return state.model


MODELS = {
    "a table's regression": partial(table_model, 1),
    "a table's classes": partial(table_model, 4),
    "dropout and batchnorm": with_dropout,
}


def load(path):
    """The function of an exported file, by the runtime alone."""
    if str(path).endswith(".pt2"):
        return torch.export.load(path).module()
    session = onnxruntime.InferenceSession(path)
    return lambda x: torch.from_numpy(session.run(None, {"input": x.numpy()})[0])


@SUFFIXES
@pytest.mark.parametrize("name", MODELS)
def test_the_file_gives_the_models_numbers(name, suffix):
    torch.manual_seed(0)
    model = MODELS[name]()
    exported = load(kit.export(model, f"a{suffix}", example=rows(5, 3)))
    for n in (1, 7, 1000):
        X = rows(n, 3)
        if "table" in name:
            X[:, 2] = torch.arange(n) % 4  # a code that is unknown among them
            X[0, 0] = torch.nan  # a gap
        expected, got = kit.predict(model, X), exported(X)
        assert got.shape == expected.shape and not got.requires_grad
        assert (got - expected).abs().max() <= 1e-6 * expected.abs().max().clamp(min=1)


@SUFFIXES
@pytest.mark.parametrize("n", [1, 2, 3])
def test_the_batch_size_is_free_whatever_the_examples(suffix, n):
    model = nn.Sequential(nn.Embedding(10, 3), nn.Flatten(), nn.Linear(6, 2))
    example = torch.arange(2 * n).reshape(n, 2)  # 2 and 3 are widths too
    exported = load(kit.export(model, f"a{suffix}", example=example))
    for size in range(1, 6):
        X = torch.arange(2 * size).reshape(size, 2)
        torch.testing.assert_close(exported(X), kit.predict(model, X))


@SUFFIXES
def test_the_model_is_left_as_it_was(suffix):
    model = with_dropout()
    model[1].eval()  # a frozen part of a training model
    modes = [module.training for module in model.modules()]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    kit.export(model, f"a{suffix}", example=rows(4, 3))
    assert [module.training for module in model.modules()] == modes
    helpers.assert_same(dict(model.state_dict()), before)
    assert all(p.requires_grad and p.grad is not None for p in model.parameters())


def test_a_wrapped_model_is_exported_unwrapped_in_float32():
    for wrap in (
        lambda model: torch.compile(kit.amp(model, "bf16"), backend="eager"),
        torch.optim.swa_utils.AveragedModel,
    ):
        model = table_model(4)
        exported = load(kit.export(wrap(model), "a.pt2", example=rows(4, 3)))
        assert torch.equal(exported(rows(9, 3)), kit.predict(model, rows(9, 3)))


METADATA = {"columns": ["größe", "rooms"], "classes": [], "metrics": {"loss": 0.5}}


def test_files_have_metadata_and_onnx_has_named_ends():
    export = partial(kit.export, nn.Linear(2, 3), example=rows(4, 2), metadata=METADATA)
    texts = dict.fromkeys(METADATA, "")
    torch.export.load(export("a.pt2"), extra_files=texts)
    assert {key: json.loads(text) for key, text in texts.items()} == METADATA
    onnx.checker.check_model(str(export("a.onnx")), full_check=True)
    session = onnxruntime.InferenceSession("a.onnx")
    ends = [*session.get_inputs(), *session.get_outputs()]
    shapes = [(end.name, end.shape) for end in ends]
    assert shapes == [("input", ["batch", 2]), ("output", ["batch", 3])]
    texts = session.get_modelmeta().custom_metadata_map
    assert {key: json.loads(text) for key, text in texts.items()} == METADATA


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@SUFFIXES
def test_the_file_holds_no_local_paths_and_no_rows(suffix):
    secret = torch.full((4, 3), 123.456)
    branch = lambda x: torch.cond(x.sum() > 0, torch.relu, torch.neg, (x,))
    model = nn.Sequential(nn.Linear(3, 3), Function(branch))  # of two graphs
    content = kit.export(model, f"a{suffix}", example=secret).read_bytes()
    if suffix == ".pt2":
        archive = zipfile.ZipFile(io.BytesIO(content))
        content = b"\n".join(archive.read(name) for name in archive.namelist())
    assert b".py" not in content and os.path.expanduser("~").encode() not in content
    assert secret[0].numpy().tobytes() not in content


CANNOT = {
    "data decide": (lambda x: x if x.sum() > 0 else -x, "data-dependent"),
    "a fixed size": (lambda x: x.reshape(4, 3) * 2, "invalid for input of size 3"),
    "a size to guess": (lambda x: x * 2 if len(x) == 2 else x, "constant"),
    "a tuple": (lambda x: (x, x), "tuple"),
}
COUNT = itertools.count(1)
UNEQUAL = {  # from the model, or from call to call
    "dropout that stays on": lambda x: F.dropout(x, training=True),
    "a count": lambda x: x * next(COUNT),
    "one row alone": lambda x: x * 3 if x.shape[0] == 1 else x * 2,
    "not a number": torch.log,
    "infinite": lambda x: x / 0,
}


@SUFFIXES
@pytest.mark.parametrize("name", [*CANNOT, *UNEQUAL])
def test_what_cannot_be_exported_is_one_line_and_no_file(name, suffix, capfd):
    function, reason = CANNOT.get(name) or (UNEQUAL[name], "differs")
    model = nn.Sequential(nn.Linear(3, 3), Function(function))
    with refused(rf"^a\{suffix} .*{reason}"):
        kit.export(model, f"a{suffix}", example=rows(4, 3))
    assert not os.listdir() and capfd.readouterr() == ("", "")


def test_what_is_no_example_is_one_line(caplog):
    export = partial(kit.export, nn.Linear(3, 1))
    for path, example, words in (
        ("a.pt", rows(4, 3), r"must be an \.onnx or \.pt2 file, got a\.pt$"),
        ("a.pt2", np.ones((4, 3)), "example must be .*ndarray"),
        ("a.pt2", torch.ones(0, 3), "rows of example must be at least 1"),
        ("a.pt2", rows(4, 2), r"a\.pt2 .* cannot be|must have"),
    ):
        with refused(words):
            export(path, example=example)
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


# ----------------------------------------------------------------- kit export

TARGETS = {
    "regression": lambda rooms, kind: 1000 * rooms + (kind == "new"),
    "classification": lambda rooms, kind: "dear" if rooms > 3 else "cheap",
}


@pytest.mark.parametrize("task", TARGETS)
def test_an_exported_table_takes_raw_numbers_and_codes(task):
    kinds = ["new", "old", None]
    table = pandas.DataFrame({"rooms": rows(60, 1)[:, 0] + 3, "kind": kinds * 20})
    table["y"] = [TARGETS[task](*row) for row in table.values]
    table.loc[5, "rooms"] = None
    table.to_csv("a.csv", index=False)

    call("fit --data a.csv --target y --epochs 3 --quiet --amp bf16 --out run")
    assert "out/a.onnx" in call("export run out/a.onnx")
    session = onnxruntime.InferenceSession("out/a.onnx")
    texts = session.get_modelmeta().custom_metadata_map
    metadata = {key: json.loads(text) for key, text in texts.items()}
    assert metadata["columns"] == ["rooms", "kind"]
    assert metadata["categories"] == {"kind": ["new", "old"]}
    classes = ["cheap", "dear"] if task == "classification" else []
    assert metadata["classes"] == classes and metadata["target"] == "y"

    codes = table["kind"].map({"new": 0, "old": 1}).fillna(-1)
    X = np.column_stack([table["rooms"], codes]).astype(np.float32)
    got = torch.from_numpy(session.run(None, {"input": X})[0])
    printed = pandas.read_csv(io.StringIO(call("predict run --data a.csv")))
    names = [f"p_{name}" for name in classes] or ["prediction"]
    expected = torch.tensor(printed[names].values, dtype=torch.float32)
    got = got.softmax(1) if classes else got
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
