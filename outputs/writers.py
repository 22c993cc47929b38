"""Rows and their answers → a csv, tsv, jsonl or parquet file, or one for GLUE's server."""

import codecs
import contextlib
import csv
import functools
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

PREDICTION, PROBABILITY = "prediction", "probability"  # The columns that are added.
Answer = tuple[int, float] | None  # The id of the class and its probability; None for no text.
Answered = Iterable[tuple[list[dict], list[Answer]]]
Write = Callable[[list[dict]], object]


def write_table(
    out: BinaryIO, ending: str, source: Path, columns: list[str], names: list[str], rows: Answered
) -> None:
    """Write the rows of the file `source` with the label of each and its probability.

    The `ending` decides the form, `columns` are those of all rows, `names` those of the classes.
    """
    with WRITERS[ending](out, [*columns, PREDICTION, PROBABILITY], source) as write:
        for window, answers in rows:
            for row, best in zip(window, answers, strict=True):
                row[PREDICTION] = names[best[0]] if best else None
                row[PROBABILITY] = round(best[1], 6) if best else None
            write(window)


def write_glue(out: BinaryIO, rows: Answered) -> None:
    """Write a file for the GLUE benchmark's server: row numbers from 0, and ids of classes."""
    out.write(b"index\tprediction\n")
    number = 0
    for _, answers in rows:
        for best in answers:
            out.write(b"%d\t%d\n" % (number, best[0]))
            number += 1
    out.flush()


def csv_writer(out: BinaryIO, dialect: str = "excel") -> Callable[[list], object]:
    """A function that writes a row as UTF-8, with a newline at its end."""
    text = codecs.getwriter("utf-8")(out)
    plain, quoted = (
        csv.writer(text, dialect, lineterminator="\n", quoting=quoting)
        for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL)
    )

    def write(row: list) -> None:
        # Python 3.11 does not quote a carriage return, and readers would end the row there.
        (quoted if any("\r" in str(cell) for cell in row) else plain).writerow(row)

    return write


@contextlib.contextmanager
def _csv(out: BinaryIO, columns: list[str], _: Path, dialect: str = "excel") -> Iterator[Write]:
    write_row = csv_writer(out, dialect)
    write_row(columns)

    def write(rows: list[dict]) -> None:
        for row in rows:
            write_row([_cell(row.get(column)) for column in columns])

    yield write


@contextlib.contextmanager
def _jsonl(out: BinaryIO, columns: list[str], _: Path) -> Iterator[Write]:
    def write(rows: list[dict]) -> None:
        # JSON has no nan.
        rows = ({k: None if v != v else v for k, v in row.items()} for row in rows)
        lines = (json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
        out.write("".join(lines).encode())

    yield write


@contextlib.contextmanager
def _parquet(out: BinaryIO, columns: list[str], source: Path) -> Iterator[Write]:
    import pyarrow  # Here, because --help must not wait for it.
    import pyarrow.parquet

    # Columns of other files may hold anything, so each value is written as text.
    is_typed = source.suffix.lower() == ".parquet"
    schema = pyarrow.parquet.read_schema(source) if is_typed else pyarrow.schema([])
    for name in columns[len(schema) :]:
        kind = pyarrow.float64() if name == PROBABILITY else pyarrow.string()
        schema = schema.append(pyarrow.field(name, kind))

    def as_text(name: str, value: object) -> object:
        return value if is_typed or name == PROBABILITY else _text(value)

    def write(rows: list[dict]) -> None:
        rows = [{k: as_text(k, v) for k, v in row.items()} for row in rows]
        writer.write_table(pyarrow.Table.from_pylist(rows, schema))

    with pyarrow.parquet.ParquetWriter(out, schema) as writer:
        yield write


def _cell(value: object) -> object:
    is_plain = isinstance(value, str | int | float | None) and not isinstance(value, bool)
    return value if is_plain else _text(value)


def _text(value: object) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, list | dict | bool):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)  # A date, a decimal number.


WRITERS = {
    ".csv": _csv,
    ".tsv": functools.partial(_csv, dialect="excel-tab"),
    ".jsonl": _jsonl,
    ".parquet": _parquet,
}
