"""Section 4, evaluate: exact for any batching, and training never notices."""

import copy
from contextlib import nullcontext
from functools import partial

import helpers
import pytest
import torch
from helpers import assert_same, classifier, make_state, refused, table, weighted
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import kit

classes = partial(table, 71, classes=4)


def batched(data, *sizes):
    """The data as a list of batches of these sizes."""
    return list(zip(*(t.split(list(sizes)) for t in data)))


def modes(model):
    return {name: module.training for name, module in model.named_modules()}


@pytest.mark.parametrize("sizes", [(1,) * 71, (64, 7), (2, 30, 1, 38), (71,)])
def test_loss_and_metrics_are_the_same_for_any_batching(sizes):
    model, (x, y) = classifier(), classes()
    options = {"loss_fn": F.cross_entropy, "metrics": kit.metrics}
    row = kit.evaluate(model, batched((x, y), *sizes), **options)
    outputs = copy.deepcopy(model).eval()(x).detach()
    expected = F.cross_entropy(outputs.double(), y).item()
    assert row.pop("loss") == pytest.approx(expected, rel=1e-6)
    assert row == kit.metrics(outputs, y)

    y[:9] = -1  # a whole batch of weight 0, and more
    row = kit.evaluate(model, batched((x, y), *sizes), loss_fn=weighted)
    expected = helpers.weighted_mean(outputs, y).item()
    assert row == pytest.approx({"loss": expected, "twice": 2}, rel=1e-6)


def test_a_metrics_function_gets_all_samples_in_order():
    x = torch.arange(7.0)[:, None]
    seen = []

    def median(prediction, target):
        seen.append((prediction, target))
        return (prediction - target).median()

    loader = batched((x, x * 3), 3, 3, 1)
    row = kit.evaluate(nn.Identity(), loader, loss_fn=F.l1_loss, metrics=median)
    assert row == {"loss": 6.0, "median": -6.0} and type(row["median"]) is float
    assert_same(seen, [(x, x * 3)])


def test_a_metric_called_loss_is_not_the_loss():
    options = {"loss_fn": F.l1_loss, "metrics": lambda *_: {"loss": 9.0, "other": 1.0}}
    row = kit.evaluate(nn.Identity(), [(torch.ones(2), torch.zeros(2))], **options)
    assert row == {"loss": 1.0, "other": 1.0}


SHUFFLED = {"batch_size": 8, "shuffle": True}
LOADERS = {  # the first two draw while they are read, as an augmentation does
    "plain": lambda: DataLoader(helpers.Draws(), **SHUFFLED),
    "kit's": lambda: kit.make_loader(helpers.Draws(), **SHUFFLED),
    "tensors": lambda: kit.make_loader(table(20), **SHUFFLED),
}


@pytest.mark.parametrize("train", LOADERS)
@pytest.mark.parametrize("val", LOADERS)
def test_training_is_the_same_with_and_without_validation(train, val):
    def trained(val, **options):
        options |= {"loss_fn": F.mse_loss, "epochs": 3, "seed": 5}
        state = kit.fit(make_state(), LOADERS[train](), val, **options)
        return dict(state.model.state_dict())

    assert_same(trained(LOADERS[val](), metrics=kit.metrics), trained(None))


@pytest.mark.parametrize("loader", LOADERS.values(), ids=LOADERS)
def test_evaluation_leaves_the_random_numbers_alone(loader):
    model, before = helpers.mlp(), helpers.random_state()
    kit.evaluate(model, loader(), loss_fn=F.mse_loss)
    assert helpers.random_state() == before


@pytest.mark.parametrize("wrap", [lambda m: m, partial(kit.amp, precision="bf16")])
@pytest.mark.parametrize("fails", [False, True])
def test_evaluation_changes_no_mode_weight_or_gradient(wrap, fails):
    bare = classifier()
    bare[1].eval()  # a frozen BatchNorm
    model, batch = wrap(bare), classes()
    F.cross_entropy(bare(batch[0]), batch[1]).backward()
    gradients = [p.grad.clone() for p in bare.parameters()]
    weights = copy.deepcopy(dict(bare.state_dict()))
    before = modes(model)
    if fails:  # in the model, on the way
        bare[4].register_forward_pre_hook(lambda module, inputs: 1 / 0)
    for call in (
        partial(kit.evaluate, model, [batch], loss_fn=F.cross_entropy),
        partial(kit.eval_step, model, batch, loss_fn=F.cross_entropy),
        partial(kit.predict, model, batch[0]),
    ):
        with pytest.raises(ZeroDivisionError) if fails else nullcontext():
            call()
        assert modes(model) == before
    assert_same(dict(bare.state_dict()), weights)
    assert_same([p.grad for p in bare.parameters()], gradients)


class Frozen(nn.Sequential):
    def train(self, mode=True):
        super().train(mode)[1].eval()
        return self


def test_modules_train_as_they_were_left():
    """A frozen BatchNorm stays frozen; a model in eval mode trains in training mode."""
    model, loader, seen = classifier(), [classes()], []
    model[1].eval().requires_grad_(False)
    step = helpers.Step(before=lambda state: seen.append(modes(state.model)))
    options = {"loss_fn": F.cross_entropy, "step": step}
    state = kit.fit(make_state(model), loader, loader, epochs=3, **options)
    assert seen == [dict.fromkeys(modes(model), True) | {"1": False}] * 3
    model.eval()  # the reader's own look at the model, without a way back
    kit.fit(state, loader, epochs=4, **options)
    assert all(seen[-1].values())
    kit.fit(make_state(Frozen(*classifier())), loader, epochs=1, **options)
    assert seen[-1] == seen[0]


def test_predict_takes_a_tensor_and_any_loader_in_its_order():
    model, (x, y) = classifier(), classes()
    expected = copy.deepcopy(model).eval()(x).detach()
    for loader in (
        x,
        kit.make_loader((x,), batch_size=32),
        DataLoader(TensorDataset(x, y), batch_size=10),
        list(x.split(9)),
        iter([(x, y)]),
        [(x, ["a text", "of targets"])],
    ):
        outputs = kit.predict(model, loader)
        assert not outputs.requires_grad  # or it would keep every batch's graph
        torch.testing.assert_close(outputs, expected)


class Keeps(nn.Linear):
    """Keeps what it computed for later, as a memory bank does."""

    kept = None

    def forward(self, x):
        self.kept = x * 2 if self.kept is None else self.kept
        return super().forward(x) + super().forward(self.kept)


def test_outputs_and_what_a_model_keeps_can_be_trained_on():
    """An inference tensor would be refused here."""
    batch, graphs = classes(), lambda outputs, _: int(outputs.requires_grad)
    options = {"loss_fn": F.cross_entropy, "metrics": graphs}
    for evaluates in (True, False):
        model = Keeps(3, 4)
        if evaluates:
            assert kit.evaluate(model, [batch], **options)["<lambda>"] == 0
        outputs = kit.predict(model, batch[0])
        (outputs * torch.ones(4, requires_grad=True)).sum().backward()
        kit.train_step(make_state(model), batch, loss_fn=F.cross_entropy)


def test_slips_are_refused_in_one_line():
    state, (X, y) = make_state(nn.Linear(1, 1)), kit.make_data()
    evaluate = partial(kit.evaluate, loss_fn=F.l1_loss)
    for call, model, loader, word in (
        (evaluate, nn.Identity(), [], "batch"),
        (kit.predict, nn.Identity(), [], "batch"),
        (evaluate, state, [(X, y)], "State"),
        (kit.predict, state, X, "State"),
        (evaluate, state.model, X, "make_loader"),
        (evaluate, state.model, [X], "forward"),
    ):
        with refused(word):
            call(model, loader)
