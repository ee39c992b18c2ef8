"""Checkpoints from strangers are refused in one line, or harmless.

KIT_FLIPS=all flips every bit of a file; KIT_HOSTILE=300 makes 300 odd ones.
"""

import json
import math
import os
import random
import resource
import shutil
import sys
import zipfile
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers import assert_same, content, invoke, make_state, start, table
from torch import nn
from torch.optim import lr_scheduler

import kit

COUNT = int(os.environ.get("KIT_HOSTILE", "60"))


def line(optimizer=torch.optim.Adam):
    torch.manual_seed(0)
    schedule = partial(lr_scheduler.StepLR, step_size=1)
    return make_state(nn.Linear(1, 1), optimizer=optimizer, scheduler=schedule)


def save_line(path, optimizer=torch.optim.Adam):
    batches = [kit.make_data(), kit.make_data()]
    state = kit.fit(line(optimizer), batches, loss_fn=nn.L1Loss(), epochs=2)
    return kit.save_checkpoint(state._replace(config={"lr": 0.1}), path)


def test_no_flipped_bit_changes_what_is_loaded():
    """Of a thousand bits, and of all in the zip's central directory."""
    path = save_line(Path("a.pt"), torch.optim.SGD)
    whole, right = path.read_bytes(), content(path)
    every = range(8 * len(whole))
    directory = every[8 * whole.index(b"PK\x01\x02") :]
    bits = sorted({*directory, *random.Random(0).sample(every, 1000)})
    if os.environ.get("KIT_FLIPS") == "all":
        bits = every
    refused = 0
    with open(path, "r+b", buffering=0) as file:
        for bit in bits:
            at, flipped = bit // 8, whole[bit // 8] ^ 1 << bit % 8
            os.pwrite(file.fileno(), bytes([flipped]), at)
            try:
                found = content(path)
            except ValueError as error:
                assert str(error).isprintable() and "a.pt" in str(error)
                refused += 1
            else:
                assert_same(found, right, where=f"bit {bit}")
            os.pwrite(file.fileno(), whole[at : at + 1], at)
    print(f"{len(bits)}, {refused} of them refused")
    assert refused > len(bits) / 2


CODE = ["cProfile:run", "planted:make", "os:system", "ctypes:string_at"]
HUGE = 10**9


def odd_value(dice, value):
    """Something else in the place of a value."""
    nest = [1.0]
    for _ in range(dice.choice([1, 50, 400])):
        nest = {"a": nest} if dice.random() < 0.5 else [nest]
    odd = [
        *(None, True, -1, 0, 1, 3, 2**40, 2**70, 0.5, 1e308, math.nan, -math.inf),
        *("", "a" * 10_000, "\x1b[31m\n", b"", bytes(8), (), [], {}, nest, CODE, *CODE),
        *([value], {"a": value}, {1: value}, (value, value)),
        *(torch.zeros(()), torch.zeros(1, 1), torch.zeros(3, 2), torch.tensor([1, 2])),
        *(torch.full((1,), math.nan), torch.zeros(1, 1, dtype=torch.complex64)),
        *(torch.zeros(1).expand(HUGE), torch.zeros(1, 1).expand(HUGE, 1)),
        *(torch.zeros(2).to_sparse(), torch.zeros(1, device="meta"), torch.zeros(0)),
    ]
    strided = isinstance(value, torch.Tensor) and value.layout == torch.strided
    if strided and value.numel() < HUGE:
        odd += [value.double(), value.half(), value[None], value.bool()]
        odd += [value.expand(2, *value.shape), value.flatten().repeat(3)[:2]]
    return dice.choice(odd)


def places(nest, depth=0):
    """All (container, key) in the nest."""
    for key, value in nest.items() if isinstance(nest, dict) else enumerate(nest):
        yield nest, key
        if isinstance(value, dict | list) and depth < 6:
            yield from places(value, depth + 1)


def spoil(saved, dice):
    """Put one to three odd things anywhere into a checkpoint's content."""
    for _ in range(dice.choice([1, 1, 1, 2, 3])):
        container, key = dice.choice(list(places(saved)))
        if dice.random() < 0.3:
            container, key = saved, dice.choice(list(saved))
        if dice.random() < 0.2:
            del container[key]
        elif dice.random() < 0.1 and isinstance(container, dict):
            name = dice.choice(["a", 1, None, True, "model", "weight"])
            container[name] = odd_value(dice, container[key])
        else:
            container[key] = odd_value(dice, container[key])
    if dice.random() < 0.3:
        code = {"model": dice.choice(CODE), "shape": b"abc", "outputs": 1}
        config = {**code, "inputs": (HUGE,), "hidden": (HUGE, HUGE)}
        saved["config"] = json.dumps(config, default=repr)


def rezip(path, change=lambda name, data: data, compression=zipfile.ZIP_STORED):
    """Write a zip's members again, changed."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, change(name, data))
        for info in archive.infolist():
            info.external_attr = 0  # as torch writes it


def claim_more(name, data):
    """Let a tensor of 54,321 numbers say that it has two billion."""
    claim = (54_321).to_bytes(2, "little")
    return data.replace(b"M" + claim, b"J\xff\xff\xff\x7f") if "pkl" in name else data


class Zeros:
    def __reduce__(self):
        return bytearray, (2 * 10**9,)


def make_hostile(good, path, seed):
    dice = random.Random(seed)
    saved = torch.load(good, weights_only=True)
    if seed % 10 == 1:
        saved["sums"] = {"loss": torch.zeros(54_321)}
    elif seed % 10 == 3:
        saved["history"] = [()], torch.zeros(1).double().expand(5 * 10**7)
    elif seed % 10 == 4:
        saved["more"] = Zeros()
    elif seed % 10:
        spoil(saved, dice)
    torch.save(saved, path)
    if seed % 10 == 0:
        rezip(path, compression=zipfile.ZIP_DEFLATED)
    elif seed % 10 == 1:
        rezip(path, claim_more)
    elif seed % 10 == 2:  # members that are too long
        rezip(path, lambda name, data: data + bytes(dice.choice([1, 10**6])))


def watched(call, seeds):
    """What each file leads to, in a process that may take 1 GB and imports nothing."""
    with open("/proc/self/statm") as statm:
        used = int(statm.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**30,) * 2)
    Path("planted.py").write_text("open('owned', 'w')\n")
    sys.path.insert(0, "")
    before = {name.split(".")[0] for name in sys.modules}
    outcomes = Counter(map(call, seeds))
    imported = {name.split(".")[0] for name in sys.modules} - before
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    assert peak < 1 and not imported and not Path("owned").exists(), (peak, imported)
    return outcomes


def check_line(message):
    assert message.isprintable() and len(message) < 500, message[:1000]
    assert "llocate" not in message, message  # the limit of 1 GB, not kit, refused it


def load_one(seed):
    """Refused and nothing touched; or loaded, and then it saves and trains."""
    if seed is None:
        shutil.copy("good.pt", "odd.pt")
    else:
        make_hostile("good.pt", "odd.pt", seed)
    state = kit.load_checkpoint(line(), "good.pt")
    before = content(state)
    try:
        loaded = kit.load_checkpoint(state, "odd.pt")
    except ValueError as error:
        check_line(str(error))
        assert "odd.pt" in str(error)
        assert_same(content(state), before)
        return "refused"
    assert seed is None or seed % 10 not in (0, 1, 3, 4), "no file of torch's"
    assert type(loaded.step) is int and loaded.step >= 0
    kit.save_checkpoint(loaded, "again.pt")
    try:
        kit.train_step(loaded, kit.make_data(), loss_fn=nn.L1Loss())
    except (ValueError, ArithmeticError, RuntimeError, KeyError):
        pass  # loudly: a schedule at its end, a beta of 1, a moment that is missing
    return "harmless"


def load_all(count):
    save_line("good.pt")
    assert load_one(None) == "harmless"  # and torch's lazy imports are done
    return watched(load_one, range(count))


ODD_CONFIG = {
    "model": CODE,
    "data": ["/dev/zero", "pipe", "http://127.0.0.1:1/t.csv", "t.csv\x1b[31m", "."],
    "hidden": [(40_000, 40_000), (HUGE,), (64,) * 64, (0,), (True,), b"ab", "8"],
    "device": ["cuda", "meta", "planted"],
    "batch_size": [0, 2**70, b"8"],
    "columns": [("a",) * 100_000, ("a", "a"), ("y",), "abc", b"ab"],
    "categories": [{"kind": ("x",) * 10**5}, {"z": ("a",)}, {"kind": ()}, {"kind": 3}],
    "classes": [("a",) * 10**5, ("no",), (1, 2), b"ab"],
    "ratios": [(0.5, 0.5), (1e-9, 1), (math.nan,)],
    "lr": [math.nan, -1.0, 1e30],
    "target": ["a", "z", "\x1b[31m"],
}


def invoke_one(seed):
    """The exit codes of the commands that open a run whose checkpoints are odd."""
    dice = random.Random(seed)
    base = dice.choice(["line", "table", "table"])
    shutil.rmtree("odd", ignore_errors=True)
    shutil.copytree(base, "odd")
    if seed is not None and seed % 4 == 0:
        make_hostile(f"{base}/last.pt", "odd/last.pt", seed)
    elif seed is not None:
        saved = torch.load("odd/last.pt", weights_only=True)
        config = json.loads(saved["config"])
        key = dice.choice(sorted(config.keys() - {"compile", "workers"}))
        value = odd_value(dice, config[key])
        config[key] = dice.choice([value, *ODD_CONFIG.get(key, [])])
        saved["config"] = json.dumps(config, default=repr)
        torch.save(saved, "odd/last.pt")
    shutil.copy("odd/last.pt", "odd/best.pt")
    codes = []
    for command in (
        "evaluate odd",
        "predict odd --data t.csv",
        "export odd odd.pt2",
        "fit --resume --out odd --epochs 3 --quiet",
    ):
        result = invoke(command)
        assert isinstance(result.exception, SystemExit | None), result.exc_info
        if result.exit_code:
            check_line(result.output.strip().replace("\n", " "))
        codes.append(result.exit_code)
    return str(codes)


def invoke_all(count):
    X, y = table(40, 2, classes=2)
    rows = [f"{a},{b},{'xyz'[i % 3]},{y[i]}" for i, (a, b) in enumerate(X.tolist())]
    Path("t.csv").write_text("\n".join(["a,b,kind,y", *rows]))
    os.mkfifo("pipe")
    for options in ("--out line", "--out table --data t.csv --target y"):
        assert invoke(f"fit --epochs 2 {options} --quiet").exit_code == 0
    for seed in (None, None, None):  # of both kinds, very probably: imports are done
        invoke_one(seed)
    return watched(invoke_one, range(count))


@pytest.mark.skipif(sys.platform != "linux", reason="limits a process's memory")
@pytest.mark.parametrize(
    ("call", "count"), [(load_all, COUNT), (invoke_all, COUNT // 3)]
)
def test_odd_checkpoints_are_refused_or_harmless(call, count):
    outcomes = start(call, count).result(600)
    print(outcomes)
    assert sum(outcomes.values()) == count
    if call is load_all:
        assert outcomes["refused"] > count / 2
