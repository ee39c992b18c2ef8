"""What several test files need: the repository's root, child processes, comparing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path, monkeypatch):
    """Every test, and every docstring's example, writes to a folder of its own."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def child(tmp_path):
    """Start a Python process that finds kit.py: child("-m", "kit", "fit")."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    started = []

    def start(*arguments, **options):
        command = [sys.executable, "-W", "error", *map(str, arguments)]
        usual = {"cwd": tmp_path, "env": env, "text": True}
        usual |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = subprocess.Popen(command, **usual | options)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def plain(value):
    """A checkpoint's content as nested lists and numbers, without the wall-clock."""
    if isinstance(value, torch.Tensor):
        return [str(value.dtype), list(value.shape), value.tolist()]
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items() if k != "seconds"}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value


@pytest.fixture(scope="session")
def same():
    """Whether two checkpoint files hold the same to the last bit, but for seconds."""

    def compare(one, other):
        load = [plain(torch.load(path, weights_only=True)) for path in (one, other)]
        assert repr(load[0]) == repr(load[1])
        return True

    return compare
