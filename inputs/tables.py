"""A file or a split from the Hub → its columns and its checked rows, as a cached Arrow table.

Slow imports wait until a file needs them, so that a wrong name is reported at once.
"""

import hashlib
import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from inputs.files import MAX_PROBLEMS, READERS, Rows, at, find_files
from system.console import InputError, Problem, RunError, one_line, raise_any

if TYPE_CHECKING:
    from datasets import Dataset

# The usual names of columns, the most specific first; a tuple of two is a pair of sentences.
TEXT_COLUMNS = [
    *(("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2")),
    *(("question", "sentence"), ("question", "passage")),
    *("sentence", "text", "review", "content", "comment", "message", "body", "tweet", "document"),
]
LABEL_COLUMNS = ["label", "labels", "sentiment", "class", "category", "target", "polarity", "stars"]
KINDS = {"line": "int64", "text": "string", "text_pair": "string", "label": "string"}
# Rows in each part of an Arrow file; opening the file visits every part.
CHUNK_ROWS = 10_000
LONE_SURROGATE = re.compile("[\ud800-\udfff]")
SURROGATE_MESSAGE = "expected Unicode text, found a lone surrogate"


class Table(NamedTuple):
    """A table before its rows are read."""

    name: str
    unit: str  # "line" or "row"
    columns: list[str]
    rows: Callable[..., Rows]  # of (problems, columns)
    fingerprint: Callable[[], str]
    problems: Sequence[Problem] = ()  # of the first rows
    names: Mapping[str, list[str]] = {}  # labels on the Hub, by column


def digests(name: str) -> dict[str, str]:
    """SHA-256 of the file of each split of `name`; empty for a data set on the Hub."""
    files = find_files(name) or {}
    return {split: open_file(path).fingerprint() for split, path in files.items()}


def open_file(path: Path) -> Table:
    """The table in a file, with the columns of its first rows; InputError if it cannot be read."""
    ending, problems = path.suffix.lower(), []
    read, unit, _ = READERS[ending]
    try:
        first_rows = itertools.islice(read(path, problems), 100)
        columns = list(dict.fromkeys(column for _, row in first_rows for column in row))
    except OSError as error:
        raise InputError(Problem(str(path), f"cannot be read ({error.strerror})")) from None
    if not columns:
        raise InputError(*(problems or [Problem(str(path), "no rows", "add rows")]))

    def digest() -> str:
        # The ending is included, because it decides how the bytes are read.
        with path.open("rb") as file:
            return ending + hashlib.file_digest(file, "sha256").hexdigest()

    def rows(problems: list[Problem], columns: list[str], show: bool = True) -> Rows:
        return read(path, problems, columns, show)

    return Table(str(path), unit, columns, rows, digest, problems)


def open_hub_split(split: "Dataset", name: str) -> Table:
    """The table in a split of a data set on the Hub, with label names; None for −1, no label."""
    features = split.features.items()
    named = {column: feature.names for column, feature in features if hasattr(feature, "names")}

    def rows(problems: list[Problem], columns: list[str]) -> Rows:
        for number, row in enumerate(split.select_columns(columns), 1):
            for column in named.keys() & row.keys():
                is_known = row[column] is not None and row[column] >= 0
                row[column] = named[column][row[column]] if is_known else None
            yield number, row

    return Table(name, "row", split.column_names, rows, lambda: split._fingerprint, names=named)


def find_columns(
    table: Table, text_columns: Sequence[str] | None, label_column: str | None, labelled: bool
) -> tuple[list[str], str | None]:
    """The text columns (two for pairs) and the label column; InputError if one is missing.

    A None column is found by its usual names. The label column may be None if not `labelled`.
    """
    lower = {name.lower(): name for name in reversed(table.columns)}
    problems = []

    def find(named: Sequence[str] | None, usual: list, flag: str, kind: str) -> list[str]:
        for names in [tuple(named)] if named else usual:
            names = names if isinstance(names, tuple) else (names,)
            exact = [name if name in table.columns else lower.get(name.lower()) for name in names]
            if all(exact):
                return exact
        missing = ", ".join(map(repr, named)) if named else f"for the {kind}"
        message = f"no column {missing} (found {', '.join(map(repr, table.columns))})"
        remedy = f"choose one with {flag}" + ("" if named else ", or add a header line")
        problems.append(Problem(table.name, message, remedy))
        return []

    text = find(text_columns, TEXT_COLUMNS, "--text-column", "text")
    label = [None]
    if labelled or lower.keys() & ({label_column.lower()} if label_column else set(LABEL_COLUMNS)):
        named = [label_column] if label_column else None
        label = find(named, LABEL_COLUMNS, "--label-column", "label")
    if len({*text, *label}) < len(text) + len(label):
        problems.append(Problem(table.name, "a column is used twice", "choose different columns"))
    if problems:
        raise InputError(*problems, *table.problems)
    return text, label[0]


def read_table(
    table: Table, text: list[str], label: str | None, labelled: bool = True
) -> "Dataset":
    """The checked rows as an Arrow table on disk, cached by the content of the file.

    Columns: `line` (int64, from 1), `text`, `text_pair` (None without pairs), and `label` (text;
    None only if not `labelled`). InputError names up to 20 rows that cannot be used.
    """
    import datasets
    import pyarrow
    from datasets.builder import Key
    from datasets.exceptions import DatasetGenerationError

    features = datasets.Features({name: datasets.Value(kind) for name, kind in KINDS.items()})
    content = (table.fingerprint(), text, label, labelled, "rows 2")

    class Builder(datasets.ArrowBasedBuilder):
        """Dataset.from_generator for chunks of rows, in a third of its time."""

        def _info(self) -> datasets.DatasetInfo:
            return datasets.DatasetInfo(features=features)

        def _split_generators(self, _: object) -> list[datasets.SplitGenerator]:
            return [datasets.SplitGenerator("train")]

        def _generate_tables(self) -> Iterator[tuple[Key, pyarrow.Table]]:
            rows = _checked_rows(table, text, label, labelled)
            for number in itertools.count():
                if not (chunk := list(itertools.islice(rows, CHUNK_ROWS))):
                    return
                columns = dict(zip(KINDS, zip(*chunk, strict=True), strict=True))
                yield Key(0, number), pyarrow.table(columns, schema=features.arrow_schema)

    try:
        fingerprint = datasets.fingerprint.Hasher.hash(content)
        builder = Builder(hash=fingerprint, writer_batch_size=CHUNK_ROWS)
        builder.download_and_prepare()
        rows = builder.as_dataset(split="train")
        # Equal bytes get equal fingerprints, so that the cache of tokens is found again.
        rows._fingerprint = fingerprint
    except DatasetGenerationError as error:
        cause = error.__cause__
        # An OSError comes from writing the cache.
        if isinstance(cause, InputError | OSError):
            raise cause from None
        raise RunError(f"{table.name}: {one_line(cause or error)}") from error
    if len(rows) == 0:
        raise InputError(Problem(table.name, "no rows", "add rows"))
    return rows


def _checked_rows(
    table: Table, text: list[str], label: str | None, labelled: bool
) -> Iterator[tuple[int, str, str | None, str | None]]:
    """Line, text, text_pair and label of each row."""
    problems: list[Problem] = []
    used = [*text, label] if label else [*text]
    for number, row in table.rows(problems, used):
        if len(used) == 2 and all(map(_is_plain, map(row.get, used))) and not problems:
            # A fast path for most rows.
            yield number, row[used[0]], None, row[used[1]].strip()
            continue
        where = at(table.name, number, table.unit)
        problems += row_problems(row, text, where, "fill it in or remove the row")
        name = None
        try:
            name = label_name(row.get(label)) if label else None
        except TypeError:
            message = (
                f"expected text, a number, true or false in {label!r}, found {row[label]!r:.80}"
            )
            problems.append(Problem(where, message, "correct it or remove the row"))
        else:
            if LONE_SURROGATE.search(name or ""):
                problems.append(Problem(where, SURROGATE_MESSAGE, "correct or remove it"))
            if labelled and not name:
                remedy = "fill it in or remove the row"
                problems.append(Problem(where, f"no label in {label!r}", remedy))
        if len(problems) >= MAX_PROBLEMS:
            message = f"reading stopped after {MAX_PROBLEMS} problems"
            problems.append(Problem(table.name, message, "correct them and run again"))
            break
        if not problems:
            yield number, row[text[0]], row[text[1]] if len(text) == 2 else None, name or None
    raise_any(problems)


def row_problems(
    row: Mapping[str, object], columns: Sequence[str], where: str, blank_remedy: str | None
) -> Iterator[Problem]:
    """A problem for each text that cannot be used; `blank_remedy` None allows blank texts."""
    for column in columns:
        value = row.get(column)
        if is_blank(value):
            if blank_remedy:
                yield Problem(where, f"no text in {column!r}", blank_remedy)
        elif not isinstance(value, str):
            yield Problem(
                where, f"expected text in {column!r}, found {value!r:.80}", "write it as text"
            )
        elif LONE_SURROGATE.search(value):
            yield Problem(where, SURROGATE_MESSAGE, "correct or remove it")


def is_blank(value: object) -> bool:
    """True if a cell holds no text."""
    return value is None or (isinstance(value, str) and not value.strip())


def _is_plain(value: object) -> bool:
    return type(value) is str and value.isascii() and not value.isspace() and value != ""


def label_name(value: object) -> str | None:
    """A label as text; None for None or nan; TypeError if not text, a number, true or false."""
    if value is None or value != value:
        return None
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    if isinstance(value, Decimal):
        return str(value)
    raise TypeError(value)
