"""recipes/12_troubleshooting.py: what it prints is tested with the other recipes."""

import runpy
from pathlib import Path

import pytest
import torch
from helpers import ROOT, table
from torch.nn import functional as F

import kit

RECIPE = runpy.run_path(str(ROOT / "recipes" / "12_troubleshooting.py"))


def rows(train, val):
    pairs = enumerate(zip(train, val), start=1)
    return [{"epoch": i, "train_loss": t, "val_loss": v} for i, (t, v) in pairs]


def test_nothing_is_found_where_all_is_well():
    falling, rising = [5, 4, 3, 2, 1, 0.5, 0.2], [5, 4, 3, 4, 5, 6, 7]
    classes = (torch.arange(1000) < 40).long()
    X, y = table(200)
    for name, *arguments in (
        ("overfits", rows(falling, falling)),
        ("overfits", rows(rising, rising)),
        ("misses_a_class", F.one_hot(classes).float(), classes),
        ("inputs_are_off_scale", kit.Standardize(X * 100 + 7)(X * 100 + 7)),
    ):
        assert RECIPE[name](*arguments) == []
    assert RECIPE["underfits"](y + 0.1, y, loss_fn=F.mse_loss) == []


def test_a_run_folder_is_examined(capsys, monkeypatch):
    pytest.importorskip("pandas")
    lines = [f"{i % 10},7,{'no' if i % 20 else 'yes'}" for i in range(200)]
    Path("t.csv").write_text("\n".join(["a,b,y", *lines]))
    fit = ["fit", "--quiet", "--epochs", "9", "--data", "t.csv", "--target", "y"]
    kit.main([*fit, "--out", "run"], standalone_mode=False)
    monkeypatch.setattr("sys.argv", ["12_troubleshooting.py", "run"])
    RECIPE["main"]()
    printed = capsys.readouterr().out
    assert "class 1 has one row for 19" in printed and "b is always 7" in printed
