"""Section 3, train: a step is the plain one, whatever the micro-batches and precision."""

import copy
import gc
import math
import weakref
from collections import UserDict
from functools import partial
from types import MappingProxyType

import helpers
import pytest
import torch
from helpers import WRAPS, assert_same, make_state, refused, weighted, weighted_mean
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import OneCycleLR, StepLR

import kit

SGD = torch.optim.SGD
OPTIMIZERS = {
    "sgd": partial(SGD, lr=0.1),
    "nesterov": partial(SGD, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adam": partial(torch.optim.Adam, lr=0.01),
    "adam_fused": partial(torch.optim.Adam, lr=0.01, fused=True),
    "rmsprop": partial(torch.optim.RMSprop, lr=0.01, momentum=0.5),
}


classes = partial(helpers.table, classes=4)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_step_equals_a_plain_step_bit_for_bit(optimizer):
    plain, model = helpers.classifier(), helpers.classifier()
    plain_optimizer = OPTIMIZERS[optimizer](plain.parameters())
    state = kit.make_state(model, OPTIMIZERS[optimizer](model.parameters()))
    for step, n in enumerate((16, 16, 7, 2) * 2):
        batch = classes(n, seed=step)
        torch.manual_seed(step)  # of the dropout
        plain_optimizer.zero_grad()
        loss = F.cross_entropy(plain(batch[0]), batch[1])
        loss.backward()
        plain_optimizer.step()

        torch.manual_seed(step)
        state, totals = kit.train_step(state, batch, loss_fn=F.cross_entropy)
        assert totals["loss"] == pytest.approx(loss.item() * n, rel=1e-12)
        assert totals["weight"] == n
    assert state.step == 8
    assert_same(dict(model.state_dict()), dict(plain.state_dict()))
    assert_same(state.optimizer.state_dict(), plain_optimizer.state_dict())


# ---------------------------------------------------------------------- micro-batches


def still_state(model=None):
    """A state whose steps leave the weights alone, so that gradients compare."""
    torch.manual_seed(0)
    model = model or nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 4))
    return make_state(model, optimizer=SGD, lr=0.0)


def gradients(model):
    return [p.grad for p in model.parameters()]


def plain_gradients(model, batch, loss_fn):
    loss = loss_fn(model(batch[0]), batch[1])
    return loss.item(), list(torch.autograd.grad(loss, list(model.parameters())))


def check_step(model, batch, loss_fn, plain_loss=None, **options):
    """That a step has the plain loss and its gradient; what it returns."""
    expected = plain_gradients(model, copy.deepcopy(batch), plain_loss or loss_fn)
    state = still_state(model)
    _, totals = kit.train_step(state, batch, loss_fn=loss_fn, **options)
    loss = float(totals["loss"] / totals["weight"])
    assert loss == pytest.approx(expected[0], rel=1e-6)
    assert_same(gradients(model), expected[1], 1e-6)
    return totals


@pytest.mark.parametrize("n", [1, 2, 7, 32])
@pytest.mark.parametrize("accumulate", [1, 2, 3, 5, 31, 32, 33])
def test_micro_batches_weigh_by_their_samples(n, accumulate):
    """A short last batch too: any accumulate gives the whole batch's gradient."""
    options = {"loss_fn": F.cross_entropy, "accumulate": accumulate}
    assert check_step(still_state().model, classes(n), **options)["weight"] == n


BAD_BATCHES = {
    "unequal in a nest": (torch.ones(4, 3), {"y": [torch.ones(4), torch.ones(2)]}),
    "a bare tensor": torch.ones(2, 3),
    "three": (torch.ones(4, 3), torch.ones(4, 1), torch.ones(4, 1)),
    "a dict": {"x": torch.ones(4, 3), "y": torch.ones(4, 1)},
    "no rows": (torch.ones(0, 3), torch.ones(0, 1)),
    "no tensors": ([1.0, 2.0], [1.0, 2.0]),
}


@pytest.mark.parametrize("name", BAD_BATCHES)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_what_is_no_batch_is_refused_in_one_line(name, accumulate):
    options = {"loss_fn": lambda outputs, _: outputs.mean(), "accumulate": accumulate}
    with refused("batch"):
        kit.train_step(still_state(nn.Linear(3, 1)), BAD_BATCHES[name], **options)


def test_what_cannot_be_cut_is_refused():
    forward = lambda model, batch: (model(batch["x"]), batch["x"][:, :1])
    batch = {"x": torch.ones(4, 3), "texts": ["a", "b", "c", "d"]}
    options = {"loss_fn": F.l1_loss, "forward": forward}
    state, totals = kit.train_step(still_state(nn.Linear(3, 1)), batch, **options)
    assert totals["weight"] == 4
    with refused("accumulate|micro|cut"):
        kit.train_step(state, batch, accumulate=2, **options)
    with refused("forward must return"):
        kit.evaluate(nn.Identity(), [batch], loss_fn=None, forward=lambda m, b: b["x"])


# -------------------------------------------------------------------- losses as totals


@pytest.mark.parametrize("accumulate", [1, 2, 3, 4, 7, 32])
def test_totals_weigh_micro_batches_by_their_weight(accumulate):
    x, y = classes(32)
    y[:9], y[20] = -1, -1  # whole micro-batches of weight 0
    options = {"plain_loss": weighted_mean, "accumulate": accumulate}
    totals = check_step(still_state().model, (x, y), weighted, **options)
    assert totals["twice"] == pytest.approx(2 * totals["weight"], rel=1e-6)


def test_a_foreign_mapping_is_cut_and_stays_as_it_is():
    x, y = classes(32)
    forward = lambda model, batch: (model(batch["x"]), batch["y"])
    options = {"loss_fn": F.cross_entropy, "accumulate": 4, "forward": forward}
    batches = {"x": x, "y": y}, UserDict(x=x, y=y), MappingProxyType({"x": x, "y": y})
    totals = [kit.train_step(still_state(), b, **options)[1] for b in batches]
    assert totals[0] == totals[1] == totals[2] and totals[0]["weight"] == 32
    assert all(len(batch["x"]) == 32 for batch in batches)


def test_totals_beside_the_loss_are_in_the_row():
    model, (x, y) = still_state().model, classes(22)
    y[:7] = -1  # the first batch has a weight of 0
    expected = weighted_mean(model(x), y).item()
    loader = kit.make_loader((x, y), batch_size=6)
    options = {"loss_fn": weighted, "epochs": 1}
    (row,) = kit.fit(still_state(model), loader, loader, **options).history
    for part in ("train", "val"):
        found = row[f"{part}_loss"], row[f"{part}_twice"]
        assert found == pytest.approx((expected, 2), rel=1e-6)
    assert not {"train_weight", "val_weight"} & row.keys()


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("wrap", ["bare", "fp16"])
def test_a_batch_of_weight_0_trains_nothing(accumulate, wrap):
    model, (x, y) = still_state().model, classes(8)
    before = copy.deepcopy(dict(model.state_dict()))
    state, nothing = make_state(WRAPS[wrap](model), lr=0.1), torch.full_like(y, -1)
    options = {"loss_fn": weighted, "accumulate": accumulate, "clip": 1.0}
    _, totals = kit.train_step(state, (x, nothing), **options)
    assert all(math.isfinite(float(total)) for total in totals.values())
    assert_same(dict(model.state_dict()), before)


# ----------------------------------------------------------------- shapes that differ


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize("loss_fn", [nn.L1Loss(), F.mse_loss, F.huber_loss])
@pytest.mark.parametrize("shapes", [((6, 1), (6,)), ((6,), (6, 1)), ((6, 1), (6, 3))])
def test_shapes_that_would_broadcast_are_refused(loss_fn, shapes):
    """(N, 1) against (N,) is (N, N), and trains something else in silence."""
    model = nn.Sequential(nn.Linear(3, 1), nn.Flatten(0 if shapes[0] == (6,) else 1))
    batch = torch.randn(6, 3), torch.rand(shapes[1])
    with refused(r"\b6\b.*\b6\b"):
        kit.train_step(make_state(model), batch, loss_fn=loss_fn)
    with refused(r"\b6\b.*\b6\b"):
        kit.evaluate(model, [batch], loss_fn=loss_fn)


# --------------------------------------------------------------------- fp16, clipping


BY_EPOCH = partial(StepLR, step_size=2, gamma=0.5)
BY_STEP = partial(OneCycleLR, max_lr=0.1, total_steps=15)


def snapshot(state):
    parts = [dict(state.model.state_dict()), state.optimizer.state_dict()]
    return copy.deepcopy([*parts, state.scheduler.state_dict()])


@pytest.mark.parametrize("optimizer", ["nesterov", "adam", "adam_fused"])
@pytest.mark.parametrize("scheduler", [BY_EPOCH, BY_STEP])
@pytest.mark.parametrize("clip", [None, 1.0])
def test_an_update_that_fp16_skips_advances_nothing(optimizer, scheduler, clip):
    model, factors = still_state().model, (1.0, math.nan, 1.0, math.inf, 1.0)
    of_steps, made, before = iter(factors), 0, None
    model[0].weight.register_hook(lambda gradient: gradient * next(of_steps))
    optimizer = OPTIMIZERS[optimizer](model.parameters())
    scheduler = scheduler(optimizer)
    start = kit.make_state(kit.amp(model, "fp16"), optimizer, scheduler=scheduler)
    options = {"step": partial(kit.train_step, clip=clip), "epochs": len(factors)}
    run = kit.run(start, [classes(16)], loss_fn=F.cross_entropy, **options)
    for state, factor in zip(run, factors, strict=True):
        row, scale = state.history[-1], state.scaler.get_scale()
        made += math.isfinite(factor)
        if math.isfinite(factor):
            before = snapshot(state), scale / 2
        else:
            assert_same((snapshot(state), scale), before)
        assert row["train_skipped"] == (not math.isfinite(factor))
        assert ("train_grad_norm" in row) == bool(clip and math.isfinite(factor))
        assert scheduler.last_epoch == made
    assert state.step == 5  # the batches are done with nevertheless


@pytest.mark.parametrize("precision", [None, "bf16", "fp16"])
@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("loss_fn", [F.cross_entropy, weighted])
def test_the_norm_after_clipping_is_at_most_the_limit(precision, accumulate, loss_fn):
    model = still_state().model
    wrapped = kit.amp(model, precision) if precision else model
    state = make_state(wrapped, optimizer=SGD, lr=0.0)
    oracle = weighted_mean if loss_fn is weighted else loss_fn
    _, expected = plain_gradients(model, classes(16), oracle)
    norm = nn.utils.get_total_norm(expected).item()
    for limit in (norm / 10, norm * 10):
        step = partial(kit.train_step, accumulate=accumulate, clip=limit)
        _, totals = step(state, classes(16), loss_fn=loss_fn)
        after = nn.utils.get_total_norm(gradients(model)).item()
        assert after <= limit * (1 + 1e-6)
        assert after == pytest.approx(min(limit, norm), rel=0.02)  # and not far below
        before = float(totals["grad_norm"]) / float(totals["weight"])
        assert before == pytest.approx(norm, rel=0.02)


def test_a_skipped_update_has_no_share_in_the_mean_norm():
    model, of_steps, batch = still_state().model, iter((1.0, math.nan)), classes(16)
    _, expected = plain_gradients(model, batch, F.cross_entropy)
    model[0].weight.register_hook(lambda gradient: gradient * next(of_steps))
    state = make_state(kit.amp(model, "fp16"), optimizer=SGD, lr=0.0)
    options = {"step": partial(kit.train_step, clip=1.0), "epochs": 1}
    state = kit.fit(state, [batch] * 2, loss_fn=F.cross_entropy, **options)
    norm = nn.utils.get_total_norm(expected).item()
    assert state.history[0]["train_skipped"] == 0.5
    assert state.history[0]["train_grad_norm"] == pytest.approx(norm, rel=0.02)


def test_clip_may_be_any_function_of_the_parameters():
    state, batch = still_state(), classes(16)
    by_value = partial(nn.utils.clip_grad_value_, clip_value=0.01)
    _, totals = kit.train_step(state, batch, loss_fn=F.cross_entropy, clip=by_value)
    assert max(g.abs().max() for g in gradients(state.model)) == pytest.approx(0.01)
    assert "grad_norm" not in totals


def test_clip_and_accumulate_must_be_above_0():
    """And a loss_fn that gives a dict must give a loss and its weight."""
    usual = {"loss_fn": weighted_mean}
    for options, words in (
        ({"clip": 0}, "clip must be"),
        ({"clip": -1.0}, "clip must be"),
        ({"clip": math.nan}, "clip must be"),
        ({"accumulate": 0}, "accumulate must be at least 1, got 0"),
        ({"loss_fn": lambda *_: {"weight": 1}}, "loss.*weight"),
    ):
        with refused(words):
            kit.train_step(still_state(), classes(4), **usual | options)


# ----------------------------------------------------------------------------- memory


@pytest.mark.parametrize("options", [{}, {"accumulate": 3}, {"clip": 1.0}])
def test_a_step_keeps_no_graph_alive(options):
    graphs = []

    def watched(outputs, targets):
        loss = F.l1_loss(outputs, targets)
        graphs.extend([weakref.ref(outputs), weakref.ref(loss)])
        return {"loss": loss * len(targets), "weight": outputs.sum(), "more": loss}

    gc.disable()  # what only the collector would free is alive for too long
    try:
        state = make_state(nn.Linear(1, 1))
        _, totals = kit.train_step(state, kit.make_data(), loss_fn=watched, **options)
        assert graphs and not any(graph() is not None for graph in graphs)
    finally:
        gc.enable()
    kept = [*totals.values(), *gradients(state.model)]
    assert not any(getattr(v, "requires_grad", False) for v in kept)
