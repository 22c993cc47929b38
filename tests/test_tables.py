"""Rows that are not whole are left out and named, and each row that cannot be used is refused."""

import datetime
import errno
import json
from decimal import Decimal

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from harness.checks import (
    check_done,
    check_refused,
    lines,
    load_text,
    open_text,
    refusals,
    sentences,
    write,
)
from harness.helpers import CSV, ROWS, limited

import data
from inputs import hub, tables
from system.console import InputError

TABLE = "text,label\n" + lines(sentences(12, "good", "bad"))
LABELLED = '{"text": "a", "label": 1}\n'

REFUSED = {
    "header only": ("a.csv", "sentence,label\n", ["a.csv: no rows; add rows"]),
    "rows without labels only": (
        "a.csv",
        "sentence,label\na,\nb,\n",
        [
            "a.csv: 2 of 2 rows have nothing in 'sentence' or 'label'; "
            "fill them in (lines 2, 3), or choose other columns"
        ],
    ),
    "a number for a text": (
        "a.jsonl",
        LABELLED + '{"text": 5, "label": 0}\n\n{"text": ["a"], "label": 0}\n',
        [
            "a.jsonl, line 2: expected text in 'text', found 5; write it as text",
            "a.jsonl, line 4: expected text in 'text', found ['a']; write it as text",
        ],
    ),
    "lone surrogates": (
        "a.jsonl",
        LABELLED + '{"text": "cut \\ud83d", "label": 0}\n{"text": "b", "label": "\\ud83d"}\n',
        [
            "a.jsonl, line 2: expected Unicode text, found a lone surrogate; correct or remove it",
            "a.jsonl, line 3: expected Unicode text, found a lone surrogate; correct or remove it",
        ],
    ),
    "an object for a label": (
        "a.jsonl",
        LABELLED + '{"text": "b", "label": {"x": 1}}\n',
        [
            "a.jsonl, line 2: expected text, a number, true or false in 'label', found {'x': 1}; "
            "correct it or remove the row"
        ],
    ),
}


@pytest.mark.parametrize("name, content, problems", REFUSED.values(), ids=REFUSED)
def test_an_unusable_table_is_refused_with_the_line_of_each_row(tmp_path, name, content, problems):
    assert refusals(tmp_path, name, content) == problems


def test_every_bad_row_of_every_split_is_reported_at_once(in_process, tmp_path, tiny):
    write(tmp_path, "d/train.csv", CSV + ",positive\ngood,\nx\n")
    write(tmp_path, "d/dev.jsonl", '{"sentence": 1, "label": "positive"}\n')
    run = in_process("--model", tiny, "--data", "d", "--output-dir", "run")
    problems = ["train.csv, line 44: 1 field", "dev.jsonl, line 1: expected text in 'sentence'"]
    check_refused(run, tmp_path / "run", *problems)


def test_a_run_trains_on_pairs_in_jsonl_with_labels_true_and_false(in_process, tmp_path, tiny):
    rows = [{"a": text, "b": "is it good ?", "ok": word == "positive"} for text, word in ROWS]
    write(tmp_path, "pairs.jsonl", "".join(json.dumps(row) + "\n" for row in rows) + "\n")
    flags = ["--data", "pairs.jsonl", "--text-column", "a", "b", "--label-column", "ok"]
    run = in_process("--model", tiny, "--epochs", "1", "--output-dir", "run", *flags)
    assert check_done(run, tmp_path / "run")["labels"] == ["false", "true"]


# ---- Rows that are not whole ----


def test_a_row_without_a_text_or_a_label_is_left_out_counted_and_named(tmp_path, capsys):
    content = TABLE + "\n,\n ,\n" + ",good\nfine, \n" + lines(sentences(3, "good"))
    text = load_text(tmp_path, "a.csv", content)
    assert sum(map(len, text.splits.values())) == 15
    assert text.facts["train"] == {"left_out": 2, "first_left_out": [17, 18]}
    note = f"NOTE: {tmp_path / 'a.csv'}: 2 rows without text or label left out (lines 17, 18)"
    assert capsys.readouterr().err.splitlines()[0] == note


def test_only_the_first_five_rows_that_are_left_out_are_named(tmp_path, capsys):
    load_text(tmp_path, "a.csv", "text,label\n" + "x,\n" * 7 + lines(sentences(12, 1, 0)))
    assert "7 rows without text or label left out (lines 2, 3, 4, 5, 6, …)" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize("value", ['""', '" \\n"', "null", "NaN"])
@pytest.mark.parametrize("column", ["text", "label"])
def test_each_kind_of_nothing_leaves_a_row_of_json_out(tmp_path, column, value):
    row = {"text": '"some text"', "label": '"good"'} | {column: value}
    content = "".join(
        json.dumps({"text": x, "label": y}) + "\n" for x, y in sentences(12, "good", "bad")
    )
    content += f'{{"text": {row["text"]}, "label": {row["label"]}}}\n{{"id": 3}}\n'
    facts = load_text(tmp_path, "a.jsonl", content).facts
    assert facts["train"]["left_out"] == 2 and facts["train"]["first_left_out"] == [13, 14]


def test_more_rows_left_out_than_used_are_an_error(tmp_path):
    rows = lines(sentences(12, "good", "bad"))
    assert load_text(tmp_path, "a.csv", "text,label\n" + "x,\n" * 12 + rows).labels
    assert refusals(tmp_path, "b.csv", "text,label\n" + "x,\n" * 13 + rows) == [
        "b.csv: 13 of 25 rows have nothing in 'text' or 'label'; "
        "fill them in (lines 2, 3, 4, 5, 6, …), or choose other columns"
    ]


def test_a_pair_without_its_second_text_is_left_out(tmp_path):
    rows = [(x, "b", y) for x, y in sentences(12, "good", "bad")]
    content = "sentence1,sentence2,label\n" + lines([*rows, ("a", " ", "good"), ("", "b", "good")])
    text = load_text(tmp_path, "a.csv", content)
    assert text.facts["train"]["first_left_out"] == [14, 15]
    assert sum(map(len, text.splits.values())) == 12


def test_rows_of_validation_and_test_are_left_out_too(tmp_path, capsys):
    write(tmp_path, "train.csv", TABLE)
    write(tmp_path, "dev.csv", "text,label\nx,good\n,bad\n")
    write(tmp_path, "test.csv", "text,label\ny,\nz,good\n,bad\n")
    text = data.load(str(tmp_path))
    assert {split: len(rows) for split, rows in text.splits.items()} == {
        "train": 12,
        "validation": 1,
        "test": 1,
    }
    assert text.splits["test"]["text"][:] == ["z"]
    assert text.facts["test"]["first_left_out"] == [2, 4]
    assert "test.csv: 2 rows without text or label left out (lines 2, 4)" in capsys.readouterr().err


def test_rows_of_the_hub_are_left_out_as_nobody_can_edit_them(monkeypatch, capsys):
    features = datasets.Features(
        {
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["pos", "neg"]),
            "odd": datasets.Value("timestamp[s]"),
        }
    )
    texts = [text for text, _ in sentences(20, "")]
    rows = {"text": [*texts, None, "c"], "label": [*[0, 1] * 10, 1, -1], "odd": [None] * 22}
    split = datasets.Dataset.from_dict(rows, features=features)
    monkeypatch.setattr(hub, "fetch_data", lambda _: {"train": split})
    text = data.load("me/reviews")
    assert text.labels == ["pos", "neg"] and sum(map(len, text.splits.values())) == 20
    assert text.facts["train"] == {"left_out": 2, "first_left_out": [21, 22]}
    note = "NOTE: --data me/reviews, train: 2 rows without text or label left out (rows 21, 22)"
    assert note in capsys.readouterr().err.splitlines()


# ---- Values ----


def test_a_row_becomes_its_line_text_pair_and_label(tmp_path):
    content = 'a,b,label\n"two\nlines",é,yes\n x , y, no \n,z,no\n'
    table = open_text(tmp_path, "a.csv", content)
    checked = tables.read_table(table, ["a", "b"], "label", labelled=True)
    assert checked.rows[:] == {
        "line": [2, 4],
        "text": ["two\nlines", "x "],
        "text_pair": ["é", "y"],
        "label": ["yes", "no"],
    }
    assert (checked.left_out, checked.first_left_out) == (1, [5])
    # The second time they come from the cache.
    assert tables.read_table(table, ["a", "b"], "label")[1:] == (1, [5])


@pytest.mark.parametrize(
    "value, name",
    [
        (" 007 ", "007"),
        (7, "7"),
        (7.0, "7.0"),
        (True, "true"),
        (Decimal("1.10"), "1.10"),
        (["one"], "one"),
        ([[3]], "3"),
        ([], None),
        (None, None),
        (float("nan"), None),
    ],
)
def test_a_label_is_the_text_that_is_written(value, name):
    assert tables.label_name(value) == name


@pytest.mark.parametrize("value", [["a", "b"], {"a": 1}, datetime.date(2020, 1, 31)])
def test_other_values_are_no_label(value):
    with pytest.raises(TypeError):
        tables.label_name(value)


def test_decimals_and_dictionaries_of_parquet_are_read(tmp_path):
    texts, labels = zip(*sentences(12, Decimal("1.10"), Decimal("1.20")), strict=True)
    table = {"text": pyarrow.array(texts).dictionary_encode(), "label": labels}
    pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "a.parquet")
    text = data.load(str(tmp_path / "a.parquet"))
    assert text.labels == ["1.10", "1.20"]


# ---- The cache ----


def test_a_changed_file_is_read_again(tmp_path):
    content = "text,label\n" + "good,1\nbad,0\n" * 5
    assert load_text(tmp_path, "a.csv", content).labels == ["0", "1"]
    digest = tables.digests(str(tmp_path / "a.csv"))
    assert load_text(tmp_path, "a.csv", content.replace("1", "2")).labels == ["0", "2"]
    assert tables.digests(str(tmp_path / "a.csv")) != digest


def test_another_encoding_reads_the_file_again(tmp_path):
    content = ("text,label\n" + lines(sentences(12, "café", "thé"))).encode("utf-8")
    assert load_text(tmp_path, "a.csv", content).labels == ["café", "thé"]
    text = load_text(tmp_path, "a.csv", content, encoding="latin-1")
    assert text.labels == ["cafÃ©", "thÃ©"]
    assert text.facts["train"] == {"encoding": "latin-1"}


def test_a_wrong_encoding_is_refused_with_the_line_of_the_first_bad_byte(tmp_path):
    content = "text,label\n" + lines(sentences(12, "good", "bad")) + "café,good\n"
    with pytest.raises(InputError, match=r"a\.csv, line 14: expected ascii, found byte 0xc3"):
        load_text(tmp_path, "a.csv", content, encoding="ascii")


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
