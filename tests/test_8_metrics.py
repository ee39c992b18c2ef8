"""Section 8, metrics: scikit-learn's numbers, or nan, or one clear line."""

import math
import weakref

import numpy as np
import pytest
import sklearn.metrics as sk
import torch
import torchmetrics as tm
from torch import nn
from torch.nn import functional as F

import kit


def close(expected):
    return pytest.approx(expected, rel=1e-12, abs=1e-12)


def regression_of_sklearn(prediction, target):
    y, p = target.numpy(), prediction.numpy()
    mse = sk.mean_squared_error(y, p)
    return {
        "mae": sk.mean_absolute_error(y, p),
        "mse": mse,
        "rmse": math.sqrt(mse),
        "r2": sk.r2_score(y, p),
    }


def classes_of_sklearn(predicted, target):
    y, p = target.numpy(), predicted.numpy()
    scores = sk.precision_recall_fscore_support(y, p, average="macro", zero_division=0)
    names = ("precision", "recall", "f1")
    return {"accuracy": sk.accuracy_score(y, p)} | dict(zip(names, scores))


@pytest.mark.parametrize("seed", range(40))
def test_regression_metrics_are_scikit_learns(seed):
    generator = torch.Generator().manual_seed(seed)
    n = int(torch.randint(2, 200, (), generator=generator))
    shape = [(n,), (n, 1), (n, 3)][seed % 3]
    scale = 10.0 ** (seed % 9 - 4)
    target = torch.randn(shape, generator=generator, dtype=torch.float64) * scale
    noise = torch.randn(shape, generator=generator, dtype=torch.float64) * scale
    prediction = target * 0.8 + noise * 0.3 + scale
    ours = kit.metrics(prediction, target)
    theirs = regression_of_sklearn(prediction, target)
    assert list(ours) == ["mae", "mse", "rmse", "r2"]
    assert ours == {key: pytest.approx(v, rel=1e-12) for key, v in theirs.items()}
    assert all(type(v) is float for v in ours.values())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision_is_computed_in_float64(dtype):
    torch.manual_seed(0)
    prediction, target = torch.randn(2, 1000, 1).to(dtype)
    expected = regression_of_sklearn(prediction.double(), target.double())
    assert kit.metrics(prediction, target) == close(expected)


def test_targets_of_1e6_plus_minus_1_keep_their_r2():
    torch.manual_seed(0)
    target = 1e6 + torch.rand(10_000, 1) * 2 - 1  # float32 keeps 1/16 of it
    prediction = target + torch.randn(10_000, 1) * 0.3
    ours = kit.metrics(prediction, target)
    expected = regression_of_sklearn(prediction.double(), target.double())
    assert 0.5 < expected["r2"] < 0.9
    assert ours == close(expected)


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, 1 / 3, -7.7, 1e6 + 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_constant_target_has_r2_of_1_where_all_is_right_and_else_0(value, dtype):
    for n in (2, 3, 6, 7, 10, 11, 50, 1000):
        target = torch.full((n, 1), value, dtype=dtype)
        assert kit.metrics(target, target)["r2"] == 1.0
        wrong = target.clone()
        wrong[0] += 1
        assert kit.metrics(wrong, target)["r2"] == 0.0


def test_one_constant_column_of_several_counts_as_scikit_learn_counts_it():
    target = torch.tensor([[1.0, 5.0], [2.0, 5.0], [4.0, 5.0]])
    prediction = torch.tensor([[1.0, 5.0], [2.5, 5.0], [4.0, 6.0]])
    ours = kit.metrics(prediction, target)
    expected = regression_of_sklearn(prediction.double(), target.double())
    assert ours == close(expected)


@pytest.mark.parametrize("shape", [(1,), (1, 1)])
def test_one_sample_has_errors_and_an_r2_of_nan(shape):
    ours = kit.metrics(torch.full(shape, 3.0), torch.full(shape, 1.0))
    assert math.isnan(ours.pop("r2"))
    assert ours == {"mae": 2.0, "mse": 4.0, "rmse": 2.0}


@pytest.mark.parametrize("shape", [(0,), (0, 1), (0, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_no_samples_is_one_clear_line(shape, dtype):
    with pytest.raises(ValueError, match="^samples must be at least 1, got 0$"):
        kit.metrics(torch.zeros(shape), torch.zeros(shape[:1], dtype=dtype))


def test_a_confusion_matrix_of_no_samples_is_one_clear_line():
    with pytest.raises(ValueError, match="^[^\n]*at least[^\n]*$"):
        kit.confusion_matrix(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))


@pytest.mark.parametrize("column", [[1.0, 2.0, 4.0], [5.0, 5.0, 5.0]])
@pytest.mark.parametrize("at", [0, 2])
def test_a_regression_of_nan_never_looks_like_a_number(column, at):
    good, bad = torch.tensor(column), torch.tensor(column)
    bad[at] = math.nan
    for prediction, target in ((bad, good), (good, bad), (bad, bad)):
        assert all(map(math.isnan, kit.metrics(prediction, target).values()))


def test_an_infinite_prediction_has_infinite_errors():
    prediction, target = torch.tensor([1.0, math.inf]), torch.tensor([1.0, 2.0])
    errors = {"mae": math.inf, "mse": math.inf, "rmse": math.inf, "r2": -math.inf}
    assert kit.metrics(prediction, target) == errors


@pytest.mark.parametrize("seed", range(3))
def test_a_classification_of_nan_never_looks_like_a_number(seed):
    for scores in (torch.randn(6, 3), torch.randn(6, 1), torch.randn(6)):
        scores.flatten()[seed] = math.nan
        target = torch.tensor([0, 1, 1, 0, 1, 0])
        assert all(map(math.isnan, kit.metrics(scores, target).values()))
        with pytest.raises(ValueError, match="^prediction must be numbers, got NaN$"):
            kit.confusion_matrix(scores, target)


@pytest.mark.parametrize(
    "shapes", [((5,), (5, 1)), ((5, 1), (5,)), ((5, 2), (5, 1)), ((4, 1), (5, 1))]
)
def test_shapes_that_would_broadcast_are_refused(shapes):
    line = r"^prediction must be of the target's shape, got \(\d.*\) for \(\d.*\)$"
    with pytest.raises(ValueError, match=line):
        kit.metrics(*map(torch.ones, shapes))


def test_regression_metrics_take_predictions_with_a_graph():
    x = torch.tensor([[1.0], [2.0]], requires_grad=True)
    assert kit.metrics(x * 1, torch.tensor([[1.0], [3.0]]))["mae"] == 0.5


@pytest.mark.parametrize("seed", range(40))
def test_classification_metrics_are_scikit_learns(seed):
    generator = torch.Generator().manual_seed(seed)

    def draw(*args):
        return torch.randint(*args, generator=generator)

    n, classes = int(draw(1, 100, ())), int(draw(2, 8, ()))
    target = draw(classes, (n,))
    scores = torch.randn(n, classes, generator=generator)
    scores += F.one_hot(target, classes) * (seed % 4)
    predicted = scores.argmax(1)
    expected = classes_of_sklearn(predicted, target)
    assert list(kit.metrics(scores, target)) == list(expected)
    for prediction in (scores, scores.softmax(1), predicted):
        ours = kit.metrics(prediction, target)
        assert ours == close(expected)
        assert all(type(v) is float for v in ours.values())
    counts = kit.confusion_matrix(scores, target)
    labels = list(range(classes))
    theirs = sk.confusion_matrix(target.numpy(), predicted.numpy(), labels=labels)
    assert np.array_equal(counts.numpy(), theirs)


@pytest.mark.parametrize("seed", range(20))
def test_binary_logits_are_scikit_learns_with_a_threshold_at_0(seed):
    generator = torch.Generator().manual_seed(seed)
    n = int(torch.randint(1, 60, (), generator=generator))
    target = torch.randint(2, (n,), generator=generator)
    if seed == 0:
        target.zero_()  # one class only
    logits = torch.randn(n, 1, generator=generator) + target[:, None] - 0.5
    predicted = (logits[:, 0] > 0).long()
    assert kit.metrics(logits, target) == close(classes_of_sklearn(predicted, target))
    counts = kit.confusion_matrix(logits, target)
    theirs = sk.confusion_matrix(target.numpy(), predicted.numpy(), labels=[0, 1])
    assert np.array_equal(counts.numpy(), theirs)


def test_the_mean_over_classes_leaves_out_those_that_do_not_occur():
    target = torch.tensor([0, 0, 5])
    scores = F.one_hot(torch.tensor([0, 2, 5]), 9).float()
    ours = kit.metrics(scores, target)
    assert ours["recall"] == close((0.5 + 0 + 1) / 3)  # 2 is predicted, so it occurs
    assert ours == close(classes_of_sklearn(scores.argmax(1), target))
    assert kit.confusion_matrix(scores, target).shape == (9, 9)


def test_a_perfect_classification_of_one_class_is_1_everywhere():
    ours = kit.metrics(torch.tensor([3, 3]), torch.tensor([3, 3]))
    assert ours == {"accuracy": 1.0, "precision": 1.0, "recall": 1.0, "f1": 1.0}


INTEGERS = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]


@pytest.mark.parametrize("dtype", INTEGERS)
def test_class_numbers_of_any_integer_type_count_alike(dtype):
    generator = torch.Generator().manual_seed(0)
    predicted, target = torch.randint(100, (2, 500), generator=generator)
    expected = classes_of_sklearn(predicted, target)
    for mine, other in ((dtype, torch.int64), (torch.int64, dtype), (dtype, dtype)):
        assert kit.metrics(predicted.to(mine), target.to(other)) == close(expected)


def test_bool_targets_are_the_classes_0_and_1():
    target = torch.tensor([True, False, True])
    for prediction in (torch.tensor([[2.0], [-1.0], [-2.0]]), torch.tensor([1, 0, 0])):
        expected = kit.metrics(prediction, target.long())
        assert kit.metrics(prediction, target) == expected
        assert expected["accuracy"] == close(2 / 3)


@pytest.mark.parametrize(
    "scores",
    [
        torch.tensor([[math.inf, 0.0], [-1.0, 2.0]]),
        torch.tensor([[0.0, -math.inf], [-math.inf, 0.0]]),
        torch.tensor([[-math.inf], [math.inf]]),
    ],
)
def test_infinite_scores_are_as_good_as_large_ones(scores):
    assert kit.confusion_matrix(scores, torch.tensor([0, 1])).tolist() == [
        [1, 0],
        [0, 1],
    ]
    assert kit.metrics(scores, torch.tensor([0, 1]))["accuracy"] == 1.0


@pytest.mark.parametrize(
    "prediction, target",
    [
        (torch.zeros(2, 3), torch.tensor([0, 3])),  # a class without a score
        (torch.zeros(2, 3), torch.tensor([0, -1])),
        (torch.zeros(2, 1), torch.tensor([0, 2])),
        (torch.tensor([0, -1]), torch.tensor([0, 1])),
        (torch.tensor([0, 1]), torch.tensor([0, -1])),
        (torch.zeros(3, 3), torch.tensor([0, 1])),
        (torch.zeros(3, 1), torch.tensor([0, 1])),
        (torch.zeros(3, dtype=torch.int64), torch.tensor([0, 1])),
        (torch.zeros(2, 1, dtype=torch.int64), torch.tensor([0, 1])),
        (torch.zeros(2, 3), torch.tensor([[0], [1]])),
    ],
)
def test_classes_and_shapes_that_do_not_fit_are_one_clear_line(prediction, target):
    for function in (kit.metrics, kit.confusion_matrix):
        with pytest.raises(ValueError, match=r"^[^\n]*must be[^\n]*got[^\n]*$"):
            function(prediction, target)


def regression_data():
    torch.manual_seed(0)
    return torch.randn(71, 2) + 1e4, torch.randn(71, 2) + 1e4


def class_data():
    torch.manual_seed(0)
    return torch.randn(71, 4), torch.randint(4, (71,))


def binary_data():
    torch.manual_seed(0)
    return torch.randn(71, 1), torch.randint(2, (71,))


DATA = {
    "regression": (regression_data, F.mse_loss),
    "classes": (class_data, F.cross_entropy),
    "binary": (
        binary_data,
        lambda p, y: F.binary_cross_entropy_with_logits(p[:, 0], y.float()),
    ),
}


@pytest.mark.parametrize("sizes", [(1,) * 71, (30, 2, 38, 1), (64, 7), (71,)])
@pytest.mark.parametrize("kind", DATA)
def test_evaluate_gives_the_same_metrics_for_any_batching(kind, sizes):
    make, loss_fn = DATA[kind]
    data = make()
    loader = list(zip(*(t.split(list(sizes)) for t in data)))
    row = kit.evaluate(nn.Identity(), loader, loss_fn=loss_fn, metrics=kit.metrics)
    whole = loss_fn(
        data[0].double(), data[1].double() if kind != "classes" else data[1]
    )
    assert row.pop("loss") == pytest.approx(whole.item(), rel=1e-6)
    assert row == kit.metrics(*data)


# ------------------------------------------------- torchmetrics, and any batching


def random_batches(data, seed):
    """The data in batches of uneven sizes, one of a single sample among them."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [1]
    while (rest := len(data[1]) - sum(sizes)) > 0:
        sizes.append(min(rest, int(torch.randint(1, 40, (), generator=generator))))
    order = torch.randperm(len(sizes), generator=generator)
    sizes = [sizes[i] for i in order]
    return list(zip(*(t.split(sizes) for t in data)))


def scores(loader, metrics, loss_fn=F.mse_loss):
    """The row of an evaluation that leaves the predictions as they are, but its loss."""
    row = kit.evaluate(nn.Identity(), loader, loss_fn=loss_fn, metrics=metrics)
    del row["loss"]
    return row


def regression_of_torchmetrics(dtype):
    errors = {"mae": tm.MeanAbsoluteError(), "mse": tm.MeanSquaredError()}
    errors |= {"rmse": tm.MeanSquaredError(squared=False), "r2": tm.R2Score()}
    return tm.MetricCollection(errors).set_dtype(dtype)


def classes_of_torchmetrics(classes):
    c = tm.classification
    options = {"num_classes": classes, "average": "macro"}
    return tm.MetricCollection(
        {
            "accuracy": c.MulticlassAccuracy(num_classes=classes, average="micro"),
            "precision": c.MulticlassPrecision(**options),
            "recall": c.MulticlassRecall(**options),
            "f1": c.MulticlassF1Score(**options),
        }
    )


def random_regression(seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    n = int(torch.randint(2, 200, (), generator=generator))
    target, noise = torch.randn(2, n, 1, generator=generator, dtype=dtype)
    return target * 0.8 + noise * 0.3, target


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("dtype, digits", [(torch.float64, 12), (torch.float32, 6)])
def test_a_regression_is_scikit_learns_and_torchmetrics_in_any_batches(
    seed, dtype, digits
):
    prediction, target = random_regression(seed, dtype)
    loader = random_batches((prediction, target), seed)
    expected = regression_of_sklearn(prediction.double(), target.double())
    assert scores(loader, kit.metrics) == close(expected)
    theirs = scores(loader, regression_of_torchmetrics(dtype))
    assert theirs == pytest.approx(expected, rel=10**-digits, abs=10**-digits)


@pytest.mark.parametrize("seed", range(20))
def test_a_classification_is_scikit_learns_and_torchmetrics_in_any_batches(seed):
    generator = torch.Generator().manual_seed(seed)
    n, classes = torch.randint(2, 9, (2,), generator=generator).tolist()
    target = torch.randint(classes, (n * 17,), generator=generator)
    logits = torch.randn(n * 17, classes, generator=generator)
    logits += F.one_hot(target, classes) * (seed % 4)
    loader = random_batches((logits, target), seed)
    expected = classes_of_sklearn(logits.argmax(1), target)
    assert scores(loader, kit.metrics, F.cross_entropy) == close(expected)
    theirs = scores(loader, classes_of_torchmetrics(classes), F.cross_entropy)
    assert theirs == pytest.approx(expected, abs=1e-6)  # which divides in float32


def test_a_metric_goes_by_its_class_and_a_collection_by_its_own_keys():
    data = random_regression(0)
    loader = random_batches(data, 0)
    r2 = tm.functional.r2_score(*data).item()
    assert scores(loader, tm.R2Score()) == {"R2Score": pytest.approx(r2, abs=1e-6)}
    both = tm.MetricCollection([tm.R2Score(), tm.MeanSquaredError()], prefix="my_")
    assert scores(loader, both).keys() == {"my_R2Score", "my_MeanSquaredError"}
    alone = scores(loader, tm.functional.r2_score)  # a function of all outputs
    assert alone == {"r2_score": r2} and type(alone["r2_score"]) is float


class Recorder:
    """The smallest metrics object: it counts, and keeps no tensor alive."""

    def __init__(self):
        self.calls, self.gone, self.seen = [], [], None

    def reset(self):
        self.calls.append("reset")

    def update(self, prediction, target):
        self.gone.append(self.seen is None or self.seen() is None)
        self.seen = weakref.ref(prediction)
        self.calls.append(len(target))

    def compute(self):
        self.gone.append(self.seen() is None)
        self.calls.append("compute")
        return {"batches": len(self.gone) - 1}


def test_an_object_is_reset_updated_by_batch_computed_once_and_reset():
    x = torch.ones(7, 1)
    loader, recorder = list(zip(x.split(3), x.split(3))), Recorder()
    row = kit.evaluate(nn.Linear(1, 1), loader, loss_fn=F.mse_loss, metrics=recorder)
    assert recorder.calls == ["reset", 3, 3, 1, "compute", "reset"]
    assert row["batches"] == 3.0 and type(row["batches"]) is float
    assert recorder.gone == [True] * 4  # no batch's outputs outlive it


def test_a_metric_used_before_or_left_amid_an_evaluation_starts_afresh():
    data = random_regression(1)
    loader, metric = random_batches(data, 1), tm.MeanSquaredError()
    metric.update(torch.zeros(5), torch.full((5,), 1e6))
    first = scores(loader, metric)
    assert metric.update_count == 0 and metric.total == 0
    with pytest.raises(ZeroDivisionError):
        scores((1 / 0 if i else batch for i, batch in enumerate(loader)), metric)
    expected = {"MeanSquaredError": pytest.approx(F.mse_loss(*data).item(), rel=1e-6)}
    assert scores(loader, metric) == first == expected


def test_a_metric_in_fit_gives_every_epoch_the_value_it_gives_by_hand():
    torch.manual_seed(0)
    train, val = kit.split(kit.make_data(noise=0.1, seed=0))
    model = nn.Linear(1, 1)
    state = kit.make_state(model, torch.optim.SGD(model.parameters(), lr=0.1))
    loader, by_hand = kit.make_loader(val, batch_size=3), []

    def watch(state):
        metric = tm.R2Score()
        for x, y in loader:
            metric.update(kit.predict(state.model, x), y)
        by_hand.append(metric.compute().item())

    options = {"loss_fn": F.mse_loss, "epochs": 5, "metrics": tm.R2Score()}
    history = kit.fit(state, [train], loader, on_epoch=watch, **options).history
    ours = [row["val_R2Score"] for row in history]
    assert ours == by_hand and len(set(ours)) == 5


def test_eval_step_updates_an_object_and_hands_no_outputs_back():
    x, metric = torch.ones(4, 1), tm.MeanSquaredError()
    sums = kit.eval_step(nn.Identity(), (x, x + 2), loss_fn=F.mse_loss, metrics=metric)
    assert sums == {"loss": 16.0, "weight": 4}
    assert metric.compute() == 4.0


FOUR = tm.classification.MulticlassRecall(4)
EACH_OF_FOUR = tm.classification.MulticlassRecall(4, average=None)


@pytest.mark.parametrize(
    "metric, name",
    [
        (tm.classification.MulticlassConfusionMatrix(4), "MulticlassConfusionMatrix"),
        (tm.MetricCollection({"f1": FOUR, "each": EACH_OF_FOUR}), "each"),
        (kit.confusion_matrix, "confusion_matrix"),
        (lambda prediction, target: {"shares": target.bincount().tolist()}, "shares"),
        (lambda prediction, target: {"none": torch.zeros(0)}, "none"),
    ],
)
def test_what_is_not_a_single_number_is_one_line_that_names_it(metric, name):
    line = rf"^{name} must be a single number to go into a row, got shape \([\d, ]+\)"
    with pytest.raises(ValueError, match=line + r"[^\n]*$"):
        scores([class_data()], metric, F.cross_entropy)


def test_each_class_has_its_number_where_a_wrapper_names_them():
    metric = tm.ClasswiseWrapper(EACH_OF_FOUR)
    row = scores([class_data()], metric, F.cross_entropy)
    prediction, target = (t.numpy() for t in class_data())
    expected = sk.recall_score(target, prediction.argmax(1), average=None)
    assert list(row) == [f"multiclassrecall_{i}" for i in range(4)]
    assert list(row.values()) == pytest.approx(expected.tolist(), abs=1e-6)


def test_a_metric_that_draws_leaves_the_trainings_random_numbers():
    def bootstrap(prediction, target):
        rows = torch.randint(len(target), (len(target),))
        return {"mae": F.l1_loss(prediction[rows], target[rows])}

    before = torch.get_rng_state()
    loader = random_batches(random_regression(2), 2)
    for metric in (bootstrap, tm.BootStrapper(tm.MeanSquaredError(), quantile=None)):
        scores(loader, metric)
        assert torch.equal(torch.get_rng_state(), before)
