"""A table of labelled text in, checked rows out: csv, tsv, jsonl, parquet, or a split from the Hub.

Every reader yields (row number, {column: value}), where the number is what an editor shows: the
physical line on which the row starts. Nothing but the standard library is imported before a file
needs it, so that a wrong name is answered at once.
"""

import csv
import hashlib
import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import hub
from console import InputError, RunError, one_line, progress

if TYPE_CHECKING:
    from datasets import Dataset

Rows = Iterator[tuple[int, dict[str, object]]]

BUILTIN = Path(__file__).resolve().parent / "builtin"
SPLIT_NAMES = {
    "train": ("train",),
    "validation": ("validation", "dev", "valid", "val", "validation_matched"),
    "test": ("test",),
}
# The usual names of columns, the most telling first; a tuple of two is a pair of sentences.
TEXT_COLUMNS = [
    *("sentence", "text", "review", "content", "comment", "message", "body", "tweet", "document"),
    *(("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2")),
]
LABEL_COLUMNS = ["label", "labels", "sentiment", "class", "category", "target", "polarity", "stars"]
MOST_PROBLEMS = 20

csv.field_size_limit(2**31 - 1)  # The default refuses a field of more than 131,072 characters.


class Table(NamedTuple):
    """One table before it is read: what to call it, what it holds, and how to read its rows."""

    name: str
    unit: str
    columns: list[str]
    rows: Callable[[list[str], list[str]], Rows]  # Of problems, to be added to, and columns.
    fingerprint: Callable[[], str]
    problems: Sequence[str] = ()  # What its first rows have shown.
    names: Mapping[str, list[str]] = {}  # Columns of labels that the Hub has given names and order.


def find_files(name: str) -> dict[str, Path] | None:
    """The file of each split of `name`, or None where it is a data set of the Hub.

    Raises:
        InputError: there is no such file or folder, or it isn't one that can be read.
    """
    path = BUILTIN if name == "builtin" else Path(name)
    if name in hub.SHORT_NAMES:
        return None
    if path.is_file():
        if path.suffix.lower() not in READERS:
            known = ", ".join(READERS)
            raise InputError(
                f"--data {name}: the ending {path.suffix!r} is unknown; known: {known}"
            )
        return {"train": path}
    if path.is_dir():
        return _split_files(path, name)
    repository = name.partition(":")[0]
    if "/" in name and hub.is_id(repository) and path.suffix.lower() not in READERS:
        return None
    hint = "" if set("/.") & set(name) else "; a data set on the Hub is owner/name"
    raise InputError(f"--data {name}: no such file or folder{hint}")


def _split_files(folder: Path, name: str) -> dict[str, Path]:
    files, problems = {}, []
    for split, stems in SPLIT_NAMES.items():
        found = [
            file
            for file in sorted(folder.iterdir())
            if file.stem.lower() in stems and file.suffix.lower() in READERS
        ]
        if len(found) > 1:
            names = " and ".join(file.name for file in found)
            problems.append(f"--data {name}: {names} are both the {split} split; keep one")
        if found:
            files[split] = found[0]
    if "train" not in files:
        endings = ", ".join(f"train{ending}" for ending in READERS)
        problems.append(f"--data {name}: the folder has no train file ({endings})")
    if problems:
        raise InputError(*problems)
    return files


def open_file(path: Path) -> Table:
    """The table in a file; its columns are those of its first rows.

    Raises:
        InputError: it is empty, or its first rows can't be read.
    """
    read, problems = READERS[path.suffix.lower()], []
    try:
        first_rows = itertools.islice(read(path, problems), 100)
        columns = list(dict.fromkeys(column for _, row in first_rows for column in row))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    if not columns:
        raise InputError(*(problems or [f"{path}: no rows in it"]))
    unit = "row" if path.suffix.lower() == ".parquet" else "line"

    def digest() -> str:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def rows(problems: list[str], columns: list[str]) -> Rows:
        return read(path, problems, columns)

    return Table(str(path), unit, columns, rows, digest, problems)


def open_hub_split(split: "Dataset", name: str) -> Table:
    """The table in a split of a data set from the Hub, labels by their names."""
    named = {
        column: feature.names
        for column, feature in split.features.items()
        if hasattr(feature, "names")
    }

    def rows(problems: list[str], columns: list[str]) -> Rows:
        for number, row in enumerate(split.select_columns(columns), 1):
            for column in named.keys() & row.keys():
                known = row[column] is not None and row[column] >= 0  # −1: no label.
                row[column] = named[column][row[column]] if known else None
            yield number, row

    columns = split.column_names
    return Table(name, "row", columns, rows, lambda: split._fingerprint, names=named)


def find_columns(
    table: Table, text_columns: Sequence[str] | None, label_column: str | None, labelled: bool
) -> tuple[list[str], str | None]:
    """The columns of the text (one, or two of a pair) and of the label (None where it may lack).

    Raises:
        InputError: a column that was named isn't there, or none has a usual name.
    """
    lower = {name.lower(): name for name in reversed(table.columns)}
    has = f"the columns are {', '.join(map(repr, table.columns))}"
    problems = []

    def find(asked: Sequence[str] | None, usual: list, flag: str, what: str) -> list[str]:
        for names in [tuple(asked)] if asked else usual:
            names = names if isinstance(names, tuple) else (names,)
            exact = [name if name in table.columns else lower.get(name.lower()) for name in names]
            if all(exact):
                return exact
        wanted = (
            f"no column {', '.join(map(repr, asked))}" if asked else f"no column for the {what}"
        )
        problems.append(f"{table.name}: {wanted}; {has}; name it with {flag}")
        return []

    text = find(text_columns, TEXT_COLUMNS, "--text-column", "text")
    there = lower.keys() & ({label_column.lower()} if label_column else set(LABEL_COLUMNS))
    label = [None]
    if labelled or there:
        asked = [label_column] if label_column else None
        label = find(asked, LABEL_COLUMNS, "--label-column", "label")
    if len({*text, *label}) < len(text) + len(label):
        problems.append(f"{table.name}: a column is used twice; name others with --text-column")
    if problems:
        raise InputError(*problems, *table.problems)
    return text, label[0]


def read_table(
    table: Table, text: list[str], label: str | None, labelled: bool = True
) -> "Dataset":
    """The checked rows as an Arrow table on disk, cached by what the file holds.

    Returns:
        Columns `line` (int64, 1-based), `text`, `text_pair` (None where there is one text), and
        `label` (text; None only where `labelled` is False).
    Raises:
        InputError: one problem for each row that can't be used, up to 20.
    """
    from datasets import Dataset, Features, Value
    from datasets.exceptions import DatasetGenerationError
    from datasets.fingerprint import Hasher

    kinds = {"line": "int64", "text": "string", "text_pair": "string", "label": "string"}
    try:
        read = Dataset.from_generator(
            _checked_rows,
            features=Features({name: Value(kind) for name, kind in kinds.items()}),
            # A tuple, since a list here would be taken for parts to be read one after another.
            gen_kwargs={"table": table, "text": tuple(text), "label": label, "labelled": labelled},
            fingerprint=Hasher.hash((table.fingerprint(), text, label, labelled, "rows 1")),
        )
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, InputError):
            raise error.__cause__ from None
        raise RunError(f"{table.name}: {one_line(error.__cause__ or error)}") from error
    if len(read) == 0:
        raise InputError(f"{table.name}: no rows in it")
    return read


def _checked_rows(
    table: Table, text: tuple[str, ...], label: str | None, labelled: bool
) -> Iterator[dict]:
    problems: list[str] = []
    used = [*text, label] if label else [*text]
    for number, row in table.rows(problems, used):
        where = f"{table.name}, {table.unit} {number}"
        for column in text:
            value = row.get(column)
            if value is None or (isinstance(value, str) and not value.strip()):
                problems.append(f"{where}: no text in {column!r}; fill it in or remove the row")
            elif not isinstance(value, str):
                problems.append(f"{where}: {value!r} in {column!r} is no text, which is needed")
        try:
            name = _label_name(row.get(label)) if label else None
        except TypeError:
            problems.append(
                f"{where}: {row[label]!r} in {label!r} is no word, number or truth value"
            )
            continue
        if any(re.search("[\ud800-\udfff]", str(row.get(column))) for column in used):
            problems.append(f"{where}: half a character (\\ud…) in it; mend or remove it")
        if labelled and not name:
            problems.append(f"{where}: no label in {label!r}; fill it in or remove the row")
        if len(problems) >= MOST_PROBLEMS:
            problems.append(f"{table.name}: perhaps more; these were the first {MOST_PROBLEMS}")
            break
        if not problems:
            pair = row[text[1]] if len(text) == 2 else None
            yield {"line": number, "text": row[text[0]], "text_pair": pair, "label": name or None}
    if problems:
        raise InputError(*problems)


def _label_name(value: object) -> str | None:
    if value is None or value != value:  # Not a number: how some tables mark what is missing.
        return None
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    if isinstance(value, Decimal):
        return str(value)
    raise TypeError(value)


def _lines(path: Path, problems: list[str]) -> Iterator[str]:
    """The physical lines of a text file, with their endings, whatever can't be decoded told."""
    with path.open("rb") as file, progress(path.stat().st_size, "B", f"reading {path.name}") as bar:
        for number, line in enumerate(file, 1):
            try:
                # The mark that Excel writes before the first character is none of the text.
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                byte = line[error.start]
                problems.append(
                    f"{path}, line {number}: byte {byte:#04x} is not UTF-8; save the file as UTF-8"
                )
                if number == 1:  # Nothing in it can be understood: UTF-16, say.
                    return
                yield line.decode("utf-8", errors="replace")
            bar.update(len(line))


def _dialect(path: Path) -> dict:
    """How the columns of a csv or tsv are separated and quoted."""
    if path.suffix.lower() == ".tsv":
        return _tsv_dialect(path)
    header = next(_lines(path, []), "")
    # Excel writes `;` where the comma is the decimal point. It is what the header has most of.
    bare = re.sub(r'"[^"]*"', "", header)
    return {"delimiter": max(",;\t", key=bare.count), "strict": True}


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


def _delimited_rows(path: Path, problems: list[str], _: list[str] | None = None) -> Rows:
    reader = csv.reader(_lines(path, problems), **_dialect(path))
    columns, start = None, 1
    try:
        for fields in reader:
            number, start = start, reader.line_num + 1
            if columns is None:
                columns = fields = [name.strip() for name in fields]
                for name in {name for name in fields if fields.count(name) > 1}:
                    problems.append(
                        f"{path}, line 1: the column {name!r} is there twice; rename one"
                    )
            elif len(fields) == len(columns):
                yield number, dict(zip(columns, fields, strict=True))
            elif fields:  # An empty line has none.
                wanted = f"the header has {len(columns)}"
                problems.append(f"{path}, line {number}: {len(fields)} fields where {wanted}")
            if len(problems) >= MOST_PROBLEMS:
                return
    except csv.Error as error:
        problems.append(f"{path}, line {start}: {one_line(error)}; check the quotes of this row")


def _json_rows(path: Path, problems: list[str], _: list[str] | None = None) -> Rows:
    for number, line in enumerate(_lines(path, problems), 1):
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


def _parquet_rows(path: Path, problems: list[str], columns: list[str] | None = None) -> Rows:
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
        with progress(file.metadata.num_rows, "row", f"reading {path.name}") as bar:
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
