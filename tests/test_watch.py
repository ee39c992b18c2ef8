"""Watching a run: progress lines, and figures without a display or a window."""

import math
import re
import sys
import time

import pytest
from helpers import make_state, refused

import kit

NAN = math.nan


def history(**columns):
    """Rows with these columns, and the usual ones beside."""
    n = len(next(iter(columns.values())))
    rows = [{"epoch": i + 1, "step": 3 * i + 3, "lr": 0.1 / (i + 1)} for i in range(n)]
    for key, values in columns.items():
        for row, value in zip(rows, values, strict=True):
            row[key] = value
    return tuple(row | {"seconds": 0.1} for row in rows)


# ------------------------------------------------------------------------ progress


def states(n, **config):
    """The states of a run after each of its n epochs."""
    losses = [1 / (i + 1) for i in range(n)]
    rows, state = history(train_loss=losses, val_loss=losses), make_state()
    return [state._replace(history=rows[: i + 1], config=config) for i in range(n)]


LINE = r"epoch 300/300  train_loss 0\.00333\d*  val_loss 0\.00333\d*  30\.0 s"


@pytest.mark.parametrize("told", [{}, {"epochs": 300}])
def test_progress_is_at_most_a_line_a_second_and_the_last(told, capsys):
    for state in states(300, **({} if told else {"epochs": 300})):
        kit.progress(state, **told)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 9 and re.fullmatch(LINE, lines[-1])


def test_progress_speaks_again_after_a_second(capsys):
    first, second, third = states(3)  # how many there will be is not known
    for state in (first, second):
        time.sleep(1.05)
        kit.progress(state)
    kit.progress(third)  # within the same second as the one before
    printed = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in printed] == ["epoch 1", "epoch 2"]


def test_progress_rewrites_its_own_line_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    rewrites = re.compile(r"\r|\x1b\[1?A")
    for run in range(2):
        time.sleep(1.05)
        print("mine")
        for state in states(2, epochs=2):
            kit.progress(state)
        first, last = re.split("(?=epoch 2/2)", capsys.readouterr().out)
        assert "epoch 1/2" in first and last.startswith("epoch 2/2  train_loss")
        assert rewrites.search(first[first.index("epoch 1/2") :])
        assert not rewrites.search(first[: first.index("epoch 1/2")]), run


# --------------------------------------------------------------------- plot_history


def lines(figure):
    """Every curve of a column as {column: (axes, x, y)}."""
    found = {}
    for axes in figure.axes:
        for line in axes.lines:
            if not line.get_label().startswith("best"):
                found[line.get_label()] = (axes, line.get_xdata(), line.get_ydata())
    return found


def marks(axes):
    """Which epochs are marked as the best."""
    best = [line for line in axes.lines if line.get_label().startswith("best")]
    return [float(line.get_xdata()[0]) for line in best]


def test_every_column_is_a_curve_in_a_labelled_panel():
    columns = {"train_loss": [3.0, 2.0], "val_loss": [4.0, 3.0], "val_r2": [0.1, 0.5]}
    rows = history(**columns)
    figure = kit.plot_history(rows)
    assert all(axes.get_ylabel() for axes in figure.axes)
    curves = lines(figure)
    assert set(curves) == {*columns, "lr"}
    for key, (_, x, y) in curves.items():
        assert list(x) == [1, 2] and list(y) == [row[key] for row in rows]
    assert curves["train_loss"][0] is curves["val_loss"][0]
    panels = {axes for axes, _, _ in curves.values()}
    assert len(panels) == len(figure.axes) == 3  # loss, r2, lr


@pytest.mark.parametrize(
    "columns, best",
    [
        ({"train_loss": [3.0, 2.0, 1.0], "val_loss": [3.0, 1.0, 2.0]}, 2),
        ({"train_loss": [3.0, 2.0, 1.0]}, 3),
        ({"train_loss": [1.0, 2.0, 2.0], "val_loss": [NAN, 2.0, 2.0]}, 2),
        ({"train_loss": [NAN, NAN]}, None),
    ],
)
def test_the_best_epoch_is_marked_in_every_panel(columns, best):
    figure = kit.plot_history(history(**columns))
    assert all(marks(axes) == ([best] if best else []) for axes in figure.axes)


def test_a_validation_may_begin_or_end_amid_the_run():
    rows = history(train_loss=[3.0, 2.0, 1.0])
    rows[1]["val_loss"], rows[2]["val_loss"] = 1.0, 2.0
    figure = kit.plot_history(rows)
    _, x, y = lines(figure)["val_loss"]
    assert [(a, b) for a, b in zip(x, y) if not math.isnan(b)] == [(2, 1.0), (3, 2.0)]
    assert marks(figure.axes[0]) == [2]
    del rows[2]["val_loss"]
    assert set(lines(kit.plot_history(rows))) == {"train_loss", "val_loss", "lr"}


def scale(**columns):
    return kit.plot_history(history(**columns)).axes[0].get_yscale()


def test_the_scale_is_logarithmic_where_losses_span_much():
    assert scale(train_loss=[100.0, 1.0]) == "log"
    assert scale(train_loss=[100.0, 1.0], val_loss=[NAN, 1.0]) == "log"
    for narrow in ([5.0, 5.0], [NAN, NAN], [math.inf, 1.0]):
        assert scale(train_loss=narrow, val_loss=[3.0, 2.0]) == "linear"
    for low in (0.0, -5.0):  # which a logarithmic scale would hide
        assert scale(train_loss=[100.0, 1.0, low]) == "linear"
        assert scale(train_loss=[100.0, 1.0], val_loss=[1.0, low]) == "linear"


def test_columns_that_say_nothing_new_take_no_panel():
    both = {"val_mse": [4.0, 1.0], "val_rmse": [2.0, 1.0]}
    figure = kit.plot_history(history(train_loss=[1.0, 2.0], lr=[0.1, 0.1], **both))
    assert set(lines(figure)) == {"train_loss", "val_rmse"} and len(figure.axes) == 2


def test_an_empty_history_is_one_line():
    with refused("^rows of history must"):
        kit.plot_history([])
