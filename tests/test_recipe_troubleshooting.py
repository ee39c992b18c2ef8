"""recipes/12_troubleshooting.py: each problem is found, and nothing where all is well."""

import runpy
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers import ROOT, mlp, table
from torch import nn
from torch.nn import functional as F

import kit

RECIPE = runpy.run_path(str(ROOT / "recipes" / "12_troubleshooting.py"))
LINE = kit.make_data()


def sgd(model, lr=0.1):
    return torch.optim.SGD(model.parameters(), lr=lr)


def line():
    torch.manual_seed(42)
    return nn.Linear(1, 1)


ask_1 = partial(RECIPE["loss_does_not_fall"], batch=LINE, loss_fn=F.mse_loss)


def test_question_1_tries_other_learning_rates():
    model = line()
    ask = lambda lr: ask_1(model, sgd(model, lr))
    assert ask(1e-5) == ["the learning rate 1e-05 is too small: 0.01"]
    assert ask(10.0) == ["the learning rate 10 is too large: 0.1"]
    assert ask(0.1) == []


def test_question_1_finds_parameters_that_are_not_trained():
    model = mlp(1, dropout=0.0)
    model[0].requires_grad_(False)
    found = ask_1(model, sgd(model[0]))
    assert [text.split(" ")[:3] for text in found] == [
        *(["0.weight", "has", "no"], ["0.bias", "has", "no"]),
        *(["3.weight", "is", "not"], ["3.bias", "is", "not"]),
    ]


def test_question_1_finds_a_forgotten_zero_grad():
    model = line()
    found = ask_1(model, sgd(model), step=RECIPE["step_without_zero_grad"])
    assert found == ["gradients add up from step to step: call optimizer.zero_grad()"]


def rows(train, val):
    pairs = enumerate(zip(train, val), start=1)
    return [{"epoch": i, "train_loss": t, "val_loss": v} for i, (t, v) in pairs]


def test_question_2_wants_val_to_rise_while_train_falls():
    ask = lambda train, val: RECIPE["overfits"](rows(train, val))
    falling, rising = [5, 4, 3, 2, 1, 0.5, 0.2], [5, 4, 3, 4, 5, 6, 7]
    (found,) = ask(falling, rising)
    assert found.startswith("val_loss was 3 in epoch 3 and is now 6, while train_loss")
    assert ask(falling, falling) == ask(rising, rising) == ask([5, 1], [1, 5]) == []


def test_question_3_compares_with_a_constant():
    ask = partial(RECIPE["underfits"], loss_fn=F.mse_loss)
    _, y = table(200)
    (found,) = ask(y.mean().expand(200, 1), y)
    assert found.startswith("the loss is 100% of a constant's: a larger model")
    assert ask(y + 0.1, y) == []
    falling = [9, 8, 7, 6, 5, 4, 3, 2]
    assert len(ask(y, y, history=rows(falling, falling))) == 1


class Slow(torch.utils.data.TensorDataset):
    def __getitem__(self, i):
        time.sleep(0.01)
        return super().__getitem__(i)


class Sleepy(nn.Linear):
    """Takes so many seconds a row."""

    seconds = 0.0

    def forward(self, x):
        time.sleep(self.seconds * len(x))
        return super().forward(x)


def test_question_4_tells_waiting_from_working():
    ask, model = partial(RECIPE["training_is_slow"], loss_fn=F.mse_loss), Sleepy(3, 1)
    (found,) = ask(model, kit.make_loader(Slow(*table(20)), batch_size=5))
    assert "of the time is waiting for data: workers=2" in found
    model.seconds = 0.004
    (found,) = ask(model, kit.make_loader(table(20), batch_size=5))
    assert "the CPU is at its limit" in found


def test_question_5_counts_the_bytes_of_a_step():
    model = nn.Sequential(nn.Linear(256, 256, bias=False), *[nn.Tanh()] * 4)
    adam = torch.optim.Adam(model.parameters())
    batch = torch.randn(1000, 256), torch.randn(1000, 256)
    kit.train_step(kit.make_state(model, adam), batch, loss_fn=F.mse_loss)

    # Weights and gradients .52 MB, Adam .52; inputs, targets and 4 outputs 1.02 each.
    ask = partial(RECIPE["out_of_memory"], model, adam, loss_fn=F.mse_loss)
    assert ask(batch, available=7.4e6) == []
    assert "accumulate=2" in ask(batch, available=6e6)[0]
    assert "accumulate=3" in ask(batch, available=4e6)[0]
    few = batch[0][:9], batch[1][:9]
    assert "an optimizer that keeps less" in ask(few, available=1)[0]


def test_question_6_finds_a_class_that_is_missed():
    classes = (torch.arange(1000) < 40).long()
    always_0 = F.one_hot(0 * classes, 2).float()
    (found,) = RECIPE["misses_a_class"](always_0, classes)
    assert found.startswith("class 1 has one row for 24 of the commonest class, and 0%")
    assert RECIPE["misses_a_class"](F.one_hot(classes).float(), classes) == []


def test_question_7_finds_scales_and_constants():
    X = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    assert RECIPE["inputs_are_off_scale"](X) == []
    X = X * torch.tensor([100.0, 1.0, 0.0]) + torch.tensor([0.0, 50.0, 7.0])
    X[5, 1] = torch.nan  # a gap
    found = RECIPE["inputs_are_off_scale"](X, ["a", "b", "c"])
    assert [text.split()[0] for text in found] == ["a", "b", "c"]
    assert found[2] == "c is always 7: leave it out"
    assert RECIPE["inputs_are_off_scale"](kit.Standardize(X)(X)[:, :2]) == []


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
