"""Several processes under torchrun give what one gives; so this file is their script.

The fixture starts it once under `torch.distributed.run`, where it runs every function
in CASES in every process; the tests compare with the same function run here, alone.
KIT_PROCESSES=3 starts three. Sums of float32 in another order differ by 1e-7 of their
terms: TOLERANCE is what that comes to after some steps.
"""

import faulthandler
import fcntl
import math
import os
import random
import signal
import subprocess
import sys
import time
import traceback
import warnings
from functools import partial
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # for the child processes

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, Dataset, DistributedSampler, TensorDataset

import kit

PROCESSES = int(os.environ.get("KIT_PROCESSES", "2"))
RANK, WORLD = (int(os.environ.get(k, d)) for k, d in (("RANK", 0), ("WORLD_SIZE", 1)))
OUT = Path(sys.argv[1]) if __name__ == "__main__" else Path()
TOLERANCE = 2e-6
LIMIT = 80  # seconds, after which a hang is a failure

# ------------------------------------------------------- what every process trains


def rows(n=26, seed=1):
    X = torch.randn(n, 3, generator=torch.Generator().manual_seed(seed))
    return X, X.sum(1, True) + X[:, :1] ** 2


def make_model(outputs=1):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, outputs))


def make_state(model=None, optimizer=torch.optim.SGD, scheduler=None, lr=0.05):
    model = model or make_model()
    optimizer = optimizer(model.parameters(), lr=lr)
    scheduler = scheduler and scheduler(optimizer)
    return kit.make_state(model, optimizer, scheduler=scheduler)


def loader(n=26, batch_size=6):
    return kit.make_loader(rows(n), batch_size=batch_size, shuffle=True)


def told(state, **more):
    """What is compared: all a checkpoint holds but the seconds."""
    state = state._replace(model=getattr(state.model, "module", state.model))
    path = kit.save_checkpoint(state, OUT / f"told{RANK}.pt")
    content = kit.read_checkpoint(path)
    for row in content["history"]:
        del row["seconds"]
    return content | more


class Watched:
    """A train_step that keeps the rates, and what its losses were given."""

    def __init__(self, **options):
        self.options, self.lrs, self.seen = options, [], []

    def __call__(self, state, batch, *, loss_fn):
        self.lrs.append(state.optimizer.param_groups[0]["lr"])

        def noted(outputs, targets):
            self.seen.append(outputs.detach().clone())
            return loss_fn(outputs, targets)

        return kit.train_step(state, batch, loss_fn=noted, **self.options)


def train(
    state=None, train=None, val=None, *, loss_fn=F.mse_loss, epochs=3, metrics=None, **o
):
    step = Watched(**o)
    parts = state or make_state(), train or loader(), val or [rows(7, seed=2)]
    state = kit.fit(*parts, loss_fn=loss_fn, epochs=epochs, metrics=metrics, step=step)
    return told(state, lrs=step.lrs)


def total_and_weight(outputs, targets):
    """Rows weigh differently, so that processes do."""
    weight = targets.abs() + 0.1
    return (weight * (outputs - targets) ** 2).sum(), weight.sum()


class Masked(nn.Module):
    """Logits of three classes, the last of which is none."""

    def __init__(self):
        super().__init__()
        self.inner = make_model(3)

    def forward(self, x):
        return self.inner(x).masked_fill(torch.arange(3) == 2, -math.inf)


def of_masked_logits():
    """A process without a row has a sum of -inf, which must count nothing."""
    X, y = rows(7)
    data = X, (y[:, 0] > 0).long()
    batches = kit.make_loader(data, batch_size=1)
    return train(make_state(Masked()), batches, batches, loss_fn=F.cross_entropy)


def in_classes(**options):
    X, y = rows()
    data = X, (y[:, 0] > 0).long() + (y[:, 0] > 1).long()
    loss_fn = nn.CrossEntropyLoss()
    batches = kit.make_loader(data, batch_size=6)
    return train(make_state(make_model(3)), batches, [data], loss_fn=loss_fn, **options)


def in_fp16():
    """A row whose gradient is inf in fp16: no process makes that update."""
    X, y = rows()
    y[5] = 3e4
    schedule = SCHEDULERS["OneCycleLR"]
    state = make_state(kit.amp(make_model(), "fp16"), scheduler=schedule)
    state.scaler.load_state_dict(state.scaler.state_dict() | {"scale": 2.0**12})
    return train(state, kit.make_loader((X, y), batch_size=6))


class Rows(Dataset):
    """Rows one by one, the inputs a dict or not."""

    def __init__(self, n=26, named=False):
        (self.X, self.y), self.named = rows(n), named

    def __len__(self):
        return len(self.X)

    def __getitem__(self, i):
        return {"x": self.X[i]} if self.named else self.X[i], self.y[i]


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = make_model()

    def forward(self, inputs):
        return self.inner(inputs["x"])


def of_a_dataset(workers, named=False):
    batches = kit.make_loader(
        Rows(named=named), batch_size=6, shuffle=True, workers=workers
    )
    return train(make_state(Named() if named else make_model()), batches, batches)


def of_a_plain_loader():
    batches = DataLoader(TensorDataset(*rows()), batch_size=6, shuffle=True)
    return train(train=batches, val=batches, metrics=count)


class Interleaved:
    """The batches that all processes of a DistributedSampler see together."""

    def __init__(self, data, batch_size):
        samplers = [
            DistributedSampler(data, PROCESSES, rank) for rank in range(PROCESSES)
        ]
        self.loaders = [DataLoader(data, batch_size, sampler=s) for s in samplers]
        self.sampler = self

    def set_epoch(self, epoch):
        for loader in self.loaders:
            loader.sampler.set_epoch(epoch)

    def __iter__(self):
        for batches in zip(*self.loaders):
            yield tuple(map(torch.cat, zip(*batches)))


def of_a_distributed_sampler():
    data = TensorDataset(*rows(24))
    if WORLD == 1:
        return train(train=Interleaved(data, 3))
    sampler = DistributedSampler(data, WORLD, RANK)
    return train(train=DataLoader(data, 3, sampler=sampler))


def with_torchmetrics():
    from torchmetrics import MeanSquaredError, MetricCollection, SpearmanCorrCoef

    with warnings.catch_warnings(action="ignore"):  # of the memory that a list takes
        kinds = {"mse": MeanSquaredError(), "rank": SpearmanCorrCoef()}
    flat = rows(7, seed=2)
    val = [(flat[0][:6], flat[1][:6, 0]), (flat[0][6:], flat[1][6:, 0])]
    model = nn.Sequential(make_model(), nn.Flatten(0))
    X, y = rows()
    train_data = kit.make_loader((X, y[:, 0]), batch_size=6, shuffle=True)
    return train(make_state(model), train_data, val, metrics=MetricCollection(kinds))


def count(prediction, target):
    """How many there are, in which order, and what they measure."""
    total = target.double().flatten()
    order = (total * torch.arange(len(total))).sum()
    counts = {"count": len(total), "sum": total.sum(), "order": order}
    return counts | kit.metrics(prediction, target)


SCHEDULERS = {
    "OneCycleLR": partial(lr_scheduler.OneCycleLR, max_lr=0.1, total_steps=15),
    "StepLR": partial(lr_scheduler.StepLR, step_size=1),
    "ReduceLROnPlateau": partial(
        lr_scheduler.ReduceLROnPlateau, patience=0, threshold=0.5
    ),
}


def in_amp(precision, **options):
    return train(make_state(kit.amp(make_model(), precision)), **options)


def scheduled(name, **options):
    return train(make_state(scheduler=SCHEDULERS[name]), **options)


def of_7_rows(batch_size, **options):
    batches = loader(7, batch_size), loader(7, batch_size)
    return train(None, *batches, metrics=count, **options)


TRAININGS = {
    "batches of 6, 6, 6, 6 and 2": train,
    "in 4 pieces": partial(train, accumulate=4),
    "clipped": partial(train, clip=0.5),
    "clipped, in 4 pieces": partial(train, clip=0.5, accumulate=4),
    "Adam": lambda: train(make_state(optimizer=torch.optim.Adam, lr=0.01)),
    "bf16": partial(in_amp, "bf16"),
    "bf16, in 4 pieces": partial(in_amp, "bf16", accumulate=4),
    "fp16, which skips an update": in_fp16,
    "a pair of total and weight": partial(train, loss_fn=total_and_weight),
    "such a pair in 4 pieces": partial(train, loss_fn=total_and_weight, accumulate=4),
    "classes": partial(in_classes, metrics=kit.metrics),
    "masked logits": of_masked_logits,
    "a Dataset": partial(of_a_dataset, 0),
    "a Dataset with workers": partial(of_a_dataset, 2),
    "inputs in a dict": partial(of_a_dataset, 0, named=True),
    "a plain shuffled DataLoader": of_a_plain_loader,
    "a DistributedSampler": of_a_distributed_sampler,
    "torchmetrics": with_torchmetrics,
}
for name in SCHEDULERS:
    TRAININGS[name] = partial(scheduled, name)
    TRAININGS[f"{name}, in 4 pieces"] = partial(scheduled, name, accumulate=4)
for size in (1, 2, 3, 7):
    TRAININGS[f"7 rows in batches of {size}"] = partial(of_7_rows, size)
    TRAININGS[f"7 rows in batches of {size}, in 4 pieces"] = partial(
        of_7_rows, size, accumulate=4
    )


# ------------------------------------------------------------ what else they must do


def exchanges():
    """How often gradients are exchanged in each step of four pieces."""
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

    counts = []

    def counted(group, bucket):
        counts[-1] += 1
        return allreduce_hook(group, bucket)

    def step(state, batch, *, loss_fn):
        if not counts:
            state.model.register_comm_hook(None, counted)
        counts.append(0)
        return kit.train_step(state, batch, loss_fn=loss_fn, accumulate=4)

    kit.fit(make_state(), loader(), loss_fn=F.mse_loss, epochs=2, step=step)
    return counts


class Draws(Dataset):
    """Rows of random numbers from three sources."""

    def __len__(self):
        return 7

    def __getitem__(self, i):
        return torch.tensor([random.random(), np.random.rand(), torch.rand(())]), i


def draws(workers):
    """The rows that this process was given."""
    given = []

    def step(state, batch, *, loss_fn):
        given.extend(zip(batch[1].tolist(), batch[0].tolist()))  # not what counts none
        return state._replace(step=state.step + 1), {"loss": 0.0, "weight": 1}

    batches = kit.make_loader(Draws(), batch_size=3, shuffle=True, workers=workers)
    kit.fit(make_state(), batches, loss_fn=F.mse_loss, epochs=3, step=step)
    return given


def dropped():
    """What of the same row was dropped, whenever it was."""
    model = nn.Sequential(nn.Linear(3, 64), nn.Dropout(0.5))
    data, step = (torch.ones(7, 3), torch.ones(7, 64)), Watched()
    batches = kit.make_loader(data, batch_size=3)
    kit.fit(make_state(model), batches, loss_fn=F.mse_loss, epochs=3, step=step)
    return [tuple((row == 0).tolist()) for outputs in step.seen for row in outputs]


def afterwards():
    """Out of fit a process is an ordinary one, and may fit again."""
    states = [train(make_state(model := make_model()))]
    joined = [dist.is_initialized()]
    hand = F.mse_loss(model(rows()[0]), rows()[1])
    hand.backward()
    row = kit.evaluate(model, loader(7, 2), loss_fn=F.mse_loss, metrics=count)
    outputs = kit.predict(model, kit.make_loader(rows(7), batch_size=2))
    states.append(train(make_state(model)))
    joined.append(dist.is_initialized())
    kind = type(make_state(model).model).__name__
    return {"states": states, "hand": hand.detach(), "row": row, "outputs": outputs,
            "kind": kind, "joined": joined}  # fmt: skip


def by_hand():
    """The loop is the user's: it sees bare models, breaks, and the group is closed."""
    kinds, start = [], make_state()
    for state in kit.run(start, loader(), loss_fn=F.mse_loss, epochs=9):
        kinds.append(type(state.model).__name__)
        if len(state.history) == 2:
            break
    return {"kinds": kinds, "joined": dist.is_initialized(), "state": told(state)}


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused = make_model(), nn.Linear(3, 1)

    def forward(self, x):
        return self.used(x)


def in_a_group_of_their_own():
    """The user's own group and wrap work together out of fit too, and stay open."""
    wrap = (lambda model, **options: model) if WORLD == 1 else DistributedDataParallel
    if WORLD > 1:
        dist.init_process_group("gloo")
    model, (X, y) = wrap(kit.amp(make_model(), "bf16")), rows(7)
    mine = X[RANK::WORLD], y[RANK::WORLD]
    state, sums = kit.train_step(
        make_state(model), mine, loss_fn=F.mse_loss, accumulate=2
    )
    row = kit.evaluate(model, loader(7, 2), loss_fn=F.mse_loss, metrics=count)
    outputs = kit.predict(model, kit.make_loader((X, y), batch_size=2))
    state = kit.fit(state, loader(), loss_fn=F.mse_loss, epochs=2)
    kit.save_checkpoint(state, OUT / f"parallel{RANK}.pt")
    idle = wrap(Unused(), find_unused_parameters=True)
    unused = train(make_state(idle), accumulate=2)
    if WORLD > 1:
        assert dist.is_initialized()
        del model.reducer, model.logger, idle.reducer, idle.logger
        dist.destroy_process_group()  # a group that these own last can freeze Python
    together = {"sums": sums, "row": row, "outputs": outputs, "state": told(state)}
    return {"bf16": together, "unused": unused}


def watches(folder):
    """Who called on_epoch and who wrote, slowly, before best.pt was read."""
    called, writes, write = [], [], kit._write

    def slow(path, content):
        time.sleep(0.1)
        writes.append(path.name)
        return write(path, content)

    kit._write = slow
    try:
        options = {"checkpoint": folder, "on_epoch": lambda s: called.append(s.step)}
        kit.fit(make_state(), loader(), loss_fn=F.mse_loss, epochs=2, **options)
    finally:
        kit._write = write
    best = kit.load_checkpoint(make_state(), folder / "best.pt")
    return {"called": called, "writes": writes, "best": best.step}


def stopped(folder):
    """The last process gets a SIGTERM amid the second epoch."""

    def step(state, batch, *, loss_fn):
        if state.step == 6 and RANK == WORLD - 1:
            signal.raise_signal(signal.SIGTERM)
        return kit.train_step(state, batch, loss_fn=loss_fn)

    options = {"epochs": 3, "step": step, "checkpoint": folder}
    with pytest.raises(SystemExit) as caught:
        kit.fit(make_state(), loader(), loss_fn=F.mse_loss, **options)
    return {"code": caught.value.code, "joined": dist.is_initialized()}


def resumed(folder):
    """From what they were stopped at."""
    state = kit.load_checkpoint(make_state(), folder / "last.pt")
    assert (state.step, len(state.history)) == (7, 1)
    return told(kit.fit(state, loader(), loss_fn=F.mse_loss, epochs=3))


def stops_early():
    """What each process thinks of the history is what the first thinks of it."""
    epochs = 2 + RANK
    state = kit.fit(
        make_state(), loader(), loss_fn=F.mse_loss, epochs=5,
        stop=lambda history: len(history) == epochs,
    )  # fmt: skip
    return len(state.history)


def batch_norm():
    """The running means of each process, and what it computes with them."""
    model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
    for state in kit.run(make_state(model), loader(24), loss_fn=F.mse_loss, epochs=2):
        row = kit.evaluate(state.model, loader(), loss_fn=F.mse_loss)
    return {"row": row, "model": model.state_dict()}


def short_fit(state=None, data=None, loss_fn=F.mse_loss):
    batches = kit.make_loader(data or rows(), batch_size=6)
    kit.fit(state or make_state(), batches, loss_fn=loss_fn, epochs=3)


def raised(function, *arguments, **options):
    """What it raises in this process, and whether that leaves the group, at once."""
    start = time.monotonic()
    with pytest.raises(Exception) as caught:
        function(*arguments, **options)
    seconds, error = time.monotonic() - start, repr(caught.value)
    return {"error": error, "seconds": seconds, "joined": dist.is_initialized()}


def begun_apart():
    return raised(short_fit, make_state()._replace(step=RANK))


def nan_in_one_share():
    X, y = rows()
    y[5] = math.nan  # of the first batch, the last process's
    return raised(short_fit, data=(X, y))


def broken(rank, outputs, targets):
    if rank == RANK:
        raise ArithmeticError(f"the loss of process {rank} is broken")
    return F.mse_loss(outputs, targets)


class Broken(Rows):
    def __getitem__(self, i):
        if RANK == 1:
            raise LookupError("the data of process 1 are broken")
        return super().__getitem__(i)


FAILURES = {
    "a loss of the first": partial(short_fit, loss_fn=partial(broken, 0)),
    "a loss of the second": partial(short_fit, loss_fn=partial(broken, 1)),
    "data of the second": partial(short_fit, data=Broken()),
}
CASES = {
    **TRAININGS,
    "exchanges": exchanges,
    "draws": partial(draws, 0),
    "draws of workers": partial(draws, 2),
    "dropped": dropped,
    "afterwards": afterwards,
    "by hand": by_hand,
    "in a group of their own": in_a_group_of_their_own,
    "batch norm": batch_norm,
    "watches": partial(watches, OUT / "watched"),
    "stops early": stops_early,
    "stopped": partial(stopped, OUT / "together"),
    "resumed": partial(resumed, OUT / "alone"),
    "begun apart": begun_apart,
    "nan": nan_in_one_share,
    **{name: partial(raised, failing) for name, failing in FAILURES.items()},
    "after the failures": train,
}

# ------------------------------------------------------------------ starting them


def main(out, failure=None):
    faulthandler.dump_traceback_later(LIMIT - 5, exit=True)
    if failure:
        FAILURES[failure]()
    warnings.simplefilter("error")
    results = {}
    for name, case in CASES.items():
        try:
            results[name] = case()
        except Exception:  # noqa: BLE001
            results[name] = traceback.format_exc()
    torch.save(results, OUT / f"{RANK}.pt")


def torchrun(*arguments):
    """Exit status and output of this script under torchrun, in LIMIT seconds."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(PROCESSES), __file__, *map(str, arguments)]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    launcher = subprocess.Popen(command, env=env, **options)
    try:
        output = launcher.communicate(timeout=LIMIT)[0]
    except subprocess.TimeoutExpired:
        launcher.kill()  # its processes end by the clock of main
        output = launcher.communicate()[0]
    return output, launcher.returncode


@pytest.fixture(scope="session")
def together(tmp_path_factory, worker_id):
    """What every process has returned for every case; started once, for all workers."""
    out = tmp_path_factory.getbasetemp()
    out = (out if worker_id == "master" else out.parent) / "distributed"
    out.mkdir(exist_ok=True)
    with open(out / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (out / "said").exists():
            stopped(out / "alone")
            said, status = torchrun(out)
            (out / "said").write_text(f"{status}\n{said}")
    if (said := (out / "said").read_text()) != "0\n":
        pytest.fail(said, pytrace=False)
    results = [torch.load(out / f"{rank}.pt") for rank in range(PROCESSES)]

    def of(name):
        for result in results:
            assert not isinstance(result[name], str), result[name]
        return [result[name] for result in results]

    of.folder = out
    return of


# ------------------------------------------------------------------------ the tests


def assert_close(there, here, tolerance, where=""):
    """The same keys and shapes; numbers within the tolerance, relative above 1."""
    if isinstance(here, torch.Tensor):
        close = {"rtol": tolerance, "atol": tolerance}
        torch.testing.assert_close(there, here, **close, msg=lambda m: f"{where}: {m}")
    elif isinstance(here, dict):
        assert list(there) == list(here), where
        for key, value in here.items():
            assert_close(there[key], value, tolerance, f"{where}.{key}")
    elif isinstance(here, list | tuple):
        assert len(there) == len(here), where
        for i, (one, other) in enumerate(zip(there, here)):
            assert_close(one, other, tolerance, f"{where}[{i}]")
    elif isinstance(here, int | float):
        close = {"rel": tolerance, "abs": tolerance}
        assert there == pytest.approx(here, **close, nan_ok=True), where
    else:
        assert there == here, where


def tolerance(name):
    """bf16 rounds the gradients of each process, before they are summed, to 2**-8."""
    return 2**-8 if "16" in name else TOLERANCE


@pytest.mark.parametrize("name", TRAININGS)
def test_processes_together_train_as_one(name, together):  # PITFALLS 2, 15, 25
    """Weights, losses, metrics, steps, rates, schedules and optimizer: the checkpoint."""
    here = TRAININGS[name]()
    for there in together(name):
        assert_close(there, here, tolerance(name))


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_an_evaluation_of_7_rows_counts_7(size, together):  # PITFALLS 15
    total = rows(7)[1].double().sum().item()
    for result in together(f"7 rows in batches of {size}"):
        for row in result["history"]:
            assert row["val_count"] == 7
            assert row["val_sum"] == pytest.approx(total, rel=1e-6)


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_uneven_shares_train_and_end(size, together):  # PITFALLS 25
    for result in together(f"7 rows in batches of {size}, in 4 pieces"):
        assert result["step"] == 3 * math.ceil(7 / size)


def test_neither_processes_nor_pieces_change_how_often_a_schedule_steps(together):
    for name in SCHEDULERS:  # PITFALLS 2
        one = TRAININGS[name]()
        traces = [one["lrs"]]
        traces += [r["lrs"] for r in together(name) + together(f"{name}, in 4 pieces")]
        assert len(set(one["lrs"])) > 1 and len(one["lrs"]) == one["step"] == 15
        for trace in traces:
            assert trace == pytest.approx(one["lrs"], rel=1e-9)


def test_an_update_that_fp16_skips_is_skipped_by_all(together):
    for result in together("fp16, which skips an update"):
        skipped = [row["train_skipped"] for row in result["history"]]
        assert skipped == pytest.approx([6 / 26] * 3)
        assert result["scheduler"]["last_epoch"] == 15 - 3


def test_gradients_are_exchanged_once_a_step_of_4_pieces(together):
    assert together("exchanges") == [[1] * 10] * PROCESSES


@pytest.mark.parametrize("name", ["draws", "draws of workers"])
def test_processes_never_repeat_a_random_number(name, together):  # PITFALLS 24
    given = [row for result in together(name) for row in result]
    assert sorted(i for i, _ in given) == sorted([*range(7)] * 3)
    for column in zip(*(row for _, row in given)):
        assert len(set(column)) == len(column)
    assert together("draws") == together("draws of workers")


def test_processes_never_drop_the_same(together):  # PITFALLS 24
    kept = [row for result in together("dropped") for row in result]
    assert len(set(kept)) == len(kept) == 3 * 7


def test_after_fit_every_process_is_an_ordinary_one_and_may_fit_again(together):
    here = afterwards()
    assert here["joined"] == [False, False] and here["kind"] == "Sequential"
    for there in together("afterwards"):
        assert_close(there, here, TOLERANCE)


def test_a_loop_of_ones_own_sees_bare_models_and_may_break(together):
    here = by_hand()
    for there in together("by hand"):
        assert_close(there, here, TOLERANCE)
        assert there["joined"] is False


def test_a_group_and_a_wrap_of_the_users_own_work_together_everywhere(together):
    here = in_a_group_of_their_own()["bf16"]
    assert here["row"]["count"] == 7
    for there in together("in a group of their own"):
        assert_close(there["bf16"], here, tolerance("bf16"))
    written = [path.name for path in together.folder.glob("parallel*")]
    assert written == ["parallel0.pt"]  # by save_checkpoint, in the first alone


WRAPS = {
    "bare": lambda model: model,
    "bf16": partial(kit.amp, precision="bf16"),
    "compiled": partial(torch.compile, backend="eager"),
}


@pytest.mark.parametrize("wrap", WRAPS)
def test_what_processes_save_has_bare_keys_and_any_wrap_loads_it(
    wrap, together
):  # PITFALLS 13
    bare = make_model()
    kit.load_checkpoint(make_state(WRAPS[wrap](bare)), together.folder / "parallel0.pt")
    content = kit.read_checkpoint(together.folder / "parallel0.pt")
    assert list(content["model"]) == list(bare.state_dict())
    for key, value in bare.state_dict().items():
        assert torch.equal(value, content["model"][key])


def test_parameters_that_nothing_uses_train_where_the_user_wraps(together):
    here = in_a_group_of_their_own()["unused"]
    for there in together("in a group of their own"):
        assert_close(there["unused"], here, TOLERANCE)


def test_running_means_end_as_those_of_the_first_process(together):
    first, *others = together("batch norm")
    for other in others:
        assert_close(other, first, 0)


def test_only_the_first_process_writes_and_calls_on_epoch(together):
    first, *others = together("watches")
    assert first["called"] == [5, 10]
    assert first["writes"] == ["best.pt", "last.pt"] * 2
    for other in others:
        assert not other["called"] and not other["writes"]


def test_once_fit_is_over_every_process_finds_the_last_checkpoint(together):
    assert [result["best"] for result in together("watches")] == [10] * PROCESSES


def test_all_stop_when_the_first_would(together):
    assert together("stops early") == [2] * PROCESSES


def test_a_signal_to_one_process_stops_all_after_the_same_step(together):
    expected = {"code": 143, "joined": False}  # PITFALLS 19
    assert together("stopped") == [expected] * PROCESSES
    assert kit.read_checkpoint(together.folder / "together" / "last.pt")["step"] == 7


def straight():
    return told(kit.fit(make_state(), loader(), loss_fn=F.mse_loss, epochs=3))


def test_processes_go_on_amid_an_epoch_from_the_checkpoint_of_one(together):
    for there in together("resumed"):
        assert_close(there, straight(), TOLERANCE)


def test_one_goes_on_amid_an_epoch_from_the_checkpoint_of_processes(together):
    assert_close(resumed(together.folder / "together"), straight(), TOLERANCE)


def test_all_must_begin_at_the_same_step(together):
    steps = ", ".join(f"({rank}, 0)" for rank in range(PROCESSES))
    for result in together("begun apart"):
        assert "all processes must begin at the same (step, epoch)" in result["error"]
        assert steps in result["error"] and "\n" not in result["error"]
        assert result["joined"] is False


def test_nan_in_one_share_stops_all_with_the_same_words(together):  # PITFALLS 26
    for result in together("nan"):
        assert "the loss became nan in epoch 0, by step 1:" in result["error"]
        assert result["joined"] is False


WORDS = {
    "a loss of the first": "the loss of process 0 is broken",
    "a loss of the second": "the loss of process 1 is broken",
    "data of the second": "the data of process 1 are broken",
}


@pytest.mark.parametrize("name", FAILURES)
def test_an_error_of_one_process_ends_fit_in_all_and_leaves_the_group(name, together):
    results = together(name)
    assert sum(WORDS[name] in result["error"] for result in results) == 1
    for result in results:
        assert result["seconds"] < 10 and result["joined"] is False
    here = train()
    for there in together("after the failures"):
        assert_close(there, here, TOLERANCE)


@pytest.mark.parametrize("name", ["a loss of the first", "data of the second"])
def test_an_error_of_one_process_ends_the_job_with_its_words(name, tmp_path):
    output, status = torchrun(tmp_path, name)
    assert status == 1 and WORDS[name] in output and "Timeout" not in output


if __name__ == "__main__":
    main(*sys.argv[1:])
