"""The kept model of a run and its validation data, loaded again from the run's folder."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from datasets import Dataset

import data
from inputs import files, hub
from outputs import classifier as classifiers
from outputs.classifier import Classifier
from system.console import InputError, Problem, collect_problems, progress, raise_any
from training import record as records
from training import run_folder
from training.scores import Answers

ROWS_AT_A_TIME = 10_000


class Validation(NamedTuple):
    """The validation rows of a run, and their class ids: int64 of shape (rows,)."""

    rows: Dataset
    labels: np.ndarray

    @property
    def has_pairs(self) -> bool:
        return self.rows[0]["text_pair"] is not None

    def parts(self) -> Iterator[tuple[list[str], list[str] | None]]:
        """The texts of some rows at a time; for pairs with their second texts, otherwise None."""
        for start in range(0, len(self.rows), ROWS_AT_A_TIME):
            part = self.rows[start : start + ROWS_AT_A_TIME]
            yield part["text"], part["text_pair"] if self.has_pairs else None


def load(folder: Path, record: dict) -> tuple[Classifier, Validation]:
    """The plain classifier and the validation data; InputError if model or data has changed."""
    settings = record["settings"]
    problems: list[Problem] = []
    with collect_problems(problems):
        classifier = classifiers.load_plain(str(folder))
    with collect_problems(problems):
        hub.reach(data=settings["data"])
        try:
            files.find_files(settings["data"])
        except InputError:
            message = f"the data {settings['data']} is missing"
            remedy = "call the program from the folder in which the run was started"
            raise InputError(Problem(str(folder), message, remedy)) from None
        columns = settings["text_column"], settings["label_column"]
        # A run.json of an earlier version has no encoding.
        encoding = settings.get("encoding")
        text = data.load(settings["data"], *columns, settings["seed"], encoding)
        rows = text.splits["validation"]
        if records.fingerprint(rows) != record["fingerprints"]["data"]["validation"]:
            message = f"the data {settings['data']} has changed since the run was started"
            raise InputError(Problem(str(folder), message, "restore a copy"))
    raise_any(problems)
    if classifier.labels != record["labels"]:
        message = f"the labels of {run_folder.MODEL}/ and {records.NAME} must be the same"
        raise InputError(Problem(str(folder), message, "restore a copy"))
    return classifier, Validation(rows, np.array([text.ids[label] for label in rows["label"]]))


def answer(classifier: Classifier, validation: Validation, batch_size: int) -> Answers:
    """The classifier's answers to the validation rows, without losses."""
    parts = []
    with progress(len(validation.rows), "sentences", "predicting") as bar:
        for texts, pairs in validation.parts():
            parts.append(classifiers.answer(classifier, texts, pairs, batch_size, bar.update))
    classes, probabilities = map(np.concatenate, zip(*parts, strict=True))
    losses = np.full(len(classes), np.nan, np.float32)
    return Answers(validation.labels, classes, probabilities, losses)
