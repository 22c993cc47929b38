"""Plots can be read: no two texts overlap, none is cut off or small, whatever the names are."""

import itertools

import numpy as np
import pytest
from harness.helpers import make_history, png_size

from outputs import plots
from training import scores

NASTY = ["$x$ and {y}", "a very long name of a class, longer than any", "两个", "\n", "_^\\frac"]


def check_legible(figure, least_points: float = 8) -> None:
    """No two texts overlap, none is cut off, and none is small."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text

    FigureCanvasAgg(figure).draw()
    texts = [t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip()]
    boxes = [(text, text.get_window_extent()) for text in texts]
    # matplotlib draws no tick that lies outside of the axes.
    inside = [(t, box) for t, box in boxes if not _is_hidden_tick(figure, t)]
    assert len(inside) >= 4
    for text, box in inside:
        assert text.get_fontsize() >= least_points, text
        assert box.x0 >= -1 and box.y0 >= -1, text
        assert box.x1 <= figure.bbox.x1 + 1 and box.y1 <= figure.bbox.y1 + 1, text
    for (one, first), (other, second) in itertools.combinations(inside, 2):
        width = min(first.x1, second.x1) - max(first.x0, second.x0)
        height = min(first.y1, second.y1) - max(first.y0, second.y0)
        assert width <= 1 or height <= 1, (one, other)


def _is_hidden_tick(figure, text) -> bool:
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            shown = {id(tick) for tick in axis._update_ticks()}
            for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]:
                if text in (tick.label1, tick.label2):
                    return id(tick) not in shown
    return False


@pytest.fixture
def drawn(monkeypatch) -> list:
    figures = []
    monkeypatch.setattr(plots, "_save", lambda figure, path: figures.append(figure))
    return figures


@pytest.mark.parametrize("steps, epochs", [(20, 1), (60, 3), (6300, 3), (200_000, 20)])
def test_curves_have_no_texts_over_one_another(drawn, tmp_path, steps, epochs):
    lines = make_history(steps, epochs, eval_macro_f1=0.6)
    count = sum("eval_loss" in line for line in lines)
    kept = {"epoch": count - 1, "accuracy": lines[-1]["eval_accuracy"]}
    line = scores.accuracy_line(kept | {"accuracy_interval": [0.8, 0.9]}, 872)
    title = f"distilbert-base-uncased on {NASTY[0]}\n{line}"
    plots.curves(tmp_path / "a.png", lines, title, kept, [(0.8, 0.99)] * count)
    check_legible(drawn[0])


@pytest.mark.parametrize("names", [["0", "1"], NASTY, [f"class {i}" for i in range(12)]])
def test_confusions_have_no_texts_over_one_another(drawn, tmp_path, names):
    matrix = np.random.default_rng(0).integers(1_000_000, size=(len(names), len(names)))
    plots.confusion(tmp_path / "a.png", matrix, names, "793 of 872 sentences are right")
    check_legible(drawn[0])


def test_a_confusion_of_hundreds_of_classes_is_drawn_without_their_names(tmp_path):
    matrix = np.eye(300, dtype=int)
    plots.confusion(tmp_path / "a.png", matrix, [f"class {i}" for i in range(300)], "all right")
    assert png_size(tmp_path / "a.png")[0] >= 800


def test_a_reliability_plot_has_no_texts_over_one_another(drawn, tmp_path):
    right = np.random.default_rng(0).random(872) < 0.8
    probabilities = np.linspace(0.34, 1, 872, dtype=np.float32)
    losses = np.full(872, np.nan, np.float32)
    answers = scores.Answers(right.astype(int), np.ones(872, int), probabilities, losses)
    _, bins = scores.calibration(answers)
    plots.calibration(tmp_path / "a.png", bins, "expected calibration error 0.1234")
    check_legible(drawn[0])


def test_many_runs_in_one_picture_have_no_texts_over_one_another(drawn, tmp_path):
    runs = [
        (f"run{i}: learning_rate 3e-05, {NASTY[i % 5]}", make_history(60, 3)) for i in range(30)
    ]
    plots.comparison(tmp_path / "a.png", [*runs, ("empty", [])])
    check_legible(drawn[0])
    plots.comparison(tmp_path / "a.png", [("empty", [])])
    plots.comparison(tmp_path / "a.png", [("_base", make_history(60, 3)), ("\udcff", [])])
    (legend,) = drawn[-1].legends
    assert [text.get_text().strip() for text in legend.get_texts()] == ["_base", "?"]
