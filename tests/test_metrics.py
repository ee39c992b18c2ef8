"""Metrics: scikit-learn's numbers however the rows are batched, or one clear line."""

import math

import numpy as np
import pytest
import sklearn.metrics as sk
import torch
import torchmetrics as tm
from helpers import refused
from torch import nn
from torch.nn import functional as F

import kit

NAN, INF = math.nan, math.inf


def close(expected):
    return pytest.approx(expected, rel=1e-12, abs=1e-12)


def regression_of_sklearn(prediction, target):
    y, p = target.double().numpy(), prediction.double().numpy()
    mse = sk.mean_squared_error(y, p)
    mae, r2 = sk.mean_absolute_error(y, p), sk.r2_score(y, p)
    return {"mae": mae, "mse": mse, "rmse": math.sqrt(mse), "r2": r2}


def classes_of_sklearn(predicted, target):
    y, p = target.numpy(), predicted.numpy()
    scores = sk.precision_recall_fscore_support(y, p, average="macro", zero_division=0)
    names = ("precision", "recall", "f1")
    return {"accuracy": sk.accuracy_score(y, p)} | dict(zip(names, scores))


def random_regression(seed, shape=None, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    n = int(torch.randint(2, 200, (), generator=generator))
    target, noise = torch.randn(2, *(shape or (n, 1)), generator=generator)
    return (target * 0.8 + noise * 0.3 + 1).to(dtype), target.to(dtype)


def random_classes(seed, classes=4):
    generator = torch.Generator().manual_seed(seed)
    n = int(torch.randint(1, 100, (), generator=generator))
    target = torch.randint(classes, (n,), generator=generator)
    scores = torch.randn(n, classes, generator=generator)
    return scores + F.one_hot(target, classes) * (seed % 4), target


@pytest.mark.parametrize("shape", [(71,), (71, 1), (71, 3)])
def test_a_regression_is_scikit_learns(shape):
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        data = random_regression(0, shape, dtype)
        ours = kit.metrics(*data)
        assert list(ours) == ["mae", "mse", "rmse", "r2"]
        assert ours == close(regression_of_sklearn(*data))
        assert all(type(value) is float for value in ours.values())


def test_targets_of_1e6_plus_minus_1_keep_their_r2():
    torch.manual_seed(0)
    target = 1e6 + torch.rand(10_000, 1) * 2 - 1  # float32 keeps 1/16 of it
    prediction = target + torch.randn(10_000, 1) * 0.3
    expected = regression_of_sklearn(prediction, target)
    assert 0.5 < expected["r2"] < 0.9
    assert kit.metrics(prediction, target) == close(expected)


@pytest.mark.parametrize("value", [0.0, 0.1, 1 / 3, -7.7, 1e6 + 0.1])
def test_a_constant_target_has_an_r2_of_1_or_0(value):
    for n in (2, 3, 7, 10, 1000):
        target = torch.full((n, 1), value)
        wrong = target.clone()
        wrong[0] += 1
        assert kit.metrics(target, target)["r2"] == 1.0
        assert kit.metrics(wrong, target)["r2"] == 0.0


def test_one_sample_has_errors_and_no_r2():
    ours = kit.metrics(torch.tensor([[3.0]]), torch.tensor([[1.0]]))
    assert math.isnan(ours.pop("r2"))
    assert ours == {"mae": 2.0, "mse": 4.0, "rmse": 2.0}


@pytest.mark.parametrize("seed", range(10))
def test_a_classification_is_scikit_learns(seed):
    scores, target = random_classes(seed, 2 + seed % 6)
    if seed % 2:  # a class that is never predicted, and one that never occurs
        scores[:, 0] -= 99
        scores = F.pad(scores, (0, 1), value=-99.0)
    predicted = scores.argmax(1)
    expected = classes_of_sklearn(predicted, target)
    for prediction in (scores, scores.softmax(1), predicted, predicted.int()):
        ours = kit.metrics(prediction, target)
        assert ours == close(expected) and list(ours) == list(expected)
    labels = list(range(scores.shape[1]))
    theirs = sk.confusion_matrix(target.numpy(), predicted.numpy(), labels=labels)
    assert np.array_equal(kit.confusion_matrix(scores, target).numpy(), theirs)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool])
def test_binary_logits_have_their_threshold_at_0(dtype):
    scores, target = random_classes(2, 2)
    logits = scores[:, 1:] - scores[:, :1]
    expected = close(classes_of_sklearn((logits[:, 0] > 0).long(), target))
    for prediction in (logits, logits[:, 0], logits * 1e30 * 1e30):
        assert kit.metrics(prediction, target.to(dtype)) == expected


def test_nan_never_looks_like_a_number():
    for column in ([1.0, 2.0, NAN], [5.0, 5.0, NAN]):
        bad, good = torch.tensor(column), torch.tensor(column).nan_to_num(3.0)
        for prediction, target in ((bad, good), (good, bad), (bad, bad)):
            assert all(map(math.isnan, kit.metrics(prediction, target).values()))
    target = torch.tensor([0, 1, 1, 0, 1, 0])
    for scores in (torch.randn(6, 3), torch.randn(6, 1), torch.randn(6)):
        scores.flatten()[2] = NAN
        assert all(map(math.isnan, kit.metrics(scores, target).values()))
        with refused("^prediction must be .*NaN"):
            kit.confusion_matrix(scores, target)


@pytest.mark.parametrize(
    "prediction, target",
    [
        (torch.zeros(2, 3), torch.tensor([0, 3])),  # a class without a score
        (torch.zeros(2, 1), torch.tensor([0, 2])),
        (torch.tensor([0, 1]), torch.tensor([0, -1])),
        (torch.zeros(3, 3), torch.tensor([0, 1])),
        (torch.zeros(2, 3), torch.tensor([[0], [1]])),
        (torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64)),  # no samples
        (torch.ones(5), torch.ones(5, 1)),  # would broadcast
        (torch.ones(5, 1), torch.ones(5)),
    ],
)
def test_shapes_and_classes_that_do_not_fit_are_one_line(prediction, target):
    functions = [kit.metrics]
    functions += [] if target.is_floating_point() else [kit.confusion_matrix]
    for function in functions:
        with refused("must be .*, got"):
            function(prediction, target)


# --------------------------------------------------------------- through evaluate


def batches(data, size):
    return list(zip(*(t.split(size) for t in data)))


def scores(loader, metrics, loss_fn=F.mse_loss):
    """The row of an evaluation that leaves the predictions as they are, but its loss."""
    row = kit.evaluate(nn.Identity(), loader, loss_fn=loss_fn, metrics=metrics)
    del row["loss"]
    return row


@pytest.mark.parametrize("size", [1, 7, 50, 1000])
def test_a_regression_is_the_same_in_any_batches(size):
    data = random_regression(size)
    loader, expected = batches(data, size), regression_of_sklearn(*data)
    assert scores(loader, kit.metrics) == close(expected)
    errors = {"mae": tm.MeanAbsoluteError(), "mse": tm.MeanSquaredError()}
    errors |= {"rmse": tm.MeanSquaredError(squared=False), "r2": tm.R2Score()}
    collection = tm.MetricCollection(errors)
    collection.update(data[1] + 1, data[1])  # the reader's own use, before
    theirs = scores(loader, collection)
    assert theirs == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_a_metric_goes_by_its_class_and_a_collection_by_keys():
    data = random_regression(0)
    loader, r2 = batches(data, 7), tm.functional.r2_score(*data).item()
    assert scores(loader, tm.R2Score()) == {"R2Score": pytest.approx(r2, abs=1e-6)}
    both = tm.MetricCollection([tm.R2Score(), tm.MeanSquaredError()], prefix="my_")
    assert scores(loader, both).keys() == {"my_R2Score", "my_MeanSquaredError"}
    alone = scores(loader, tm.functional.r2_score)  # a function of all outputs
    assert alone == {"r2_score": r2} and type(alone["r2_score"]) is float


@pytest.mark.parametrize(
    "metric, name",
    [
        (tm.classification.MulticlassConfusionMatrix(4), "MulticlassConfusionMatrix"),
        (kit.confusion_matrix, "confusion_matrix"),
        (lambda p, y: {"rates": y.bincount().tolist()}, "rates"),
    ],
)
def test_what_is_not_a_single_number_is_named(metric, name):
    with refused(f"^{name} must be a single number"):
        scores([random_classes(0)], metric, F.cross_entropy)
