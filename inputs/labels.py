"""Labels as the author of a data set writes them → the ids of the classes."""

import re
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING

from inputs.files import MOST_PROBLEMS, at
from inputs.tables import Table
from system.console import Problem, raise_any

if TYPE_CHECKING:
    from datasets import Dataset

NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)(e[+-]?\d{1,3})?", re.IGNORECASE)


def has_labels(test: "Dataset", train: "Dataset") -> bool:
    """Whether `test` has any label; −1 is none, as in GLUE, unless training has it too."""
    of_test, of_train = (
        {_plain(label) for label in _counts(rows) if label} for rows in (test, train)
    )
    return bool(of_test - ({"-1"} - of_train))


def _counts(rows: "Dataset") -> dict[str | None, int]:
    """The number of rows with each label, in the order of their first rows."""
    counts: dict[str | None, int] = {}
    for chunk in rows.data["label"].chunks:
        for row in chunk.value_counts().to_pylist():
            counts[row["values"]] = counts.get(row["values"], 0) + row["counts"]
    return counts


def label_ids(
    splits: dict[str, "Dataset"],
    opened: dict[str, Table],
    own_order: list[str] | None,
) -> tuple[dict[str, int], list[str]]:
    """The id of each label as it is written, and the names of the classes in the order of ids.

    The order is sorted: numbers by value, words as text; a Hub data set keeps its own.
    """
    import pyarrow.compute  # Here, because predict.py --help must not wait for it.

    counts = {split: _counts(rows) for split, rows in splits.items()}
    written = {label for labels in counts.values() for label in labels if label is not None}
    non_numbers = {label: n for label, n in counts["train"].items() if not NUMBER.fullmatch(label)}
    numeric = not non_numbers and not own_order
    canonical = {label: _plain(label) if numeric else label for label in written}
    trained = {canonical[label] for label in counts["train"]}
    labels = own_order or sorted(trained, key=Decimal if numeric else None)
    rows, train = len(splits["train"]), opened["train"].name

    def place(split: str, label: str, what: str) -> tuple[str, str]:
        first = pyarrow.compute.index(splits[split].data["label"], label).as_py()
        where = at(opened[split].name, splits[split][first]["line"], opened[split].unit)
        return where, f"the label {label!r} {what}"

    problems = []
    if trained == {"-1"}:
        what = "every label is -1, as in a test file"
        problems.append(Problem(train, what, "name a labelled file"))
    elif len(trained) < 2:
        what = f"only one class, {min(trained)!r}"
        problems.append(Problem(train, what, "there must be two or more"))
    elif len(trained) >= rows:
        what = f"as many classes as sentences ({len(trained)})"
        problems.append(Problem(train, what, "name another --label-column"))
    raise_any(problems)
    # Hardly any words among numbers are typing errors; "24" among names is a name.
    if not own_order and 0 < sum(non_numbers.values()) <= rows / 100 + 1:
        problems += [
            Problem(*place("train", label, "stands among numbers"), "mend or remove it")
            for label in non_numbers
        ]
    for split in counts:
        unknown = {x for x in counts[split] if x is not None and canonical[x] not in trained}
        problems += [
            Problem(*place(split, label, "is not in the training data"), "mend or add it")
            for label in sorted(unknown)
        ]
        if split == "test" and None in counts[split]:
            what = "some rows have a label and some have none"
            problems.append(Problem(opened[split].name, what))
    raise_any(problems[:MOST_PROBLEMS])
    return {label: labels.index(canonical[label]) for label in written}, labels


def ids_of(written: Iterable[str], names: Sequence[str]) -> dict[str, int]:
    """The ids of the labels `written` in a file, for those that are among a model's `names`.

    Numbers are compared by value. If `names` are words and all labels of a file are ids of them
    (or −1: none), they are taken as ids.
    """
    by_name = {_plain(name): number for number, name in enumerate(names)}
    ids = {str(number): number for number in range(len(names))}
    all_are_ids = {_plain(label) for label in written} <= ids.keys() | {"-1"}
    if all_are_ids and not by_name.keys() & ids.keys():
        by_name |= ids
    return {label: by_name[_plain(label)] for label in written if _plain(label) in by_name}


def _plain(text: str) -> str:
    """A number in its shortest exact form: 1 for 1.0 and +01, 0 for -0; words as they are."""
    if not NUMBER.fullmatch(text):
        return text
    written = f"{Decimal(text):f}"
    written = written.rstrip("0").rstrip(".") if "." in written else written
    return "0" if written == "-0" else written
