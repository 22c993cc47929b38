"""Separated values: the separator, the meaning of quotes, and the rows."""

import collections
import csv
import itertools
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

from inputs.files import MAX_PROBLEMS, at
from inputs.header import SAMPLE_ROWS, bare, is_equal, is_header
from inputs.rows import Rows, Table
from system.console import InputError, Problem, plural

# A function of (show) that opens a file and yields its lines.
Lines = Callable[[bool], Iterator[str]]
Fields = Callable[[bool], Iterator[tuple[int, list[str] | None]]]

# Lines that decide the separator.
SAMPLE_LINES = 500
# A cell with more lines has a quote that is not closed.
MAX_LINES = 100_000
# Excel names the separator in a line before the header.
SEPARATOR_LINE = re.compile(r'"?sep=(.)"?\s*', re.IGNORECASE)

csv.field_size_limit(2**31 - 1)  # Characters; the default is 131,072.


class Dialect(NamedTuple):
    """How the lines of a file become fields."""

    separator: str
    is_quoted: bool  # Quotes enclose fields; else they are part of the text.
    first_line: int  # 2 if the first line is Excel's `sep=`
    fit: float  # The share of sampled rows with the usual number of fields; 0: one field.

    def options(self) -> dict:
        """The arguments of csv.reader."""
        if not self.is_quoted:
            return {"delimiter": self.separator, "quoting": csv.QUOTE_NONE}
        is_tab = self.separator == "\t"
        return {"delimiter": self.separator, "strict": True, "skipinitialspace": not is_tab}


# ---- The dialect ----


def find_dialect(lines: Lines, separators: str) -> Dialect:
    """The dialect in which most rows of a file have the same number of fields."""
    first = next(lines(False), "")
    match, first_line = SEPARATOR_LINE.fullmatch(first), 1
    if match:
        separators, first_line = match[1], 2
    sample = list(itertools.islice(lines(False), first_line - 1, SAMPLE_LINES))
    fits = {separator: _fit(sample, separator, csv.QUOTE_MINIMAL) for separator in separators}
    if "\t" in fits:
        fits["\t"] = max(fits["\t"], _fit(sample, "\t", csv.QUOTE_NONE))
    # Two separators rarely fit equally well. Then the header decides.
    header = re.sub(r'"[^"]*"', "", next(filter(str.strip, sample), ""))
    separator = max(separators, key=lambda s: (fits[s], header.count(s)))
    dialect = Dialect(separator, True, first_line, fits[separator])
    if separator != "\t":
        return dialect
    # Excel and pandas quote a field with a tab, newline or quote; GLUE's quotes are plain text. The
    # reading that damages fewer rows of the whole file is right.
    plain = dialect._replace(is_quoted=False)
    if not any('"' in line for line in lines(False)):
        return plain
    damaged = _damaged(lines(False), dialect)
    return plain if damaged and _damaged(lines(False), plain) < damaged else dialect


def _fit(sample: list[str], separator: str, quoting: int) -> float:
    reader = csv.reader(sample, delimiter=separator, skipinitialspace=True, quoting=quoting)
    try:
        counts = collections.Counter(len(fields) for fields in reader if any(fields))
    except csv.Error:
        return 0
    usual = max(counts, key=counts.get, default=1)
    return counts[usual] / counts.total() if usual > 1 else 0


def _damaged(lines: Iterable[str], dialect: Dialect) -> int:
    """The number of rows, up to a limit, that are malformed or differ from the first in length."""
    damaged, usual = 0, None
    for _, fields in split_rows(lines, dialect, repair=False):
        if fields is None or (any(fields) and len(fields) != (usual := usual or len(fields))):
            damaged += 1
            if damaged >= MAX_PROBLEMS:
                break
    return damaged


# ---- Rows ----


def split_rows(
    lines: Iterable[str], dialect: Dialect, repair: bool = True
) -> Iterator[tuple[int, list[str] | None]]:
    """The first line's number and the fields of each row; None if its quotes are malformed.

    Reading goes on behind a malformed row. With `repair`, text after a closing quote is part of
    its field, as in pandas.
    """
    options, number, damaged = dialect.options(), dialect.first_line, 0
    cell = rf' *+"(?:[^"]++|"")*+"|[^"{re.escape(dialect.separator)}]*+'
    well_formed = re.compile(rf"({cell})({re.escape(dialect.separator)}({cell}))*+[\r\n]*")
    source = itertools.islice(lines, number - 1, None)
    block: list[str] = []

    def recorded(source: Iterator[str]) -> Iterator[str]:
        for line in source:
            block.append(line)
            if len(block) > MAX_LINES:
                raise csv.Error
            yield line

    # Each malformed row can read a large part of the file again.
    while damaged < MAX_PROBLEMS:
        try:
            for fields in csv.reader(recorded(source), **options):
                is_odd = dialect.is_quoted and '"' in block[0] and len(block) == 1
                is_odd = is_odd and _is_split(fields)
                yield number, None if is_odd and not well_formed.fullmatch(block[0]) else fields
                number += len(block)
                block.clear()
            return
        except csv.Error:
            fields = _repaired(block[0], options) if repair and len(block) == 1 else None
            yield number, fields
            damaged += fields is None
            number += 1
            # A quote that is never closed takes in all lines behind it: they are read again.
            if rest := block[1:]:
                source = itertools.chain(rest, source)
            block.clear()


def _repaired(line: str, options: dict) -> list[str] | None:
    """The fields of a line with text after a closing quote; None if a quote is not closed."""
    try:
        (fields,) = csv.reader([line.rstrip("\r\n") + "\n"], **options | {"strict": False})
    except (csv.Error, ValueError):
        return None
    # An open quote takes in the end of the line.
    is_open = not fields or fields[-1].endswith("\n")
    return None if is_open or _is_split(fields, opened=1) else fields


def _is_split(fields: list[str], opened: int = 0) -> bool:
    """True if a quote seems to close in a later field than the one in which it opens."""
    odd = [field for field in fields if field.count('"') % 2]
    return any(field.endswith('"') for field in odd[1 - opened :])


# ---- The table ----


def open_fields(
    name: str, fields: Fields, named: Collection[str], separator: str = "", unit: str = "line"
) -> Table:
    """The table in rows of fields; a first row with all columns in `named` is a header.

    `fields` is a function of (show) that yields each row's number and fields, or None.
    """

    def filled(show: bool = False) -> Iterator[tuple[int, list[str] | None]]:
        return ((number, row) for number, row in fields(show) if row is None or any(row))

    start, first = next(filled(), (1, []))
    if not first:
        problems = [] if first == [] else [_malformed(at(name, start, unit))]
        return Table(name, [], filled, problems=problems)
    first = list(map(bare, first))
    looks_like_header, is_sure = is_header(first, (row for _, row in filled() if row))
    # The names 1, 2, 3 are those of a file without a header.
    is_named = bool(named) and not all(map(str.isdigit, named))
    is_named = is_named and {column.lower() for column in named} <= set(map(str.lower, first))
    has_header = looks_like_header or is_named
    names = first if has_header else [str(number) for number in range(1, len(first) + 1)]
    # Only the columns in use need a name of their own.
    columns = [
        column if column and column not in names[:position] else f"{column} {position + 1}".strip()
        for position, column in enumerate(names)
    ]
    _check_names(at(name, start, unit), filled, first, has_header)

    def rows(problems: list[Problem], _: Sequence[str] = (), show: bool = True) -> Rows:
        for number, row in filled(show):
            if has_header and number == start:
                continue
            is_again = has_header and row and bare(row[0]) == first[0] and is_equal(row, first)
            if row and len(row) == len(first) and not is_again:
                yield number, dict(zip(columns, row, strict=True))
                continue
            problems.append(_problem(at(name, number, unit), row, first, is_again, separator))
            if len(problems) >= MAX_PROBLEMS:
                return

    notes = []
    if not has_header:
        listed = ", ".join(columns[:3]) + ", …" * (len(columns) > 3)
        note = f"{unit} {start} is data, and the columns are called {listed}"
        notes.append(f"NOTE: {name} has no header: {note}")
    elif not looks_like_header:
        note = "looks like data; it is the header, because it has the chosen columns"
        notes.append(f"NOTE: {at(name, start, unit)}: {note}")
    elif not (is_sure or is_named):
        notes.append(f"NOTE: {at(name, start, unit)}: taken as the header; it may be data")
    return Table(
        name,
        columns,
        rows,
        unit,
        notes=notes,
        facts={} if has_header else {"header": False},
        duplicates={column for column in names if names.count(column) > 1},
    )


def _check_names(where: str, fields: Fields, first: list[str], has_header: bool) -> None:
    """InputError if the first row has another number of fields than the next, or lacks names."""
    rows = itertools.islice((row for _, row in fields(False) if row), 1, SAMPLE_ROWS)
    sample = list(rows)
    widths = collections.Counter(map(len, sample))
    message = ""
    if len(widths) == 1 and len(sample) >= 3 and len(first) not in widths:
        message = (
            f"{len(first)} {plural('name', len(first))}, but the rows have {min(widths)} fields"
        )
    elif has_header:
        # pandas and R leave the first column, of row numbers, without a name.
        filled = [sum(bool(cell) for cell in cells) for cells in zip(*sample, strict=False)][1:]
        unnamed = [n for n, cell in zip(filled, first[1:], strict=False) if not cell]
        if unnamed and max(unnamed) > len(sample) / 2:
            message = f"names only {sum(map(bool, first))} of {len(first)} columns"
    if message:
        remedy = "name each column in the header, and remove lines above it"
        raise InputError(Problem(where, message, remedy))


def _malformed(where: str) -> Problem:
    remedy = "close each quote, double a quote in a text, and end all lines alike"
    return Problem(where, "malformed quotes or line end", remedy)


def _problem(
    where: str, row: list[str] | None, first: list[str], is_again: bool, separator: str
) -> Problem:
    if row is None:
        return _malformed(where)
    if is_again:
        return Problem(where, "the header comes again", "remove this line")
    message = f"{len(row)} {plural('field', len(row))} (expected {len(first)})"
    separator = {"\t": "a tab"}.get(separator, separator)
    remedy = f"quote texts that contain {separator}"
    return Problem(
        where, message, remedy if len(row) > len(first) else "complete or remove the row"
    )
