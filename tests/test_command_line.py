"""The command line. Its processes are real where that is the point."""

import csv
import io
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import helpers
import numpy as np
import pytest
import torch
from helpers import ROOT, assert_same, call, content, invoke, python, start, wait_for

import kit

FILES = {"last.pt", "best.pt", "history.csv", "config.json", "curves.png"}

# the tutorial's figures in its section 6
LINEAR = {1: (0.555178, 0.573976), 101: (0.006216, 0.014087)}
LINEAR |= {200: (0.010256, 0.000331), 201: (0.001265, 0.013802)}


def refused(command, *more):
    """The line in which a mistake is answered, and the exit status."""
    result = invoke(command, *more)
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    *before, line = result.stderr.splitlines()
    assert line.startswith("Error: ") and line.isprintable() and len(line) > 10
    assert result.exit_code == 1 or (result.exit_code == 2 and "Usage: " in before[0])
    assert result.exit_code == 2 or not before
    return line


def quick(options="", *more):
    """A short fit that prints nothing."""
    assert call(f"fit --quiet --epochs 2 {options}", *more) == ""


def read_csv(text):
    text = text if "\n" in text else Path(text).read_text()
    return list(csv.DictReader(io.StringIO(text)))


def write_csv(path, header, rows):
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header.split(), *rows])


def table_of(text):
    """The last table of what was printed: numbers by the names of measure and part."""
    lines = [line.split() for line in text.splitlines()]
    start = max(i for i, line in enumerate(lines) if line and set(line[0]) == {"-"})
    measures, table = lines[start - 1][1:], {}
    for line in lines[start + 1 :]:
        if not line:
            break
        *name, numbers = line[: -len(measures)], line[-len(measures) :]
        for measure, number in zip(measures, map(float, numbers), strict=True):
            table.setdefault(measure, {})[" ".join(*name)] = number
    return table


def assert_same_runs(one, other, *free):
    """But for the seconds, and the options that are free to differ."""
    runs = [content(Path(folder, "last.pt")) for folder in (one, other)]
    configs = [run.pop("config") for run in runs]
    for config in configs:
        for option in free:
            del config[option]
    assert configs[0] == configs[1]
    assert_same(*runs)


# -------------------------------------------------------------------- the main job


def test_the_line_where_only_a_copy_of_kit_is(tmp_path):
    shutil.copy(ROOT / "kit.py", tmp_path)
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    process = python("-m", "kit", "fit", "--epochs", 200, env=env)
    printed, errors = process.communicate(timeout=60)
    assert errors == "" and printed.replace("\n", "").isprintable()
    lines = printed.splitlines()
    assert "regression" in lines[0]
    assert table_of(printed)["rows"] == {"train": 40, "val": 10}
    learned = [line.split()[:2] for line in lines]
    assert ["weight", "0.6968"] in learned and ["bias", "0.3025"] in learned
    progress = [line for line in lines if line.startswith("epoch ")]
    assert progress[-1].startswith("epoch 200/200  train_loss 0.01026")
    assert len(progress) < 40  # one a second
    assert all(name in lines[-1] for name in FILES)
    assert {path.name for path in Path("runs/001").iterdir()} == FILES
    assert Path("runs/001/curves.png").read_bytes().startswith(b"\x89PNG")
    config = json.loads(Path("runs/001/config.json").read_text())
    assert (config["epochs"], config["seed"], config["lr"]) == (200, 42, 0.01)

    quick("--out runs/001 --resume --epochs 201")
    history = read_csv("runs/001/history.csv")
    assert len(history) == 201 and os.listdir("runs") == ["001"]
    for epoch, losses in LINEAR.items():
        row = history[epoch - 1]
        assert int(row["epoch"]) == int(row["step"]) == epoch
        found = float(row["train_loss"]), float(row["val_loss"])
        assert found == pytest.approx(losses, abs=1e-6)


MODELS = """
from torch import nn
def lazy(inputs, outputs): return nn.LazyLinear(outputs)
def fails(inputs, outputs): return {}["width"]
def few(inputs, outputs): return nn.Linear(inputs, outputs + 1)
def stops(inputs, outputs): raise KeyboardInterrupt
class Fails(nn.Linear):
    def forward(self, x): raise RuntimeError("one\\x1b[31m\\nand another line")
class OfSeven(nn.Linear):
    def forward(self, x):
        assert len(x) <= 7 or not self.training
        return super().forward(x)
"""


def test_a_model_of_ones_own_is_named_again():
    Path("own_line.py").write_text(MODELS)
    quick("--out own --model own_line:lazy")
    write_csv("x.csv", "x", [[0.0]])
    for command in (
        "evaluate own",
        "predict own --data x.csv",
        "export own a.pt2",
        "fit --out own --resume --epochs 3 --quiet",
    ):
        line = refused(command)
        assert "own_line:lazy" in line and "--model" in line
        assert "--model" in refused(f"{command} --model own_line:OfSeven")
        call(f"{command} --model own_line:lazy")


def houses(n=300):
    """A raw table: text, gaps, booleans, a counter."""
    pandas = pytest.importorskip("pandas")
    rng = np.random.default_rng(0)
    frame = pandas.DataFrame({"id": range(1, n + 1)})
    frame["rooms"] = rng.integers(1, 6, n).astype(float)
    frame["city"] = rng.choice(["Rome", "Oslo", "Lima"], n)
    frame["garden"] = rng.random(n) > 0.5
    worth = frame["city"].map({"Rome": 3.0, "Oslo": 5.0, "Lima": 1.0})
    frame["price"] = 100 * (frame["rooms"] + worth + 2 * frame["garden"])
    frame["price"] += rng.normal(0, 20, n).round(2)
    frame.loc[3, "rooms"], frame.loc[5, "city"] = None, None
    return frame


def test_a_raw_table_is_learned_and_scored_as_it_is():
    from sklearn.metrics import r2_score

    frame = houses()
    frame.assign(day="2024-01-31").to_csv("houses.csv", index=False)
    assert refused("fit --data houses.csv --target price").endswith("--drop day")
    frame.to_csv("houses.csv", index=False)
    printed = call("fit --data houses.csv --target price --epochs 60 --lr 0.01")
    first, left_out = printed.splitlines()[:2]
    for word in ("regression", "price", "--task"):
        assert word in first
    assert "id" in left_out
    ratios, rows = (0.7, 0.15, 0.15), torch.arange(300)
    rows, _, test = (
        part[0].numpy() for part in kit.split((rows,), ratios=ratios, seed=42)
    )
    table, std = table_of(printed), frame["price"][rows].std(ddof=0)
    assert table["rows"] == {"train": 210, "val": 45, "test": 45}
    loss = min(float(row["val_loss"]) for row in read_csv("runs/001/history.csv"))
    assert table["loss"]["val"] == pytest.approx(loss, rel=1e-3)
    assert table["mse"]["val"] == pytest.approx(loss * std**2, rel=1e-3)
    mean = content(Path("runs/001/best.pt"))["model"]["0.mean"][0].item()
    assert mean == pytest.approx(frame["rooms"][rows].mean())  # of the training rows
    assert table["r2"]["test"] > 0.96  # a linear model's is 0.99, without gaps

    assert table_of(call("evaluate runs/001")) == table
    frame.iloc[test].to_csv("test.csv", index=False)
    Path("houses.csv").unlink()
    shutil.move("runs/001/best.pt", "best.pt")  # which needs nothing else
    (score,) = table_of(call("evaluate best.pt --data test.csv"))["r2"].values()
    assert score == table["r2"]["test"]
    call("predict best.pt --data test.csv --output p.csv")
    rows = read_csv("p.csv")
    prediction = [float(row.pop("prediction")) for row in rows]
    assert not any(rows)
    score = r2_score(frame["price"].iloc[test], prediction)
    assert score == pytest.approx(table["r2"]["test"], abs=1e-4)


def test_predictions_keep_the_order_of_the_rows():
    frame = houses(60)
    frame.to_csv("houses.csv", index=False)
    quick("--data houses.csv --target price --out run")
    new = frame.drop(columns="price")[::-1].astype({"city": object})
    new.loc[10, "city"], new.loc[11, "rooms"], new.loc[12, "city"] = "Bern", None, None
    new.to_csv("new.csv", index=False)
    rows = read_csv(call("predict run --data new.csv"))
    assert len(rows) == 60 and all(float(row["prediction"]) for row in rows)
    new[new["id"] == 12].to_csv("one.csv", index=False)  # a row by itself
    (row,) = read_csv(call("predict run --data one.csv"))
    together = rows[60 - 12]["prediction"]
    assert float(row["prediction"]) == pytest.approx(float(together), rel=1e-5)


def test_inputs_beside_predictions_are_the_files_own_text(files):
    write_csv("odd.csv", "a b note", [["1.50", "?", "NA"], ["2", "-", ""]])
    alone = read_csv(call("predict reg --data odd.csv"))
    beside = read_csv(call("predict reg --data odd.csv --with-inputs"))
    expected = [text | row for text, row in zip(read_csv("odd.csv"), alone)]
    assert beside == expected and list(beside[0]) == ["a", "b", "note", "prediction"]
    write_csv("taken.csv", "a b prediction", [[1, 2, 3]])
    call("predict reg --data taken.csv")
    assert "prediction" in refused("predict reg --data taken.csv --with-inputs")


def test_classes_are_predicted_with_their_chances():
    from sklearn import datasets

    bunch = datasets.load_iris()
    kinds = [str(bunch.target_names[i]) for i in bunch.target]
    write_csv("t.csv", "a b c d kind", [[*x, y] for x, y in zip(bunch.data, kinds)])
    printed = call("fit --data t.csv --target kind --lr 0.01")
    first = printed.splitlines()[0]
    assert "classification" in first and "setosa, versicolor, virginica" in first
    assert table_of(printed)["accuracy"]["test"] >= 0.9
    rows = read_csv(call("predict runs/001 --data t.csv"))
    right = [row["prediction"] == kind for row, kind in zip(rows, kinds, strict=True)]
    assert sum(right) >= 135
    for row in rows:
        chances = {name: float(row[f"p_{name}"]) for name in bunch.target_names}
        assert sum(chances.values()) == pytest.approx(1)
        assert row["prediction"] == max(chances, key=chances.get)


# --------------------------------------------------------------------- run folders


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder with small tables, their runs, and files that are no checkpoints."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("prepared"))
        X = np.random.default_rng(0).normal(size=(40, 2)).round(4)
        y = (2 * X[:, 0] - X[:, 1]).round(4)
        for name, target in (("reg", y), ("cls", np.where(y > 0, "pos", "neg"))):
            write_csv(f"{name}.csv", "a b y", [[*x, v] for x, v in zip(X, target)])
            quick(f"--data {name}.csv --target y --out {name}")
        quick("--out line")
        write_csv("no_b.csv", "a y", [[1, 2]])
        write_csv("cow.csv", "a b y", [[5, 2, "pos"], [3, 4, "cow"]])
        saved = Path("reg/best.pt").read_bytes()
        Path("half.pt").write_bytes(saved[: len(saved) // 2])
        saved = torch.load("reg/best.pt", weights_only=True)
        saved["model"]["6.mean"].fill_(torch.inf)
        torch.save(saved, "inf.pt")
        for value in filter(torch.is_floating_point, saved["model"].values()):
            value.fill_(torch.nan)
        torch.save(saved, "nan.pt")
        kit.save_checkpoint(helpers.make_state(), "library/last.pt")
        Path("in_the_way").write_text("a file")
        Path("models_of_mine.py").write_text(MODELS)
        Path("syntax.py").write_text("def (:\n")
        return Path.cwd()


@pytest.fixture
def files(prepared, tmp_path):
    """What is prepared, copied to the working folder."""
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    yield tmp_path
    sys.modules.pop("models_of_mine", None)


TABLE = "--data reg.csv --target y"


def fit_where_folders_take_time(seed):
    mkdir = os.mkdir
    os.mkdir = lambda *path, **mode: (time.sleep(0.5), mkdir(*path, **mode))
    kit.main(f"fit --quiet --epochs 2 --seed {seed}".split())


def test_four_starts_at_once_take_four_folders():
    for name in ("002", "notes"):
        Path("runs", name).mkdir(parents=True)
    children = [start(fit_where_folders_take_time, seed) for seed in range(4)]
    assert [child.wait() for child in children] == [0] * 4
    folders = [Path("runs", name) for name in ("001", "003", "004", "005")]
    assert all({path.name for path in folder.iterdir()} == FILES for folder in folders)
    seeds = [json.loads((f / "config.json").read_text())["seed"] for f in folders]
    assert sorted(seeds) == [0, 1, 2, 3]
    assert [content(f / "last.pt")["config"]["seed"] for f in folders] == seeds


def test_a_used_folder_is_left_alone_unless_overwritten(files):
    before = {path: path.read_bytes() for path in Path("line").iterdir()}
    line = refused("fit --out line")
    assert "--resume" in line and "--overwrite" in line
    for mistake in ("--data no.csv --target y", "--model no:no"):
        refused(f"fit --out line --overwrite {mistake}")
    assert {path: path.read_bytes() for path in Path("line").iterdir()} == before
    Path("line/notes.txt").write_text("mine")
    quick("--out line --overwrite --epochs 3 --lr 0.02")
    quick("--out anew --epochs 3 --lr 0.02")
    assert_same_runs("line", "anew")
    assert Path("line/notes.txt").read_text() == "mine"


def test_a_folder_in_use_keeps_its_files():
    lines, state = [], helpers.make_state(torch.nn.Linear(1, 1))

    def overwrite(state):
        if len(state.history) == 2:
            wait_for(Path("run/last.pt").exists)
            lines.append(refused("fit --out run --overwrite"))
            assert Path("run/last.pt").exists()

    options = {"loss_fn": torch.nn.L1Loss(), "epochs": 2, "checkpoint": "run"}
    kit.fit(state, [kit.make_data()], on_epoch=overwrite, **options)
    assert "in use" in lines[0]


def test_a_resumed_run_equals_a_straight_one(files):
    options = "--data cls.csv --target y --batch-size 8 --scheduler step --clip 1"
    quick(f"{options} --out straight --epochs 5")
    quick(f"{options} --out resumed --epochs 3 --patience 7")
    free = "--patience 20 --device cpu --workers 0"
    quick(f"--out resumed --resume --epochs 5 --seed 42 {free}")
    assert_same_runs("resumed", "straight", "patience", "device")
    assert len(read_csv("resumed/history.csv")) == 5
    before = Path("resumed/last.pt").read_bytes()
    for epochs in (5, 2):  # there is nothing left to do
        assert "accuracy" in call(f"fit --out resumed --resume --epochs {epochs}")
    assert Path("resumed/last.pt").read_bytes() == before
    quick("--out cosine --epochs 2 --scheduler cosine")
    assert "must stay 2" in refused("fit --out cosine --resume --epochs 4")


def test_a_file_starts_no_compiler_and_no_processes(files, monkeypatch):
    saved = torch.load("line/last.pt", weights_only=True)
    config = json.loads(saved["config"]) | {"compile": True, "workers": 1}
    saved["config"] = json.dumps(config)
    torch.save(saved, "line/last.pt")
    for name in ("torch.compile", "multiprocessing.process.BaseProcess.start"):
        monkeypatch.setattr(name, lambda *arguments, **options: 1 / 0)
    quick("--out line --resume --epochs 3")


def test_data_that_went_away_or_changed_is_named(files):
    quick(f"{TABLE} --out gone")
    for text in (None, "a,b\n1,2\n", "a,b,y\n5,2,3\n5,2,4\n"):
        Path("reg.csv").unlink()
        if text:
            Path("reg.csv").write_text(text)
        for command in ("evaluate gone", "fit --out gone --resume --epochs 3"):
            assert "reg.csv" in refused(command)
        Path("reg.csv").touch()


# ------------------------------------------------------- options and other commands


OPTIONS = (
    "--optimizer sgd --loss l1 --scheduler cosine",
    "--optimizer adamw --loss mse --scheduler plateau",
    "--optimizer Adam --loss huber --scheduler onecycle --batch-size 8",
    "--accumulate 4 --clip 1 --weight-decay 0.1 --amp bf16",
    "--hidden 8,4,2 --batch-size 5 --save-every 2 --model mlp",
    "--model linear --ratios 0.8,0.2 --workers 1 --device cpu --seed 0",
    "--ratios 1 --patience 1",
    "--model models_of_mine:lazy",
)


@pytest.mark.parametrize("options", OPTIONS)
def test_every_option_trains_a_table(files, options):
    model = options if "models_of_mine" in options else ""
    table = table_of(call(f"fit {TABLE} --epochs 3 {options}"))
    assert table.keys() == {"rows", "loss", "mae", "mse", "rmse", "r2"}
    assert table_of(call(f"evaluate runs/001 {model}")) == table
    predicted = call(f"predict runs/001/last.pt --data reg.csv {model}")
    assert predicted.count("\n") == 41


def test_options_arrive_where_they_are_meant(files):
    quick(f"{TABLE} --weight-decay 0.1 --clip 1 --scheduler onecycle --out run")
    saved = content("run/last.pt")
    assert saved["optimizer"]["param_groups"][0]["weight_decay"] == 0.1
    assert [*saved["components"].values()] == ["Adam", "OneCycleLR", True]
    assert "train_grad_norm" in saved["history"][0]
    call(f"fit {TABLE} --lr 1 --epochs 50 --patience 1 --quiet --out impatient")
    assert len(read_csv("impatient/history.csv")) < 50
    quick(f"{TABLE} --accumulate 4 --model models_of_mine:OfSeven")  # of 28 rows


def test_the_whole_model_is_compiled(files, monkeypatch):
    calls = []

    def backend(graph, example):
        calls.append(sum("linear" in str(node.target) for node in graph.graph.nodes))
        return graph.forward

    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    quick(f"{TABLE} --hidden 8,4 --amp bf16 --compile --out run")
    assert set(calls) == {3}
    assert not any("_orig_mod" in key for key in content("run/last.pt")["model"])


def test_help_groups_the_options_with_their_defaults():
    printed = call("fit --help")
    for group in ("Data:", "Model:", "Training:", "Run:"):
        assert f"\n{group}\n" in printed
    words = " ".join(printed.split())
    for option in kit.main.commands["fit"].params:
        assert option.opts[0] in words
        if type(option.default) in (int, str):
            assert str(option.default) in words, option.opts
    assert "20" in words[words.index("--patience") :][:150]
    for name in kit.main.commands:
        assert f"python -m kit {name}" in call(f"{name} --help")
        assert f"\n  {name} " in call("--help")


CONFIG = "ratios: [0.6, 0.4]\nbatch_size: 8\noptimizer: adam\nlr: 0.01\nepochs: 3\n"
CONFIG += "clip: null\n"


@pytest.mark.parametrize("name", ["a.yaml", "a.json"])
def test_a_config_file_is_typed_options_which_override_it(name):
    yaml = pytest.importorskip("yaml")
    text = json.dumps(yaml.safe_load(CONFIG)) if name == "a.json" else CONFIG
    Path(name).write_text(text)
    assert call(f"fit --config {name} --quiet --out file") == ""
    assert len(read_csv("file/history.csv")) == 3
    quick(f"--config {name} --out file2")
    quick("--ratios 0.6,0.4 --batch-size 8 --optimizer adam --lr 0.01 --out typed")
    assert_same_runs("file2", "typed")


WRONG = {
    "epoch: 3": "epoch",
    "config: a": "config",
    "epochs: 2.5": "--epochs",
    "quiet: maybe": "--quiet",
    "lr: {a: 1}": "lr",
    "- 1": "a.yaml",
    "a: [": "a.yaml",
    "\xff": "a.yaml",
    "!!python/object/apply:os.mkdir [runs]": "a.yaml",
}


@pytest.mark.parametrize("text", WRONG)
def test_a_config_that_is_wrong_is_refused_in_one_line(text):
    Path("a.yaml").write_bytes(text.encode("latin-1"))
    assert WRONG[text] in refused("fit --config a.yaml")
    assert not Path("runs").exists()


# ------------------------------------------------------------------ outputs, signals


def test_predictions_go_to_devices_pipes_and_links(files):
    predict = "predict reg --data reg.csv"
    printed = call(predict)
    assert call(f"{predict} --output p.csv") == ""
    assert Path("p.csv").read_text() == printed

    os.mkfifo("fifo")
    read = []
    reader = threading.Thread(target=lambda: read.append(Path("fifo").read_text()))
    reader.start()
    call(f"{predict} --output fifo")
    reader.join(20)
    assert read == [printed] and stat.S_ISFIFO(os.stat("fifo").st_mode)

    Path("target.csv").write_text("old")
    Path("link.csv").symlink_to("target.csv")
    call(f"{predict} --output link.csv")
    assert Path("link.csv").is_symlink() and Path("target.csv").read_text() == printed

    assert "No space left" in refused(f"{predict} --output /dev/full")
    assert stat.S_ISCHR(os.stat("/dev/full").st_mode)


def test_predictions_that_are_not_finite_are_an_error(files):
    for options in ("inf.pt", "nan.pt", "nan.pt --output p.csv"):
        assert "not finite" in refused(f"predict --data reg.csv {options}")
    assert len(read_csv("p.csv")) == 40


def test_streams_that_are_closed_or_full():
    fit = f"exec {sys.executable} -W error -m kit fit --epochs 2 --out"
    env = {"env": os.environ | {"PYTHONPATH": str(ROOT)}, "stderr": subprocess.PIPE}
    shell = partial(subprocess.Popen, shell=True, text=True, **env)
    closed, full = shell(f"{fit} closed >&-"), shell(f"{fit} full >/dev/full")
    broken = shell(f"{fit} broken", stdout=subprocess.PIPE)
    broken.stdout.close()
    errors = {p: p.communicate(timeout=60)[1] for p in (closed, full, broken)}
    assert (closed.returncode, errors[closed]) == (0, "")
    assert len(read_csv("closed/history.csv")) == 2
    for process, reason in ((full, "No space left"), (broken, "Broken pipe")):
        assert process.returncode == 1 and reason in errors[process]
        assert errors[process].startswith("Error: ") and "None" not in errors[process]
        assert errors[process].count("\n") == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_says_how_to_continue_and_that_works(number, monkeypatch):
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    fit = "-m kit fit --epochs 200 --out run"
    process = python(*fit.split())
    assert any(line.startswith("epoch ") for line in process.stdout)  # at once
    wait_for(Path("run/last.pt").exists)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    (line,) = errors.strip().splitlines()
    assert "python -m kit fit --out run --resume" in line
    history = content("run/last.pt")["history"]
    assert len(read_csv("run/history.csv")) == len(history) and 0 < len(history) < 200
    quick("--out run --resume --epochs 200")
    quick("--epochs 200 --out other")
    assert_same_runs("run", "other")


# ------------------------------------------------------------------------ mistakes

FIT = f"fit {TABLE} --epochs 2"
MISTAKES = [  # what is typed, and words of the line that answers it
    # the data
    ("fit --data no.csv --target y", "no.csv"),
    ("fit --data half.pt --target y", "half.pt"),
    ("fit --data reg.csv", "--target"),
    ("fit --target y --epochs 1", "--data"),
    # options
    (f"{FIT} --ratios 0.4,0.3,0.2,0.1", "--ratios"),
    (f"{FIT} --hidden 64,b", "--hidden", "b"),
    ("fit --lr nan --out nan", "learning rate", "nan"),
    ("fit --lr 0", "--lr", "0"),
    ("fit --device abacus", "device", "abacus"),
    (f"{FIT} --loss cross_entropy", "--loss", "cross_entropy"),
    # models
    (f"{FIT} --model cnn", "--model", "cnn"),
    (f"{FIT} --model syntax:good", "--model", "syntax"),
    (f"{FIT} --model models_of_mine:fails", "width"),
    (f"{FIT} --model models_of_mine:few", "--model"),
    (f"{FIT} --model models_of_mine:Fails", "one"),
    # run folders
    (f"{FIT} --out in_the_way", "in_the_way"),
    ("fit --out reg --resume --overwrite", "--overwrite"),
    ("fit --resume --epochs 2", "resume"),
    ("fit --out reg --resume --lr 1", "lr", "0.001"),
    ("fit --out library --resume", "library/last.pt"),
    # checkpoints
    ("evaluate no.pt", "no.pt"),
    ("evaluate library/last.pt", "library/last.pt", "kit fit"),
    ("evaluate line --data reg.csv", "reg.csv", "x"),
    # evaluate, predict and export
    ("evaluate cls --data cow.csv", "cow", "neg, pos"),
    ("predict reg --data no_b.csv", "b", "no_b.csv"),
    ("predict reg --data reg.csv --output in_the_way/p.csv", "in_the_way"),
    ("predict reg --data reg.csv --output reg", "reg"),
    ("predict reg --data reg.csv --output ./reg.csv", "--output", "--data"),
    ("export reg a.pth", "a.pth"),
]


@pytest.mark.parametrize("command, words", [(m[0], m[1:]) for m in MISTAKES])
def test_a_mistake_is_answered_in_one_line(files, command, words):
    line = refused(command)
    assert all(word in line for word in words), line
    assert not Path("runs").exists()


def test_ctrl_c_in_a_command_is_quiet_and_its_status_130(files):
    result = invoke(f"{FIT} --model models_of_mine:stops")
    assert result.exit_code == 130 and not result.output


def test_ctrl_c_while_torch_is_imported_is_quiet():
    process = python("-m", "kit", "fit")
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    assert process.communicate() == ("", "") and process.returncode == 130
