"""recipes/09_tensorboard.py: what TensorBoard reads is the history, each epoch once."""

import runpy
from functools import partial

import numpy as np
import pytest
from helpers import ROOT, make_state, python, table
from torch.nn import functional as F

import kit

pytest.importorskip("tensorboard")
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

RECIPE = runpy.run_path(str(ROOT / "recipes" / "09_tensorboard.py"))


def train(state, epochs):
    """Some epochs, logged to the folder board as the recipe does it."""
    loader = kit.make_loader(table(), batch_size=10)
    with RECIPE["open_writer"]("board", state) as writer:
        options = {"loss_fn": F.mse_loss, "on_epoch": partial(RECIPE["log"], writer)}
        return kit.fit(state, loader, loader, epochs=epochs, **options)


def assert_complete(state):
    """Every number of every row, and every parameter's histogram, once."""
    reader = EventAccumulator("board", {"scalars": 0, "histograms": 0}).Reload()
    assert reader.Tags()["scalars"] == list(state.history[0])
    for key in state.history[0]:
        events = [(event.step, event.value) for event in reader.Scalars(key)]
        rows = [(row["epoch"], float(np.float32(row[key]))) for row in state.history]
        assert events == rows, key
    for name, parameter in kit.unwrap(state.model).named_parameters():
        events = reader.Histograms(name)
        assert [event.step for event in events] == [r["epoch"] for r in state.history]
        total = parameter.detach().double().sum().item()
        assert events[-1].histogram_value.sum == pytest.approx(total, abs=1e-5)


def test_tensorboard_reads_the_history_and_the_parameters():
    state = make_state()
    assert_complete(train(state._replace(model=kit.amp(state.model, "bf16")), 2))


def test_a_killed_run_shows_each_epoch_once():
    state = train(make_state(), 3)
    kit.save_checkpoint(state, "last.pt")
    train(state, 5)  # and killed, before these two are in the checkpoint
    state = kit.load_checkpoint(make_state(), "last.pt")
    assert_complete(train(state, 6))


def test_a_recipe_without_its_package_says_what_to_install():
    recipes = {"08_metrics": "torchmetrics", "09_wandb": "wandb"}
    recipes |= {"09_tensorboard": "tensorboard", "10_serve": "fastapi"}
    code = f"""
import runpy, sys
for name, package in {recipes}.items():
    sys.modules[package] = None  # as if it were not installed
    try:
        runpy.run_path(f"{ROOT}/recipes/{{name}}.py", run_name="__main__")
    except SystemExit as stop:
        print(stop.code)
"""
    printed, errors = python("-c", code).communicate(timeout=60)
    assert errors == ""
    for line, package in zip(printed.splitlines(), recipes.values(), strict=True):
        assert line.startswith("this recipe needs") and "pip install" in line
        assert package in line
