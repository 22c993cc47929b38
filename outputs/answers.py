"""The answers of a classifier to texts: a class with its probability, and all probabilities."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from tqdm import tqdm

from inputs import tables
from inputs.texts import MAX_TEXTS
from system import console

if TYPE_CHECKING:
    from outputs.classifier import Classifier

PREDICTION, PROBABILITY = "prediction", "probability"
Text = Sequence[str | None]  # shape (1,), or (2,) for a pair


class Answer(NamedTuple):
    """The answer to a text; without a class, all its values are empty.

    A text with a low probability has no class, and a blank text has no probabilities, either.
    """

    class_id: int | None = None
    probabilities: Sequence[float] = ()

    def values(self, names: Sequence[str], every_class: bool) -> list[str | float | None]:
        """The class name and its probability; if `every_class`, the probability of each class."""
        every = [float(p) for p in self.probabilities] or [None] * len(names) if every_class else []
        if self.class_id is None:
            return [None, None, *every]
        return [names[self.class_id], float(self.probabilities[self.class_id]), *every]


def probability_columns(names: Iterable[str]) -> list[str]:
    """The columns of all probabilities: one for each class name."""
    return [f"{PROBABILITY}_{name}" for name in names]


def added_columns(names: Iterable[str], every_class: bool) -> list[str]:
    """The columns of a prediction; if `every_class`, with the probability of each class."""
    return [PREDICTION, PROBABILITY, *(probability_columns(names) if every_class else [])]


def answer_texts(
    classifier: "Classifier", batch: Sequence[Text], at_least: float, bar: tqdm
) -> list[Answer]:
    """The answer to each text, in order."""
    # A slow import, which a wrong argument must not wait for.
    from outputs import classifier as classifiers

    filled = [number for number, text in enumerate(batch) if not any(map(tables.is_blank, text))]
    results = [Answer()] * len(batch)
    for start in range(0, len(filled), MAX_TEXTS):
        part = filled[start : start + MAX_TEXTS]
        columns = zip(*(batch[number] for number in part), strict=True)
        classes, probabilities = classifiers.answer(classifier, *columns, on_batch=bar.update)
        for number, class_id, row in zip(part, classes.tolist(), probabilities, strict=True):
            results[number] = Answer(class_id if row[class_id] >= at_least else None, row)
    bar.update(len(batch) - len(filled))
    return results


def show(results: Sequence[Answer], names: Sequence[str], every_class: bool) -> None:
    """Print a line for each answer: label, tab, probability; if `every_class`, all of them."""
    lines = []
    for answer in results:
        name, *probabilities = answer.values(names, every_class)
        cells = [_one_line(name or ""), *("" if p is None else f"{p:.4f}" for p in probabilities)]
        # An empty answer is an empty line, but a table needs its tabs.
        lines.append("\t".join(cells) if every_class else "\t".join(cells).strip("\t"))
    if lines:
        console.result("\n".join(lines))


def _one_line(name: str) -> str:
    # A class name may contain tabs and newlines.
    return " ".join(name.split())


def show_header(names: Sequence[str]) -> None:
    """Print the header of the table of all probabilities."""
    columns = ["label", PROBABILITY, *probability_columns(names)]
    console.result("\t".join(map(_one_line, columns)))


def count(results: Sequence[Answer]) -> Counter[bool]:
    """The number of texts with a class (True) and without one (False), except for blank texts."""
    return Counter(answer.class_id is not None for answer in results if len(answer.probabilities))


def say_count(counts: Counter[bool], at_least: float) -> None:
    """Print how many texts are answered, if a low probability gives no answer."""
    if at_least:
        number = f"{counts[True]:,} of {counts.total():,} texts"
        console.say(f"answered {number}, with a probability of at least {at_least:g}")
