"""Tables: columns are found by usual names, and each bad row is refused with its line."""

import errno
import json

import datasets
import pytest
from harness.checks import check_done, check_file_refused, check_refused, load_text
from harness.helpers import CSV, ROWS, limited

import data
from inputs import tables
from system.console import InputError

LABELLED = '{"text": "a", "label": 1}\n'
FILES = {
    "empty": ("a.csv", "", "no rows"),
    "empty jsonl": ("a.jsonl", "", "no rows"),
    "header only": ("a.csv", "sentence,label\n", "no rows"),
    "no text column": ("a.csv", CSV.replace("sentence", "words"), "(found 'words', 'label')"),
    "no label column": ("a.csv", CSV.replace("label", "y", 1), "(found 'sentence', 'y')"),
    "empty text": ("a.csv", CSV + '" ",positive\n', "line 42: no text in 'sentence'"),
    "missing label": ("a.csv", CSV + "good,\n", "line 42: no label in 'label'"),
    "missing field": ("a.jsonl", LABELLED + '{"text": "b"}\n', "line 2: no label"),
    "null text": (
        "a.jsonl",
        LABELLED + '{"text": null, "label": 0}\n',
        "line 2: no text in 'text'",
    ),
    "a number for a text": (
        "a.jsonl",
        LABELLED + '{"text": 5, "label": 0}\n',
        "line 2: expected text in 'text', found 5",
    ),
    "lone surrogate": (
        "a.jsonl",
        LABELLED + '{"text": "cut \\ud83d", "label": 0}\n',
        "line 2: expected Unicode text, found a lone surrogate",
    ),
}


@pytest.mark.parametrize("name, content, message", FILES.values(), ids=FILES)
def test_an_unusable_table_is_refused(in_process, tmp_path, tiny, name, content, message):
    check_file_refused(in_process, tiny, tmp_path, name, content, message)


def test_every_bad_row_of_every_split_is_reported_at_once(in_process, tmp_path, tiny):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "train.csv").write_text(CSV + ",positive\ngood,\nx\n")
    (tmp_path / "d" / "dev.csv").write_text("sentence,label\n,positive\n")
    run = in_process("--model", tiny, "--data", "d", "--output-dir", "run")
    train = ["line 42: no text", "line 43: no label", "line 44: wrong number"]
    check_refused(run, tmp_path / "run", *train, "dev.csv, line 2: no text")


def test_a_run_trains_on_pairs_in_jsonl_with_labels_true_and_false(in_process, tmp_path, tiny):
    rows = [{"a": text, "b": "is it good ?", "ok": word == "positive"} for text, word in ROWS]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "\n")
    flags = ["--data", "pairs.jsonl", "--text-column", "a", "b", "--label-column", "ok"]
    run = in_process("--model", tiny, "--epochs", "1", "--output-dir", "run", *flags)
    assert check_done(run, tmp_path / "run")["labels"] == ["false", "true"]


# ---- Columns ----


def test_a_pair_is_found_by_its_names_and_all_splits_use_the_same_columns(tmp_path):
    rows = "who ?,he did,yes\nwhere ?,she did,no\n" * 3
    text = load_text(tmp_path, "qnli.csv", "question,sentence,label\n" + rows)
    assert text.text_columns == ["question", "sentence"]
    assert set(text.splits["train"]["text_pair"]) == {"he did", "she did"}
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "train.csv").write_text("text,label\n" + "good,1\nbad,0\n" * 3)
    (tmp_path / "d" / "dev.csv").write_text("sentence,text,label\n" + "x,good,1\ny,bad,0\n" * 3)
    assert data.load(str(tmp_path / "d")).splits["validation"]["text"][:2] == ["good", "bad"]
    (tmp_path / "d" / "dev.csv").write_text("sentence,label\n" + "good,1\nbad,0\n" * 3)
    with pytest.raises(InputError, match=r"dev\.csv: no column 'text'"):
        data.load(str(tmp_path / "d"))


def test_a_test_split_without_the_label_column_is_left_out_even_if_the_column_was_named(tmp_path):
    (tmp_path / "train.csv").write_text("text,y\n" + "good,1\nbad,0\n" * 5)
    (tmp_path / "test.csv").write_text("text\nfine\n")
    assert data.load(str(tmp_path), label_column="y").splits.keys() == {"train", "validation"}
    (tmp_path / "test.csv").write_text("id,words\n1,fine\n")
    with pytest.raises(InputError, match=r"test\.csv: no column 'text' \(found 'id'"):
        data.load(str(tmp_path), label_column="y")


def test_one_column_is_not_both_text_and_label(tmp_path):
    load_text(tmp_path, "a.csv", "text,label\n" + "a,1\nb,0\n" * 3)
    with pytest.raises(InputError, match="a column is used twice"):
        data.load(str(tmp_path / "a.csv"), text_columns=["label"], label_column="label")


def test_a_missing_column_is_reported_with_the_existing_ones(tmp_path):
    (tmp_path / "a.csv").write_text("x,y\n1,2\n")
    with pytest.raises(InputError, match=r"no column 'text' \(found 'x', 'y'\); choose one"):
        data.load(str(tmp_path / "a.csv"), text_columns=["text"], label_column="y")


def test_names_of_columns_are_found_in_any_case_and_the_most_specific_first(tmp_path):
    (tmp_path / "a.csv").write_text("Text,Sentence,LABEL\na,b,1\n")
    table = tables.open_file(tmp_path / "a.csv")
    assert tables.find_columns(table, None, None, labelled=True) == (["Sentence"], "LABEL")
    assert tables.find_columns(table, ["text"], "label", labelled=True) == (["Text"], "LABEL")


# ---- Rows ----


def test_a_row_becomes_its_line_text_pair_and_label(tmp_path):
    (tmp_path / "a.csv").write_text('a,b,label\n"two\nlines",é,yes\n x , y, no \n')
    table = tables.open_file(tmp_path / "a.csv")
    rows = tables.read_table(table, ["a", "b"], "label", labelled=True)
    assert rows[:] == {
        "line": [2, 4],
        "text": ["two\nlines", "x "],
        "text_pair": ["é", "y"],
        "label": ["yes", "no"],
    }


def test_labels_that_are_neither_words_nor_numbers_are_refused(tmp_path):
    with pytest.raises(
        InputError, match=r"line 1: expected text, a number.*, found \[1\]; correct it"
    ):
        load_text(tmp_path, "a.jsonl", '{"text": "a", "label": [1]}\n')


def test_a_changed_file_is_read_again(tmp_path):
    content = "text,label\n" + "good,1\nbad,0\n" * 5
    assert load_text(tmp_path, "a.csv", content).labels == ["0", "1"]
    digest = tables.digests(str(tmp_path / "a.csv"))
    assert load_text(tmp_path, "a.csv", content.replace("1", "2")).labels == ["0", "2"]
    assert tables.digests(str(tmp_path / "a.csv")) != digest


# ---- The cache ----


@pytest.mark.long
def test_an_error_of_an_unwritable_cache_names_the_cache(finetune, tmp_path, tiny):
    (tmp_path / "a.csv").write_text(CSV + '"a text of its own",positive\n' * 400)
    flags = ["--model", tiny, "--data", "a.csv", "--output-dir", "run"]
    run = finetune(
        *flags, HF_HOME=str(tmp_path / "home"), **limited(tmp_path, "RLIMIT_FSIZE", 2**13)
    )
    assert run.code == 1 and len(run.errors) == 1 and "Traceback" not in run.err, run.err
    assert "File too large" in run.errors[0] and "HF_HOME" in run.errors[0]
    assert not (tmp_path / "run").exists()


def test_a_full_disk_under_the_cache_is_not_an_input_error(in_process, tmp_path, tiny, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "a.csv").write_text(CSV + '"another text",positive\n')
    monkeypatch.setattr(datasets.arrow_writer.ArrowWriter, "write_table", full)
    run = in_process("--model", tiny, "--data", "a.csv", "--output-dir", "run")
    assert run.code == 1 and len(run.errors) == 1 and "Traceback" not in run.err, run.err
    assert "No space left" in run.errors[0] and "HF_HOME" in run.errors[0]
    assert "a.csv" not in run.errors[0] and not (tmp_path / "run").exists()
