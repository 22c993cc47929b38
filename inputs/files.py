"""The rows of a csv, tsv, jsonl or parquet file, with their line numbers.

Every reader takes (path, problems, columns, show). It adds each unreadable row to `problems` and
yields (number, {column: value}) for the other rows. A number is the line on which the row starts,
or in parquet its row number. The parquet reader reads only `columns`, because others may not be
readable; with None it yields one row of names. With `show` a reader shows progress.
"""

import csv
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from inputs import hub
from system.console import InputError, Problem, one_line, progress, raise_any

Rows = Iterator[tuple[int, dict[str, object]]]

MAX_PROBLEMS = 20
BUILTIN = Path(__file__).resolve().parents[1] / "builtin"
SPLIT_NAMES = {
    "train": ("train",),
    "validation": ("validation", "dev", "valid", "val", "validation_matched"),
    "test": ("test",),
}

csv.field_size_limit(2**31 - 1)  # Characters; the default is 131,072.


def at(path: Path | str, number: int, unit: str = "line") -> str:
    """A place in a file, for messages."""
    return f"{path}, {unit} {number}"


def _lines(path: Path, problems: list[Problem], show: bool = True) -> Iterator[str]:
    """The physical lines of a file, with their endings; one problem if they are not UTF-8."""
    size, desc = path.stat().st_size, f"reading {path.name}"
    with path.open("rb") as file, progress(size, "B", desc, show=show) as bar:
        is_reported = False
        for number, line in enumerate(file, 1):
            try:
                # Excel writes a byte-order mark before the first character.
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                # Another encoding has such bytes throughout, so one report is enough.
                if not is_reported:
                    message = f"expected UTF-8, found byte {line[error.start]:#04x}"
                    remedy = "save the file as UTF-8 (in Excel: CSV UTF-8)"
                    problems.append(Problem(at(path, number), message, remedy))
                is_reported = True
                if number == 1:
                    return
                yield line.decode("utf-8", errors="replace")
            bar.update(len(line))


def _dialect(path: Path) -> dict:
    """The arguments of csv.reader for a csv or tsv file."""
    if path.suffix.lower() == ".tsv":
        return _tsv_dialect(path)
    header = next(filter(str.strip, _lines(path, [])), "")
    # Excel writes `;` in countries with a decimal comma, so the separator is read off the header.
    bare = re.sub(r'"[^"]*"', "", header)
    delimiter = max(",;\t", key=bare.count)
    return {"delimiter": delimiter, "strict": True, "skipinitialspace": True}


def _tsv_dialect(path: Path) -> dict:
    # Excel and pandas quote a field with a tab, newline or quote; GLUE's quotes are plain text.
    # A wrong number of tabs near a quote proves quoting. Otherwise a field that opens with a quote
    # and does not close it proves plain text.
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
    path: Path, problems: list[Problem], _: list[str] | None = None, show: bool = True
) -> Rows:
    reader = csv.reader(_lines(path, problems, show), **_dialect(path))
    columns, start = None, 1
    try:
        for fields in reader:
            number, start = start, reader.line_num + 1
            if not fields:
                continue
            if columns is None:
                columns = fields = [name.strip() for name in fields]
                for name in {name for name in fields if fields.count(name) > 1}:
                    message = f"duplicate column {name!r}"
                    problems.append(Problem(at(path, number), message, "rename one"))
            elif len(fields) == len(columns):
                yield number, dict(zip(columns, fields, strict=True))
            else:
                message = f"wrong number of fields (found {len(fields)}, expected {len(columns)})"
                remedy = "quote texts that contain the separator"
                problems.append(Problem(at(path, number), message, remedy))
            if len(problems) >= MAX_PROBLEMS:
                return
    except csv.Error as error:
        message = f"malformed row ({one_line(error)})"
        problems.append(Problem(at(path, start), message, "check the quotes of this row"))


def _json_lines(
    path: Path, problems: list[Problem], _: list[str] | None = None, show: bool = True
) -> Rows:
    for number, line in enumerate(_lines(path, problems, show), 1):
        if len(problems) >= MAX_PROBLEMS:
            return
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            message = f"invalid JSON ({one_line(error)})"
            problems.append(Problem(at(path, number), message, "write one object per line"))
            continue
        if isinstance(row, dict):
            yield number, row
        else:
            message = f"expected a JSON object, found {row!r:.80}"
            problems.append(Problem(at(path, number), message, "write one object per line"))


def _parquet_rows(
    path: Path, problems: list[Problem], columns: list[str] | None = None, show: bool = True
) -> Rows:
    # Imported here, because --help must not wait for it.
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        names = file.schema_arrow.names
        if len(set(names)) < len(names):
            duplicate = next(name for name in names if names.count(name) > 1)
            problems.append(Problem(str(path), f"duplicate column {duplicate!r}", "rename one"))
        elif columns is None and file.metadata.num_rows:
            yield 1, dict.fromkeys(names)
            return
        number = 0
        desc = f"reading {path.name}"
        with progress(file.metadata.num_rows, "rows", desc, show=show) as bar:
            for batch in file.iter_batches(batch_size=1000, columns=columns or []):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
                bar.update(len(batch))
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        message = f"cannot be read as parquet with UTF-8 text ({one_line(error)})"
        problems.append(Problem(str(path), message, "write the file again"))


class Format(NamedTuple):
    """The reader of files with an ending, and the unit of its row numbers."""

    read: Callable[..., Rows]
    unit: str = "line"
    is_json: bool = False


READERS = {
    ".csv": Format(_delimited_rows),
    ".tsv": Format(_delimited_rows),
    ".jsonl": Format(_json_lines, is_json=True),
    ".parquet": Format(_parquet_rows, "row"),
}


def find_files(name: str) -> dict[str, Path] | None:
    """The file of each split; None for a data set on the Hub; InputError for any other name."""
    path = BUILTIN if name == "builtin" else Path(name)
    if name in hub.SHORT_NAMES:
        return None
    if path.is_file():
        if path.suffix.lower() not in READERS:
            remedy = f"use one of {', '.join(READERS)}"
            raise InputError(Problem(name, f"unknown ending {path.suffix!r}", remedy, "--data"))
        return {"train": path}
    if path.is_dir():
        return _split_files(path, name)
    repository = name.partition(":")[0]
    if "/" in name and hub.is_id(repository) and path.suffix.lower() not in READERS:
        return None
    remedy = "" if set("/.") & set(name) else "write a data set on the Hub as owner/name"
    raise InputError(Problem(name, "no such file or folder", remedy, "--data"))


def _split_files(folder: Path, name: str) -> dict[str, Path]:
    files, problems = {}, []
    for split, stems in SPLIT_NAMES.items():
        matches = [
            file
            for file in sorted(folder.iterdir())
            if file.stem.lower() in stems and file.suffix.lower() in READERS and file.is_file()
        ]
        if len(matches) > 1:
            message = f"more than one {split} file: {' and '.join(f.name for f in matches)}"
            problems.append(Problem(name, message, "keep one", "--data"))
        if matches:
            files[split] = matches[0]
    if "train" not in files:
        remedy = f"add one of {', '.join(f'train{ending}' for ending in READERS)}"
        problems.append(Problem(name, "no train file in the folder", remedy, "--data"))
    raise_any(problems)
    return files
