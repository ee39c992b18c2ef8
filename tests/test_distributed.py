"""Several processes under torchrun give what one process gives.

Every function in CASES runs in each of two processes, which are started once; the tests
compare what they return with the same function run here, alone. KIT_PROCESSES=3 starts
three. float32 summed in another order differs by 1e-7 of its terms: TOLERANCE is what
that comes to after some steps.
"""

import faulthandler
import math
import os
import signal
import sys
import time
import traceback
from functools import partial
from pathlib import Path

import helpers
import numpy as np
import pytest
import torch
import torch.distributed as dist
from helpers import assert_same, content, start_ranks, table, wait_for
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, DistributedSampler, Subset, TensorDataset

import kit

PROCESSES = int(os.environ.get("KIT_PROCESSES", "2"))
TOLERANCE = 2e-6
LIMIT = 100  # seconds for all cases, after which a hang is a failure

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
    state = make_state(model, scheduler=SCHEDULERS["OneCycleLR"])
    state.scaler.load_state_dict(state.scaler.state_dict() | {"scale": 2.0**12})
    return trained(state, kit.make_loader((X, y), batch_size=6))


def rows(n=26):
    """A Dataset that is read row by row."""
    return Subset(TensorDataset(*table(n)), range(n))


def of_nests(**options):
    """Batches that are dicts, a forward for them, targets in a nest."""

    def collate(items):
        X, y = map(torch.stack, zip(*items))
        return {"x": X, "labels": [y, (y.abs(), -y)]}

    def forward(model, batch):
        return {"y": model(batch["x"])}, batch["labels"]

    def loss_fn(outputs, targets):
        y, (size, _) = targets
        return F.mse_loss(outputs["y"], y) + F.l1_loss(outputs["y"], size)

    batches = loader(collate_fn=collate)
    options |= {"loss_fn": loss_fn, "forward": forward}
    return trained(None, batches, batches, **options)


def of_a_distributed_sampler():
    """Whose batch size is that of a process; in order, it makes the loader's batches."""
    if world() == 1:
        return trained(None, kit.make_loader(table(24), batch_size=3 * PROCESSES))
    sampler = DistributedSampler(rows(24), world(), rank(), shuffle=False)
    return trained(None, DataLoader(rows(24), 3, sampler=sampler))


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
    return [runs, row, outputs, type(model).__name__, dist.is_initialized()]


def own_process_group():
    """The user's own process group and wrap serve in fit and out of it."""
    wrap = DistributedDataParallel if world() > 1 else lambda model: model
    if world() > 1:
        dist.init_process_group("gloo")
    model, (X, y) = wrap(helpers.mlp(dropout=0.0)), table(4 * PROCESSES)
    mine = X[rank() :: world()], y[rank() :: world()]
    state, _ = kit.train_step(make_state(model), mine, loss_fn=F.mse_loss, accumulate=2)
    row = kit.evaluate(model, loader(7, 2), loss_fn=F.mse_loss, metrics=count)
    kit.save_checkpoint(fit(state), "own.pt")
    if world() > 1:
        assert dist.is_initialized()
        del model.reducer, model.logger
        dist.destroy_process_group()  # a group that these own last can freeze Python
    return [
        row,
        dict(kit.unwrap(model).state_dict()),
        kit.read_checkpoint("own.pt")["model"],
    ]


SCHEDULERS = {
    "OneCycleLR": partial(lr_scheduler.OneCycleLR, max_lr=0.1, total_steps=15),
    "plateau": partial(lr_scheduler.ReduceLROnPlateau, patience=0, threshold=0.5),
}


def with_schedule(name, **options):
    return trained(make_state(scheduler=SCHEDULERS[name]), **options)


def of_seven_rows(batch_size, **options):
    """Some processes have no row of a batch."""
    batches = loader(7, batch_size), loader(7, batch_size)
    return trained(None, *batches, metrics=count, **options)


def of_a_dataset(make_loader, **options):
    return trained(None, make_loader(rows(), batch_size=6, shuffle=True, **options))


TRAININGS = {
    "batches of 6, 6, 6, 6 and 2": trained,
    "clipped, 4 micro-batches": partial(trained, clip=0.5, accumulate=4),
    "Adam": lambda: trained(make_state(optimizer=torch.optim.Adam, lr=0.01)),
    "bf16": lambda: trained(make_state(kit.amp(helpers.mlp(dropout=0), "bf16"))),
    "fp16, which skips an update": in_fp16,
    "a dict loss, 4 micro-batches": partial(trained, loss_fn=totals, accumulate=4),
    "a dict loss, ranks without rows": partial(of_seven_rows, 1, loss_fn=totals),
    "nests, 2 micro-batches": partial(of_nests, accumulate=2),
    "a Dataset with workers": partial(of_a_dataset, kit.make_loader, workers=2),
    "a plain shuffled DataLoader": partial(of_a_dataset, DataLoader),
    "an endless stream": lambda: trained(None, loader(steps=7)),
    "a DistributedSampler": of_a_distributed_sampler,
    "OneCycleLR, 4 micro-batches": partial(with_schedule, "OneCycleLR", accumulate=4),
    "plateau": partial(with_schedule, "plateau"),
    "7 rows by 1, 4 micro-batches": partial(of_seven_rows, 1, accumulate=4),
    "7 rows by 2": partial(of_seven_rows, 2),
    "afterwards": afterwards,
    "own process group": own_process_group,
}

# ------------------------------------------------------------ what else they must do


def all_reduces():
    """How often the gradients are all-reduced, in each step of four micro-batches."""
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

    counts = []

    def counted(group, bucket):
        counts[-1] += 1
        return allreduce_hook(group, bucket)

    def step(state, batch, **options):
        if not counts:
            state.model.register_comm_hook(None, counted)
        counts.append(0)
        return kit.train_step(state, batch, accumulate=4, **options)

    fit(step=step)
    return counts


def draws(workers):
    """The rows that this process was given."""
    given = []

    def step(state, batch, *, loss_fn, forward):
        given.extend(zip(batch[1][:, 0].tolist(), batch[0].tolist()))
        return state._replace(step=state.step + 1), {"loss": 0.0, "weight": 1}

    shape = {"batch_size": 4, "shuffle": True, "workers": workers}
    fit(None, kit.make_loader(helpers.Draws(8), **shape), step=step)
    return given


def dropped():
    """What of the same row was dropped, whenever it was."""
    seen = []

    def forward(model, batch):
        outputs = model(batch[0])
        if model.training:
            seen.extend(tuple((row == 0).tolist()) for row in outputs.detach())
        return outputs, batch[1]

    model, data = nn.Dropout(0.5), (torch.ones(8, 64), torch.ones(8, 64))
    model = nn.Sequential(nn.Linear(64, 64), model)
    batches = kit.make_loader(data, batch_size=4)
    fit(make_state(model), batches, [data], forward=forward)
    return seen


def batch_norm():
    """The running statistics of each process, and what it computes with them."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
    for state in kit.run(make_state(model), loader(24), loss_fn=F.mse_loss, epochs=2):
        row = kit.evaluate(state.model, loader(), loss_fn=F.mse_loss)
    return row, dict(model.state_dict())


def writes():
    """Each names a folder of its own; what is written takes its time."""
    replace = os.replace
    os.replace = lambda *paths, **options: (time.sleep(0.1), replace(*paths, **options))
    try:
        fit(checkpoint=f"rank{rank()}")
    finally:
        os.replace = replace
    return kit.read_checkpoint("rank0/last.pt")["step"]


def stops_early():
    """What each process thinks of the history is what the first thinks of it."""
    epochs = 1 + rank()
    return len(fit(stop=lambda history: len(history) == epochs).history)


class Validation:
    """Twenty batches, which take two seconds in the second epoch if they are slow."""

    def __init__(self, at=lambda i: None, seconds=0.0):
        self.at, self.seconds, self.passes = at, seconds, 0

    def __len__(self):
        return 20

    def __iter__(self):
        self.passes += 1
        for i in range(20):
            if self.passes == 2:
                self.at(i)
                time.sleep(self.seconds)
            yield table(7, seed=i)


def interrupted(folder, number, where, which):
    """A signal to one process, amid the second epoch or in its validation."""
    sent = []

    def send(now, at):
        if (rank(), now) == (which, at):
            sent.append(time.time())
            signal.raise_signal(number)

    def step(state, batch, **options):
        if where == "training":
            send(state.step, 6)
        return kit.train_step(state, batch, **options)

    val = Validation(lambda i: where == "validation" and send(i, 2), 0.1)
    with pytest.raises((SystemExit, KeyboardInterrupt)) as caught:
        fit(None, None, val, step=step, checkpoint=folder)
    return sent, time.time(), getattr(caught.value, "code", None), dist.is_initialized()


def resumed(folder):
    state = kit.load_checkpoint(make_state(), Path(folder, "last.pt"))
    assert len(state.history) == 1 and state.step in (7, 10)
    return content(fit(state, None, Validation()))


def raised(state=None, data=None, loss_fn=F.mse_loss):
    """What fit raises in this process, how soon, and after how many steps."""
    steps = []

    def step(state, batch, **options):
        steps.append(state.step)
        return kit.train_step(state, batch, **options)

    if not isinstance(data, DataLoader):
        data = kit.make_loader(data or table(26), batch_size=6)
    start = time.monotonic()
    with pytest.raises(Exception) as caught:
        fit(state, data, loss_fn=loss_fn, step=step)
    seconds = time.monotonic() - start
    return repr(caught.value), len(steps), seconds, dist.is_initialized()


def with_nan():
    X, y = table(26)
    y[5] = math.nan  # of the first batch, the last process's
    return X, y


def broken(outputs, targets):
    if rank() == 1:
        raise ArithmeticError("the loss of process 1 is broken")
    return F.mse_loss(outputs, targets)


FAILURES = {  # what fit is given, the words, and whether all processes say them
    "another step": (lambda: raised(make_state()._replace(step=rank())), "step", True),
    "100 and 101 rows": (lambda: raised(data=table(100 + rank())), "100", True),
    "plain loaders": (
        lambda: raised(data=DataLoader(rows(100 + 20 * rank()), 6)),
        "100",
        True,
    ),
    "nan in one share": (lambda: raised(data=with_nan()), "nan", True),
    "loss 1": (lambda: raised(loss_fn=broken), "process 1 is broken", False),
}
INTERRUPTS = {
    f"{number.name} in {where}, rank {which}": (number, where, which)
    for number, where in (
        (signal.SIGTERM, "training"),
        (signal.SIGINT, "training"),
        (signal.SIGTERM, "validation"),
    )
    for which in range(PROCESSES)
}
OTHERS = (all_reduces, dropped, batch_norm, writes, stops_early)
CASES = TRAININGS | {case.__name__: case for case in OTHERS}
CASES |= {f"draws, {workers} workers": partial(draws, workers) for workers in (0, 2)}
CASES |= {name: partial(interrupted, name, *how) for name, how in INTERRUPTS.items()}
CASES |= {name: case for name, (case, *_) in FAILURES.items()}
CASES["resumed"] = partial(resumed, "alone")


def run_cases():
    faulthandler.dump_traceback_later(LIMIT - 5, exit=True)
    torch.multiprocessing.set_start_method("fork", force=True)  # as in a script
    results = {}
    for name, case in CASES.items():
        try:
            results[name] = case()
        except Exception:  # noqa: BLE001
            results[name] = traceback.format_exc()
    faulthandler.cancel_dump_traceback_later()
    return results


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """What every process has returned for a case; they are started once."""
    folder = tmp_path_factory.mktemp("together")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        interrupted("alone", signal.SIGTERM, "training", 0)
        results = [each.result(LIMIT) for each in start_ranks(PROCESSES, run_cases)]

    def of(name):
        for result in results:
            assert not isinstance(result[name], str), result[name]
        return [result[name] for result in results]

    of.folder = folder
    return of


# ------------------------------------------------------------------------ the tests


@pytest.mark.parametrize("name", TRAININGS)
def test_processes_train_as_one(name, together):
    """Weights, losses, metrics, steps, rates, schedules and optimizer."""
    # bf16 rounds the gradients of each process, before they are summed, to 2**-8
    tolerance = 2**-8 if "16" in name else TOLERANCE
    here = TRAININGS[name]()
    for there in together(name):
        assert_same(there, here, tolerance)


def test_a_world_of_one_process_is_exactly_one_process():
    (alone,) = start_ranks(1, trained)
    assert_same(alone.result(), trained())


def test_gradients_are_all_reduced_once_a_step(together):
    assert together("all_reduces") == [[1] * 15] * PROCESSES


def test_processes_never_repeat_a_random_number(together):
    alone, workers = together("draws, 0 workers"), together("draws, 2 workers")
    assert alone == workers
    given = [row for rank_rows in alone for row in rank_rows]
    assert sorted(i for i, _ in given) == sorted([*range(8)] * 3)
    for column in zip(*(row for _, row in given)):
        assert len(set(column)) == len(column)


def test_processes_never_drop_the_same(together):
    kept = [row for rank_rows in together("dropped") for row in rank_rows]
    assert len(set(kept)) == len(kept) == 3 * 8


def test_running_statistics_end_as_those_of_rank_0(together):
    first, *others = together("batch_norm")
    for other in others:
        assert_same(other, first)


def test_rank_0_alone_writes_and_all_find_the_file(together):
    assert together("writes") == [15] * PROCESSES
    assert [path.name for path in together.folder.glob("rank*")] == ["rank0"]


def test_all_stop_when_rank_0_would(together):
    assert together("stops_early") == [1] * PROCESSES


@pytest.mark.parametrize("name", INTERRUPTS)
def test_a_signal_to_any_rank_saves_and_ends_all(name, together):
    number, where, _ = INTERRUPTS[name]
    results = together(name)
    (sent,) = [time for times, *_ in results for time in times]
    for _, ended, code, joined in results:
        assert ended - sent < 1.0  # the validation takes two seconds
        assert code == (143 if number == signal.SIGTERM else None) and not joined
    step = 10 if where == "validation" else 7
    assert kit.read_checkpoint(together.folder / name / "last.pt")["step"] == step
    straight = content(fit(None, None, Validation()))
    assert_same(resumed(together.folder / name), straight, TOLERANCE)


def test_processes_resume_the_checkpoint_of_one(together):
    for there in together("resumed"):
        assert_same(there, content(fit(None, None, Validation())), TOLERANCE)


@pytest.mark.parametrize("name", FAILURES)
def test_an_error_ends_fit_in_all_processes(name, together):
    _, words, in_all = FAILURES[name]
    errors = [error for error, *_ in together(name)]
    assert sum(words in error for error in errors) == (PROCESSES if in_all else 1)
    assert not in_all or len(set(errors)) == 1
    for error, steps, seconds, joined in together(name):
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
    process = helpers.python(*options.split(), *kit_fit("run"))
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
