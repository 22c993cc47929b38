"""Labels become class ids; impossible labels are refused with their line."""

import pytest
from harness.checks import check_file_refused, check_refused, load_text
from harness.helpers import CSV, ROWS

import data

FILES = {
    "one class": ("a.csv", "sentence,label\ngood,1\nfine,1\n", "found only '1'"),
    "a name among numbers": (
        "a.csv",
        "sentence,label\na,1\nb,0\nc,oops\nd,1\n",
        "a.csv, line 4: expected a number, like the other labels, found 'oops'",
    ),
    "GLUE's test file": (
        "test.tsv",
        "label\tsentence\n" + "".join(f"-1\t{text}\n" for text, _ in ROWS),
        "no labels (found only -1)",
    ),
    "as many classes as sentences": (
        "a.csv",
        "sentence,label\na,x\nb,y\nc,z\n",
        "expected fewer classes than sentences, found 3 of each",
    ),
}


@pytest.mark.parametrize("name, content, message", FILES.values(), ids=FILES)
def test_impossible_labels_are_refused(in_process, tmp_path, tiny, name, content, message):
    check_file_refused(in_process, tiny, tmp_path, name, content, message)


def test_each_validation_label_missing_from_training_is_reported(in_process, tmp_path, tiny):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "train.csv").write_text(CSV)
    rows = "good,positive\nfair,neutral\nfine,mixed\nso so,neutral\n"
    (tmp_path / "d" / "dev.csv").write_text("sentence,label\n" + rows)
    run = in_process("--model", tiny, "--data", "d", "--output-dir", "run")
    messages = [
        "dev.csv, line 3: the label 'neutral' is not in",
        "dev.csv, line 4: the label 'mixed'",
    ]
    check_refused(run, tmp_path / "run", *messages)


def test_numeric_labels_are_sorted_by_value_and_names_as_text(tmp_path):
    rows = "".join(f"text {i},{label}\n" for i, label in enumerate([10, 9, -1, "2.0", 2] * 4))
    assert load_text(tmp_path, "a.csv", "text,label\n" + rows).labels == ["-1", "2", "9", "10"]
    rows = "".join(f"text {i},{label}\n" for i, label in enumerate(["b", "a", "C", "é"] * 4))
    assert load_text(tmp_path, "b.csv", "text,label\n" + rows).labels == ["C", "a", "b", "é"]


def test_hundreds_of_classes_keep_their_ids(tmp_path):
    content = "text,label\n" + "".join(f"t{i},{i % 300}\n" for i in range(3000))
    text = load_text(tmp_path, "a.csv", content)
    assert text.labels == [str(i) for i in range(300)]
    assert text.ids == {str(i): i for i in range(300)}


def test_all_spellings_of_a_number_are_one_label_and_large_numbers_stay_distinct(tmp_path):
    spellings = ["1", "1.0", "01", "+1", "0", "0.0", "-0", "1e-7", "100000000000000000000000000001"]
    spellings += ["100000000000000000000000000002", "1e2", ".5", "0.50"]
    rows = "".join(f"text {i},{label}\n" for i, label in enumerate(spellings * 2))
    text = load_text(tmp_path, "a.csv", "text,label\n" + rows)
    assert text.labels == ["0", "0.0000001", "0.5", "1", "100", *spellings[8:10]]
    assert text.ids["01"] == text.ids["+1"] == 3 and text.ids["-0"] == 0
    assert len(text.splits["validation"]) == 3


def test_one_number_among_200_class_names_is_a_valid_label(tmp_path):
    names = [f"name{i}" for i in range(199)] + ["24"]
    rows = "".join(f"text {i},{names[i % 200]}\n" for i in range(2000))
    assert load_text(tmp_path, "a.csv", "text,label\n" + rows).labels == sorted(names)


def test_a_frequent_number_among_class_names_is_a_valid_label(tmp_path):
    rows = "".join(f"text {i},{('24', 'Lost', 'Heroes')[i % 3]}\n" for i in range(30))
    assert load_text(tmp_path, "a.csv", "text,label\n" + rows).labels == ["24", "Heroes", "Lost"]


@pytest.mark.parametrize("minus_one", ["-1", "-1.0"])
def test_a_minus_one_is_a_test_label_only_if_training_has_this_label(tmp_path, minus_one):
    (tmp_path / "test.csv").write_text(f"text,label\nfine,{minus_one}\n")
    (tmp_path / "train.csv").write_text("text,label\n" + "good,1\nbad,0\n" * 5)
    assert "test" not in data.load(str(tmp_path)).splits
    (tmp_path / "train.csv").write_text("text,label\n" + "good,1\nbad,-1\n" * 5)
    assert "test" in data.load(str(tmp_path)).splits


def test_a_tenth_of_each_class_is_held_out_and_a_single_row_stays_in_training(tmp_path):
    labels = ["a"] * 200 + ["b"] * 50 + [f"rare{i % 3}" for i in range(6)] + ["single"]
    text = load_text(
        tmp_path, "a.csv", "text,label\n" + "".join(f"t{i},{x}\n" for i, x in enumerate(labels))
    )
    train, validation = text.splits["train"]["label"][:], text.splits["validation"]["label"][:]
    assert sorted(train + validation) == sorted(labels)
    assert 20 <= validation.count("a") <= 21 and 5 <= validation.count("b") <= 6
    assert "single" in train and "single" not in validation
    assert all(train.count(name) >= 1 for name in set(labels))
    same_seed = data.load(str(tmp_path / "a.csv"), seed=0).splits["validation"]["text"][:]
    different_seed = data.load(str(tmp_path / "a.csv"), seed=1).splits["validation"]["text"][:]
    assert same_seed == text.splits["validation"]["text"][:] != different_seed
