"""Section 5, checkpoint: files that are whole, plain, and fit every wrap."""

import errno
import json
import math
import os
import pickle
import signal
import threading
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import WRAPS, assert_same, content, make_state, mlp, refused, start, table
from torch import nn
from torch.optim import lr_scheduler

import kit


def trained(state=None, epochs=1):
    """After five steps an epoch."""
    loader = kit.make_loader(table(40), batch_size=8, shuffle=True)
    options = {"loss_fn": nn.functional.mse_loss, "epochs": epochs}
    return kit.fit(state or make_state(), loader, **options)


def test_every_file_is_plain_and_loads_weights_only():
    config = {"lr": np.float64(0.1), "n": [1, None]}
    state = trained(make_state(lr=np.float64(0.1)))._replace(config=config)
    saved = torch.load(kit.save_checkpoint(state, "a.pt"), weights_only=True)
    assert json.loads(saved["config"]) == config
    assert saved["step"] == 5 and saved["optimizer"]["param_groups"][0]["lr"] == 0.1
    with refused("JSON", TypeError):
        kit.save_checkpoint(state._replace(config={"made": [{"by": {1}}]}), "b.pt")
    state.optimizer.param_groups[0]["made"] = [{"by": signal.SIGINT}]
    with refused("plain", TypeError):
        kit.save_checkpoint(state, "b.pt")
    with refused("State"):
        kit.save_checkpoint(state.model, "b.pt")
    assert os.listdir() == ["a.pt"]


def test_a_buffer_may_hold_any_text():
    state = make_state()
    text = torch.frombuffer(bytearray(b"\nbytearray\n"), dtype=torch.uint8)
    state.model.register_buffer("text", text)
    path = kit.save_checkpoint(state, "a.pt")
    assert_same(kit.read_checkpoint(path)["model"]["text"], text)


class Own(torch.optim.SGD):
    """Keeps moments of another shape than the parameters, as Shampoo does."""

    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            kept = self.state[p].setdefault("outer", torch.ones(len(p), len(p)))
            kept.add_(1)
            p.grad.div_(kept[0, 0])
        super().step(closure)


NAMES = "Adagrad", "Adadelta", "Adafactor", "NAdam", "RMSprop"


@pytest.mark.parametrize("optimizer", [*(getattr(torch.optim, n) for n in NAMES), Own])
def test_every_optimizer_resumes_exactly(optimizer):
    make = partial(make_state, optimizer=optimizer)
    path = kit.save_checkpoint(trained(make()), "a.pt")
    resumed = trained(kit.load_checkpoint(make(), path), epochs=2)
    assert_same(resumed, trained(make(), epochs=2))


def test_the_history_comes_back_as_it_was():
    kinds = (
        {"epoch": 1, "step": 7, "train_loss": 0.1 + 0.2},
        {"epoch": 2, "step": 14, "train_loss": math.nan, "val_loss": -math.inf},
        {"epoch": 3, "step": 21, "val_loss": 5e-324, "train_loss": -0.0},
        {"epoch": 4, "step": 2**50, "train_loss": 1.5},
    )
    rows = (*kinds * 2, *(row for row in kinds for _ in range(2500)))
    path = kit.save_checkpoint(make_state()._replace(history=rows), "a.pt")
    assert repr(kit.load_checkpoint(make_state(), path).history) == repr(rows)
    assert path.stat().st_size < 65 * len(rows)  # of these, as text, a row takes 63


@pytest.mark.parametrize("call", ["fsync file", "replace", "fsync folder"])
def test_a_failed_write_names_the_path_and_keeps_the_file(call, monkeypatch):
    state = make_state()
    path = kit.save_checkpoint(state, "models/a.pt")
    before, calls = path.read_bytes(), []

    def fail(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 2 or "folder" not in call:
            raise OSError(errno.EIO, "Input/output error")

    name = call.split()[0]
    monkeypatch.setattr(os, name, fail)
    with refused(r"models/a\.pt.*output", OSError):
        kit.save_checkpoint(trained(state), path)
    if call == "fsync folder":  # the rename is done, so the new one is there, whole
        assert kit.read_checkpoint(path)["step"] == 5
    else:
        assert path.read_bytes() == before
    assert os.listdir("models") == ["a.pt"]


def save_to_a_full_disk(limit):
    import resource  # not on every system

    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, -1))
    try:
        kit.save_checkpoint(make_state(nn.Linear(3, 1000)), "models/a.pt")
    except OSError as error:
        return str(error)


def test_a_full_disk_keeps_the_old_file_and_no_litter():
    path = kit.save_checkpoint(make_state(), "models/a.pt")
    before = path.read_bytes()
    message = start(save_to_a_full_disk, len(before) // 2).result()
    assert message.isprintable() and "models/a.pt" in message
    assert "File too large" in message and "unexpected pos" not in message
    assert path.read_bytes() == before and os.listdir("models") == ["a.pt"]


def test_a_file_is_on_the_disk_before_it_has_its_name(monkeypatch):
    calls = []

    def fsync(file, real=os.fsync):
        calls.append(os.fstat(file).st_size)
        real(file)

    def replace(source, target, real=os.replace):
        calls.append("replace")
        real(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    path = kit.save_checkpoint(make_state(), "a.pt")
    # nothing was left in a buffer; the last one is of the folder
    assert calls[:2] == [path.stat().st_size, "replace"] and len(calls) == 3


def test_a_pipe_is_written_to_and_not_replaced():
    os.mkfifo("pipe")
    copy_it = lambda: Path("a.pt").write_bytes(Path("pipe").read_bytes())
    reader = threading.Thread(target=copy_it, daemon=True)
    reader.start()
    state = make_state()
    kit.save_checkpoint(state, "pipe")
    reader.join(10)
    assert Path("pipe").is_fifo() and sorted(os.listdir()) == ["a.pt", "pipe"]
    assert_same(content(Path("a.pt")), content(state))
    Path("link.pt").symlink_to("a.pt")
    kit.save_checkpoint(state._replace(step=3), "link.pt")
    assert Path("link.pt").is_symlink() and kit.read_checkpoint("a.pt")["step"] == 3


class Evil:
    def __reduce__(self):
        return os.mkdir, ("owned",)


def test_files_of_others_and_of_the_future_are_refused():
    saved = torch.load(kit.save_checkpoint(make_state(), "a.pt"))
    torch.save(saved | {"config": Evil()}, "evil.pt")
    Path("pickle.pt").write_bytes(pickle.dumps(Evil()))
    torch.save(mlp().state_dict(), "weights.pt")
    torch.save(saved | {"format": 99}, "new.pt")
    with zipfile.ZipFile("other.pt", "w") as archive:
        archive.writestr("a", "b")
    whole = Path("a.pt").read_bytes()
    Path("cut.pt").write_bytes(whole[: len(whole) // 2])
    for name, words in (
        ("evil", "run code"),
        ("pickle", ""),
        ("weights", "no checkpoint"),
        ("new", "format"),
        ("other", ""),
        ("cut", "no checkpoint"),
    ):
        with refused(rf"{name}\.pt .*{words}"):
            kit.load_checkpoint(make_state(), f"{name}.pt")
    assert not Path("owned").exists()


MOMENT, GROUP = ("optimizer", "state", 0), ("optimizer", "param_groups", 0)
SPOILED = {  # where, and what stands there instead; ... for nothing
    "weights of another shape": ("model", "0.weight", torch.zeros(8, 4)),
    "a weight that is expanded": ("model", "0.weight", torch.zeros(1).expand(8, 3)),
    "a weight less": ("model", "0.weight", ...),
    "a weight more": ("model", "1.weight", torch.zeros(8, 3)),
    "a moment of another shape": (*MOMENT, "exp_avg", torch.zeros(8, 4)),
    "a moment of one number": (*MOMENT, "exp_avg_sq", torch.zeros(())),
    "parameters in another order": (*GROUP, "params", [1, 0, 2, 3]),
    "no groups": ("optimizer", "param_groups", []),
    "a rate of text": (*GROUP, "lr", "big"),
    "a step below 0": ("step", -1),
    "half a step": ("step", 2.5),
    "a schedule's epoch of text": ("scheduler", "last_epoch", "big"),
    "no scheduler": ("scheduler", None),
    "a text in the place of a method": ("scheduler", "step", "nothing"),
    "another optimizer": ("components", "optimizer", "SGD"),
    "no history": ("history", None),
    "steps of text": ("history", '[{"epoch": 1, "step": "7"}]'),
}


@pytest.mark.parametrize("name", SPOILED)
def test_a_checkpoint_that_does_not_fit_touches_nothing(name):
    schedule = partial(lr_scheduler.StepLR, step_size=1)
    path = kit.save_checkpoint(trained(make_state(scheduler=schedule)), "good.pt")
    part = saved = torch.load(path)
    *where, key, value = SPOILED[name]
    for each in where:
        part = part[each]
    part[key] = value
    if value is ...:
        del part[key]
    torch.save(saved, "bad.pt")
    state = trained(make_state(scheduler=schedule), epochs=2)
    before = content(state)
    with refused(r"bad\.pt"):
        kit.load_checkpoint(state, "bad.pt")
    assert_same(content(state), before)
    with refused("per_step"):
        kit.load_checkpoint(state._replace(per_step=True), "good.pt")


@pytest.mark.parametrize("saved", WRAPS)
def test_every_wrap_saves_bare_keys_and_loads_any_other(saved):
    path = kit.save_checkpoint(trained(make_state(WRAPS[saved](mlp()))), "a.pt")
    kept = kit.read_checkpoint(path)["model"]
    assert list(kept) == list(mlp().state_dict())
    for wrap in WRAPS.values():
        bare = mlp()
        weights = [value for _, value in sorted(bare.state_dict().items())]
        loaded = kit.load_checkpoint(make_state(wrap(bare)), path)
        assert_same(weights, [value for _, value in sorted(kept.items())])
        assert loaded.step == 5 and len(loaded.history) == 1
