"""Texts for prediction: a file that is checked before it is used, or lines as they arrive."""

import contextlib
import io
import json
import select
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from inputs import columns, forms, tables
from inputs.files import MAX_PROBLEMS, at
from inputs.rows import Table
from system.console import InputError, Problem, raise_any, say

# Texts of similar length share a batch, so a larger window needs less padding. The first windows
# are small, so that the first answers come soon.
FIRST_WINDOW, LARGEST_WINDOW = 2**14, 2**20  # Characters.
# A column with more values holds no labels. The tokens of a text take 1 kB.
MAX_LABELS, MAX_TEXTS = 100_000, 10_000


class TextFile(NamedTuple):
    """A file of texts that was checked from end to end; `columns` names the columns to read."""

    table: Table
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


class Request(NamedTuple):
    """The columns and the encoding that the user chose for a file of texts; None: find them."""

    text_columns: list[str] | None = None
    label_column: str | None = None
    encoding: str | None = None


def look_through(
    path: Path,
    chosen: Request,
    trained: dict[str, list[str]],
    added_columns: Sequence[str] = (),
    for_glue: bool = False,
    command: str = "",
) -> TextFile:
    """Check a file from end to end; InputError names every problem.

    A column that is None is the one in `trained`, by setting, or is found by name or content. The
    output will have `added_columns` beside the file's own. GLUE needs an answer to every row.
    """
    named = [*(chosen.text_columns or []), *filter(None, [chosen.label_column])]
    table = forms.open_file(path, chosen.encoding, named or trained.get("text_column") or [])
    for note in table.notes:
        say(note)
    # The file may lack the columns of the training data.
    known = {setting: c for setting, c in trained.items() if c and set(c) <= set(table.columns)}
    used = columns.find_columns(
        table,
        chosen.text_columns or known.get("text_column"),
        chosen.label_column or (known.get("label_column") or [None])[0],
        labelled=bool(chosen.label_column),
        command=command,
    )
    text, label = used.text, used.label
    problems: list[Problem] = []
    count = len(trained.get("text_column") or text)
    # A pair is two texts; any other number of columns is joined into one.
    if (count == 2) != (len(text) == 2):
        message = f"wrong number of text columns (expected {count}, found {len(text)})"
        problems.append(Problem(str(path), message, "choose them with --text-column"))
    all_columns = dict.fromkeys(table.columns)
    labels, rows = set(), 0
    # Only rows that are written need columns that are not used.
    read = table.columns if added_columns else [*text, *filter(None, [label])]
    for number, row in table.rows(problems, read, True):
        rows += 1
        all_columns |= dict.fromkeys(row)
        has_others = bool(added_columns) and table.is_json
        problems += _row_problems(row, text, table.place(number), has_others, for_glue)
        with contextlib.suppress(TypeError):
            if label and len(labels) < MAX_LABELS:
                labels.add(tables.label_name(row.get(label)))
        if len(problems) >= MAX_PROBLEMS:
            break
    for name in added_columns:
        if name in all_columns:
            message = f"the output column {name!r} exists already"
            problems.append(Problem(str(path), message, "rename it in the file"))
    raise_any(problems)
    message = f"{path}: texts from {' and '.join(map(repr, text))}"
    say(message + (f", labels from {label!r}" if labels - {None, "", "-1"} else ""))
    if not added_columns:
        all_columns = [*text, label] if label else text
    return TextFile(table, text, label, list(all_columns), rows, labels - {None, ""})


def _row_problems(
    row: dict[str, object], text: list[str], where: str, has_others: bool, for_glue: bool
) -> Iterator[Problem]:
    yield from tables.row_problems(row, text, where)
    if for_glue and any(map(tables.is_blank, tables.row_texts(row, text))):
        message = f"no text in {' or '.join(map(repr, text))}"
        yield Problem(where, message, "fill it in, because GLUE needs every answer")
    # JSON can hold a lone surrogate, and no output file can.
    others = {name: row[name] for name in row if name not in text} if has_others else {}
    if others and tables.LONE_SURROGATE.search(json.dumps(others, ensure_ascii=False)):
        yield Problem(where, tables.SURROGATE_MESSAGE, "correct or remove it")


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
