"""recipes/14_sharded.py: two processes, each with a part of the weights, train as one."""

import runpy
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from helpers import ROOT, assert_same, start_ranks

import kit

RECIPE = str(ROOT / "recipes" / "14_sharded.py")

# Two processes add up rows, and the squares of a norm, in another order: a few roundings
# of float32, 6e-8 each, in numbers up to 1.
NEAR = 1e-5


def one_row_batches():
    """Two processes, and one row: one of them has none."""
    X = torch.randn(5, 8, generator=torch.Generator().manual_seed(2))
    return kit.make_loader((X, X.sum(1, True)), batch_size=1, shuffle=True)


def numbers(state):
    """Whole weights and moments by name, the step and the rows, as the recipe saves."""
    recipe = runpy.run_path(RECIPE)
    recipe["save"](state, Path("models/numbers.pt"))
    content = torch.load("models/numbers.pt", weights_only=True)
    moments = content["optimizer"].get("state")  # the first process has them
    keys = ("epoch", "step", "train_loss", "train_grad_norm")
    rows = [[row[key] for key in keys] for row in state.history]
    return content | {"optimizer": moments, "history": rows}


def work(folder):
    """In each of two processes: every run, and what this process holds of it."""
    recipe = runpy.run_path(RECIPE)
    make_state, make_loader = recipe["make_state"], recipe["make_loader"]
    train, load = recipe["train"], recipe["load"]
    dist.init_process_group("gloo")
    found = {}

    state = train(make_state(shard=True), make_loader(), epochs=4)
    found["straight"] = numbers(state)
    found["held"] = recipe["count_held"](state)
    found["local shapes"] = [
        tuple(p.to_local().shape) for p in state.model.parameters()
    ]

    state = train(make_state(shard=True), one_row_batches(), epochs=2)
    found["one row a batch"] = numbers(state)

    state = load(make_state(shard=True), Path(folder, "of_one.pt"))
    found["continued"] = numbers(train(state, make_loader(), epochs=4))

    recipe["save"](
        train(make_state(shard=True), make_loader(), epochs=2), Path("two.pt")
    )
    found["file"] = Path("two.pt").read_bytes() if dist.get_rank() == 0 else b""
    dist.destroy_process_group()
    return found


@pytest.fixture(scope="module")
def recipe():
    return runpy.run_path(RECIPE)


def fit(recipe, epochs, *, loader=None, state=None):
    """The one process that the two are compared with."""
    return kit.fit(
        state or recipe["make_state"](),
        loader or recipe["make_loader"](),
        loss_fn=torch.nn.functional.mse_loss,
        epochs=epochs,
        step=recipe["step"],
    )


@pytest.fixture(scope="module")
def found(recipe, tmp_path_factory):
    """What each process found, of one start of both."""
    folder = tmp_path_factory.mktemp("sharded")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        recipe["save"](fit(recipe, 2), Path("of_one.pt"))
        ranks = start_ranks(2, work, str(folder))
        return [rank.result() for rank in ranks]


def compare(found, recipe, name, state):
    """Rank 0 has all numbers, the other rank only the step and the rows."""
    first, second = found[0][name], found[1][name]
    assert_same(first, numbers(state), NEAR)
    assert (second["step"], second["history"]) == (first["step"], first["history"])


def test_two_processes_train_as_one(found, recipe):
    compare(found, recipe, "straight", fit(recipe, 4))


def test_a_process_without_rows_changes_nothing(found, recipe):
    state = fit(recipe, 2, loader=one_row_batches())
    compare(found, recipe, "one row a batch", state)


def test_each_process_holds_about_half(found, recipe):
    whole = recipe["count_held"](fit(recipe, 1))
    held = [rank["held"] for rank in found]
    assert sum(held) == whole and max(held) < 0.52 * whole
    assert found[0]["local shapes"][:2] == [(32, 8), (32,)]  # of (64, 8) and (64,)


def test_two_processes_continue_the_file_of_one(found, recipe):
    compare(found, recipe, "continued", fit(recipe, 4))


def test_one_process_continues_the_file_of_two(found, recipe):
    Path("two.pt").write_bytes(found[0]["file"])
    state = recipe["load"](recipe["make_state"](), Path("two.pt"))
    assert state.step == 6 and [row["epoch"] for row in state.history] == [1, 2]
    state = fit(recipe, 4, state=state)
    assert_same(numbers(state), numbers(fit(recipe, 4)), NEAR)


def test_the_step_is_train_step_in_one_process(recipe):
    states = [recipe["make_state"]() for _ in range(2)]
    for batch in recipe["make_loader"]():
        options = {"loss_fn": torch.nn.functional.mse_loss, "clip": 0.1}
        states[0], totals = recipe["step"](states[0], batch, **options)
        states[1], others = kit.train_step(states[1], batch, **options)
        assert_same(dict(sorted(totals.items())), dict(sorted(others.items())), NEAR)
    assert_same(*map(numbers, states), NEAR)
