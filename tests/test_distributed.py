"""Several processes under torchrun give what one process gives.

What a function returns in each of two processes, or KIT_PROCESSES=3, is compared with
what it returns here, alone: within what other orders of sums in float32 come to.
"""

import itertools
import math
import os
import signal
import sys
import time
from functools import partial
from pathlib import Path

import helpers
import numpy as np
import pytest
import torch
import torch.distributed as dist
from helpers import assert_same, content, start_ranks, table, wait_for
from test_open import SCRIPTS
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, DistributedSampler, Subset, TensorDataset

import kit

PROCESSES = int(os.environ.get("KIT_PROCESSES", "2"))
TOLERANCE = 2e-6

# ------------------------------------------------------- what every process trains


def rank():
    return int(os.environ.get("RANK", "0"))


def world():
    return int(os.environ.get("WORLD_SIZE", "1"))


def make_state(model=None, **options):
    model = helpers.mlp(dropout=0.0) if model is None else model
    options = {"optimizer": torch.optim.SGD, "lr": 0.05} | options
    return helpers.make_state(model, **options)


def loader(n=26, batch_size=6, **options):
    options = {"batch_size": batch_size, "shuffle": True} | options
    return kit.make_loader(table(n), **options)


def fit(state=None, train=None, val=None, *, loss_fn=F.mse_loss, epochs=3, **options):
    parts = state or make_state(), train or loader(), val or [table(7, seed=2)]
    return kit.fit(*parts, loss_fn=loss_fn, epochs=epochs, **options)


def trained(*parts, accumulate=1, clip=None, **options):
    """What the checkpoint of a run holds, and the learning rate of every step."""
    step = helpers.Step(accumulate=accumulate, clip=clip)
    return content(fit(*parts, step=step, **options)) | {"lrs": step.lrs}


def count(prediction, target):
    """How many rows there are, in which order, and what they measure."""
    order = (target.double().flatten() * torch.arange(len(target))).sum()
    return {"count": len(target), "order": order} | kit.metrics(prediction, target)


def totals(outputs, targets):
    """Rows weigh differently, so that processes do."""
    weight, error = targets.abs() + 0.1, (outputs - targets).abs()
    sums = {"loss": weight * error**2, "weight": weight, "mae": weight * error}
    return {key: value.sum() for key, value in sums.items()}


def in_fp16():
    """A row whose gradient is inf in fp16: no process makes that update."""
    X, y = table(26)
    y[5] = 3e4
    model = kit.amp(helpers.mlp(dropout=0.0), "fp16")
    state = make_state(model, scheduler=ONE_CYCLE)
    state.scaler.load_state_dict(state.scaler.state_dict() | {"scale": 2.0**12})
    return trained(state, kit.make_loader((X, y), batch_size=6))


def rows(n=26):
    """A Dataset that is read row by row."""
    return Subset(TensorDataset(*table(n)), range(n))


def afterwards():
    """Out of fit a process is an ordinary one, may fit again, and leave a loop."""
    runs = [trained(make_state(model := helpers.mlp(dropout=0.0)))]
    F.mse_loss(model(table(26)[0]), table(26)[1]).backward()
    row = kit.evaluate(model, loader(7, 2), loss_fn=F.mse_loss, metrics=count)
    outputs = [kit.predict(model, kit.make_loader(table(7), batch_size=2))]
    runs.append(trained(make_state(model)))
    for state in kit.run(make_state(), loader(), loss_fn=F.mse_loss, epochs=9):
        outputs.append(kit.predict(state.model, table(7)[0]))
        if len(state.history) == 2:
            break
    kind = type(fit(make_state(model), epochs=1).model).__name__  # without a wrap
    return [runs, row, outputs, kind, dist.is_initialized()]


def own_process_group():
    """The user's own process group and wrap serve in fit and out of it."""
    wrap = DistributedDataParallel if world() > 1 else lambda model: model
    if world() > 1:
        dist.init_process_group("gloo")
    model, (X, y) = wrap(helpers.mlp(dropout=0.0)), table(4 * PROCESSES + 1)
    mine = X[rank() :: world()], y[rank() :: world()]
    state, _ = kit.train_step(make_state(model), mine, loss_fn=F.mse_loss, accumulate=2)
    row = kit.evaluate(model, loader(7, 2), loss_fn=F.mse_loss, metrics=count)
    kit.save_checkpoint(fit(state), "own.pt")
    if world() > 1:
        assert dist.is_initialized()
        del model.reducer, model.logger
        dist.destroy_process_group()  # a group that these own last can freeze Python
    weights = dict(kit.unwrap(model).state_dict())
    return [row, weights, kit.read_checkpoint("own.pt")["model"]]


def of_seven_rows(**options):
    """A batch is one row: some processes have none."""
    return trained(None, loader(7, 1), loader(7, 1), metrics=count, **options)


def of_a_dataset(make_loader, **options):
    return trained(None, make_loader(rows(), batch_size=5, shuffle=True, **options))


def of_a_script(name, **options):
    """Batches that are dicts, or whose targets are nests."""
    script = SCRIPTS[name]
    torch.manual_seed(0)
    parts = make_state(script.model()), script.loader(), script.loader()
    return trained(*parts, **script.options, **options)


ONE_CYCLE = partial(lr_scheduler.OneCycleLR, max_lr=0.1, total_steps=15)
PLATEAU = partial(lr_scheduler.ReduceLROnPlateau, patience=0, threshold=0.5)
TRAININGS = {
    "batches of 6, 6, 6, 6 and 2": trained,
    "clipped, 4 micro-batches": partial(trained, clip=0.5, accumulate=4),
    "bf16": lambda: trained(make_state(kit.amp(helpers.mlp(dropout=0), "bf16"))),
    "fp16, which skips an update": in_fp16,
    "a dict loss, 4 micro-batches": partial(trained, loss_fn=totals, accumulate=4),
    "a dict loss, ranks without rows": partial(of_seven_rows, loss_fn=totals),
    "a Dataset with workers": partial(of_a_dataset, kit.make_loader, workers=2),
    "a plain shuffled DataLoader": partial(of_a_dataset, DataLoader),
    "dicts, 2 micro-batches": partial(of_a_script, "Hugging Face", accumulate=2),
    "nests, 2 micro-batches": partial(of_a_script, "multi-task", accumulate=2),
    "an endless stream": lambda: trained(None, loader(steps=7)),
    "plateau": lambda: trained(make_state(scheduler=PLATEAU)),
    "ranks without rows, 4 micro-batches": partial(of_seven_rows, accumulate=4),
    "afterwards": afterwards,
    "own process group": own_process_group,
}


def run_training(name):
    return TRAININGS[name]()


def together(function, *arguments):
    """What it returns in every process."""
    ranks = start_ranks(PROCESSES, function, *arguments)
    return [each.result() for each in ranks]


@pytest.mark.parametrize("name", TRAININGS)
def test_processes_train_as_one(name):
    """Weights, losses, metrics, steps, rates, schedules and optimizer."""
    # bf16 rounds the gradients of each process, before they are summed, to 2**-8
    tolerance = 2**-8 if "16" in name else TOLERANCE
    here = run_training(name)
    for there in together(run_training, name):
        assert_same(there, here, tolerance)


# ------------------------------------------------------------ what else they must do


def all_reduces():
    """How often the gradients are all-reduced, in each step of four micro-batches."""
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

    counts = []

    def counted(group, bucket):
        counts[-1] += 1
        return allreduce_hook(group, bucket)

    def before(state):
        if not counts:
            state.model.register_comm_hook(None, counted)
        counts.append(0)

    fit(step=helpers.Step(accumulate=4, before=before))
    return counts


def test_gradients_are_all_reduced_once_a_step():
    assert together(all_reduces) == [[1] * 15] * PROCESSES


def draws(workers):
    """The rows that this process was given."""
    step, given = helpers.Step(), []
    shape = {"batch_size": 4, "shuffle": True, "workers": workers}
    fit(None, kit.make_loader(helpers.Draws(8), **shape), step=step)
    for drawn, numbers in step.batches:
        given.extend(zip(numbers[:, 0].tolist(), drawn.tolist()))
    return given


def test_processes_never_repeat_a_random_number():
    given = together(draws, 0)
    assert together(draws, 2) == given
    numbers, draws_of = zip(*itertools.chain(*given))
    assert sorted(numbers) == sorted([*range(8)] * 3)
    for column in zip(*draws_of):
        assert len(set(column)) == len(column)


def dropped():
    """What of the same row was dropped, whenever it was."""
    seen = []

    def forward(model, batch):
        outputs = model(batch[0])
        if model.training:
            seen.extend(tuple((row == 0).tolist()) for row in outputs.detach())
        return outputs, batch[1]

    data = torch.ones(8, 64), torch.ones(8, 64)
    model = nn.Sequential(nn.Linear(64, 64), nn.Dropout(0.5))
    batches = kit.make_loader(data, batch_size=4)
    fit(make_state(model), batches, [data], forward=forward)
    return seen


def test_processes_never_drop_the_same():
    kept = list(itertools.chain(*together(dropped)))
    assert len(set(kept)) == len(kept) == 3 * 8


def batch_norm():
    """The running statistics of each process, and what it computes with them."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
    for state in kit.run(make_state(model), loader(24), loss_fn=F.mse_loss, epochs=2):
        row = kit.evaluate(state.model, loader(), loss_fn=F.mse_loss)
    return row, dict(model.state_dict())


def test_running_statistics_end_as_those_of_rank_0():
    first, *others = together(batch_norm)
    for other in others:
        assert_same(other, first)


def stops_and_writes():
    """Each would stop at an epoch, and write to a folder, of its own; writing is slow."""
    replace = os.replace
    os.replace = lambda *paths: (time.sleep(0.1), replace(*paths))
    stop = lambda history: len(history) == 1 + rank()
    on_epoch = lambda state: Path(f"seen by {rank()}").touch()
    state = fit(stop=stop, checkpoint=f"rank{rank()}", on_epoch=on_epoch)
    return len(state.history), kit.read_checkpoint("rank0/last.pt")["step"]


def test_rank_0_alone_stops_and_writes_and_all_find_the_file():
    assert together(stops_and_writes) == [(1, 5)] * PROCESSES
    assert [path.name for path in Path().glob("rank*")] == ["rank0"]
    assert [path.name for path in Path().glob("seen*")] == ["seen by 0"]


class Validation:
    """Twenty batches; a function is called before each one of the second epoch."""

    def __init__(self, at=lambda i: None):
        self.at, self.passes = at, 0

    def __iter__(self):
        self.passes += 1
        for i in range(20):
            if self.passes == 2:
                self.at(i)
            yield table(7, seed=i)


def interrupted(number, where, which):
    """A signal to one process, amid the second epoch or in its validation."""
    sent = []

    def send(place, i):
        if (place, rank(), i) == (where, which, 2):
            sent.append(time.time())
            signal.raise_signal(number)

    def at(i):
        send("validation", i)
        time.sleep(0.1)

    step = helpers.Step(before=lambda state: send("training", state.step - 4))
    with pytest.raises((SystemExit, KeyboardInterrupt)) as caught:
        fit(None, None, Validation(at), step=step, checkpoint="run")
    return sent, time.time(), getattr(caught.value, "code", None), dist.is_initialized()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("where", ["training", "validation"])
@pytest.mark.parametrize("which", range(PROCESSES))
def test_a_signal_to_any_rank_saves_and_ends_all(number, where, which):
    results = together(interrupted, number, where, which)
    (sent,) = [time for times, *_ in results for time in times]
    for _, ended, code, joined in results:
        assert ended - sent < 1.0  # the validation takes two seconds
        assert code == (143 if number == signal.SIGTERM else None) and not joined
    state = kit.load_checkpoint(make_state(), "run/last.pt")
    assert 7 <= state.step <= 10 and len(state.history) == 1
    straight = fit(None, None, Validation())
    assert_same(fit(state, None, Validation()), straight, TOLERANCE)


def of_a_rank():
    sampler = DistributedSampler(rows(24), world(), rank())
    return DataLoader(rows(24), 3, sampler=sampler)


def with_nan():
    X, y = table(26)
    y[5] = math.nan  # of the first batch, the last process's
    return kit.make_loader((X, y), batch_size=6)


def broken(outputs, targets):
    if rank() == 1:
        raise ArithmeticError("the loss of process 1 is broken")
    return F.mse_loss(outputs, targets)


FAILURES = {  # what fit is given, the words, and the words of all processes
    "another step": (lambda: {"state": make_state()._replace(step=rank())}, "step"),
    "100 and 101 rows": (lambda: {"train": loader(100 + rank())}, "100"),
    "a DistributedSampler": (lambda: {"train": of_a_rank()}, "DistributedSampler"),
    "nan in one share": (lambda: {"train": with_nan()}, "nan"),
    "loss 1": (lambda: {"loss_fn": broken}, "process 1 is broken"),
}


def raised(name):
    """What fit raises in this process, how soon, and after how many steps."""
    step, start = helpers.Step(), time.monotonic()
    with pytest.raises(Exception) as caught:
        fit(**FAILURES[name][0](), step=step)
    seconds = time.monotonic() - start
    return repr(caught.value), len(step.batches), seconds, dist.is_initialized()


@pytest.mark.parametrize("name", FAILURES)
def test_an_error_ends_fit_in_all_processes(name):
    results, words = together(raised, name), FAILURES[name][1]
    errors = {error for error, *_ in results if words in error}
    saying = sum(words in error for error, *_ in results)
    assert len(errors) == 1 and saying == (1 if name == "loss 1" else PROCESSES)
    for error, steps, seconds, joined in results:
        assert "\n" not in error and seconds < 10 and not joined
        assert steps == 0 or words not in ("step", "100")


# ---------------------------------------------------------- torchrun and kit fit


def run_kit(*arguments):
    kit.main(arguments)


def kit_fit(out, *more):
    """A run of 15 epochs of 25 steps, saved after every fifth."""
    names = {"header": "a,b,c,y", "comments": "", "delimiter": ","}
    np.savetxt("rows.csv", torch.cat(table(143), 1), **names)
    options = "--data rows.csv --target y --batch-size 4 --patience 0 --epochs 15"
    options += f" --scheduler onecycle --save-every 5 --out {out}"
    return ["fit", *options.split(), *more]


def ranks_of(launcher):
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children")
    return {int(pid) for pid in children.read_text().split()}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_torchrun_survives_a_kill_and_a_sigterm():
    options = "-W default -m torch.distributed.run --standalone --nproc-per-node 2"
    options += " --monitor-interval 0.1 --max-restarts 1 -m kit"
    process = helpers.python(*options.split(), *kit_fit("run", "--resume"))
    last = Path("run/last.pt")
    wait_for(last.exists)
    before = ranks_of(process)
    os.kill(max(before), signal.SIGKILL)
    wait_for(lambda: len(ranks_of(process) - before) == 2)
    saved = last.stat().st_mtime_ns
    wait_for(lambda: last.stat().st_mtime_ns > saved)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0 and errors.count("--out run --resume") == 1, errors
    assert 0 < kit.read_checkpoint(last)["step"] < 375

    for arguments in (kit_fit("run", "--resume"), kit_fit("straight")):
        ranks = start_ranks(2, run_kit, *arguments)
        assert [each.wait() for each in ranks] == [0, 0], ranks[0].log()
        assert "epoch 15/15" in ranks[0].log() and ranks[1].log() == ""
    assert_same(*(content(f"{name}/last.pt")["model"] for name in ("run", "straight")))


def test_a_mistake_ends_every_process_with_its_line():
    ranks = start_ranks(2, run_kit, "fit", "--data", "no.csv", "--target", "y")
    assert [each.wait() for each in ranks] == [1, 1]
    assert all("Error: " in each.log() and "no.csv" in each.log() for each in ranks)
