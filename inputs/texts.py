"""Unlabelled text for prediction: a file, checked from end to end before it is used, or lines."""

import contextlib
import io
import json
import select
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from inputs import tables
from inputs.files import MOST_PROBLEMS, READERS, at
from system.console import InputError, Problem, raise_any, say

# Texts of similar length share a batch, so a larger window needs less padding. The first windows
# are small, so that the first answers come soon.
FIRST_WINDOW, LARGEST_WINDOW = 2**14, 2**20  # Characters.
MOST_LABELS = 100_000  # A column with more is not a label column.
MOST_TEXTS = 10_000  # In a window, because the tokens of each text take a kilobyte.


class TextFile(NamedTuple):
    """A file of texts that has been checked from end to end."""

    path: Path
    table: tables.Table
    text_columns: list[str]
    label_column: str | None
    columns: list[str]  # The columns to read.
    rows: int
    labels: set[str]

    def windows(self) -> Iterator[list[dict]]:
        """The rows, at most LARGEST_WINDOW characters and MOST_TEXTS at a time."""
        problems: list[Problem] = []
        window, size, limit = [], 0, FIRST_WINDOW
        for _, row in self.table.rows(problems, self.columns, False):
            row = {column: row[column] for column in self.columns if column in row}
            window.append(row)
            size += sum(len(str(value)) for value in row.values())
            if size >= limit or len(window) >= MOST_TEXTS:
                yield window
                window, size, limit = [], 0, min(2 * limit, LARGEST_WINDOW)
        raise_any(problems)  # The file was changed a moment ago.
        yield window


def look_through(
    path: Path,
    text_columns: list[str] | None,
    label_column: str | None,
    trained: dict[str, list[str]],
    added_columns: Sequence[str] = (),
    for_glue: bool = False,
) -> TextFile:
    """Read a file from end to end; InputError with everything that is wrong with it.

    Columns that the user did not name (None) are those of `trained`, by setting, else found by
    their usual names. `added_columns` will be written beside the file's own; GLUE needs every
    answer.
    """
    table = tables.open_file(path)
    # The training data's columns may be absent here.
    usual = {name: c for name, c in trained.items() if c and set(c) <= set(table.columns)}
    text, label = tables.find_columns(
        table,
        text_columns or usual.get("text_column"),
        label_column or (usual.get("label_column") or [None])[0],
        labelled=bool(label_column),
    )
    problems: list[Problem] = []
    count = len(trained.get("text_column") or text)
    if count != len(text):
        what = (
            f"{len(text)} columns of text ({', '.join(text)}), and the model was trained on {count}"
        )
        problems.append(Problem(str(path), what, "name them with --text-column"))
    columns, is_json = dict.fromkeys(table.columns), READERS[path.suffix.lower()].is_json
    labels, rows = set(), 0
    for number, row in table.rows(problems, table.columns):
        rows += 1
        columns |= dict.fromkeys(row)
        where = at(path, number, table.unit)
        problems += tables.row_problems(
            row, text, where, "GLUE takes no empty answer" if for_glue else None
        )
        # Half a character could not be written either.
        others = {name: row[name] for name in row if name not in text} if added_columns else {}
        if is_json and tables.HALF_CHARACTER.search(json.dumps(others, ensure_ascii=False)):
            problems.append(Problem(where, tables.HALF_CHARACTER_FOUND, "mend or remove it"))
        with contextlib.suppress(TypeError):  # A value that is no label is not compared.
            if label and len(labels) < MOST_LABELS:
                labels.add(tables.label_name(row.get(label)))
        if len(problems) >= MOST_PROBLEMS:
            break
    for name in added_columns:
        if name in columns:
            what = f"it has a column {name!r} already"
            problems.append(Problem(str(path), what, "rename that"))
    raise_any(problems)
    read = f"{path}: texts from {' and '.join(map(repr, text))}"
    say(read + (f", labels from {label!r}" if labels - {None, "", "-1"} else ""))
    if not added_columns:
        columns = [*text, label] if label else text
    return TextFile(path, table, text, label, list(columns), rows, labels - {None, ""})


def arrived_lines(stream: io.BufferedReader) -> Iterator[list[str]]:
    """The lines of a stream, as many at a time as have arrived; InputError if one is not UTF-8."""
    rest, number, size = b"", 1, FIRST_WINDOW
    # Not read1(), which takes a pipe that does not block for one at its end.
    while (chunk := stream.raw.read(size)) != b"":
        if chunk is None:
            select.select([stream], [], [])
            continue
        *lines, rest = (rest + chunk).split(b"\n")
        yield from _decoded(lines, number)
        number, size = number + len(lines), min(2 * size, LARGEST_WINDOW)
    if rest:
        yield from _decoded([rest], number)


def _decoded(lines: list[bytes], first: int) -> Iterator[list[str]]:
    texts: list[str] = []
    for number, line in enumerate(lines, first):
        try:
            texts.append(line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r"))
        except UnicodeDecodeError as error:
            yield texts
            what = f"byte {line[error.start]:#04x} is not UTF-8"
            raise InputError(Problem(at("standard input", number), what)) from None
    yield texts
