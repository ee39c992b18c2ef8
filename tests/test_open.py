"""Open to real scripts: their batches, models and losses against their plain loops."""

from functools import partial
from itertools import chain
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from helpers import Step, assert_same, make_state, mlp, table
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Subset

import kit

ROWS = 22  # in batches of 6, 6, 6 and 4


def rows_of(rows):
    """A Dataset of a list."""
    return Subset(rows, range(len(rows)))


def tokens(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(11, (ROWS, 5), generator=generator)


def numbers(columns=3, seed=0):
    return table(ROWS, columns, seed=seed)[0]


def kinds():
    return table(ROWS, classes=3, seed=0)[1]


class Classifier(nn.Module):
    """As those of Hugging Face: keywords in, an object with loss and logits out."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(11, 6), nn.Linear(6, 3)

    def forward(self, input_ids, attention_mask, labels=None):
        mask = attention_mask[..., None].float()
        logits = self.head((self.embed(input_ids) * mask).sum(1) / mask.sum(1))
        return SimpleNamespace(loss=F.cross_entropy(logits, labels), logits=logits)


class GPT(nn.Module):
    """Returns (logits, loss)."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(11, 6), nn.Linear(6, 11)

    def forward(self, ids, targets):
        logits = self.head(self.embed(ids))
        return logits, F.cross_entropy(logits.flatten(0, 1), targets.flatten())


class TwoTasks(nn.Module):
    def __init__(self):
        super().__init__()
        self.kind, self.size = nn.Linear(3, 3), nn.Linear(3, 1)

    def forward(self, x):
        return {"kind": self.kind(x), "more": (self.size(x),)}


def two_losses(outputs, targets):
    size = F.huber_loss(outputs["more"][0], targets["more"][0])
    return F.cross_entropy(outputs["kind"], targets["kind"]) + 0.5 * size


class Script(NamedTuple):
    """The shape of a real training script; `plain` is the loss in its own loop."""

    data: Any
    model: Any
    loss_fn: Any
    plain: Any
    forward: Any = None  # kit's, where its own does not do

    def loader(self, **options):
        options = {"batch_size": 6, "shuffle": True, "seed": 5} | options
        return kit.make_loader(self.data, **options)

    def state(self):
        torch.manual_seed(3)
        return make_state(self.model())

    @property
    def options(self):
        own = {"forward": self.forward} if self.forward else {}
        return {"loss_fn": self.loss_fn} | own


MASK = (tokens(1) > 3).long().index_fill(1, torch.tensor([0]), 1)
DICTS = [dict(zip(("input_ids", "attention_mask", "labels"), row))
         for row in zip(tokens(), MASK, kinds())]  # fmt: skip
TASKS = [(x, {"kind": k, "more": (s,)})
         for x, k, s in zip(numbers(), kinds(), numbers(1, seed=2))]  # fmt: skip
SCRIPTS = {
    "Hugging Face": Script(
        *(rows_of(DICTS), Classifier, F.cross_entropy),
        plain=lambda model, batch: model(**batch).loss,
        forward=lambda model, batch: (model(**batch).logits, batch["labels"]),
    ),
    "autoencoder": Script(
        *((numbers(),), partial(mlp, outputs=3, dropout=0.0), F.mse_loss),
        plain=lambda model, batch: F.mse_loss(model(batch[0]), batch[0]),
        forward=lambda model, batch: (model(batch[0]), batch[0]),
    ),
    "GPT": Script(
        *((tokens(), tokens(1)), GPT, lambda outputs, _: outputs[1]),
        plain=lambda model, batch: model(*batch)[1],
        forward=lambda model, batch: (model(*batch), batch[1]),
    ),
    "multi-task": Script(
        *(rows_of(TASKS), TwoTasks, two_losses),
        plain=lambda model, batch: two_losses(model(batch[0]), batch[1]),
    ),
}


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS)
def test_a_script_trains_as_its_plain_loop_does(script):
    """The loss of every step, and the weights and moments to the last bit."""
    (model, optimizer, *_), loader, losses = script.state(), script.loader(), []
    for batch in chain(loader, loader, loader):
        loss = script.plain(model, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

    step, loaders = Step(), (script.loader(), script.loader())
    state = kit.fit(script.state(), *loaders, epochs=3, step=step, **script.options)
    found = [totals["loss"] / totals["weight"] for totals in step.totals]
    assert found == pytest.approx(losses, rel=1e-12)
    assert_same(dict(state.model.state_dict()), dict(model.state_dict()))
    assert_same(state.optimizer.state_dict(), optimizer.state_dict())
    of_epoch = sum(n * loss for n, loss in zip((6, 6, 6, 4), losses[-4:])) / ROWS
    assert state.history[-1]["train_loss"] == pytest.approx(of_epoch, rel=1e-12)


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS)
def test_a_script_evaluates_and_predicts_all_rows(script):
    model, loader = script.state().model, script.loader(shuffle=False)
    (batch,) = script.loader(batch_size=None, shuffle=False)
    seen = []
    gather = lambda outputs, targets: seen.append((outputs, targets)) or len(seen)
    expected = script.plain(model, batch).item()
    row = kit.evaluate(model, loader, metrics=gather, **script.options)
    assert row["loss"] == pytest.approx(expected, rel=1e-6)
    if script.model not in (GPT, Classifier):  # whose outputs may hold a loss
        predict = partial(kit.predict, model, forward=script.forward)
        assert_same(predict(loader), predict([batch]), 1e-6)
        assert_same([outputs for outputs, _ in seen], [predict(loader)])
    if script is SCRIPTS["multi-task"]:  # nests of targets, of all rows
        assert_same(seen[0][1], batch[1])


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS)
@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_a_scripts_batch_may_be_cut(script, accumulate):
    batch, model = next(iter(script.loader())), script.model()
    state = make_state(model, optimizer=torch.optim.SGD, lr=0.0)
    loss = script.plain(model, batch)
    expected = list(torch.autograd.grad(loss, list(model.parameters())))
    options = {"accumulate": accumulate} | script.options
    _, totals = kit.train_step(state, batch, **options)
    assert totals["weight"] == 6
    assert totals["loss"] / 6 == pytest.approx(loss.item(), rel=1e-6)
    assert_same([p.grad for p in model.parameters()], expected, 1e-6)
