"""How good a model's answers are: accuracy by `evaluate`, macro-F1, intervals, calibration.

Libraries that take a second to import are imported where they are used.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from system import collectives

if TYPE_CHECKING:
    import evaluate
    import torch

BINS = 15
MOST_CLASSES = 20  # A confusion matrix of more can't be read as text.


class Answers(NamedTuple):
    """A model's answers to the rows of a split, in their order; each array of shape (rows,)."""

    labels: np.ndarray  # int64, the right ids.
    predictions: np.ndarray  # int64, the most probable ids.
    probabilities: np.ndarray  # float32, those of the predictions.
    losses: np.ndarray  # float32, in nats; nan if they were not computed.


def gather_answers(
    rows: Sequence[np.ndarray], parts: Sequence[Sequence["torch.Tensor"]]
) -> Answers:
    """The answers of all processes in the order of their rows.

    `rows` are the row numbers of this process's batches; `parts` has labels, predictions,
    probabilities and losses of each micro-batch. At least one process has a row.
    """
    import torch

    own = [torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True)]
    gathered = collectives.all_gather((np.concatenate(rows), *own))
    shares = [arrays for arrays in gathered if len(arrays[0])]  # Some processes may have no rows.
    numbers, *columns = (np.concatenate(column) for column in zip(*shares, strict=True))
    order = np.argsort(numbers)
    return Answers(*(column[order] for column in columns))


def load_accuracy() -> "evaluate.Metric":
    """As `evaluate.load("accuracy")`, which would download code and run it."""
    import datasets
    import evaluate

    class Accuracy(evaluate.Metric):
        """The share of predictions that equal their references."""

        def _info(self) -> evaluate.MetricInfo:
            number = datasets.Value("int64")
            features = datasets.Features({"predictions": number, "references": number})
            return evaluate.MetricInfo(description="", citation="", features=features)

        def _compute(self, predictions: list[int], references: list[int]) -> dict[str, float]:
            right = sum(map(int.__eq__, predictions, references))
            return {"accuracy": right / len(references)}

    return Accuracy(keep_in_memory=True)


def macro_f1(labels: Sequence[int], predictions: Sequence[int]) -> float:
    """The mean of F1 over the classes in `labels`, rare or not; one never predicted has 0."""
    from sklearn.metrics import f1_score

    classes = sorted(set(labels))
    score = f1_score(labels, predictions, labels=classes, average="macro", zero_division=0)
    return float(score)


def interval(accuracy: float, sentences: int) -> tuple[float, float]:
    """The ends of the 95 % interval of an accuracy on that many sentences (Wilson 1927)."""
    from scipy.stats import binomtest

    test = binomtest(round(accuracy * sentences), sentences)
    ends = test.proportion_ci(method="wilson")
    return float(ends.low), float(ends.high)


def calibration(answers: Answers) -> tuple[float, list[dict]]:
    """The expected calibration error, and the bins of equal width over which it is a mean.

    The mean over all sentences of the difference between accuracy and probability in a sentence's
    bin (Guo et al. 2017, On Calibration of Modern Neural Networks).
    """
    right = answers.labels == answers.predictions
    numbers = np.clip(np.ceil(answers.probabilities * BINS).astype(int) - 1, 0, BINS - 1)
    error, bins = 0.0, []
    for number in np.unique(numbers):
        inside = numbers == number
        accuracy = float(right[inside].mean())
        probability = float(answers.probabilities[inside].mean())
        error += abs(accuracy - probability) * inside.mean()
        bins.append(
            {"low": number / BINS, "high": (number + 1) / BINS, "sentences": int(inside.sum())}
            | {"accuracy": accuracy, "probability": probability}
        )
    return float(error), bins


def confusion(labels: Sequence[int], predictions: Sequence[int], classes: int) -> np.ndarray:
    """How often each label (a row) got each prediction (a column)."""
    from sklearn.metrics import confusion_matrix

    return confusion_matrix(labels, predictions, labels=list(range(classes)))


def summary(accuracy: float, answers: Answers) -> dict[str, object]:
    """The entries of a result in run.json beside its scores."""
    ends = interval(accuracy, len(answers.labels))
    return {
        "accuracy_interval": [round(end, 4) for end in ends],
        "calibration_error": round(calibration(answers)[0], 4),
    }


def accuracy_line(result: dict, sentences: int) -> str:
    """The accuracy of a result with its interval, in one line."""
    accuracy, (low, high) = result["accuracy"], result["accuracy_interval"]
    half = (high - low) / 2
    # Near 0 and 1 the interval lies on one side.
    about = f" ± {100 * half:.1f} points" if half < accuracy < 1 - half else ""
    ends = f"{low:.4f} to {high:.4f}, the 95 % interval of {sentences:,} sentences"
    return f"accuracy {accuracy:.4f}{about} ({ends})"


def report_lines(labels: Sequence[int], predictions: Sequence[int], names: Sequence[str]) -> str:
    """Accuracy, scikit-learn's scores of each class, and the confusion matrix, as text."""
    from sklearn.metrics import classification_report

    ids = sorted(set(labels))  # Other classes have nothing to find.
    right, total = sum(map(int.__eq__, labels, predictions)), len(labels)
    options = {"labels": ids, "target_names": [names[number] for number in ids]}
    report = classification_report(labels, predictions, digits=4, zero_division=0, **options)
    lines = [f"accuracy {right / total:.4f}: {right:,} of {total:,} are right", report]
    if len(names) <= MOST_CLASSES:
        matrix = confusion(labels, predictions, len(names))
        width = max(len(str(matrix.max())), *map(len, names))
        lines.append("rows: what is right, columns: what was predicted")
        lines.append(" ".join(f"{name:>{width}}" for name in ["", *names]))
        for name, row in zip(names, matrix.tolist(), strict=True):
            lines.append(" ".join(f"{cell:>{width}}" for cell in [name, *row]))
    return "\n".join(lines)
