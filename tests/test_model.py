"""Section 2, model: the State, what its parts must be, summary, Standardize, unwrap."""

import math

import pytest
import torch
from helpers import refused
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.nn import functional as F
from torch.optim import SGD, Adam, lr_scheduler

import kit


def test_a_criterions_parameters_are_refused():
    model, criterion = nn.Linear(1, 1), nn.Linear(3, 1)
    optimizer = SGD([*model.parameters(), *criterion.parameters()], lr=0.01)
    with refused(r"\b2 .*model"):
        kit.make_state(model, optimizer)
    kit.make_state(nn.ModuleDict({"model": model, "criterion": criterion}), optimizer)


def test_parts_that_do_not_go_together_are_refused():
    model = nn.Linear(1, 1)
    optimizer = SGD(model.parameters(), lr=0.01)
    step = lr_scheduler.StepLR(SGD(model.parameters(), lr=0.01), 1)
    for words, *parts, scheduler in (
        ("model", nn.ReLU(), optimizer, None),
        ("Adam", model, Adam, None),
        ("Linear", nn.Linear, optimizer, None),
        ("another optimizer", model, optimizer, step),
    ):
        with refused(words):
            kit.make_state(*parts, scheduler=scheduler)


@pytest.mark.parametrize("per_step, epochs", [(None, 4), (True, 4), (False, 2)])
def test_per_step_says_when_a_schedule_advances(per_step, epochs):
    """By default, a cyclic one advances by step."""
    model, batches = nn.Linear(1, 1), [kit.make_data(), kit.make_data()]
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    cyclic = lr_scheduler.CyclicLR(optimizer, base_lr=0.01, max_lr=0.1)
    state = kit.make_state(model, optimizer, scheduler=cyclic, per_step=per_step)
    kit.fit(state, batches, loss_fn=nn.L1Loss(), epochs=2)
    assert cyclic.last_epoch == epochs
    kit.train_step(state._replace(scheduler=None), batches[0], loss_fn=nn.L1Loss())


def test_the_summary_has_every_parameter_and_buffer():
    model = nn.Sequential(nn.Linear(30, 5), nn.BatchNorm1d(5), nn.Linear(5, 1))
    model[2].requires_grad_(False)
    *lines, total = kit.summary(model).splitlines()[2:]
    shown = {line.split()[0]: line for line in lines}
    assert shown.keys() == model.state_dict().keys()
    for name, words in (
        ("0.weight", ("(5, 30)", "150", "yes")),
        ("1.running_var", ("(5,)", "5", "buffer")),
        ("2.bias", ("(1,)", "1", "no")),
    ):
        assert all(word in shown[name] for word in words)
    assert total == "171 parameters, 165 of them trained"


def scales(n=500):
    """Columns of many scales; the last two are constant."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(n, 5, generator=generator)
    scaled = noise * torch.tensor([1.0, 1e-3, 1e6, 1e-20, 0.01])
    shifted = scaled + torch.tensor([0.0, 5.0, -1e7, 0.0, 1000.0])
    return torch.cat([shifted, torch.full((n, 2), 0.1) * torch.tensor([1, 0])], 1)


@pytest.mark.parametrize("gaps", [False, True])
def test_numbers_are_standardised_as_by_scikit_learn(gaps):
    """Means and deviations of what is known; a gap becomes 0, the mean."""
    X = scales(30_000)  # sums of squares in float32 would be lost
    if gaps:
        X[::7, 1], X[::3, 4] = math.nan, math.nan
    wide = X[:, :5].double().numpy()
    expected = torch.tensor(StandardScaler().fit_transform(wide)).nan_to_num(0)
    z = kit.Standardize(X)(X)
    assert z.dtype == torch.float32 and not z.isnan().any()
    # the mean 1000 of a column of deviation 0.01 is known to half a float32 step
    torch.testing.assert_close(z[:, :5].double(), expected, rtol=1e-4, atol=0.004)
    assert not z[:, 5:].any()  # the constant columns


def test_constant_columns_become_zero_and_keep_their_scale():
    values = torch.tensor([0.1, 1 / 3, -1e-30, 3e38, 16777217.0, 12345.678])
    for n in (1, 7, 4097):
        standardize = kit.Standardize(values.expand(n, -1))
        assert standardize(values[None]).tolist() == [[0] * 6]
        assert standardize(values[None] + 2)[0, 0] == pytest.approx(2)
    constant = torch.full((50, 1), 0.1, dtype=torch.float64)  # its mean is not 0.1
    assert kit.Standardize(constant)(constant).abs().max() < 1e-7


def test_categories_become_columns_after_the_numbers():
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(3, (40, 2), generator=generator).float()
    numbers = torch.randn(40, 2, generator=generator)
    X = torch.stack([codes[:, 0], numbers[:, 0], codes[:, 1], numbers[:, 1]], 1)
    layer = kit.Standardize(X, categories=(3, 0, 4, 0))
    one_hot = [F.one_hot(codes[:, i].long(), n) for i, n in enumerate((3, 4))]
    expected = torch.cat([kit.Standardize(numbers)(numbers), *one_hot], 1)
    assert torch.equal(layer(X), expected)
    nan = math.nan
    strange = torch.tensor([[-1.0, 0, 4, 0], [nan, 0, 7, 0], [0.5, 0, nan, 0]])
    assert not layer(strange)[:, 2:].any()
