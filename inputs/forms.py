"""The table in a file or a folder of classes: its form is told by its ending and its content."""

import hashlib
import io
import itertools
import json
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

from inputs import columnar, delimited, encodings, files
from inputs.delimited import Lines
from inputs.files import MAX_PROBLEMS, at
from inputs.rows import Rows, Table
from system.console import InputError, Problem, one_line, progress

FASTTEXT = "__label__"
# The first bytes of files that are no text.
MAGIC = {b"PK\3\4": "a zip file, such as .xlsx", b"\xd0\xcf\x11\xe0": "an old Excel file (.xls)"}
MAGIC |= {b"\x1f\x8b": "a gzip file (.gz)", b"PAR1": "a parquet file", b"ARROW1": "an Arrow file"}
MAGIC |= {b"\x89PNG": "a picture", b"%PDF": "a PDF file"}
TEXT_ENDINGS = {ending for ending in files.ENDINGS if ending not in (".xlsx", ".parquet", ".arrow")}
LINES_BETWEEN_UPDATES = 1000
# Rows that tell the columns of JSON.
FIRST_ROWS = 100
# So many rows of a file whose ending promises no form must have one number of fields.
GOOD_FIT = 0.9
# Lines that show a file to be no JSON lines, if they are the first.
MAX_FORM_PROBLEMS = 3
GAP = re.compile(r"\s*")


def fingerprint(path: Path) -> str:
    """SHA-256 of a file, or of all texts in a folder of classes with their names."""
    # The ending is included, because it decides how the bytes are read.
    digest = hashlib.sha256()
    if path.is_dir():
        names = [f"{label}/{text.name}" for label, text in files.class_texts(path)]
        digest.update(json.dumps(names).encode())
    for block in files.blocks(path):
        digest.update(block)
    return files.ending(path) + digest.hexdigest()


def open_file(path: Path, encoding: str | None = None, named: Collection[str] = ()) -> Table:
    """The table in a file or a folder of classes; InputError if it cannot be read.

    `encoding` is a codec, or None to find it. `named` are columns that the file should have.
    """
    ending = files.ending(path)
    try:
        if path.is_dir():
            table = _class_folder(path, encoding)
        elif ending == ".xlsx":
            table = columnar.open_workbook(path, named)
        elif ending in (".parquet", ".arrow"):
            table = columnar.open_columnar(path)
        else:
            table = _lines_table(path, encoding, named)
    except OSError as error:
        message = f"cannot be read ({error.strerror or one_line(error)})"
        raise InputError(Problem(str(path), message)) from None
    if not table.columns:
        raise InputError(*(table.problems or [Problem(str(path), "no rows", "add rows")]))
    if encoding and not (path.is_dir() or ending in TEXT_ENDINGS):
        note = f"NOTE: {path} has no encoding to choose; --encoding is for text files"
        table = table._replace(notes=[*table.notes, note])
    return table._replace(fingerprint=lambda: f"{fingerprint(path)} {encoding}")


def _lines_table(path: Path, chosen: str | None, named: Collection[str]) -> Table:
    start = next(files.blocks(path), b"")
    if kind := next((MAGIC[magic] for magic in MAGIC if start.startswith(magic)), None):
        raise InputError(Problem(str(path), f"expected text, found {kind}", "use its own ending"))
    encoding = encodings.find_encoding(str(path), lambda: files.blocks(path), chosen)
    name, ending = str(path), files.ending(path)

    def lines(show: bool) -> Iterator[str]:
        return _lines(path, encoding, show)

    first = next(filter(str.strip, lines(False)), "").strip()
    if ending in (".json", ".jsonl") or (ending != ".csv" and first.startswith(("{", "["))):
        table = _json_table(name, lines, is_array=first.startswith("["))
    elif first.startswith(FASTTEXT):
        table = _fasttext_table(name, lines)
    else:
        separators = "\t" if ending == ".tsv" else ",;\t|"
        dialect = delimited.find_dialect(lines, separators)
        if first and ending not in (".csv", ".tsv") and dialect.fit < GOOD_FIT:
            message = f"fits no form of a table (the first line is {first!r:.99})"
            remedy = (
                "separate its columns by tabs, or save it as .csv; predict.py reads lines by `<`"
            )
            raise InputError(Problem(name, message, remedy))
        table = delimited.open_fields(
            name,
            lambda show: delimited.split_rows(lines(show), dialect),
            named,
            dialect.separator,
        )
    notes = [encoding.note, *table.notes] if encoding.note else table.notes
    facts = {"encoding": encoding.codec} if encoding.note or chosen else {}
    return table._replace(notes=notes, facts=facts | dict(table.facts))


def _lines(path: Path, encoding: encodings.Encoding, show: bool) -> Iterator[str]:
    bar = progress(path.stat().st_size, "B", f"reading {path.name}", show=show)
    with bar, path.open("rb") as raw, files.decompressed(path, raw) as stream:
        # Line ends are not translated, because a quoted field may contain them.
        text = io.TextIOWrapper(stream, encoding.codec, newline=encoding.newline)
        for count, line in enumerate(text):
            if count % LINES_BETWEEN_UPDATES == 0:
                bar.update(raw.tell() - bar.n)
            # `cat` leaves the byte-order mark of a second file inside.
            yield line.removeprefix("\ufeff")


# ---- JSON ----


def _json_table(name: str, lines: Lines, is_array: bool) -> Table:
    remedy = "write an array of objects" if is_array else "write one object per line"

    def rows(problems: list[Problem], _: Sequence[str] = (), show: bool = True) -> Rows:
        has_rows = False
        for number, value in (_array if is_array else _objects)(lines(show)):
            if isinstance(value, dict):
                has_rows = True
                yield number, value
                continue
            message = f"expected a JSON object, found {value!r:.80}"
            if isinstance(value, ValueError | RecursionError):
                message = f"invalid JSON ({one_line(value)})"
            problems.append(Problem(at(name, number), message, remedy))
            # Lines that are all wrong are of another form.
            if len(problems) >= (MAX_PROBLEMS if has_rows else MAX_FORM_PROBLEMS):
                return

    if not is_array:
        _check_one_object(name, lines)
    problems: list[Problem] = []
    first_rows = itertools.islice(rows(problems, show=False), FIRST_ROWS)
    columns = list(dict.fromkeys(column for _, row in first_rows for column in row))
    return Table(name, columns, rows, problems=problems, is_json=True)


def _check_one_object(name: str, lines: Lines) -> None:
    """InputError if a file is one object that holds the whole table."""
    first, second = itertools.islice(itertools.chain(_objects(lines(False)), [(0, None)] * 2), 2)
    value = first[1]
    if isinstance(value, ValueError):
        try:
            value = json.loads("".join(lines(False)))
        except (ValueError, RecursionError):
            return
    elif second[0]:
        return
    if not isinstance(value, dict) or not any(map(_is_table, value.values())):
        return
    message = f"one JSON object for the whole file (with {', '.join(map(repr, value))[:99]})"
    remedy = "write an array of objects; in pandas, orient='records'"
    raise InputError(Problem(name, message, remedy))


def _is_table(value: object) -> bool:
    """True for rows or columns within an object; a list of words is a cell."""
    return isinstance(value, dict) or (
        isinstance(value, list) and any(isinstance(item, dict | list) for item in value)
    )


def _objects(lines: Iterable[str]) -> Iterator[tuple[int, object]]:
    """The value on each line that is not blank, or the error of its line."""
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield number, json.loads(line.strip())
            except (ValueError, RecursionError) as error:
                yield number, error


def _array(lines: Iterable[str]) -> Iterator[tuple[int, object]]:
    """The values of one array, each with its first line; an error ends them."""
    text, decoder = "".join(lines), json.JSONDecoder()
    number, counted = 1, 0
    position = GAP.match(text).end() + 1
    separator = ""
    while True:
        position = GAP.match(text, position).end()
        number, counted = number + text.count("\n", counted, position), position
        if text.startswith("]", position) and separator != ",":
            rest = text[position + 1 :].strip()
            if rest:
                yield number, ValueError(f"expected one array, found {rest[:40]!r} after it")
            return
        try:
            value, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            yield number, error
            return
        yield number, value
        position = GAP.match(text, position).end()
        separator = text[position : position + 1]
        if separator not in (",", "]"):
            message = f"expected a comma or ] after this value, found {separator!r}"
            yield number, ValueError(message)
            return
        position += separator == ","


# ---- Texts with their class ----


def _fasttext_table(name: str, lines: Lines) -> Table:
    def rows(problems: list[Problem], _: Sequence[str] = (), show: bool = True) -> Rows:
        for number, line in enumerate(lines(show), 1):
            if not line.strip():
                continue
            labels, text = [], line.strip()
            while text.startswith(FASTTEXT):
                label, _, text = text.partition(" ")
                labels.append(label.removeprefix(FASTTEXT))
                text = text.lstrip()
            if labels:
                yield number, {"text": text, "label": labels}
                continue
            message, remedy = (
                f"no {FASTTEXT} at the start of the line",
                "add it, or remove the line",
            )
            problems.append(Problem(at(name, number), message, remedy))
            if len(problems) >= MAX_PROBLEMS:
                return

    return Table(name, ["text", "label"], rows)


def _class_folder(folder: Path, chosen: str | None) -> Table:
    texts = files.class_texts(folder)
    try:
        encoding = encodings.find_encoding(str(folder), lambda: files.blocks(folder), chosen)
    except InputError:
        problems = itertools.chain(*(_undecodable(path, chosen) for _, path in texts))
        raise InputError(*itertools.islice(problems, MAX_PROBLEMS)) from None

    def rows(problems: list[Problem], _: Sequence[str] = (), show: bool = True) -> Rows:
        with progress(len(texts), "files", f"reading {folder.name}", show=show) as bar:
            for number, (label, path) in enumerate(texts, 1):
                yield number, {"text": path.read_bytes().decode(encoding.codec), "label": label}
                bar.update()

    skipped = [name for name in files.UNLABELLED if (folder / name).is_dir()]
    notes = [f"NOTE: {folder / name} is left out: its texts have no class" for name in skipped]
    return Table(
        str(folder),
        ["text", "label"] if texts else [],
        rows,
        unit="file",
        notes=[*filter(None, [encoding.note]), *notes],
        facts={"encoding": encoding.codec} if encoding.note or chosen else {},
        files=[path for _, path in texts],
    )


def _undecodable(path: Path, chosen: str | None) -> Iterator[Problem]:
    codec = chosen or "utf-8"
    try:
        path.read_bytes().decode(codec)
    except UnicodeError as error:
        yield Problem(str(path), f"expected {codec} ({one_line(error)})", encodings.REMEDY)
