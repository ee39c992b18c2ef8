"""Section 9, watch: figures without a display, a window or anything global."""

import math
import re

import pytest
import torch

import kit

pytest.importorskip("matplotlib")
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure


def history(**columns):
    """Rows with these columns, and the usual ones beside."""
    n = len(next(iter(columns.values())))
    rows = [{"epoch": i, "step": 3 * i + 3, "lr": 0.1 / (i + 1)} for i in range(n)]
    for key, values in columns.items():
        for row, value in zip(rows, values, strict=True):
            row[key] = value
    return [row | {"seconds": 0.1} for row in rows]


def lines(figure):
    """Every labelled curve as {label: (axes, x, y)}."""
    found = {}
    for axes in figure.axes:
        for line in axes.lines:
            if not line.get_label().startswith("_"):
                found[line.get_label()] = (axes, line.get_xdata(), line.get_ydata())
    return found


def marks(axes):
    """Where the upright lines stand."""
    upright = [line for line in axes.lines if line.get_label().startswith("_")]
    return [float(line.get_xdata()[0]) for line in upright]


def test_plot_predictions_is_a_figure_with_the_tutorials_colours():
    train, test = kit.split(kit.make_data())
    for prediction in (None, test[1] + 0.1):
        figure = kit.plot_predictions(train, test, prediction)
        assert isinstance(figure, Figure)
        (axes,) = figure.axes
        expected = [(*train, "b"), (*test, "g")]
        if prediction is not None:
            expected.append((test[0], prediction, "r"))
        dots = axes.collections
        assert len(dots) == len(axes.get_legend().get_texts()) == len(expected)
        for dot, (x, y, color) in zip(dots, expected):
            points = torch.as_tensor(dot.get_offsets().data, dtype=torch.float32)
            assert torch.equal(points, torch.cat([x, y], dim=1))
            assert tuple(dot.get_facecolor()[0][:3]) == to_rgb(color)


def test_plot_predictions_takes_a_prediction_with_a_graph():
    train, test = kit.split(kit.make_data())
    model = torch.nn.Linear(1, 1)
    assert isinstance(kit.plot_predictions(train, test, model(test[0])), Figure)


def test_plot_history_is_a_figure_with_every_column_of_the_rows(tmp_path):
    rows = history(train_loss=[3.0, 2.0], val_loss=[4.0, 3.0], val_r2=[0.1, 0.5])
    figure = kit.plot_history(rows)
    assert isinstance(figure, Figure)
    curves = lines(figure)
    assert set(curves) == {"train_loss", "val_loss", "val_r2", "lr"}
    for key, (_, x, y) in curves.items():
        assert list(x) == [0, 1]
        assert list(y) == [row[key] for row in rows]
    assert curves["train_loss"][0] is curves["val_loss"][0]
    assert len({axes for axes, _, _ in curves.values()}) == len(figure.axes) == 3
    figure.savefig(tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_a_figure_of_a_real_run_can_be_drawn(tmp_path):
    model = torch.nn.Linear(1, 1)
    state = kit.make_state(model, torch.optim.SGD(model.parameters(), lr=0.01))
    train, val = kit.split(kit.make_data())
    options = {"loss_fn": torch.nn.L1Loss(), "epochs": 3, "metrics": kit.metrics}
    state = kit.fit(state, [train], [val], **options)
    kit.plot_history(state.history).savefig(tmp_path / "a.png")
    prediction = kit.predict(model, val[0])
    kit.plot_predictions(train, val, prediction).savefig(tmp_path / "b.png")
    assert {path.name for path in tmp_path.glob("*.png")} == {"a.png", "b.png"}


@pytest.mark.parametrize(
    "columns, best",
    [
        ({"train_loss": [3.0, 2.0, 1.0], "val_loss": [3.0, 1.0, 2.0]}, 1),
        ({"train_loss": [3.0, 2.0, 1.0]}, 2),
        ({"train_loss": [1.0, 2.0, 2.0], "val_loss": [math.nan, 2.0, 2.0]}, 1),
        ({"train_loss": [2.0]}, 0),
    ],
)
def test_the_best_epoch_is_marked_in_every_panel(columns, best):
    figure = kit.plot_history(history(**columns))
    assert all(marks(axes) == [best] for axes in figure.axes)
    title = figure.axes[0].get_title()
    assert re.findall(r"\d+", title) == [str(best)]


def test_no_epoch_is_marked_where_every_loss_is_nan():
    figure = kit.plot_history(history(train_loss=[math.nan, math.nan]))
    assert all(marks(axes) == [] for axes in figure.axes)


def test_the_marked_epoch_is_the_one_whose_checkpoint_is_best():
    losses = [3.0, 2.0, math.nan, 1.5, 1.5, 4.0]
    rows = history(train_loss=losses, val_loss=losses)
    best = [i for i in range(6) if kit.is_best(rows[: i + 1])][-1]
    assert marks(kit.plot_history(rows).axes[0]) == [best] == [3]


def test_rows_that_gained_a_validation_later_are_plotted_too():
    rows = history(train_loss=[3.0, 2.0, 1.0])
    rows[1]["val_loss"], rows[2]["val_loss"] = 1.0, 2.0
    figure = kit.plot_history(rows)
    _, _, y = lines(figure)["val_loss"]
    assert math.isnan(y[0]) and list(y[1:]) == [1.0, 2.0]
    assert marks(figure.axes[0]) == [1]


def test_rows_that_lost_their_validation_later_are_plotted_too():
    rows = history(train_loss=[3.0, 2.0, 1.0])
    rows[0]["val_loss"], rows[1]["val_loss"] = 1.0, 2.0
    figure = kit.plot_history(rows)
    assert set(lines(figure)) == {"train_loss", "val_loss", "lr"}


def scale(key, **columns):
    return lines(kit.plot_history(history(**columns)))[key][0].get_yscale()


def test_the_scale_is_logarithmic_only_where_the_losses_span_a_factor_of_20():
    assert scale("train_loss", train_loss=[100.0, 1.0]) == "log"
    assert scale("train_loss", train_loss=[30.0, 2.0], val_loss=[9.0, 1.0]) == "log"
    assert scale("train_loss", train_loss=[19.0, 1.0]) == "linear"
    assert scale("train_loss", train_loss=[5.0, 5.0]) == "linear"
    assert scale("train_loss", train_loss=[math.nan, math.nan]) == "linear"
    assert scale("lr", train_loss=[1.0, 1.0], lr=[0.1, 0.0001]) == "log"
    assert scale("lr", train_loss=[1.0, 1.0], lr=[0.1, 0.05]) == "linear"


def test_a_constant_learning_rate_takes_no_panel():
    figure = kit.plot_history(history(train_loss=[1.0, 1.0], lr=[0.1, 0.1]))
    assert set(lines(figure)) == {"train_loss"} and len(figure.axes) == 1


@pytest.mark.parametrize("low", [0.0, -5.0])
def test_no_value_is_hidden_by_a_logarithmic_scale(low):
    assert scale("train_loss", train_loss=[100.0, 1.0, low]) == "linear"
    columns = {"train_loss": [1.0, 1.0, 1.0], "val_r2": [low, 0.01, 0.9]}
    assert scale("val_r2", **columns) == "linear"


def test_a_value_that_is_not_finite_does_not_decide_the_scale():
    narrow, wide = [3.0, 2.0], [100.0, 1.0]
    assert scale("train_loss", train_loss=narrow, val_loss=[math.inf, 1.0]) == "linear"
    assert scale("train_loss", train_loss=wide, val_loss=[math.nan, 1.0]) == "log"


def write_font(path, text):
    """A font that has a square for each character of the text, and nothing else."""
    from fontTools.fontBuilder import FontBuilder
    from fontTools.pens.ttGlyphPen import TTGlyphPen

    def square(width):
        pen = TTGlyphPen(None)
        pen.moveTo((0, 0))
        for corner in ((0, 900), (width, 900), (width, 0)):
            pen.lineTo(corner)
        pen.closePath()
        return pen.glyph()

    names = {ord(c): f"glyph{i}" for i, c in enumerate(text)}
    order = [".notdef", *names.values()]
    font = FontBuilder(1000)
    font.setupGlyphOrder(order)
    font.setupCharacterMap(names)
    font.setupGlyf({name: square(10 if name == ".notdef" else 900) for name in order})
    font.setupHorizontalMetrics(dict.fromkeys(order, (1000, 0)))
    font.setupHorizontalHeader(ascent=900, descent=0)
    font.setupNameTable({"familyName": "SimHei", "styleName": "Regular"})
    font.setupOS2()
    font.setupPost()
    font.save(path)


def test_chinese_labels_are_drawn_by_an_installed_font_and_never_warn(tmp_path):
    from matplotlib import font_manager

    def draw(name):
        figure = kit.plot_history(history(train_loss=[2.0, 1.0], val_准确率=[0.5, 0.9]))
        figure.axes[0].set_title("损失")
        figure.savefig(tmp_path / name)
        return (tmp_path / name).read_bytes()

    before = list(font_manager.fontManager.ttflist)
    without = draw("without.png")
    write_font(tmp_path / "font.ttf", "准确率损失")
    try:
        font_manager.fontManager.addfont(tmp_path / "font.ttf")
        assert draw("with.png") != without
    finally:
        font_manager.fontManager.ttflist[:] = before
    assert draw("again.png") == without


def test_every_metric_has_a_panel_and_both_its_curves_share_it():
    names = {"train_loss": [2.0, 1.0], "val_mae": [9.0, 8.0], "val_r2": [0.1, 0.2]}
    figure = kit.plot_history(history(**names, train_mae=[7.0, 6.0]))
    curves = lines(figure)
    assert curves["val_mae"][0] is curves["train_mae"][0] is not curves["val_r2"][0]
    assert len(figure.axes) == 4  # loss, mae, r2, lr


def test_an_empty_history_is_one_clear_line():
    line = "^history must have at least one row, got none$"
    with pytest.raises(ValueError, match=line):
        kit.plot_history([])


BLOCKER = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "matplotlib":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
"""
PLOTS = """
import kit
train, test = kit.split(kit.make_data())
plots = (
    lambda: kit.plot_predictions(train, test),
    lambda: kit.plot_history([{"epoch": 0, "train_loss": 1.0, "lr": 0.1}]),
)
"""


def run(child, code, **options):
    process = child("-c", code, **options)
    out, error = process.communicate(timeout=60)
    assert process.returncode == 0, error
    return out.splitlines()


def test_a_figure_needs_no_display_and_never_imports_pyplot(child, monkeypatch):
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "MPLBACKEND"):
        monkeypatch.delenv(name, raising=False)
    code = f"""
import sys
{PLOTS}
print("matplotlib" in sys.modules)
for i, plot in enumerate(plots):
    plot().savefig(f"{{i}}.png")
print("matplotlib" in sys.modules, "matplotlib.pyplot" in sys.modules)
"""
    assert run(child, code) == ["False", "True False"]


def test_without_matplotlib_the_error_is_the_command_that_installs_it(child):
    code = f"""{BLOCKER}{PLOTS}
for plot in plots:
    try:
        plot()
    except ImportError as error:
        print(error)
"""
    line = "plotting needs matplotlib: pip install matplotlib"
    assert run(child, code) == [line, line]
