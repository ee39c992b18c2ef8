"""Section 3, train: a step is the hand-written one, whatever the pieces and precision."""

import copy
import gc
import math
import weakref
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau, StepLR

import kit

OPTIMIZERS = {
    "sgd": partial(torch.optim.SGD, lr=0.1),
    "nesterov": partial(
        torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01
    ),
    "adam": partial(torch.optim.Adam, lr=0.01),
    "adam_fused": partial(torch.optim.Adam, lr=0.01, fused=True),
    "adamw_amsgrad": partial(torch.optim.AdamW, lr=0.01, amsgrad=True),
    "rmsprop": partial(torch.optim.RMSprop, lr=0.01, momentum=0.5),
    "adagrad": partial(torch.optim.Adagrad, lr=0.1),
}


class TwoInputs(nn.Module):
    """Takes a dict of inputs, one of them nested."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(2, 4)

    def forward(self, inputs):
        return self.a(inputs["a"]) + torch.tanh(self.b(inputs["more"]["b"]))


def mlp():
    return nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3))


def cnn():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
    )


def dict_inputs(n, generator):
    def draw(*shape):
        return torch.randn(n, *shape, generator=generator)

    return {"a": draw(3), "more": {"b": draw(2)}}


MODELS = {  # a model, its inputs, the targets, the loss
    "mlp": (
        mlp,
        lambda n, g: torch.randn(n, 5, generator=g),
        lambda n, g: torch.randint(3, (n,), generator=g),
        F.cross_entropy,
    ),
    "cnn": (
        cnn,
        lambda n, g: torch.randn(n, 2, 6, 6, generator=g),
        lambda n, g: torch.randint(3, (n,), generator=g),
        F.cross_entropy,
    ),
    "dict_inputs": (
        TwoInputs,
        dict_inputs,
        lambda n, g: torch.randn(n, 4, generator=g),
        F.mse_loss,
    ),
}


def assert_equal_state(ours, theirs):
    """Two nests of tensors and plain values are equal to the last bit."""
    if isinstance(ours, torch.Tensor):
        assert torch.equal(ours, theirs)
    elif isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        for key in ours:
            assert_equal_state(ours[key], theirs[key])
    elif isinstance(ours, list | tuple):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs):
            assert_equal_state(one, other)
    else:
        assert ours == theirs


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("kind", MODELS)
def test_a_step_equals_a_hand_written_step_bit_for_bit(kind, optimizer):
    make, inputs, targets, loss_fn = MODELS[kind]
    generator = torch.Generator().manual_seed(1)
    batches = [(inputs(n, generator), targets(n, generator)) for n in (16, 16, 7, 1)]
    if kind == "cnn":
        batches.pop()  # BatchNorm has no variance of a single value
    torch.manual_seed(0)
    hand = make()
    hand_optimizer = OPTIMIZERS[optimizer](hand.parameters())
    model = copy.deepcopy(hand)
    state = kit.make_state(model, OPTIMIZERS[optimizer](model.parameters()))

    for step, (x, y) in enumerate(batches * 2):
        torch.manual_seed(step)  # of the dropout
        hand_optimizer.zero_grad()
        loss = loss_fn(hand(x), y)
        loss.backward()
        hand_optimizer.step()

        torch.manual_seed(step)
        state, sums = kit.train_step(state, (x, y), loss_fn=loss_fn)
        assert sums["loss"] == pytest.approx(loss.item() * len(y), rel=1e-12)
        assert sums["weight"] == len(y)

    assert state.step == len(batches) * 2
    assert_equal_state(dict(model.state_dict()), dict(hand.state_dict()))
    assert_equal_state(state.optimizer.state_dict(), hand_optimizer.state_dict())


def test_a_parameter_without_a_gradient_is_left_alone():
    model = nn.ModuleDict({"used": nn.Linear(1, 1), "unused": nn.Linear(1, 1)})
    model.forward = model["used"].forward
    before = copy.deepcopy(model["unused"].state_dict())
    state = kit.make_state(model, torch.optim.Adam(model.parameters(), lr=0.1))
    for loss_fn in (F.l1_loss, lambda p, y: ((p - y).abs().sum(), len(y))):
        kit.train_step(state, kit.make_data(), loss_fn=loss_fn, clip=1.0)
    assert_equal_state(dict(model["unused"].state_dict()), dict(before))


class TwoHeads(nn.Module):
    """Uses the head that the batch asks for."""

    def __init__(self):
        super().__init__()
        self.heads = nn.ModuleDict({"a": nn.Linear(1, 1), "b": nn.Linear(1, 1)})

    def forward(self, inputs):
        return self.heads[inputs["head"]](inputs["x"])


def test_momentum_does_not_move_a_parameter_that_the_batch_leaves_out():
    hand = TwoHeads()
    model = copy.deepcopy(hand)
    hand_optimizer, optimizer = (
        torch.optim.Adam(m.parameters(), lr=0.1) for m in (hand, model)
    )
    state = kit.make_state(model, optimizer)
    x, y = kit.make_data()
    for head in "aabbab":
        hand_optimizer.zero_grad()
        F.l1_loss(hand({"head": head, "x": x}), y).backward()
        hand_optimizer.step()
        state, _ = kit.train_step(state, ({"head": head, "x": x}, y), loss_fn=F.l1_loss)
    assert_equal_state(dict(model.state_dict()), dict(hand.state_dict()))


class Line(nn.Module):
    """Weight then bias, each drawn by torch.randn(1), as in the tutorial's section 3.3."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1))
        self.bias = nn.Parameter(torch.randn(1))

    def forward(self, x):
        return self.weight * x + self.bias


def fit_line(model, epochs):
    train, val = kit.split(kit.make_data())
    state = kit.make_state(model, torch.optim.SGD(model.parameters(), lr=0.01))
    loaders = kit.make_loader(train), kit.make_loader(val)
    return kit.fit(state, *loaders, loss_fn=nn.L1Loss(), epochs=epochs)


# What a public notebook of the tutorial prints: epoch, train_loss, val_loss.
TWO_PARAMETERS = [
    (0, 0.31288138031959534, 0.48106518387794495),
    (10, 0.1976713240146637, 0.3463551998138428),
    (20, 0.08908725529909134, 0.21729660034179688),
    (30, 0.053148526698350906, 0.14464017748832703),
    (50, 0.04167863354086876, 0.09919948130846024),
    (90, 0.02788739837706089, 0.06473556160926819),
]
LINEAR_LAYER = [
    (0, 0.5551779866218567, 0.5739762187004089),
    (100, 0.006215683650225401, 0.014086711220443249),
    (199, 0.010256484150886536, 0.0003308236482553184),
    (200, 0.0012645035749301314, 0.013801801018416882),
]


@pytest.mark.parametrize(
    "make, epochs, golden, initial, final",
    [
        (Line, 100, TWO_PARAMETERS, (0.3367, 0.1288), (0.5784, 0.3513)),
        (partial(nn.Linear, 1, 1), 200, LINEAR_LAYER, (0.7645, 0.83), (0.6968, 0.3025)),
        (partial(nn.Linear, 1, 1), 202, LINEAR_LAYER, (0.7645, 0.83), (0.6968, 0.3025)),
    ],
)
def test_the_tutorials_lines_train_to_the_printed_figures(
    make, epochs, golden, initial, final
):
    torch.manual_seed(42)
    model = make()
    assert [p.item() for p in model.parameters()] == pytest.approx(initial, abs=5e-5)
    state = fit_line(model, epochs)
    for epoch, train_loss, val_loss in golden:
        if epoch < epochs:
            row = state.history[epoch]
            assert row["epoch"] == epoch
            assert row["train_loss"] == pytest.approx(train_loss, abs=1e-6)
            assert row["val_loss"] == pytest.approx(val_loss, abs=1e-6)
    assert [p.item() for p in model.parameters()] == pytest.approx(final, abs=5e-5)


def table(n, seed=0, classes=4):
    """Inputs (n, 6) and class numbers (n,)."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 6, generator=generator)
    return x, torch.randint(classes, (n,), generator=generator)


def still_state(model=None, seed=0):
    """A state whose steps leave the weights alone, so that gradients compare."""
    torch.manual_seed(seed)
    model = model or nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))
    return kit.make_state(model, torch.optim.SGD(model.parameters(), lr=0.0))


def gradients(state):
    return [p.grad for p in state.model.parameters()]


def assert_close(ours, theirs, tolerance=1e-6):
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


# PITFALLS 1
def test_every_piece_weighs_by_its_samples_in_short_batches_too():
    state = still_state()
    for seed, n in enumerate((32, 32, 7)):
        x, y = table(n, seed)
        state, sums = kit.train_step(
            state, (x, y), loss_fn=F.cross_entropy, accumulate=4
        )
        whole = F.cross_entropy(state.model(x), y)
        expected = torch.autograd.grad(whole, list(state.model.parameters()))
        assert_close(gradients(state), expected)
        assert sums["weight"] == n
        assert float(sums["loss"]) == pytest.approx(whole.item() * n, rel=1e-6)


# PITFALLS 1
@pytest.mark.parametrize("n", [1, 2, 5, 7, 32])
def test_pieces_of_any_size_give_the_whole_batchs_gradient(n):
    state, batch = still_state(), table(n)
    whole = F.cross_entropy(state.model(batch[0]), batch[1])
    expected = torch.autograd.grad(whole, list(state.model.parameters()))
    for pieces in (*range(1, 10), 31, 32, 33, 100):
        kit.train_step(state, batch, loss_fn=F.cross_entropy, accumulate=pieces)
        assert_close(gradients(state), expected)


def test_a_batch_is_eaten_in_up_to_so_many_pieces_in_order():
    seen = []

    def loss_fn(prediction, target):
        seen.append(target.flatten().tolist())
        return F.l1_loss(prediction, target)

    model = nn.Linear(1, 1)
    state = kit.make_state(model, torch.optim.SGD(model.parameters(), lr=0.1))
    y = torch.arange(10.0)[:, None]
    kit.train_step(state, (y, y), loss_fn=loss_fn, accumulate=4)
    assert seen == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]


def test_dict_inputs_are_cut_in_pieces_as_well():
    generator = torch.Generator().manual_seed(0)
    x, y = dict_inputs(7, generator), torch.randn(7, 4, generator=generator)
    state = still_state(TwoInputs())
    whole = F.mse_loss(state.model(x), y)
    expected = torch.autograd.grad(whole, list(state.model.parameters()))
    kit.train_step(state, (x, y), loss_fn=F.mse_loss, accumulate=3)
    assert_close(gradients(state), expected)


class InPlace(nn.Linear):
    def forward(self, x):
        x *= self.bias
        return super().forward(x)


def test_a_model_that_changes_its_inputs_in_place_may_eat_them_in_pieces():
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(7, 4, generator=generator) for _ in range(2))
    state = still_state(InPlace(4, 4))
    whole = F.mse_loss(state.model(x.clone()), y)
    expected = torch.autograd.grad(whole, list(state.model.parameters()))
    kit.train_step(state, (x, y), loss_fn=F.mse_loss, accumulate=3)
    assert_close(gradients(state), expected)


CLASS_WEIGHTS = torch.tensor([0.1, 3.0, 0.5, 1.0])


def weighted(prediction, target):
    """Cross entropy with class weights and ignore_index, as the pair (total, weight)."""
    total = F.cross_entropy(
        prediction, target, weight=CLASS_WEIGHTS, ignore_index=-1, reduction="sum"
    )
    return total, CLASS_WEIGHTS[target[target >= 0]].sum()


def weighted_mean(prediction, target):
    return F.cross_entropy(prediction, target, weight=CLASS_WEIGHTS, ignore_index=-1)


# PITFALLS 1
@pytest.mark.parametrize("pieces", [1, 2, 3, 4, 7, 32])
def test_pair_losses_weigh_every_piece_by_its_weight(pieces):
    x, y = table(32)
    y[:9] = -1  # whole pieces of weight 0
    y[20] = -1
    state = still_state()
    whole = weighted_mean(state.model(x), y)
    expected = torch.autograd.grad(whole, list(state.model.parameters()))
    _, sums = kit.train_step(state, (x, y), loss_fn=weighted, accumulate=pieces)
    assert_close(gradients(state), expected)
    mean = float(sums["loss"]) / float(sums["weight"])
    assert mean == pytest.approx(whole.item(), rel=1e-6)


# PITFALLS 1
@pytest.mark.parametrize("pieces", [1, 3])
@pytest.mark.parametrize("precision", [None, "fp16"])
def test_a_batch_of_weight_0_trains_nothing_and_is_no_nan(pieces, precision):
    bare = still_state().model
    model = kit.amp(bare, precision) if precision else bare
    before = copy.deepcopy(dict(bare.state_dict()))
    state = kit.make_state(model, torch.optim.SGD(bare.parameters(), lr=0.1))
    step = partial(kit.train_step, accumulate=pieces, clip=1.0)
    x, y = table(8)
    nothing = torch.full_like(y, -1)
    _, sums = step(state, (x, nothing), loss_fn=weighted)
    assert all(math.isfinite(float(v)) for v in sums.values())
    assert_equal_state(dict(bare.state_dict()), before)

    expected = weighted_mean(bare(x), y).item()
    loader = [(x, nothing), (x, y), (x, nothing)]
    state = kit.fit(state, loader, loss_fn=weighted, epochs=1, step=step)
    loss = state.history[0]["train_loss"]
    assert loss == pytest.approx(expected, rel=1e-2 if precision else 1e-6)
    assert all(p.isfinite().all() for p in bare.parameters())


def test_pair_losses_train_as_the_mean_over_an_epoch_with_uneven_weights():
    x, y = table(50)
    y[:13] = -1
    loader = kit.make_loader((x, y), batch_size=8)
    state = kit.fit(still_state(), loader, loss_fn=weighted, epochs=1)
    expected = weighted_mean(state.model(x), y).item()
    assert state.history[0]["train_loss"] == pytest.approx(expected, rel=1e-6)


SCHEDULERS = {
    "none": lambda optimizer: None,
    "by_epoch": partial(StepLR, step_size=2, gamma=0.5),
    "by_step": partial(OneCycleLR, max_lr=0.1, total_steps=15),
    "by_value": partial(ReduceLROnPlateau, patience=0, threshold=0.1),
}


def traced_run(scheduler, accumulate):
    """The lr before every step, the optimizer's own count of steps, and the history."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    state = kit.make_state(model, optimizer, scheduler=SCHEDULERS[scheduler](optimizer))
    lrs = []

    def step(state, batch, *, loss_fn):
        lrs.append(optimizer.param_groups[0]["lr"])
        return kit.train_step(state, batch, loss_fn=loss_fn, accumulate=accumulate)

    train = kit.make_loader(table(71), batch_size=32, shuffle=True)
    val = kit.make_loader(table(20, seed=1))
    loss_fn = F.cross_entropy
    state = kit.fit(state, train, val, loss_fn=loss_fn, epochs=5, step=step)
    steps = {s["step"].item() for s in optimizer.state_dict()["state"].values()}
    return lrs, steps, state


# PITFALLS 2
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_accumulation_changes_neither_steps_nor_schedule_nor_history(scheduler):
    lrs, steps, plain = traced_run(scheduler, accumulate=1)
    assert steps == {15} and plain.step == 15
    assert scheduler == "none" or len(set(lrs)) > 1
    for pieces in (3, 4):
        more_lrs, more_steps, accumulated = traced_run(scheduler, accumulate=pieces)
        assert more_lrs == lrs
        assert more_steps == steps
        assert accumulated.step == plain.step
        assert len(accumulated.history) == len(plain.history)
        for row, expected in zip(accumulated.history, plain.history):
            assert row.keys() == expected.keys()
            for key in ("epoch", "step", "lr"):
                assert row[key] == expected[key]
            for key in ("train_loss", "val_loss"):
                assert row[key] == pytest.approx(expected[key], rel=1e-5)


def fp16_state(make_optimizer=None, make_scheduler=None, **options):
    torch.manual_seed(0)
    bare = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))
    optimizer = (make_optimizer or partial(torch.optim.SGD, lr=0.1))(bare.parameters())
    scheduler = make_scheduler and make_scheduler(optimizer)
    model = kit.amp(bare, "fp16")
    return kit.make_state(model, optimizer, scheduler=scheduler, **options)


def snapshot(state):
    parts = [
        dict(state.model.state_dict()),
        state.optimizer.state_dict(),
        state.scheduler.state_dict() if state.scheduler else {},
    ]
    return copy.deepcopy(parts)


# PITFALLS 3
@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("optimizer", ["nesterov", "adam", "adam_fused"])
@pytest.mark.parametrize("clip", [None, 1.0])
def test_after_an_inf_gradient_neither_optimizer_nor_schedule_advance(
    optimizer, bad, clip
):
    schedule = partial(OneCycleLR, max_lr=0.1, total_steps=9)
    state = fp16_state(OPTIMIZERS[optimizer], schedule)
    assert state.per_step and state.scaler.is_enabled()
    step = partial(kit.train_step, loss_fn=F.cross_entropy, clip=clip, accumulate=2)
    state, sums = step(state, table(16))
    assert sums and state.scheduler.last_epoch == 1

    before, scale = snapshot(state), state.scaler.get_scale()
    first = next(state.model.parameters())
    handle = first.register_hook(lambda gradient: gradient * bad)
    state, sums = step(state, table(16, seed=1))
    handle.remove()
    assert_equal_state(snapshot(state), before)
    assert state.scaler.get_scale() == scale / 2
    assert state.step == 2  # the batch is eaten nevertheless
    assert sums.keys() == {"loss", "weight", "skipped"}
    assert sums["skipped"] == sums["weight"]

    state, sums = step(state, table(16, seed=2))
    assert sums and state.scheduler.last_epoch == 2


# PITFALLS 3
@pytest.mark.parametrize("scheduler", ["by_step", "by_epoch"])
def test_the_schedule_counts_the_optimizers_steps_when_fp16_overflows(scheduler):
    state = fp16_state(OPTIMIZERS["adam"], SCHEDULERS[scheduler])

    def steep(prediction, target):  # its gradient, scaled by 65536, is no fp16 number
        return 1e4 * F.cross_entropy(prediction, target)

    seen = []
    for now in kit.run(state, [table(16)], loss_fn=steep, epochs=15):
        moments = now.optimizer.state_dict()["state"].values()
        seen.append(next((int(m["step"]) for m in moments), 0))
        assert now.scheduler.last_epoch == seen[-1]
    assert seen[0] == 0, "the test wants a step that fp16 skips"
    assert 0 < seen[-1] < 15
    skipped = [row["train_skipped"] for row in now.history]
    assert sorted(skipped) == [0] * seen[-1] + [1] * (15 - seen[-1])


# PITFALLS 4
@pytest.mark.parametrize("precision", [None, "bf16", "fp16"])
@pytest.mark.parametrize("pieces", [1, 3])
@pytest.mark.parametrize("loss_fn", [F.cross_entropy, weighted])
def test_the_norm_after_clipping_is_at_most_the_limit(precision, pieces, loss_fn):
    model = still_state().model
    wrapped = kit.amp(model, precision) if precision else model
    state = kit.make_state(wrapped, torch.optim.SGD(model.parameters(), lr=0.0))
    x, y = table(16)
    oracle = {F.cross_entropy: F.cross_entropy, weighted: weighted_mean}[loss_fn]
    expected = torch.autograd.grad(oracle(model(x), y), list(model.parameters()))
    norm = nn.utils.get_total_norm(expected).item()
    for limit in (norm / 10, norm * 10):
        _, sums = kit.train_step(
            state, (x, y), loss_fn=loss_fn, accumulate=pieces, clip=limit
        )
        after = nn.utils.get_total_norm(gradients(state)).item()
        assert after <= limit * (1 + 1e-6)
        assert after == pytest.approx(min(limit, norm), rel=0.02)  # and not far below
        before = float(sums["grad_norm"]) / float(sums["weight"])
        assert before == pytest.approx(norm, rel=0.02)


# PITFALLS 4
def test_the_gradient_is_unscaled_once_and_before_the_clip():
    calls = []

    class Scaler(torch.amp.GradScaler):
        def unscale_(self, optimizer):
            calls.append("unscale")
            super().unscale_(optimizer)

        def step(self, optimizer):
            calls.append("step")
            super().step(optimizer)

        def update(self):
            calls.append("update")
            super().update()

    def clip(parameters):
        calls.append("clip")
        return nn.utils.clip_grad_norm_(parameters, 1e-3)

    state = fp16_state()._replace(scaler=Scaler("cpu"))
    kit.train_step(state, table(16), loss_fn=F.cross_entropy, clip=clip, accumulate=4)
    assert calls == ["unscale", "clip", "step", "update"]


def test_an_fp16_gradient_is_the_float32_one_to_the_digits_of_fp16():
    state, (x, y) = fp16_state(partial(torch.optim.SGD, lr=0.0)), table(32)
    bare = state.model._orig_mod
    whole = F.cross_entropy(bare(x), y)
    expected = torch.autograd.grad(whole, list(bare.parameters()))
    kit.train_step(state, (x, y), loss_fn=F.cross_entropy)
    assert_close(gradients(state), expected, tolerance=2e-3)


def test_clipping_by_norm_equals_the_hand_written_one_bit_for_bit():
    state, (x, y) = still_state(), table(16)
    hand = copy.deepcopy(state.model)
    F.cross_entropy(hand(x), y).backward()
    nn.utils.clip_grad_norm_(hand.parameters(), 0.1)
    kit.train_step(state, (x, y), loss_fn=F.cross_entropy, clip=0.1)
    assert_equal_state(gradients(state), [p.grad for p in hand.parameters()])


@pytest.mark.parametrize("precision", [None, "fp16"])
def test_clipping_by_value_keeps_every_element_within_the_limit(precision):
    model = still_state().model
    wrapped = kit.amp(model, precision) if precision else model
    state = kit.make_state(wrapped, torch.optim.SGD(model.parameters(), lr=0.0))
    x, y = table(16)
    whole = F.cross_entropy(model(x), y)
    expected = torch.autograd.grad(whole, list(model.parameters()))
    assert max(g.abs().max() for g in expected) > 0.01
    clip = partial(nn.utils.clip_grad_value_, clip_value=0.01)
    _, sums = kit.train_step(state, (x, y), loss_fn=F.cross_entropy, clip=clip)
    clamped = [g.clamp(-0.01, 0.01) for g in expected]
    assert_close(gradients(state), clamped, 1e-3 if precision else 1e-6)
    assert sums.keys() - {"skipped"} == {"loss", "weight"}


def test_the_history_has_the_mean_gradient_norm_before_the_clip():
    data = table(23)
    loader = kit.make_loader(data, batch_size=8)
    state = still_state()
    norms = []
    for x, y in zip(data[0].split(8), data[1].split(8)):
        loss = F.cross_entropy(state.model(x), y)
        gradient = torch.autograd.grad(loss, list(state.model.parameters()))
        norms.append(nn.utils.get_total_norm(gradient).item() * len(y))
    step = partial(kit.train_step, clip=1e-3)
    state = kit.fit(state, loader, loss_fn=F.cross_entropy, epochs=1, step=step)
    norm = state.history[0]["train_grad_norm"]
    assert norm == pytest.approx(sum(norms) / 23, rel=1e-6)


def test_the_mean_gradient_norm_is_that_of_the_updates_that_fp16_made():
    model = nn.Linear(6, 1)
    for p in model.parameters():
        nn.init.constant_(p, 0.05)
    state = kit.make_state(
        kit.amp(model, "fp16"), torch.optim.SGD(model.parameters(), lr=0.0)
    )
    x, y = table(24)[0], torch.zeros(24, 1)
    y[8:16] = 1e3  # the second batch of three is skipped
    norms = []
    for inputs, targets in zip(x.split(8), y.split(8)):
        loss = F.mse_loss(model(inputs), targets)
        gradient = torch.autograd.grad(loss, list(model.parameters()))
        norms.append(nn.utils.get_total_norm(gradient).item())
    step = partial(kit.train_step, clip=1e3)
    loader = kit.make_loader((x, y), batch_size=8)
    state = kit.fit(state, loader, loss_fn=F.mse_loss, epochs=1, step=step)
    row = state.history[0]
    assert row["train_skipped"] == pytest.approx(1 / 3)
    expected = (norms[0] + norms[2]) / 2
    assert row["train_grad_norm"] == pytest.approx(expected, rel=0.02)


def test_an_epoch_of_a_skipped_update_and_one_of_weight_0_has_no_gradient_norm():
    state = fp16_state()
    x, y = table(16)
    y[8:] = -1  # the second batch weighs nothing

    def steep(prediction, target):  # and the first one overflows fp16
        total, weight = weighted(prediction, target)
        return total * 1e6, weight

    loader = kit.make_loader((x, y), batch_size=8)
    step = partial(kit.train_step, clip=1.0)
    state = kit.fit(state, loader, loss_fn=steep, epochs=1, step=step)
    assert state.history[0]["train_skipped"] == 1
    assert math.isnan(state.history[0]["train_grad_norm"])


# PITFALLS 21
@pytest.mark.parametrize("loss_fn", [F.l1_loss, lambda p, y: ((p - y).sum(), len(y))])
@pytest.mark.parametrize("options", [{}, {"accumulate": 3}, {"clip": 1.0}])
def test_a_step_keeps_no_graph_alive(loss_fn, options):
    graphs = []

    def watched(prediction, target):
        graphs.append(weakref.ref(prediction))
        loss = loss_fn(prediction, target)
        graphs.append(weakref.ref(loss[0] if isinstance(loss, tuple) else loss))
        return loss

    model = nn.Linear(1, 1)
    state = kit.make_state(model, torch.optim.SGD(model.parameters(), lr=0.01))
    gc.disable()  # what only the collector would free is alive for too long
    try:
        state, sums = kit.train_step(state, kit.make_data(), loss_fn=watched, **options)
        assert graphs and not any(graph() is not None for graph in graphs)
    finally:
        gc.enable()
    assert not any(getattr(v, "requires_grad", False) for v in sums.values())


# PITFALLS 21
def test_the_sums_are_detached_where_the_weight_comes_from_the_model_too():
    def confident(prediction, target):  # weighs by what the model says
        weight = prediction.sigmoid()
        return (weight * (prediction - target).abs()).sum(), weight.sum()

    model = nn.Linear(1, 1)
    state = kit.make_state(model, torch.optim.SGD(model.parameters(), lr=0.01))
    _, sums = kit.train_step(state, kit.make_data(), loss_fn=confident)
    assert all(type(v) is float for v in sums.values())
    assert not any(p.grad.requires_grad for p in model.parameters())


def resident_bytes():
    """The memory that this process has now; 0 where the system does not say."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * 4096 if statm.exists() else 0


def live_tensors():
    gc.collect()
    return sum(1 for thing in gc.get_objects() if type(thing) is torch.Tensor)


# PITFALLS 21
def test_memory_is_flat_over_10_000_steps():
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    state = kit.make_state(model, optimizer)
    x = torch.randn(10_000, 4)
    loader = kit.make_loader((x, x.sum(1, keepdim=True)), batch_size=1)
    seen = {}

    def step(state, batch, *, loss_fn):
        if state.step in (2000, 9999):
            seen[state.step] = live_tensors(), resident_bytes()
        return kit.train_step(state, batch, loss_fn=loss_fn)

    state = kit.fit(state, loader, loss_fn=F.l1_loss, epochs=1, step=step)
    assert state.step == 10_000
    assert seen[9999][0] - seen[2000][0] <= 2
    assert seen[9999][1] - seen[2000][1] < 4_000_000  # a graph is above 1 kB a step


# rule 4: sums travel, in float64
def test_an_epoch_of_many_batches_loses_no_digits():
    y = torch.ones(301, 1)
    y[0] = 2.0**24  # to which float32 adds 1 in vain
    model = nn.Linear(1, 1)
    nn.init.zeros_(model.weight), nn.init.zeros_(model.bias)
    state = kit.make_state(model, torch.optim.SGD(model.parameters(), lr=0.0))
    loader = kit.make_loader((torch.zeros(301, 1), y), batch_size=1)
    state = kit.fit(state, loader, loader, loss_fn=F.l1_loss, epochs=1)
    expected = (2**24 + 300) / 301
    assert state.history[0]["train_loss"] == expected
    assert state.history[0]["val_loss"] == expected


# rule 4: sums travel, in float64
def test_the_weights_of_many_batches_lose_no_digits():
    def weighted(prediction, target):  # the targets are the weights, float32
        return (target * prediction).sum(), target.sum()

    y = torch.ones(301, 1)
    y[0] = 2.0**24
    model = nn.Linear(1, 1)
    nn.init.zeros_(model.weight), nn.init.ones_(model.bias)
    state = kit.make_state(model, torch.optim.SGD(model.parameters(), lr=0.0))
    loader = kit.make_loader((torch.zeros(301, 1), y), batch_size=1)
    state = kit.fit(state, loader, loader, loss_fn=weighted, epochs=1)
    assert state.history[0]["train_loss"] == 1.0
    assert state.history[0]["val_loss"] == 1.0
    _, sums = kit.train_step(state, (torch.zeros(301, 1), y), loss_fn=weighted)
    assert type(sums["weight"]) is type(sums["loss"]) is float


def test_accumulate_below_1_is_refused_in_one_line():
    with pytest.raises(ValueError, match="^accumulate must be at least 1, got 0$"):
        kit.train_step(still_state(), table(4), loss_fn=F.cross_entropy, accumulate=0)
