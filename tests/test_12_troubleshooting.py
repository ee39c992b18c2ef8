"""Section 12, troubleshooting: every finding provoked, and absent where all is well."""

import copy
import math
import os
import random
import re
import time
from functools import partial

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from sklearn import datasets
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset, WeightedRandomSampler

import kit

LINE = kit.make_data()
LINE_VAL = [kit.make_data(20)]


def mlp(inputs=1, outputs=1, *first):
    torch.manual_seed(42)
    layers = nn.Linear(inputs, 16), nn.ReLU(), nn.Linear(16, outputs)
    return nn.Sequential(*first, *layers)


def linear(*size):
    torch.manual_seed(42)
    return nn.Linear(*size or (1, 1))


def found(
    model,
    data,
    *,
    loss_fn=F.mse_loss,
    optimizer=torch.optim.Adam,
    lr=0.01,
    epochs=20,
    val=None,
    slow=None,
    parameters=None,
):
    """The findings on a run; slow: the seconds that its epochs shall have taken."""
    train = data if isinstance(data, DataLoader) else kit.make_loader(data)
    state = kit.make_state(model, optimizer(parameters or model.parameters(), lr=lr))
    state = kit.fit(state, train, val, loss_fn=loss_fn, epochs=epochs)
    if slow:
        rows = (row | {"seconds": slow} for row in state.history)
        state = state._replace(history=tuple(rows))
    return kit.diagnose(state, train, loss_fn=loss_fn)


def line(lr, epochs, *, loss_fn=F.l1_loss, val=LINE_VAL):
    options = {"loss_fn": loss_fn, "optimizer": torch.optim.SGD, "val": val}
    return found(linear(), LINE, lr=lr, epochs=epochs, **options)


def wide():
    torch.manual_seed(42)
    return nn.Sequential(nn.Linear(1, 64), nn.ReLU(), nn.Linear(64, 1))


class Half(nn.Module):
    """Two layers; whether the gradient reaches the first one can be chosen."""

    def __init__(self, *, cut):
        super().__init__()
        torch.manual_seed(42)
        self.a, self.b, self.cut = nn.Linear(1, 8), nn.Linear(8, 1), cut

    def forward(self, x):
        x = self.a(x).relu()
        return self.b(x.detach() if self.cut else x)


def frozen(*, kept):
    """A first layer that is frozen, whether or not the optimizer keeps it."""
    model = mlp()
    model[0].requires_grad_(False)
    parameters = model.parameters() if kept else model[2].parameters()
    return found(model, LINE, epochs=200, parameters=[*parameters])


def biased(bias):
    model = mlp()
    nn.init.constant_(model[0].bias, bias)
    return found(model, LINE, lr=0.03, epochs=200)


def noisy(rows, epochs):
    """An mlp on targets that are half noise, validated."""
    X = torch.randn(rows + 100, 8, generator=torch.Generator().manual_seed(1))
    noise = torch.randn(len(X), 1, generator=torch.Generator().manual_seed(2))
    train, val = kit.split((X, X[:, :1] + noise), ratios=(rows / len(X), 100 / len(X)))
    return found(mlp(8), train, val=[val], epochs=epochs)


def parabola(model):
    X = torch.linspace(-1, 1, 100)[:, None]
    return found(model, (X, X.square()), lr=0.03, epochs=200)


class Rows(Dataset):
    """The line, of which each row takes some seconds to get."""

    def __init__(self, seconds):
        self.seconds = seconds

    def __len__(self):
        return 40

    def __getitem__(self, i):
        time.sleep(self.seconds)
        return LINE[0][i], LINE[1][i]


class Sleepy(nn.Linear):
    """Takes so many seconds a batch, or a row; so many times less under autocast."""

    def __init__(self, *, batch=0.0, row=0.0, bf16=1.0):
        super().__init__(1, 1)
        self.batch, self.row, self.bf16 = batch, row, bf16

    def forward(self, x):
        seconds = self.batch + self.row * len(x)
        time.sleep(seconds / (self.bf16 if torch.is_autocast_enabled("cpu") else 1))
        return super().forward(x)


def sleepy(*, wait=0.0, slow=2.0, **seconds):
    loader = kit.make_loader(Rows(wait), batch_size=8)
    return found(Sleepy(**seconds), loader, epochs=1, slow=slow)


def classes(rare, *, apart=1.0, loss_fn=F.cross_entropy, drawn=False):
    """Two classes, one of them rare, whose inputs lie so far apart."""
    X = torch.randn(1000, 2, generator=torch.Generator().manual_seed(1))
    y = (torch.arange(1000) < rare).long()
    data = X + apart * y[:, None], y
    loader = kit.make_loader(data, batch_size=100, shuffle=True)
    if drawn:
        weights = torch.where(y == 1, 1 / rare, 1 / (1000 - rare))
        draw = torch.Generator().manual_seed(1)
        sampler = WeightedRandomSampler(weights, 1000, generator=draw)
        loader = DataLoader(TensorDataset(*data), batch_size=100, sampler=sampler)
    return found(linear(2, 2), loader, loss_fn=loss_fn, lr=0.03, epochs=80)


def table(scale, shift, *, standardize=False, constant=False):
    X = torch.randn(200, 3, generator=torch.Generator().manual_seed(1))
    y = X[:, :1] - X[:, 1:2]
    X = scale * X + shift
    X[:, 2] = 7.0 if constant else X[:, 2]
    return found(mlp(3, 1, *[kit.Standardize(X)] * standardize), (X, y), epochs=300)


WEIGHTED = nn.CrossEntropyLoss(torch.tensor([1.0, 24.0]))
NAN_VAL = [(LINE[0][:2], torch.full((2, 1), math.nan))]
# by question and fact: what must be found, what provokes it, what must not
CASES = {
    "1 lost": (
        "200 losses are NaN or infinite: --lr 0.001, --clip 1.0",
        partial(line, 0.01, 200, val=NAN_VAL),
        partial(line, 0.01, 200),
    ),
    "1 dead": (
        r"100% of the units of the ReLU 1 \(16 units\) are 0 .*: --lr 0.003,",
        partial(biased, -3.0),
        partial(biased, 0.1),
    ),
    "1 idle": (
        r"2 parameters have no gradient or no optimizer \(a.weight, a.bias\): ",
        partial(found, Half(cut=True), LINE, epochs=200),
        partial(found, Half(cut=False), LINE, epochs=200),
    ),
    "1 rise": (
        r"train_loss rose to .* times what it was: --lr 0.17, --clip 1.0",
        partial(line, 1.7, 20, loss_fn=F.mse_loss),
        partial(line, 0.1, 200, loss_fn=F.mse_loss),
    ),
    "1 bounce": (
        "train_loss jumps by 67% of a constant's loss an epoch: --lr 0.1,",
        partial(line, 1.0, 200),
        partial(line, 0.01, 200),
    ),
    "1 stay": (
        "train_loss is 99.60% of what it was 20 epochs ago: --lr 0.001",
        partial(line, 0.0001, 20),
        partial(line, 0.01, 200),
    ),
    "1 late": (
        "24% of the loss's fall came .*: --lr 0.01, or --epochs 1000",
        partial(line, 0.001, 100),
        partial(line, 0.01, 200),
    ),
    "2 gap": (
        "val_loss rose by .*% as train_loss fell: --patience 10, --weight-decay 1e-4",
        partial(noisy, 50, 200),
        partial(noisy, 1000, 60),
    ),
    "3 late": (
        "14% of the loss's fall came in the last quarter: --epochs 200",
        partial(line, 0.003, 100, loss_fn=F.mse_loss),
        partial(line, 0.03, 100, loss_fn=F.mse_loss),
    ),
    "3 poor": (
        "the loss is 100% of a constant's: --model mlp --hidden 128,128, --epochs 500",
        lambda: parabola(linear()),
        lambda: parabola(mlp()),
    ),
    "4 wait": (
        r"[6-9]\d% of 2.0 s an epoch is waiting for data: --workers \d",
        partial(sleepy, row=0.001, wait=0.005),
        partial(sleepy, row=0.005),
    ),
    "4 batch": (
        "batches of twice the rows are .* times as fast: --batch-size 16",
        partial(sleepy, batch=0.02),
        partial(sleepy, row=0.005),
    ),
    "4 bf16": (
        "bf16 is .* times as fast: --amp bf16",
        partial(sleepy, row=0.005, bf16=2.0),
        partial(sleepy, row=0.005),
    ),
    "6 rare": (
        "class 1, 1 row for 24 of the commonest, is 2% found: class weights",
        partial(classes, 40),
        partial(classes, 400),
    ),
    "7 far": (
        "inputs are 102 times off a mean of 0 and a spread of 1: kit.Standardize",
        partial(table, 100.0, 0.0),
        partial(table, 100.0, 0.0, standardize=True),
    ),
    "7 same": (
        r"1 input columns \(2\) have one value: leave them out",
        partial(table, 1.0, 0.0, constant=True),
        partial(table, 1.0, 0.0),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_run_that_is_ill_has_this_finding_and_a_healthy_one_has_none(case):
    pattern, ill, healthy = CASES[case]
    findings = ill()
    assert len(findings) == 1 and re.match(pattern, findings[0]), findings
    assert healthy() == []


def test_every_finding_is_provoked_here():
    heads = kit._SICK.strip().splitlines()[::2]
    known = {" ".join(head.split()[:2]) for head in heads}
    assert known == CASES.keys() | {"5 short", "5 full"}


@pytest.mark.parametrize(
    "cure",
    [
        partial(classes, 40, loss_fn=WEIGHTED),
        partial(classes, 40, drawn=True),
        partial(classes, 40, apart=6.0),  # which no cure needs
        partial(frozen, kept=False),
        partial(noisy, 50, 20),
        partial(sleepy, wait=0.005, slow=0.9),
        partial(table, 1.0, 5.0),
        partial(line, 0.01, 3),
        lambda: found(wide(), LINE, lr=0.03, epochs=300),  # 0.6 of its units are off
    ],
)
def test_what_is_cured_or_well_has_no_finding(cure):
    assert cure() == []


@pytest.mark.parametrize(
    "ill, what",
    [
        (partial(frozen, kept=True), "2 parameters have no gradient"),
        (partial(table, 0.01, 0.0), "inputs are 98 times off"),
        (partial(table, 1.0, 30.0), "inputs are 30 times off"),
        (partial(line, 1e-9, 20), "train_loss is 100.00%"),
    ],
)
def test_other_ways_to_be_ill(ill, what):
    findings = ill()
    assert len(findings) == 1 and findings[0].startswith(what), findings


def test_a_layer_that_the_optimizer_was_not_given_is_found():
    model = mlp()
    findings = found(model, LINE, epochs=200, parameters=model[2].parameters())
    assert findings[0].startswith("2 parameters have no gradient or no optimizer (0.w")


# ------------------------------------------------------------------ 5: memory

OUT_OF_MEMORY = """
import resource
from functools import partial
import torch, kit
from torch import nn

large = nn.Linear(8192, 4096)  # 128 MiB, and a copy, and its gradient
state = kit.make_state(large, torch.optim.SGD(large.parameters(), lr=0.01))
data = [(torch.zeros(2, 8192), torch.zeros(2, 4096))]
before, there = kit._memory(torch.device("cpu"))
full = kit._trial(state, data, nn.MSELoss(), kit.train_step)["full"] * there
print(round((full - before) * 8), round((kit._memory(torch.device("cpu"))[0] - before) * 8))

model = nn.Sequential(nn.Linear(256, 256), *[nn.Tanh()] * 64)
state = kit.make_state(model, torch.optim.SGD(model.parameters(), lr=0.01))
data = [(torch.randn(2**13, 256), torch.randn(2**13, 256))]  # 8 MiB a layer
ask = partial(kit.diagnose, state, loss_fn=nn.MSELoss())
ask([(data[0][0][:2], data[0][1][:2])])  # imports, threads
with open("/proc/self/statm") as file:
    taken = int(file.read().split()[0]) * resource.getpagesize()
for more in (2**40, 2**28):
    resource.setrlimit(resource.RLIMIT_AS, (taken + more, resource.RLIM_INFINITY))
    print(ask(data))
print(ask(data, step=partial(kit.train_step, accumulate=64)))
"""


def test_a_step_that_runs_out_of_memory_is_a_finding_and_in_pieces_it_is_none(child):
    printed, errors = child("-c", OUT_OF_MEMORY).communicate(timeout=120)
    assert errors == ""
    grown, enough, short, pieces = printed.splitlines()
    assert grown == "1 2"  # by so many times 128 MiB, without the copy and with it
    assert enough == pieces == "[]"
    line = r"\['a copy did not fit beside [\d.]+ GiB: --accumulate 4, --amp bf16.*'\]"
    assert re.fullmatch(line, short)


@pytest.mark.parametrize("in_place", [False, True])
def test_a_model_that_changes_its_inputs_in_place_is_as_well_as_another(in_place):
    class Far(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = linear(3, 1)

        def forward(self, x):
            return self.linear(x.sub_(1000) if in_place else x - 1000)

    x = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    loader = kit.make_loader((1000 + x, x.sum(1, True)), batch_size=8)
    assert found(Far(), loader, optimizer=torch.optim.SGD, lr=0.1, epochs=30) == []


def test_memory_that_is_nearly_full_is_a_finding(monkeypatch):
    assert line(0.01, 200) == []
    taken = kit._memory(torch.device("cpu"))[0]
    assert 0.05 < taken < 20  # GiB, of a process that has imported torch
    pages = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": int(taken / 0.9 * 2**18)}
    monkeypatch.setattr(os, "sysconf", pages.get)
    (finding,) = line(0.01, 200)
    assert re.match(r"(89|90|91)% of the memory was taken: --accumulate 4, ", finding)


# ------------------------------------------------------- what it must leave alone


def everything(state, loader):
    """All that a diagnosis might change, as text; the model's hooks and modes too."""
    modules = list(state.model.modules())
    hooks = [(m.training, list(m._forward_hooks), list(m._buffers)) for m in modules]
    grads = [None if p.grad is None else p.grad.tolist() for p in _params(state)]
    order = getattr(loader, "sampler", None)
    drawn = [getattr(loader, "generator", None), getattr(order, "generator", None)]
    generators = [g and g.get_state().tolist() for g in drawn]
    numbers = random.getstate(), np.random.get_state(), torch.get_rng_state().tolist()
    parts = [state.model.state_dict(), state.optimizer.state_dict()]
    parts += [state.scheduler.state_dict(), state.scaler.state_dict(), state[4:]]
    epoch = [getattr(order, name, None) for name in ("epoch", "start")]
    return str([hooks, grads, generators, numbers, parts, epoch])


def _params(state):
    return state.model.parameters()


def dropping(optimizer=torch.optim.AdamW):
    torch.manual_seed(42)
    layers = nn.Linear(1, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5)
    model = nn.Sequential(*layers, nn.Linear(8, 1))
    model[1].eval()  # frozen, and to stay so
    sgd = optimizer(model.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(sgd, max_lr=0.01, total_steps=100)
    return kit.make_state(model, sgd, scheduler=schedule)


def loaders():
    data = TensorDataset(*LINE)
    draw = torch.Generator().manual_seed(1)
    return {
        "kit's": kit.make_loader(LINE, batch_size=20, shuffle=True),
        "kit's, with workers": kit.make_loader(LINE, batch_size=20, workers=1),
        "torch's": DataLoader(data, batch_size=20, shuffle=True),
        "torch's, own generator": DataLoader(
            data, batch_size=20, shuffle=True, generator=draw
        ),
        "a list": [LINE, LINE],
    }


@pytest.mark.parametrize("name", loaders())
def test_it_changes_neither_the_state_nor_the_randomness(name):
    runs = []
    for ask in (False, True):
        loader, state = loaders()[name], dropping()
        for epochs in (2, 4):
            state = kit.fit(state, loader, loss_fn=F.mse_loss, epochs=epochs)
            before = everything(state, loader)
            if ask:
                kit.diagnose(state, loader, loss_fn=F.mse_loss)
            assert everything(state, loader) == before
        by_hand = [batch[0].tolist() for batch in loader] if "kit" in name else []
        history = [row | {"seconds": 0} for row in state.history]
        runs.append(str([history, by_hand, state.model.state_dict()]))
    assert runs[0] == runs[1]


# ----------------------------------------------------- whatever a run is made of


class Pairs(nn.Module):
    """Takes a dict, and has a ReLU that serves two widths."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(42)
        self.a, self.b, self.c = nn.Linear(1, 8), nn.Linear(8, 4), nn.Linear(4, 1)
        self.relu = nn.ReLU()

    def forward(self, batch):
        return self.c(self.relu(self.b(self.relu(self.a(input=batch["x"])))))


def weighted(prediction, target):
    return F.mse_loss(prediction, target, reduction="sum"), target.square().sum()


def tokens(*, lengths):
    """A language model's batches, of several lengths."""
    torch.manual_seed(42)
    model = nn.Sequential(nn.Embedding(10, 8), nn.Linear(8, 10))
    draw = torch.Generator().manual_seed(1)
    rows = [torch.randint(10, (20, n), generator=draw) for n in lengths]
    return model, [(x, x) for x in rows]


def images():
    torch.manual_seed(42)
    X = torch.randn(40, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    layers = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 2)
    return nn.Sequential(*layers), [(X, (X.mean((1, 2, 3)) > 0).long())]


def counted():
    X = torch.rand(200, 1, generator=torch.Generator().manual_seed(1))
    return mlp(), [(X, (5 * X[:, 0]).long())]


def poisson(prediction, target):
    return F.poisson_nll_loss(prediction[:, 0], target, full=True)


def by_position(logits, target):
    return F.cross_entropy(logits.transpose(1, 2), target)


KINDS = {
    "dict": (Pairs(), [({"x": LINE[0]}, LINE[1])], F.mse_loss),
    "pair": (mlp(), [LINE], weighted),
    "tokens": (*tokens(lengths=(5, 7, 5)), by_position),
    "images": (*images(), F.cross_entropy),
    "counts": (*counted(), poisson),
    "bf16": (mlp(), [LINE], F.mse_loss),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_of_any_kind_can_be_asked(kind):
    model, train, loss_fn = copy.deepcopy(KINDS[kind])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    wrapped = kit.amp(model, "bf16") if kind == "bf16" else model
    state = kit.make_state(wrapped, optimizer)
    assert kit.diagnose(state, train, loss_fn=loss_fn) == []
    state = kit.fit(state, train, loss_fn=loss_fn, epochs=150)
    assert kit.diagnose(state, train, loss_fn=loss_fn) == []


def test_a_compiled_model_is_asked_without_compiling_it():
    model = torch.compile(linear(), backend=lambda graph, example: 1 / 0)
    state = kit.make_state(model, torch.optim.SGD(model.parameters(), lr=0.1))
    assert kit.diagnose(state, [LINE], loss_fn=F.mse_loss) == []


def test_the_history_alone_tells_of_the_losses():
    model = linear()
    state = kit.make_state(model, torch.optim.SGD(model.parameters(), lr=0.001))
    assert kit.diagnose(state) == []
    state = kit.fit(state, [LINE], LINE_VAL, loss_fn=F.l1_loss, epochs=100)
    (finding,) = kit.diagnose(state)
    assert finding == kit.diagnose(state, [LINE], loss_fn=F.l1_loss)[0]
    assert re.match(CASES["1 late"][0], finding)
    rows = [row | {"train_loss": -row["train_loss"]} for row in state.history]
    assert kit.diagnose(state._replace(history=tuple(rows))) == []  # a log-likelihood
    rows = [{"epoch": i, "lr": 0.1} for i in range(9)]  # of a step that has no "loss"
    assert kit.diagnose(state._replace(history=tuple(rows))) == []


def history(train, val, **config):
    state = dropping()._replace(config=config)
    pairs = enumerate(zip(train, val))
    rows = [
        {"epoch": i, "lr": 0.1, "train_loss": t, "val_loss": v} for i, (t, v) in pairs
    ]
    return state._replace(history=tuple(rows))


def test_overfitting_that_early_stopping_has_cured_is_no_finding():
    train = np.geomspace(1, 0.01, 60)
    val = [1 + math.exp(-i / 6) + 0.01 * max(0, i - 30) for i in range(60)]
    best = int(np.argmin(val))
    assert re.match(r"val_loss rose by 2\d% as", kit.diagnose(history(train, val))[0])
    assert kit.diagnose(history(train, val, patience=0)) != []
    assert kit.diagnose(history(train, val, patience=60 - best)) != []
    assert kit.diagnose(history(train, val, patience=59 - best)) == []
    assert kit.diagnose(history(train[: best + 1], val[: best + 1])) == []  # best.pt


@pytest.mark.parametrize("epochs", [50, 80, 100, 200, 201])
def test_the_tutorials_val_loss_that_rises_for_a_while_is_no_overfitting(epochs):
    train, val = ([part] for part in kit.split(LINE))
    model = linear()  # at epoch 43 it crosses the rows of val, and turns back to them
    state = kit.make_state(model, torch.optim.SGD(model.parameters(), lr=0.01))
    state = kit.fit(state, train, val, loss_fn=F.l1_loss, epochs=epochs)
    assert kit.diagnose(state, train, loss_fn=F.l1_loss) == []


def test_a_schedule_that_has_ended_asks_for_no_more_epochs():
    state = history(np.linspace(1, 0.5, 20), np.linspace(1, 0.5, 20))
    assert "--epochs" in kit.diagnose(state)[0]
    rows = [row | {"lr": 0.1 * 0.8 ** row["epoch"]} for row in state.history]
    assert kit.diagnose(state._replace(history=tuple(rows))) == []


def test_a_run_that_ended_in_nan_is_told_so():
    model = linear()
    state = kit.make_state(model, torch.optim.SGD(model.parameters(), lr=1e30))
    with pytest.raises(FloatingPointError):
        kit.fit(state, [LINE] * 9, loss_fn=F.mse_loss, epochs=1)
    (finding,) = kit.diagnose(state, [LINE], loss_fn=F.mse_loss)
    assert finding.startswith("1 losses are NaN or infinite: --lr 1e+29, --clip 1.0")


def test_accumulation_of_the_step_is_that_of_the_copy_too():
    seen = []

    def step(state, batch, *, loss_fn):
        lr = state.optimizer.param_groups[0]["lr"]
        seen.append((state.model is model, state.model.training, lr))
        return kit.train_step(state, batch, loss_fn=loss_fn, accumulate=2)

    model = linear().eval()
    state = kit.make_state(model, torch.optim.SGD(model.parameters(), lr=0.1))
    kit.diagnose(state, [LINE] * 3, loss_fn=F.mse_loss, step=step)
    assert seen == [(False, True, 0.0)] * 3 and not model.training


def test_no_more_than_fifty_batches_are_looked_at():
    read = []

    class Counted(Dataset):
        def __getitem__(self, i):
            read.append(i)
            return LINE[0][0], LINE[1][0]

        def __len__(self):
            return 1000

    loader = kit.make_loader(Counted(), batch_size=2)
    kit.diagnose(dropping(), loader, loss_fn=F.mse_loss)
    assert read == list(range(100))


@pytest.mark.parametrize(
    "train, options, message",
    [
        ([LINE], {}, "^loss_fn must be given with train, got None$"),
        ([], {"loss_fn": F.mse_loss}, "^train must give a batch to look at, got none$"),
        (LINE, {"loss_fn": F.mse_loss}, "^loader must give batches, got a tuple"),
        ([(torch.ones(4, 3), LINE[1])], {"loss_fn": F.mse_loss}, "shapes cannot be"),
    ],
)
def test_a_mistake_is_one_clear_line(train, options, message):
    with pytest.raises((ValueError, TypeError, RuntimeError), match=message):
        kit.diagnose(dropping(), train, **options)


# ------------------------------------------------------------- the command line


def call(*arguments, code=0):
    result = CliRunner().invoke(kit.main, [str(a) for a in arguments])
    assert result.exit_code == code, result.output
    return result.output.splitlines()


def run(*options):
    call("fit", "--quiet", "--no-plot", "--out", "run", *options)
    files = {path: path.read_bytes() for path in kit.Path("run").iterdir()}
    printed = call("diagnose", "run")
    assert files == {path: path.read_bytes() for path in kit.Path("run").iterdir()}
    return printed


def test_the_tutorials_line_is_well():
    assert run("--epochs", 200) == ["nothing found"]


def test_a_run_folder_is_diagnosed_in_a_line_a_finding():
    printed = run("--epochs", 50, "--lr", 1, "--clip", 100)
    assert len(printed) == 1
    assert re.match("train_loss jumps by .*%.*: --lr 0.1, --clip 1.0", printed[0])


@pytest.mark.parametrize("name", ["diabetes", "iris", "wine", "breast_cancer"])
def test_a_table_with_the_default_options_is_well(name):
    data = getattr(datasets, f"load_{name}")()
    y = data.target if name == "diabetes" else [f"class {c}" for c in data.target]
    np.savez("table.npz", X=data.data, y=np.array(y))
    assert run("--data", "table.npz", "--target", "y") == ["nothing found"]


def test_columns_are_named_and_options_kept():
    X, y = datasets.load_wine(return_X_y=True)
    X = np.c_[X, np.ones((len(X), 4))]
    np.savez("table.npz", X=X, y=[f"c{c}" for c in y])
    options = ["--amp", "bf16", "--accumulate", 2, "--scheduler", "cosine"]
    printed = run("--data", "table.npz", "--target", "y", "--epochs", 60, *options)
    assert printed == [
        "4 input columns (x13, x14, x15, ...) have one value: leave them out"
    ]


def test_a_folder_without_a_run_is_one_line():
    printed = call("diagnose", "nowhere", code=1)
    assert printed == ["Error: nowhere/last.pt: No such file or directory"]
    call("diagnose", code=2)


def test_a_bias_whose_gradient_is_zero_by_balance_is_well():
    model = linear()  # half of the rows lie above the line, half below
    nn.init.constant_(model.weight, 0.7)
    X = LINE[0]
    y = (
        0.7 * X
        + model.bias.item()
        + torch.where(torch.arange(50) % 2 == 0, 0.1, -0.1)[:, None]
    )
    state = kit.make_state(model, torch.optim.SGD(model.parameters(), lr=0.01))
    assert kit.diagnose(state, [(X, y)], loss_fn=F.l1_loss) == []
    F.l1_loss(model(X), y).backward()
    assert model.bias.grad == 0


def test_a_unit_that_is_on_in_one_batch_is_not_dead():
    model = mlp()
    model[0].bias.data.zero_()  # so that the sign of x decides
    state = kit.make_state(model, torch.optim.SGD(model.parameters(), lr=0.01))
    up, down = (LINE[0] + 1, LINE[1]), (-1 - LINE[0], LINE[1])
    shares = [(model[0].weight[:, 0] * sign < 0).float().mean() for sign in (1, -1)]
    for batches in ([up], [down], [up, down], [down, up]):
        facts = kit._trial(state, batches, F.mse_loss, kit.train_step)
        seen = shares[0 if batches[0] is up else 1] if len(batches) == 1 else 0
        assert facts["dead"] == pytest.approx(float(seen))


def test_the_batch_size_to_try_is_twice_that_of_a_whole_batch():
    loader = kit.make_loader(LINE, batch_size=24)  # the last one has 2 rows
    (finding,) = found(Sleepy(batch=0.02), loader, epochs=1, slow=2.0)
    assert finding.endswith("--batch-size 48")
