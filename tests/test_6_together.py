"""Section 6: run and fit, exact resumes, interrupts, kills."""

import copy
import os
import random
import signal
import threading
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

import kit

MSE = nn.functional.mse_loss


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 1))


def make_state(scheduler=None, model=None, **options):
    model = make_model() if model is None else model
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    scheduler = scheduler and scheduler(optimizer)
    return kit.make_state(model, optimizer, scheduler=scheduler, **options)


def data(rows=52):
    X = torch.randn(rows, 3, generator=torch.Generator().manual_seed(1))
    return X, X.sum(1, True)


def loaders():
    """7 shuffled batches of 6 rows, the last of 4; and 2 to validate."""
    train, val = kit.split(data(), ratios=(40 / 52, 12 / 52))
    return (
        kit.make_loader(train, batch_size=6, shuffle=True),
        kit.make_loader(val, batch_size=6),
    )


def test_run_yields_every_epoch_and_its_row():
    states = list(kit.run(make_state(), *loaders(), loss_fn=MSE, epochs=3))
    assert [len(state.history) for state in states] == [1, 2, 3]
    assert [state.step for state in states] == [7, 14, 21]
    row = states[-1].history[-1]
    assert list(row) == ["epoch", "step", "lr", "train_loss", "val_loss", "seconds"]
    assert (row["epoch"], row["step"], row["lr"]) == (2, 21, 0.01)
    assert all(isinstance(value, int | float) for value in row.values())


def test_the_body_of_the_loop_may_break_and_go_on_later(same):
    for state in kit.run(make_state(), *loaders(), loss_fn=MSE, epochs=9):
        if len(state.history) == 2:
            break
    kit.save_checkpoint(kit.fit(state, *loaders(), loss_fn=MSE, epochs=4), "a.pt")
    straight = kit.fit(make_state(), *loaders(), loss_fn=MSE, epochs=4)
    assert same("a.pt", kit.save_checkpoint(straight, "b.pt"))


def test_any_iterable_of_batches_is_a_loader():
    X, y = data()
    batches = [(X[:30], y[:30]), (X[30:], y[30:])]
    state = kit.fit(make_state(), batches, batches, loss_fn=MSE, epochs=2)
    assert state.step == 4
    own = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(X, y), batch_size=8, shuffle=True
    )
    assert kit.fit(make_state(), own, own, loss_fn=MSE, epochs=2).step == 14


def test_epochs_is_the_total_after_a_resume(child, same):  # PITFALLS 5, 23
    code = """
import sys, torch, kit
from torch import nn
epochs, folder, resume = int(sys.argv[1]), sys.argv[2], len(sys.argv) > 3
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 1))
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
state = kit.make_state(model, optimizer, scheduler=scheduler)
if resume:
    state = kit.load_checkpoint(state, f"{folder}/last.pt")
X = torch.randn(40, 3, generator=torch.Generator().manual_seed(1))
train = kit.make_loader((X, X.sum(1, True)), batch_size=6, shuffle=True)
kit.fit(state, train, train, loss_fn=nn.functional.mse_loss, epochs=epochs,
        checkpoint=folder)
"""
    for arguments in (("3", "a"), ("8", "a", "resume"), ("8", "b")):
        process = child("-c", code, *arguments)
        assert process.communicate()[1] == "" and process.returncode == 0
    assert len(kit.read_checkpoint("a/last.pt")["history"]) == 8
    assert same("a/last.pt", "b/last.pt") and same("a/best.pt", "b/best.pt")


SCHEDULERS = {
    "none": None,
    "step": partial(lr_scheduler.StepLR, step_size=2),
    "cosine": partial(lr_scheduler.CosineAnnealingLR, T_max=3),
    "plateau": partial(lr_scheduler.ReduceLROnPlateau, patience=0),
    "onecycle": partial(lr_scheduler.OneCycleLR, max_lr=0.1, total_steps=21),
    "cyclic": partial(
        lr_scheduler.CyclicLR, base_lr=0.01, max_lr=0.1, step_size_up=4,
        cycle_momentum=False,
    ),
    "lambda": partial(lr_scheduler.LambdaLR, lr_lambda=lambda epoch: 0.5**epoch),
    "multistep": partial(lr_scheduler.MultiStepLR, milestones=[1, 2]),
    "sequential": lambda optimizer: lr_scheduler.SequentialLR(
        optimizer,
        [lr_scheduler.LinearLR(optimizer), lr_scheduler.ExponentialLR(optimizer, 0.5)],
        milestones=[1],
    ),
}  # fmt: skip


class Recorded:
    """A step that keeps the ids of the samples it has seen."""

    def __init__(self, **options):
        self.ids, self.lrs, self.options = [], [], options

    def __call__(self, state, batch, *, loss_fn):
        self.ids.append(batch[0][:, 0].tolist())
        self.lrs.append(state.optimizer.param_groups[0]["lr"])
        return kit.train_step(state, batch, loss_fn=loss_fn, **self.options)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_resume_at_any_step_equals_the_straight_run(name, same):  # PITFALLS 5, 6, 7
    make = partial(make_state, SCHEDULERS[name])
    fit = partial(kit.fit, loss_fn=MSE, epochs=3)
    seen = Recorded(accumulate=2, clip=1.0)
    states, step = [], 0

    def save_at_every_step(state, batch, *, loss_fn):
        state, sums = seen(state, batch, loss_fn=loss_fn)
        return state, sums

    now = make()
    parts = kit._steps(now, *loaders(), MSE, 3, None, save_at_every_step, 0)
    for step, (state, _) in enumerate(parts):
        states.append(kit.save_checkpoint(state, f"{step:02}.pt"))
    assert len(states) == 3 * 7 + 3
    for path in states[: -1 : 1 if name == "none" else 4]:
        later = Recorded(accumulate=2, clip=1.0)
        state = kit.load_checkpoint(make(), path)
        start = state.step
        torch.manual_seed(random.randrange(1000))  # what came before must not matter
        state = fit(state, *loaders(), step=later)
        assert later.ids == seen.ids[start:] and later.lrs == seen.lrs[start:]
        assert same(kit.save_checkpoint(state, "resumed.pt"), states[-1])


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_resume_is_exact_where_rows_are_no_whole_vectors(shuffle, same):  # PITFALLS 5
    X = torch.randn(53, 5, generator=torch.Generator().manual_seed(1))
    train = kit.make_loader((X, X.sum(1, True)), batch_size=2, shuffle=shuffle)

    def make():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 1))
        return kit.make_state(model, torch.optim.Adam(model.parameters(), lr=0.01))

    paths = [
        kit.save_checkpoint(state, f"{i:02}.pt")
        for i, (state, _) in enumerate(
            kit._steps(make(), train, None, MSE, 2, None, kit.train_step, 0)
        )
    ]
    assert len(paths) == 2 * 27 + 2
    for path in paths[:-1:5]:
        state = kit.load_checkpoint(make(), path)
        state = kit.fit(state, train, loss_fn=MSE, epochs=2)
        assert same(kit.save_checkpoint(state, "resumed.pt"), paths[-1])


class Noisy(torch.utils.data.Dataset):
    """Rows with random numbers from three sources, which notes what is read."""

    def __init__(self, log=None):
        self.log = log

    def __len__(self):
        return 20

    def __getitem__(self, row):
        import numpy as np

        if self.log:
            with open(self.log, "a") as file:
                file.write(f"{row}\n")
        noise = random.random() + np.random.rand() + torch.rand(1)
        return torch.full((3,), row / 20) + noise, torch.ones(1)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_mid_epoch_resume_of_a_dataset_reads_only_what_is_left(workers, same):
    def loader(log=None):
        return kit.make_loader(
            Noisy(log), batch_size=4, shuffle=True, workers=workers, seed=3
        )

    fit = partial(kit.fit, loss_fn=MSE, epochs=2)
    kit.save_checkpoint(fit(make_state(), loader()), "straight.pt")
    steps = kit._steps(make_state(), loader(), None, MSE, 2, None, kit.train_step, 0)
    for _, (state, _) in zip(range(8), steps):  # 5 steps, an epoch, 2 steps
        kit.save_checkpoint(state, "mid.pt")
    steps.close()
    state = kit.load_checkpoint(make_state(), "mid.pt")
    assert state.step == 7 and len(state.history) == 1
    kit.save_checkpoint(fit(state, loader("read.txt")), "resumed.pt")
    assert same("resumed.pt", "straight.pt")
    assert len(Path("read.txt").read_text().split()) == 12  # PITFALLS 6


def test_fp16_resumes_with_its_scale(same):
    def make():
        return make_state(model=kit.amp(make_model(), "fp16"))

    straight = kit.fit(make(), *loaders(), loss_fn=MSE, epochs=2)
    half = kit.fit(make(), *loaders(), loss_fn=MSE, epochs=1)
    half = kit.load_checkpoint(make(), kit.save_checkpoint(half, "half.pt"))
    assert half.scaler.get_scale() != make().scaler.get_scale()  # some were skipped
    resumed = kit.fit(half, *loaders(), loss_fn=MSE, epochs=2)
    one, other = (
        kit.save_checkpoint(state, f"{i}.pt")
        for i, state in enumerate((straight, resumed))
    )
    assert same(one, other)


def test_a_folder_with_a_run_is_neither_resumed_nor_overwritten_unasked():  # PITFALLS 22
    fit = partial(kit.fit, loss_fn=MSE, checkpoint="run")
    fit(make_state(), *loaders(), epochs=1)
    before = Path("run/last.pt").read_bytes()
    with pytest.raises(FileExistsError, match=r"^run/last\.pt is there already"):
        fit(make_state(), *loaders(), epochs=1)
    assert Path("run/last.pt").read_bytes() == before


def test_the_best_is_a_function_of_the_history_and_survives_a_resume():  # PITFALLS 17
    train, val = loaders()
    fit = partial(kit.fit, loss_fn=MSE, checkpoint="run")
    state = fit(make_state(), train, val, epochs=4)
    losses = [row["val_loss"] for row in state.history]
    best = kit.read_checkpoint("run/best.pt")
    assert best["history"][-1]["val_loss"] == min(losses)
    worse = [(x, y + 100) for x, y in train]  # from now on it unlearns
    state = kit.load_checkpoint(make_state(), "run/last.pt")
    before = Path("run/best.pt").read_bytes()
    state = fit(state, worse, val, epochs=8)
    assert min(row["val_loss"] for row in state.history[4:]) > min(losses)
    assert Path("run/best.pt").read_bytes() == before


def test_an_early_stopped_run_stays_stopped_after_a_resume():
    stop = partial(kit.early_stopping, patience=1, min_delta=1e9)
    fit = partial(kit.fit, loss_fn=MSE, stop=stop, checkpoint="run", epochs=9)
    assert len(fit(make_state(), *loaders()).history) == 2
    state = kit.load_checkpoint(make_state(), "run/last.pt")
    assert len(fit(state, *loaders()).history) == 2


def test_on_epoch_sees_every_epoch():
    seen = []
    fit = partial(kit.fit, on_epoch=lambda state: seen.append(len(state.history)))
    fit(make_state(), *loaders(), loss_fn=MSE, epochs=3, checkpoint="run")
    assert seen == [1, 2, 3]


def test_steps_saved_within_an_epoch_hold_its_sums(monkeypatch):
    calls = []

    def save(content, file, real=torch.save):
        if "last.pt" in file.name:
            calls.append((content["step"], content["sums"].get("weight")))
        real(content, file)

    monkeypatch.setattr(torch, "save", save)
    kit.fit(
        make_state(), *loaders(), loss_fn=MSE, epochs=2, checkpoint="run",
        save_every=3,
    )  # fmt: skip
    assert calls == [(3, 18), (6, 36), (7, None), (9, 12), (12, 30), (14, None)]


def test_training_goes_on_while_a_checkpoint_is_written_as_it_was(monkeypatch):
    going_on, weights, written = threading.Event(), [], []

    def step(state, batch, *, loss_fn):
        state, sums = kit.train_step(state, batch, loss_fn=loss_fn)
        if state.step == 2:
            weights.append(copy.deepcopy(state.model.state_dict()))
        if state.step == 4:
            going_on.set()
        return state, sums

    def save(content, file, real=torch.save):
        assert going_on.wait(20)
        written.append(copy.deepcopy(content["model"]))
        real(content, file)

    monkeypatch.setattr(torch, "save", save)
    fit = partial(kit.fit, loss_fn=MSE, epochs=1, step=step, save_every=2)
    state = fit(make_state(), loaders()[0], checkpoint="run")
    assert len(written) == 5  # of steps 2, 4, 6, and 7 twice, as the best and the last
    for name, tensor in weights[0].items():
        assert torch.equal(written[0][name], tensor)
        assert torch.equal(written[-1][name], state.model.state_dict()[name])


def test_a_write_that_fails_behind_the_run_ends_it(monkeypatch):
    def save(content, file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(
        OSError, match=r"last\.pt could not be written: .*No space left"
    ):
        kit.fit(
            make_state(), loaders()[0], loss_fn=MSE, epochs=9, checkpoint="run",
            save_every=3,
        )  # fmt: skip
    assert not list(Path("run").iterdir())


def test_tied_weights_are_one_tensor_in_the_file_too():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    train = [(torch.ones(4, 3), torch.zeros(4, 3))]
    kit.fit(make_state(model=model), train, loss_fn=MSE, epochs=1, checkpoint="run")
    saved = torch.load("run/last.pt", weights_only=True)["model"]
    assert saved["0.weight"].data_ptr() == saved["1.weight"].data_ptr()


def test_a_nan_stops_the_run_and_leaves_the_last_good_checkpoint():  # PITFALLS 26
    X, y = data()
    good = kit.fit(make_state(), [(X, y)], loss_fn=MSE, epochs=2, checkpoint="run")
    before = Path("run/last.pt").read_bytes()
    bad = y.clone()
    bad[7] = float("nan")
    with pytest.raises(FloatingPointError, match=r"nan in epoch 2, by step 3: "):
        kit.fit(good, [(X, bad)], loss_fn=MSE, epochs=9, checkpoint="run")
    assert Path("run/last.pt").read_bytes() == before


def test_weights_that_became_infinite_are_not_saved():
    state = kit.fit(make_state(), *loaders(), loss_fn=MSE, epochs=1, checkpoint="run")
    before = Path("run/last.pt").read_bytes()

    def spoil(state, batch, *, loss_fn):
        out = kit.train_step(state, batch, loss_fn=loss_fn)
        with torch.no_grad():
            if state.step == 13:  # the last of the epoch: no loss will show it
                state.model[0].weight[0, 0] = float("inf")
        return out

    with pytest.raises(FloatingPointError, match=r"0\.weight has NaN or inf"):
        kit.fit(state, *loaders(), loss_fn=MSE, epochs=2, checkpoint="run", step=spoil)
    assert Path("run/last.pt").read_bytes() == before


# What follows starts processes and sends them signals.

SLOW = """
import sys, time, torch, kit
from torch import nn
folder, where = sys.argv[1:3]
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 1))
state = kit.make_state(model, torch.optim.Adam(model.parameters(), lr=0.01))
if len(sys.argv) > 3:
    state = kit.load_checkpoint(state, folder + "/last.pt")
X = torch.randn(40, 3, generator=torch.Generator().manual_seed(1))
train = kit.make_loader((X, X.sum(1, True)), batch_size=6, shuffle=True)

class Slow:
    def __iter__(self):
        for batch in train:
            if where == "evaluation":
                print("now", flush=True)
                time.sleep(0.1)
            yield batch

def step(state, batch, *, loss_fn):
    if where == "step" and state.step >= 3:
        print("now", flush=True)
        time.sleep(0.1)
    return kit.train_step(state, batch, loss_fn=loss_fn)

def save(content, file, real=torch.save):
    if where == "save":
        print("now", flush=True)
        time.sleep(0.1)
    return real(content, file)

torch.save = save
kit.fit(state, train, Slow(), loss_fn=nn.functional.mse_loss, epochs=3, step=step,
        checkpoint=folder)
"""


@pytest.mark.parametrize("where", ["step", "evaluation", "save"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_the_resumed_run_equals_the_straight_one(  # PITFALLS 18, 19
    where, number, child, same
):
    process = child("-c", SLOW, "run", where)
    assert process.stdout.readline() == "now\n"
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == (143 if number == signal.SIGTERM else -number)
    assert ("KeyboardInterrupt" in errors) == (number == signal.SIGINT)
    content = kit.read_checkpoint("run/last.pt")
    assert content["step"] < 21 and len(content["history"]) < 3
    assert sorted(p.name for p in Path("run").iterdir() if p.name != "best.pt") == [
        "last.pt"
    ]
    for arguments in (("run", "-", "resume"), ("straight", "-")):
        process = child("-c", SLOW, *arguments)
        assert process.communicate(timeout=60)[1] == "" and process.returncode == 0
    assert same("run/last.pt", "straight/last.pt")
    assert same("run/best.pt", "straight/best.pt")


def test_a_second_signal_stops_at_once(child):
    stuck = SLOW.replace("time.sleep(0.1)", "time.sleep(60)")
    process = child("-c", stuck, "run", "step")
    assert process.stdout.readline() == "now\n"
    start = time.monotonic()
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == -signal.SIGINT
    assert time.monotonic() - start < 20


def test_handlers_are_put_back_and_none_is_set_without_a_checkpoint():
    def handlers():
        return [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]

    before, during = handlers(), []
    fit = partial(kit.fit, loss_fn=MSE, epochs=1)
    fit(make_state(), *loaders(), on_epoch=lambda state: during.append(handlers()))
    fit(
        make_state(), *loaders(), on_epoch=lambda state: during.append(handlers()),
        checkpoint="run",
    )  # fmt: skip
    assert during[0] == before and during[1] != before and handlers() == before
    with pytest.raises(ZeroDivisionError):
        fit(make_state(), *loaders(), on_epoch=lambda state: 1 / 0, checkpoint="other")
    assert handlers() == before


def test_in_another_thread_no_handler_is_set():
    seen = []

    def work():
        kit.fit(
            make_state(), *loaders(), loss_fn=MSE, epochs=1, checkpoint="run",
            on_epoch=lambda state: seen.append(signal.getsignal(signal.SIGTERM)),
        )  # fmt: skip

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGTERM)]
    assert Path("run/last.pt").exists()


MODEL = """
from torch import nn
def make(inputs, outputs):
    return nn.Sequential(nn.Linear(inputs, 16), nn.Dropout(0.3), nn.Linear(16, outputs))
"""


def test_a_run_killed_at_random_moments_ends_as_the_straight_one(child, same):
    """30 kills by default; KIT_KILLS=300 for the long version."""  # PITFALLS 9
    kills = int(os.environ.get("KIT_KILLS", "30"))
    X, y = data(400)
    rows = torch.cat([X, y], 1).tolist()
    text = "\n".join(["a,b,c,y", *(",".join(map(str, row)) for row in rows)])
    Path("data.csv").write_text(text)
    Path("own.py").write_text(MODEL)
    steps = 9 * (epochs := 40 + 4 * kills)
    command = ["-m", "kit", "fit", "--data", "data.csv", "--target", "y"]
    command += ["--model", "own:make", "--scheduler", "cosine", "--save-every", "1"]
    command += ["--accumulate", "3", "--clip", "1", "--patience", "0", "--no-plot"]
    command += ["--epochs", epochs, "--quiet", "--out"]
    straight = child(*command, "straight")
    last, rng, done = Path("killed/last.pt"), random.Random(0), 0

    def position():
        content = kit.read_checkpoint(last)  # raises where a kill broke the file
        return content["step"], len(content["history"])

    while done < kills:
        before = position() if last.exists() else (-1, 0)
        assert before[0] < steps, f"the run was over after {done} kills"
        process = child(*command, "killed", "--resume")
        mark = last.stat().st_mtime_ns if last.exists() else None
        while not (last.exists() and last.stat().st_mtime_ns != mark):
            assert process.poll() is None, process.communicate()
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.04))
        process.kill()
        process.communicate()
        done += 1
        assert position() > before
    process = child(*command, "killed", "--resume")
    assert process.communicate() == ("", "") and process.returncode == 0
    assert straight.communicate() == ("", "") and straight.returncode == 0
    assert same("killed/last.pt", "straight/last.pt")
    assert same("killed/best.pt", "straight/best.pt")
    assert kit.read_checkpoint(last)["step"] == steps
    assert {p.name for p in last.parent.iterdir()} == {
        "best.pt", "config.json", "history.csv", "last.pt",
    }  # fmt: skip


def test_deep_copies_of_a_state_train_apart():
    state = make_state()
    before = copy.deepcopy(state)
    kit.fit(state, *loaders(), loss_fn=MSE, epochs=1)
    assert not torch.equal(before.model[0].weight, state.model[0].weight)
    held = {id(p) for p in before.model.parameters()}
    assert held == {id(p) for p in before.optimizer.param_groups[0]["params"]}


class Drawing(torch.utils.data.Dataset):
    def __len__(self):
        return 20

    def __getitem__(self, row):
        return torch.full((3,), row / 20) + torch.randn(3), torch.ones(1)


@pytest.mark.parametrize("kind", ["ours", "plain"])
def test_a_resume_is_exact_where_both_loaders_draw_and_shuffle(kind, same):
    def loader(seed):
        if kind == "ours":
            return kit.make_loader(Drawing(), batch_size=4, shuffle=True, seed=seed)
        return torch.utils.data.DataLoader(Drawing(), batch_size=4, shuffle=True)

    fit = partial(kit.fit, loss_fn=MSE, epochs=4)
    straight = fit(make_state(), loader(0), loader(1))
    kit.save_checkpoint(straight, "straight.pt")
    pair = loader(0), loader(1)
    steps = kit._steps(make_state(), *pair, MSE, 4, None, kit.train_step, 0)
    for _, (state, _) in zip(range(9), steps):  # 5 steps, an epoch, 3 steps
        kit.save_checkpoint(state, "mid.pt")
    steps.close()
    resumed = fit(kit.load_checkpoint(make_state(), "mid.pt"), loader(0), loader(1))
    assert same(kit.save_checkpoint(resumed, "resumed.pt"), "straight.pt")


def test_a_state_of_another_run_does_not_overwrite_a_folder():  # PITFALLS 22
    fit = partial(kit.fit, loss_fn=MSE)
    fit(make_state(), *loaders(), epochs=4, checkpoint="run")
    other = fit(make_state(), *loaders(), epochs=1, seed=7)
    with pytest.raises(FileExistsError, match="of another run"):
        fit(other, *loaders(), epochs=5, checkpoint="run")
    assert len(kit.read_checkpoint("run/last.pt")["history"]) == 4


def test_data_in_place_of_a_loader_is_one_clear_line():
    for call in (
        lambda: kit.fit(make_state(), data(), loss_fn=MSE, epochs=1),
        lambda: kit.evaluate(make_model(), data(), loss_fn=MSE),
        lambda: kit.predict(make_model(), data()),
    ):
        with pytest.raises(TypeError, match=r"got a tuple: make_loader\(data\)"):
            call()


WORKERS = """
import torch, kit
from torch import nn

class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 1000

    def __getitem__(self, row):
        return torch.rand(3), torch.ones(1)

train = kit.make_loader(Rows(), batch_size=2, workers=2)
model = nn.Linear(3, 1)
state = kit.make_state(model, torch.optim.SGD(model.parameters(), lr=0.01))

def step(state, batch, *, loss_fn):
    if state.step == 3:
        print("now", flush=True)
    return kit.train_step(state, batch, loss_fn=loss_fn)

kit.fit(state, train, loss_fn=nn.functional.mse_loss, epochs=1000, step=step,
        checkpoint="run")
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_workers_too_saves_and_ends(number, child):  # PITFALLS 18, 19
    process = child("-c", WORKERS, start_new_session=True)
    assert process.stdout.readline() == "now\n"
    os.killpg(process.pid, number)
    process.communicate(timeout=60)
    assert process.returncode == (143 if number == signal.SIGTERM else -number)
    assert kit.read_checkpoint("run/last.pt")["step"] >= 3
