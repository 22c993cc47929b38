"""Write predictions as a csv, tsv, jsonl or parquet file, or as a file for GLUE's server."""

import codecs
import contextlib
import csv
import functools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from inputs import columnar
from outputs.answers import Answer

Answered = Iterable[tuple[list[dict], list[Answer]]]
Write = Callable[[list[dict]], object]


def write_table(
    out: BinaryIO,
    ending: str,
    source: Path,
    columns: list[str],
    added: list[str],
    names: Sequence[str],
    rows: Answered,
) -> None:
    """Write the rows of the file `source` with their predictions in the `added` columns.

    `ending` chooses the format, `columns` are the columns of all rows, `names` the class names.
    """
    with WRITERS[ending](out, columns, added, source) as write:
        for window, answers in rows:
            for row, answer in zip(window, answers, strict=True):
                name, *probabilities = answer.values(names, every_class=len(added) > 2)
                probabilities = [p if p is None else round(p, 6) for p in probabilities]
                row |= zip(added, [name, *probabilities], strict=True)
            write(window)


def write_glue(out: BinaryIO, rows: Answered, names: Sequence[str]) -> None:
    """Write a file for the GLUE benchmark's server: row numbers from 0, and ids or names."""
    out.write(b"index\tprediction\n")
    # The server wants names for MNLI, QNLI and RTE, and ids for its other tasks.
    in_words = {"entailment"} < set(names)
    number = 0
    for _, answers in rows:
        for answer in answers:
            line = f"{number}\t{names[answer.class_id] if in_words else answer.class_id}\n"
            out.write(line.encode())
            number += 1
    out.flush()


def csv_writer(out: BinaryIO, dialect: str = "excel") -> Callable[[list], object]:
    """A function that writes a row as UTF-8 and ends it with a newline."""
    text = codecs.getwriter("utf-8")(out)
    plain, quoted = (
        csv.writer(text, dialect, lineterminator="\n", quoting=quoting)
        for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL)
    )

    def write(row: list) -> None:
        # Python 3.11 does not quote a carriage return, so readers would end the row there.
        (quoted if any("\r" in str(cell) for cell in row) else plain).writerow(row)

    return write


@contextlib.contextmanager
def _csv(
    out: BinaryIO, columns: list[str], added: list[str], _: Path, dialect: str = "excel"
) -> Iterator[Write]:
    columns, write_row = [*columns, *added], csv_writer(out, dialect)
    write_row(columns)

    def write(rows: list[dict]) -> None:
        for row in rows:
            write_row([_cell(row.get(column)) for column in columns])

    yield write


@contextlib.contextmanager
def _jsonl(out: BinaryIO, *_: object) -> Iterator[Write]:
    def write(rows: list[dict]) -> None:
        # JSON has no NaN.
        rows = ({k: None if v != v else v for k, v in row.items()} for row in rows)
        lines = (json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
        out.write("".join(lines).encode())

    yield write


@contextlib.contextmanager
def _parquet(out: BinaryIO, columns: list[str], added: list[str], source: Path) -> Iterator[Write]:
    # Slow imports, which --help must not wait for.
    import pyarrow
    import pyarrow.parquet

    # A column of any other format can mix types, so each value is written as text.
    is_typed = source.suffix.lower() == ".parquet"
    schema = pyarrow.parquet.read_schema(source) if is_typed else pyarrow.schema([])
    # Class ids were read as names.
    for name in columnar.class_names(schema):
        schema = schema.set(schema.get_field_index(name), pyarrow.field(name, pyarrow.string()))
    schema = schema.remove_metadata()
    prediction, *numbers = added
    for name in [*columns[len(schema) :], prediction]:
        schema = schema.append(pyarrow.field(name, pyarrow.string()))
    for name in numbers:
        schema = schema.append(pyarrow.field(name, pyarrow.float64()))

    unchanged = {*(columns if is_typed else []), *numbers}

    def write(rows: list[dict]) -> None:
        rows = [{k: v if k in unchanged else _text(v) for k, v in row.items()} for row in rows]
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
    return str(value)


WRITERS = {
    ".csv": _csv,
    ".tsv": functools.partial(_csv, dialect="excel-tab"),
    ".jsonl": _jsonl,
    ".parquet": _parquet,
}
