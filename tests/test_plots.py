"""Plots are legible with any names: no text overlaps another text, is cut off or is small."""

import itertools
import subprocess
import sys

import numpy as np
import pytest
from harness.helpers import ROOT, make_answers, make_history, png_size

from outputs import plots
from training import scores

NAMES = ["$x$ and {y}", "a very long name of a class, longer than any", "两个", "\n", "_^\\frac"]


def check_legible(figure, min_points: float = 8) -> None:
    """Assert that no two texts overlap, and that no text is cut off or small."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text

    FigureCanvasAgg(figure).draw()
    texts = [t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip()]
    boxes = [(text, text.get_window_extent()) for text in texts]
    # matplotlib does not draw ticks outside of the axes.
    shown = [(t, box) for t, box in boxes if not _is_hidden_tick(figure, t)]
    assert len(shown) >= 4
    for text, box in shown:
        assert text.get_fontsize() >= min_points, text
        assert box.x0 >= -1 and box.y0 >= -1, text
        assert box.x1 <= figure.bbox.x1 + 1 and box.y1 <= figure.bbox.y1 + 1, text
    for (text, box), (other_text, other_box) in itertools.combinations(shown, 2):
        width = min(box.x1, other_box.x1) - max(box.x0, other_box.x0)
        height = min(box.y1, other_box.y1) - max(box.y0, other_box.y0)
        assert width <= 1 or height <= 1, (text, other_text)


def _is_hidden_tick(figure, text) -> bool:
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            shown = {id(tick) for tick in axis._update_ticks()}
            for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]:
                if text in (tick.label1, tick.label2):
                    return id(tick) not in shown
    return False


def test_a_run_does_not_load_matplotlib_before_it_draws():
    code = "import sys, finetune; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=120).returncode == 0


@pytest.fixture
def figures(monkeypatch) -> list:
    figures = []
    monkeypatch.setattr(plots, "_save", lambda figure, path: figures.append(figure))
    return figures


@pytest.mark.parametrize("steps, epochs", [(20, 1), (60, 3), (6300, 3), (200_000, 20)])
def test_learning_curves_are_legible(figures, tmp_path, steps, epochs):
    lines = make_history(steps, epochs, eval_macro_f1=0.6)
    count = sum("eval_loss" in line for line in lines)
    kept = {"epoch": count - 1, "accuracy": lines[-1]["eval_accuracy"]}
    line = scores.accuracy_line(kept | {"accuracy_interval": [0.8, 0.9]}, 872)
    names = ["distilbert-base-uncased", NAMES[0]]
    plots.curves(tmp_path / "a.png", lines, names, line, kept, [(0.8, 0.99)] * count)
    check_legible(figures[0])


@pytest.mark.parametrize("names", [["0", "1"], NAMES, [f"class {i}" for i in range(12)]])
def test_confusion_matrices_are_legible_with_any_names(figures, tmp_path, names):
    matrix = np.random.default_rng(0).integers(1_000_000, size=(len(names), len(names)))
    plots.confusion(tmp_path / "a.png", matrix, names, "793 of 872 sentences are right")
    check_legible(figures[0])


@pytest.mark.parametrize("name", ["a" * 24, "好" * 12, "好" * 11 + "ab"])
def test_a_name_has_room_for_24_letters_or_12_wide_ones(name):
    assert plots.short(name) == name
    assert plots.short(name + "a") == name[:-1] + "…"


@pytest.fixture
def without_fonts(monkeypatch) -> None:
    """Take all fonts except for matplotlib's own away."""
    monkeypatch.setattr("matplotlib.font_manager.get_font_names", list)


def test_labels_in_no_font_become_numbers_with_their_escapes_below(
    without_fonts, figures, tmp_path
):
    names = ["好评", "两 ok", "\x07", "good"]
    missing = plots.confusion(tmp_path / "a.png", np.eye(4), names, "all right")
    assert missing == {"好", "评", "两", "\x07"}
    check_legible(figures[0])
    (axes, _) = figures[0].axes
    for axis in (axes.xaxis, axes.yaxis):
        assert [label.get_text() for label in axis.get_ticklabels()] == ["0", "1", "2", "3"]
    legend = figures[0].get_supxlabel()
    assert legend == "0: \\u597d\\u8bc4\n1: \\u4e24 ok\n2: \\x07\n3: good"
    many = [f"类别名称很长很长{number}" for number in range(40)]
    plots.confusion(tmp_path / "a.png", np.eye(40), many, "all right")
    check_legible(figures[1])


def test_names_of_runs_and_data_have_escapes_for_letters_in_no_font(
    without_fonts, figures, tmp_path
):
    names, lines = ["bert", "数据" * 30], make_history(60, 3)
    plots.curves(tmp_path / "a.png", lines, names, "not complete", None, [(0.8, 0.99)] * 3)
    assert figures[0].get_suptitle().startswith("bert on \\u6570\\u636e\\u6570")
    check_legible(figures[0])
    plots.comparison(tmp_path / "a.png", [("数据" * 30, lines), ("b", lines)])
    assert figures[1].legends[0].get_texts()[0].get_text().startswith(" \\u6570\\u636e\\u6570")
    check_legible(figures[1])


def test_a_confusion_matrix_of_300_classes_is_drawn_without_class_names(tmp_path):
    matrix = np.eye(300, dtype=int)
    plots.confusion(tmp_path / "a.png", matrix, [f"class {i}" for i in range(300)], "all right")
    assert png_size(tmp_path / "a.png")[0] >= 800


def test_a_calibration_plot_is_legible(figures, tmp_path):
    is_right = np.random.default_rng(0).random(872) < 0.8
    answers = make_answers(is_right.astype(int), [1] * 872, np.linspace(0.34, 1, 872))
    _, bins = scores.calibration(answers)
    plots.calibration(tmp_path / "a.png", bins, "expected calibration error 0.1234")
    check_legible(figures[0])


def test_a_comparison_of_many_runs_is_legible(figures, tmp_path):
    runs = [
        (f"run{i}: learning_rate 3e-05, {NAMES[i % 5]}", make_history(60, 3)) for i in range(30)
    ]
    plots.comparison(tmp_path / "a.png", [*runs, ("empty", [])])
    check_legible(figures[0])
    plots.comparison(tmp_path / "a.png", [("empty", [])])
    plots.comparison(tmp_path / "a.png", [("_base", make_history(60, 3)), ("\udcff", [])])
    (legend,) = figures[-1].legends
    assert [text.get_text().strip() for text in legend.get_texts()] == ["_base", "?"]
