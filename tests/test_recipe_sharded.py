"""recipes/14_sharded.py, beside what it prints: two processes train as one."""

import runpy
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from helpers import ROOT, assert_same, start_ranks
from torch.nn.functional import mse_loss

import kit

RECIPE = runpy.run_path(str(ROOT / "recipes" / "14_sharded.py"))
make_state, make_loader, save = map(RECIPE.get, ("make_state", "make_loader", "save"))

# Two processes add up rows, and the squares of a norm, in another order: a few roundings
# of float32, 6e-8 each, in numbers up to 1.
NEAR = 1e-5


def one_row_batches():
    """Two processes, and one row: one of them has none."""
    X = torch.randn(5, 8, generator=torch.Generator().manual_seed(2))
    return kit.make_loader((X, X.sum(1, True)), batch_size=1, shuffle=True)


def numbers(state):
    """Whole weights and moments by name, the step and the rows, as the recipe saves."""
    save(state, Path("models/numbers.pt"))
    content = torch.load("models/numbers.pt", weights_only=True)
    moments = content["optimizer"].get("state")  # the first process has them
    keys = ("epoch", "step", "train_loss", "train_grad_norm")
    rows = [[row[key] for key in keys] for row in state.history]
    return content | {"optimizer": moments, "history": rows}


def in_two_processes(file):
    """What this process holds of each run."""
    dist.init_process_group("gloo")
    start, train = RECIPE["load"](make_state(shard=True), file), RECIPE["train"]
    found = [numbers(train(start, make_loader(), epochs=4))]
    found.append(numbers(train(make_state(shard=True), one_row_batches(), epochs=2)))
    dist.destroy_process_group()
    return found


def fit(loader, epochs):
    """The one process that the two are compared with."""
    options = {"loss_fn": mse_loss, "epochs": epochs, "step": RECIPE["step"]}
    return kit.fit(make_state(), loader, **options)


def test_two_processes_continue_as_one_and_may_lack_rows():
    save(fit(make_loader(), 2), Path("of_one.pt"))
    ranks = start_ranks(2, in_two_processes, Path("of_one.pt").resolve())
    expected = numbers(fit(make_loader(), 4)), numbers(fit(one_row_batches(), 2))
    for first, second, one in zip(*(rank.result() for rank in ranks), expected):
        assert_same(first, one, NEAR)
        # the other rank has only the step and the rows
        assert (second["step"], second["history"]) == (first["step"], first["history"])


def test_a_save_that_fails_keeps_the_file(monkeypatch):
    save(make_state(), path := Path("models/numbers.pt"))
    before = path.read_bytes()
    half = lambda content, file: (Path(file).write_bytes(b"half"), 1 / 0)
    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(ZeroDivisionError):
        save(make_state(), path)
    assert path.read_bytes() == before


def test_the_step_is_train_step_in_one_process():
    states = [make_state() for _ in range(2)]
    for batch in make_loader():
        options = {"loss_fn": mse_loss, "clip": 0.1}
        states[0], totals = RECIPE["step"](states[0], batch, **options)
        states[1], others = kit.train_step(states[1], batch, **options)
        assert_same(dict(sorted(totals.items())), dict(sorted(others.items())), NEAR)
    assert_same(*map(numbers, states), NEAR)
