"""The rows of a file: csv, tsv, jsonl or parquet, as people have them.

Every reader takes (path, problems, columns, show). It adds a line to `problems` for each row that
cannot be read, and yields (row number, {column: value}) for the others; the number is what an
editor shows, the physical line on which the row starts. Formats that can leave out other `columns`
do; with None they tell the names of all, in the first rows alone. With `show` they show progress.
"""

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path

from system.console import one_line, progress

Rows = Iterator[tuple[int, dict[str, object]]]

MOST_PROBLEMS = 20

csv.field_size_limit(2**31 - 1)  # The default refuses a field of more than 131,072 characters.


def _lines(path: Path, problems: list[str], show: bool = True) -> Iterator[str]:
    """The physical lines of a text file, with their endings, whatever can't be decoded told."""
    size, what = path.stat().st_size, f"reading {path.name}"
    with path.open("rb") as file, progress(size, "B", what, show=show) as bar:
        told = False
        for number, line in enumerate(file, 1):
            try:
                # The mark that Excel writes before the first character is none of the text.
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                byte = line[error.start]
                if not told:  # A file in another encoding has such a byte in every other line.
                    problems.append(
                        f"{path}, line {number}: byte {byte:#04x} is not UTF-8; save the file as "
                        "UTF-8 (in Excel: CSV UTF-8)"
                    )
                told = True
                if number == 1:  # Nothing in it can be understood: UTF-16, say.
                    return
                yield line.decode("utf-8", errors="replace")
            bar.update(len(line))


def _dialect(path: Path) -> dict:
    """How the columns of a csv or tsv are separated and quoted."""
    if path.suffix.lower() == ".tsv":
        return _tsv_dialect(path)
    header = next(filter(str.strip, _lines(path, [])), "")
    # Excel writes `;` where the comma is the decimal point. It is what the header has most of.
    bare = re.sub(r'"[^"]*"', "", header)
    delimiter = max(",;\t", key=bare.count)
    return {"delimiter": delimiter, "strict": True, "skipinitialspace": True}


def _tsv_dialect(path: Path) -> dict:
    # Excel and pandas quote a field that holds a tab, a newline or a quote; GLUE's files hold bare
    # quotes. Where each physical line has all the columns no quote hides a tab or a newline, and
    # quotes are the writer's only if each field that opens with one closes as csv would have it.
    plain = {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
    quoted = {"delimiter": "\t", "strict": True}
    field = re.compile(r'"([^"]|"")*"|(?!").*', re.DOTALL)
    header = next(_lines(path, []), "").count("\t")
    all_closed = True
    for line in _lines(path, []):
        line = line.rstrip("\r\n")
        if line and line.count("\t") != header:
            return quoted if '"' in line or not all_closed else plain
        all_closed = all_closed and all(map(field.fullmatch, line.split("\t")))
    return quoted if all_closed else plain


def _delimited_rows(
    path: Path, problems: list[str], _: list[str] | None = None, show: bool = True
) -> Rows:
    reader = csv.reader(_lines(path, problems, show), **_dialect(path))
    columns, start = None, 1
    try:
        for fields in reader:
            number, start = start, reader.line_num + 1
            if not fields:  # An empty line.
                continue
            if columns is None:
                columns = fields = [name.strip() for name in fields]
                for name in {name for name in fields if fields.count(name) > 1}:
                    problems.append(
                        f"{path}, line {number}: the column {name!r} is there twice; rename one"
                    )
            elif len(fields) == len(columns):
                yield number, dict(zip(columns, fields, strict=True))
            else:
                problems.append(
                    f"{path}, line {number}: {len(fields)} fields where the header has "
                    f"{len(columns)}; quote texts that hold the separator"
                )
            if len(problems) >= MOST_PROBLEMS:
                return
    except csv.Error as error:
        problems.append(f"{path}, line {start}: {one_line(error)}; check the quotes of this row")


def _json_rows(
    path: Path, problems: list[str], _: list[str] | None = None, show: bool = True
) -> Rows:
    for number, line in enumerate(_lines(path, problems, show), 1):
        if len(problems) >= MOST_PROBLEMS:
            return
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            problems.append(f"{path}, line {number}: not JSON ({one_line(error)})")
            continue
        if isinstance(row, dict):
            yield number, row
        else:
            problems.append(
                f'{path}, line {number}: not an object such as {{"text": …, "label": …}}'
            )


def _parquet_rows(
    path: Path, problems: list[str], columns: list[str] | None = None, show: bool = True
) -> Rows:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        names = file.schema_arrow.names
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            problems.append(f"{path}: the column {twice!r} is there twice; rename one")
        elif columns is None and file.metadata.num_rows:  # What others hold may not be readable.
            yield 1, dict.fromkeys(names)
            return
        number = 0
        what = f"reading {path.name}"
        with progress(file.metadata.num_rows, "rows", what, show=show) as bar:
            for batch in file.iter_batches(batch_size=1000, columns=columns or []):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
                bar.update(len(batch))
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        problems.append(f"{path}: not a whole parquet file of UTF-8 text ({one_line(error)})")


READERS = {
    ".csv": _delimited_rows,
    ".tsv": _delimited_rows,
    ".jsonl": _json_rows,
    ".parquet": _parquet_rows,
}
