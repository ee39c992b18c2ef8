"""recipes/12_troubleshooting.py: what it prints is tested with the other recipes."""

import re
import runpy
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers import ROOT, table
from torch import nn
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
    halves = torch.arange(1000) % 2  # neither class is rare
    for name, *arguments in (
        ("overfits", rows(falling, falling)),
        ("overfits", rows(rising, rising)),
        ("misses_a_class", F.one_hot(classes).float(), classes),
        ("misses_a_class", F.one_hot(0 * halves, 2).float(), halves),
        ("inputs_are_off_scale", torch.cat([X, X[:1] * torch.nan])),  # with gaps
    ):
        assert RECIPE[name](*arguments) == []
    assert RECIPE["underfits"](y + 0.1, y, loss_fn=F.mse_loss) == []


def test_a_trial_leaves_the_model_as_it_is():
    model = RECIPE["mlp"](3, dropout=0.5)
    before = [p.clone() for p in model.parameters()]
    for lr, words in ((0.1, []), (1e-6, ["small"]), (100.0, ["large"])):
        optimizer = torch.optim.SGD(model.parameters(), lr=lr)
        trial = partial(RECIPE["loss_does_not_fall"], model, optimizer, table(40))
        found = trial(loss_fn=F.mse_loss)
        assert [re.search("small|large", text)[0] for text in found] == words
        assert all(map(torch.equal, before, model.parameters()))


def test_what_is_said_has_the_right_numbers():
    falling, once = [8, 7, 6, 5, 4, 3, 2, 1], [8, 1, 1, 1, 1, 1, 1, 1]
    (found,) = RECIPE["overfits"]([{"train_loss": 9}, *rows(falling, falling[::-1])])
    assert "val_loss was 1 in epoch 1 and is now 7" in found
    by_chance = rows(falling, [3, 3, 3, 3, 3, 3, 3, 3.8])  # the last epoch only
    assert RECIPE["overfits"](by_chance) == []

    _, y = table(200)
    for losses, words in ((falling, ["29%"]), (once, [])):
        options = {"loss_fn": F.mse_loss, "history": rows(losses, losses)}
        found = RECIPE["underfits"](y, y, **options)
        assert [sentence.split()[0] for sentence in found] == words
    classes = (torch.arange(100) < 10).long()
    chances = torch.tensor([0.9, 0.1]).log().expand(100, 2)  # which a constant knows
    (found,) = RECIPE["underfits"](chances, classes, loss_fn=F.cross_entropy)
    assert "100% of a constant's" in found

    found_two = F.one_hot((torch.arange(100) < 2).long()).float()
    (found,) = RECIPE["misses_a_class"](found_two, classes)
    assert "class 1 has one row for 9" in found and "20% of them" in found

    # rows of x, tanh, output and target are 1024 bytes each
    model = nn.Sequential(nn.Linear(256, 256), nn.Tanh(), nn.Linear(256, 256))
    optimizer, batch = torch.optim.Adam(model.parameters()), torch.randn(2, 8192, 256)
    F.mse_loss(model(batch[0][:2]), batch[1][:2]).backward()
    optimizer.step()
    options = {"loss_fn": F.mse_loss, "available": 10e6}
    (found,) = RECIPE["out_of_memory"](model, optimizer, batch, **options)
    for words in ("needs 36 MB", "gradients take 1", "optimizer 1", "activations 34"):
        assert words in found
    assert "accumulate=5" in found  # 1927 rows
    assert RECIPE["out_of_memory"](model, optimizer, batch[:, :1927], **options) == []


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
