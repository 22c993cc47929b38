"""A table of labelled text in, checked rows out: from a file, or a split from the Hub.

Nothing slow is imported before a file needs it, so that a wrong name is answered at once.
"""

import hashlib
import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from inputs import hub
from inputs.files import MOST_PROBLEMS, READERS, Rows
from system.console import InputError, RunError, one_line

if TYPE_CHECKING:
    from datasets import Dataset

BUILTIN = Path(__file__).resolve().parents[1] / "builtin"
SPLIT_NAMES = {
    "train": ("train",),
    "validation": ("validation", "dev", "valid", "val", "validation_matched"),
    "test": ("test",),
}
# The usual names of columns, the most telling first; a tuple of two is a pair of sentences.
TEXT_COLUMNS = [
    *(("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2")),
    *(("question", "sentence"), ("question", "passage")),
    *("sentence", "text", "review", "content", "comment", "message", "body", "tweet", "document"),
]
ROWS_AT_A_TIME = 10_000  # Of a table on disk; each such part is looked at when a file is opened.
HALF_CHARACTER = re.compile("[\ud800-\udfff]")  # As a \\ud… in JSON can leave it.
LABEL_COLUMNS = ["label", "labels", "sentiment", "class", "category", "target", "polarity", "stars"]


class Table(NamedTuple):
    """One table before it is read: what to call it, what it holds, and how to read its rows."""

    name: str
    unit: str
    columns: list[str]
    rows: Callable[..., Rows]  # Of problems, to be added to, and columns; see `readers`.
    fingerprint: Callable[[], str]
    problems: Sequence[str] = ()  # What its first rows have shown.
    names: Mapping[str, list[str]] = {}  # Columns of labels that the Hub has given names and order.


def find_files(name: str) -> dict[str, Path] | None:
    """The file of each split of `name`, or None where it is a data set of the Hub.

    Raises:
        InputError: there is no such file or folder, or it isn't one that can be read.
    """
    path = BUILTIN if name == "builtin" else Path(name)
    if name in hub.SHORT_NAMES:
        return None
    if path.is_file():
        if path.suffix.lower() not in READERS:
            known = ", ".join(READERS)
            raise InputError(
                f"--data {name}: the ending {path.suffix!r} is unknown; known: {known}"
            )
        return {"train": path}
    if path.is_dir():
        return _split_files(path, name)
    repository = name.partition(":")[0]
    if "/" in name and hub.is_id(repository) and path.suffix.lower() not in READERS:
        return None
    hint = "" if set("/.") & set(name) else "; a data set on the Hub is owner/name"
    raise InputError(f"--data {name}: no such file or folder{hint}")


def digests(name: str) -> dict[str, str]:
    """SHA-256 of the file of each split of `name`; none of a data set of the Hub."""
    files = find_files(name) or {}
    return {split: open_file(path).fingerprint() for split, path in files.items()}


def _split_files(folder: Path, name: str) -> dict[str, Path]:
    files, problems = {}, []
    for split, stems in SPLIT_NAMES.items():
        found = [
            file
            for file in sorted(folder.iterdir())
            if file.stem.lower() in stems and file.suffix.lower() in READERS and file.is_file()
        ]
        if len(found) > 1:
            names = " and ".join(file.name for file in found)
            problems.append(f"--data {name}: {names} are both the {split} split; keep one")
        if found:
            files[split] = found[0]
    if "train" not in files:
        endings = ", ".join(f"train{ending}" for ending in READERS)
        problems.append(f"--data {name}: the folder has no train file ({endings})")
    if problems:
        raise InputError(*problems)
    return files


def open_file(path: Path) -> Table:
    """The table in a file; its columns are those of its first rows.

    Raises:
        InputError: it is empty, or its first rows can't be read.
    """
    read, problems = READERS[path.suffix.lower()], []
    try:
        first_rows = itertools.islice(read(path, problems), 100)
        columns = list(dict.fromkeys(column for _, row in first_rows for column in row))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    if not columns:
        raise InputError(*(problems or [f"{path}: no rows in it"]))
    unit = "row" if path.suffix.lower() == ".parquet" else "line"

    def digest() -> str:
        with path.open("rb") as file:  # The same bytes are other rows by another ending.
            return path.suffix.lower() + hashlib.file_digest(file, "sha256").hexdigest()

    def rows(problems: list[str], columns: list[str], show: bool = True) -> Rows:
        return read(path, problems, columns, show)

    return Table(str(path), unit, columns, rows, digest, problems)


def open_hub_split(split: "Dataset", name: str) -> Table:
    """The table in a split of a data set from the Hub, labels by their names."""
    named = {
        column: feature.names
        for column, feature in split.features.items()
        if hasattr(feature, "names")
    }

    def rows(problems: list[str], columns: list[str]) -> Rows:
        for number, row in enumerate(split.select_columns(columns), 1):
            for column in named.keys() & row.keys():
                known = row[column] is not None and row[column] >= 0  # −1: no label.
                row[column] = named[column][row[column]] if known else None
            yield number, row

    columns = split.column_names
    return Table(name, "row", columns, rows, lambda: split._fingerprint, names=named)


def find_columns(
    table: Table, text_columns: Sequence[str] | None, label_column: str | None, labelled: bool
) -> tuple[list[str], str | None]:
    """The columns of the text (one, or two of a pair) and of the label (None where it may lack).

    Raises:
        InputError: a column that was named isn't there, or none has a usual name.
    """
    lower = {name.lower(): name for name in reversed(table.columns)}
    has = f"the columns are {', '.join(map(repr, table.columns))}"
    problems = []

    def find(asked: Sequence[str] | None, usual: list, flag: str, what: str) -> list[str]:
        for names in [tuple(asked)] if asked else usual:
            names = names if isinstance(names, tuple) else (names,)
            exact = [name if name in table.columns else lower.get(name.lower()) for name in names]
            if all(exact):
                return exact
        wanted, hint = (
            f"no column for the {what}",
            f"name it with {flag}, or is the header missing?",
        )
        if asked:
            wanted, hint = f"no column {', '.join(map(repr, asked))}", f"name another with {flag}"
        problems.append(f"{table.name}: {wanted}; {has}; {hint}")
        return []

    text = find(text_columns, TEXT_COLUMNS, "--text-column", "text")
    there = lower.keys() & ({label_column.lower()} if label_column else set(LABEL_COLUMNS))
    label = [None]
    if labelled or there:
        asked = [label_column] if label_column else None
        label = find(asked, LABEL_COLUMNS, "--label-column", "label")
    if len({*text, *label}) < len(text) + len(label):
        problems.append(f"{table.name}: a column is used twice; name others with --text-column")
    if problems:
        raise InputError(*problems, *table.problems)
    return text, label[0]


def read_table(
    table: Table, text: list[str], label: str | None, labelled: bool = True
) -> "Dataset":
    """The checked rows as an Arrow table on disk, cached by what the file holds.

    Returns:
        Columns `line` (int64, 1-based), `text`, `text_pair` (None where there is one text), and
        `label` (text; None only where `labelled` is False).
    Raises:
        InputError: one problem for each row that can't be used, up to 20.
    """
    import datasets
    import pyarrow
    from datasets.builder import Key
    from datasets.exceptions import DatasetGenerationError

    kinds = {"line": "int64", "text": "string", "text_pair": "string", "label": "string"}
    features = datasets.Features({name: datasets.Value(kind) for name, kind in kinds.items()})
    found = (table.fingerprint(), text, label, labelled, "rows 2")

    class Builder(datasets.ArrowBasedBuilder):
        """As Dataset.from_generator, which takes a row at a time, and three times as long."""

        def _info(self) -> datasets.DatasetInfo:
            return datasets.DatasetInfo(features=features)

        def _split_generators(self, _: object) -> list[datasets.SplitGenerator]:
            return [datasets.SplitGenerator("train")]

        def _generate_tables(self) -> Iterator[tuple[Key, pyarrow.Table]]:
            rows = _checked_rows(table, text, label, labelled)
            for number in itertools.count():
                if not (some := list(itertools.islice(rows, ROWS_AT_A_TIME))):
                    return
                columns = dict(zip(kinds, zip(*some, strict=True), strict=True))
                yield Key(0, number), pyarrow.table(columns, schema=features.arrow_schema)

    try:
        fingerprint = datasets.fingerprint.Hasher.hash(found)
        builder = Builder(hash=fingerprint, writer_batch_size=ROWS_AT_A_TIME)
        builder.download_and_prepare()
        read = builder.as_dataset(split="train")
        read._fingerprint = fingerprint  # Of the same bytes, whenever they were read.
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, InputError):
            raise error.__cause__ from None
        if isinstance(error.__cause__, OSError):  # Of the cache, which is written.
            raise error.__cause__ from None
        raise RunError(f"{table.name}: {one_line(error.__cause__ or error)}") from error
    if len(read) == 0:
        raise InputError(f"{table.name}: no rows in it")
    return read


def _checked_rows(
    table: Table, text: list[str], label: str | None, labelled: bool
) -> Iterator[tuple[int, str, str | None, str | None]]:
    """Line, text, text_pair and label of each row."""
    problems: list[str] = []
    used = [*text, label] if label else [*text]
    for number, row in table.rows(problems, used):
        if len(used) == 2 and all(map(_is_plain, map(row.get, used))) and not problems:
            yield number, row[used[0]], None, row[used[1]].strip()  # As most are, for speed.
            continue
        where = f"{table.name}, {table.unit} {number}"
        for column in text:
            value = row.get(column)
            if value is None or (isinstance(value, str) and not value.strip()):
                problems.append(f"{where}: no text in {column!r}; fill it in or remove the row")
            elif not isinstance(value, str):
                problems.append(f"{where}: {value!r} in {column!r} is no text, which is needed")
        try:
            name = label_name(row.get(label)) if label else None
        except TypeError:
            problems.append(
                f"{where}: {row[label]!r} in {label!r} is no word, number or truth value"
            )
            continue
        if any(re.search(HALF_CHARACTER, str(row.get(column))) for column in used):
            problems.append(f"{where}: half a character (\\ud…) in it; mend or remove it")
        if labelled and not name:
            problems.append(f"{where}: no label in {label!r}; fill it in or remove the row")
        if len(problems) >= MOST_PROBLEMS:
            problems.append(f"{table.name}: perhaps more; these were the first {MOST_PROBLEMS}")
            break
        if not problems:
            yield number, row[text[0]], row[text[1]] if len(text) == 2 else None, name or None
    if problems:
        raise InputError(*problems)


def _is_plain(value: object) -> bool:
    return type(value) is str and value.isascii() and not value.isspace() and value != ""


def label_name(value: object) -> str | None:
    """A label as text, whatever kind of value it is; None where there is none.

    Raises:
        TypeError: it is no word, number or truth value.
    """
    if value is None or value != value:  # Not a number: how some tables mark what is missing.
        return None
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    if isinstance(value, Decimal):
        return str(value)
    raise TypeError(value)
