"""A folder for every test, one thread for torch, and no process left behind."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

pytest.register_assert_rewrite("helpers")

import helpers


def pytest_collection_modifyitems(items):
    """Recipes first: they take longest, and several processes then end together."""
    items.sort(key=lambda item: "test_recipes.py" not in item.nodeid)


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path, monkeypatch):
    """Every test, and every docstring's example, writes to a folder of its own."""
    monkeypatch.chdir(tmp_path)
    yield
    helpers.end_started()
