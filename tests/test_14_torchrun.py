"""Section 14: python -m kit fit under torchrun, killed, terminated, and refused."""

import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch

import kit

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
KILLS = int(os.environ.get("KIT_RANK_KILLS", "2"))


@pytest.fixture
def torchrun(child):
    """Start two processes of `python -m kit`, as torchrun --nproc-per-node 2 does."""
    launched = []

    def start(*arguments, restarts=0):
        options = ("--max-restarts", restarts, "--monitor-interval", "0.1")
        # of torch's own warnings one comes from its launcher
        environment = os.environ | {"PYTHONPATH": str(Path(kit.__file__).parent)}
        environment |= {"OMP_NUM_THREADS": "1", "TORCHELASTIC_ERROR_FILE": ""}
        process = child(*TORCHRUN, *options, "-m", "kit", *arguments, env=environment)
        launched.append(process)
        return process

    yield start
    for process in launched:
        for worker in workers(process):
            os.kill(worker, signal.SIGKILL)


def workers(launcher):
    """The processes that a launcher has started and that live, the first one first."""
    try:
        path = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children")
        return [int(pid) for pid in path.read_text().split()]
    except FileNotFoundError:
        return []


def options(out):
    """A run of 30 epochs of 25 steps, saved every 3, of dropout-free but random rows."""
    if not Path("rows.csv").exists():
        X = torch.randn(143, 3, generator=torch.Generator().manual_seed(0))
        rows = [",".join(map(str, [*row, sum(row)])) for row in X.tolist()]
        Path("rows.csv").write_text("\n".join(["a,b,c,y", *rows]))
    fixed = ("--data", "rows.csv", "--target", "y", "--batch-size", 4, "--patience", 0)
    fixed += ("--epochs", 30, "--scheduler", "onecycle", "--no-plot", "--quiet")
    return ("fit", *fixed, "--save-every", 3, "--out", out)


def finish(process):
    printed, errors = process.communicate(timeout=100)
    return process.returncode, printed, errors


def wait_for(condition, limit=60):
    end = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_run_whose_ranks_are_killed_ends_as_the_straight_one(torchrun, same):
    straight = torchrun(*options("straight"))
    assert finish(straight)[0] == 0
    dice, last = random.Random(os.environ.get("KIT_SEED", "0")), Path("killed/last.pt")
    process = torchrun(*options("killed"), restarts=KILLS)
    wait_for(last.exists)
    for _ in range(KILLS):
        time.sleep(dice.uniform(0, 0.5))
        pids = workers(process)
        assert len(pids) == 2, "the run has ended before the kill"
        os.kill(dice.choice(pids), signal.SIGKILL)
        wait_for(lambda pids=pids: len({*workers(process)} - {*pids}) == 2)
        saved = last.stat().st_mtime_ns
        wait_for(lambda saved=saved: last.stat().st_mtime_ns > saved)
    code, _, errors = finish(process)
    assert code == 0, errors
    assert same("straight/last.pt", "killed/last.pt")
    assert same("straight/best.pt", "killed/best.pt")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_launcher_saves_and_the_resumed_run_equals_the_straight_one(
    number, torchrun, same
):  # PITFALLS 18, 19
    process = torchrun(*options("run"))
    wait_for(Path("run/last.pt").exists)
    process.send_signal(number)
    code, _, errors = finish(process)
    assert code != 0
    saved = kit.read_checkpoint("run/last.pt")
    assert 0 < saved["step"] < 750
    assert errors.count("interrupted and saved; go on with") == 1
    assert finish(torchrun(*options("run"), "--resume"))[0] == 0
    assert finish(torchrun(*options("straight")))[0] == 0
    assert same("run/last.pt", "straight/last.pt")
