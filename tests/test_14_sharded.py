"""A model in shards: torch's fully_shard under torchrun gives what one process gives.

One launch of torchrun runs this file, and in it every case; each process leaves what
it found. The tests run a case once more, in one process without torch.distributed, and
compare. SHARDED_PROCESSES=3 adds a launch of three, which go on from files of two.
"""

import atexit
import faulthandler
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.optim import lr_scheduler
from torch.utils._python_dispatch import TorchDispatchMode

import kit

ROOT = Path(__file__).parents[1]
mse = nn.functional.mse_loss
adam = partial(torch.optim.Adam, lr=0.01)
momentum = partial(torch.optim.SGD, lr=0.02, momentum=0.9)

# Shards add up the rows of a batch, and the squares of a norm, in another order. That is
# a few roundings of float32, 6e-8 each; what was seen after 20 steps is up to 3e-7.
NEAR = 1e-6
# bf16 rounds every process's part of a gradient to 8 bits, 4e-3, before they are added.
NEAR_BF16 = 1e-2


# ------------------------------------------------------- what every process builds


def data(rows=7, columns=3, dtype=torch.float32):
    X = torch.randn(rows, columns, generator=torch.Generator().manual_seed(1))
    y = X.mean(1, True) + X[:, :1] ** 2
    return X.to(dtype), y.to(dtype)


ROWS = data()


def net(columns=3, width=5, dropout=0.0):
    """The output layer's one row is on one process; the others hold nothing of it."""
    torch.manual_seed(0)
    layers = kit.Standardize(data(columns=columns)[0]), nn.Linear(columns, width)
    layers = *layers, nn.ReLU(), nn.Linear(width, 1)
    return nn.Sequential(*layers, *[nn.Dropout(dropout)] * (dropout > 0))


def sharded(model):
    from torch.distributed.fsdp import fully_shard

    for layer in model.children():
        if isinstance(layer, nn.Linear):
            fully_shard(layer)
    fully_shard(model)
    return model


def make_state(shard, optimizer=adam, *, model=None, wrap=lambda model: model):
    model = net() if model is None else model
    model = wrap(shard(model))
    optimizer = optimizer(model.parameters())
    schedule = lr_scheduler.StepLR(optimizer, 3, 0.5)
    return kit.make_state(model, optimizer, scheduler=schedule)


def train(state, epochs=6, *, rows=ROWS, batch_size=3, **options):
    batches = kit.make_loader(rows, batch_size=batch_size, shuffle=True)
    val = kit.make_loader(rows, batch_size=5)
    options = {"metrics": kit.metrics, "loss_fn": mse, "epochs": epochs} | options
    return kit.fit(state, batches, val, **options)


def saved(state, name):
    return kit.read_checkpoint(kit.save_checkpoint(state, name))


def trained(shard, name, optimizer=adam, *, model=None, wrap=lambda m: m, **options):
    """What the checkpoint holds: weights, moments, rows, and how many steps."""
    state = make_state(shard, optimizer, model=model and model(), wrap=wrap)
    return saved(train(state, **options), f"{name}.pt")


def per_row(prediction, target):
    """A loss whose rows weigh 1 or 3: the pair of their total and weight."""
    weight = 1 + 2 * (target[:, 0] > 0)
    return (weight * (prediction - target)[:, 0] ** 2).sum(), weight.sum()


# --------------------------------------------- cases: in one process and in several

CASES = {}


def case(function):
    CASES[function.__name__] = function
    return function


step = partial(partial, kit.train_step)
for name, options in {
    "adam": {},
    "momentum": {"optimizer": momentum},
    "fused": {"optimizer": partial(adam, fused=True)},
    "one_row_a_batch": {"batch_size": 1, "epochs": 2},
    "accumulate": {"step": step(accumulate=4), "batch_size": 7},
    "accumulate_few": {"step": step(accumulate=3), "batch_size": 2},
    "clip": {"step": step(clip=0.1), "optimizer": momentum},
    "clip_far": {"step": step(clip=1e9, accumulate=2)},
    "pairs": {"loss_fn": per_row, "step": step(accumulate=2)},
    "bf16": {"wrap": partial(kit.amp, precision="bf16")},
    "float64": {
        "model": lambda: net().double(),
        "rows": data(dtype=torch.float64),
        "step": step(accumulate=2, clip=1.0),
    },
}.items():
    CASES[name] = partial(trained, name=name, **options)


@case
def one_call_of_fully_shard(shard):
    return trained(in_one if shard is sharded else shard, "one_call")


@case
def one_cycle(shard):
    state = make_state(shard)
    schedule = lr_scheduler.OneCycleLR(state.optimizer, 0.1, total_steps=18)
    state = kit.make_state(state.model, state.optimizer, scheduler=schedule)
    return saved(train(state), "one_cycle.pt")


@case
def unlike_shares(shard):
    """One step in pieces, of a batch of which the first process has the most rows."""
    state, part = make_state(shard), ROWS
    if shard is sharded:
        ends = [0, *range(8 - dist.get_world_size(), 8)]
        part = tuple(t[ends[dist.get_rank()] : ends[dist.get_rank() + 1]] for t in ROWS)
    state, sums = kit.train_step(state, part, loss_fn=mse, accumulate=4)
    return {"sums": {k: float(v) for k, v in sums.items()}} | saved(state, "unlike.pt")


@case
def evaluated(shard):
    model = make_state(shard).model
    return {
        size: kit.evaluate(
            model,
            kit.make_loader(data(), batch_size=size),
            loss_fn=mse,
            metrics=kit.metrics,
        )
        for size in (1, 2, 7)
    }


@case
def evaluated_plainly(shard):
    """Batches of torch's own loader."""
    rows = torch.utils.data.TensorDataset(*data())
    batches = torch.utils.data.DataLoader(rows, batch_size=3)
    return kit.evaluate(make_state(shard).model, batches, loss_fn=mse)


@case
def predicted(shard):
    model = make_state(shard).model
    batches = kit.make_loader(data(), batch_size=2)
    return [kit.predict(model, data()[0]), kit.predict(model, batches)]


@case
def summed_up(shard):
    return kit.summary(make_state(shard).model)


@case
def diagnosed(shard):
    state = make_state(shard, partial(torch.optim.SGD, lr=1e-4))
    return kit.diagnose(train(state._replace(scheduler=None), 12, batch_size=7))


@case
def files_of_fit(shard):
    """Layers of one shape, wide enough that a freed tensor's memory is used again."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(64, 64) for _ in range(3)), nn.Linear(64, 1))
    state = train(
        make_state(shard, partial(adam, lr=0.003), model=model),
        3,
        rows=data(columns=64),
        checkpoint="files",
        save_every=2,
    )
    names = sorted(path.name for path in Path("files").iterdir())
    last, best = (kit.read_checkpoint(f"files/{name}.pt") for name in ("last", "best"))
    return {"names": names, "last": last, "best": best, "saved": saved(state, "f.pt")}


@case
def frozen(shard):
    """The first parameters have no moments, so the file's first are of the third."""
    model = net()
    model[1].requires_grad_(False)
    state = make_state(shard, model=model)
    file = kit.save_checkpoint(train(state, 2), "frozen.pt")
    model = net()
    model[1].requires_grad_(False)
    return saved(train(kit.load_checkpoint(make_state(shard, model=model), file)), file)


@case
def tied(shard):
    """Whether one weight under two names is one in the file."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))
    model[2].weight = model[0].weight
    state = make_state(in_one if shard is sharded else shard, model=model)
    content = saved(state, "tied.pt")["model"]
    return content["0.weight"].data_ptr() == content["2.weight"].data_ptr()


def in_one(model):
    """Only the whole model in shards: it stays whole between forward and backward."""
    from torch.distributed.fsdp import fully_shard

    return fully_shard(model)


@case
def from_one_process(shard):
    """Go on, amid an epoch, from the file that another number of processes wrote."""
    return saved(train(kit.load_checkpoint(make_state(shard), "earlier.pt")), "on.pt")


@case
def broken_off(shard):
    """The straight run, and what becomes of one that broke off amid an epoch."""
    states = [make_state(shard, model=net(dropout=0.5)) for _ in range(3)]
    straight = saved(train(states[0]), "straight.pt")
    file = break_off(states[1], "dropped")
    again = saved(train(kit.load_checkpoint(states[2], file)), "again.pt")
    break_off(make_state(shard), "broken")
    return {"straight": straight, "again": again}


def break_off(state, folder):
    """What is left of a run whose ninth step, of the third epoch, fails."""

    def breaking(state, batch, *, loss_fn):
        if state.step == 8:
            raise InterruptedError
        return kit.train_step(state, batch, loss_fn=loss_fn)

    with suppress(InterruptedError):
        train(state, step=breaking, checkpoint=folder, save_every=1)
    kit._first_says("written")
    return Path(folder) / "last.pt"


# ----------------------------------------------------- cases: only in several processes


def only(function):
    ONLY[function.__name__] = function
    return function


ONLY = {}


@only
def exchanges(shard):
    """Of a step: forwards, and what it sends, by accumulate and rows."""
    found = {}
    for accumulate, rows in ((1, 7), (4, 7), (4, 2)):
        state = make_state(shard)
        calls = []
        state.model[0].register_forward_hook(partial(_note, calls))
        share = dist.get_rank(), dist.get_world_size()
        part = kit._shared(data(rows), *share)
        with Sent() as sent:
            kit.train_step(state, part, loss_fn=mse, accumulate=accumulate)
        found[accumulate, rows] = {"forwards": len(calls)} | sent.counts
    return found


def _note(calls, *_):
    calls.append(1)


class Sent(TorchDispatchMode):
    """Counts the calls that reach other processes, by name."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "c10d":
            self.counts[function._opname.strip("_")] += 1
        return function(*args, **kwargs or {})


@only
def kept_of_a_save(shard):
    """The most whole tensors that this process held at once, and what it loads."""
    from torch.distributed.tensor import DTensor

    state, gathered, most = make_state(shard), [], 0
    state = train(state, 1)
    full_tensor = DTensor.full_tensor

    def noted(self, **options):
        nonlocal most
        whole = full_tensor(self, **options)
        gathered.append(StorageWeakRef(whole.untyped_storage()))
        most = max(most, sum(not one.expired() for one in gathered))
        return whole

    DTensor.full_tensor = noted
    try:
        file = kit.save_checkpoint(state, "kept.pt")
    finally:
        DTensor.full_tensor = full_tensor
    state = kit.load_checkpoint(make_state(shard), file)
    shards = [m.to_local() for m in state.optimizer.state.values() for m in _moments(m)]
    spare = [t.untyped_storage().nbytes() - t.nbytes for t in shards]
    return {"gathered": len(gathered), "most": most, "loaded": len(shards)} | {
        "spare": max(spare)
    }


def _moments(kept):
    return [value for value in kept.values() if hasattr(value, "to_local")]


@only
def refusals(shard):
    """The error of each mistake; and that the state trains on as if there were none."""
    from torch.distributed.fsdp import fully_shard

    found, state = {}, make_state(shard)
    wider = make_state(shard, model=net(width=6))
    with note(found, "another shape"):
        kit.load_checkpoint(wider, "earlier.pt")
    train(wider, 1)
    with note(found, "diagnose"):
        kit.diagnose(state, [ROWS], loss_fn=mse)
    with note(found, "export"):
        kit.export(state.model, "line.pt2", example=data()[0])
    with note(found, "not all"):
        model = net()
        fully_shard(model[1])
        kit.make_state(model, adam(model.parameters()))
    with note(found, "late"):
        model = fully_shard(net())
        kit.predict(model, data()[0])
        kit.make_state(model, adam(model.parameters()))
    return found


@contextmanager
def note(found, name):
    try:
        yield
        found[name] = "nothing raised"
    except Exception as error:  # noqa: BLE001
        found[name] = f"{type(error).__name__}: {error}"


@only
def from_meta(shard):
    """A model that no process ever held whole, filled by the file."""
    with torch.device("meta"):
        model = shard(nn.Sequential(nn.Identity(), *net()[1:]))
    model.to_empty(device="cpu")
    straight = make_state(shard, model=nn.Sequential(nn.Identity(), *net()[1:]))
    straight = train(straight, 2)
    file = kit.save_checkpoint(straight, "filled.pt")
    state = make_state(lambda model: model, model=model)
    state = train(kit.load_checkpoint(state, file), 4)
    return {
        "again": saved(state, "again_filled.pt"),
        "straight": saved(train(straight, 4), file),
    }


@only
def an_overflow_in_one_shard(shard):
    """Whether an infinite gradient in one process's shard skips the step in all."""
    state = make_state(shard, momentum, wrap=partial(kit.amp, precision="fp16"))
    unscale, before = state.scaler.unscale_, saved(state, "before.pt")["model"]

    def overflowing(optimizer):
        if dist.get_rank() == dist.get_world_size() - 1:
            next(iter(state.model.parameters())).grad.to_local()[0] = float("inf")
        unscale(optimizer)

    state.scaler.unscale_ = overflowing
    scale = state.scaler.get_scale()
    part = kit._shared(data(), dist.get_rank(), dist.get_world_size())
    state, sums = kit.train_step(state, part, loss_fn=mse)
    after = saved(state, "after.pt")["model"]
    same = all(torch.equal(before[key], after[key]) for key in before)
    skipped = sums["skipped"], state.scaler.get_scale() / scale
    return {"same": same, "skipped": skipped}


@only
def left_for_the_end(shard):
    with patch.object(atexit, "register") as register:
        train(make_state(shard), 1)
    return [call.args[0].__name__ for call in register.call_args_list]


def ends_the_job(shard):
    """The first process meets weights that are no numbers as it writes them."""

    def spoiling(state, batch, *, loss_fn):
        out = kit.train_step(state, batch, loss_fn=loss_fn)
        if out[0].step == 2:
            with torch.no_grad():
                state.model[3].bias.mul_(float("nan"))
        return out

    train(make_state(shard), 2, batch_size=7, checkpoint="spoiled", step=spoiling)


def main(folder):
    faulthandler.dump_traceback_later(150, exit=True)  # a hang in C++ heeds no signal
    os.chdir(folder)
    dist.init_process_group(timeout=timedelta(seconds=60))
    found = {}
    for name, function in (CASES | ONLY).items():
        start = time.perf_counter()
        found[name] = function(sharded)
        found["seconds", name] = time.perf_counter() - start
    torch.save(found, f"found{dist.get_rank()}.pt")
    dist.barrier()
    ends_the_job(sharded)


# ------------------------------------------------------------------------ the tests

PROCESSES = int(os.environ.get("SHARDED_PROCESSES", "2"))


def launch(processes, folder):
    """Run this file under torchrun; its folder, exit code and stderr. No child outlives it."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(processes), __file__, str(folder)]
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    env["PYTHONWARNINGS"] = "error"
    out = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen(command, env=env, start_new_session=True, **out)
    try:
        return process.communicate(timeout=180)[0], process.returncode
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):  # torchrun ends its own first
            with suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(process.pid, number)
                process.communicate(timeout=40)


@pytest.fixture(scope="session")
def launched(tmp_path_factory, testrun_uid):
    """The folder of the launch, which the first of pytest's workers makes for all."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder = base / f"sharded-{testrun_uid}"
    try:
        folder.mkdir()
    except FileExistsError:  # another worker is at it
        deadline = time.monotonic() + 400
        while not (folder / "done.pt").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        return folder
    with in_folder(folder):
        shutil.copy(break_off(make_state(as_it_is), "one"), "earlier.pt")
    for processes in sorted({2, PROCESSES}):
        output, code = launch(processes, folder)
        if processes != PROCESSES:  # the last go on from what the first wrote
            shutil.copy(folder / "broken/last.pt", folder / "earlier.pt")
            for name in ("files", "broken", "dropped", "spoiled"):
                shutil.rmtree(folder / name)
    torch.save((output, code), folder / "half.pt")
    os.replace(folder / "half.pt", folder / "done.pt")
    return folder


@contextmanager
def in_folder(folder):
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@pytest.fixture
def found(launched):
    """What each process found, in order, of a case."""

    def of(name):
        output, _ = torch.load(launched / "done.pt")
        paths = [launched / f"found{rank}.pt" for rank in range(PROCESSES)]
        assert all(path.exists() for path in paths), output[-3000:]
        return [torch.load(path)[name] for path in paths]

    return of


def as_it_is(model):
    return model


def alone(name):
    """The case in this process, without torch.distributed."""
    assert not dist.is_initialized()
    return CASES[name](as_it_is)


def assert_near(one, other, near=NEAR, where=""):
    """Equal but for roundings: names, types, shapes, counts, and the rest nearly."""
    assert type(one) is type(other), where
    if isinstance(one, dict):
        assert list(one) == list(other), where
        for key in one.keys() - {"seconds"}:
            assert_near(one[key], other[key], near, f"{where} {key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for i, pair in enumerate(zip(one, other)):
            assert_near(*pair, near, f"{where} {i}")
    elif isinstance(one, torch.Tensor):
        tolerances = {"rtol": near, "atol": near}
        torch.testing.assert_close(one, other, **tolerances, msg=lambda m: where + m)
    elif isinstance(one, float):
        assert one == pytest.approx(other, rel=near, abs=near), where
    else:
        assert one == other, where


FILES = [
    *("adam", "momentum", "fused", "clip", "clip_far", "accumulate", "accumulate_few"),
    *("one_row_a_batch", "pairs", "one_call_of_fully_shard", "one_cycle", "frozen"),
    *("files_of_fit", "from_one_process", "unlike_shares"),
]


@pytest.mark.parametrize("name", FILES)
def test_the_files_hold_what_one_process_trains(name, found, launched):
    """Weights, moments, rows of losses and metrics and norms, the count of steps."""
    shutil.copy(launched / "earlier.pt", ".")
    expected = alone(name)
    for content in found(name):
        assert_near(content, expected)


def test_in_float64_all_that_differs_is_the_last_digits(found):
    for content in found("float64"):
        assert_near(content, alone("float64"), 1e-12)


def test_bf16_differs_by_its_own_roundings(found):
    exact = found("adam")[0]["model"]["1.weight"]
    for content in found("bf16"):
        assert_near(content, alone("bf16"), NEAR_BF16)
        assert not torch.allclose(content["model"]["1.weight"], exact, atol=NEAR)


@pytest.mark.parametrize("name", ["evaluated", "evaluated_plainly", "predicted"])
def test_every_process_has_what_one_finds_of_all_rows(name, found):
    for scores in found(name):
        assert_near(scores, alone(name))


def test_the_clipped_norm_is_that_of_all_shards(found):
    rows = [content["history"] for content in found("clip_far")]
    assert rows[0][0]["train_grad_norm"] > 1 and len(rows[0]) == 6
    assert_near(rows[0], alone("clip_far")["history"])


def test_gradients_are_exchanged_once_a_step(found):
    for counts in found("exchanges"):  # of two layers
        assert {of["reduce_scatter_base"] for of in counts.values()} == {2}
        assert counts[4, 7]["forwards"] == -(-7 // PROCESSES)
    assert all(counts == found("exchanges")[0] for counts in found("exchanges"))


def test_a_file_is_of_whole_plain_tensors_by_the_names_of_the_bare_model(found):
    for content in found("adam"):
        assert {k: tuple(v.shape) for k, v in content["model"].items()} == {
            k: tuple(v.shape) for k, v in net().state_dict().items()
        }
        assert all(type(value) is torch.Tensor for value in content["model"].values())
        moments = content["optimizer"]["state"]
        assert list(moments) == [0, 1, 2, 3]
        assert moments[0]["exp_avg"].shape == (5, 3)


def test_fit_and_save_checkpoint_write_the_same(found):
    for files in found("files_of_fit"):
        assert files["names"] == ["best.pt", "last.pt"]
        assert repr(plain(files["last"])) == repr(plain(files["saved"]))
        losses = [row["val_loss"] for row in files["last"]["history"]]
        assert len(files["best"]["history"]) == 1 + losses.index(min(losses))


def test_a_run_broken_off_amid_an_epoch_ends_as_the_straight_one(found):
    for runs in found("broken_off"):
        assert repr(plain(runs["again"])) == repr(plain(runs["straight"]))


def test_one_process_goes_on_from_a_file_of_several(found, launched):
    expected = found("adam")[0]
    state = kit.load_checkpoint(make_state(as_it_is), launched / "broken/last.pt")
    assert state.step == 8 and len(state.history) == 2
    assert_near(saved(train(state), "on.pt"), expected)


def test_several_processes_go_on_from_a_file_of_one(found):
    for content in found("from_one_process"):
        assert_near(content, alone("adam"))


def test_a_model_that_was_never_whole_is_filled_by_a_file(found):
    for runs in found("from_meta"):
        assert repr(plain(runs["again"])) == repr(plain(runs["straight"]))


def test_one_weight_of_two_names_is_written_once(found):
    assert found("tied") == [True] * PROCESSES


def test_processes_but_the_first_keep_no_copies_and_load_only_their_shards(found):
    first, *others = found("kept_of_a_save")
    assert {kept["gathered"] for kept in (first, *others)} == {4 + 8}
    assert max(kept["most"] for kept in others) < 4  # gloo may let go of one late
    assert {(kept["loaded"], kept["spare"]) for kept in (first, *others)} == {(8, 0)}


def test_one_shard_that_overflows_skips_the_step_of_all(found):
    for step in found("an_overflow_in_one_shard"):
        assert step == {"same": True, "skipped": (7.0, 0.5)}


@pytest.mark.parametrize("name", ["summed_up", "diagnosed"])
def test_summary_and_diagnose_say_what_they_say_of_one_process(name, found):
    assert found(name) == [alone(name)] * PROCESSES
    assert alone(name)


def test_every_process_refuses_in_one_line(found):
    late = "the optimizer must hold shards only: call fully_shard(model) after that of "
    late += "its layers, then make the optimizer, before any forward"
    shape = "1.weight is (5, 3) in earlier.pt but (6, 3) in the model"
    copied = "diagnose needs a copy, and torch copies no shards: load the checkpoint "
    copied += "into a model without fully_shard, in one process"
    for errors in found("refusals"):
        export = errors.pop("export")
        assert export.startswith("ValueError: line.pt2 cannot be made of the model: ")
        assert "\n" not in export
        assert errors == {
            "another shape": f"ValueError: {shape}",
            "diagnose": f"ValueError: {copied}",
            "not all": f"ValueError: {late}",
            "late": f"ValueError: {late}",
        }


def test_an_error_of_the_first_process_ends_the_job_and_leaves_the_last_good_file(
    found, launched
):
    output, code = torch.load(launched / "done.pt")
    assert found("adam") and code == 1
    assert (
        "FloatingPointError: 3.bias has NaN or infinite values after step 2" in output
    )
    assert kit.read_checkpoint(launched / "spoiled/last.pt")["step"] == 1


def test_gloo_gets_time_to_end_before_python_does(found):
    """Of processes that end right after their last exchange 1 in 8 aborted without."""
    assert found("left_for_the_end") == [["_linger"]] * PROCESSES


def plain(value):
    """With nested lists in place of tensors, without the wall-clock."""
    if isinstance(value, torch.Tensor):
        return [str(value.dtype), value.tolist()]
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items() if k != "seconds"}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value


if __name__ == "__main__":
    main(sys.argv[1])
