"""Section 4, evaluate and predict: exact for any batching, and training never notices."""

import copy
import math
import random
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import kit


def table(n=71, classes=4, seed=0):
    """Inputs (n, 6) and class numbers (n,)."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 6, generator=generator)
    return x, torch.randint(classes, (n,), generator=generator)


def mlp(seed=0):
    torch.manual_seed(seed)
    layers = (
        nn.Linear(6, 8),
        nn.BatchNorm1d(8),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(8, 4),
    )
    return nn.Sequential(*layers)


def batched(data, *sizes):
    """The data as a list of batches of these sizes."""
    return list(zip(*(t.split(list(sizes)) for t in data)))


def modes(model):
    return {name: module.training for name, module in model.named_modules()}


# PITFALLS 14
def test_uneven_batches_of_256_256_and_10_samples_average_to_7529():
    losses = torch.cat([torch.full((n,), v) for n, v in ((256, 0.7), (256, 0.8))])
    losses = torch.cat([losses, torch.full((10,), 0.9)])
    data = losses, torch.zeros(522)
    row = kit.evaluate(
        nn.Identity(),
        batched(data, 256, 256, 10),
        loss_fn=F.l1_loss,
        metrics=kit.metrics,
    )
    assert round(row["loss"], 4) == round(row["mae"], 4) == 0.7529


# PITFALLS 14
def test_the_training_loss_is_averaged_over_samples_too():
    y = torch.cat(
        [torch.full((n, 1), v) for n, v in ((256, 0.7), (256, 0.8), (10, 0.9))]
    )
    model = nn.Linear(1, 1)
    nn.init.zeros_(model.weight), nn.init.zeros_(model.bias)
    state = kit.make_state(model, torch.optim.SGD(model.parameters(), lr=0.0))
    loader = batched((torch.zeros(522, 1), y), 256, 256, 10)
    state = kit.fit(state, loader, loss_fn=F.l1_loss, epochs=1)
    assert round(state.history[0]["train_loss"], 4) == 0.7529


@pytest.mark.parametrize("sizes", [(1,) * 71, (64, 7), (2, 30, 1, 38), (71,)])
def test_loss_and_metrics_are_the_same_for_any_batching(sizes):
    model, data = mlp(), table()
    row = kit.evaluate(
        model,
        batched(data, *sizes),
        loss_fn=F.cross_entropy,
        metrics=kit.metrics,
    )
    model.eval()
    with torch.no_grad():
        prediction = model(data[0])
    expected = F.cross_entropy(prediction.double(), data[1]).item()
    assert row.pop("loss") == pytest.approx(expected, rel=1e-6)
    assert row == kit.metrics(prediction, data[1])


def test_a_metric_that_is_no_mean_of_batches_gets_all_samples_in_order():
    x = torch.arange(7.0)[:, None]
    seen = []

    def median(prediction, target):
        seen.append((prediction, target))
        return {"median": (prediction - target).median()}

    loader = batched((x, x * 3), 3, 3, 1)
    row = kit.evaluate(nn.Identity(), loader, loss_fn=F.l1_loss, metrics=median)
    assert row == {"loss": 6.0, "median": -6.0}
    assert type(row["median"]) is float
    ((prediction, target),) = seen
    assert torch.equal(prediction, x) and torch.equal(target, x * 3)


@pytest.mark.parametrize("sizes", [(1,) * 71, (8, 63), (71,)])
def test_pair_losses_are_exact_for_any_batching(sizes):
    weights = torch.tensor([0.1, 3.0, 0.5, 1.0])
    x, y = table()
    y[:9] = -1  # a whole batch of weight 0, and more
    model = mlp()

    def loss_fn(prediction, target):
        options = {"weight": weights, "ignore_index": -1}
        total = F.cross_entropy(prediction, target, reduction="sum", **options)
        return total, weights[target[target >= 0]].sum()

    row = kit.evaluate(model, batched((x, y), *sizes), loss_fn=loss_fn)
    prediction = kit.predict(model, x)
    expected = F.cross_entropy(prediction, y, weight=weights, ignore_index=-1).item()
    assert row == {"loss": pytest.approx(expected, rel=1e-6)}


def test_a_loss_over_no_weight_at_all_is_nan_and_no_error():
    row = kit.evaluate(nn.Identity(), [table()], loss_fn=lambda p, y: (p.sum() * 0, 0))
    assert math.isnan(row["loss"])


def test_eval_step_returns_totals_as_numbers_and_the_outputs_where_asked():
    x = torch.full((3, 1), 0.5)
    sums = kit.eval_step(nn.Identity(), (x, x + 2), loss_fn=F.mse_loss)
    assert sums == {"loss": 12.0, "weight": 3}
    assert type(sums["loss"]) is float
    sums = kit.eval_step(
        nn.Identity(), (x, x + 2), loss_fn=F.mse_loss, metrics=kit.metrics
    )
    ((prediction, target),) = sums["outputs"]
    assert torch.equal(prediction, x) and torch.equal(target, x + 2)


class Noisy(TensorDataset):
    """Draws while it is read, as an augmentation does."""

    def __getitem__(self, row):
        x, y = super().__getitem__(row)
        return x + torch.randn(x.shape) + random.random() + np.random.random(), y


VALIDATIONS = {
    "make_loader": lambda: kit.make_loader(table(20, seed=1), batch_size=8),
    "of_a_dataset_that_draws": lambda: kit.make_loader(
        Noisy(*table(20, seed=1)), batch_size=8, shuffle=True
    ),
    "plain_loader_that_shuffles": lambda: DataLoader(
        TensorDataset(*table(20, seed=1)), batch_size=8, shuffle=True
    ),
    "plain_loader_that_draws": lambda: DataLoader(
        Noisy(*table(20, seed=1)), batch_size=8
    ),
}
TRAININGS = {
    "make_loader": lambda: kit.make_loader(table(), batch_size=32, shuffle=True),
    "of_a_dataset_that_draws": lambda: kit.make_loader(
        Noisy(*table()), batch_size=32, shuffle=True
    ),
    "plain_loader_that_shuffles": lambda: DataLoader(
        TensorDataset(*table()), batch_size=32, shuffle=True
    ),
}


# PITFALLS 20
@pytest.mark.parametrize("train", TRAININGS)
@pytest.mark.parametrize("val", VALIDATIONS)
def test_validation_leaves_the_trained_weights_as_they_are_without_it(train, val):
    def trained(val):
        model = mlp()  # with dropout and BatchNorm
        state = kit.make_state(model, torch.optim.Adam(model.parameters(), lr=0.01))
        options = {"loss_fn": F.cross_entropy, "epochs": 3, "seed": 5}
        if val:
            options["metrics"] = kit.metrics
        state = kit.fit(state, TRAININGS[train](), val and val(), **options)
        assert ("val_loss" in state.history[0]) == bool(val)
        return model.state_dict()

    alone, watched = trained(None), trained(VALIDATIONS[val])
    for key, value in alone.items():
        assert torch.equal(value, watched[key]), key


# PITFALLS 20
@pytest.mark.parametrize("loader", VALIDATIONS)
def test_evaluation_leaves_the_global_random_numbers_where_they_were(loader):
    model, loader = mlp(), VALIDATIONS[loader]()

    def next_draws():
        return random.random(), np.random.random(), torch.rand(1, dtype=torch.double)

    def seed():
        random.seed(3), np.random.seed(3), torch.manual_seed(3)

    seed()
    expected = next_draws()
    seed()
    kit.evaluate(model, loader, loss_fn=F.cross_entropy, metrics=kit.metrics)
    assert next_draws() == expected


# PITFALLS 20
def test_a_model_that_draws_in_eval_mode_leaves_the_random_numbers_too():
    class AlwaysDrops(nn.Module):
        def forward(self, x):
            return F.dropout(x, 0.5, training=True)

    loader = kit.make_loader((torch.ones(8, 1), torch.ones(8, 1)))
    before = torch.get_rng_state()
    kit.evaluate(AlwaysDrops(), loader, loss_fn=F.l1_loss)
    assert torch.equal(torch.get_rng_state(), before)


# PITFALLS 20
@pytest.mark.parametrize("wrap", ["bare", "amp", "compiled"])
@pytest.mark.parametrize("fails", [False, True])
def test_the_mode_of_every_module_is_the_same_before_and_after(wrap, fails):
    bare = mlp()
    bare[1].eval()  # a frozen BatchNorm
    model = {
        "bare": lambda m: m,
        "amp": partial(kit.amp, precision="bf16"),
        "compiled": partial(torch.compile, backend="eager"),
    }[wrap](bare)
    torch.compiler.reset()  # or the code of an earlier case runs, without the hook
    if fails:  # in the model, on the way
        bare[4].register_forward_pre_hook(lambda module, inputs: 1 / 0)
    before = modes(model)
    assert before and not all(before.values()) and any(before.values())
    loader = [table()]
    calls = [
        partial(kit.evaluate, model, loader, loss_fn=F.cross_entropy),
        partial(kit.eval_step, model, loader[0], loss_fn=F.cross_entropy),
        partial(kit.predict, model, table()[0]),
    ]
    for call in calls:
        if fails:
            with pytest.raises(Exception, match="division by zero"):
                call()
        else:
            call()
        assert modes(model) == before


# PITFALLS 20
def test_a_model_in_eval_mode_stays_in_eval_mode():
    model = mlp().eval()
    kit.evaluate(model, [table()], loss_fn=F.cross_entropy)
    kit.predict(model, table()[0])
    assert not any(modes(model).values())


# PITFALLS 20
def test_a_frozen_batchnorm_stays_frozen_through_training_and_validation():
    model = mlp()
    model[1].eval().requires_grad_(False)
    before = copy.deepcopy(model[1].state_dict())
    state = kit.make_state(model, torch.optim.SGD(model.parameters(), lr=0.1))
    seen = []

    def step(state, batch, *, loss_fn):
        seen.append(modes(model))
        return kit.train_step(state, batch, loss_fn=loss_fn)

    loader = kit.make_loader(table(), batch_size=32)
    kit.fit(state, loader, loader, loss_fn=F.cross_entropy, epochs=3, step=step)
    assert len(seen) == 9
    assert all(mode == {**dict.fromkeys(mode, True), "1": False} for mode in seen)
    for key, value in before.items():
        assert torch.equal(model[1].state_dict()[key], value), key


# PITFALLS 20
def test_a_model_left_in_eval_mode_between_epochs_trains_on_in_training_mode():
    model = mlp()
    state = kit.make_state(model, torch.optim.SGD(model.parameters(), lr=0.1))
    seen = []

    def step(state, batch, *, loss_fn):
        seen.append(all(modes(model).values()))
        return kit.train_step(state, batch, loss_fn=loss_fn)

    loader = [table()]
    for now in kit.run(state, loader, loss_fn=F.cross_entropy, epochs=3, step=step):
        now.model.eval()  # the reader's own look at the model, without a way back
    assert seen == [True, True, True]


def test_evaluation_changes_neither_weights_nor_statistics_nor_gradients():
    model = mlp()
    F.cross_entropy(model(table()[0]), table()[1]).backward()
    before = copy.deepcopy(model.state_dict())
    gradients = [p.grad.clone() for p in model.parameters()]
    kit.evaluate(model, [table()], loss_fn=F.cross_entropy)
    kit.predict(model, table()[0])
    for key, value in before.items():
        assert torch.equal(model.state_dict()[key], value), key
    for p, gradient in zip(model.parameters(), gradients):
        assert torch.equal(p.grad, gradient)


def test_a_loader_may_take_gradients_as_attacks_on_the_model_do():
    model, clean = mlp().eval(), batched(table(), 32, 32, 7)

    def attacked():
        for x, y in clean:
            x = x.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(F.cross_entropy(model(x), y), x)
            yield (x + 0.1 * gradient.sign()).detach(), y

    row = kit.evaluate(model, attacked(), loss_fn=F.cross_entropy)
    harder = kit.evaluate(model, list(attacked()), loss_fn=F.cross_entropy)
    assert row == harder
    assert row["loss"] > kit.evaluate(model, clean, loss_fn=F.cross_entropy)["loss"]


def test_a_loader_may_train_the_model_between_its_batches():
    class Noted(nn.Dropout):
        def forward(self, x):
            noted.append(self.training)
            return super().forward(x)

    model, noted = nn.Sequential(nn.Linear(6, 4), Noted()), []

    def training():
        for batch in batched(table(), 32, 32, 7):
            yield batch
            model.train()

    kit.predict(model, training())
    kit.evaluate(model, training(), loss_fn=F.cross_entropy)
    assert noted == [False] * 6 and model[1].training


def test_predict_is_the_same_for_a_tensor_and_over_any_loader_in_its_order():
    model, (x, y) = mlp(), table()
    expected = copy.deepcopy(model).eval()(x).detach()
    loaders = [
        x,
        kit.make_loader((x,), batch_size=32),
        kit.make_loader((x, y), batch_size=32),
        kit.make_loader((x, y)),
        DataLoader(TensorDataset(x, y), batch_size=10),
        DataLoader(TensorDataset(x), batch_size=10),
        list(x.split(9)),
        iter([(x, y)]),
    ]
    for loader in loaders:
        torch.testing.assert_close(kit.predict(model, loader), expected)


def test_predict_takes_a_dict_of_inputs_alone_and_in_batches():
    class Sum(nn.Module):
        def forward(self, inputs):
            return inputs["a"] + 2 * inputs["more"]["b"]

    a, y = torch.arange(7.0)[:, None], torch.zeros(7)
    parts = [{"a": part, "more": {"b": part}} for part in a.split(3)]
    pairs = [(part, y[: len(part["a"])]) for part in parts]
    for inputs in ({"a": a, "more": {"b": a}}, parts, pairs):
        assert torch.equal(kit.predict(Sum(), inputs), 3 * a)


def test_predict_keeps_the_shuffled_order_of_its_loader():
    x = torch.arange(20.0)[:, None]
    loader = kit.make_loader((x,), batch_size=6, shuffle=True, seed=1)
    again = kit.make_loader((x,), batch_size=6, shuffle=True, seed=1)
    outputs = kit.predict(nn.Identity(), loader)
    assert torch.equal(outputs, torch.cat([batch for (batch,) in again]))
    assert not torch.equal(outputs, x)
    assert torch.equal(outputs.sort(0).values, x)


def test_an_empty_loader_is_one_clear_line():
    with pytest.raises(ValueError, match="^the loader must have a batch .*, got none$"):
        kit.evaluate(nn.Identity(), [], loss_fn=F.l1_loss)
    with pytest.raises(ValueError, match="^the loader must have a batch .*, got none$"):
        kit.predict(nn.Identity(), [])


class Keeps(nn.Module):
    """Keeps what it computed for later, as a memory bank does."""

    def __init__(self):
        super().__init__()
        self.layer, self.kept = nn.Linear(6, 4), None

    def forward(self, x):
        if self.kept is None:
            self.kept = x * 2
        return self.layer(x) + self.layer(self.kept)


def test_outputs_carry_no_gradient_and_can_still_be_trained_on():
    model = nn.Linear(6, 4)
    outputs = kit.predict(model, table()[0])
    assert not outputs.requires_grad and not outputs.is_inference()
    weight = torch.ones(4, requires_grad=True)
    (outputs * weight).sum().backward()  # an inference tensor would be refused here
    assert torch.equal(weight.grad, outputs.sum(0))
    outputs.add_(1)


def test_what_a_model_keeps_from_an_evaluation_can_be_trained_on():
    model, (x, y) = Keeps(), table()
    kit.evaluate(model, [(x, y)], loss_fn=F.cross_entropy)
    state = kit.make_state(model, torch.optim.SGD(model.parameters(), lr=0.1))
    state, sums = kit.train_step(state, (x, y), loss_fn=F.cross_entropy)
    assert math.isfinite(float(sums["loss"]))
