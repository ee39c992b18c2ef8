"""Mixed precision, compiling, early stopping, the best epoch, fp16's end."""

import math
import random
from collections import OrderedDict
from functools import partial
from typing import NamedTuple

import helpers
import pytest
import torch
from helpers import WRAPS, make_state, mlp, refused
from torch import nn
from torch.nn import functional as F

import kit

NAN, INF = math.nan, math.inf
table = partial(helpers.table, 71)  # 3 batches of 32, the last of 7


# ------------------------------------------------------------ amp and torch.compile


@pytest.mark.parametrize("name", WRAPS)
def test_a_wrapped_model_trains_as_the_unwrapped(name):
    def loss_fn(prediction, target):  # small enough for fp16's first scale
        return 0.1 * F.mse_loss(prediction, target)

    def fitted(wrap):
        state = make_state(wrap(mlp(dropout=0.0)))
        parts = kit.make_loader(table(), batch_size=32, shuffle=True), [table(seed=2)]
        options = {"epochs": 8, "metrics": kit.metrics}
        return kit.fit(state, *parts, loss_fn=loss_fn, **options)

    torch.compiler.reset()
    state, plain = fitted(WRAPS[name]), fitted(WRAPS["bare"])
    assert state.scaler.is_enabled() == ("fp16" in name)
    assert isinstance(kit.unwrap(state.model), nn.Sequential)
    for row, expected in zip(state.history, plain.history, strict=True):
        assert row.keys() - {"train_skipped"} == expected.keys()
        for key in ("train_loss", "val_loss", "val_mae"):
            assert row[key] == pytest.approx(expected[key], rel=0.03)
    outputs, expected = (kit.predict(s.model, table()[0]) for s in (state, plain))
    torch.testing.assert_close(outputs, expected, rtol=0.1, atol=0.1)


class Out(NamedTuple):
    mean: torch.Tensor
    spread: torch.Tensor


class Named(OrderedDict):
    """A dict with attributes, as models of transformers return it."""

    def __getattr__(self, name):
        return self[name]


class Many(nn.Module):
    """Outputs of every sort, and the dtype that was computed in."""

    def __init__(self):
        super().__init__()
        self.layer, self.seen = nn.Linear(2, 2), []

    def forward(self, x, *, scale):
        y = self.layer(x) * scale
        self.seen.append(y.dtype)
        out = {"y": y, "more": [Out(y, y), (y, y.argmax(1))], "n": 7, "none": None}
        return Named(out)


@pytest.mark.parametrize("name, low", [("bf16", torch.bfloat16), ("fp16", torch.half)])
def test_amp_computes_in_low_precision_and_returns_float32(name, low):
    model = Many()
    out = kit.amp(model, name)(torch.ones(3, 2), scale=2)
    (mean, spread), (y, indices) = out["more"]
    assert type(out) is Named and out.y is out["y"]
    assert model.seen == [low] and not torch.is_autocast_enabled("cpu")
    assert {t.dtype for t in (out["y"], mean, spread, y)} == {torch.float32}
    assert type(out["more"][0]) is Out and type(out["more"][1]) is tuple
    assert indices.dtype == torch.int64 and (out["n"], out["none"]) == (7, None)
    y.sum().backward()
    assert all(p.grad.dtype == p.dtype == torch.float32 for p in model.parameters())


def test_what_amp_cannot_do_is_one_line():
    for precision in ("fp32", "half", ""):
        with refused("^precision must be bf16 or fp16, got "):
            kit.amp(mlp(), precision)
    with refused("unsupported.* 'meta'", RuntimeError):
        kit.amp(nn.Linear(1, 1, device="meta"), "bf16")


# ------------------------------------------------------- early stopping and the best


def rows(*values, key="val_loss"):
    return [{"epoch": i + 1, key: value} for i, value in enumerate(values)]


def stops_at(values, *, key="val_loss", **options):
    """The index of the row after which a run stops; None where it never does."""
    history = rows(*values, key=key)
    for i in range(len(history) + 1):
        if kit.early_stopping(history[:i], key=key, **options):
            return i - 1
    return None


def best_at(values, *, key="val_loss", **options):
    """The index of the last row that was the best when it came."""
    parts = (rows(*values, key=key)[: i + 1] for i in range(len(values)))
    best = [i for i, part in enumerate(parts) if kit.is_best(part, key=key, **options)]
    return best[-1] if best else None


def test_nan_is_never_best_and_counts_as_no_improvement():
    assert best_at([NAN, 1.0, 2.0, 2.0, 2.0]) == 1
    assert stops_at([NAN, 1.0, 2.0, 2.0, 2.0], patience=2) == 3
    assert best_at([NAN, NAN]) is None and best_at([INF, INF]) is None
    assert stops_at([NAN, NAN, NAN], patience=2) == 1
    assert best_at([2.0, NAN, 1.0, NAN]) == 2 and best_at([INF, 1.0]) == 1
    assert stops_at([2.0, NAN, NAN, NAN], patience=3) == 3
    assert stops_at([2.0, NAN, 1.0, NAN], patience=2) is None
    assert best_at([NAN, 0.1, NAN], key="val_f1", mode="max") == 1


def test_the_best_must_be_better_by_more_than_min_delta():
    assert best_at([1.0, 1.0]) == 0  # as good is not better
    assert best_at([1.0, 0.9, 0.8, 0.7, 0.6], min_delta=0.15) == 4  # 1.0, 0.8, 0.6
    assert best_at([0.5, 0.6, 0.7], key="val_r2", mode="max", min_delta=0.15) == 2


def counter(losses, patience, min_delta):
    """Where the class of many tutorials stops, which counts the losses it waited."""
    best, waited = INF, 0
    for i, loss in enumerate(losses):
        waited += 1
        if loss < best - min_delta:
            best, waited = loss, 0
        if waited == patience:
            return i
    return None


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("seed", range(5))
def test_early_stopping_stops_where_a_counter_does(seed, mode):
    generator = random.Random(seed)
    losses = [1 / (i + 1) + generator.random() * 0.4 for i in range(40)]
    losses[generator.randrange(40)] = NAN
    values = losses if mode == "min" else [-loss for loss in losses]
    for patience in (1, 2, 5):
        for min_delta in (0.0, 0.05):
            options = {"patience": patience, "min_delta": min_delta}
            found = stops_at(values, key="val_score", mode=mode, **options)
            assert found == counter(losses, **options)


def test_the_direction_is_told_unless_it_is_an_error():
    for key in ("val_loss", "train_loss", "val_mae", "val_mse", "val_rmse"):
        assert best_at([2.0, 1.0, 3.0], key=key) == 1
    for key in ("val_accuracy", "val_r2", "train_tokens"):
        assert best_at([2.0, 1.0, 3.0], key=key, mode="max") == 2
        history = rows(2.0, 1.0, key=key)
        for judge in (kit.is_best, partial(kit.early_stopping, patience=1)):
            with refused(f"mode.*{key}|{key}.*mode"):
                judge(history, key=key)
            with refused("^mode must be .*, got 'lowest'"):
                judge(history, key=key, mode="lowest")


def test_the_key_is_train_loss_where_nothing_is_validated():
    both = [{"train_loss": t, "val_loss": v} for t, v in ((2.0, 1.0), (1.0, 2.0))]
    assert kit.is_best(both) is False and kit.is_best(both[:1]) is True
    assert kit.early_stopping(both, patience=1) is True
    assert kit.is_best(rows(2.0, 1.0, key="train_loss")) is True
    assert kit.early_stopping(rows(2.0, 1.0, key="train_loss"), patience=1) is False
    with refused("'val_loss'.*train_loss|train_loss.*'val_loss'"):
        kit.is_best(rows(1.0, key="train_loss"), key="val_loss")
    later = [{"train_loss": 1.0}, *rows(2.0, 1.0, 3.0)]  # validated from there on
    assert kit.is_best(later[:2]) is True and kit.is_best(later[:3]) is True
    assert kit.early_stopping(later, patience=1) is True


def test_an_empty_history_neither_stops_nor_is_best():
    assert kit.early_stopping([], patience=1) is kit.is_best(()) is False
    with refused("^patience must be at least 1, got 0"):
        kit.early_stopping([], patience=0)


# ----------------------------------------------------------------------- fp16 and NaN


@pytest.mark.parametrize("what", ["a row", "all rows", "the gradients"])
def test_nothing_but_nan_stops_fp16_in_the_end(what):
    X, y = table()
    state, loader = make_state(kit.amp(mlp(), "fp16")), [(X * NAN, y)]
    if what == "a row":
        X[19, 2] = NAN
        loader = kit.make_loader((X, y), batch_size=8)
    if what == "the gradients":
        next(state.model.parameters()).register_hook(lambda gradient: gradient * NAN)
        loader = [(X, y)]
    with refused("epoch", FloatingPointError):
        kit.fit(state, loader, loss_fn=F.mse_loss, epochs=300)


# ------------------------------------------------------------------- a script's end

SCRIPT = """
import kit
half_read = iter(kit.make_loader(kit.make_data(), batch_size=2, workers=2))
print(len(next(half_read)[0]), flush=True)
"""


def test_a_script_ends_though_its_loader_has_workers():
    process = helpers.python("-c", SCRIPT)
    assert process.communicate(timeout=45) == ("2\n", "")
    assert process.returncode == 0
