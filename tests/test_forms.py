"""Each form of a table is told by its ending and its content, and anything else is refused."""

import gzip
import io
import json
import sys
from pathlib import Path

import openpyxl
import pyarrow
import pyarrow.parquet
import pytest
from harness.checks import lines, load_text, open_text, read, refusals, sentences, write

import data
from inputs import forms
from system.console import InputError

ROWS = sentences(20, "good", "bad")
OBJECTS = [{"text": text, "label": label} for text, label in ROWS]
JSON_LINES = "".join(json.dumps(row) + "\n" for row in OBJECTS)
FASTTEXT = "".join(f"__label__{label} {text}\n" for text, label in ROWS)


def workbook(*sheets: list[tuple], names: tuple[str, ...] = ("one", "two", "three")) -> bytes:
    book = openpyxl.Workbook()
    book.remove(book.active)
    for name, rows in zip(names, sheets, strict=False):
        sheet = book.create_sheet(name)
        for row in rows:
            sheet.append(row)
    book.save(out := io.BytesIO())
    return out.getvalue()


def columnar(kind: str, table: pyarrow.Table) -> bytes:
    """The bytes of a parquet file, an Arrow file or an Arrow stream."""
    out = io.BytesIO()
    if kind == "parquet":
        pyarrow.parquet.write_table(table, out)
        return out.getvalue()
    make = pyarrow.ipc.new_stream if kind == "stream" else pyarrow.ipc.new_file
    with make(out, table.schema) as writer:
        writer.write_table(table)
    return out.getvalue()


TABLE = pyarrow.Table.from_pylist(OBJECTS)
FORMS = {
    "a.csv": lines([("text", "label"), *ROWS]),
    "a.tsv": lines([("text", "label"), *ROWS], "\t"),
    "a.txt": lines([("text", "label"), *ROWS], ";"),
    "a.data": lines([("text", "label"), *ROWS], "|"),
    "a.jsonl": JSON_LINES,
    "lines.json": "\n" + JSON_LINES,
    "a.json": json.dumps(OBJECTS),
    "array.jsonl": json.dumps(OBJECTS, indent=2),
    "array.txt": json.dumps(OBJECTS),
    "lines": JSON_LINES,
    "fasttext.txt": FASTTEXT,
    "fasttext.csv": FASTTEXT,
    "a.parquet": columnar("parquet", TABLE),
    "a.arrow": columnar("arrow", TABLE),
    "stream.arrow": columnar("stream", TABLE),
    "a.xlsx": workbook([("text", "label"), *ROWS]),
}


@pytest.mark.parametrize("name", [*FORMS, *(f"{name}.gz" for name in FORMS)])
def test_a_table_is_read_in_every_form_also_compressed(tmp_path, name):
    content = FORMS[name.removesuffix(".gz")]
    content = content if isinstance(content, bytes) else content.encode()
    text = load_text(tmp_path, name, gzip.compress(content) if name.endswith(".gz") else content)
    rows = [row for split in text.splits.values() for row in split]
    assert sorted((row["text"], row["label"]) for row in rows) == sorted(ROWS)
    assert text.labels == ["bad", "good"]


@pytest.mark.parametrize(
    "name, content",
    [
        ("a.txt", "this is prose.\nIt has, well, lines\nwithout columns\n"),
        ("a", "good\nbad\ngood\n"),
        ("a.label", "<html>\n<p>one, two</p>\n</html>\n"),
    ],
)
def test_a_file_that_fits_no_form_is_refused_with_its_first_line(tmp_path, name, content):
    first = content.split("\n")[0]
    assert refusals(tmp_path, name, content) == [
        f"{name}: fits no form of a table (the first line is {first!r}); "
        "separate its columns by tabs, or save it as .csv; predict.py reads lines by `<`"
    ]


def test_broken_files_are_refused_with_the_form_that_was_expected(tmp_path):
    cases = {
        "a.parquet": "cannot be read as parquet (",
        "a.arrow": "cannot be read as Arrow (",
        "a.xlsx": "cannot be read as Excel (",
        "a.csv.gz": "cannot be decompressed (",
    }
    for name, message in cases.items():
        (problem,) = refusals(tmp_path, name, "text,label\n")
        assert problem.startswith(f"{name}: {message}")
    whole = gzip.compress(FORMS["a.csv"].encode() * 9)
    (problem,) = refusals(tmp_path, "cut.csv.gz", whole[:-20])
    assert problem.startswith("cut.csv.gz: cannot be decompressed (")


@pytest.mark.parametrize(
    "name", ["a.csv", "a.tsv", "a.txt", "a", "a.json", "a.jsonl", "a.csv.gz", "a.xlsx"]
)
def test_an_empty_file_has_no_rows_in_any_form(tmp_path, name):
    content = workbook([]) if name == "a.xlsx" else b""
    content = gzip.compress(content) if name.endswith(".gz") else content
    assert refusals(tmp_path, name, content) == [f"{name}: no rows; add rows"]


# ---- JSON ----

BROKEN = {
    "broken line": (
        "a.jsonl",
        '{"text": "a"}\n\n{"text": \n5\n',
        [(3, "invalid JSON (Expecting value"), (4, "expected a JSON object, found 5")],
    ),
    "broken value": (
        "a.json",
        '[\n{"text": "a"},\n{"text": }\n]',
        [(3, "invalid JSON (Expecting value")],
    ),
    "no comma": ("a.json", '[{"text": "a"}\n{"text": "b"}]', [(1, "expected a comma or ]")]),
    "comma before the end": ("a.json", '[{"text": "a"},\n]', [(2, "invalid JSON (")]),
    "never closed": ("a.json", '[{"text": "a"}', [(1, "expected a comma or ]")]),
    "two arrays": (
        "a.json",
        '[{"text": "a"}]\n[]',
        [(1, "expected one array, found '[]' after it")],
    ),
    "an array of texts": ("a.json", '["a",\n "b"]', [(1, "found 'a'"), (2, "found 'b'")]),
    "a deep value": ("a.jsonl", "[" * 99_999, [(1, "invalid JSON (")]),
}


@pytest.mark.parametrize("name, content, messages", BROKEN.values(), ids=BROKEN)
def test_broken_json_is_named_with_its_line(tmp_path, name, content, messages):
    problems = refusals(tmp_path, name, content, ["text"], "label")
    problems = [problem for problem in problems if "no column" not in problem]
    assert len(problems) == len(messages), problems
    for problem, (number, message) in zip(problems, messages, strict=True):
        assert problem.startswith(f"{name}, line {number}: ") and message in problem


def test_hundreds_of_broken_lines_of_json_are_reported_in_about_20_lines(tmp_path):
    assert (
        20 <= len(refusals(tmp_path, "a.jsonl", '{"text": "a", "label": "b"}\n' + "1\n" * 99)) < 23
    )


def test_the_columns_of_json_are_those_of_all_its_first_rows(tmp_path):
    table = open_text(tmp_path, "a.jsonl", '{"text": "a"}\n{"text": "b", "label": 1}\n')
    assert table.columns == ["text", "label"] and table.is_json
    assert read(table) == ([(1, {"text": "a"}), (2, {"text": "b", "label": 1})], [])


def test_one_line_of_json_is_one_row_even_if_a_value_is_a_list(tmp_path):
    table = open_text(tmp_path, "a.jsonl", '{"text": "a", "tags": ["b", "c"]}\n')
    assert read(table) == ([(1, {"text": "a", "tags": ["b", "c"]})], [])


def test_an_object_of_columns_is_refused_with_advice(tmp_path):
    content = json.dumps({"text": {"0": "a", "1": "b"}, "label": {"0": 1, "1": 0}}, indent=1)
    (problem,) = refusals(tmp_path, "a.json", content)
    assert problem.startswith("a.json: one JSON object for the whole file (with 'text', 'label')")
    assert problem.endswith("in pandas, orient='records'")


@pytest.mark.parametrize("content", ["5", '"a"', "null", "5\n6\n"])
def test_values_that_are_no_objects_are_named_with_their_line(tmp_path, content):
    problems = refusals(tmp_path, "a.json", content)
    value = json.loads(content.split("\n")[0])
    assert problems[0].startswith(f"a.json, line 1: expected a JSON object, found {value!r}")


def test_a_value_of_an_array_has_the_line_on_which_it_starts(tmp_path):
    table = open_text(tmp_path, "a.json", '\n[\n {"text":\n "a"}, {"text": "b"},\n\n{"text": "]"}]')
    assert [number for number, _ in read(table)[0]] == [3, 4, 6]


# ---- fastText, and a folder for each class ----


def test_a_line_of_fasttext_has_its_labels_first(tmp_path):
    content = "__label__a  one , two \n\n__label__a __label__b three\n four\n__label__c\n"
    rows, problems = read(open_text(tmp_path, "a.txt", content))
    assert rows == [
        (1, {"text": "one , two", "label": ["a"]}),
        (3, {"text": "three", "label": ["a", "b"]}),
        (5, {"text": "", "label": ["c"]}),
    ]
    assert len(problems) == 1 and "a.txt, line 4: no __label__ at the start" in problems[0]


def test_a_folder_of_classes_is_read_and_texts_without_a_class_are_left_out(tmp_path, capsys):
    for i in range(30):
        write(tmp_path, f"train/{('pos', 'neg', 'unsup')[i % 3]}/{i}_7.txt", f"text {i}\nof two\n")
    for name in ("train/pos/.DS_Store", "train/urls_pos.txt", "train/pos/scores.csv", "README"):
        write(tmp_path, name, "nothing")
    write(tmp_path, "test/pos/1.txt", "one")
    write(tmp_path, "test/neg/2", "two")
    text = data.load(str(tmp_path))
    assert text.labels == ["neg", "pos"]
    assert sum(len(text.splits[split]) for split in ("train", "validation")) == 20
    test = text.splits["test"]
    assert test["text"][:] == ["two", "one"] and test["label"][:] == ["neg", "pos"]
    assert text.splits["train"]["text"][0].endswith("\nof two\n")
    err = capsys.readouterr().err
    assert f"NOTE: {tmp_path / 'train' / 'unsup'} is left out: its texts have no class" in err


def test_an_unusable_text_of_a_folder_is_named_by_its_file(tmp_path, capsys):
    for i in range(20):
        write(tmp_path, f"d/{('pos', 'neg')[i % 2]}/{i}.txt", f"text {i}" if i else "  ")
    text = data.load(str(tmp_path / "d"))
    assert text.facts["train"]["left_out"] == 1
    place = tmp_path / "d" / "pos" / "0.txt"
    assert f"1 row without text or label left out ({place})" in capsys.readouterr().err


def test_a_folder_in_another_encoding_is_read_with_a_note(tmp_path, capsys):
    for i in range(20):
        name = f"d/{('pos', 'neg')[i % 2]}/{i}.txt"
        write(tmp_path, name, f"un café très agréable numéro {i}".encode("cp1252"))
    text = data.load(str(tmp_path / "d"))
    assert "un café très agréable numéro 0" in {t for s in text.splits.values() for t in s["text"]}
    assert "it is read as cp1252" in capsys.readouterr().err


# ---- Excel, parquet and Arrow ----


def test_the_cells_of_a_workbook_are_text_as_excel_shows_it(tmp_path):
    rows = [("text", "label"), ("a", 1), ("b", 1.0), ("c", True), ("d", "007"), (5, 0.5), (None,)]
    table = open_text(tmp_path, "a.xlsx", workbook([], rows, [("x",)]))
    labels = [row["label"] for _, row in read(table)[0]]
    assert labels == ["1", "1", "TRUE", "007", "0.5"]
    assert read(table)[0][4] == (6, {"text": "5", "label": "0.5"}) and read(table)[1] == []
    assert table.place(6).endswith("a.xlsx, row 6") and table.facts == {"sheet": "two"}
    assert table.notes[0].endswith("the sheet 'two' is read; other sheets are not ('three')")


def test_a_workbook_without_a_header_is_told_like_any_table(tmp_path):
    table = open_text(tmp_path, "a.xlsx", workbook(ROWS))
    assert table.columns == ["1", "2"] and len(read(table)[0]) == 20


def test_a_workbook_without_its_library_is_refused_in_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    assert refusals(tmp_path, "a.xlsx", b"") == [
        "a.xlsx: needs openpyxl, which is not installed; run `pip install openpyxl==3.1.5`"
    ]


@pytest.mark.parametrize("kind", ["parquet", "arrow", "stream"])
def test_the_names_of_classes_in_a_columnar_file_are_used_in_their_order(tmp_path, kind):
    import datasets

    features = datasets.Features(
        {"text": datasets.Value("string"), "mark": datasets.ClassLabel(names=["pos", "neg"])}
    )
    rows = {"text": [text for text, _ in ROWS] + ["none"], "mark": [0, 1] * 10 + [-1]}
    table = datasets.Dataset.from_dict(rows, features=features).data.table
    schema = features.arrow_schema
    table = pyarrow.Table.from_arrays(table.columns, schema=schema)
    name = "a.parquet" if kind == "parquet" else "a.arrow"
    text = load_text(tmp_path, name, columnar(kind, table))
    assert text.labels == ["pos", "neg"] and text.label_column == "mark"
    assert text.facts["has_class_names"] and text.facts["train"]["left_out"] == 1
    labels = {row["text"]: row["label"] for split in text.splits.values() for row in split}
    assert labels == {text: ("pos", "neg")[i % 2] for i, (text, _) in enumerate(ROWS)}


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_unused_columns_of_a_columnar_file_may_hold_anything(tmp_path, kind):
    odd = pyarrow.array([10**15] * 20, pyarrow.timestamp("s"))
    table = TABLE.append_column("odd", odd).append_column("odd", odd)
    assert load_text(tmp_path, f"a.{kind}", columnar(kind, table)).labels == ["bad", "good"]
    assert refusals(tmp_path, f"b.{kind}", columnar(kind, table), ["odd"], "label") == [
        f"b.{kind}: duplicate column 'odd'; rename one"
    ]


def test_a_changed_ending_or_encoding_reads_the_file_anew(tmp_path):
    tables = [open_text(tmp_path, name, FORMS["a.csv"]) for name in ("a.csv", "b.csv", "a.txt")]
    tables.append(forms.open_file(tmp_path / "a.csv", "utf-8"))
    prints = [table.fingerprint() for table in tables]
    assert prints[0] == prints[1] and len(set(prints)) == 3


@pytest.mark.parametrize("names", [["1.0", "+1"], ["True", "true"], [" b", "[1]"]])
def test_names_of_classes_are_never_read_as_numbers_or_lists(tmp_path, names):
    path = _columnar(tmp_path, names, [i % 2 for i in range(40)])
    assert data.load(str(path)).labels == [name.strip() for name in names]


def test_ids_of_classes_may_be_floats_and_an_id_without_a_name_is_refused(tmp_path):
    path = _columnar(tmp_path, ["no", "yes"], [float(i % 2) for i in range(39)] + [None])
    assert data.load(str(path)).facts["train"]["left_out"] == 1
    path = _columnar(tmp_path, ["no", "yes"], [i % 2 for i in range(39)] + [7])
    with pytest.raises(InputError, match="row 40: the label '7' is not in the training data"):
        data.load(str(path))


def _columnar(folder, names: list[str], values: list) -> Path:
    """A parquet file with the names of classes, and of a column that the file has lost."""
    features = {"label": {"names": names, "_type": "ClassLabel"}}
    features["target"] = features["label"]
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    texts = [f"this is the text {i}" for i in range(len(values))]
    content = pyarrow.table({"text": texts, "label": values}).replace_schema_metadata(metadata)
    pyarrow.parquet.write_table(content, folder / "a.parquet")
    return folder / "a.parquet"


def test_the_sheet_with_a_table_is_read_and_not_the_cover(tmp_path, capsys):
    book = openpyxl.Workbook()
    book.active.title = "Cover"
    book.active.append(["Survey 2024"])
    sheet = book.create_sheet("Answers")
    for row in [("text", "label"), *sentences(40, "good", "bad")]:
        sheet.append(row)
    book.save(tmp_path / "a.xlsx")
    assert len(data.load(str(tmp_path / "a.xlsx")).splits["train"]) == 36
    note = "the sheet 'Answers' is read; other sheets are not ('Cover')"
    assert note in capsys.readouterr().err


@pytest.mark.parametrize(
    "start, kind",
    [(b"PK\3\4", "a zip file, such as .xlsx"), (b"\x1f\x8b", "a gzip file"), (b"PAR1", "parquet")],
)
def test_a_file_under_a_wrong_ending_is_named_by_its_first_bytes(tmp_path, start, kind):
    (problem,) = refusals(tmp_path, "a.csv", start + bytes(range(256)) * 9)
    assert problem.startswith(f"a.csv: expected text, found {kind}") or kind in problem


def test_a_damaged_text_of_a_folder_of_classes_is_named_by_its_file(tmp_path):
    for i in range(20):
        write(tmp_path, f"{'ab'[i % 2]}/{i}.txt", f"the caf\u00e9 number {i}".encode())
    write(tmp_path, "a/3.txt", b"the caf\xe9 number 3")
    with pytest.raises(InputError) as caught:
        data.load(str(tmp_path))
    assert [problem.where for problem in caught.value.problems] == [str(tmp_path / "a/3.txt")]
