"""Accuracy by `evaluate`, without the Hub: `evaluate.load` would download code and run it."""

import datasets
import evaluate


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
