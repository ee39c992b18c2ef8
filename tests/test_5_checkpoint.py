"""Section 5: checkpoints that are whole, plain, and fit every wrapping."""

import copy
import errno
import math
import os
import pickle
import subprocess
import sys
import time
import zipfile
from collections import OrderedDict
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

import kit

ROOT = Path(__file__).parents[1]


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 1))


def make_state(model=None, optimizer=torch.optim.Adam, scheduler=None):
    model = make_model() if model is None else model
    optimizer = optimizer(model.parameters(), lr=0.01)
    return kit.make_state(
        model, optimizer, scheduler=scheduler and scheduler(optimizer)
    )


def loader(rows=40, batch_size=8):
    X = torch.randn(rows, 3, generator=torch.Generator().manual_seed(1))
    return kit.make_loader((X, X.sum(1, True)), batch_size=batch_size, shuffle=True)


fit = partial(kit.fit, loss_fn=nn.functional.mse_loss)


def test_every_file_is_plain_types_and_loads_weights_only():  # PITFALLS 12
    state = fit(make_state(), loader(), epochs=1)
    state = state._replace(
        config={"lr": np.float64(0.1), "at": Path("x"), "mean": np.arange(2), "n": (1,)}
    )
    content = torch.load(kit.save_checkpoint(state, "a.pt"), weights_only=True)
    assert content["config"]["lr"] == 0.1 and type(content["config"]["lr"]) is float
    assert content["config"]["at"] == "x" and content["config"]["n"] == (1,)
    assert torch.equal(content["config"]["mean"], torch.arange(2))
    assert content["step"] == 5 and len(content["history"]) == 1


def test_the_history_comes_back_as_it_was():
    rows = [
        {"epoch": 0, "train_loss": 0.1 + 0.2, "best": True},
        {"epoch": 1, "train_loss": math.nan, "best": 1},
        {"epoch": 2, "train_loss": -math.inf, "best": 2**64},
        {"epoch": 3, "train_loss": 1, "val_loss": 5e-324, "note": "warm"},
        {"epoch": 4, "train_loss": 1.5, "val_loss": -0.0, "note": None},
        {},
        {"epoch": 6, "big": 2**63, "best": np.float64(0.1)},
        {"epoch": 7, "big": 2**53 + 1, "best": 0.2},
    ]
    state = make_state()._replace(history=tuple(rows))
    loaded = kit.load_checkpoint(make_state(), kit.save_checkpoint(state, "a.pt"))
    rows[-2]["best"] = 0.1
    assert repr(loaded.history) == repr(tuple(rows))


def test_a_file_of_the_first_format_whose_history_has_rows_is_read():
    state = fit(make_state(), loader(), epochs=2)
    content = torch.load(kit.save_checkpoint(state, "a.pt"), weights_only=True)
    torch.save(content | {"format": 1, "history": list(state.history)}, "old.pt")
    assert kit.load_checkpoint(make_state(), "old.pt").history == state.history


def test_to_save_the_history_of_thousands_of_epochs_takes_next_to_nothing():
    row = {"epoch": 1, "step": 7, "lr": 0.1, "train_loss": 0.1, "val_loss": 0.2}
    rows = (row | ({"train_grad_norm": 1.0} if i % 2 else {}) for i in range(10_000))
    state = make_state()._replace(history=tuple(rows))

    def seconds(call):
        times = []
        for _ in range(5):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        return min(times)

    copied = seconds(lambda: copy.deepcopy(list(map(dict, state.history))))
    assert seconds(lambda: kit.save_checkpoint(state, "a.pt")) < 2 * copied


def test_an_optimizer_with_numpy_numbers_is_saved_and_loaded():
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=np.float64(0.1))
    path = kit.save_checkpoint(kit.make_state(model, optimizer), "a.pt")
    assert kit.read_checkpoint(path)["optimizer"]["param_groups"][0]["lr"] == 0.1


def test_what_is_not_plain_is_refused_by_its_place_and_leaves_no_file():
    state = make_state()._replace(config={"made": [1, {"by": object()}]})
    with pytest.raises(TypeError, match=r"state\['config'\]\['made'\]\[1\]\['by'\]"):
        kit.save_checkpoint(state, "a.pt")
    assert not list(Path().iterdir())


def content_of(path):
    return path.read_bytes()


@pytest.mark.parametrize("call", ["save", "fsync file", "replace", "fsync folder"])
def test_a_failed_write_is_raised_with_the_path_and_keeps_the_old_file(  # PITFALLS 11
    call, monkeypatch
):
    state = make_state()
    path = kit.save_checkpoint(state, "models/a.pt")
    before = path.read_bytes()
    kit.train_step(state, next(iter(loader())), loss_fn=nn.functional.mse_loss)
    calls = {"fsync": 0}

    def fail(*args, **options):
        raise OSError(errno.EIO, "Input/output error")

    def fail_second(*args):
        calls["fsync"] += 1
        if calls["fsync"] == 2:
            fail()

    if call == "save":
        monkeypatch.setattr(torch, "save", fail)
    elif call == "replace":
        monkeypatch.setattr(os, "replace", fail)
    else:
        monkeypatch.setattr(os, "fsync", fail if "file" in call else fail_second)
    with pytest.raises(OSError, match=r"models/a\.pt could not be written: .*output"):
        kit.save_checkpoint(state, path)
    if call == "fsync folder":  # the rename is done, so the new one is there, whole
        assert kit.read_checkpoint(path) and path.read_bytes() != before
    else:
        assert path.read_bytes() == before
    assert os.listdir("models") == ["a.pt"]


def test_a_full_disk_keeps_the_old_file_and_leaves_no_litter():  # PITFALLS 10
    path = kit.save_checkpoint(make_state(), "models/a.pt")
    before = path.read_bytes()
    code = f"""
import resource, torch, kit
from torch import nn
resource.setrlimit(resource.RLIMIT_FSIZE, ({len(before) // 2}, -1))
model = nn.Linear(3, 1000)
state = kit.make_state(model, torch.optim.SGD(model.parameters(), lr=0.1))
try:
    kit.save_checkpoint(state, "models/a.pt")
except OSError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("models/a.pt could not be written: ")
    assert path.read_bytes() == before
    assert os.listdir("models") == ["a.pt"]


def test_a_folder_that_cannot_be_made_is_one_line():
    Path("models").write_text("a file in the way")
    with pytest.raises(OSError, match=r"^models/a\.pt could not be written: .*exists"):
        kit.save_checkpoint(make_state(), "models/a.pt")


def test_the_file_is_on_the_disk_before_it_has_its_name(monkeypatch):  # PITFALLS 9
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append("fsync"), fsync(fd)))
    monkeypatch.setattr(
        os, "replace", lambda *paths: (calls.append("replace"), replace(*paths))
    )
    kit.save_checkpoint(make_state(), "a.pt")
    assert calls == ["fsync", "replace", "fsync"]


def test_a_truncated_file_is_refused_in_one_line():
    path = kit.save_checkpoint(make_state(), "a.pt")
    whole = path.read_bytes()
    for size in range(0, len(whole), 97):
        path.write_bytes(whole[:size])
        with pytest.raises(
            ValueError, match=r"^a\.pt is damaged or no checkpoint: .+$"
        ):
            kit.read_checkpoint(path)


def test_no_flipped_bit_changes_what_is_loaded():
    path = kit.save_checkpoint(make_state(optimizer=torch.optim.SGD), "a.pt")
    whole, right = path.read_bytes(), kit.read_checkpoint(path)
    generator = np.random.default_rng(0)
    refused = 0
    for at in generator.integers(0, len(whole), 400):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << int(generator.integers(8))
        path.write_bytes(damaged)
        try:
            assert str(kit.read_checkpoint(path)) == str(right)
        except ValueError as error:
            refused += 1
            assert "\n" not in str(error) and str(error).startswith("a.pt ")
    assert refused > 200


class Evil:
    def __reduce__(self):
        return os.mkdir, ("owned",)


def test_a_pickle_that_would_run_code_is_refused_and_not_run():  # PITFALLS 12
    torch.save({"format": 1, "model": Evil()}, "evil.pt")
    with pytest.raises(
        ValueError, match=r"^evil\.pt holds more than plain types.*code"
    ):
        kit.load_checkpoint(make_state(), "evil.pt")
    Path("old.pt").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ValueError, match=r"^old\.pt is damaged or no checkpoint"):
        kit.load_checkpoint(make_state(), "old.pt")
    assert not Path("owned").exists()


def test_files_of_others_and_of_the_future_are_refused():
    torch.save(make_model().state_dict(), "weights.pt")
    with pytest.raises(ValueError, match=r"^weights\.pt is no checkpoint of kit$"):
        kit.read_checkpoint("weights.pt")
    torch.save({"format": 99}, "new.pt")
    with pytest.raises(ValueError, match=r"format 99, but this kit\.py reads up to 2"):
        kit.read_checkpoint("new.pt")
    with zipfile.ZipFile("other.pt", "w") as archive:
        archive.writestr("a", "b")
    with pytest.raises(ValueError, match=r"^other\.pt is damaged or no checkpoint"):
        kit.read_checkpoint("other.pt")
    with pytest.raises(FileNotFoundError, match=r"missing\.pt"):
        kit.read_checkpoint("missing.pt")


def test_a_checkpoint_of_another_model_is_refused_and_touches_nothing():
    path = kit.save_checkpoint(make_state(nn.Linear(2, 1)), "a.pt")
    cases = {
        r"^weight is \(1, 2\) in a\.pt but \(1, 3\) in the model$": nn.Linear(3, 1),
        r"^bias is \(1,\) in a\.pt but missing in the model$": nn.Linear(
            2, 1, bias=False
        ),
        r"^weight is \(1, 2\) in a\.pt but missing in the model$": nn.Sequential(
            nn.Linear(2, 1)
        ),
    }
    for message, model in cases.items():
        before = [p.clone() for p in model.parameters()]
        with pytest.raises(ValueError, match=message):
            kit.load_checkpoint(make_state(model), path)
        assert all(map(torch.equal, before, model.parameters()))


def test_another_optimizer_or_scheduler_is_refused_and_touches_nothing():
    step = partial(lr_scheduler.StepLR, step_size=2)
    path = kit.save_checkpoint(make_state(scheduler=step), "a.pt")
    model = nn.Sequential(OrderedDict(make_model().named_children()))
    before = model[0].weight.data.add_(1).clone()
    cases = {
        "optimizer is Adam.* but SGD": make_state(model, torch.optim.SGD, step),
        "scheduler is StepLR in a.pt but None": make_state(model),
    }
    for message, state in cases.items():
        with pytest.raises(ValueError, match=message):
            kit.load_checkpoint(state, path)
        assert torch.equal(model[0].weight, before)


@pytest.fixture(scope="module")
def process_group(tmp_path_factory):
    store = tmp_path_factory.mktemp("group") / "store"
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


WRAPS = {
    "bare": lambda model: model,
    "bf16": lambda model: kit.amp(model, "bf16"),
    "fp16": lambda model: kit.amp(model, "fp16"),
    "compiled": partial(torch.compile, backend="eager"),
    "compiled bf16": lambda model: torch.compile(
        kit.amp(model, "bf16"), backend="eager"
    ),
    "bf16 compiled": lambda model: kit.amp(
        torch.compile(model, backend="eager"), "bf16"
    ),
    "parallel": nn.parallel.DistributedDataParallel,
    "parallel bf16": lambda model: nn.parallel.DistributedDataParallel(
        kit.amp(model, "bf16")
    ),
}


@pytest.mark.parametrize("saved", WRAPS)
def test_every_wrapping_saves_bare_keys_and_loads_every_other(  # PITFALLS 13
    saved, process_group
):
    state = fit(make_state(WRAPS[saved](make_model())), loader(), epochs=1)
    path = kit.save_checkpoint(state, "a.pt")
    content = kit.read_checkpoint(path)
    assert list(content["model"]) == list(make_model().state_dict())
    for wrap in WRAPS.values():
        bare = make_model()
        loaded = kit.load_checkpoint(make_state(wrap(bare)), path)
        for key, value in bare.state_dict().items():
            assert torch.equal(value, content["model"][key])
        assert loaded.step == 5 and loaded.history == state.history


def test_a_compiled_part_of_a_model_saves_bare_keys():
    model = make_model()
    model[0] = torch.compile(model[0], backend="eager")
    path = kit.save_checkpoint(make_state(model), "a.pt")
    assert list(kit.read_checkpoint(path)["model"]) == list(make_model().state_dict())
    kit.load_checkpoint(make_state(model), path)
