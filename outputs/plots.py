"""Plot the metrics of runs as PNG files, legible at 1000 pixels, in print and in grey.

The colours are Okabe and Ito's, which colour-blind readers can tell apart. Curves also differ in
markers or line styles.
"""

import contextlib
import io
import itertools
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from outputs import fonts
from system import disk

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, VERMILION, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#777777"
PURPLE, ORANGE, SKY = "#CC79A7", "#E69F00", "#56B4E9"
STYLE = {
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "axes.axisbelow": True,
    "legend.frameon": False,
    # Otherwise matplotlib reads a dollar sign in a class name as mathematics.
    "text.parse_math": False,
    "savefig.dpi": 150,
}
MAX_NAME_LENGTH = 24  # characters
# Plots of more names, counts or runs are illegible.
MAX_NAMED_CLASSES, MAX_COUNTED_CLASSES, MAX_RUNS = 40, 12, 12


def short(name: str, limit: int = MAX_NAME_LENGTH) -> str:
    """The name, shortened to fit into a plot."""
    # A file name can hold bytes that are not UTF-8; each becomes a question mark.
    name = " ".join(name.encode(errors="replace").decode().split())
    # Chinese, Japanese and Korean letters are twice as wide as others.
    widths = [2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in name]
    fitting = sum(end < limit for end in itertools.accumulate(widths))
    return name if sum(widths) <= limit else name[:fitting] + "…"


def _legible(names: Sequence[str], limit: int) -> tuple[list[str], list[str]]:
    """The names, short and with escapes for characters in no font; and the fonts they need."""
    names = [short(name, limit) for name in names]
    letters = fonts.find(names)
    return [short(letters.escape(name), limit) for name in names], letters.families


@contextlib.contextmanager
def _figure(
    path: Path,
    width: float,
    height: float,
    families: Sequence[str] = (),
    layout: str = "constrained",
) -> Iterator["Figure"]:
    """A figure of width × height inches in this module's style, saved to `path` at the end.

    A character that the usual font lacks is drawn in the first of the `families` that has it.
    """
    # Imported here: matplotlib takes time and 25 MB, and a run draws only at its end.
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        matplotlib.rcParams["font.family"] = [*matplotlib.rcParams["font.family"], *families]
        figure = Figure(figsize=(width, height), layout=layout)
        yield figure
        _save(figure, path)


def _save(figure: "Figure", path: Path) -> None:
    content = io.BytesIO()
    figure.savefig(content, format="png", metadata={"Software": None})
    disk.write_whole(path, lambda file: file.write(content.getvalue()))


def smooth(values: np.ndarray) -> np.ndarray:
    """The moving average over a fifteenth of all values, but at least three."""
    kernel = np.ones(min(2 * max(1, len(values) // 30) + 1, len(values)))
    return np.convolve(values, kernel, "same") / np.convolve(np.ones(len(values)), kernel, "same")


def _columns(lines: Sequence[dict], *names: str) -> list[np.ndarray]:
    return [np.array([line[name] for line in lines]) for name in names]


def curves(
    path: Path,
    history: Sequence[dict],
    names: Sequence[str],
    subtitle: str,
    kept: dict | None,
    intervals: Sequence[tuple],
) -> None:
    """Plot the losses, validation scores and learning rate of a run over its steps.

    `history` holds the lines of metrics.jsonl; `names` are those of model and data; `kept` is the
    result, None if the run is not complete; `intervals` are the 95 % intervals of the accuracies.
    """
    names, families = _legible(names, 40)
    logged = [line for line in history if "loss" in line]
    evaluated = [line for line in history if "eval_loss" in line]
    with _figure(path, 8, 8.6, families) as figure:
        top, middle, bottom = figure.subplots(3, sharex=True, height_ratios=[3, 3, 1.6])
        figure.suptitle(f"{' on '.join(names)}\n{subtitle}", fontsize=12)
        if logged:
            steps, losses, rates = _columns(logged, "step", "loss", "learning_rate")
            # Without a marker, a line of one value is invisible.
            dots = "." if len(steps) < 30 else None
            top.plot(steps, losses, SKY, lw=1, marker=dots, label="training, as logged")
            smoothed = {"lw": 2.2, "marker": dots, "zorder": 3, "label": "training, smoothed"}
            top.plot(steps, smooth(losses), BLUE, **smoothed)
            bottom.plot(steps, rates, PURPLE, lw=1.8, marker=dots)
        if evaluated:
            steps, losses, accuracies = _columns(evaluated, "step", "eval_loss", "eval_accuracy")
            top.plot(steps, losses, color=VERMILION, linestyle="--", marker="s", label="validation")
            ends = np.abs(np.array(intervals).T - accuracies)
            style = {"color": VERMILION, "linestyle": "--", "marker": "s", "capsize": 4}
            middle.errorbar(steps, accuracies, ends, **style, label="accuracy, 95 % interval")
            if "eval_macro_f1" in evaluated[0]:
                (scores,) = _columns(evaluated, "eval_macro_f1")
                # Small markers in front, because macro-F1 may equal the accuracy.
                marks = {"marker": "^", "markersize": 4, "zorder": 2.5, "label": "macro-F1"}
                middle.plot(steps, scores, color=GREEN, linestyle=":", **marks)
            for step, axes in itertools.product(steps, (top, middle, bottom)):
                axes.axvline(step, color=GREY, linewidth=0.8, linestyle=":", zorder=0)
            if kept:
                point = evaluated[kept["epoch"]]["step"], kept["accuracy"]
                label = f"kept: epoch {kept['epoch']}, accuracy {kept['accuracy']:.4f}"
                middle.plot(*point, "*", color="black", markersize=16, zorder=3, label=label)
            _legend_above(middle)
        # The limits leave room for the markers at the edges, even with one value.
        last = max((line["step"] for line in history), default=1)
        highest = max((line.get("loss", line.get("eval_loss", 0)) for line in history), default=1)
        top.set(ylim=(0, 1.08 * highest), ylabel="loss (nats)")
        middle.set(ylabel="validation score")
        bottom.set(xlim=(0, 1.04 * last), xlabel="optimizer steps (dotted: end of an epoch)")
        bottom.set(ylim=(0, None), ylabel="learning rate")
        bottom.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
        if logged or evaluated:
            _legend_above(top)


def _legend_above(axes: "Axes") -> None:
    # A legend inside the axes would cover a curve.
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, borderaxespad=0.2)


def confusion(path: Path, matrix: np.ndarray, names: Sequence[str], title: str) -> set[str]:
    """Plot a confusion matrix; `matrix` has a row for each label, a column for each prediction.

    Returns the characters of `names` in no font. If there are any, the axes have class numbers, and
    a legend has the names with escapes.
    """
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    size = 4.2 + 0.55 * min(len(names), 16)
    ticks = range(len(names)) if len(names) <= MAX_NAMED_CLASSES else []
    tick_labels = [short(names[number]) for number in ticks]
    letters, legend = fonts.find(tick_labels), []
    if letters.missing:
        legend = [f"{n}: {short(letters.escape(tick_labels[n]), 60)}" for n in ticks]
        tick_labels = list(map(str, ticks))
    height = size + 0.2 * len(legend)
    with _figure(path, size + 1.2, height, letters.families, "compressed") as figure:
        axes = figure.subplots()
        image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        axes.grid(False)
        if len(names) <= MAX_COUNTED_CLASSES:
            for row, column in np.ndindex(matrix.shape):
                text = f"{matrix[row, column]:,}\n{shares[row, column]:.1%}"
                colour = "white" if shares[row, column] > 0.5 else "black"
                axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=10)
        upright = len(names) > 3 or max(map(len, tick_labels), default=0) > 12
        axes.set_xticks(ticks, tick_labels, rotation=90 if upright else 0)
        axes.set_yticks(ticks, tick_labels)
        axes.set(xlabel="prediction", ylabel="label")
        axes.set_title(title, fontsize=12)
        figure.colorbar(image, ax=axes, label="share of the label's sentences", shrink=0.8)
        if legend:
            figure.supxlabel("\n".join(legend), fontsize=10, multialignment="left")
    return letters.missing


def calibration(path: Path, bins: Sequence[dict], title: str) -> None:
    """Plot accuracy over predicted probability, in the bins of `scores.calibration`."""
    with _figure(path, 8, 7.4) as figure:
        top, bottom = figure.subplots(2, sharex=True, height_ratios=[3, 1])
        low, high, confidence, accuracy, count = (
            np.array([entry[name] for entry in bins])
            for name in ("low", "high", "probability", "accuracy", "sentences")
        )
        widths, middles = (high - low) * 0.92, (low + high) / 2
        top.bar(middles, accuracy, widths, color=SKY, edgecolor=BLUE, label="accuracy in the bin")
        top.plot(confidence, accuracy, "o", color=BLUE, label="mean probability in the bin")
        top.plot([0, 1], [0, 1], "k--", lw=1.2, label="perfect calibration")
        top.set(ylabel="accuracy", ylim=(0, 1.02))
        _legend_above(top)
        figure.suptitle(title, fontsize=12)
        bars = bottom.bar(middles, count, widths, color=GREY)
        bottom.bar_label(bars, [f"{number:,}" for number in count], fontsize=9)
        # Leaves room for the counts above the bars.
        bottom.margins(y=0.2)
        bottom.set(ylabel="sentences", xlabel="predicted probability")
        bottom.set(xlim=(float(low.min()) - 0.02 if len(low) else 0, 1.02))


def comparison(path: Path, runs: Sequence[tuple[str, Sequence[dict]]]) -> None:
    """Plot the learning curves of several runs, best first; `runs` are names and histories."""
    runs = runs[:MAX_RUNS]
    names, families = _legible([name for name, _ in runs], 90)
    with _figure(path, 9, 8 + 0.26 * len(runs), families) as figure:
        top, bottom = figure.subplots(2, sharex=True)
        styles = zip(
            itertools.cycle([BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, "black"]),
            itertools.cycle(["-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1, 1, 1))]),
            itertools.cycle("os^Dv*XP"),
            strict=False,
        )
        for name, (_, history), (colour, line_style, mark) in zip(
            names, runs, styles, strict=False
        ):
            # matplotlib hides a label that begins with an underscore, so a space comes first.
            style = {"color": colour, "linestyle": line_style, "label": f" {name}"}
            steps, losses = _columns([line for line in history if "loss" in line], "step", "loss")
            top.plot(steps, smooth(losses) if len(losses) else losses, **style)
            evaluated = [line for line in history if "eval_loss" in line]
            bottom.plot(*_columns(evaluated, "step", "eval_accuracy"), marker=mark, **style)
        top.set(ylabel="training loss, smoothed (nats)", ylim=(0, None))
        bottom.set(ylabel="validation accuracy", xlabel="optimizer steps", xlim=(0, None))
        if runs:
            figure.legend(*bottom.get_legend_handles_labels(), loc="outside lower center", ncols=1)
