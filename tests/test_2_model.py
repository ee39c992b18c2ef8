"""Section 2: the State, its summary, and standardisation."""

import copy

import pytest
import torch
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.optim import SGD, Adam, lr_scheduler

import kit

# ---------------------------------------------------------------------- make_state


def test_a_new_state_has_done_nothing():
    model = nn.Linear(1, 1)
    optimizer = SGD(model.parameters(), lr=0.01)
    state = kit.make_state(model, optimizer)
    assert state.model is model and state.optimizer is optimizer
    assert state.scheduler is None and not state.scaler.is_enabled()
    assert (state.step, len(state.history), dict(state.sums)) == (0, 0, {})
    assert dict(state.config) == {} and state.per_step is False


def test_a_state_cannot_be_changed_only_replaced():
    model = nn.Linear(1, 1)
    state = kit.make_state(model, SGD(model.parameters(), lr=0.01))
    for name in (*state._fields, "another"):
        with pytest.raises(AttributeError):
            setattr(state, name, None)
    assert isinstance(state.history, tuple)
    later = state._replace(step=5)
    assert (state.step, later.step) == (0, 5) and later.model is model


def test_two_states_share_nothing_that_can_be_filled():
    first, second = (
        kit.make_state(model, SGD(model.parameters(), lr=0.01))
        for model in (nn.Linear(1, 1), nn.Linear(1, 1))
    )
    try:
        first.config["name"] = first.sums["loss"] = 1.0
    except TypeError:
        pass  # they may well be read-only
    assert dict(second.config) == dict(second.sums) == {}


def test_an_optimizer_of_another_model_is_refused():
    optimizer = SGD(nn.Linear(1, 1).parameters(), lr=0.01)
    for model in (nn.Linear(1, 1), nn.ReLU()):
        with pytest.raises(ValueError, match="holds none of the model's parameters"):
            kit.make_state(model, optimizer)
    replaced = nn.Sequential(nn.Linear(1, 1))
    optimizer = SGD(replaced.parameters(), lr=0.01)
    replaced[0] = nn.Linear(1, 1)
    with pytest.raises(ValueError, match="holds none of the model's parameters"):
        kit.make_state(replaced, optimizer)


def test_an_optimizer_may_hold_a_part_of_the_model():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    optimizer = SGD([{"params": model[1].parameters(), "lr": 0.1}], lr=0.01)
    assert kit.make_state(model, optimizer).optimizer is optimizer


def test_a_scheduler_of_another_optimizer_is_refused():
    model = nn.Linear(1, 1)
    one, other = (SGD(model.parameters(), lr=0.01) for _ in range(2))
    with pytest.raises(ValueError, match="the scheduler holds another optimizer"):
        kit.make_state(model, one, scheduler=lr_scheduler.StepLR(other, 1))
    scheduler = lr_scheduler.StepLR(one, 1)
    assert kit.make_state(model, one, scheduler=scheduler).scheduler is scheduler


def test_only_schedulers_of_single_steps_advance_by_step():
    model = nn.Linear(1, 1)
    optimizer = Adam(model.parameters(), lr=0.01)
    for per_step, scheduler in (
        (True, lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=9)),
        (True, lr_scheduler.CyclicLR(optimizer, 0.01, 0.1, cycle_momentum=False)),
        (False, lr_scheduler.StepLR(optimizer, 1)),
        (False, lr_scheduler.CosineAnnealingLR(optimizer, 10)),
        (False, lr_scheduler.ReduceLROnPlateau(optimizer)),
    ):
        state = kit.make_state(model, optimizer, scheduler=scheduler)
        assert state.per_step is per_step
        if not isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
            other = {"scheduler": scheduler, "per_step": not per_step}
            assert kit.make_state(model, optimizer, **other).per_step is not per_step


def test_only_fp16_scales_the_gradient():
    model = nn.Linear(1, 1)
    optimizer = SGD(model.parameters(), lr=0.01)
    for precision, scales in (("bf16", False), ("fp16", True)):
        wrapped = kit.amp(model, precision)
        assert kit.make_state(wrapped, optimizer).scaler.is_enabled() is scales


# ------------------------------------------------------------------------- summary


def rows(model):
    """The summary's rows by name, and its last line."""
    lines = kit.summary(model).splitlines()
    cells = [[cell.strip() for cell in line.split("  ") if cell] for line in lines[2:]]
    return {row[0]: [c for c in row[1:] if c] for row in cells[:-1]}, lines[-1]


def test_the_tutorials_model_is_shown_with_its_values():
    torch.manual_seed(42)
    shown, total = rows(nn.Linear(1, 1))
    assert shown == {
        "weight": ["(1, 1)", "1", "yes", "0.7645"],
        "bias": ["(1,)", "1", "yes", "0.83"],
    }
    assert total == "2 parameters, 2 of them trained"


def test_every_parameter_and_buffer_has_its_shape_count_and_part():
    model = nn.Sequential(nn.Linear(300, 50), nn.BatchNorm1d(50), nn.Linear(50, 1))
    model[2].requires_grad_(False)
    shown, total = rows(model)
    assert list(shown) == [
        *(name for name, _ in model.named_parameters()),
        *(name for name, _ in model.named_buffers()),
    ]
    for name, tensor in model.state_dict().items():
        shape, count, trains = shown[name][:3]
        assert shape == str(tuple(tensor.shape)) and count == str(tensor.numel())
        frozen = "no" if name.startswith("2.") else "yes"
        buffer = name in dict(model.named_buffers())
        assert trains == ("buffer" if buffer else frozen)
    count = sum(p.numel() for p in model.parameters())
    assert total == f"{count:,} parameters, {count - 51:,} of them trained"


def test_many_values_are_shown_as_their_mean_and_deviation():
    model = nn.Linear(1000, 20)
    wide = model.weight.detach().double()
    value = f"mean {wide.mean():.4g}, std {wide.std():.4g}"
    assert rows(model)[0]["weight"][-1] == value
    assert all(len(line) < 100 for line in kit.summary(model).splitlines())


def test_the_summary_of_a_wrapped_model_is_the_bare_models():
    model = nn.Linear(3, 2)
    assert kit.summary(kit.amp(model, "bf16")) == kit.summary(model)


def test_a_model_without_parameters_has_a_summary():
    assert rows(nn.ReLU()) == ({}, "0 parameters, 0 of them trained")


def test_the_summary_leaves_the_model_as_it_was():
    model = nn.Sequential(nn.Linear(3, 2), nn.Dropout()).train()
    before = copy.deepcopy(model.state_dict())
    kit.summary(model)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert model.training and model[0].weight.requires_grad


# --------------------------------------------------------------------- Standardize


def table(n=500):
    """Columns of many scales; the last two are constant."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(n, 5, generator=generator)
    scaled = noise * torch.tensor([1.0, 1e-3, 1e6, 1e-20, 0.01])
    shifted = scaled + torch.tensor([0.0, 5.0, -1e7, 0.0, 1000.0])
    return torch.cat([shifted, torch.full((n, 2), 0.1) * torch.tensor([1, 0])], 1)


def test_standardised_columns_are_those_of_scikit_learn_in_float64():
    X = table()
    standardize = kit.Standardize(X)
    scaler = StandardScaler().fit(X[:, :5].double().numpy())
    for name, expected in (("mean", scaler.mean_), ("std", scaler.scale_)):
        buffer = getattr(standardize, name)
        assert buffer.dtype == torch.float32 and buffer.shape == (7,)
        torch.testing.assert_close(
            buffer[:5], torch.tensor(expected).float(), rtol=1e-6, atol=0
        )
    z = standardize(X)
    assert z.dtype == torch.float32
    expected = torch.tensor(scaler.transform(X[:, :5].double().numpy())).float()
    # the mean 1000 of a column of deviation 0.01 is known to half a float32 step
    torch.testing.assert_close(z[:, :5], expected, rtol=1e-5, atol=0.004)


def test_a_large_mean_leaves_a_small_deviation_right():
    for n in (1000, 30_000):
        X = 1000 + table(n)[:, :1] * 0.01  # sums of squares in float32 would be lost
        z = kit.Standardize(X)(X).double()
        assert float(z.mean()) == pytest.approx(0, abs=0.004)
        assert float(z.std(correction=0)) == pytest.approx(1, abs=1e-3)


def test_a_constant_column_becomes_zero_and_is_left_in_scale():
    standardize = kit.Standardize(table())
    assert standardize.std[5:].tolist() == [1, 1]
    assert torch.equal(standardize(table())[:, 5:], torch.zeros(500, 2))
    new = standardize(table() + 2)[:, 5:]
    torch.testing.assert_close(new, torch.full((500, 2), 2.0))
    one = kit.Standardize(torch.tensor([[3.0, -4.0]]))
    assert one(torch.tensor([[3.0, -3.0]])).tolist() == [[0, 1]]


def test_constant_columns_of_any_value_and_length_have_deviation_zero():
    values = torch.tensor([0.1, 1 / 3, -1e-30, 3e38, 16777217.0, 12345.678])
    for n in (1, 2, 3, 7, 100, 4097):
        standardize = kit.Standardize(values.expand(n, -1))
        assert standardize.std.tolist() == [1] * 6
        assert standardize(values).tolist() == [0] * 6


def test_the_inverse_leads_back():
    X = table()
    there, back = kit.Standardize(X), kit.Standardize(X, inverse=True)
    torch.testing.assert_close(back(there(X)), X, rtol=1e-5, atol=0)
    assert torch.equal(back(torch.zeros(7)), back.mean)


def test_images_are_standardised_pixel_by_pixel():
    images = table().reshape(250, 2, 7)
    standardize = kit.Standardize(images)
    assert standardize.mean.shape == standardize.std.shape == (2, 7)
    flat = kit.Standardize(images.flatten(1))
    assert torch.equal(standardize(images).flatten(1), flat(images.flatten(1)))


def test_the_statistics_are_buffers_that_travel_and_do_not_train():
    first, second = kit.Standardize(table()), kit.Standardize(torch.zeros(1, 7))
    assert not list(first.parameters())
    assert list(first.state_dict()) == ["mean", "std"]
    second.load_state_dict(first.state_dict())
    assert torch.equal(second(table()), first(table()))
