"""Section 11: the command line. Its processes are real; its mistakes are made here."""

import csv
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from sklearn import datasets
from sklearn.linear_model import LinearRegression
from sklearn.metrics import accuracy_score, mean_absolute_error, r2_score
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

import kit

ROOT = Path(__file__).parents[1]
FILES = {"last.pt", "best.pt", "history.csv", "config.json"}

# The tutorial's figures: its section 6 with nn.Linear, and 3.3 with two parameters.
LINEAR = {
    0: (0.5551779866218567, 0.5739762187004089),
    100: (0.006215683650225401, 0.014086711220443249),
    199: (0.010256484150886536, 0.0003308236482553184),
    200: (0.0012645035749301314, 0.013801801018416882),
}
TWO_PARAMETERS = {
    0: (0.31288138031959534, 0.48106518387794495),
    10: (0.1976713240146637, 0.3463551998138428),
    20: (0.08908725529909134, 0.21729660034179688),
    30: (0.053148526698350906, 0.14464017748832703),
    50: (0.04167863354086876, 0.09919948130846024),
    90: (0.02788739837706089, 0.06473556160926819),
}


def call(*arguments):
    """The command line in this process; code that must be 0."""
    result = CliRunner().invoke(kit.main, [str(a) for a in arguments])
    assert result.exit_code == 0 and not result.stderr, (result.output, result.stderr)
    return result.stdout


def start(*arguments, path=ROOT):
    """The command and the options of a Python process that finds kit.py in path."""
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    env |= {"OMP_NUM_THREADS": "1"} | ({"PYTHONPATH": str(path)} if path else {})
    command = [sys.executable, "-W", "error", *map(str, arguments)]
    return command, {"cwd": os.getcwd(), "env": env}


def finish(*arguments, path=ROOT, folder=".", code=0):
    """What a process prints and its errors; the code that it exits with is checked."""
    command, options = start(*arguments, path=path)
    options |= {"cwd": folder, "timeout": 120, "capture_output": True, "text": True}
    process = subprocess.run(command, check=False, **options)
    assert process.returncode == code, process.stderr
    return process.stdout, process.stderr


def quick(*arguments):
    """A short fit that draws nothing and prints nothing."""
    assert call("fit", "--quiet", "--no-plot", "--epochs", 2, *arguments) == ""


def read_csv(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_csv(path, header, rows):
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])


def assert_golden(path, figures):
    history = read_csv(path)
    for epoch, (train, val) in figures.items():
        row = history[epoch]
        assert int(row["epoch"]) == epoch == int(row["step"]) - 1
        assert float(row["train_loss"]) == pytest.approx(train, abs=1e-6)
        assert float(row["val_loss"]) == pytest.approx(val, abs=1e-6)
    return history


def scores(printed):
    """The last table of what was printed, as numbers by name."""
    lines = printed.split("\n\n")
    rows = next(t for t in reversed(lines) if "loss  " in t).splitlines()[2:]
    return {name: float(value) for name, value in map(str.split, rows)}


# ------------------------------------------------------------------ the main job


def test_the_line_in_a_folder_that_holds_only_a_copy_of_kit(tmp_path):
    shutil.copy(ROOT / "kit.py", tmp_path)
    printed, errors = finish("-m", "kit", "fit", "--epochs", 200, path=None)
    assert errors == ""
    assert printed.replace("\n", "").isprintable()  # piped: no bar, no escapes
    assert ["weight", "0.6968", "0.7000"] in map(str.split, printed.splitlines())
    assert ["bias", "0.3025", "0.3000"] in map(str.split, printed.splitlines())
    assert "epoch 20/200  train_loss 0.3363  val_loss 0.318" in printed.splitlines()
    folder = tmp_path / "runs" / "001"
    assert {path.name for path in folder.iterdir()} == FILES | {"curves.png"}
    rows = {k: v for k, v in LINEAR.items() if k < 200}
    assert len(assert_golden(folder / "history.csv", rows)) == 200
    config = json.loads((folder / "config.json").read_text())
    assert (config["epochs"], config["seed"], config["lr"]) == (200, 42, 0.01)
    assert len(kit.read_checkpoint(folder / "last.pt")["history"]) == 200

    quick("--resume", "--epochs", 201)  # of the last run, as --out is not given
    assert len(assert_golden(folder / "history.csv", LINEAR)) == 201
    assert os.listdir("runs") == ["001"]


def test_a_model_of_your_own_starts_from_the_seed_and_meets_the_tutorial():
    Path("own_line.py").write_text(
        "import torch\n"
        "class Line(torch.nn.Module):\n"
        "    def __init__(self, inputs, outputs):\n"
        "        super().__init__()\n"
        "        self.weight = torch.nn.Parameter(torch.randn(inputs))\n"
        "        self.bias = torch.nn.Parameter(torch.randn(outputs))\n"
        "    def forward(self, x):\n"
        "        return self.weight * x + self.bias\n"
    )
    quick("--model", "own_line:Line", "--epochs", 100, "--out", "own")
    assert_golden("own/history.csv", TWO_PARAMETERS)
    model = torch.load("own/last.pt", weights_only=True)["model"]
    assert model["weight"].item() == pytest.approx(0.5784, abs=5e-5)
    assert model["bias"].item() == pytest.approx(0.3513, abs=5e-5)
    assert os.getcwd() not in sys.path
    assert scores(call("evaluate", "own/best.pt")).keys() >= {"loss", "mae", "r2"}


def test_a_model_of_your_own_may_change_its_inputs_in_place():
    Path("shifting.py").write_text(
        "import torch\n"
        "class Apart(torch.nn.Linear):\n"
        "    def forward(self, x):\n"
        "        return super().forward(x - 1)\n"
        "class InPlace(torch.nn.Linear):\n"
        "    def forward(self, x):\n"
        "        return super().forward(x.sub_(1))\n"
    )
    histories = []
    for name in ("Apart", "InPlace"):
        quick("--model", f"shifting:{name}", "--epochs", 5, "--out", name)
        saved = kit.read_checkpoint(Path(name, "last.pt"))
        histories.append([row["train_loss"] for row in saved["history"]])
    assert histories[0] == histories[1]


def test_a_regression_is_no_worse_than_linear_regression(tmp_path):
    bunch = datasets.load_diabetes(scaled=False)
    names = [*bunch.feature_names, "progression"]
    write_csv("diabetes.csv", names, np.column_stack([bunch.data, bunch.target]))
    arguments = ("--data", "diabetes.csv", "--target", "progression", "--no-plot")
    printed, errors = finish("-m", "kit", "fit", *arguments)
    assert errors == ""

    table = kit.read_table("diabetes.csv", target="progression")
    parts = kit.split((table.X, table.y), ratios=(0.7, 0.15, 0.15), seed=42)
    (X, y), _, (test_X, test_y) = [(x.double().numpy(), t.numpy()) for x, t in parts]
    oracle = LinearRegression().fit(X, y).score(test_X, test_y)
    assert scores(printed)["r2"] >= oracle - 5e-5  # four digits are printed

    alone = tmp_path / "alone"  # the checkpoint needs neither its run nor its data
    alone.mkdir()
    shutil.move("runs/001/best.pt", alone)
    (tmp_path / "diabetes.csv").unlink()
    write_csv(alone / "test.csv", names, np.column_stack([test_X, test_y]))
    write_csv(
        alone / "new.csv", ["note", *names[-2::-1]], [["-", *r[::-1]] for r in test_X]
    )
    arguments = ("evaluate", "best.pt", "--data", "test.csv")
    evaluated, errors = finish("-m", "kit", *arguments, folder=alone)
    assert errors == "" and scores(evaluated) == scores(printed)
    arguments = ("predict", "best.pt", "--data", "new.csv")
    predicted, errors = finish("-m", "kit", *arguments, folder=alone)
    header, *values = predicted.splitlines()
    assert errors == "" and header == "prediction" and len(values) == len(test_y)
    values = np.array(values, dtype=float)
    assert r2_score(test_y[:, 0], values) == pytest.approx(
        scores(printed)["r2"], abs=1e-4
    )
    mae = mean_absolute_error(test_y[:, 0], values)
    assert mae == pytest.approx(scores(printed)["mae"], rel=1e-3)


@pytest.mark.parametrize("load", [datasets.load_iris, datasets.load_wine])
def test_a_classification_of_names_is_nine_tenths_right(load):
    bunch = load()
    names = [*map(str, bunch.feature_names), "kind"]
    kinds = [str(bunch.target_names[i]) for i in bunch.target]
    rows = [[*row, kind] for row, kind in zip(bunch.data.tolist(), kinds)]
    write_csv("t.csv", names, rows)
    options = ("--epochs", 40, "--lr", 0.01, "--no-plot")
    printed = call("fit", "--data", "t.csv", "--target", "kind", *options)
    assert scores(printed)["accuracy"] >= 0.9
    assert scores(call("evaluate", "runs/001/best.pt")) == scores(printed)

    table = kit.read_table("t.csv", target="kind")
    ratios, data = (0.7, 0.15, 0.15), (table.X, table.y)
    *_, (X, y) = kit.split(data, ratios=ratios, seed=42, stratify=table.y)
    write_csv("new.csv", names[:-1], X.tolist())
    call("predict", "runs/001/best.pt", "--data", "new.csv", "--output", "p.csv")
    rows = read_csv("p.csv")
    truth = [table.classes[i] for i in y]
    accuracy = accuracy_score(truth, [row["prediction"] for row in rows])
    assert accuracy == pytest.approx(scores(printed)["accuracy"], abs=1e-4)
    shares = np.array([[float(row[f"p_{c}"]) for c in table.classes] for row in rows])
    loss = -np.log(shares[range(len(y)), y]).mean()
    assert loss == pytest.approx(scores(printed)["loss"], rel=1e-3)
    for row, share in zip(rows, shares):
        assert row["prediction"] == table.classes[share.argmax()]


# --------------------------------------------------------------------- run folders


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder with small tables, their runs, and files that are no checkpoints."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("prepared"))
        prepare()
        return Path.cwd()


def prepare():
    X = np.random.default_rng(0).normal(size=(40, 2)).round(4)
    y = (2 * X[:, 0] - X[:, 1]).round(4)
    kinds = np.where(y > 0, "pos", "neg")
    three = np.where(abs(y) < 0.7, "mid", kinds)
    for name, target in (("reg", y), ("cls", kinds), ("three", three)):
        rows = [[*row, value] for row, value in zip(X.tolist(), target.tolist())]
        write_csv(f"{name}.csv", ["a", "b", "y"], rows)
    write_csv("one.csv", ["a", "b", "y"], [[1, 2, "pos"]])
    write_csv("cow.csv", ["a", "b", "y"], [[1, 2, "pos"], [3, 4, "cow"]])
    write_csv("no_b.csv", ["a", "y"], [[1, 2]])
    write_csv("word.csv", ["a", "b", "y"], [[1, 2, 3], [1, "six", 3]])
    write_csv("text.csv", ["a", "city", "zip", "y"], [[1, "Rome", "x", 3]])
    write_csv("header.csv", ["a", "b", "y"], [])
    write_csv("few.csv", ["a", "b", "y"], [[1, 2, 3]] * 6)
    Path("latin.csv").write_bytes("a,y\n1,2\né,3\n".encode("latin-1"))
    Path("folder.csv").mkdir()
    np.savez("reg.npz", X=X, y=y)
    np.savez("many.npz", X=X, y=np.column_stack([y, -y, 2 * y]))
    np.savez("images.npz", X=np.ones((40, 2, 3, 3)), y=kinds)
    np.savez("pickled.npz", X=X, y=kinds.astype(object))
    Path("text.npz").write_text("a,b,y\n")
    for name in ("reg", "cls", "three"):
        quick("--data", f"{name}.csv", "--target", "y", "--out", name)
    quick("--data", "reg.npz", "--target", "y", "--out", "npz")
    quick("--data", "images.npz", "--target", "y", "--out", "images")
    quick("--out", "line")

    checkpoint = Path("reg/best.pt").read_bytes()
    middle = len(checkpoint) // 2
    Path("half.pt").write_bytes(checkpoint[:middle])
    flipped = bytes([checkpoint[middle] ^ 1])
    Path("flipped.pt").write_bytes(
        checkpoint[:middle] + flipped + checkpoint[middle + 1 :]
    )
    Path("empty.pt").write_bytes(b"")
    Path("text.pt").write_text("weights")
    with zipfile.ZipFile("zip.pt", "w") as archive:
        archive.writestr("text", "weights")
    model = nn.Linear(1, 1)
    torch.save(model, "module.pt")
    torch.save(model.state_dict(), "weights.pt")
    torch.save({"format": 1}, "format.pt")
    torch.save({"format": 99}, "newer.pt")
    torch.save({"format": "a"}, "odd.pt")
    state = kit.make_state(model, torch.optim.SGD(model.parameters(), lr=0.1))
    Path("library").mkdir()
    shutil.copy(kit.save_checkpoint(state, "library.pt"), "library/last.pt")
    Path("broken").mkdir()
    shutil.copy("half.pt", "broken/last.pt")
    Path("in_the_way").write_text("a file")
    Path("models_of_mine.py").write_text(MODELS)
    Path("syntax.py").write_text("def (:\n")


MODELS = """
from math import prod
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook
def good(inputs, outputs): return nn.Linear(inputs, outputs)
def picture(shape, outputs):
    return nn.Sequential(nn.Flatten(), nn.Linear(prod(shape), outputs))
def lazy(inputs, outputs): return nn.LazyLinear(outputs)
def normed(inputs, outputs):
    inner = nn.Linear(inputs, 16), nn.BatchNorm1d(16), nn.Sigmoid()
    return nn.Sequential(*inner, nn.Linear(16, outputs))
def one(inputs): return nn.Linear(inputs, 1)
def none(inputs, outputs): return None
def fails(inputs, outputs): return {}["width"]
def wide(inputs, outputs): return nn.Linear(inputs + 1, outputs)
def few(inputs, outputs): return nn.Linear(inputs, outputs - 1)
def flat(inputs, outputs): return nn.Sequential(good(inputs, outputs), nn.Flatten(0))
number = 3
"""


@pytest.fixture
def files(prepared, tmp_path):
    """What is prepared, copied to the working folder."""
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    yield tmp_path
    sys.modules.pop("models_of_mine", None)


TABLE = ("--data", "reg.csv", "--target", "y")
CLASSES = ("--data", "cls.csv", "--target", "y")


def test_runs_take_the_next_free_folder():
    for i in ("001", "002"):
        quick()
        assert {path.name for path in Path("runs", i).iterdir()} == FILES
    for name in ("007", "notes", "9z"):
        Path("runs", name).mkdir()
    quick()
    assert {path.name for path in Path("runs/008").iterdir()} == FILES


def test_a_used_folder_is_left_alone_unless_overwritten(files):
    before = {path: path.read_bytes() for path in Path("line").iterdir()}
    result = CliRunner().invoke(kit.main, ["fit", "--out", "line"])
    assert result.exit_code == 2 and result.stdout == ""
    assert "--resume" in result.stderr and "--overwrite" in result.stderr
    assert {path: path.read_bytes() for path in Path("line").iterdir()} == before
    Path("line/notes.txt").write_text("mine")
    quick("--out", "line", "--overwrite", "--epochs", 3, "--lr", 0.02)
    quick("--out", "anew", "--epochs", 3, "--lr", 0.02)
    assert len(read_csv("line/history.csv")) == 3
    models = [kit.read_checkpoint(f"{d}/last.pt")["model"] for d in ("line", "anew")]
    assert all(torch.equal(value, models[1][key]) for key, value in models[0].items())
    assert Path("line/notes.txt").read_text() == "mine"


def test_a_resumed_run_equals_a_straight_one(files, same):
    options = ("--batch-size", 8, "--scheduler", "step:step_size=2", "--clip", 1)
    quick(*CLASSES, *options, "--out", "straight", "--epochs", 5)
    quick(*CLASSES, *options, "--out", "resumed", "--epochs", 2)
    quick("--out", "resumed", "--resume", "--epochs", 5)
    assert same("straight/last.pt", "resumed/last.pt")
    straight, resumed = (
        [{**row, "seconds": ""} for row in read_csv(f"{name}/history.csv")]
        for name in ("straight", "resumed")
    )
    assert straight == resumed and len(resumed) == 5


def test_resuming_a_finished_run_changes_no_weights(files):
    before = Path("reg/last.pt").read_bytes(), Path("reg/best.pt").read_bytes()
    for epochs in (2, 1):
        options = ("--resume", "--epochs", epochs, "--no-plot")
        printed = call("fit", "--out", "reg", *options)
        assert len(read_csv("reg/history.csv")) == 2 and "r2" in scores(printed)
    assert (
        Path("reg/last.pt").read_bytes(),
        Path("reg/best.pt").read_bytes(),
    ) == before


def test_resuming_what_has_not_begun_says_so_and_starts_it():
    arguments = ["fit", "--out", "new", "--resume", "--epochs", "2", "--no-plot"]
    result = CliRunner().invoke(kit.main, arguments)
    assert result.exit_code == 0 and len(read_csv("new/history.csv")) == 2
    assert result.stderr.startswith("new ") and result.stderr.count("\n") == 1


def test_resuming_the_last_run_names_it_where_that_cannot_be(files):
    shutil.copytree("library", "runs/003")
    result = CliRunner().invoke(kit.main, ["fit", "--resume"])
    assert result.exit_code == 1 and "runs/003/last.pt" in result.stderr


def test_best_is_the_epoch_of_the_lowest_validation_loss(files):
    printed = call(
        "fit", *TABLE, "--epochs", 60, "--lr", 0.1, "--out", "o", "--no-plot"
    )
    losses = [float(row["val_loss"]) for row in read_csv("o/history.csv")]
    best = kit.read_checkpoint("o/best.pt")["history"]
    assert len(best) - 1 == int(np.argmin(losses)) < len(losses) - 1
    assert f"epoch {len(best) - 1}" in printed


def test_patience_ends_a_run_early(files):
    quick(*TABLE, "--epochs", 500, "--lr", 0.1, "--patience", 3, "--out", "early")
    losses = [float(row["val_loss"]) for row in read_csv("early/history.csv")]
    assert len(losses) < 500 and int(np.argmin(losses)) == len(losses) - 4


def test_the_plot_is_drawn_unless_it_is_not_wanted(files):
    call("fit", "--epochs", 2, "--plot", "--out", "plot", "--quiet")
    assert Path("plot/curves.png").read_bytes()[:4] == b"\x89PNG"
    assert not Path("line/curves.png").exists()


# ------------------------------------------------------- options and other commands


@pytest.mark.parametrize(
    "options",
    [
        *(("--optimizer", name) for name in kit.OPTIMIZERS),
        *(("--loss", name) for name in ("l1", "mse", "huber")),
        *(("--scheduler", name) for name in ("step", "cosine", "plateau", "onecycle")),
        ("--scheduler", "step:step_size=1,gamma=0.5"),
        ("--model", "models_of_mine:lazy"),
        ("--accumulate", 4, "--clip", 1, "--weight-decay", 0.1),
        ("--amp", "bf16"),
        ("--hidden", "8"),
        ("--hidden", "8,4,2", "--batch-size", 5, "--save-every", 2),
        ("--model", "linear", "--ratios", "0.8,0.2"),
        ("--ratios", "1", "--min-delta", 0.1, "--patience", 1),
        ("--workers", 1, "--device", "cpu", "--seed", 0),
        ("--task", "regression"),
    ],
    ids=str,
)
def test_every_option_trains_a_table(files, options):
    printed = call("fit", *TABLE, "--no-plot", "--epochs", 3, *options)
    assert scores(printed).keys() == {"loss", "mae", "mse", "rmse", "r2"}
    checkpoint = Path("runs/001/best.pt")
    assert scores(call("evaluate", checkpoint)).keys() == scores(printed).keys()
    assert call("predict", checkpoint, "--data", "reg.csv").count("\n") == 41


@pytest.mark.parametrize("name", kit.OPTIMIZERS)
def test_the_optimizer_is_fused_where_torch_has_one(files, name):
    quick(*TABLE, "--optimizer", name, "--out", name)
    (group,) = kit.read_checkpoint(f"{name}/last.pt")["optimizer"]["param_groups"]
    assert group.get("fused", False) == (name != "rmsprop")


@pytest.mark.parametrize("amp", [(), ("--amp", "bf16")])
def test_the_whole_model_is_compiled(files, monkeypatch, amp):
    calls = []

    def backend(graph, example):
        calls.append([str(node.target) for node in graph.graph.nodes])
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    quick(*TABLE, *amp, "--hidden", "8,4", "--compile")
    assert calls and {str(names).count("function linear") for names in calls} == {3}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of inductor's own imports
def test_a_compiled_run_resumes_amid_an_epoch_and_is_used_as_a_plain_one(files, same):
    options = (*TABLE, "--model", "models_of_mine:normed", "--batch-size", 16)
    options += ("--accumulate", 4, "--amp", "bf16", "--epochs", 3)  # of 16 and 12 rows
    quick(*options, "--out", "plain")
    quick(*options, "--compile", "--out", "straight")
    torch.compiler.reset()  # or it would know that there are two sizes

    def interrupt(*_):
        if next(steps) == 3:  # the next batch is a short one
            signal.raise_signal(signal.SIGINT)

    steps, arguments = itertools.count(1), [*options, "--compile", "--out", "resumed"]
    hook = register_optimizer_step_post_hook(interrupt)
    result = CliRunner().invoke(kit.main, ["fit", "--quiet", *map(str, arguments)])
    hook.remove()
    assert result.exit_code == 130
    assert kit.read_checkpoint("resumed/last.pt")["step"] == 3
    torch.compiler.reset()
    quick("--resume", "--epochs", 3, "--out", "resumed")
    assert same("straight/last.pt", "resumed/last.pt")

    plain, compiled = (
        kit.read_checkpoint(f"{name}/last.pt") for name in ("plain", "straight")
    )
    assert compiled["config"]["compile"] and not plain["config"]["compile"]
    assert plain["model"].keys() == compiled["model"].keys()
    for key, value in plain["model"].items():
        assert torch.allclose(value, compiled["model"][key], atol=0.02)
    evaluated, expected = (
        scores(call("evaluate", f"{name}/best.pt")) for name in ("straight", "plain")
    )
    assert evaluated == pytest.approx(expected, rel=0.02)
    call("export", "straight/best.pt", "compiled.pt2")  # compares their numbers
    assert call("predict", "straight/best.pt", "--data", "reg.csv").count("\n") == 41


@pytest.mark.parametrize("loss", ["cross_entropy", "bce"])
def test_two_classes_train_with_either_loss(files, loss):
    options = ("--loss", loss, "--epochs", 60, "--lr", 0.02, "--out", "two")
    printed = call("fit", *CLASSES, *options, "--no-plot")
    assert scores(printed)["accuracy"] >= 0.8
    call("predict", "two/best.pt", "--data", "cls.csv", "--output", "p.csv")
    rows, truth = read_csv("p.csv"), [row["y"] for row in read_csv("cls.csv")]
    assert accuracy_score(truth, [row["prediction"] for row in rows]) >= 0.9
    for row in rows:
        assert float(row["p_neg"]) + float(row["p_pos"]) == pytest.approx(1)
        assert row["prediction"] == ("pos" if float(row["p_pos"]) > 0.5 else "neg")


def test_numbers_are_classes_where_the_task_says_so(files):
    rows = read_csv("cls.csv")
    write_csv(
        "n.csv", ["a", "b", "y"], [[r["a"], r["b"], int(r["y"] == "pos")] for r in rows]
    )
    options = ("--data", "n.csv", "--target", "y", "--task", "classification")
    quick(*options, "--out", "numbers")
    predicted = call("predict", "numbers/best.pt", "--data", "n.csv").splitlines()
    assert predicted[0] == "prediction,p_0,p_1" and predicted[1][0] in "01"


def test_every_target_of_an_npz_is_predicted(files):
    quick("--data", "many.npz", "--target", "y", "--out", "many")
    printed = call("predict", "many/best.pt", "--data", "many.npz").splitlines()
    assert len(printed) == 41
    assert all(len(line.split(",")) == 3 for line in printed)


def test_images_of_an_npz_train_and_are_predicted(files):
    assert scores(call("evaluate", "images/best.pt"))["accuracy"] >= 0
    printed = call("predict", "images/best.pt", "--data", "images.npz").splitlines()
    assert len(printed) == 41 and printed[0] == "prediction,p_neg,p_pos"


def test_a_model_of_your_own_gets_the_shape_of_images(files):
    options = ("--data", "images.npz", "--target", "y", "--out", "own")
    quick(*options, "--model", "models_of_mine:picture")
    model = kit.read_checkpoint("own/best.pt")["model"]
    assert (2, 18) in [tuple(tensor.shape) for tensor in model.values()]
    assert "accuracy" in scores(call("evaluate", "own/best.pt"))


def test_the_line_is_predicted_from_a_column_x(files):
    write_csv("x.csv", ["x"], [[0.0], [1.0]])
    model = kit.read_checkpoint("line/best.pt")["model"]
    weight, bias = model["weight"].item(), model["bias"].item()
    printed = call("predict", "line/best.pt", "--data", "x.csv").splitlines()[1:]
    assert [float(p) for p in printed] == pytest.approx([bias, weight + bias])


def test_predictions_go_to_the_file_or_are_printed(files):
    printed = call("predict", "reg/best.pt", "--data", "reg.csv")
    arguments = ("--data", "reg.csv", "--output", "new/folder/p.csv")
    assert call("predict", "reg/best.pt", *arguments) == ""
    written = Path("new/folder/p.csv").read_text(encoding="utf-8")
    assert written.splitlines() == printed.splitlines()


def test_evaluate_needs_no_third_part(files):
    quick(*TABLE, "--ratios", "0.8,0.2", "--out", "two")
    printed = call("evaluate", "two/best.pt")
    assert "val" in printed.split() and "8 rows" in printed
    printed = call("evaluate", "two/best.pt", "--data", "reg.csv")
    assert "reg.csv" in printed and "40 rows" in printed


def test_summary_shows_the_parameters_the_options_and_the_last_epoch(files):
    printed = call("summary", "cls/best.pt")
    model = kit.read_checkpoint("cls/best.pt")["model"]
    for key, tensor in model.items():
        assert f"{key} " in printed and str(tuple(tensor.shape)) in printed
    for word in ("adam", "cls.csv", "('neg', 'pos')", "val_accuracy"):
        assert word in printed


def test_quiet_prints_nothing(files):
    assert call("fit", "--epochs", 1, "--quiet") == ""


def test_every_option_of_fit_is_explained_in_its_help():
    printed = call("fit", "--help")
    for option in kit.main.commands["fit"].params:
        assert option.opts[0] in printed
        assert option.help, option.opts
        if (
            isinstance(option.default, int | str)
            and option.default
            and option.multiple is False
        ):
            assert str(option.default) in printed, option.opts
    assert call("fit", "-h") == printed


@pytest.mark.parametrize("start", [("-m", "kit"), (ROOT / "kit.py",)], ids=len)
def test_help_lists_the_commands_however_kit_is_started(start):
    printed, errors = finish(*start, "--help")
    assert errors == "" and "Usage: python -m kit [OPTIONS] COMMAND" in printed
    for name, command in kit.main.commands.items():
        assert f"\n  {name} " in printed and command.help


def on_a_terminal(*arguments):
    """What a person sees of a command that succeeds."""
    ours, theirs = os.openpty()
    command, options = start(*arguments)
    process = subprocess.Popen(command, stdout=theirs, stderr=theirs, **options)
    os.close(theirs)
    shown = b""
    try:
        while chunk := os.read(ours, 65536):
            shown += chunk
    except OSError:
        pass  # Linux's way to say that the other side is closed
    os.close(ours)
    assert process.wait(timeout=60) == 0
    return shown.decode().replace("\r\n", "\n")


@pytest.mark.skipif(os.name != "posix", reason="opens a pseudo-terminal")
def test_a_terminal_gets_a_bar_and_the_same_tables():
    shown = on_a_terminal("-m", "kit", "fit", "--epochs", 20, "--no-plot")
    assert "100%" in shown and "epoch 20/20" in shown and "\r" in shown
    assert "weight" in shown and "Traceback" not in shown
    assert "\nepoch 2/20" not in shown.replace("\r", "")


@pytest.mark.skipif(os.name != "posix", reason="opens a pseudo-terminal")
def test_a_terminal_without_matplotlib_gets_a_chart_of_the_losses():
    code = "import sys; sys.modules['matplotlib'] = None; import kit; kit.main()"
    chart = r"\n%s_loss +0\.5\d+ +(█[▁▂▃▄▅▆▇█]+[▁▂])  +0\.0\d+\n"
    shown = on_a_terminal("-c", code, "fit", "--epochs", 110)
    for part in ("train", "val"):
        bars = re.search(chart % part, shown)[1]
        assert len(bars) == 50
    assert "▁" not in on_a_terminal("-c", code, "fit", "--epochs", 3, "--no-plot")


# -------------------------------------------------------------------------- config

PROJECT = """# the tutorial's section 11
samples: 1000
noise: 0.02
ratios: [0.7, 0.15, 0.15]
shuffle: true
batch_size: 32
optimizer: adam
loss: mse
lr: 0.01
epochs: 3
"""


def test_a_config_file_is_typed_options_and_typed_options_override_it(same):
    Path("a.yaml").write_text(PROJECT)
    quick("--config", "a.yaml", "--epochs", 2, "--out", "file")
    options = ["--samples", 1000, "--noise", 0.02, "--ratios", "0.7,0.15,0.15"]
    options += ["--shuffle", "--batch-size", 32, "--optimizer", "adam", "--loss", "mse"]
    quick(*options, "--lr", 0.01, "--out", "typed")
    assert same("file/last.pt", "typed/last.pt")
    config = json.loads(Path("file/config.json").read_text())
    assert config["epochs"] == 2 and config["noise"] == 0.02


@pytest.mark.parametrize("options", [(), ("--data", "reg.csv", "--target", "y")])
def test_the_config_of_a_run_reproduces_it(files, options, same):
    quick(*options, "--scheduler", "step:gamma=1e-1", "--clip", 1, "--out", "one")
    config = ("--config", "one/config.json")
    assert call("fit", *config, "--quiet", "--no-plot", "--out", "two") == ""
    assert same("one/last.pt", "two/last.pt") and same("one/best.pt", "two/best.pt")
    assert Path("one/config.json").read_text() == Path("two/config.json").read_text()


def test_the_line_has_as_many_noisy_samples_as_wanted_in_the_order_wanted():
    quick("--samples", 1000, "--noise", 0.02, "--shuffle", "--seed", 7, "--out", "a")
    content = kit.read_checkpoint("a/last.pt")
    X, y = kit.make_data(1000, noise=0.02, seed=7)
    train, _ = kit.split((X, y), seed=7)
    torch.manual_seed(7)
    model = nn.Linear(1, 1)
    loss = nn.functional.l1_loss(model(train[0]), train[1]).item()
    assert content["history"][0]["train_loss"] == pytest.approx(loss, abs=1e-6)


@pytest.mark.parametrize(
    "text, code, said",
    [
        ("epoch: 3", 1, "Error: a.yaml has an unknown key, 'epoch': is it 'epochs'?"),
        (
            "config: a",
            1,
            "Error: a.yaml has an unknown key, 'config': is it 'compile'?",
        ),
        ("1: 2", 1, "Error: a.yaml has an unknown key, 1: is it"),
        ("epochs: many", 2, "Error: Invalid value for '--epochs': 'many' is not"),
        ("epochs: 2.5", 2, "Error: Invalid value for '--epochs': '2.5' is not"),
        ("quiet: maybe", 2, "Error: Invalid value for '--quiet': 'maybe' is not"),
        ("hidden: [8, x]", 2, "Error: Invalid value for '--hidden': must be numbers"),
        ("lr: {a: 1}", 1, "Error: a.yaml: lr must be a value or a list, got {'a': 1}"),
        ("- 1", 1, "Error: a.yaml must hold KEY: VALUE, got [1]"),
        ("a: [", 1, "Error: a.yaml cannot be read: while parsing a flow node"),
        ("\xff", 1, "Error: a.yaml cannot be read: "),
    ],
)
def test_a_config_that_is_wrong_is_refused_in_one_line(text, code, said):
    Path("a.yaml").write_bytes(text.encode("latin-1"))
    result = CliRunner().invoke(kit.main, ["fit", "--config", "a.yaml"])
    assert result.exit_code == code
    assert result.stderr.strip().splitlines()[-1].startswith(said)
    assert not Path("runs").exists()


def test_a_yaml_without_its_package_is_told_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "yaml", None)
    Path("a.yaml").write_text("epochs: 3")
    result = CliRunner().invoke(kit.main, ["fit", "--config", "a.yaml"])
    said = "Error: a.yaml needs PyYAML: pip install pyyaml\n"
    assert (result.exit_code, result.stderr) == (1, said)


# ------------------------------------------------------------------------ mistakes


class Mistake(NamedTuple):
    what: str
    arguments: str
    code: int
    words: tuple[str, ...]


FIT = "fit --data reg.csv --target y --epochs 2"
MISTAKES = [
    Mistake(*mistake[:3], mistake[3:])
    for mistake in (
        # the data
        ("a missing file", "fit --data no.csv --target y", 1, "no.csv"),
        ("a folder", "fit --data folder.csv --target y", 1, "folder.csv"),
        ("another kind", "fit --data half.pt --target y", 1, ".csv or .npz", "half.pt"),
        ("no --target", "fit --data reg.csv", 2, "--target"),
        ("no --data", "fit --target y --epochs 1", 2, "--data"),
        ("an empty --data", "fit --data= --target y --epochs 1", 2, "--data"),
        ("an unknown column", "fit --data reg.csv --target z", 1, "'z'", "a, b, y"),
        ("a word", "fit --data word.csv --target y", 1, "line 3, column b", "'six'"),
        ("text columns", "fit --data text.csv --target y", 1, "city, zip"),
        ("a header alone", "fit --data header.csv --target y", 1, "no rows"),
        ("six rows", "fit --data few.csv --target y", 1, "6 rows are too few"),
        ("not UTF-8", "fit --data latin.csv --target y", 1, "latin.csv", "utf-8"),
        ("one class", "fit --data one.csv --target y", 1, "only one class", "'pos'"),
        (
            "text as numbers",
            "fit --data cls.csv --target y --task regression",
            1,
            "line 2",
        ),
        ("text as .npz", "fit --data text.npz --target y", 1, "text.npz"),
        ("pickled .npz", "fit --data pickled.npz --target y", 1, "pickled.npz"),
        ("no such array", "fit --data reg.npz --target z", 1, "'z'", "X, y"),
        # options
        ("ratios of sum 1.1", f"{FIT} --ratios 0.5,0.6", 1, "ratios", "sum to 1"),
        ("four ratios", f"{FIT} --ratios 0.4,0.3,0.2,0.1", 2, "--ratios"),
        ("a negative ratio", f"{FIT} --ratios 0.5,-0.5,1", None, "ratios"),
        ("a ratio of nan", f"{FIT} --ratios nan,1", None, "ratios"),
        ("no ratios", f"{FIT} --ratios=", None, "ratios"),
        ("ratios of letters", f"{FIT} --ratios a,b", 2, "--ratios", "a"),
        ("hidden of letters", f"{FIT} --hidden 64,b", 2, "--hidden", "b"),
        ("hidden 0", f"{FIT} --hidden 0", 2, "--hidden", "0"),
        ("hidden -3", f"{FIT} --hidden 64,-3", 2, "--hidden", "-3"),
        ("epochs 0", "fit --epochs 0", 2, "--epochs", "0"),
        ("epochs 1.5", "fit --epochs 1.5", 2, "--epochs", "1.5"),
        ("batch size 0", "fit --batch-size 0", 2, "--batch-size", "0"),
        ("lr -1", "fit --lr -1", 2, "--lr", "-1"),
        ("lr 0", "fit --lr 0", 2, "--lr", "0"),
        ("lr of letters", "fit --lr fast", 2, "--lr", "fast"),
        ("lr nan", "fit --lr nan", None, "nan"),
        ("min-delta nan", "fit --min-delta nan --epochs 2", None, "nan"),
        ("clip nan", "fit --clip nan --epochs 2", None, "nan"),
        ("clip 0", "fit --clip 0", 2, "--clip", "0"),
        ("accumulate 0", "fit --accumulate 0", 2, "--accumulate", "0"),
        ("weight decay -1", "fit --weight-decay -1", 2, "--weight-decay"),
        ("patience -1", "fit --patience -1", 2, "--patience", "-1"),
        ("workers -1", "fit --workers -1", 2, "--workers", "-1"),
        ("seed -1", "fit --seed -1", 2, "--seed", "-1"),
        ("a seed of 23 digits", f"fit --seed {10**22}", None, "seed"),
        ("another optimizer", "fit --optimizer lion", 2, "'lion'", "adamw"),
        ("another loss", "fit --loss hinge", 2, "'hinge'", "huber"),
        ("another precision", "fit --amp fp8", 2, "'fp8'", "bf16"),
        ("another option", "fit --wat", 2, "--wat"),
        ("another argument", "fit reg.csv", 2, "reg.csv"),
        ("another command", "train", 2, "'train'"),
        ("an unknown device", "fit --device abacus", 1, "--device abacus"),
        ("a device that is away", "fit --device cuda:99", 1, "--device cuda:99"),
        ("cross entropy of numbers", f"{FIT} --loss cross_entropy", 1, "--loss cross_"),
        ("bce of numbers", f"{FIT} --loss bce", 1, "--loss bce", "regression"),
        (
            "cross entropy of the line",
            "fit --loss cross_entropy --epochs 1",
            1,
            "--loss",
        ),
        ("bce of the line", "fit --loss bce --epochs 1", 1, "--loss"),
        ("classes of the line", "fit --task classification --epochs 1", None, "--task"),
        ("mse of classes", "fit --data cls.csv --target y --loss mse", 1, "--loss mse"),
        ("bce of 3 classes", "fit --data three.csv --target y --loss bce", 1, "2", "3"),
        ("another scheduler", f"{FIT} --scheduler slow", 1, "--scheduler", "slow"),
        ("a scheduler's typo", f"{FIT} --scheduler step:gama=1", 1, "--sch", "gama"),
        (
            "a scheduler's half",
            f"{FIT} --scheduler step:gamma",
            1,
            "--sch",
            "step:gamma",
        ),
        (
            "a scheduler's word",
            f"{FIT} --scheduler step:gamma=x",
            1,
            "--sch",
            "gamma=x",
        ),
        ("a scheduler's zero", f"{FIT} --scheduler step:step_size=0", 1, "--sch", "=0"),
        ("a cosine of 0", f"{FIT} --scheduler cosine:T_max=0", 1, "--sch", "T_max=0"),
        # models
        ("another model", f"{FIT} --model cnn", 1, "--model", "cnn"),
        ("no such module", f"{FIT} --model no_such:model", 1, "--model", "no_such"),
        ("no such function", f"{FIT} --model models_of_mine:no", 1, "--model", "no"),
        ("a path", f"{FIT} --model ../models_of_mine:good", 1, "--model"),
        ("a syntax error", f"{FIT} --model syntax:good", 1, "--model", "syntax"),
        ("one argument", f"{FIT} --model models_of_mine:one", 1, "one"),
        ("no module made", f"{FIT} --model models_of_mine:none", 1, "--model", "none"),
        ("no function", f"{FIT} --model models_of_mine:number", 1, "number"),
        ("a function that fails", f"{FIT} --model models_of_mine:fails", 1, "width"),
        ("outputs without columns", f"{FIT} --model models_of_mine:flat", 1, "--model"),
        (
            "an output too few",
            "fit --data cls.csv --target y --model models_of_mine:few",
            1,
            "--model",
        ),
        ("a model too wide", f"{FIT} --model models_of_mine:wide", 1, "shapes"),
        # run folders
        ("out is a file", f"{FIT} --out in_the_way", 1, "in_the_way"),
        ("out in a file", f"{FIT} --out in_the_way/run", 1, "in_the_way/run"),
        ("a used folder", f"{FIT} --out reg", 2, "reg", "--resume", "--overwrite"),
        ("both at once", "fit --out reg --resume --overwrite", 2, "--overwrite"),
        ("no run to resume", "fit --resume --epochs 2", None, "resume"),
        ("resume at another lr", "fit --out reg --resume --lr 1", 2, "--lr", "0.001"),
        ("resume other data", "fit --out reg --resume --data cls.csv", 2, "--data"),
        ("resume half a file", "fit --out broken --resume", 1, "broken/last.pt"),
        ("resume the library's", "fit --out library --resume", 1, "library/last.pt"),
        ("lr 1e30", f"{FIT} --lr 1e30", 1, "learning rate"),
        ("lr 1e30, one epoch", f"{FIT} --lr 1e30 --epochs 1", 1, "val_loss"),
        (
            "lr 1e30 of classes",
            "fit --data cls.csv --target y --lr 1e30",
            1,
            "learning r",
        ),
        (
            "lr 1e5 of classes",
            "fit --data cls.csv --target y --lr 1e5 --optimizer sgd",
            1,
            "learning rate",
        ),
        ("lr 1e38 of the line", "fit --lr 1e38", 1, "learning rate (1e+38)"),
        ("lr 1e300", "fit --lr 1e300 --epochs 1", 1, ""),
        # checkpoints
        ("no checkpoint given", "evaluate", 2, "CHECKPOINT"),
        ("a missing checkpoint", "evaluate no.pt", 1, "no.pt"),
        ("a folder for it", "summary reg", 1, "reg"),
        ("a table for it", "summary reg.csv", 1, "reg.csv", "no checkpoint"),
        ("an empty file", "summary empty.pt", 1, "empty.pt", "no checkpoint"),
        ("text", "summary text.pt", 1, "text.pt", "no checkpoint"),
        ("another archive", "summary zip.pt", 1, "zip.pt", "no checkpoint"),
        ("half a checkpoint", "evaluate half.pt", 1, "half.pt", "damaged"),
        ("a flipped bit", "evaluate flipped.pt", 1, "flipped.pt", "damaged"),
        ("a pickled module", "summary module.pt", 1, "module.pt", "could run code"),
        ("bare weights", "summary weights.pt", 1, "weights.pt", "no checkpoint of kit"),
        ("only a format", "summary format.pt", 1, "format.pt"),
        ("an odd format", "summary odd.pt", 1, "odd.pt"),
        ("a newer format", "summary newer.pt", 1, "newer.pt", "99"),
        ("the library's", "evaluate library.pt", 1, "library.pt", "kit fit"),
        # evaluate and predict
        ("predict without data", "predict reg/best.pt", 2, "--data"),
        ("predict a missing file", "predict reg/best.pt --data no.csv", 1, "no.csv"),
        (
            "a missing column",
            "predict reg/best.pt --data no_b.csv",
            1,
            "'b'",
            "no_b.csv",
        ),
        (
            "predict a word",
            "predict reg/best.pt --data word.csv",
            1,
            "line 3, column b",
        ),
        ("predict a header", "predict reg/best.pt --data header.csv", 1, "no rows"),
        ("another .npz", "predict reg/best.pt --data reg.npz", 1, "reg.npz", "a, b"),
        (
            "other images",
            "predict images/best.pt --data reg.npz",
            1,
            "reg.npz",
            "(2, 3, 3)",
        ),
        (
            "output in a file",
            "predict reg/best.pt --data reg.csv --output in_the_way/p.csv",
            1,
            "in_the_way/p.csv",
        ),
        (
            "output to a folder",
            "predict reg/best.pt --data reg.csv --output reg",
            1,
            "reg could not be written",
        ),
        (
            "output to .",
            "predict reg/best.pt --data reg.csv --output .",
            1,
            ". could not",
        ),
        (
            "an unknown class",
            "evaluate cls/best.pt --data cow.csv",
            1,
            "'cow'",
            "neg, pos",
        ),
        ("numbers for classes", "evaluate cls/best.pt --data reg.csv", 1, "neg, pos"),
        ("classes for numbers", "evaluate reg/best.pt --data cls.csv", 1, "line 2"),
        ("no target", "evaluate reg/best.pt --data no_b.csv", 1, "'b'"),
        ("a table for the line", "evaluate line/best.pt --data reg.csv", 1, "--data"),
    )
]


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.what)
def test_a_mistake_is_answered_in_one_line(files, mistake):
    result = CliRunner().invoke(kit.main, mistake.arguments.split())
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    assert result.exit_code == mistake.code or (
        mistake.code is None and result.exit_code in (1, 2)
    )
    *before, last = result.stderr.splitlines()
    assert last.startswith("Error: ") and last.isprintable() and len(last) > 10
    assert "Traceback" not in result.output
    assert not [line for line in before if "Error" in line]
    assert all(word in last for word in mistake.words), last
    if result.exit_code == 1:
        assert before == []
    else:
        assert before[0].startswith("Usage: ") and not Path("runs").exists()


def test_data_that_went_away_or_changed_is_named(files):
    write_csv("gone.csv", ["a", "b", "y"], [[i, i * i, i] for i in range(20)])
    quick("--data", "gone.csv", "--target", "y", "--out", "gone")
    for content in (None, "a,b\n1,2\n", "a,b,y\n1,2,3\n"):
        Path("gone.csv").unlink()
        if content:
            Path("gone.csv").write_text(content)
        for arguments in (
            ["evaluate", "gone/best.pt"],
            ["fit", "--out", "gone", "--resume"],
        ):
            result = CliRunner().invoke(kit.main, arguments)
            assert result.exit_code == 1 and result.stderr.startswith("Error: ")
            assert len(result.stderr.splitlines()) == 1
        Path("gone.csv").touch()
    assert "y" in call("summary", "gone/best.pt")  # which needs no data


@pytest.mark.parametrize("command", ["summary", "evaluate", "fit"])
def test_a_checkpoint_can_call_nothing_but_what_makes_a_model(files, command):
    content = torch.load("line/last.pt", weights_only=True)
    content["config"] |= {
        "model": "os:truncate",
        "shape": ("in_the_way",),
        "outputs": 0,
    }
    torch.save(content, "line/last.pt")  # all of it is of plain types
    arguments = ["--out", "line", "--resume"] if command == "fit" else ["line/last.pt"]
    result = CliRunner().invoke(kit.main, [command, *arguments])
    assert Path("in_the_way").read_text() == "a file"
    assert result.exit_code == 1 and len(result.stderr.splitlines()) == 1


def test_a_diverged_run_keeps_the_last_good_checkpoint(files):
    arguments = [*FIT.split(), "--lr", "1e30", "--optimizer", "sgd", "--epochs", "9"]
    result = CliRunner().invoke(kit.main, [*arguments, "--out", "nan"])
    assert result.exit_code == 1 and "learning rate (1e+30)" in result.stderr
    for tensor in kit.read_checkpoint("nan/last.pt")["model"].values():
        assert tensor.isfinite().all()


def test_a_run_that_fails_at_once_names_no_file_that_is_not_there(files):
    result = CliRunner().invoke(kit.main, [*FIT.split(), "--lr", "inf", "--out", "inf"])
    assert result.exit_code in (1, 2)
    assert Path("inf/last.pt").exists() or "last.pt" not in result.stderr


def test_a_real_process_prints_one_line_and_exits_with_the_code():
    arguments = ("fit", "--data", "no.csv", "--target", "y")
    printed, errors = finish("-m", "kit", *arguments, code=1)
    assert printed == "" and errors.startswith("Error: ") and "no.csv" in errors
    assert errors.count("\n") == 1


def test_an_overwrite_that_cannot_begin_leaves_the_old_run(files):
    before = Path("reg/last.pt").read_bytes(), Path("reg/best.pt").read_bytes()
    for mistake in (["--data", "word.csv"], ["--model", "no_such:model"]):
        options = ["--data", "reg.csv", "--target", "y", *mistake]
        arguments = ["fit", *options, "--out", "reg", "--overwrite"]
        assert CliRunner().invoke(kit.main, arguments).exit_code == 1
        after = Path("reg/last.pt").read_bytes(), Path("reg/best.pt").read_bytes()
        assert after == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_says_how_to_go_on_and_what_it_says_works(  # PITFALLS 18, 19
    number, child, same
):
    options = ("-m", "kit", "fit", "--no-plot", "--epochs", 600)
    process = child(*options, "--out", "run")
    while not Path("run/last.pt").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert errors.splitlines() == [
        "",
        "interrupted and saved; go on with: python -m kit fit --out run --resume",
    ]
    done = len(kit.read_checkpoint("run/last.pt")["history"])
    assert 0 < done < 600
    go_on = errors.split("go on with: python ")[1].split()
    for process in (child(*go_on), child(*options, "--out", "other")):
        assert process.communicate(timeout=120)[1] == "" and process.returncode == 0
    assert same("run/last.pt", "other/last.pt")
