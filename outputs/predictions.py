"""The files of a run's validation predictions: written in a report, read in a comparison."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from outputs import writers
from outputs.answers import PREDICTION, PROBABILITY, probability_columns
from system import disk
from training.scores import Answers

if TYPE_CHECKING:
    from datasets import Dataset

PREDICTIONS, MISTAKES = "predictions.csv", "mistakes.csv"


def write_predictions(path: Path, names: Sequence[str], rows: "Dataset", answers: Answers) -> None:
    """Write the prediction and all probabilities of each sentence, in the order of the data."""
    header = ["line", "label", PREDICTION, *probability_columns(names)]
    columns = rows["line"][:], answers.labels.tolist(), answers.predictions.tolist()
    lines = (
        [line, names[label], names[prediction], *(f"{value:.6f}" for value in probabilities)]
        for line, label, prediction, probabilities in zip(
            *columns, answers.probabilities, strict=True
        )
    )
    _write(path, header, lines)


def write_mistakes(path: Path, names: Sequence[str], rows: "Dataset", answers: Answers) -> None:
    """Write each misclassified sentence, the most confident prediction first."""
    wrong = np.flatnonzero(answers.labels != answers.predictions)
    confidences = answers.confidences
    wrong = wrong[np.argsort(-confidences[wrong], kind="stable")]
    has_pairs = len(rows) > 0 and rows[0]["text_pair"] is not None
    columns = ["text", "text_pair"] if has_pairs else ["text"]

    def lines() -> Iterable[list]:
        for number in wrong.tolist():
            row = rows[number]
            label, prediction = names[answers.labels[number]], names[answers.predictions[number]]
            texts = [row[column] for column in columns]
            yield [row["line"], *texts, label, prediction, f"{confidences[number]:.4f}"]

    header = ["line", *columns, "label", PREDICTION, PROBABILITY]
    _write(path, header, lines())


def _write(path: Path, header: list[str], lines: Iterable[list]) -> None:
    def fill(file) -> None:
        write_row = writers.csv_writer(file)
        write_row(header)
        for line in lines:
            write_row(line)

    disk.write_whole(path, fill)


def read_correct(folder: Path) -> np.ndarray | None:
    """For each validation sentence of a run, True if it is correct; None without a valid file."""
    try:
        with (folder / PREDICTIONS).open(encoding="utf-8", newline="") as file:
            rows = csv.reader(file, strict=True)
            header = next(rows, [])
            label, prediction = header.index("label"), header.index(PREDICTION)
            return np.array([row[label] == row[prediction] for row in rows], bool)
    except (OSError, ValueError, IndexError, csv.Error):
        return None
