"""The labels of a data set as its author writes them in, the ids of its classes out."""

import re
from collections.abc import Iterable, Sequence
from decimal import Decimal

import pyarrow.compute
from datasets import Dataset

from inputs.files import MOST_PROBLEMS
from inputs.tables import Table
from system import mapped
from system.console import InputError

NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)(e[+-]?\d{1,3})?", re.IGNORECASE)


def has_labels(test: Dataset, train: Dataset) -> bool:
    """Whether there is any label in `test`; −1 is none, as in GLUE, unless training has it too."""
    given, known = ({_plain(x) for x in _counts(rows) if x} for rows in (test, train))
    return bool(given - ({"-1"} - known))


def _counts(rows: Dataset) -> dict[str | None, int]:
    """How many rows have each label, in the order in which they come."""
    found: dict[str | None, int] = {}
    for part in mapped.in_parts(rows.data["label"].chunks):
        for row in part.value_counts().to_pylist():
            found[row["values"]] = found.get(row["values"], 0) + row["counts"]
    return found


def label_ids(
    splits: dict[str, Dataset],
    opened: dict[str, Table],
    own_order: list[str] | None,
) -> tuple[dict[str, int], list[str]]:
    """Ids in sorted order: numbers by value, words as text, a Hub data set's names in its own."""
    found = {split: _counts(rows) for split, rows in splits.items()}
    written = {label for labels in found.values() for label in labels if label is not None}
    words = {label: n for label, n in found["train"].items() if not NUMBER.fullmatch(label)}
    numeric = not words and not own_order
    canonical = {label: _plain(label) if numeric else label for label in written}
    trained = {canonical[label] for label in found["train"]}
    labels = own_order or sorted(trained, key=Decimal if numeric else None)

    def where(split: str, label: str) -> str:
        row = splits[split][pyarrow.compute.index(splits[split].data["label"], label).as_py()]
        return f"{opened[split].name}, {opened[split].unit} {row['line']}: the label {label!r}"

    train = opened["train"].name
    problems = []
    if trained == {"-1"}:
        problems.append(f"{train}: every label is -1, as in a test file; name a labelled file")
    elif len(trained) < 2:
        problems.append(f"{train}: only one class, {min(trained)!r}; there must be two or more")
    elif len(trained) >= len(splits["train"]):
        problems.append(
            f"{train}: as many classes as sentences ({len(trained)}); name another --label-column"
        )
    if problems:
        raise InputError(*problems)
    # A slip of the pen, where words are next to none among numbers; "24" among names is a name.
    if not own_order and 0 < sum(words.values()) <= len(splits["train"]) / 100 + 1:
        problems += [f"{where('train', x)} stands among numbers; mend or remove it" for x in words]
    for split in found:
        unknown = {x for x in found[split] if x is not None and canonical[x] not in trained}
        problems += [
            f"{where(split, label)} is not in the training data; mend or add it"
            for label in sorted(unknown)
        ]
        if split == "test" and None in found[split]:
            problems.append(f"{opened[split].name}: some rows have a label and some have none")
    if problems:
        raise InputError(*problems[:MOST_PROBLEMS])
    return {label: labels.index(canonical[label]) for label in written}, labels


def ids_of(found: Iterable[str], names: Sequence[str]) -> dict[str, int]:
    """The ids of the labels `found` in a file, as far as they are among a model's `names`.

    Numbers are compared by value. Where `names` are words and all labels of a file are ids of them
    (but for −1: none), they are taken for that.
    """
    by_name = {_plain(name): number for number, name in enumerate(names)}
    ids = {str(number): number for number in range(len(names))}
    all_are_ids = {_plain(label) for label in found} <= ids.keys() | {"-1"}
    if all_are_ids and not by_name.keys() & ids.keys():
        by_name |= ids
    return {label: by_name[_plain(label)] for label in found if _plain(label) in by_name}


def _plain(text: str) -> str:
    """A number in the shortest way, exactly: 1 for 1.0 and +01, 0 for -0; words as they are."""
    if not NUMBER.fullmatch(text):
        return text
    written = f"{Decimal(text):f}"
    written = written.rstrip("0").rstrip(".") if "." in written else written
    return "0" if written == "-0" else written
