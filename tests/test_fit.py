"""Section 6, together: run and fit, exact resumes, signals, kills, locks, NaN."""

import copy
import gc
import math
import multiprocessing
import os
import random
import re
import signal
import threading
import time
from functools import partial
from pathlib import Path

import helpers
import numpy as np
import pytest
import torch
from helpers import Step, assert_same, make_state, refused, start, table, wait_for
from torch import nn
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

import kit

fit = partial(kit.fit, loss_fn=nn.functional.mse_loss)


def loaders():
    """7 shuffled batches of 6 rows, the last of 4; and 2 to validate."""
    train, val = kit.split(table(52), ratios=(40 / 52, 12 / 52))
    shuffled = kit.make_loader(train, batch_size=6, shuffle=True)
    return shuffled, kit.make_loader(val, batch_size=6)


# ------------------------------------------------------------------- the loop itself


def test_run_yields_every_epoch_and_its_row():
    run = kit.run(make_state(), *loaders(), loss_fn=fit.keywords["loss_fn"], epochs=9)
    states = [state for _, state in zip(range(3), run)]
    assert [len(state.history) for state in states] == [1, 2, 3]
    assert [state.step for state in states] == [7, 14, 21]
    row = states[-1].history[-1]
    assert list(row) == ["epoch", "step", "lr", "train_loss", "val_loss", "seconds"]
    assert (row["epoch"], row["step"], row["lr"]) == (3, 21, 0.01)
    state = fit(states[-1], *loaders(), epochs=4)  # after a break
    assert_same(state, fit(make_state(), *loaders(), epochs=4))


class Told(Dataset):
    """A loader, sampler or dataset that notes the epochs that it is told."""

    def __init__(self, items):
        self.items, self.epochs = list(items), []

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        return self.items[i]

    def set_epoch(self, epoch):
        self.epochs.append(epoch)


def test_any_iterable_is_a_loader_and_is_told_the_epoch():
    rows = list(zip(*table(6)))
    batches, data, sampler = Told([table(6)]), Told(rows), Told(range(6))
    batch_sampler = Told([[0, 1], [2, 3]])
    for loader, told in (
        (batches, batches),
        (kit.make_loader(data), data),
        (DataLoader(rows, 2, sampler=sampler), sampler),
        (DataLoader(rows, batch_sampler=batch_sampler), batch_sampler),
    ):
        state = fit(make_state(), loader, epochs=2)
        fit(state, [table(6)], loader, epochs=4)
        assert told.epochs == [0, 1, 2, 3]  # as torch's DistributedSampler counts


class Doubled:
    """A loader that hands on the attributes of another, and gives other batches."""

    def __init__(self, loader):
        self.loader = loader

    def __getattr__(self, name):
        return getattr(self.loader, name)

    def __iter__(self):
        for x, y in self.loader:
            yield 2 * x, y


def test_a_wrapped_loader_gives_its_own_batches_of_the_epoch():
    loader = kit.make_loader(table(8), batch_size=4, shuffle=True)
    steps = Step(), Step()
    for wrap, step in zip((Doubled, lambda loader: loader), steps):
        fit(make_state(), wrap(loader), epochs=2, step=step)
    for (doubled, _), (x, _) in zip(steps[0].batches, steps[1].batches, strict=True):
        assert torch.equal(doubled, 2 * x)


class GivesItsEpoch(Told):
    def __getitem__(self, i):
        return torch.full((3,), float(self.epochs[-1])), torch.zeros(1)


def test_a_dataset_in_a_worker_is_told_the_epoch():
    step = Step()
    loader = kit.make_loader(GivesItsEpoch(range(4)), batch_size=2, workers=1)
    fit(make_state(), loader, epochs=3, step=step)
    assert [int(x[0, 0]) for x, _ in step.batches] == [0, 0, 1, 1, 2, 2]


def test_on_epoch_sees_all_stop_ends_and_nothing_prints(capfd):
    seen, stop = [], lambda history: len(history) == 3
    on_epoch = lambda state: seen.append(len(state.history))
    options = {"epochs": 9, "stop": stop, "on_epoch": on_epoch, "checkpoint": "run"}
    state = fit(make_state(), *loaders(), **options)
    assert seen == [1, 2, 3] and len(state.history) == 3
    state = kit.load_checkpoint(make_state(), "run/last.pt")  # stays stopped
    assert len(fit(state, *loaders(), **options).history) == 3
    assert capfd.readouterr() == ("", "")


SCHEDULERS = {
    "none": None,
    "step": partial(lr_scheduler.StepLR, step_size=2),
    "plateau": partial(lr_scheduler.ReduceLROnPlateau, patience=0, threshold=0.5),
    "onecycle": partial(lr_scheduler.OneCycleLR, max_lr=0.1, total_steps=21),
    "sequential": lambda optimizer: lr_scheduler.SequentialLR(
        optimizer,
        [lr_scheduler.LinearLR(optimizer), lr_scheduler.ExponentialLR(optimizer, 0.5)],
        milestones=[1],
    ),
}


STEP = partial(Step, accumulate=2, clip=1.0)


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("validates", [True, False])
def test_rates_are_those_of_the_plain_loop(name, validates):
    step, (train, val) = STEP(), loaders()
    state, make = make_state(scheduler=SCHEDULERS[name]), SCHEDULERS[name]
    state = fit(state, train, val if validates else None, epochs=3, step=step)
    optimizer = torch.optim.Adam(helpers.mlp().parameters(), lr=0.01)
    scheduler, rates = make and make(optimizer), []
    for row in state.history:
        for _ in range(7):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            if name == "onecycle":
                scheduler.step()
        if name == "plateau":
            scheduler.step(row["val_loss" if validates else "train_loss"])
        elif name in ("step", "sequential"):
            scheduler.step()
    moments = state.optimizer.state_dict()["state"].values()
    assert {m["step"].item() for m in moments} == {state.step} == {21}
    assert step.lrs == rates
    if make:
        assert_same(state.scheduler.state_dict(), scheduler.state_dict())


# --------------------------------------------------------------------- exact resumes


def stopped(state, train, val, at, step=STEP, **options):
    """The file of a run that gets a SIGTERM in the step after `at` steps."""
    folder = Path(f"stopped at {at}")
    try:  # pytest.raises would keep the loaders alive, with their workers
        fit(state, train, val, step=step(at), checkpoint=folder, **options)
    except SystemExit:
        pass
    assert kit.read_checkpoint(folder / "last.pt")["step"] == at + 1
    return folder / "last.pt"


def check_resumes(make, make_loaders, at, step=STEP, **options):
    """That runs stopped there end as the straight one, having seen the same."""
    options, straight = {"epochs": 3} | options, step()
    expected = fit(make(), *make_loaders(), step=straight, **options)
    ended = options | {"epochs": 1, "checkpoint": "ended"}
    fit(make(), *make_loaders(), step=step(), **ended)  # whose schedule has advanced
    paths = [stopped(make(), *make_loaders(), n, step, **options) for n in at]
    for path in ("ended/last.pt", *paths):
        torch.manual_seed(7), random.seed(7), np.random.seed(7)
        state, resumed = kit.load_checkpoint(make(), path), step()
        n = state.step
        state = fit(state, *make_loaders(), step=resumed, **options)
        assert_same(resumed.batches, straight.batches[n:])
        assert resumed.lrs == straight.lrs[n:]
        assert_same(state, expected)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_resume_at_any_step_is_exact(name):
    make = partial(make_state, scheduler=SCHEDULERS[name])
    check_resumes(make, loaders, range(20))


def test_a_resume_in_fp16_is_exact():
    make = lambda: make_state(kit.amp(helpers.mlp(), "fp16"))
    state = fit(make(), *loaders(), epochs=1)
    assert state.history[0]["train_skipped"] > 0
    check_resumes(make, loaders, (0, 5, 9))


def draw():
    return sum(helpers.draws())


class Drawing(helpers.Draws):
    """What is read goes to a file."""

    def __getitem__(self, row):
        with open("read.txt", "a") as file:
            file.write(f"{row}\n")
        return super().__getitem__(row)


def draw_and_collate(rows):
    x, y = default_collate(rows)
    return x + draw(), y


class Shuffles(Told):
    """A loader that draws when it is asked for its batches."""

    def __iter__(self):
        return iter(random.sample(self.items, len(self.items)))


def drawing_loader(kind, seed=0):
    options = {"batch_size": 4, "shuffle": True, "collate_fn": draw_and_collate}
    if kind == "shuffles":
        return Shuffles(table(6, seed=i) for i in range(5))
    if kind == "plain":
        return DataLoader(Drawing(), **options)
    options |= {"workers": 2} if kind == "workers" else {}
    options |= {"steps": 7} if kind == "steps" else {}
    return kit.make_loader(Drawing(), seed=seed, **options)


class DrawingStep(Step):
    def __call__(self, state, batch, **options):
        return super().__call__(state, (batch[0] + draw(), batch[1]), **options)


@pytest.mark.parametrize("kind", ["ours", "steps", "workers", "plain", "shuffles"])
def test_a_resume_is_exact_where_loaders_draw(kind):
    """And, with a loader that is not make_loader's, where the step does."""
    step = DrawingStep if kind == "plain" else STEP
    make_loaders = lambda: (drawing_loader(kind), drawing_loader(kind, 1))
    at = (7,) if kind == "workers" else (0, 3, 4, 6, 12)
    check_resumes(make_state, make_loaders, at, step=step)


def test_no_two_steps_and_no_two_seeds_draw_the_same():
    drawn = []
    step = Step(before=lambda state: drawn.append(torch.rand(()).item()))
    for seed in (0, 1):
        fit(make_state(), *loaders(), epochs=2, step=step, seed=seed)
    assert len(set(drawn)) == len(drawn) == 2 * 14


@pytest.mark.parametrize("kind", ["ours", "steps"])
def test_a_resume_reads_only_what_is_left(kind):
    path = stopped(make_state(), drawing_loader(kind), None, 8, epochs=2)
    Path("read.txt").unlink()
    state = kit.load_checkpoint(make_state(), path)
    state = fit(state, drawing_loader(kind), epochs=2)
    assert len(Path("read.txt").read_text().split()) == 4 * (state.step - 9)


def test_what_on_epoch_changes_is_in_the_file_of_its_epoch():
    shrink = lambda state: state.model[0].weight.data.mul_(0.9)
    options = {"epochs": 2, "checkpoint": "run", "on_epoch": shrink}
    state = fit(make_state(), *loaders(), **options)
    for name in ("last", "best"):
        assert_same(Path(f"run/{name}.pt"), state)


def test_save_checkpoint_inside_a_step_loses_no_sums():
    def save(state):
        if state.step == 3:
            kit.save_checkpoint(state, "inside.pt")

    straight = fit(make_state(), *loaders(), epochs=1, step=Step(after=save))
    state = kit.load_checkpoint(make_state(), "inside.pt")
    assert_same(fit(state, *loaders(), epochs=1), straight)


# ----------------------------------------------------------- folders and their files


def test_a_used_folder_is_neither_resumed_nor_overwritten():
    """Unless asked; and then epochs is the total."""
    fit(make_state(), *loaders(), epochs=2, checkpoint="run")
    before = Path("run/last.pt").read_bytes()
    other = fit(make_state(), *loaders(), epochs=3, seed=7)
    for state in (make_state(), other):
        with refused(r"run/last\.pt.*load_checkpoint", FileExistsError):
            fit(state, *loaders(), epochs=5, checkpoint="run")
    assert Path("run/last.pt").read_bytes() == before
    state = kit.load_checkpoint(make_state(), "run/last.pt")
    state = fit(state, *loaders(), epochs=5, checkpoint="run")
    assert [row["epoch"] for row in state.history] == [1, 2, 3, 4, 5]
    stopped(make_state(), *loaders(), 3, epochs=1)  # in its first epoch, without a row
    with refused("another run", FileExistsError):
        fit(make_state(), *loaders(), epochs=1, checkpoint="stopped at 3")


def test_the_best_survives_a_resume_into_worse_epochs():
    train, val = loaders()
    state = fit(make_state(), train, val, epochs=4, checkpoint="run")
    losses = [row["val_loss"] for row in state.history]
    best = kit.read_checkpoint("run/best.pt")
    assert best["history"][-1]["val_loss"] == min(losses)
    worse = [(x, y - 100) for x, y in train]  # from now on it unlearns
    state = kit.load_checkpoint(make_state(), "run/last.pt")
    before = Path("run/best.pt").read_bytes()
    state = fit(state, worse, val, epochs=8, checkpoint="run")
    assert min(row["val_loss"] for row in state.history[4:]) > min(losses)
    assert Path("run/best.pt").read_bytes() == before


def test_best_may_be_the_highest_of_a_metric():
    scores = iter([0.5, 0.7, math.nan, 0.6])
    options = {"metrics": lambda prediction, target: {"accuracy": next(scores)}}
    options["best"] = partial(kit.is_best, key="val_accuracy", mode="max")
    fit(make_state(), *loaders(), epochs=4, checkpoint="run", **options)
    assert kit.read_checkpoint("run/best.pt")["history"][-1]["val_accuracy"] == 0.7


def test_training_continues_while_a_file_is_written(monkeypatch):
    """Which has the weights and the sums of its own step."""
    continued, weights, written = threading.Event(), {}, {}

    def note(state):
        weights[state.step] = copy.deepcopy(dict(state.model.state_dict()))
        if state.step == 6:
            continued.set()

    def replace(source, target, real=os.replace):
        assert continued.wait(20)
        real(source, target)
        saved = kit.read_checkpoint(target)
        written[saved["step"]] = saved["sums"].get("weight")
        assert_same(saved["model"], weights[saved["step"]])

    monkeypatch.setattr(os, "replace", replace)
    options = {"epochs": 2, "save_every": 3, "checkpoint": "run"}
    fit(make_state(), loaders()[0], step=Step(after=note), **options)
    assert written == {3: 18, 6: 36, 7: None, 9: 12, 12: 30, 14: None}


@pytest.mark.parametrize("epochs", [9, 1])
def test_a_write_that_fails_in_the_background_ends_the_run(epochs, monkeypatch):
    def replace(source, target, real=os.replace):
        calls.append(target.name)
        if target.name == "last.pt" and calls.count("last.pt") == 1:
            raise OSError(28, "No space left on device")
        real(source, target)

    calls, save_every = [], 3 if epochs > 1 else None
    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(OSError, match=r"last\.pt could not be written: .*No space"):
        options = {"checkpoint": "run", "save_every": save_every}
        fit(make_state(), loaders()[0], epochs=epochs, **options)
    # a resume from last.pt would not write best.pt again
    assert epochs > 1 or calls == ["best.pt", "last.pt"]


# ----------------------------------------------------------------------- NaN, slips


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_nan_stops_the_run_and_keeps_the_last_file(bad):
    X, y = table()
    good = fit(make_state(), [(X, y)], epochs=2, checkpoint="run")
    before = Path("run/last.pt").read_bytes()
    y[7] = bad
    with refused(f"{bad} in epoch 3, by step 3.*learning rate", FloatingPointError):
        fit(good, [(X, y)], epochs=9, checkpoint="run")
    assert Path("run/last.pt").read_bytes() == before


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_weights_spoiled_by_the_very_last_step_raise(bad):
    """No loss shows it: there is no step after it, and no validation."""

    def spoil(state):
        if state.step == 14:
            state.model[0].weight.data[0, 0] = bad

    for options in ({}, {"checkpoint": "run", "save_every": 1}):
        with refused(r"0\.weight.*step 14", FloatingPointError):
            fit(make_state(), loaders()[0], epochs=2, step=Step(after=spoil), **options)
    assert kit.read_checkpoint("run/last.pt")["step"] == 13


def test_an_epoch_of_total_weight_0_raises():
    nothing = lambda outputs, _: {"loss": 0 * outputs.sum(), "weight": 0}
    with refused("weight", FloatingPointError):
        kit.fit(make_state(), *loaders(), loss_fn=nothing, epochs=2)


class Stream(IterableDataset):
    def __iter__(self):
        return zip(*table())


def test_a_slip_is_one_clear_line():
    schedule = partial(lr_scheduler.OneCycleLR, max_lr=0.1, total_steps=14)
    for state, train, words in (
        (helpers.mlp(), loaders()[0], "state"),
        (make_state(), table(), "make_loader"),
        (make_state(), [], "batches"),
        (make_state(), iter([table()]), "batches"),  # is exhausted
        (make_state(scheduler=schedule), loaders()[0], "total_steps"),
        # which is not foreseen
        (make_state(scheduler=schedule), Told([table()] * 5), "total"),
        (make_state(scheduler=schedule), DataLoader(Stream(), 6), "total"),
    ):
        with refused(words):
            fit(state, train, epochs=3)


# ---------------------------------------------------------------------------- signals


def continued_fit(folder, val=None, *, epochs=3, **options):
    """Fit, continuing what is there."""
    schedule = partial(lr_scheduler.CosineAnnealingLR, T_max=epochs)
    state, last = make_state(scheduler=schedule), Path(folder) / "last.pt"
    if last.exists():
        state = kit.load_checkpoint(state, last)
    options |= {"epochs": epochs, "checkpoint": folder}
    fit(state, loaders()[0], val or loaders()[1], **options)


def slow_fit(folder, where, pause=0.1):
    """Be slow at a place, and say when it is reached."""

    def slow(place, call, *arguments, **options):
        if place == where:
            Path("now").touch()
            time.sleep(pause)
        return call(*arguments, **options)

    class SlowToRead:
        def __iter__(self):
            for batch in loaders()[1]:
                yield slow("evaluation", tuple, batch)

    torch.save = partial(slow, "save", torch.save)
    continued_fit(folder, SlowToRead(), step=partial(slow, "step", kit.train_step))


@pytest.mark.parametrize("where", ["step", "evaluation", "save"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_the_resume_is_exact(where, number):
    child = start(slow_fit, "run", where)
    wait_for(Path("now").exists)
    child.send(number)
    expected = 143 if number == signal.SIGTERM else -number
    assert child.wait() == expected, child.log()
    saved = kit.read_checkpoint("run/last.pt")
    assert saved["step"] < 21 and len(saved["history"]) < 3
    if where == "evaluation":  # which is left at once
        assert saved["step"] == 7 and not saved["history"]
    assert set(os.listdir("run")) <= {"last.pt", "best.pt"}
    for folder in ("run", "straight"):
        start(continued_fit, folder).result()
    for name in ("last.pt", "best.pt"):
        assert_same(Path("run", name), Path("straight", name))


def test_a_second_signal_stops_at_once():
    child = start(slow_fit, "run", "step", 60)
    wait_for(Path("now").exists)
    child.send(signal.SIGINT)
    time.sleep(0.2)
    assert child.process.is_alive()
    child.send(signal.SIGINT)
    assert child.wait(10) == -signal.SIGINT


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_exception_says_where_it_saved_and_what_next(number):
    kind = KeyboardInterrupt if number == signal.SIGINT else SystemExit
    step = STEP(3, number)
    with pytest.raises(kind) as error:
        fit(make_state(), *loaders(), epochs=2, step=step, checkpoint="run")
    assert kind is KeyboardInterrupt or error.value.code == 143
    continued = re.search(r"load_checkpoint\(.*?\)", helpers.one_line(error))[0]
    state = eval(f"kit.{continued}", {"kit": kit, "state": make_state()})
    assert state.step == 4


def test_handlers_are_restored_and_only_set_where_it_saves():
    def handlers():
        return [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]

    before, during = handlers(), []
    options = {"epochs": 1, "on_epoch": lambda state: during.append(handlers())}
    fit(make_state(), *loaders(), **options)
    fit(make_state(), *loaders(), checkpoint="run", **options)
    work = partial(fit, make_state(), *loaders(), checkpoint="thread", **options)
    thread = threading.Thread(target=work)  # a thread cannot set any
    thread.start(), thread.join()
    assert during[0] == during[2] == before != during[1] and handlers() == before
    options["on_epoch"] = lambda state: 1 / 0
    with pytest.raises(ZeroDivisionError):
        fit(make_state(), *loaders(), checkpoint="other", **options)
    assert handlers() == before and os.listdir("thread")


def fit_with_workers():
    os.setsid()
    step = Step(before=lambda state: Path(f"step {min(state.step, 3)}").touch())
    train = kit.make_loader(Drawing(), batch_size=2, workers=2)
    fit(make_state(), train, epochs=10**6, step=step, checkpoint="run")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_workers_too_saves_and_ends(number):
    child = start(fit_with_workers)
    wait_for(Path("step 3").exists)
    os.killpg(child.process.pid, number)
    expected = 143 if number == signal.SIGTERM else -number
    assert child.wait() == expected, child.log()
    assert kit.read_checkpoint("run/last.pt")["step"] >= 3


def test_no_worker_outlives_its_loader_after_a_signal():
    gc.disable()  # torch waits 5 s for each worker of a loader that gc finds
    try:
        stopped(make_state(), drawing_loader("workers"), None, 2, epochs=1)
        wait_for(lambda: not multiprocessing.active_children(), 10)
    finally:
        gc.enable()


# -------------------------------------------------------------------- locks and kills


def test_a_folder_in_use_is_refused_until_its_process_ends():
    child = start(slow_fit, "run", "step", 60)
    wait_for(Path("now").exists)
    for _ in range(2):
        with refused("run is in use", BlockingIOError):
            fit(make_state(), *loaders(), epochs=1, checkpoint="run")
    child.kill()
    assert fit(make_state(), *loaders(), epochs=1, checkpoint="run").step == 7


def killed_fit(folder, epochs):
    step = partial(kit.train_step, accumulate=3)
    continued_fit(folder, epochs=epochs, save_every=1, step=step)


def test_a_run_killed_at_random_ends_as_the_straight_one():
    """4 kills by default; KIT_KILLS=300 for the long version."""
    kills = int(os.environ.get("KIT_KILLS", "4"))
    epochs, last = 12 * kills, Path("killed/last.pt")
    straight = start(killed_fit, "straight", epochs)
    dice, before = random.Random(os.environ.get("KIT_SEED", "0")), (0, 0)
    for _ in range(kills):
        child = start(killed_fit, "killed", epochs)
        written = last.exists() and last.stat().st_mtime_ns
        wait_for(lambda w=written: last.exists() and last.stat().st_mtime_ns != w)
        time.sleep(dice.uniform(0, 0.04))
        assert child.process.is_alive(), f"the run was over at {before}: {child.log()}"
        child.kill()
        saved = kit.read_checkpoint(last)  # raises where a kill broke the file
        assert (saved["step"], len(saved["history"])) > before
        before = saved["step"], len(saved["history"])
    for child in (start(killed_fit, "killed", epochs), straight):
        child.result(600)
    assert kit.read_checkpoint(last)["step"] == 7 * epochs
    for name in ("last.pt", "best.pt"):
        assert_same(Path("killed", name), Path("straight", name))
    assert set(os.listdir("killed")) == {"last.pt", "best.pt"}
