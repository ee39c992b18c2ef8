"""What several test files need: small tables and models, comparing, starting processes."""

import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Dataset

import kit

ROOT = Path(__file__).parents[1]

# ------------------------------------------------------------- small tables and models


def table(n=40, columns=3, *, classes=0, seed=1):
    """Inputs (n, columns) and targets: numbers (n, 1), or class numbers (n,)."""
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(n, columns, generator=generator)
    if classes:
        return X, torch.randint(classes, (n,), generator=generator)
    return X, X.sum(1, True) + X[:, :1] ** 2


def mlp(inputs=3, outputs=1, *, dropout=0.5):
    """A small model, the same each time."""
    torch.manual_seed(0)
    hidden = nn.Linear(inputs, 8), nn.Tanh(), nn.Dropout(dropout)
    return nn.Sequential(*hidden, nn.Linear(8, outputs))


def classifier():
    """A model with every sort of layer, the same each time."""
    torch.manual_seed(0)
    parts = nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(), nn.Linear(8, 4)
    return nn.Sequential(*parts)


def draws():
    """A number of each of the three global generators."""
    return [random.random(), np.random.rand(), torch.rand(()).item()]


def random_state():
    """The state of all three, to compare."""
    torch_state = torch.get_rng_state().tolist()
    return repr((random.getstate(), np.random.get_state(), torch_state))


class Draws(Dataset):
    """Rows that draw, as an augmentation does; their targets are their numbers."""

    def __init__(self, n=20):
        self.n = n

    def __len__(self):
        return self.n

    def __getitem__(self, row):
        return torch.tensor(draws()), torch.tensor([float(row)])


def make_state(model=None, *, optimizer=torch.optim.Adam, scheduler=None, lr=0.01):
    """A state of the model, with a scheduler that is made of the optimizer."""
    model = mlp() if model is None else model
    optimizer = optimizer(model.parameters(), lr=lr)
    scheduler = scheduler and scheduler(optimizer)
    return kit.make_state(model, optimizer, scheduler=scheduler)


def partly_compiled(model):
    model[0] = torch.compile(model[0], backend="eager")
    return model


WRAPS = {
    "bare": lambda model: model,
    "bf16": lambda model: kit.amp(model, "bf16"),
    "fp16": lambda model: kit.amp(model, "fp16"),
    "compiled in part": partly_compiled,
    "compiled fp16": lambda m: torch.compile(kit.amp(m, "fp16"), backend="eager"),
    "bf16 compiled": lambda m: kit.amp(torch.compile(m, backend="eager"), "bf16"),
}

CLASS_WEIGHTS = torch.tensor([0.1, 3.0, 0.5, 1.0])
weighted_mean = partial(F.cross_entropy, weight=CLASS_WEIGHTS, ignore_index=-1)


def weighted(outputs, targets):
    """Cross entropy with class weights and ignore_index, as totals."""
    weight = CLASS_WEIGHTS[targets[targets >= 0]].sum()
    loss = weighted_mean(outputs, targets, reduction="sum")
    return {"loss": loss, "weight": weight, "twice": 2 * weight}


class Step:
    """train_step that keeps batches, totals and rates, and may get a signal.

    `before` and `after` are called with the state before and after the step.
    """

    def __init__(self, signal_at=-1, number=signal.SIGTERM, **bound):
        self.before = bound.pop("before", lambda state: None)
        self.after = bound.pop("after", lambda state: None)
        self.signal_at, self.number, self.bound = signal_at, number, bound
        self.batches, self.totals, self.lrs = [], [], []

    def __call__(self, state, batch, **options):
        self.before(state)
        if state.step == self.signal_at:
            signal.raise_signal(self.number)
        self.batches.append(batch)
        self.lrs.append(state.optimizer.param_groups[0]["lr"])
        state, totals = kit.train_step(state, batch, **self.bound, **options)
        self.totals.append(totals)
        self.after(state)
        return state, totals


# -------------------------------------------------------------------------- comparing


def content(run):
    """What the checkpoint of a State, or a checkpoint file, holds, but no seconds."""
    if isinstance(run, kit.State):
        memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
        with tempfile.TemporaryDirectory(dir=memory) as folder:
            return content(kit.save_checkpoint(run, Path(folder) / "state.pt"))
    found = kit.read_checkpoint(run)
    for row in found["history"]:
        row.pop("seconds", None)
    return found


def assert_same(one, other, tolerance=0.0, where="it"):
    """States, checkpoint files or nests are equal: to the last bit, or within a
    tolerance, which is relative above 1. NaN equals NaN."""
    if isinstance(one, kit.State | Path):
        one, other = content(one), content(other)
    if isinstance(one, torch.Tensor):
        assert isinstance(other, torch.Tensor), where
        close = partial(torch.testing.assert_close, rtol=tolerance, atol=tolerance)
        close(one, other, equal_nan=True, msg=lambda text: f"{where}: {text}")
    elif isinstance(one, dict):
        assert list(one) == list(other), where
        for key in one:
            assert_same(one[key], other[key], tolerance, f"{where}[{key!r}]")
    elif isinstance(one, list | tuple):
        assert type(one) is type(other) and len(one) == len(other), where
        for i, pair in enumerate(zip(one, other)):
            assert_same(*pair, tolerance, f"{where}[{i}]")
    elif isinstance(one, float) and isinstance(other, float):
        one, other = torch.tensor([one, other], dtype=torch.double)
        assert_same(one, other, tolerance, where)
    else:
        assert type(one) is type(other) and one == other, f"{where}: {one} and {other}"


def one_line(error):
    """The message of an exception, which must be one printable line."""
    message = str(error.value)
    assert message and message.isprintable(), message
    return message


@contextmanager
def refused(words, kinds=(TypeError, ValueError)):
    """That what follows is refused, in one printable line with these words."""
    with pytest.raises(kinds, match=words) as error:
        yield
    one_line(error)


# ------------------------------------------------------------------- the command line


def invoke(command, *more):
    """What becomes of a command of kit's."""
    return CliRunner().invoke(kit.main, [*command.split(), *map(str, more)])


def call(command, *more):
    """What a command prints; it must succeed without a word on stderr."""
    result = invoke(command, *more)
    assert result.exit_code == 0 and not result.stderr, result.output
    return result.stdout


# ----------------------------------------------------------------- starting processes

STARTED = []  # what the running test has started; conftest.py ends it

FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(["torch._dynamo", "click", "tabulate", "pytest"])


class Child:
    """A function of a test file in a process of its own, where torch is loaded.

    Its working folder is the test's, warnings are errors, what it prints goes to a log.
    """

    def __init__(self, function, arguments, env):
        self.folder = Path(tempfile.mkdtemp(dir="."))
        parts = function, arguments, env, self.folder.resolve()
        self.process = FORK.Process(target=_work, args=parts)
        self.process.start()
        STARTED.append(self)

    def log(self):
        log = self.folder / "log"
        return log.read_text() if log.exists() else ""

    def send(self, number):
        os.kill(self.process.pid, number)

    def kill(self):
        self.process.kill()
        self.process.join()

    def wait(self, seconds=60):
        """The exit status; the number of the signal that ended it, below 0."""
        self.process.join(seconds)
        assert self.process.exitcode is not None, f"still running:\n{self.log()}"
        return self.process.exitcode

    def result(self, seconds=60):
        """What the function returned."""
        status = self.wait(seconds)
        assert status == 0, f"exit status {status}:\n{self.log()}"
        return torch.load(self.folder / "result", weights_only=False)


def _work(function, arguments, env, folder):
    log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.update(env)
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # of workers, as in a script
    try:
        torch.save(function(*arguments), folder / "result")
    except KeyboardInterrupt:  # end as Python itself would
        traceback.print_exc()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)


def start(function, *arguments):
    """Call a function of a test file in a process of its own."""
    return Child(function, arguments, {})


def start_ranks(world, function, *arguments):
    """Call it in several processes that are set up as torchrun sets them up."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    store = torch.distributed.TCPStore(
        "127.0.0.1", port, is_master=True, wait_for_workers=False
    )
    env = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    env |= {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
    env |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
    ranks = []
    for rank in map(str, range(world)):
        own = {"RANK": rank, "LOCAL_RANK": rank}
        ranks.append(Child(function, arguments, env | own))
        ranks[-1].store = store  # lives as long as one of them is looked at
    return ranks


def python(*arguments, **options):
    """Start Python itself, where it finds kit.py: python("-m", "kit", "fit")."""
    command = [sys.executable, "-W", "error", *map(str, arguments)]
    folders = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    env = os.environ | {"PYTHONPATH": folders, "OMP_NUM_THREADS": "1"}
    usual = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": env}
    process = subprocess.Popen(command, text=True, **usual | options)
    STARTED.append(process)
    return process


def end_started():
    """Kill what the test has left running."""
    while STARTED:
        process = STARTED.pop()
        process.kill()
        if isinstance(process, subprocess.Popen):
            process.communicate()


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.002)
