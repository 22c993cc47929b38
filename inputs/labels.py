"""Labels as written in a data set → the ids of the classes."""

import re
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING

from inputs.files import MAX_PROBLEMS, at
from inputs.tables import Table
from system.console import Problem, raise_any

if TYPE_CHECKING:
    from datasets import Dataset

NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)(e[+-]?\d{1,3})?", re.IGNORECASE)


def has_labels(test: "Dataset", train: "Dataset") -> bool:
    """True if `test` has labels; −1 is no label, as in GLUE, unless training has the label −1."""
    in_test, in_train = (
        {_plain(label) for label in _counts(rows) if label} for rows in (test, train)
    )
    return bool(in_test - ({"-1"} - in_train))


def _counts(rows: "Dataset") -> dict[str | None, int]:
    """The number of rows with each label, in the order of their first rows."""
    counts: dict[str | None, int] = {}
    for chunk in rows.data["label"].chunks:
        for row in chunk.value_counts().to_pylist():
            counts[row["values"]] = counts.get(row["values"], 0) + row["counts"]
    return counts


def label_ids(
    splits: dict[str, "Dataset"], opened: dict[str, Table], own_order: list[str] | None
) -> tuple[dict[str, int], list[str]]:
    """The id of each label as written, and the names of the classes in the order of ids.

    Numbers are sorted by value and words as text; a Hub data set keeps its own order.
    """
    # Imported here, because predict.py --help must not wait for it.
    import pyarrow.compute

    counts = {split: _counts(rows) for split, rows in splits.items()}
    written = {label for labels in counts.values() for label in labels if label is not None}
    non_numbers = {label: n for label, n in counts["train"].items() if not NUMBER.fullmatch(label)}
    numeric = not non_numbers and not own_order
    canonical = {label: _plain(label) if numeric else label for label in written}
    trained = {canonical[label] for label in counts["train"]}
    labels = own_order or sorted(trained, key=Decimal if numeric else None)
    rows, train = len(splits["train"]), opened["train"].name

    def first_place(split: str, label: str) -> str:
        first = pyarrow.compute.index(splits[split].data["label"], label).as_py()
        return at(opened[split].name, splits[split][first]["line"], opened[split].unit)

    problems = []
    if trained == {"-1"}:
        problems.append(Problem(train, "no labels (found only -1)", "use a labelled file"))
    elif len(trained) < 2:
        message = f"expected two or more classes, found only {min(trained)!r}"
        problems.append(Problem(train, message, "add rows of another class"))
    elif len(trained) >= rows:
        message = f"expected fewer classes than sentences, found {len(trained)} of each"
        problems.append(Problem(train, message, "choose another column with --label-column"))
    raise_any(problems)
    # A few words among numbers are typing errors; a number among names is a name.
    if not own_order and 0 < sum(non_numbers.values()) <= rows / 100 + 1:
        for label in non_numbers:
            message = f"expected a number, like the other labels, found {label!r}"
            problems.append(Problem(first_place("train", label), message, "correct or remove it"))
    for split in counts:
        unknown = {x for x in counts[split] if x is not None and canonical[x] not in trained}
        for label in sorted(unknown):
            message = f"the label {label!r} is not in the training data"
            remedy = "correct it, or add training rows with it"
            problems.append(Problem(first_place(split, label), message, remedy))
        if split == "test" and None in counts[split]:
            message = "some rows have no label"
            problems.append(Problem(opened[split].name, message, "label all rows or none"))
    raise_any(problems[:MAX_PROBLEMS])
    return {label: labels.index(canonical[label]) for label in written}, labels


def ids_of(written: Iterable[str], names: Sequence[str]) -> dict[str, int]:
    """The ids of the labels `written` in a file; labels that a model's `names` lack are left out.

    Numbers are compared by value. If `names` are words, and the file has only ids and −1 (no
    label), labels are read as ids.
    """
    by_name = {_plain(name): number for number, name in enumerate(names)}
    ids = {str(number): number for number in range(len(names))}
    all_are_ids = {_plain(label) for label in written} <= ids.keys() | {"-1"}
    if all_are_ids and not by_name.keys() & ids.keys():
        by_name |= ids
    return {label: by_name[_plain(label)] for label in written if _plain(label) in by_name}


def _plain(text: str) -> str:
    """A number in its shortest exact form: 1 for 1.0 and +01, 0 for -0; words unchanged."""
    if not NUMBER.fullmatch(text):
        return text
    written = f"{Decimal(text):f}"
    written = written.rstrip("0").rstrip(".") if "." in written else written
    return "0" if written == "-0" else written
