"""The tables in parquet, Arrow and Excel files. Libraries are imported when a file needs them."""

import io
import itertools
import json
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from inputs import delimited, files
from inputs.rows import Rows, Table
from system.console import InputError, Problem, one_line, progress

if TYPE_CHECKING:
    import pyarrow

BATCH_ROWS = 1000
OPENPYXL = "openpyxl==3.1.5"


def _source(path: Path) -> Path | io.BytesIO:
    # A reader jumps in the file, so a compressed file is decompressed as a whole.
    return io.BytesIO(b"".join(files.blocks(path))) if files.is_gzip(path) else path


def _unreadable(path: Path, form: str, error: Exception) -> Problem:
    message = f"cannot be read as {form} ({one_line(error)})"
    return Problem(str(path), message, "write the file again")


# ---- parquet and Arrow ----


def open_columnar(path: Path) -> Table:
    """The table in a .parquet or .arrow file, with the names of a data set's classes."""
    import pyarrow

    form = {".parquet": "parquet", ".arrow": "Arrow"}[files.ending(path)]
    try:
        schema, total, _ = _open(path, form)
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(_unreadable(path, form, error)) from None
    names, named = schema.names, class_names(schema)
    # Other columns may hold values that Python cannot read.
    duplicates = {name for name in names if names.count(name) > 1}
    readable = [f.name for f in schema if is_readable(f.type) and f.name not in duplicates]

    def rows(problems: list[Problem], columns: Sequence[str] = (), show: bool = True) -> Rows:
        number = itertools.count(1)
        if used := sorted(duplicates & set(columns)):
            problems.append(Problem(str(path), f"duplicate column {used[0]!r}", "rename one"))
            return
        try:
            with progress(total, "rows", f"reading {path.name}", show=show) as bar:
                for batch in _open(path, form, columns or readable)[2]:
                    for row in batch.to_pylist():
                        yield next(number), with_class_names(row, named)
                    bar.update(len(batch))
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
            problems.append(_unreadable(path, form, error))

    columns = list(dict.fromkeys(names)) if total else []
    return Table(str(path), columns, rows, "row", class_names=named, duplicates=duplicates)


def _open(
    path: Path, form: str, columns: Sequence[str] = ()
) -> tuple["pyarrow.Schema", int, Iterator["pyarrow.RecordBatch"]]:
    """The schema, the number of rows, and the rows of some columns in batches."""
    import pyarrow.parquet

    if form == "parquet":
        file = pyarrow.parquet.ParquetFile(_source(path))
        batches = file.iter_batches(batch_size=BATCH_ROWS, columns=list(columns))
        return file.schema_arrow, file.metadata.num_rows, batches
    source = _source(path)
    source = (
        pyarrow.memory_map(str(path)) if source is path else pyarrow.BufferReader(source.read())
    )
    try:
        table = pyarrow.ipc.open_stream(source).read_all()
    except pyarrow.ArrowInvalid:
        table = pyarrow.ipc.open_file(source).read_all()
    return table.schema, len(table), iter(table.select(columns).to_batches(BATCH_ROWS))


def is_readable(kind: "pyarrow.DataType") -> bool:
    import pyarrow.types as types

    tests = (types.is_string, types.is_large_string, types.is_string_view, types.is_boolean)
    tests += (types.is_integer, types.is_floating, types.is_decimal)
    if types.is_list(kind) or types.is_dictionary(kind):
        return is_readable(kind.value_type)
    return any(test(kind) for test in tests)


def class_names(schema: "pyarrow.Schema") -> dict[str, list[str]]:
    """The names of classes that the datasets library writes into a file, by column."""
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        return {
            column: [name.strip() for name in feature["names"]]
            for column, feature in features.items()
            # The file may have lost a column that its metadata describe.
            if column in schema.names and feature.get("_type") == "ClassLabel"
        }
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}


def with_class_names(row: dict[str, object], names: dict[str, list[str]]) -> dict[str, object]:
    """The row with names in place of class ids; None for −1, no label."""
    for column in names.keys() & row.keys():
        value = row[column]
        if value is None or value != value or value == -1:
            row[column] = None
        elif not isinstance(value, str):
            # An id without a name is reported as an unknown label.
            is_known = 0 <= value < len(names[column])
            row[column] = names[column][int(value)] if is_known else str(value)
    return row


# ---- Excel ----


def open_workbook(path: Path, named: Collection[str]) -> Table:
    """The table in the first sheet of an .xlsx file that has rows; cells are text."""
    try:
        import openpyxl
    except ImportError:
        message, remedy = "needs openpyxl, which is not installed", f"run `pip install {OPENPYXL}`"
        raise InputError(Problem(str(path), message, remedy)) from None
    try:
        book = openpyxl.load_workbook(_source(path), read_only=True, data_only=True)
        # A cover sheet has single cells.
        sheets = [sheet for sheet in book.worksheets if any(map(any, sheet.values))]
        filled = sorted(sheets, key=lambda sheet: not _is_table(sheet.values))
    # The library passes on the errors of zip, XML and its own reader.
    except Exception as error:
        raise InputError(_unreadable(path, "Excel", error)) from None
    if not filled:
        return Table(str(path), [], lambda *_: iter(()), "row")
    sheet = filled[0]

    def fields(show: bool) -> Iterator[tuple[int, list[str]]]:
        with progress(sheet.max_row, "rows", f"reading {path.name}", show=show) as bar:
            for number, cells in enumerate(sheet.values, 1):
                bar.update()
                yield number, list(map(_cell_text, cells))

    table = delimited.open_fields(str(path), fields, named, unit="row")
    if len(filled) == 1:
        return table
    others = ", ".join(repr(other.title) for other in filled[1:])
    note = f"NOTE: {path}: the sheet {sheet.title!r} is read; other sheets are not ({others})"
    return table._replace(notes=[note, *table.notes], facts={**table.facts, "sheet": sheet.title})


def _is_table(rows: Iterator[tuple]) -> bool:
    wide = (row for row in rows if sum(cell is not None for cell in row) > 1)
    return len(list(itertools.islice(wide, 2))) == 2


def _cell_text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).upper()
    return (
        str(int(value))
        if isinstance(value, float) and value.is_integer()
        else str(value).removesuffix(" 00:00:00")
    )
