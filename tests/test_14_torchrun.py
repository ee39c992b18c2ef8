"""Section 14: python -m kit fit under torchrun: killed, terminated, refused."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import kit

KILLS = int(os.environ.get("KIT_RANK_KILLS", "2"))
LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
LAUNCH += ["--nproc-per-node", "2", "--monitor-interval", "0.1"]


def workers(launcher):
    """The processes that a launcher has started and that live."""
    try:
        path = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children")
        return [int(pid) for pid in path.read_text().split()]
    except FileNotFoundError:
        return []


@pytest.fixture(scope="module")
def torchrun():
    """Start `torchrun --nproc-per-node 2 -m kit ...`; whatever is left is killed."""
    env = os.environ | {"PYTHONPATH": str(Path(kit.__file__).parent)}
    env |= {"OMP_NUM_THREADS": "1"}
    launched = []

    def start(*arguments, restarts=0):
        command = [*LAUNCH, "--max-restarts", restarts, "-m", "kit", *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = subprocess.Popen(list(map(str, command)), env=env, text=True, **pipes)
        launched.append(process)
        return process

    yield start
    for process in launched:
        for pid in (*workers(process), process.pid):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        process.communicate()


def finish(process):
    printed, errors = process.communicate(timeout=100)
    return process.returncode, printed, errors


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("torchrun")
    X = torch.randn(143, 3, generator=torch.Generator().manual_seed(0))
    rows = [",".join(map(str, [*row, sum(row)])) for row in X.tolist()]
    (folder / "rows.csv").write_text("\n".join(["a,b,c,y", *rows]))
    return folder


def fit(folder, out, *more):
    """A run of 30 epochs of 25 steps, saved after every third."""
    options = ("--data", folder / "rows.csv", "--target", "y", "--batch-size", 4)
    options += ("--patience", 0, "--epochs", 30, "--scheduler", "onecycle")
    options += ("--save-every", 3, "--out", folder / out, "--no-plot", *more)
    return ("fit", *options)


@pytest.fixture(scope="module")
def straight(torchrun, folder):
    code, printed, errors = finish(torchrun(*fit(folder, "straight")))
    assert code == 0, errors
    return printed


def wait_for(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_two_processes_print_once_and_end_as_one_does(straight, folder, child):
    assert straight.count("epoch 30/30") == straight.count("last.pt, best.pt") == 1
    process = child("-m", "kit", *fit(folder, "alone"))
    assert process.communicate()[1] == ""
    both, alone = (
        kit.read_checkpoint(folder / out / "last.pt") for out in ("straight", "alone")
    )
    assert both["step"] == alone["step"] == 750
    for name, tensor in alone["model"].items():  # float32, summed in another order
        assert torch.allclose(both["model"][name], tensor, rtol=1e-4, atol=1e-5)
    for one, other in zip(both["history"], alone["history"]):
        assert one["lr"] == other["lr"]
        assert one["val_r2"] == pytest.approx(other["val_r2"], abs=1e-4)


def test_a_run_whose_ranks_are_killed_ends_as_the_straight_one(
    torchrun, straight, folder, same
):
    dice, last = random.Random(os.environ.get("KIT_SEED")), folder / "killed/last.pt"
    process = torchrun(*fit(folder, "killed", "--quiet"), restarts=KILLS)
    wait_for(last.exists)
    for _ in range(KILLS):
        time.sleep(dice.uniform(0, 0.4))
        pids = workers(process)
        assert len(pids) == 2, "the run has ended before the kill"
        os.kill(dice.choice(pids), signal.SIGKILL)
        wait_for(lambda pids=pids: len({*workers(process)} - {*pids}) == 2)
        saved = last.stat().st_mtime_ns
        wait_for(lambda saved=saved: last.stat().st_mtime_ns > saved)
    code, _, errors = finish(process)
    assert code == 0, errors
    assert same(folder / "straight/last.pt", last)
    assert same(folder / "straight/best.pt", last.with_name("best.pt"))


def test_sigterm_to_the_launcher_saves_and_the_resumed_run_equals_the_straight_one(
    torchrun, straight, folder, same
):  # PITFALLS 19
    process, last = torchrun(*fit(folder, "run")), folder / "run/last.pt"
    wait_for(last.exists)
    process.send_signal(signal.SIGTERM)
    code, _, errors = finish(process)
    assert code != 0
    assert errors.count("interrupted and saved; go on with") == 1
    assert 0 < kit.read_checkpoint(last)["step"] < 750
    code, _, errors = finish(torchrun(*fit(folder, "run", "--resume", "--quiet")))
    assert code == 0, errors
    assert same(folder / "straight/last.pt", last)


def test_a_mistake_ends_the_job_with_its_line(torchrun, straight, folder):
    code, printed, errors = finish(torchrun(*fit(folder, "straight")))
    assert code != 0 and printed == ""
    assert f"Error: {folder}/straight holds a run: go on with --resume" in errors
