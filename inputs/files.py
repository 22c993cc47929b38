"""The rows of a file with their line numbers: csv, tsv, jsonl or parquet, as people have them.

Every reader takes (path, problems, columns, show). It adds to `problems` each row that cannot be
read, and yields (number, {column: value}) for the others. The number is what an editor shows: the
physical line on which the row starts, or in parquet the row. Formats that can read fewer `columns`
do; with None they name all columns, in the first rows. With `show` they show progress.
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

MOST_PROBLEMS = 20

BUILTIN = Path(__file__).resolve().parents[1] / "builtin"
SPLIT_NAMES = {
    "train": ("train",),
    "validation": ("validation", "dev", "valid", "val", "validation_matched"),
    "test": ("test",),
}

csv.field_size_limit(2**31 - 1)  # The default refuses a field of more than 131,072 characters.


def at(path: Path | str, number: int, unit: str = "line") -> str:
    """A place in a file, for messages."""
    return f"{path}, {unit} {number}"


def _lines(path: Path, problems: list[Problem], show: bool = True) -> Iterator[str]:
    """The physical lines of a text file, with their endings; one problem if it is not UTF-8."""
    size, desc = path.stat().st_size, f"reading {path.name}"
    with path.open("rb") as file, progress(size, "B", desc, show=show) as bar:
        is_reported = False
        for number, line in enumerate(file, 1):
            try:
                # The mark that Excel writes before the first character is not part of the text.
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                what = f"byte {line[error.start]:#04x} is not UTF-8"
                if not is_reported:  # Other encodings have such a byte in every other line.
                    remedy = "save the file as UTF-8 (in Excel: CSV UTF-8)"
                    problems.append(Problem(at(path, number), what, remedy))
                is_reported = True
                if number == 1:  # No line can be decoded, as in UTF-16.
                    return
                yield line.decode("utf-8", errors="replace")
            bar.update(len(line))


def _dialect(path: Path) -> dict:
    """How the columns of a csv or tsv are separated and quoted."""
    if path.suffix.lower() == ".tsv":
        return _tsv_dialect(path)
    header = next(filter(str.strip, _lines(path, [])), "")
    # Excel writes `;` in countries with a decimal comma. The header has most of the separator.
    bare = re.sub(r'"[^"]*"', "", header)
    delimiter = max(",;\t", key=bare.count)
    return {"delimiter": delimiter, "strict": True, "skipinitialspace": True}


def _tsv_dialect(path: Path) -> dict:
    # Excel and pandas quote a field that holds a tab, a newline or a quote; GLUE's files hold bare
    # quotes. If each physical line has all columns, no quote hides a tab or a newline, and quotes
    # are the writer's only if each field that opens with one closes as csv requires.
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
            if not fields:  # An empty line.
                continue
            if columns is None:
                columns = fields = [name.strip() for name in fields]
                for name in {name for name in fields if fields.count(name) > 1}:
                    what = f"the column {name!r} is there twice"
                    problems.append(Problem(at(path, number), what, "rename one"))
            elif len(fields) == len(columns):
                yield number, dict(zip(columns, fields, strict=True))
            else:
                what = f"{len(fields)} fields where the header has {len(columns)}"
                remedy = "quote texts that hold the separator"
                problems.append(Problem(at(path, number), what, remedy))
            if len(problems) >= MOST_PROBLEMS:
                return
    except csv.Error as error:
        remedy = "check the quotes of this row"
        problems.append(Problem(at(path, start), one_line(error), remedy))


def _json_lines(
    path: Path, problems: list[Problem], _: list[str] | None = None, show: bool = True
) -> Rows:
    for number, line in enumerate(_lines(path, problems, show), 1):
        if len(problems) >= MOST_PROBLEMS:
            return
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            problems.append(Problem(at(path, number), f"not JSON ({one_line(error)})"))
            continue
        if isinstance(row, dict):
            yield number, row
        else:
            what = 'not an object such as {"text": …, "label": …}'
            problems.append(Problem(at(path, number), what))


def _parquet_rows(
    path: Path, problems: list[Problem], columns: list[str] | None = None, show: bool = True
) -> Rows:
    import pyarrow  # Here, because --help must not wait for it.
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        names = file.schema_arrow.names
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            what = f"the column {twice!r} is there twice"
            problems.append(Problem(str(path), what, "rename one"))
        elif columns is None and file.metadata.num_rows:  # Unused columns may not be readable.
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
        what = f"not a whole parquet file of UTF-8 text ({one_line(error)})"
        problems.append(Problem(str(path), what))


class Format(NamedTuple):
    """How the files with an ending are read."""

    read: Callable[..., Rows]
    unit: str = "line"  # The unit of row numbers.
    is_json: bool = False  # Only JSON can hold half a character.


READERS = {
    ".csv": Format(_delimited_rows),
    ".tsv": Format(_delimited_rows),
    ".jsonl": Format(_json_lines, is_json=True),
    ".parquet": Format(_parquet_rows, "row"),
}


def find_files(name: str) -> dict[str, Path] | None:
    """The file of each split of `name`; None if it is a data set on the Hub; or an InputError."""
    path = BUILTIN if name == "builtin" else Path(name)
    if name in hub.SHORT_NAMES:
        return None
    if path.is_file():
        if path.suffix.lower() not in READERS:
            what = f"the ending {path.suffix!r} is unknown"
            raise InputError(Problem(name, what, f"known: {', '.join(READERS)}", "--data"))
        return {"train": path}
    if path.is_dir():
        return _split_files(path, name)
    repository = name.partition(":")[0]
    if "/" in name and hub.is_id(repository) and path.suffix.lower() not in READERS:
        return None
    remedy = "" if set("/.") & set(name) else "a data set on the Hub is owner/name"
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
            what = f"{' and '.join(file.name for file in matches)} are both the {split} split"
            problems.append(Problem(name, what, "keep one", "--data"))
        if matches:
            files[split] = matches[0]
    if "train" not in files:
        endings = ", ".join(f"train{ending}" for ending in READERS)
        what = f"the folder has no train file ({endings})"
        problems.append(Problem(name, what, flag="--data"))
    raise_any(problems)
    return files
