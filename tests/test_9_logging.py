"""Section 9, logs: what TensorBoard and pandas read is the history, each epoch once."""

import csv
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

import kit

RECIPES = Path(__file__).parents[1] / "recipes"


def fit(*arguments):
    """A quiet run of the command line, in this process."""
    arguments = ["fit", "--quiet", "--no-plot", *map(str, arguments)]
    result = CliRunner().invoke(kit.main, arguments)
    assert result.exit_code == 0 and result.output == "", result.output


def table(rows=60):
    """The options for a table with two columns and a target."""
    X = np.random.default_rng(0).normal(size=(rows, 2)).round(3)
    with open("t.csv", "w", newline="") as file:
        csv.writer(file).writerows([("a", "b", "y"), *np.c_[X, X.sum(1)].tolist()])
    return "--data", "t.csv", "--target", "y"


def read(folder):
    """TensorBoard's own reader of a run folder."""
    return EventAccumulator(str(folder), {"scalars": 0, "histograms": 0}).Reload()


def hyperparameters(reader):
    content = reader.summary_metadata["_hparams_/session_start_info"].plugin_data
    info = HParamsPluginData.FromString(content.content).session_start_info
    return {k: v.number_value or v.string_value for k, v in info.hparams.items()}


def assert_complete(folder, *, histograms_from=0):
    """Every value of every row is there, once, and every parameter's histogram."""
    reader, content = read(folder), kit.read_checkpoint(folder / "last.pt")
    history, tags = content["history"], reader.Tags()
    assert tags["scalars"] == list(history[0])
    for key in history[0]:
        events = [(event.step, event.value) for event in reader.Scalars(key)]
        expected = [(row["epoch"], float(np.float32(row[key]))) for row in history]
        assert events == expected, key
    assert tags["histograms"] == list(content["model"])
    for name, tensor in content["model"].items():
        events = reader.Histograms(name)
        steps = list(range(histograms_from, len(history)))
        assert [event.step for event in events] == steps
        last = events[-1].histogram_value
        assert last.num == tensor.numel()
        assert last.sum == pytest.approx(tensor.double().sum().item(), rel=1e-5)
    return reader


def next_second():
    """Event files are ordered by their names, which tell the second."""
    start = int(time.time())
    while int(time.time()) == start:
        time.sleep(0.01)


def test_tensorboard_finds_every_row_parameter_and_option():
    fit("--epochs", 4, "--tensorboard", "--model", "mlp", "--hidden", "3,2")
    reader = assert_complete(Path("runs/001"))
    options = hyperparameters(reader)
    assert (options["lr"], options["hidden"]) == (0.01, "(3, 2)")
    assert (options["epochs"], options["optimizer"]) == (4, "sgd")
    assert not [path for path in Path("runs/001").iterdir() if path.is_dir()]


def test_a_tables_metrics_are_among_the_scalars():
    fit(*table(), "--epochs", 2, "--model", "linear", "--tensorboard", "--amp", "bf16")
    tags = read("runs/001").Tags()
    assert {"val_r2", "val_mae", "val_loss", "train_loss", "lr"} <= set(tags["scalars"])
    assert tags["histograms"] == ["1.weight", "1.bias"]  # of the bare model


def test_an_interrupted_run_goes_on_as_it_says_and_no_epoch_is_there_twice(child):
    options = ("--no-plot", "--epochs", 100, "--out", "run", "--tensorboard")
    process = child("-m", "kit", "fit", *options)
    while not Path("run/last.pt").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert 0 < len(kit.read_checkpoint("run/last.pt")["history"]) < 100
    go_on = errors.split("go on with: python ")[1].split()
    assert go_on[-4:] == ["--out", "run", "--resume", "--tensorboard"]
    process = child(*go_on)
    assert process.communicate(timeout=120)[1] == "" and process.returncode == 0
    assert_complete(Path("run"))


def test_what_was_logged_after_the_checkpoint_of_a_killed_run_is_hidden():
    fit("--epochs", 3, "--out", "run", "--tensorboard")
    last = Path("run/last.pt").read_bytes()
    next_second()
    fit("--epochs", 6, "--out", "run", "--resume", "--tensorboard")
    Path("run/last.pt").write_bytes(last)  # as if the disk had lost the newer one
    next_second()
    fit("--epochs", 5, "--out", "run", "--resume", "--tensorboard")
    assert_complete(Path("run"))


def test_a_run_that_began_without_tensorboard_shows_all_its_epochs():
    fit("--epochs", 3, "--out", "run")
    fit("--epochs", 5, "--out", "run", "--resume", "--tensorboard")
    assert_complete(Path("run"), histograms_from=3)


@pytest.mark.parametrize("again", [(), ("--tensorboard",)])
def test_an_overwritten_run_leaves_no_events(again):
    fit("--epochs", 5, "--out", "run", "--tensorboard")
    fit("--epochs", 2, "--out", "run", "--overwrite", "--lr", 0.5, *again)
    if again:
        assert hyperparameters(assert_complete(Path("run")))["lr"] == 0.5
    else:
        assert not list(Path("run").glob("events*"))


def test_without_tensorboard_one_line_comes_before_anything_is_touched(monkeypatch):
    fit("--epochs", 2, "--out", "run")
    before = {path: path.read_bytes() for path in Path("run").iterdir()}
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    for options in (["--resume"], ["--overwrite"], ["--out", "new"]):
        arguments = ["fit", "--epochs", "3", "--out", "run", "--tensorboard", *options]
        result = CliRunner().invoke(kit.main, arguments)
        assert result.exit_code == 1 and result.stdout == ""
        line = "Error: --tensorboard needs tensorboard: pip install tensorboard\n"
        assert result.stderr == line
    assert {path: path.read_bytes() for path in Path("run").iterdir()} == before
    assert not Path("new").exists()


def test_nothing_is_imported_unless_asked_for(child):
    code = """
import sys, kit
kit.main(["fit", "--epochs", "1", "--quiet", "--no-plot"], standalone_mode=False)
extras = {"tensorboard", "torch.utils.tensorboard", "wandb", "torchmetrics", "pandas"}
print(extras & set(sys.modules))
"""
    assert child("-c", code).communicate(timeout=60) == ("set()\n", "")


def test_events_change_nothing_in_the_run(same):
    fit("--epochs", 3, "--out", "watched", "--tensorboard")
    fit("--epochs", 3, "--out", "alone")
    assert same("watched/last.pt", "alone/last.pt")


def test_a_recipe_without_its_extra_ends_with_the_command_that_installs_it(child):
    code = f"""
import runpy, sys
for package, name in (
    ("torchmetrics", "08_metrics"),
    ("tensorboard", "09_tensorboard"),
    ("wandb", "09_wandb"),
):
    sys.modules[package] = None
    try:
        runpy.run_path(f"{RECIPES}/{{name}}.py")
    except SystemExit as stop:
        print(stop.code)
"""
    lines = [
        f"this recipe needs {package}: pip install {package}\n"
        for package in ("torchmetrics", "tensorboard", "wandb")
    ]
    assert child("-c", code).communicate(timeout=60) == ("".join(lines), "")


# --------------------------------------------------------------------- history.csv


def test_pandas_reads_every_number_of_the_history_as_it_was():
    fit(*table(), "--epochs", 50, "--patience", 0, "--scheduler", "step:step_size=9")
    history = kit.read_checkpoint("runs/001/last.pt")["history"]
    frame = pd.read_csv("runs/001/history.csv")
    assert frame.to_dict("records") == history and len(history) == 50
    assert list(frame.columns) == list(history[0])
    assert frame["epoch"].dtype == frame["step"].dtype == np.int64


def test_a_resume_mends_a_line_that_a_kill_has_torn():
    fit(*table(50), "--epochs", 3)
    path = Path("runs/001/history.csv")
    torn = path.read_bytes()[:-9]
    path.write_bytes(torn)
    fit("--resume", "--epochs", 5)
    history = kit.read_checkpoint("runs/001/last.pt")["history"]
    assert pd.read_csv(path).to_dict("records") == history and len(history) == 5


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a disk that is full")
def test_a_line_that_the_disk_has_no_room_for_is_an_error_that_names_the_file():
    Path("filling.py").write_text(
        "import pathlib, torch\n"
        "path = pathlib.Path('runs/001/history.csv')\n"
        "class Line(torch.nn.Linear):\n"
        "    def forward(self, x):\n"
        "        if path.exists():\n"
        "            path.unlink()\n"
        "            path.symlink_to('/dev/full')\n"
        "        return super().forward(x)\n"
    )
    arguments = ["fit", "--quiet", "--no-plot", "--model", "filling:Line"]
    result = CliRunner().invoke(kit.main, arguments)
    assert result.exit_code == 1
    assert (
        "Error: runs/001/history.csv could not be written: [Errno 28]" in result.stderr
    )


def test_a_column_that_comes_with_a_later_epoch_stands_in_the_header():
    fit("--amp", "fp16", "--clip", 1, "--epochs", 4)  # the first update is skipped
    frame = pd.read_csv("runs/001/history.csv")
    assert frame["train_grad_norm"].isna().tolist() == [True, False, False, False]
    history = kit.read_checkpoint("runs/001/last.pt")["history"]
    assert "train_grad_norm" not in history[0]
    assert frame[1:].to_dict("records") == pd.DataFrame(history)[1:].to_dict("records")


def test_pandas_reads_a_metric_that_is_no_number_as_nan():
    fit(*table(50), "--ratios", "0.98,0.02", "--epochs", 2)  # one row has no r2
    frame = pd.read_csv("runs/001/history.csv")
    assert frame["val_r2"].isna().all() and frame["val_mae"].notna().all()
    assert frame["val_r2"].dtype == np.float64
