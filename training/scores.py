"""Accuracy by `evaluate`, without the Hub: `evaluate.load` would download code and run it."""

from collections.abc import Sequence

import datasets
import evaluate
from sklearn.metrics import f1_score


class Accuracy(evaluate.Metric):
    """The share of predictions that equal their references, counted in memory."""

    def __init__(self):
        super().__init__(keep_in_memory=True)

    def _info(self) -> evaluate.MetricInfo:
        number = datasets.Value("int64")
        return evaluate.MetricInfo(
            description=self.__doc__,
            citation="",
            features=datasets.Features({"predictions": number, "references": number}),
        )

    def _compute(self, predictions: list[int], references: list[int]) -> dict[str, float]:
        right = sum(map(int.__eq__, predictions, references))
        return {"accuracy": right / len(references)}


def macro_f1(references: Sequence[int], predictions: Sequence[int]) -> float:
    """The mean of F1 over the classes in `references`, rare or not; one never found has 0."""
    classes = sorted(set(references))
    return float(
        f1_score(references, predictions, labels=classes, average="macro", zero_division=0)
    )
