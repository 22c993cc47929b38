"""The file of each split is found by its name, and a run trains on files as people have them."""

import pyarrow
import pyarrow.parquet
import pytest
from harness.checks import check_done, check_file_refused, check_refused, lines, sentences, write
from harness.helpers import CSV, ROWS

import data
from inputs import files, tables
from system.console import InputError

# ---- Whole runs ----


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("no.csv", None, "--data no.csv: no such file or folder"),
        ("a.pdf", CSV, "--data a.pdf: unknown ending '.pdf'; use one of .csv, .tsv, .txt, "),
        ("a.csv", CSV + "good\n", "a.csv, line 42: 1 field (expected 2); complete or remove"),
    ],
)
def test_a_run_on_an_unusable_file_ends_with_one_line(
    in_process, tmp_path, tiny, name, content, message
):
    check_file_refused(in_process, tiny, tmp_path, name, content, message)


def test_a_folder_without_a_train_file_is_refused(in_process, tmp_path, tiny):
    write(tmp_path, "d/dev.csv", CSV)
    run = in_process("--model", tiny, "--data", "d", "--output-dir", "run")
    message = "--data d: no train file in the folder (found dev.csv); name the file, as in --data d"
    check_refused(run, tmp_path / "run", message)


def test_an_excel_csv_with_bom_crlf_semicolons_and_newlines_trains(in_process, tmp_path, tiny):
    rows = [*ROWS, ("NA", "negative"), ("None", "negative"), ("two\r\nlines; one cell", "positive")]
    text = "".join(f'"{text}";{label}\r\n' for text, label in rows)
    write(tmp_path, "own.csv", "\ufeffReview;Sentiment\r\n" + text)
    flags = ["--model", tiny, "--data", "own.csv", "--epochs", "1", "--output-dir", "run"]
    run = in_process(*flags)
    record = check_done(run, tmp_path / "run")
    assert record["labels"] == ["negative", "positive"]
    # Eight texts have five rows each, and three have one.
    assert sum(record["sentences"].values()) == 43
    assert record["reading"]["columns"] == "names" and record["reading"]["classes"] == [22, 21]
    assert record["reading"]["copies"] == {"repeated": 32}


def test_the_downloaded_glue_folder_trains_unchanged(in_process, tmp_path, tiny):
    bare_quote = '1\t" a film with a bare quote \n'
    for name in ("train", "dev", "test"):
        rows = [(-1 if name == "test" else int(y == "positive"), text) for text, y in ROWS]
        text = "label\tsentence\n" + lines(rows, "\t") + (bare_quote if name != "test" else "")
        write(tmp_path, f"SST-2/{name}.tsv", text)
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

FOLDERS = {
    "whole names": (
        ["Train.tsv", "valid.csv", "test.jsonl", "README.md"],
        {"train": "Train.tsv", "validation": "valid.csv", "test": "test.jsonl"},
    ),
    "names of the Hub": (
        ["train-00000-of-00001.parquet", "test-00000-of-00001.parquet"],
        {"train": "train-00000-of-00001.parquet", "test": "test-00000-of-00001.parquet"},
    ),
    "names of MNLI": (
        ["train.tsv", "dev_matched.tsv", "dev_mismatched.tsv"],
        {"train": "train.tsv", "validation": "dev_matched.tsv"},
    ),
    "parts of names": (
        ["reviews_train.csv", "Reviews-Test.csv.gz", "labels.csv", "strain.csv"],
        {"train": "reviews_train.csv", "test": "Reviews-Test.csv.gz"},
    ),
    "a whole name before parts": (
        ["train.csv", "train_small.csv", "my_dev.csv"],
        {"train": "train.csv"},
    ),
    "any ending": (
        ["train.jsonl.gz", "val.xlsx", "test", ".dev.csv"],
        {"train": "train.jsonl.gz", "validation": "val.xlsx", "test": "test"},
    ),
    "folders of classes": (
        ["train/pos/1.txt", "train/neg/1.txt", "test/pos/1.txt", "imdb.vocab"],
        {"train": "train", "test": "test"},
    ),
    "one folder of classes": (["pos/1.txt", "neg/2.txt", "README.md"], {"train": "d"}),
}


@pytest.mark.parametrize("names, expected", FOLDERS.values(), ids=FOLDERS)
def test_the_file_of_each_split_is_found_by_any_usual_name(tmp_path, names, expected):
    for name in names:
        write(tmp_path, f"d/{name}", "")
    paths = files.find_files(str(tmp_path / "d"))
    assert {split: path.name for split, path in paths.items()} == expected


def test_two_files_of_one_split_are_refused_with_their_names(tmp_path):
    for name in ("train.csv", "train.txt", "dev.parquet", "valid.csv"):
        write(tmp_path, name, "")
    with pytest.raises(InputError) as caught:
        files.find_files(str(tmp_path))
    assert [problem.what for problem in caught.value.problems] == [
        "more than one train file: train.csv and train.txt",
        "more than one validation file: dev.parquet and valid.csv",
    ]


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


def test_the_splits_of_a_folder_may_have_different_forms_and_spellings(tmp_path):
    write(tmp_path, "train.csv", "text,label\n" + lines(sentences(20, "True", "False")))
    write(tmp_path, "dev.json", '[{"text": "so", "label": true}, {"text": "no", "label": false}]')
    write(tmp_path, "test.txt", "label|text\n" + lines([("true", "a b"), ("False", "c d")], "|"))
    text = data.load(str(tmp_path))
    assert {split: len(rows) for split, rows in text.splits.items()} == {
        "train": 20,
        "validation": 2,
        "test": 2,
    }
    ids = {split: [text.ids[y] for y in rows["label"]] for split, rows in text.splits.items()}
    assert text.labels == ["False", "True"] and ids["validation"] == ids["test"] == [1, 0]


def test_a_digest_changes_with_the_bytes_and_with_a_class_of_a_folder(tmp_path):
    paths = [write(tmp_path, f"d/{name}", "good") for name in ("pos/1.txt", "neg/1.txt")]
    folder = str(tmp_path / "d")
    before = tables.digests(folder)
    assert before == tables.digests(folder) and before.keys() == {"train"}
    paths[0].write_text("fine")
    changed = tables.digests(folder)
    paths[0].rename(tmp_path / "d" / "neg" / "2.txt")
    assert len({str(digest) for digest in (before, changed, tables.digests(folder))}) == 3
