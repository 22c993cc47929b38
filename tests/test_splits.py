"""Copies of a text stay on one side of the held-out tenth, and copies between splits are told."""

import numpy as np
import pytest
from harness.checks import lines, load_text, sentences, write

import data


def table(rows: list[tuple]) -> str:
    return "text,label\n" + lines(rows)


def test_a_tenth_of_each_class_is_held_out_and_a_single_row_stays_in_training(tmp_path):
    classes = ["a"] * 200 + ["b"] * 50 + [f"rare{i % 3}" for i in range(6)] + ["single"]
    rows = [(f"t{i}", label) for i, label in enumerate(classes)]
    text = load_text(tmp_path, "a.csv", table(rows))
    train, validation = text.splits["train"]["label"][:], text.splits["validation"]["label"][:]
    assert sorted(train + validation) == sorted(classes)
    assert 20 <= validation.count("a") <= 21 and 5 <= validation.count("b") <= 6
    assert "single" in train and "single" not in validation
    assert all(train.count(name) >= 1 for name in set(classes))
    same_seed = data.load(str(tmp_path / "a.csv"), seed=0).splits["validation"]["text"][:]
    different_seed = data.load(str(tmp_path / "a.csv"), seed=1).splits["validation"]["text"][:]
    assert same_seed == text.splits["validation"]["text"][:] != different_seed


def test_the_held_out_tenth_shares_no_text_and_has_a_tenth_of_each_class(tmp_path):
    random = np.random.default_rng(0)
    # Half of the texts have one row, the others up to seven.
    rows = [
        (f"text {i}{' ' * (copy % 2)}", "rare" if i % 10 == 0 else "usual")
        for i in range(1000)
        for copy in range(1 if i % 2 else 1 + i % 7)
    ]
    random.shuffle(rows)
    for seed in range(3):
        text = load_text(tmp_path, "a.csv", table(rows), seed=seed)
        train, validation = text.splits["train"], text.splits["validation"]
        shared = {x.strip() for x in train["text"]} & {x.strip() for x in validation["text"]}
        assert not shared and len(train) + len(validation) == len(rows)
        texts = {(row["text"].strip(), row["label"]) for row in validation}
        assert len(texts) == 100
        assert 9 <= sum(label == "rare" for _, label in texts) <= 11


def test_pairs_are_copies_only_if_both_texts_are_equal_in_their_order(tmp_path):
    rows = [("a b", "c d", 1), ("a b", "e f", 0), ("c d", "a b", 1), ("a b", "c d", 1)] * 3
    text = load_text(tmp_path, "a.csv", "sentence1,sentence2,label\n" + lines(rows))
    assert text.facts["copies"] == {"repeated": 9}


def test_texts_of_two_classes_only_are_held_out_as_copies_with_a_note(tmp_path, capsys):
    text = load_text(tmp_path, "a.csv", table([("fine", 1), ("bad", 0)] * 10))
    assert len(text.splits["validation"]) == 2
    note = "NOTE: each class has one text only, so copies of texts in training are held out"
    assert note in capsys.readouterr().err.splitlines()


def test_rows_that_repeat_earlier_ones_are_counted_and_kept(tmp_path, capsys):
    text = load_text(tmp_path, "a.csv", table(sentences(60, "good", "bad") * 5))
    assert sum(map(len, text.splits.values())) == 300
    assert text.facts["copies"] == {"repeated": 240}
    note = f"NOTE: {tmp_path / 'a.csv'}: 240 of 300 rows repeat an earlier text"
    err = capsys.readouterr().err.splitlines()
    assert note in err
    assert "no validation split: held out 30 of 300 training sentences" in err


def test_texts_of_validation_and_test_that_train_has_are_counted_and_kept(tmp_path, capsys):
    rows = sentences(80, "good", "bad")
    write(tmp_path, "train.csv", table(rows))
    write(tmp_path, "dev.csv", table([*rows[:30], ("new text", "good")]))
    write(tmp_path, "test.csv", table([(f" {rows[0][0]}", "good"), ("other text", "bad")]))
    text = data.load(str(tmp_path))
    assert {split: len(rows) for split, rows in text.splits.items()} == {
        "train": 80,
        "validation": 31,
        "test": 2,
    }
    assert text.facts["copies"] == {"validation_in_train": 30, "test_in_train": 1}
    err = capsys.readouterr().err.splitlines()
    for name, number in (("dev.csv", "30 of 31 texts are"), ("test.csv", "1 of 2 texts are")):
        message = f"NOTE: {tmp_path / name}: {number} in train, too; they flatter the score"
        assert message in err


def test_texts_with_two_labels_are_counted_with_the_lines_of_the_first_ones(tmp_path, capsys):
    rows = [*sentences(20, "good", "bad"), ("so it is", "good"), ("so it is", "bad")]
    write(tmp_path, "train.csv", table(rows))
    write(tmp_path, "dev.csv", table([(rows[0][0], "bad"), ("new text", "good")]))
    text = data.load(str(tmp_path))
    assert text.facts["copies"] == {"repeated": 1, "validation_in_train": 1, "two_labels": 2}
    train, dev = tmp_path / "train.csv", tmp_path / "dev.csv"
    places = f"{train}, line 2 and {dev}, line 2; {train}, lines 22 and 23"
    assert f"NOTE: 2 texts have two labels ({places})" in capsys.readouterr().err.splitlines()


def test_spellings_of_one_class_are_no_two_labels(tmp_path):
    rows = [(f"text {i // 2}", ("1", "1.0", "0", "0")[i % 4]) for i in range(40)]
    assert load_text(tmp_path, "a.csv", table(rows)).facts["copies"] == {"repeated": 20}


def test_a_table_without_copies_needs_no_note(tmp_path, capsys):
    text = load_text(tmp_path, "a.csv", table(sentences(20, "good", "bad")))
    assert text.facts["copies"] == {} and "NOTE" not in capsys.readouterr().err


@pytest.mark.parametrize("seed", range(20))
def test_a_text_with_very_many_copies_does_not_make_validation_half_of_the_table(tmp_path, seed):
    rows = [*sentences(500, "good", "bad"), *[("buy now", "bad")] * 500]
    write(tmp_path, "a.csv", table(rows))
    validation = data.load(str(tmp_path / "a.csv"), seed=seed).splits["validation"]
    assert len(validation) in (50, 51) and "buy now" not in validation["text"]
