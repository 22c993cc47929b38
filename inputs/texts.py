"""Texts for prediction: a file that is checked before it is used, or lines as they arrive."""

import contextlib
import io
import json
import select
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from inputs import tables
from inputs.files import MAX_PROBLEMS, READERS, at
from system.console import InputError, Problem, raise_any, say

# Texts of similar length share a batch, so a larger window needs less padding. The first windows
# are small, so that the first answers come soon.
FIRST_WINDOW, LARGEST_WINDOW = 2**14, 2**20  # Characters.
# A column with more values holds no labels. The tokens of a text take 1 kB.
MAX_LABELS, MAX_TEXTS = 100_000, 10_000


class TextFile(NamedTuple):
    """A file of texts that was checked from end to end; `columns` names the columns to read."""

    path: Path
    table: tables.Table
    text_columns: list[str]
    label_column: str | None
    columns: list[str]
    rows: int
    labels: set[str]

    def windows(self) -> Iterator[list[dict]]:
        """The rows, at most LARGEST_WINDOW characters and MAX_TEXTS at a time."""
        problems: list[Problem] = []
        window, size, limit = [], 0, FIRST_WINDOW
        for _, row in self.table.rows(problems, self.columns, False):
            row = {column: row[column] for column in self.columns if column in row}
            window.append(row)
            size += sum(len(str(value)) for value in row.values())
            if size >= limit or len(window) >= MAX_TEXTS:
                yield window
                window, size, limit = [], 0, min(2 * limit, LARGEST_WINDOW)
        # Only a file that changed after its check has problems here.
        raise_any(problems)
        yield window


def look_through(
    path: Path,
    text_columns: list[str] | None,
    label_column: str | None,
    trained: dict[str, list[str]],
    added_columns: Sequence[str] = (),
    for_glue: bool = False,
) -> TextFile:
    """Check a file from end to end; InputError names every problem.

    A column that is None is the one in `trained`, by setting, or is found by its usual names. The
    output will have `added_columns` beside the file's own. GLUE needs an answer to every row.
    """
    table = tables.open_file(path)
    # The file may lack the columns of the training data.
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
        message = f"wrong number of text columns (expected {count}, found {len(text)})"
        problems.append(Problem(str(path), message, "choose them with --text-column"))
    columns, is_json = dict.fromkeys(table.columns), READERS[path.suffix.lower()].is_json
    labels, rows = set(), 0
    for number, row in table.rows(problems, table.columns):
        rows += 1
        columns |= dict.fromkeys(row)
        where = at(path, number, table.unit)
        blank_remedy = "fill it in, because GLUE needs every answer" if for_glue else None
        problems += tables.row_problems(row, text, where, blank_remedy)
        # JSON can hold a lone surrogate, and no output file can.
        others = {name: row[name] for name in row if name not in text} if added_columns else {}
        if is_json and tables.LONE_SURROGATE.search(json.dumps(others, ensure_ascii=False)):
            problems.append(Problem(where, tables.SURROGATE_MESSAGE, "correct or remove it"))
        with contextlib.suppress(TypeError):
            if label and len(labels) < MAX_LABELS:
                labels.add(tables.label_name(row.get(label)))
        if len(problems) >= MAX_PROBLEMS:
            break
    for name in added_columns:
        if name in columns:
            message = f"the output column {name!r} exists already"
            problems.append(Problem(str(path), message, "rename it in the file"))
    raise_any(problems)
    message = f"{path}: texts from {' and '.join(map(repr, text))}"
    say(message + (f", labels from {label!r}" if labels - {None, "", "-1"} else ""))
    if not added_columns:
        columns = [*text, label] if label else text
    return TextFile(path, table, text, label, list(columns), rows, labels - {None, ""})


def arrived_lines(stream: io.BufferedReader) -> Iterator[list[str]]:
    """The lines of a stream, in groups as they arrive; InputError if a line is not UTF-8."""
    rest, number, size = b"", 1, FIRST_WINDOW
    # read1() would mistake a non-blocking pipe without data for its end.
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
            message = f"expected UTF-8, found byte {line[error.start]:#04x}"
            raise InputError(Problem(at("standard input", number), message, "use UTF-8")) from None
    yield texts
