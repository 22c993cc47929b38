"""Scores of a model's answers: accuracy by `evaluate`, macro-F1, intervals, calibration.

Slow libraries are imported inside functions, only when a function needs them.
"""

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from system import collectives
from system.console import plural

if TYPE_CHECKING:
    import evaluate
    import torch

BINS = 15
# A larger confusion matrix is unreadable as text.
MAX_CLASSES = 20


class Answers(NamedTuple):
    """A model's answers to the rows of a split, in the order of the rows.

    `losses` are nan if they were not computed.
    """

    labels: np.ndarray  # int64, (rows,)
    predictions: np.ndarray  # int64, (rows,)
    probabilities: np.ndarray  # float32, (rows, classes)
    losses: np.ndarray  # float32, (rows,), nats

    @property
    def confidences(self) -> np.ndarray:
        """The probability of each prediction: float32, (rows,)."""
        return self.probabilities[np.arange(len(self.predictions)), self.predictions]


def gather_answers(
    rows: Sequence[np.ndarray], parts: Sequence[Sequence["torch.Tensor"]]
) -> Answers:
    """The answers of all processes in the order of their rows.

    `rows` holds the row numbers of each batch of this process. `parts` holds labels, predictions,
    probabilities and losses of each micro-batch. At least one process must have a row.
    """
    import torch

    own = [torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True)]
    gathered = collectives.all_gather((np.concatenate(rows), *own))
    shares = [arrays for arrays in gathered if len(arrays[0])]
    numbers, *columns = (np.concatenate(column) for column in zip(*shares, strict=True))
    order = np.argsort(numbers)
    return Answers(*(column[order] for column in columns))


def load_accuracy() -> "evaluate.Metric":
    """The metric of `evaluate.load("accuracy")`, which would download code and run it."""
    import datasets
    import evaluate

    class Accuracy(evaluate.Metric):
        """The fraction of predictions that equal their references."""

        def _info(self) -> evaluate.MetricInfo:
            number = datasets.Value("int64")
            features = datasets.Features({"predictions": number, "references": number})
            return evaluate.MetricInfo(description="", citation="", features=features)

        def _compute(self, predictions: list[int], references: list[int]) -> dict[str, float]:
            right = sum(map(int.__eq__, predictions, references))
            return {"accuracy": right / len(references)}

    return Accuracy(keep_in_memory=True)


def macro_f1(labels: Sequence[int], predictions: Sequence[int]) -> float:
    """The mean of F1 over the classes in `labels`; a class that is never predicted has 0."""
    from sklearn.metrics import f1_score

    classes = sorted(set(labels))
    score = f1_score(labels, predictions, labels=classes, average="macro", zero_division=0)
    return float(score)


def interval(accuracy: float, sentences: int) -> tuple[float, float]:
    """The 95 % confidence interval of an accuracy on this many sentences (Wilson 1927)."""
    from scipy.stats import binomtest

    test = binomtest(round(accuracy * sentences), sentences)
    ends = test.proportion_ci(method="wilson")
    return float(ends.low), float(ends.high)


def never_predicted_line(answers: Answers, names: Sequence[str]) -> str:
    """A note on the classes that have sentences and no prediction; empty if there are none."""
    absent = np.setdiff1d(answers.labels, answers.predictions).tolist()
    if not absent:
        return ""
    listed = ", ".join([*(repr(names[number]) for number in absent[:5]), "…"][: len(absent)])
    count, total = np.isin(answers.labels, absent).sum(), len(answers.labels)
    return (
        f"NOTE: the model never predicts {listed} ({count:,} of {total:,} validation sentences); "
        "change --learning-rate, --epochs or --class-weights"
    )


def mcnemar(correct: np.ndarray, other: np.ndarray) -> float:
    """The p-value of the exact test by McNemar (1947): do two models differ in accuracy?

    `correct` and `other` are True for each sentence that the first or the second model gets right.
    """
    from scipy.stats import binomtest

    # Sentences that both models get right, or both get wrong, say nothing about the difference.
    first_alone = int((correct & ~other).sum())
    either_alone = int((correct ^ other).sum())
    return float(binomtest(first_alone, either_alone).pvalue) if either_alone else 1.0


class Difference(NamedTuple):
    """The difference of two means, and the ends of its confidence interval."""

    mean: float
    low: float
    high: float


def mean_difference(
    first: Sequence[float], second: Sequence[float], is_paired: bool, level: float
) -> Difference:
    """The difference of two mean scores, with its confidence interval at `level`.

    Each sequence has a score for each seed. `is_paired`: the seeds are the same, in the same order.
    Otherwise the interval is Welch's (1947).
    """
    from scipy.stats import ttest_ind, ttest_rel

    with warnings.catch_warnings():
        # Equal differences have an interval without width, and a warning.
        warnings.simplefilter("ignore", RuntimeWarning)
        test = ttest_rel(first, second) if is_paired else ttest_ind(first, second, equal_var=False)
        ends = test.confidence_interval(level)
    mean = float(np.mean(first) - np.mean(second))
    return Difference(mean, float(ends.low), float(ends.high))


def calibration(answers: Answers) -> tuple[float, list[dict]]:
    """The expected calibration error, and its bins of equal width.

    The error is the mean of |accuracy - probability| over the bins, weighted by their sentences.
    Source: Guo et al. 2017, On Calibration of Modern Neural Networks.
    """
    right, confidences = answers.labels == answers.predictions, answers.confidences
    numbers = np.clip(np.ceil(confidences * BINS).astype(int) - 1, 0, BINS - 1)
    error, bins = 0.0, []
    for number in np.unique(numbers):
        in_bin = numbers == number
        accuracy = float(right[in_bin].mean())
        probability = float(confidences[in_bin].mean())
        error += abs(accuracy - probability) * in_bin.mean()
        bins.append(
            {"low": number / BINS, "high": (number + 1) / BINS, "sentences": int(in_bin.sum())}
            | {"accuracy": accuracy, "probability": probability}
        )
    return float(error), bins


def confusion(labels: Sequence[int], predictions: Sequence[int], classes: int) -> np.ndarray:
    """The confusion matrix: a row for each label, a column for each prediction."""
    from sklearn.metrics import confusion_matrix

    return confusion_matrix(labels, predictions, labels=list(range(classes)))


def summary(accuracy: float, answers: Answers) -> dict[str, object]:
    """The confidence interval and the calibration error, as run.json holds them."""
    ends = interval(accuracy, len(answers.labels))
    return {
        "accuracy_interval": [round(end, 4) for end in ends],
        "calibration_error": round(calibration(answers)[0], 4),
    }


def accuracy_line(result: dict, sentences: int) -> str:
    """The accuracy of a result with its confidence interval, in one line."""
    accuracy, (low, high) = result["accuracy"], result["accuracy_interval"]
    half = (high - low) / 2
    # Near 0 and 1 the interval is not symmetric.
    margin = f" ± {100 * half:.1f} points" if half < accuracy < 1 - half else ""
    number = f"{sentences:,} {plural('sentence', sentences)}"
    ends = f"{low:.4f} to {high:.4f}, the 95 % interval of {number}"
    return f"accuracy {accuracy:.4f}{margin} ({ends})"


def report_lines(labels: Sequence[int], predictions: Sequence[int], names: Sequence[str]) -> str:
    """Accuracy, scikit-learn's scores of each class, and the confusion matrix, as text."""
    from sklearn.metrics import classification_report

    # In the averages a class without sentences would count as 0.
    ids = sorted(set(labels))
    right, total = sum(map(int.__eq__, labels, predictions)), len(labels)
    options = {"labels": ids, "target_names": [names[number] for number in ids]}
    report = classification_report(labels, predictions, digits=4, zero_division=0, **options)
    lines = [f"accuracy {right / total:.4f}: {right:,} of {total:,} correct", report]
    if len(names) <= MAX_CLASSES:
        matrix = confusion(labels, predictions, len(names))
        width = max(len(str(matrix.max())), *map(len, names))
        lines.append("confusion matrix (rows: labels, columns: predictions)")
        lines.append(" ".join(f"{name:>{width}}" for name in ["", *names]))
        for name, row in zip(names, matrix.tolist(), strict=True):
            lines.append(" ".join(f"{cell:>{width}}" for cell in [name, *row]))
    return "\n".join(lines)
