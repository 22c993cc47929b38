"""The rows of a file or of a split from the Hub, checked, as a cached Arrow table.

Slow imports wait until a file needs them, so that a wrong name is reported at once.
"""

import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, NamedTuple

from inputs import columnar, forms
from inputs.columns import Columns
from inputs.files import MAX_PROBLEMS, find_files
from inputs.rows import Rows, Table
from system.console import InputError, Problem, RunError, one_line, plural, raise_any, say

if TYPE_CHECKING:
    from datasets import Dataset

KINDS = {"line": "int64", "text": "string", "text_pair": "string", "label": "string"}
# Rows in each part of an Arrow file; opening the file visits every part.
CHUNK_ROWS = 10_000
# Rows without text or label that are named.
MAX_NAMED = 5
LONE_SURROGATE = re.compile("[\ud800-\udfff]")
SURROGATE_MESSAGE = "expected Unicode text, found a lone surrogate"


class Checked(NamedTuple):
    """The rows of a table, and the first of the rows that are left out."""

    rows: "Dataset"
    left_out: int
    first_left_out: list[int]  # Numbers of rows.


def digests(name: str) -> dict[str, str]:
    """SHA-256 of the file of each split of `name`; empty for a data set on the Hub."""
    return {split: forms.fingerprint(path) for split, path in (find_files(name) or {}).items()}


def open_hub_split(split: "Dataset", name: str) -> Table:
    """The table in a split of a data set on the Hub, with label names; None for −1, no label."""
    features = split.features.items()
    named = {column: feature.names for column, feature in features if hasattr(feature, "names")}
    schema = split.features.arrow_schema
    readable = [field.name for field in schema if columnar.is_readable(field.type)]

    def rows(_: list[Problem], columns: Sequence[str] = (), show: bool = True) -> Rows:
        for number, row in enumerate(split.select_columns(list(columns or readable)), 1):
            yield number, columnar.with_class_names(row, named)

    return Table(
        name,
        split.column_names,
        rows,
        unit="row",
        class_names=named,
        fingerprint=lambda: split._fingerprint,
    )


def read_table(table: Table, text: list[str], label: str | None, labelled: bool = True) -> Checked:
    """The checked rows as an Arrow table on disk, cached by the content of the file.

    Columns: `line` (int64, from 1), `text`, `text_pair` (None without pairs), and `label` (text;
    None only if not `labelled`). Rows without text, or without label if `labelled`, are left out.
    InputError names up to 20 rows that cannot be used.
    """
    import datasets
    import pyarrow
    from datasets.builder import Key
    from datasets.exceptions import DatasetGenerationError

    features = datasets.Features({name: datasets.Value(kind) for name, kind in KINDS.items()})
    # The facts say how the file was read: its header, encoding and sheet.
    read = (table.fingerprint(), table.columns, dict(table.facts))
    content = (*read, text, label, labelled, "rows 3")
    numbers: list[int] = []

    class Builder(datasets.ArrowBasedBuilder):
        """Dataset.from_generator for chunks of rows, in a third of its time."""

        def _info(self) -> datasets.DatasetInfo:
            return datasets.DatasetInfo(features=features)

        def _split_generators(self, _: object) -> list[datasets.SplitGenerator]:
            return [datasets.SplitGenerator("train")]

        def _generate_tables(self) -> Iterator[tuple[Key, pyarrow.Table]]:
            rows = _checked_rows(table, text, label, labelled, numbers)
            for number in itertools.count():
                if not (chunk := list(itertools.islice(rows, CHUNK_ROWS))):
                    break
                columns = dict(zip(KINDS, zip(*chunk, strict=True), strict=True))
                yield Key(0, number), pyarrow.table(columns, schema=features.arrow_schema)
            # The description is kept in the cache beside the rows.
            self.info.description = json.dumps([len(numbers), numbers[:MAX_NAMED]])

    try:
        fingerprint = datasets.fingerprint.Hasher.hash(content)
        builder = Builder(hash=fingerprint, writer_batch_size=CHUNK_ROWS)
        builder.download_and_prepare()
        left_out, first = json.loads(builder.info.description)
        _check_whole(table, text, label, builder.info.splits["train"].num_examples, left_out, first)
        rows = builder.as_dataset(split="train")
        # Equal bytes get equal fingerprints, so that the cache of tokens is found again.
        rows._fingerprint = fingerprint
    except DatasetGenerationError as error:
        cause = error.__cause__
        # An OSError comes from writing the cache.
        if isinstance(cause, InputError | OSError):
            raise cause from None
        raise RunError(f"{table.name}: {one_line(cause or error)}") from error
    return Checked(rows, left_out, first)


def _check_whole(
    table: Table, text: list[str], label: str | None, rows: int, left_out: int, first: list[int]
) -> None:
    """InputError if there are no rows, or if more rows are left out than used."""
    if not rows + left_out:
        raise InputError(Problem(table.name, "no rows", "add rows"))
    if left_out > rows:
        columns = " or ".join(map(repr, [*text, *filter(None, [label])]))
        message = f"{left_out:,} of {rows + left_out:,} rows have nothing in {columns}"
        remedy = f"fill them in ({_left_out_rows(table, left_out, first)}), or choose other columns"
        raise InputError(Problem(table.name, message, remedy))


def drop_unlabelled(checked: Checked) -> Checked:
    """The rows that have a label: a test split is read before it is known to have labels."""
    import numpy as np

    column = checked.rows.data["label"]
    if not column.null_count:
        return checked
    is_blank = np.concatenate([chunk.is_null() for chunk in column.chunks])
    # Later steps read the Arrow table itself, which holds all rows without flatten_indices().
    kept = checked.rows.select(np.flatnonzero(~is_blank)).flatten_indices()
    numbers = checked.rows.select(np.flatnonzero(is_blank)[:MAX_NAMED])["line"][:]
    first = sorted([*checked.first_left_out, *numbers])[:MAX_NAMED]
    return Checked(kept, checked.left_out + int(is_blank.sum()), first)


def report(table: Table, used: Columns, checked: Checked) -> dict[str, object]:
    """Print what a user must know of how a table is read; return it for run.json."""
    notes = list(used.notes)
    facts = dict(table.facts)
    if checked.left_out:
        facts |= {"left_out": checked.left_out, "first_left_out": checked.first_left_out}
        rows = f"{checked.left_out:,} {plural('row', checked.left_out)} without text or label"
        listed = _left_out_rows(table, checked.left_out, checked.first_left_out)
        notes.append(f"NOTE: {table.name}: {rows} left out ({listed})")
    for note in notes:
        say(note)
    return facts


def _left_out_rows(table: Table, left_out: int, first: list[int]) -> str:
    """The first rows that are left out: `lines 3, 17, …`."""
    more = ", …" if left_out > MAX_NAMED else ""
    if table.files:
        return ", ".join(map(table.place, first)) + more
    return f"{plural(table.unit, left_out)} {', '.join(map(str, first))}{more}"


def _checked_rows(
    table: Table, text: list[str], label: str | None, labelled: bool, left_out: list[int]
) -> Iterator[tuple[int, str, str | None, str | None]]:
    """Line, text, text_pair and label of each row; `left_out` gets the numbers of other rows."""
    problems: list[Problem] = []
    used = [*text, label] if label else [*text]
    is_simple = label is not None and len(text) == 1
    for number, row in table.rows(problems, used, True):
        if is_simple and all(map(_is_plain, map(row.get, used))) and not problems:
            # A fast path for most rows.
            yield number, row[used[0]], None, row[used[1]].strip()
            continue
        where = table.place(number)
        problems += row_problems(row, text, where)
        name = None
        try:
            name = label_name(row.get(label)) if label else None
        except TypeError:
            problems.append(_label_problem(where, label, row[label]))
        else:
            if LONE_SURROGATE.search(name or ""):
                problems.append(Problem(where, SURROGATE_MESSAGE, "correct or remove it"))
        if len(problems) >= MAX_PROBLEMS:
            message = f"reading stopped after {MAX_PROBLEMS} problems"
            problems.append(Problem(table.name, message, "correct them and run again"))
            break
        if problems:
            continue
        texts = row_texts(row, text)
        if any(map(is_blank, texts)) or (labelled and not name):
            left_out.append(number)
        else:
            yield number, texts[0], texts[1] if len(texts) == 2 else None, name or None
    raise_any(problems)


def _label_problem(where: str, label: str, value: object) -> Problem:
    if isinstance(value, list | tuple):
        message = f"several labels in {label!r} ({value!r:.80})"
        return Problem(where, message, ONE_LABEL)
    message = f"expected text, a number, true or false in {label!r}, found {value!r:.80}"
    return Problem(where, message, "correct it or remove the row")


# Several labels of one text need a loss of their own.
ONE_LABEL = (
    "keep one label per text; for several, use transformers' Trainer with "
    'problem_type="multi_label_classification"'
)


def row_texts(row: Mapping[str, object], columns: Sequence[str]) -> list[str | None]:
    """The text of a row, or the two of a pair; more columns than two are joined."""
    texts = [row.get(column) for column in columns]
    return [" ".join(text for text in texts if not is_blank(text))] if len(texts) > 2 else texts


def row_problems(
    row: Mapping[str, object], columns: Sequence[str], where: str
) -> Iterator[Problem]:
    """A problem for each text that cannot be used; a blank text is no problem."""
    for column in columns:
        value = row.get(column)
        if is_blank(value):
            continue
        if not isinstance(value, str):
            message = f"expected text in {column!r}, found {value!r:.80}"
            yield Problem(where, message, "write it as text")
        elif LONE_SURROGATE.search(value):
            yield Problem(where, SURROGATE_MESSAGE, "correct or remove it")


def is_blank(value: object) -> bool:
    """True if a cell holds no text."""
    # NaN is the only value that differs from itself.
    return value is None or value != value or (isinstance(value, str) and not value.strip())


def _is_plain(value: object) -> bool:
    return type(value) is str and value.isascii() and not value.isspace() and value != ""


def label_name(value: object) -> str | None:
    """A label as text; None for None or nan; TypeError if not text, a number, true or false.

    A list of one label is that label.
    """
    if isinstance(value, list) and len(value) <= 1:
        return label_name(value[0]) if value else None
    if value is None or value != value:
        return None
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    if isinstance(value, Decimal):
        return str(value)
    raise TypeError(value)
