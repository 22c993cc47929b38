"""A file of texts in, its rows out: looked through for all that is wrong before any is used."""

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

from inputs import tables
from inputs.files import MOST_PROBLEMS
from outputs import writers
from system.console import InputError, say

# Texts of like length share a batch: the more there are to choose from, the less is padded. The
# first are few, so that the first answers come soon.
FIRST_WINDOW, LARGEST_WINDOW = 2**14, 2**20  # Characters.
MOST_LABELS = 100_000  # Of more, a column is none of labels.
MOST_TEXTS = 10_000  # At a time, however short: the tokens of each take a kilobyte.


class TextFile(NamedTuple):
    """A file of texts, looked through from end to end."""

    path: Path
    table: tables.Table
    text_columns: list[str]
    label_column: str | None
    columns: list[str]  # Those that are needed: if the rows are to be written, all that any has.
    rows: int
    labels: set[str]

    def windows(self) -> Iterator[list[dict]]:
        """The rows, at most LARGEST_WINDOW characters and MOST_TEXTS at a time."""
        problems: list[str] = []
        window, size, most = [], 0, FIRST_WINDOW
        for _, row in self.table.rows(problems, self.columns, False):
            row = {column: row[column] for column in self.columns if column in row}
            window.append(row)
            size += sum(len(str(value)) for value in row.values())
            if size >= most or len(window) >= MOST_TEXTS:
                yield window
                window, size, most = [], 0, min(2 * most, LARGEST_WINDOW)
        if problems:
            raise InputError(*problems)  # It was changed a moment ago.
        yield window


def look_through(path: Path, wanted: SimpleNamespace, record: dict | None) -> TextFile:
    """Read a file from end to end, for all that is wrong with it, before anything is answered.

    Args:
        wanted: `text_column`, `label_column` (None: as in training, or by the usual names), `glue`,
            which needs an answer to each, and `output`.
        record: the run.json of the run that left the model, if one did.
    Raises:
        InputError: with one problem for each row that can't be used, up to MOST_PROBLEMS.
    """
    table = tables.open_file(path)
    known = {
        name: getattr(wanted, name) or trained_columns(record, name)
        for name in ("text_column", "label_column")
    }
    for name, columns in known.items():  # Those of the training data may be absent here.
        if not getattr(wanted, name) and not set(columns or []) <= set(table.columns):
            known[name] = None
    label = known["label_column"][0] if known["label_column"] else None
    text, label = tables.find_columns(
        table, known["text_column"], label, labelled=bool(wanted.label_column)
    )
    problems: list[str] = []
    found, rows = set(), 0
    trained = trained_columns(record, "text_column")
    if trained and len(trained) != len(text):
        problems.append(
            f"{path}: {len(text)} columns of text ({', '.join(text)}), and the model was trained "
            f"on {len(trained)}; name them with --text-column"
        )
    columns, is_json = dict.fromkeys(table.columns), path.suffix.lower() == ".jsonl"
    for number, row in table.rows(problems, table.columns):
        rows += 1
        columns |= dict.fromkeys(row)
        where = f"{path}, {table.unit} {number}"
        for column in text:
            value = row.get(column)
            if value is not None and not isinstance(value, str):
                problems.append(f"{where}: {value!r} in {column!r} is no text, which is needed")
            elif wanted.glue and is_blank(value):
                problems.append(f"{where}: no text in {column!r}; GLUE takes no empty answer")
        # Half a character, which JSON alone can have, could not be read as text or be written.
        used = row if wanted.output else {column: row.get(column) for column in text}
        if is_json and re.search(tables.HALF_CHARACTER, json.dumps(used, ensure_ascii=False)):
            problems.append(f"{where}: half a character (\\ud…) in it; mend or remove it")
        with contextlib.suppress(TypeError):  # A label that is none is not compared.
            if label and len(found) < MOST_LABELS:
                found.add(tables.label_name(row.get(label)))
        if len(problems) >= MOST_PROBLEMS:
            break
    for name in (writers.PREDICTION, writers.PROBABILITY):
        if wanted.output and not wanted.glue and name in columns:
            problems.append(f"{path}: it has a column {name!r} already; rename that")
    if problems:
        raise InputError(*problems)
    read = f"texts from {' and '.join(map(repr, text))}"
    say(f"{path}: {read}" + (f", labels from {label!r}" if found - {None, "", "-1"} else ""))
    if not wanted.output or wanted.glue:
        columns = [*text, *([label] if label else [])]
    return TextFile(path, table, text, label, list(columns), rows, found - {None, ""})


def trained_columns(record: dict | None, name: str) -> list[str] | None:
    """The `text_column` or `label_column` that a model was trained on, if its run.json is known."""
    found = record and record["settings"].get(name)
    return [found] if isinstance(found, str) else found


def is_blank(text: str | None) -> bool:
    """Whether there is nothing to give a label to."""
    return not (text and text.strip())
