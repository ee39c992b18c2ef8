"""Section 7: mixed precision, schedules, early stopping, seeds, and the end of a NaN."""

import math
import os
import random
import signal
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, Dataset

import kit

NAN, INF = math.nan, math.inf


def table(n=71, seed=0):
    """Inputs (n, 6) and targets (n, 1) that are nearly linear in them."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 6, generator=generator)
    return x, x[:, :1] - 2 * x[:, 1:2] + 0.1 * torch.randn(n, 1, generator=generator)


def mlp(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 1))


# ---------------------------------------------------------------- 7.1 amp

compiled = partial(torch.compile, backend="eager")
WRAPS = {
    "bf16": partial(kit.amp, precision="bf16"),
    "fp16": partial(kit.amp, precision="fp16"),
    "compiled": compiled,
    "compiled_aot": partial(torch.compile, backend="aot_eager"),
    "amp_of_compiled": lambda m: kit.amp(compiled(m), "fp16"),
    "compiled_amp": lambda m: compiled(kit.amp(m, "fp16")),
    "compiled_bf16": lambda m: compiled(kit.amp(m, "bf16")),
}
FP16 = ("fp16", "amp_of_compiled", "compiled_amp")


@pytest.mark.parametrize("wrap", WRAPS)
def test_a_wrapped_model_trains_evaluates_and_saves_as_the_bare_one(wrap, tmp_path):
    def loss_fn(prediction, target):  # small enough for fp16's first scale
        return 0.1 * F.mse_loss(prediction, target)

    def fitted(wrap, folder):
        bare = mlp()
        model = wrap(bare)
        state = kit.make_state(model, torch.optim.Adam(bare.parameters(), lr=0.01))
        loader = kit.make_loader(table(), batch_size=32, shuffle=True)
        state = kit.fit(
            state,
            loader,
            kit.make_loader(table(20, seed=1)),
            loss_fn=loss_fn,
            epochs=8,
            metrics=kit.metrics,
            checkpoint=folder,
        )
        return state, bare

    torch.compiler.reset()
    state, bare = fitted(WRAPS[wrap], tmp_path / "wrapped")
    plain, plain_bare = fitted(lambda m: m, tmp_path / "plain")
    assert state.scaler.is_enabled() == (wrap in FP16)
    for row, expected in zip(state.history, plain.history, strict=True):
        assert row.keys() - {"train_skipped"} == expected.keys()
        for key in ("train_loss", "val_loss", "val_mae"):
            assert row[key] == pytest.approx(expected[key], rel=0.02)
    assert state.history[-1]["val_loss"] < state.history[0]["val_loss"] * 0.9

    x = table()[0]
    outputs = kit.predict(state.model, x)
    assert outputs.dtype == torch.float32
    torch.testing.assert_close(outputs, kit.predict(plain_bare, x), rtol=0.1, atol=0.1)

    files = [tmp_path / name / "last.pt" for name in ("wrapped", "plain")]
    keys = [list(kit.read_checkpoint(file)["model"]) for file in files]
    assert keys[0] == keys[1] == list(bare.state_dict())
    for file in files:  # any wrap loads what any other has saved
        for other in ("bf16", "fp16", "amp_of_compiled"):
            fresh = mlp(seed=9)
            again = kit.make_state(
                WRAPS[other](fresh), torch.optim.Adam(fresh.parameters(), lr=0.01)
            )
            again = kit.load_checkpoint(again, file)
            assert again.step == state.step
            saved = kit.read_checkpoint(file)["model"]
            for key, value in fresh.state_dict().items():
                assert torch.equal(value, saved[key])


@pytest.mark.parametrize(
    "precision, dtype", [("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_amp_computes_in_low_precision_and_returns_float32(precision, dtype):
    seen = []

    class Peek(nn.Module):
        def forward(self, x):
            seen.append(x.dtype)
            return x

    bare = nn.Sequential(nn.Linear(6, 4), Peek())
    model = kit.amp(bare, precision)
    out = model(torch.ones(3, 6))
    assert seen == [dtype]
    assert out.dtype == torch.float32
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert not torch.is_autocast_enabled("cpu")
    out.sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in bare.parameters())


def test_amp_turns_every_floating_output_to_float32_and_leaves_the_rest():
    class Many(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, x, *, scale):
            y = self.layer(x) * scale
            return {"y": y, "more": [y, (y, y.argmax(1))], "n": 7, "none": None}

    out = kit.amp(Many(), "bf16")(torch.ones(3, 2), scale=2)
    assert out["y"].dtype == out["more"][0].dtype == torch.float32
    assert out["more"][1][0].dtype == torch.float32
    assert out["more"][1][1].dtype == torch.int64
    assert type(out["more"][1]) is tuple
    assert out["n"] == 7 and out["none"] is None


def test_amp_keeps_the_names_of_a_named_tuple():
    class Out(NamedTuple):
        mean: torch.Tensor
        spread: torch.Tensor

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, x):
            return Out(self.layer(x), self.layer(x))

    out = kit.amp(Two(), "bf16")(torch.ones(3, 2))
    assert type(out) is Out
    assert out.mean.dtype == out.spread.dtype == torch.float32


def test_only_fp16_gets_a_real_scaler():
    for wrap, real in (("bf16", False), ("fp16", True)):
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        state = kit.make_state(kit.amp(model, wrap), optimizer)
        assert state.scaler.is_enabled() == real
    state = kit.make_state(model, optimizer)
    assert not state.scaler.is_enabled()


def test_the_scale_of_fp16_survives_a_checkpoint(tmp_path):
    def fresh():
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        return kit.make_state(kit.amp(model, "fp16"), optimizer)

    state = fresh()
    state, _ = kit.train_step(state, table(8), loss_fn=F.mse_loss)
    state.scaler.update(128.0)
    kit.save_checkpoint(state, tmp_path / "a.pt")
    again = kit.load_checkpoint(fresh(), tmp_path / "a.pt")
    assert again.scaler.get_scale() == 128.0


@pytest.mark.parametrize("precision", ["fp32", "half", ""])
def test_an_unknown_precision_is_one_clear_line(precision):
    with pytest.raises(ValueError, match="^precision must be bf16 or fp16, got "):
        kit.amp(mlp(), precision)


def test_a_device_without_autocast_is_one_clear_line():
    with pytest.raises(ValueError, match="^meta has no bf16 autocast: leave amp out$"):
        kit.amp(nn.Linear(1, 1, device="meta"), "bf16")


# ---------------------------------------------------------- 7.1 torch.compile


class Own(nn.Sequential):
    """A class of one's own: of torch's classes, model.compile() compiles nothing."""

    def forward(self, x):
        return super().forward(x)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of inductor's own imports
@pytest.mark.parametrize("wrap", ["around amp", "in place"])
def test_a_compiled_run_goes_on_amid_an_epoch_to_the_last_bit(wrap, same, tmp_path):
    def fitted(folder, step=kit.train_step):
        torch.compiler.reset()  # as in a new process
        torch.manual_seed(0)
        noisy = nn.Dropout(0.2), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 1)
        bare = Own(nn.Linear(6, 16), *noisy)
        if wrap == "around amp":
            model = torch.compile(kit.amp(bare, "bf16"), dynamic=False)
        else:
            model = bare
            model.compile(dynamic=False)
        state = kit.make_state(model, torch.optim.Adam(bare.parameters(), lr=0.01))
        if (folder / "last.pt").exists():
            state = kit.load_checkpoint(state, folder / "last.pt")
        loader = kit.make_loader(table(64), batch_size=32, shuffle=True)
        step = partial(step, accumulate=2)
        options = {"epochs": 3, "checkpoint": folder, "save_every": 1}
        return kit.fit(state, loader, loss_fn=F.mse_loss, step=step, **options)

    def failing(state, batch, **options):
        if state.step == 3:
            raise InterruptedError
        return kit.train_step(state, batch, **options)

    fitted(tmp_path / "straight")
    with pytest.raises(InterruptedError):
        fitted(tmp_path / "resumed", failing)
    assert kit.read_checkpoint(tmp_path / "resumed/last.pt")["step"] == 3
    fitted(tmp_path / "resumed")
    assert same(tmp_path / "straight/last.pt", tmp_path / "resumed/last.pt")


@pytest.mark.parametrize("dynamic, graphs", [(None, 4), (False, 5), (True, 3)])
def test_short_batches_and_pieces_are_compiled_once_and_not_again(dynamic, graphs):
    compiles, after = [], []

    def backend(graph, example):
        compiles.append(graph)
        return graph.forward

    torch.compiler.reset()
    model = torch.compile(mlp(), backend=backend, dynamic=dynamic)
    state = kit.make_state(model, torch.optim.SGD(model.parameters(), lr=0.01))
    kit.fit(
        state,
        kit.make_loader(table(71), batch_size=32),  # pieces of 8, 2 and 1
        kit.make_loader(table(20), batch_size=16),
        loss_fn=F.mse_loss,
        epochs=4,
        step=partial(kit.train_step, accumulate=4),
        on_epoch=lambda state: after.append(len(compiles)),
    )
    assert after == [graphs] * 4


# ---------------------------------------------------------- 7.3 schedulers

EPOCHS, STEPS = 6, 3  # of 71 rows in batches of 32
BY_EPOCH = {
    "StepLR": partial(lr_scheduler.StepLR, step_size=2, gamma=0.3),
    "MultiStepLR": partial(lr_scheduler.MultiStepLR, milestones=[1, 4], gamma=0.1),
    "CosineAnnealingLR": partial(lr_scheduler.CosineAnnealingLR, T_max=EPOCHS),
    "LambdaLR": partial(lr_scheduler.LambdaLR, lr_lambda=lambda epoch: 0.9**epoch),
    "SequentialLR": lambda optimizer: lr_scheduler.SequentialLR(
        optimizer,
        [
            lr_scheduler.LinearLR(optimizer, start_factor=0.1, total_iters=2),
            lr_scheduler.ExponentialLR(optimizer, gamma=0.5),
        ],
        milestones=[2],
    ),
    "ReduceLROnPlateau": partial(
        lr_scheduler.ReduceLROnPlateau, factor=0.5, patience=0, threshold=0.2
    ),
}
BY_STEP = {
    "OneCycleLR": partial(
        lr_scheduler.OneCycleLR, max_lr=0.1, total_steps=EPOCHS * STEPS
    ),
    "CyclicLR": partial(
        lr_scheduler.CyclicLR, base_lr=0.01, max_lr=0.1, step_size_up=4
    ),
}
NAMED_BY_STEP = {  # that advance by epoch, unless make_state is told otherwise
    "LambdaLR": BY_EPOCH["LambdaLR"],
    "CosineAnnealingLR": partial(lr_scheduler.CosineAnnealingLR, T_max=EPOCHS * STEPS),
    "SequentialLR": BY_EPOCH["SequentialLR"],
}
CASES = [
    *((name, make, False, None) for name, make in BY_EPOCH.items()),
    *((name, make, True, None) for name, make in BY_STEP.items()),
    *((name, make, True, True) for name, make in NAMED_BY_STEP.items()),
]


def by_hand(make, by_step):
    """The lr of every step, of every row, and the schedule's end, in plain torch."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    scheduler, trace, rows = make(optimizer), [], []
    x, y = table()
    val_x, val_y = table(20, seed=1)
    for _ in range(EPOCHS):
        for inputs, targets in zip(x.split(32), y.split(32)):
            trace.append(optimizer.param_groups[0]["lr"])
            optimizer.zero_grad()
            F.mse_loss(model(inputs), targets).backward()
            optimizer.step()
            if by_step:
                scheduler.step()
        rows.append(optimizer.param_groups[0]["lr"])
        with torch.no_grad():
            val_loss = F.mse_loss(model(val_x), val_y).item()
        if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
            scheduler.step(val_loss)
        elif not by_step:
            scheduler.step()
    return trace, rows, scheduler.state_dict(), model.state_dict()


@pytest.mark.filterwarnings("ignore:The epoch parameter in")  # torch's SequentialLR
@pytest.mark.parametrize(
    "name, make, by_step, told", CASES, ids=[f"{c[0]}-{c[3] or c[2]}" for c in CASES]
)
def test_the_learning_rate_is_that_of_a_hand_written_loop(name, make, by_step, told):
    trace, rows, schedule, weights = by_hand(make, by_step)
    assert len(set(trace)) > 2, "the test wants a schedule that moves"
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    state = kit.make_state(model, optimizer, scheduler=make(optimizer), per_step=told)
    assert state.per_step == by_step
    ours = []

    def step(state, batch, *, loss_fn):
        ours.append(optimizer.param_groups[0]["lr"])
        return kit.train_step(state, batch, loss_fn=loss_fn)

    train = kit.make_loader(table(), batch_size=32)
    val = kit.make_loader(table(20, seed=1))
    state = kit.fit(state, train, val, loss_fn=F.mse_loss, epochs=EPOCHS, step=step)
    assert ours == trace
    assert [row["lr"] for row in state.history] == rows
    for key, value in weights.items():
        assert torch.equal(model.state_dict()[key], value), key
    end = state.scheduler.state_dict()
    for key in ("last_epoch", "_last_lr", "num_bad_epochs", "_step_count"):
        assert end.get(key) == schedule.get(key)


# PITFALLS 8
@pytest.mark.parametrize("validated", [True, False])
def test_a_plateau_schedule_is_stepped_once_per_validation_with_its_value(validated):
    options = {"factor": 0.5, "patience": 2, "threshold": 0.0}
    model = nn.Linear(1, 1)
    hand = nn.Linear(1, 1)
    hand.load_state_dict(model.state_dict())
    train, val = kit.split(kit.make_data(noise=0.1, seed=1), seed=0)
    optimizer, hand_optimizer = (
        torch.optim.SGD(m.parameters(), lr=0.2) for m in (model, hand)
    )
    scheduler, hand_scheduler = (
        lr_scheduler.ReduceLROnPlateau(o, **options)
        for o in (optimizer, hand_optimizer)
    )
    state = kit.make_state(model, optimizer, scheduler=scheduler)
    loaders = kit.make_loader(train, batch_size=16), kit.make_loader(val)
    running = kit.run(
        state,
        loaders[0],
        loaders[1] if validated else None,
        loss_fn=F.l1_loss,
        epochs=30,
    )
    bad = []
    for state in running:
        total = 0.0
        for x, y in zip(train[0].split(16), train[1].split(16)):
            hand_optimizer.zero_grad()
            loss = F.l1_loss(hand(x), y)
            loss.backward()
            hand_optimizer.step()
            total += loss.item() * len(y)
        with torch.no_grad():
            value = F.l1_loss(hand(val[0]), val[1]).item()
        hand_scheduler.step(value if validated else total / len(train[0]))
        assert scheduler.num_bad_epochs == hand_scheduler.num_bad_epochs
        assert scheduler.best == pytest.approx(hand_scheduler.best, rel=1e-6)
        assert scheduler.last_epoch == hand_scheduler.last_epoch == len(state.history)
        assert optimizer.param_groups[0]["lr"] == hand_optimizer.param_groups[0]["lr"]
        bad.append(scheduler.num_bad_epochs)
    assert max(bad) > 1 and optimizer.param_groups[0]["lr"] < 0.2


def test_a_resume_from_an_epochs_last_step_advances_the_schedule_as_ever(tmp_path):
    def fresh():
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        scheduler = lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
        return kit.make_state(model, optimizer, scheduler=scheduler)

    def interrupted():  # in the first validation, so that the epoch has no row yet
        raise InterruptedError
        yield

    train = kit.make_loader(table(), batch_size=32)
    options = {"loss_fn": F.mse_loss, "epochs": 3}
    straight = kit.fit(fresh(), train, [table(20)], **options)
    saving = {"checkpoint": tmp_path, "save_every": STEPS}
    with pytest.raises(InterruptedError):
        kit.fit(fresh(), train, interrupted(), **options, **saving)
    state = kit.load_checkpoint(fresh(), tmp_path / "last.pt")
    assert state.step == STEPS and not state.history
    state = kit.fit(state, train, [table(20)], **options)  # torch must not warn
    for row, expected in zip(state.history, straight.history, strict=True):
        assert row | {"seconds": 0} == expected | {"seconds": 0}


def test_a_schedule_by_step_that_cannot_be_is_refused_when_the_state_is_made():
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    plateau = lr_scheduler.ReduceLROnPlateau(optimizer)
    for scheduler in (None, plateau):
        with pytest.raises(ValueError, match="per_step"):
            kit.make_state(model, optimizer, scheduler=scheduler, per_step=True)


# ------------------------------------------------------ 7.5 early stopping


def rows(*losses, key="val_loss"):
    return [{"epoch": i, key: loss} for i, loss in enumerate(losses)]


def stops_at(losses, **options):
    """The index of the row after which a run stops; None where it goes on."""
    history = rows(*losses)
    for i in range(len(history) + 1):
        if kit.early_stopping(history[:i], **options):
            return i - 1
    return None


def best_at(losses, **options):
    """The index of the last row that was the best when it came."""
    history = rows(*losses)
    best = [i for i in range(len(history)) if kit.is_best(history[: i + 1], **options)]
    return best[-1] if best else None


# PITFALLS 16
def test_nan_is_never_best_and_counts_as_no_improvement():
    losses = [NAN, 1.0, 2.0, 2.0, 2.0]
    assert best_at(losses) == 1 and losses[best_at(losses)] == 1.0
    assert stops_at(losses, patience=2) == 3
    assert best_at([NAN, NAN]) is None
    assert stops_at([NAN, NAN, NAN], patience=2) == 1
    assert best_at([2.0, NAN, 1.0, NAN]) == 2
    assert stops_at([2.0, NAN, NAN, NAN], patience=3) == 3
    assert stops_at([2.0, NAN, 1.0, NAN], patience=2) is None
    assert best_at([INF, 1.0]) == 1
    assert best_at([INF, INF]) is None


def stopper(patience, min_delta):
    """The hand-written class of many tutorials: whether to stop, value by value."""
    best, waited = INF, 0

    def stop(value):
        nonlocal best, waited
        if value < best - min_delta:
            best, waited = value, 0
        else:
            waited += 1
        return waited >= patience

    return stop


@pytest.mark.parametrize("seed", range(20))
def test_early_stopping_stops_where_a_hand_written_counter_does(seed):
    generator = random.Random(seed)
    losses = [1 / (i + 1) + generator.random() * 0.4 for i in range(40)]
    losses[generator.randrange(40)] = NAN
    for patience in (1, 2, 5):
        for min_delta in (0.0, 0.05):
            stop = stopper(patience, min_delta)
            expected = next((i for i, v in enumerate(losses) if stop(v)), None)
            options = {"patience": patience, "min_delta": min_delta}
            assert stops_at(losses, **options) == expected


def test_an_improvement_must_be_larger_than_min_delta():
    creeping = [1.0, 0.9, 0.8, 0.7, 0.6]
    assert stops_at(creeping, patience=2) is None
    assert stops_at(creeping, patience=2, min_delta=0.5) == 2
    assert best_at(creeping, min_delta=0.15) == 4  # 1.0, then 0.8, then 0.6
    assert best_at([1.0, 1.0]) == 0  # as good is not better
    assert stops_at([1.0, 1.0, 1.0], patience=2) == 2


def test_an_empty_history_neither_stops_nor_is_best():
    assert kit.early_stopping([], patience=1) is False
    assert kit.early_stopping((), patience=1) is False
    assert kit.is_best([]) is False


def test_early_stopping_and_is_best_return_plain_bools():
    history = rows(2.0, 1.0)
    assert kit.early_stopping(history, patience=1) is False
    assert kit.early_stopping(rows(1.0, 2.0), patience=1) is True
    assert kit.is_best(history) is True
    assert kit.is_best(rows(1.0, 2.0)) is False


def test_any_key_of_the_history_can_be_followed_and_a_missing_one_is_named():
    history = rows(3.0, 1.0, 2.0, key="train_loss")
    assert kit.early_stopping(history, patience=1, key="train_loss") is True
    line = "^the history has no 'val_loss', only: epoch, train_loss$"
    with pytest.raises(ValueError, match=line):
        kit.early_stopping(history, patience=1)
    with pytest.raises(ValueError, match=line):
        kit.is_best(history)


def test_rows_that_gained_the_key_later_are_followed_from_there():
    history = [{"train_loss": 1.0}, *rows(2.0, 1.0, 3.0)]
    assert kit.is_best(history[:2]) is True
    assert kit.is_best(history[:3]) is True
    assert kit.early_stopping(history[:3], patience=1) is False
    assert kit.early_stopping(history, patience=1) is True


@pytest.mark.parametrize("patience", [0, -1])
def test_patience_below_1_is_one_clear_line(patience):
    with pytest.raises(
        ValueError, match=f"^patience must be at least 1, got {patience}"
    ):
        kit.early_stopping([], patience=patience)


def test_fit_stops_where_early_stopping_says_and_keeps_the_best(tmp_path):
    model = nn.Linear(1, 1)
    state = kit.make_state(model, torch.optim.SGD(model.parameters(), lr=0.3))
    train, val = kit.split(kit.make_data(noise=0.1, seed=0), seed=0)
    stop = partial(kit.early_stopping, patience=4)
    state = kit.fit(
        state,
        kit.make_loader(train, batch_size=8, shuffle=True),
        kit.make_loader(val),
        loss_fn=F.l1_loss,
        epochs=1000,
        stop=stop,
        checkpoint=tmp_path,
    )
    losses = [row["val_loss"] for row in state.history]
    assert len(losses) < 1000 and stop(state.history)
    assert not stop(state.history[:-1])
    best = losses.index(min(losses))
    assert best == len(losses) - 5
    assert len(kit.read_checkpoint(tmp_path / "best.pt")["history"]) == best + 1
    assert len(kit.read_checkpoint(tmp_path / "last.pt")["history"]) == len(losses)
    again = kit.fit(state, [train], [val], loss_fn=F.l1_loss, epochs=2000, stop=stop)
    assert again is state  # a run that was stopped stays stopped


# --------------------------------------------------------- workers' random numbers


class Draws(Dataset):
    """Each row is what the three generators gave, as integers below 2**31."""

    def __len__(self):
        return 12

    def __getitem__(self, row):
        return torch.tensor(
            [
                random.randrange(2**31),
                int(np.random.randint(2**31)),
                int(torch.randint(2**31, ())),
            ]
        )


def drawn(loader, epochs=2):
    return [torch.cat(list(loader)) for _ in range(epochs)]


# PITFALLS 24
@pytest.mark.parametrize("workers", [0, 2])
def test_workers_never_repeat_a_random_number_within_or_across_epochs(workers):
    loader = kit.make_loader(Draws(), batch_size=2, workers=workers, seed=7)
    draws = torch.stack(drawn(loader))
    assert draws.shape == (2, 12, 3)
    for column in range(3):  # random, numpy, torch
        values = draws[:, :, column].flatten().tolist()
        assert len(set(values)) == len(values)


# PITFALLS 24
def test_the_three_generators_do_not_repeat_each_other():
    draws = torch.cat(drawn(kit.make_loader(Draws(), batch_size=4)))
    values = draws.flatten().tolist()
    assert len(set(values)) == len(values)


# PITFALLS 24
def test_what_is_drawn_depends_on_the_seed_and_not_on_the_workers():
    def draws(seed, workers):
        options = {"batch_size": 2, "seed": seed, "workers": workers, "shuffle": True}
        return torch.stack(drawn(kit.make_loader(Draws(), **options)))

    alone = draws(0, 0)
    assert torch.equal(draws(0, 2), alone)
    assert not set(draws(1, 0).flatten().tolist()) & set(alone.flatten().tolist())


# PITFALLS 24
@pytest.mark.parametrize("workers", [0, 2])
def test_a_fit_over_a_plain_loader_draws_anew_in_every_epoch(workers):
    class Pairs(Draws):
        def __getitem__(self, row):
            drawn = super().__getitem__(row)
            return drawn.float() / 2**31, drawn[:1].float() / 2**31

    seen = []

    def step(state, batch, *, loss_fn):
        seen.append(batch[0])
        return kit.train_step(state, batch, loss_fn=loss_fn)

    model = nn.Linear(3, 1)
    state = kit.make_state(model, torch.optim.SGD(model.parameters(), lr=0.0))
    torch.manual_seed(0)
    loader = DataLoader(Pairs(), batch_size=3, num_workers=workers)
    kit.fit(state, loader, loss_fn=F.l1_loss, epochs=2, step=step)
    values = torch.cat(seen)[:, 2].tolist()  # torch's
    assert len(values) == 24 and len(set(values)) == 24


# PITFALLS 21
def test_a_script_ends_though_its_loader_still_has_workers(child):
    code = """
import torch, kit

class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, row):
        return torch.tensor([float(row)])

loader = kit.make_loader(Rows(), batch_size=2, workers=2)
half_read = iter(loader)
print(len(next(half_read)), flush=True)
"""
    process = child("-c", code, start_new_session=True)
    try:
        out, error = process.communicate(timeout=45)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert (process.returncode, out) == (0, "2\n"), error


# PITFALLS 19
@pytest.mark.parametrize("workers_first", [False, True])
def test_a_sigterm_that_reaches_the_workers_too_spoils_no_step(
    workers_first, child, tmp_path
):
    code = """
import time, torch, kit

def pause(*_):  # within a step, after the weights have changed
    print("step", flush=True)
    time.sleep(0.3)

torch.manual_seed(0)
model = torch.nn.Linear(1, 1)
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
optimizer.register_step_post_hook(pause)
state = kit.make_state(model, optimizer)
loader = kit.make_loader(kit.make_data(40), batch_size=4, shuffle=True, workers=2)
kit.fit(state, loader, loss_fn=torch.nn.L1Loss(), epochs=2, checkpoint="run")
"""

    def fresh():
        torch.manual_seed(0)
        model = nn.Linear(1, 1)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        return kit.make_state(model, optimizer)

    def weights(state):
        loader = kit.make_loader(kit.make_data(40), batch_size=4, shuffle=True)
        state = kit.fit(state, loader, loss_fn=nn.L1Loss(), epochs=2)
        return [p.item() for p in state.model.parameters()]

    process = child("-c", code, start_new_session=True)
    try:
        assert [process.stdout.readline() for _ in range(4)] == ["step\n"] * 4
        if workers_first:
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
            for worker in children.read_text().split():
                os.kill(int(worker), signal.SIGTERM)
            assert [process.stdout.readline() for _ in range(3)] == ["step\n"] * 3
        os.killpg(process.pid, signal.SIGTERM)  # as a cluster does
        process.communicate(timeout=45)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 143
    state = kit.load_checkpoint(fresh(), tmp_path / "run" / "last.pt")
    assert state.step == (7 if workers_first else 4)
    assert weights(state) == weights(fresh())


# ------------------------------------------------------------------ a NaN's end


def with_nan(row, n=40):
    x, y = table(n)
    x = x.clone()
    x[row, 2] = NAN
    return x, y


# PITFALLS 26
@pytest.mark.parametrize("precision", [None, "bf16"])
@pytest.mark.parametrize("options", [{}, {"accumulate": 3, "clip": 1.0}])
def test_one_nan_row_stops_the_run_and_the_last_good_checkpoint_stays(
    precision, options, tmp_path
):
    def fresh():
        model = mlp()
        wrapped = kit.amp(model, precision) if precision else model
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        return kit.make_state(wrapped, optimizer)

    step = partial(kit.train_step, **options)
    fit = partial(kit.fit, loss_fn=F.mse_loss, step=step, checkpoint=tmp_path)
    good = fit(fresh(), kit.make_loader(table(40), batch_size=8), epochs=2)
    assert good.step == 10
    saved = {
        k: v.clone()
        for k, v in kit.read_checkpoint(tmp_path / "last.pt")["model"].items()
    }
    before = (tmp_path / "last.pt").read_bytes(), (tmp_path / "best.pt").read_bytes()

    dirty = kit.make_loader(with_nan(row=19), batch_size=8)  # in the third batch
    with pytest.raises(FloatingPointError) as error:
        fit(good, dirty, epochs=4)
    line = str(error.value)
    assert "epoch 2" in line and "step 13" in line and "\n" not in line
    assert "NaN in the data" in line and "learning rate" in line

    after = (tmp_path / "last.pt").read_bytes(), (tmp_path / "best.pt").read_bytes()
    assert after == before
    again = kit.load_checkpoint(fresh(), tmp_path / "last.pt")
    assert again.step == 10
    for key, value in mlp().state_dict().items():
        assert saved[key].isfinite().all() and value.shape == saved[key].shape


# PITFALLS 26
def test_within_an_epoch_the_checkpoint_before_the_nan_stays(tmp_path):
    model = mlp()
    state = kit.make_state(model, torch.optim.SGD(model.parameters(), lr=0.1))
    loader = kit.make_loader(with_nan(row=19), batch_size=8)
    with pytest.raises(FloatingPointError, match="epoch 0, by step 3"):
        kit.fit(
            state,
            loader,
            loss_fn=F.mse_loss,
            epochs=4,
            checkpoint=tmp_path,
            save_every=1,
        )
    content = kit.read_checkpoint(tmp_path / "last.pt")
    assert content["step"] == 2
    assert all(value.isfinite().all() for value in content["model"].values())
    assert not (tmp_path / "best.pt").exists()


# PITFALLS 26
def test_a_loss_that_explodes_stops_the_run_in_kit_run_too():
    model = mlp()
    state = kit.make_state(model, torch.optim.SGD(model.parameters(), lr=1e30))
    with pytest.raises(FloatingPointError, match=r"learning rate \(1e\+30\)"):
        list(kit.run(state, [table()], loss_fn=F.mse_loss, epochs=50))


# PITFALLS 26
def test_a_gradient_that_is_not_finite_is_stopped_before_it_is_saved(tmp_path):
    model = mlp()
    state = kit.make_state(model, torch.optim.SGD(model.parameters(), lr=0.1))
    model[0].weight.register_hook(lambda gradient: gradient * INF)  # a finite loss
    with pytest.raises(FloatingPointError, match="0.weight has NaN or infinite values"):
        kit.fit(state, [table()], loss_fn=F.mse_loss, epochs=1, checkpoint=tmp_path)
    assert not list(tmp_path.iterdir())


def fp16_fit(data, epochs, loss_fn=F.mse_loss, batch_size=8, lr=1e-3):
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    state = kit.make_state(kit.amp(model, "fp16"), optimizer)
    loader = kit.make_loader(data, batch_size=batch_size)
    return kit.fit(state, loader, loss_fn=loss_fn, epochs=epochs)


# PITFALLS 26
def test_steps_that_fp16_skips_are_not_mistaken_for_a_nan():
    def steep(prediction, target):  # its gradient overflows fp16 until the scale falls
        return 1e2 * F.mse_loss(prediction, target)

    state = fp16_fit(table(40), epochs=15, loss_fn=steep, batch_size=40)
    skipped = [row["train_skipped"] for row in state.history]
    assert len(skipped) == 15 and skipped[0] == 1 and skipped[-1] == 0
    assert state.scaler.get_scale() < 65536

    state = fp16_fit(table(80), epochs=3, loss_fn=steep)  # skipped within an epoch
    assert all(math.isfinite(row["train_loss"]) for row in state.history)


# PITFALLS 26
def test_a_loss_so_large_that_the_scale_of_fp16_falls_below_1_trains_on():
    def huge(prediction, target):  # as of house prices that are not standardised
        return 1e6 * F.mse_loss(prediction, target)

    state = fp16_fit(table(40), epochs=30, loss_fn=huge, lr=1e-8, batch_size=40)
    assert state.scaler.get_scale() < 1
    assert 0 < state.history[-1]["train_loss"] < 1e8


# PITFALLS 26
@pytest.mark.parametrize("batch_size", [8, 40])
def test_data_of_nothing_but_nan_stops_under_fp16_in_the_end(batch_size):
    data = torch.full((40, 6), NAN), table(40)[1]
    with pytest.raises(FloatingPointError, match="the loss became nan in epoch"):
        fp16_fit(data, epochs=100, batch_size=batch_size)


# PITFALLS 26
@pytest.mark.parametrize("row", [3, 19, 39])
def test_one_nan_row_stops_under_fp16_in_the_end(row):
    with pytest.raises(FloatingPointError, match="the loss became nan in epoch"):
        fp16_fit(with_nan(row), epochs=100)


# PITFALLS 26
def test_a_gradient_that_is_nan_at_every_step_stops_under_fp16_in_the_end():
    model = mlp()
    state = kit.make_state(
        kit.amp(model, "fp16"), torch.optim.SGD(model.parameters(), lr=0.1)
    )
    model[0].weight.register_hook(lambda gradient: gradient * NAN)  # a finite loss
    with pytest.raises(FloatingPointError, match="epoch"):
        kit.fit(state, [table()], loss_fn=F.mse_loss, epochs=300)
