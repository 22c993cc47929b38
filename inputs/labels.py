"""Labels as written in a data set → the ids of the classes."""

import collections
import json
import re
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, NamedTuple

from inputs.files import MAX_PROBLEMS
from inputs.rows import Table
from inputs.tables import ONE_LABEL, label_name
from system.console import Problem, plural, raise_any

if TYPE_CHECKING:
    from datasets import Dataset

NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)(e[+-]?\d{1,3})?", re.IGNORECASE)
# Codes such as 007 are no numbers.
WHOLE = re.compile(r"[+-]?(0|[1-9]\d*)(\.0*)?")
CODE = re.compile(r"[+-]?0\d.*")
INVISIBLE = dict.fromkeys(map(ord, "\u200b\u200c\u200d\ufeff"))
MISSING = {"nan", "n/a", "na", "#n/a", "-", "none", "null", "?", "infinity", "-infinity"}
# A mark can have half steps. Other numbers with more values are scores.
MAX_SCORES = 20
# Smaller tables may have a class in every other row.
MIN_ROWS = 10


class Classes(NamedTuple):
    """The classes of a data set."""

    ids: dict[str, int]  # The id of each label as written.
    names: list[str]  # In the order of ids.
    notes: list[str]  # Labels that may not be meant.


def has_labels(test: "Dataset", train: "Dataset") -> bool:
    """True if `test` has labels; −1 is no label, as in GLUE, unless training has the label −1."""
    in_test, in_train = (
        {_value(label) for label in count(rows) if label} for rows in (test, train)
    )
    return bool(in_test - ({"-1"} - in_train))


def count(rows: "Dataset") -> dict[str | None, int]:
    """The number of rows with each label, in the order of their first rows."""
    counts: dict[str | None, int] = {}
    for chunk in rows.data["label"].chunks:
        for row in chunk.value_counts().to_pylist():
            counts[row["values"]] = counts.get(row["values"], 0) + row["counts"]
    return counts


def find_classes(
    splits: Mapping[str, "Dataset"], opened: Mapping[str, Table], own_order: list[str] | None = None
) -> Classes:
    """The classes of the train split, as written; InputError for labels that cannot be learned.

    Numbers are sorted by value and words as text; a data set with class names keeps its own order.
    """
    counts = {split: count(rows) for split, rows in splits.items()}
    labels = counts["train"]
    written = {label: label for label in labels} if own_order else class_names(labels)
    sizes: collections.Counter = collections.Counter()
    for label, name in written.items():
        sizes[name] += labels[label]
    is_numeric = all(map(NUMBER.fullmatch, sizes)) and not own_order
    names = own_order or sorted(sizes, key=_by_value if is_numeric else None)
    train = opened["train"].name

    def first_place(split: str, label: str) -> str:
        return opened[split].place(splits[split][_index(splits[split], label)]["line"])

    raise_any([*_impossible(sizes, train), *_several(sizes, train)])
    problems = []
    # A few words among numbers are typing errors; a number among names is a name.
    odd = [label for label in labels if not NUMBER.fullmatch(written[label])]
    odd = [label for label in odd if written[label].lower() not in MISSING]
    if not own_order and 0 < sum(labels[label] for label in odd) <= sizes.total() / 100 + 1:
        for label in odd:
            message = f"expected a number, like the other labels, found {label!r}"
            problems.append(Problem(first_place("train", label), message, "correct or remove it"))
    ids: dict[str, int] = {}
    for split in counts:
        known = {} if own_order or split != "train" else written
        matches = match(counts[split], names) | known
        ids |= {label: names.index(name) for label, name in matches.items()}
        for label in sorted(counts[split].keys() - matches.keys()):
            message = f"the label {label!r} is not in the training data"
            remedy = "correct it, or add training rows with it"
            problems.append(Problem(first_place(split, label), message, remedy))
    raise_any(problems[:MAX_PROBLEMS])
    notes = [] if own_order else [f"NOTE: {train}: {note}" for note in _doubtful(sizes)]
    return Classes(ids, names, notes)


def _index(rows: "Dataset", label: str) -> int:
    # Imported here, because predict.py --help must not wait for it.
    import pyarrow.compute

    return pyarrow.compute.index(rows.data["label"], label).as_py()


# ---- Names ----


def class_names(labels: Collection[str]) -> dict[str, str]:
    """The name of the class of each label in a column: the label as written.

    1 and 1.0 are one class if all labels are whole numbers, and True and true if all are such.
    """
    plain = {label: _unlisted(label) for label in labels}
    if all(map(WHOLE.fullmatch, plain.values())):
        return {label: _value(name) for label, name in plain.items()}
    if {name.lower() for name in plain.values()} <= {"true", "false"}:
        spellings: dict[str, str] = {}
        return {k: spellings.setdefault(name.lower(), name) for k, name in plain.items()}
    return plain


def _unlisted(label: str) -> str:
    """The label in a list of one, as `[3]`."""
    if label.startswith("[") and label.endswith("]"):
        try:
            values = json.loads(label.replace("'", '"'))
            return (label_name(values) if len(values) == 1 else None) or label
        except (ValueError, TypeError, RecursionError):
            pass
    return label


def match(labels: Iterable[str], names: Sequence[str]) -> dict[str, str]:
    """The class of each label that names one, as written, or as the same number or truth value."""
    by_value: dict[str, list[str]] = {}
    for name in names:
        by_value.setdefault(_value(name), []).append(name)
    matches = {}
    for label in labels:
        plain = label if label in names else _unlisted(label)
        same = [plain] if plain in names else by_value.get(_value(plain), [])
        if len(same) == 1:
            matches[label] = same[0]
    return matches


def ids_of(labels: Iterable[str], names: Sequence[str], compare_ids: bool) -> dict[str, int]:
    """The ids of the `labels` in a file; labels that a model's `names` lack are left out.

    With `compare_ids`, labels are read as ids if the file has only ids and −1, for no label.
    """
    matches = match(labels, names)
    if compare_ids and are_ids(labels, names):
        matches = match(labels, list(map(str, range(len(names)))))
        return {label: int(number) for label, number in matches.items()}
    return {label: names.index(name) for label, name in matches.items()}


def are_ids(labels: Iterable[str], names: Sequence[str]) -> bool:
    """True if `labels` are ids of classes, and the classes have other names."""
    ids = set(map(str, range(len(names))))
    values = set(map(_value, labels)) - {"-1"}
    return bool(values) and values <= ids and not ids & set(map(_value, names))


def _value(text: str) -> str:
    """A number in its shortest exact form: 1 for 1.0 and +1; true for True; others unchanged."""
    if text.lower() in ("true", "false"):
        return text.lower()
    if not NUMBER.fullmatch(text) or CODE.fullmatch(text):
        return text
    written = f"{Decimal(text):f}"
    written = written.rstrip("0").rstrip(".") if "." in written else written
    return "0" if written == "-0" else written


def _by_value(name: str) -> tuple[Decimal, str]:
    return Decimal(name), name


# ---- Labels that cannot be meant ----


def _impossible(sizes: collections.Counter, train: str) -> Iterable[Problem]:
    """A problem if the labels are no classes: none, one, scores, or one for each row."""
    rows, labels = sizes.total(), len(sizes)
    examples = ", ".join(list(sizes)[:3])
    numbers = [re.sub(r"^([+-]?\d+),(\d+)$", r"\1.\2", name) for name in sizes]
    is_number = all(map(NUMBER.fullmatch, numbers))
    has_halves = all((2 * float(number)).is_integer() for number in numbers) if is_number else True
    if sizes.keys() == {"-1"}:
        yield Problem(train, "no labels (found only -1)", "use a labelled file")
    elif labels < 2:
        message = f"expected two or more classes, found only {min(sizes)!r}"
        yield Problem(train, message, "add rows of another class")
    elif is_number and not has_halves and labels > min(MAX_SCORES, rows / 2):
        message = (
            f"the labels are numbers with {labels} values ({examples}, …): scores, not classes"
        )
        remedy = "sort them into a few classes, or choose another column with --label-column"
        yield Problem(train, message, remedy)
    elif labels >= rows or (rows >= MIN_ROWS and labels > rows / 2):
        message = f"expected fewer classes, found {labels} in {rows} rows ({examples}, …)"
        yield Problem(train, message, "choose another column with --label-column")


def _several(sizes: collections.Counter, train: str) -> Iterable[Problem]:
    """A problem if a label lists several others, as `joy, fear` or `[0, 2]`."""
    for name in sizes:
        parts = [part.strip(" '\"") for part in re.split("[,;|]", name.strip("[]()"))]
        # 4,5 is a mark with a decimal comma.
        is_listed = name.startswith("[") or set(parts) <= sizes.keys()
        if len(parts) > 1 and is_listed and not re.fullmatch(r"\d,5", name):
            yield Problem(train, f"several labels in one cell ({name!r})", ONE_LABEL)
            return


def _doubtful(sizes: collections.Counter) -> Iterable[str]:
    """Notes on classes that are perhaps no classes."""
    for name in sizes:
        if name.lower() in MISSING or name == "-1":
            number = f"{sizes[name]:,} {plural('row', sizes[name])}"
            yield f"the label {name!r} ({number}) often means no label; here it is a class"
    spellings: dict[str, list[str]] = {}
    for name in sizes:
        plain = unicodedata.normalize("NFKC", name).lower().translate(INVISIBLE)
        spellings.setdefault(" ".join(plain.split()), []).append(name)
    for names in spellings.values():
        if len(names) > 1:
            listed = " and ".join(map(repr, names))
            yield f"the labels {listed} look the same or differ by case only; here they are classes"
    single = [name for name in sizes if sizes[name] == 1]
    if single:
        listed = ", ".join(map(repr, single[:5])) + ", …" * (len(single) > 5)
        yield f"{len(single)} of {len(sizes)} classes have only one row ({listed})"
