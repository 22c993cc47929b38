"""Any table is read back as it was, in each form, and damage is never silent."""

import csv
import gzip
import io
import itertools
import json
import random
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import openpyxl
import pyarrow
import pyarrow.parquet
import pytest
from harness.checks import read
from hypothesis import given, settings
from hypothesis import strategies as st

from inputs import columns, forms
from system.console import InputError

Rows = list[tuple[str, str]]
NAMES = ("text", "label")

# ---- Each form ----

CHARACTERS = st.characters(codec="utf-8", exclude_characters="\x00")
TEXT = st.one_of(st.text(CHARACTERS, max_size=30), st.text("a\"',;\t|\n\r é{[", max_size=12))
TEXT = TEXT.map(str.strip).filter(bool)
LABELS = ["good", "bad", "0101", "1.10", "é x"]


@st.composite
def tables(draw) -> Rows:
    """Unique texts with labels of two to four classes."""
    texts = draw(st.lists(TEXT, min_size=2, max_size=8, unique=True))
    classes = draw(st.lists(st.sampled_from(LABELS), min_size=2, max_size=4, unique=True))
    return [(text, classes[i % len(classes)]) for i, text in enumerate(texts)]


def separated(rows: Rows, separator: str, quoting: int) -> bytes:
    file = io.StringIO(newline="")
    csv.writer(file, delimiter=separator, quoting=quoting).writerows([NAMES, *rows])
    return file.getvalue().encode()


def objects(rows: Rows) -> list[dict]:
    return [dict(zip(NAMES, row, strict=True)) for row in rows]


def json_lines(rows: Rows) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in objects(rows)).encode()


def json_array(rows: Rows) -> bytes:
    return json.dumps(objects(rows), indent=1, ensure_ascii=False).encode()


def plain(rows: Rows) -> bytes:
    return "".join("\t".join(row) + "\n" for row in [NAMES, *rows]).encode()


def fasttext(rows: Rows) -> bytes:
    return "".join(f"__label__{label} {text}\n" for text, label in rows).encode()


def workbook(rows: Rows) -> bytes:
    book = openpyxl.Workbook()
    for i, row in enumerate([NAMES, *rows], 1):
        for j, value in enumerate(row, 1):
            cell = book.active.cell(i, j, value)
            # A text that starts with an equals sign is no formula.
            cell.data_type = "s"
    book.save(out := io.BytesIO())
    return out.getvalue()


def parquet(rows: Rows) -> bytes:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(objects(rows)), out := io.BytesIO())
    return out.getvalue()


def arrow(rows: Rows) -> bytes:
    table = pyarrow.Table.from_pylist(objects(rows))
    with pyarrow.ipc.new_stream(out := io.BytesIO(), table.schema) as writer:
        writer.write_table(table)
    return out.getvalue()


# Each form: the ending, the writer, and a pattern of the texts and labels that it cannot hold.
FORMS: dict[str, tuple[str, Callable[[Rows], bytes], str]] = {
    f"{ending} by {separator!r}, {quoting}": (
        ending,
        lambda rows, separator=separator, quoting=quoting: separated(rows, separator, quoting),
        "",
    )
    for ending, separator, quoting in itertools.product(
        (".csv", ".txt"), ",;\t|", (csv.QUOTE_MINIMAL, csv.QUOTE_ALL)
    )
}
FORMS |= {
    "tsv": (".tsv", lambda rows: separated(rows, "\t", csv.QUOTE_MINIMAL), ""),
    "plain tsv": (".tsv", plain, r'[\t\n\r"]'),
    "JSON lines": (".jsonl", json_lines, ""),
    "JSON lines as .json": (".json", json_lines, ""),
    "JSON array": (".json", json_array, ""),
    "JSON array as .jsonl": (".jsonl", json_array, ""),
    "fastText": (".txt", fasttext, r"[\n\r]|^__label__|é x"),
    # XML has none of these characters, and openpyxl none of these escapes.
    "Excel": (".xlsx", workbook, r"[\x00-\x08\x0b-\x1f\ufffe\uffff]|_x"),
    "parquet": (".parquet", parquet, ""),
    "Arrow": (".arrow", arrow, ""),
}


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=60)
@given(rows=tables(), is_gzip=st.booleans())
def test_any_table_is_read_back_as_it_was(form, rows, is_gzip):
    ending, to_bytes, impossible = FORMS[form]
    if impossible:
        rows = [row for row in rows if not any(re.search(impossible, cell) for cell in row)]
    if not rows:
        return
    content = to_bytes(rows)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a{ending}{'.gz' if is_gzip else ''}"
        path.write_bytes(gzip.compress(content) if is_gzip else content)
        table = forms.open_file(path, named=NAMES)
        used = columns.find_columns(table, ["text"], "label", labelled=True)
        back, problems = read(table)
    assert (used.text, used.label) == (["text"], "label") and problems == []
    values = [(row["text"], row["label"]) for _, row in back]
    assert [(x, y[0] if isinstance(y, list) else y) for x, y in values] == rows


@settings(max_examples=30)
@given(rows=tables())
def test_any_folder_of_classes_is_read_back_as_it_was(rows):
    # Line ends of a text file become newlines.
    rows = [(text, label) for text, label in rows if not {"\r", "\ufeff"} & set(text)]
    with tempfile.TemporaryDirectory() as folder:
        for i, (text, label) in enumerate(rows):
            path = Path(folder) / label / f"{i:03}.txt"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(text.encode())
        if rows:
            back, problems = read(forms.open_file(Path(folder)))
            assert problems == []
            assert sorted(tuple(row.values()) for _, row in back) == sorted(rows)


# ---- Damage ----

CELLS = ["a plain text", 'a, b and "c"', "two\nlines, or more", 'he said "no"', "it's; odd", '"q"']


def make_table(seed: int) -> tuple[list[tuple[str, ...]], int, str, int]:
    """Rows with commas, quotes and newlines, their quoting and line end; the label's position."""
    dice = random.Random(seed)
    rows = [(str(i), f"{dice.choice(CELLS)} {i}", dice.choice(("good", "bad"))) for i in range(12)]
    if dice.random() < 0.5:
        # The text is the last cell.
        rows = [(label, text) for _, text, label in rows]
    return rows, dice.choice((csv.QUOTE_MINIMAL, csv.QUOTE_ALL)), dice.choice(("\n", "\r\n"))


def damage(seed: int, text: str, start: int) -> tuple[str, int, int]:
    """The text with one damage behind `start`, and the places between which it is."""
    dice = random.Random(f"damage {seed}")
    kind = dice.choice(("delete", "insert", "double", "cut", "swap", "delete line"))
    if kind == "cut":
        place = dice.randrange(start, len(text))
        return text[:place], place, len(text)
    if kind in ("swap", "delete line"):
        pieces = text[start:].splitlines(keepends=True)
        first, second = sorted(dice.sample(range(len(pieces)), 2))
        ends = [start + len("".join(pieces[:i])) for i in range(len(pieces) + 1)]
        if kind == "delete line":
            return text[: ends[first]] + text[ends[first + 1] :], ends[first], ends[first + 1]
        second = first + 1
        pieces[first], pieces[second] = pieces[second], pieces[first]
        return text[:start] + "".join(pieces), ends[first], ends[second + 1]
    character = dice.choice('",\nx')
    if kind == "insert":
        place = dice.randrange(start, len(text) + 1)
        return text[:place] + character + text[place:], place, place
    places = [i for i in range(start, len(text)) if text[i] == character] or [start]
    place = dice.choice(places)
    copies = 2 * text[place] if kind == "double" else ""
    return text[:place] + copies + text[place + 1 :], place, place + 1


def silent(seed: int, folder: Path) -> str:
    """Empty if a damaged file is refused at the right line or read right; else what is wrong."""
    rows, quoting, end = make_table(seed)
    names = ["id", *NAMES] if len(rows[0]) == 3 else [*NAMES[::-1]]
    pieces = []
    for row in [names, *rows]:
        file = io.StringIO(newline="")
        csv.writer(file, quoting=quoting, lineterminator=end).writerow(row)
        pieces.append(file.getvalue())
    text = "".join(pieces)
    damaged, begin, stop = damage(seed, text, len(pieces[0]))
    starts = [0, *itertools.accumulate(map(len, pieces))]
    hit = [i for i in range(len(rows)) if starts[i + 1] <= stop and begin <= starts[i + 2]]
    line, last = (1 + text[: starts[i + 1]].count("\n") for i in (hit[0], hit[-1] + 1))
    path = folder / f"{seed}.csv"
    path.write_bytes(damaged.encode())
    message = f"{damaged[max(begin - 40, 0) : stop + 40]!r}: "
    try:
        back, problems = read(forms.open_file(path, named=NAMES))
    except InputError as error:
        back, problems = [], list(map(str, error.problems))
    if problems:
        place = int(re.search(r", line (\d+)", problems[0])[1])
        return "" if line <= place <= last + 1 else f"{message} {problems[0]}, not {line} to {last}"
    values = [tuple(row.values()) for _, row in back]
    before, behind = rows[: hit[0]], rows[hit[-1] + 1 :]
    # Behind a cut there are no rows.
    is_cut = text == damaged + text[begin:]
    is_same = is_cut or not behind or values[-len(behind) :] == behind
    if values[: len(before)] != before or not is_same:
        return f"{message} another row changed: {values}"
    middle = values[len(before) : len(values) - len(behind)]
    if stop - begin <= 1:
        pairs = list(zip(rows[hit[0] : hit[-1] + 1], middle, strict=False))
        changed = sum(x != y for row, other in pairs for x, y in zip(row, other, strict=True))
        if len(pairs) != len(hit) or changed > 1:
            return f"{message} more than a cell changed: {middle}"
    return ""


def test_200_damages_are_refused_at_their_line_or_read_right(tmp_path):
    wrong = {seed: silent(seed, tmp_path) for seed in range(200)}
    assert {seed: message for seed, message in wrong.items() if message} == {}
