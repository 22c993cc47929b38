"""Usual tables are read and train; unreadable tables are refused with their line."""

import csv
import io
import json

import pyarrow
import pyarrow.parquet
import pytest
from harness.checks import check_done, check_file_refused, check_refused, load_text
from harness.helpers import CSV, ROWS
from hypothesis import given, settings
from hypothesis import strategies as st

import data
from inputs import files
from system.console import InputError, Problem

# ---- Refused files ----

FILES = {
    "missing": ("no.csv", None, "no such file or folder"),
    "unknown ending": ("a.xlsx", CSV, "unknown ending '.xlsx'"),
    "not UTF-8": (
        "a.csv",
        CSV.encode() + b"caf\xe9,positive\n" * 9,
        "line 42: expected UTF-8, found byte 0xe9",
    ),
    "UTF-16": ("a.csv", CSV.encode("utf-16"), "line 1: expected UTF-8, found byte 0xff"),
    "ragged row": (
        "a.csv",
        CSV + "good\n",
        "line 42: wrong number of fields (found 1, expected 2)",
    ),
    "ragged after a quoted newline": (
        "a.csv",
        CSV + '"two\nlines",positive\ngood\n',
        "line 44: wrong number of fields (found 1, expected 2)",
    ),
    "unclosed quote": ("a.csv", CSV + '"never closed,positive\n', "line 42"),
    "duplicate column": ("a.csv", "text,label,label\na,1,0\nb,0,1\n", "duplicate column 'label'"),
    "broken JSON": ("a.jsonl", '{"text": "a", "label": 1}\n{"text": \n', "line 2: invalid JSON"),
    "not a parquet file": ("a.parquet", "sentence,label\n", "cannot be read as parquet"),
}


@pytest.mark.parametrize("name, content, message", FILES.values(), ids=FILES)
def test_an_unreadable_file_is_refused(in_process, tmp_path, tiny, name, content, message):
    check_file_refused(in_process, tiny, tmp_path, name, content, message)


def test_a_folder_without_a_train_file_is_refused(in_process, tmp_path, tiny):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "dev.csv").write_text(CSV)
    run = in_process("--model", tiny, "--data", "d", "--output-dir", "run")
    check_refused(run, tmp_path / "run", "no train file in the folder")


# ---- Accepted files ----


def test_an_excel_csv_with_bom_crlf_semicolons_and_newlines_trains(in_process, tmp_path, tiny):
    rows = [*ROWS, ("NA", "negative"), ("None", "negative"), ("two\r\nlines; one cell", "positive")]
    lines = "".join(f'"{text}";{label}\r\n' for text, label in rows)
    (tmp_path / "own.csv").write_bytes(("\ufeffReview;Sentiment\r\n" + lines).encode())
    flags = ["--model", tiny, "--data", "own.csv", "--epochs", "1", "--output-dir", "run"]
    run = in_process(*flags)
    record = check_done(run, tmp_path / "run")
    assert record["labels"] == ["negative", "positive"]
    assert record["sentences"] == {"train": 38, "validation": 5}
    assert "held out 5 of 43 training sentences" in run.err


def test_the_downloaded_glue_folder_trains_unchanged(in_process, tmp_path, tiny):
    (tmp_path / "SST-2").mkdir()
    bare_quote = '1\t" a film with a bare quote \n'
    for name in ("train", "dev", "test"):
        labels = [-1 if name == "test" else int(label == "positive") for _, label in ROWS]
        lines = [f"{label}\t{text}\n" for label, (text, _) in zip(labels, ROWS, strict=True)]
        text = "label\tsentence\n" + "".join(lines) + (bare_quote if name != "test" else "")
        (tmp_path / "SST-2" / f"{name}.tsv").write_text(text)
    flags = ["--model", tiny, "--data", "SST-2", "--epochs", "1", "--output-dir", "run"]
    run = in_process(*flags)
    record = check_done(run, tmp_path / "run")
    assert record["labels"] == ["0", "1"]
    assert record["sentences"] == {"train": 41, "validation": 41}
    assert "the test split has no labels; it is left out" in run.err


def test_a_labelled_parquet_test_split_is_evaluated_once(in_process, tmp_path, tiny):
    (tmp_path / "d").mkdir()
    columns = {
        "text": [text for text, _ in ROWS],
        "stars": [1 + 4 * (label == "positive") for _, label in ROWS],
    }
    for name in ("train", "validation", "test"):
        pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "d" / f"{name}.parquet")
    flags = ["--model", tiny, "--data", "d", "--max-train-samples", "20", "--epochs", "1"]
    run = in_process(*flags, "--output-dir", "run")
    record = check_done(run, tmp_path / "run")
    assert record["sentences"] == {"train": 20, "validation": 40, "test": 40}
    # The test split holds the same sentences as the validation split.
    assert record["result"]["test_accuracy"] == record["result"]["accuracy"]
    assert run.err.count("test: {'accuracy'") == 1


def test_the_builtin_data_is_found_from_any_folder(in_process, tmp_path, tiny):
    flags = ["--model", tiny, "--data", "builtin", "--max-train-samples", "64", "--epochs", "1"]
    record = check_done(in_process(*flags, "--output-dir", "run"), tmp_path / "run")
    assert record["labels"] == ["negative", "positive"]


# ---- Files of the splits ----


def test_the_file_of_each_split_is_found_by_any_usual_name(tmp_path):
    for name in ("Train.tsv", "valid.csv", "test.jsonl", "README.md", "train.txt"):
        (tmp_path / name).write_text("")
    paths = files.find_files(str(tmp_path))
    assert {split: path.name for split, path in paths.items()} == {
        "train": "Train.tsv",
        "validation": "valid.csv",
        "test": "test.jsonl",
    }
    (tmp_path / "dev.parquet").write_text("")
    with pytest.raises(InputError, match=r"validation file: dev\.parquet and valid\.csv; keep"):
        files.find_files(str(tmp_path))


def test_reserved_names_win_over_paths_and_names_with_owner_are_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("sst2", "builtin"):
        (tmp_path / name).mkdir()
    assert files.find_files("sst2") is None
    assert files.find_files("builtin")["train"].parent == files.BUILTIN
    assert files.find_files("nyu-mll/glue:sst2") is None
    with pytest.raises(InputError, match="--data imdb: no such file or folder; write a data set"):
        files.find_files("imdb")
    with pytest.raises(InputError, match=r"--data me/a\.csv: no such file or folder$"):
        files.find_files("me/a.csv")


# ---- Contents ----


def test_unused_columns_may_hold_anything(tmp_path):
    timestamps = pyarrow.array([10**15] * 10, pyarrow.timestamp("s"))
    columns = {
        "text": [f"t{i}" for i in range(10)],
        "label": [i % 2 for i in range(10)],
        "odd": timestamps,
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    assert data.load(str(tmp_path / "a.parquet")).labels == ["0", "1"]
    header = '"text","a;b;c", label\n'
    rows = "".join(f"t{i},x,{i % 2}\n" for i in range(10))
    assert load_text(tmp_path, "b.csv", header + rows).labels == ["0", "1"]


def test_a_file_with_hundreds_of_problems_is_reported_in_about_20_lines(tmp_path):
    with pytest.raises(InputError) as caught:
        load_text(tmp_path, "a.csv", "a title line\n" + "text,label\n" * 300)
    assert 20 <= len(caught.value.problems) <= 22
    with pytest.raises(InputError) as caught:
        load_text(tmp_path, "a.jsonl", "[\n" + "1,\n" * 300)
    assert 20 <= len(caught.value.problems) <= 22


def test_spaces_after_commas_and_empty_lines_in_a_csv_are_ignored(tmp_path):
    rows = '"good, really", "pos"\n\n"bad", "neg"\n' * 5
    text = load_text(tmp_path, "a.csv", "\nsentence, label\n" + rows)
    assert text.labels == ["neg", "pos"]
    assert set(text.splits["train"]["text"]) == {"good, really", "bad"}
    with pytest.raises(InputError, match=r"line 18: no label in 'label'"):
        load_text(tmp_path, "b.csv", "\nsentence, label\n" + rows + "fine,\n")


def test_the_ending_of_a_file_decides_how_its_bytes_are_read(tmp_path):
    content = 'text\tlabel\n"a ""b"""\t1\n"c"" d\t0\n' + "e\t1\nf\t0\n" * 9
    with pytest.raises(InputError):
        load_text(tmp_path, "a.csv", content)
    assert '"c"" d' in load_text(tmp_path, "a.tsv", content).splits["train"]["text"][:]
    with pytest.raises(InputError):
        load_text(tmp_path, "a.csv", content)


@pytest.mark.parametrize("quoted", [True, False])
def test_quotes_in_a_tsv_enclose_whole_cells_or_are_part_of_the_text(tmp_path, quoted):
    first, second = ('"two\nlines ""x"""', '"tab\there"') if quoted else ('"good" he said', '"open')
    content = "text\tlabel\n" + f"{first}\t0\n{second}\t1\n" * 5
    texts = set(load_text(tmp_path, "a.tsv", content).splits["train"]["text"])
    assert texts == ({'two\nlines "x"', "tab\there"} if quoted else {first, second})


def test_each_reader_returns_the_line_number_at_which_a_row_starts(tmp_path):
    (tmp_path / "a.csv").write_text('text,label\n"two\nlines",1\n\ngood,0\n')
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n\n{"text": "b"}\n')
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", "b"]}), tmp_path / "a.parquet")
    for ending, numbers in ((".csv", [2, 5]), (".jsonl", [1, 3]), (".parquet", [1, 2])):
        problems = []
        rows = list(files.READERS[ending].read(tmp_path / f"a{ending}", problems, ["text"], False))
        assert [number for number, _ in rows] == numbers and not problems
    assert json.dumps(rows[1][1]) == '{"text": "b"}'


CELL = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1)


@settings(max_examples=200)
@given(st.lists(CELL.filter(str.strip), min_size=1, max_size=8), st.sampled_from([",", ";", "\t"]))
def test_each_cell_that_the_csv_module_writes_is_read_back_with_its_line(
    tmp_path_factory, cells, delimiter
):
    file = io.StringIO(newline="")
    writer = csv.writer(file, delimiter=delimiter, quoting=csv.QUOTE_ALL)
    writer.writerow(["text", "label"])
    lines = []
    for cell in cells:
        lines.append(file.getvalue().count("\n") + 1)
        writer.writerow([cell, "x"])
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    path.write_bytes(file.getvalue().encode())
    problems: list[Problem] = []
    rows = list(files.READERS[".csv"].read(path, problems))
    assert rows == [(n, {"text": c, "label": "x"}) for n, c in zip(lines, cells, strict=True)]
    assert not problems
