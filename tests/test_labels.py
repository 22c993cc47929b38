"""Labels become classes as they are written; impossible labels are refused with their line."""

import json

import pytest
from harness.checks import check_refused, lines, load_text, refusals, sentences, write
from harness.helpers import CSV, ROWS

import data
from inputs import labels


def jsonl(*values: object, rows: int = 24) -> str:
    """JSON lines with the labels in turn."""
    objects = [{"text": text, "label": value} for text, value in sentences(rows, *values)]
    return "".join(json.dumps(row) + "\n" for row in objects)


def table(*values: object, rows: int = 24) -> str:
    return "text,label\n" + lines([(x, f'"{y}"') for x, y in sentences(rows, *values)])


ADVICE = (
    "keep one label per text; for several, use transformers' Trainer with "
    'problem_type="multi_label_classification"'
)
PRICES = [f"{3 + i * 1.37:.2f}" for i in range(100)]
REFUSED = {
    "one class": (
        "a.csv",
        table(1, rows=9),
        ["expected two or more classes, found only '1'; add rows of another class"],
    ),
    "a name among numbers": (
        "a.csv",
        "sentence,label\na,1\nb,0\nc,oops\nd,1\n",
        ["line 4: expected a number, like the other labels, found 'oops'; correct or remove it"],
    ),
    "GLUE's test file": (
        "test.tsv",
        "label\tsentence\n" + "".join(f"-1\t{text}\n" for text, _ in ROWS),
        ["no labels (found only -1); use a labelled file"],
    ),
    "a class for each row": (
        "a.csv",
        "text,label\na,x\nb,y\nc,z\n",
        [
            "expected fewer classes, found 3 in 3 rows (x, y, z, …); "
            "choose another column with --label-column"
        ],
    ),
    "a class for nearly each row": (
        "a.csv",
        table(*(f"name {i}" for i in range(20)), rows=24),
        [
            "expected fewer classes, found 20 in 24 rows (name 0, name 1, name 2, …); "
            "choose another column with --label-column"
        ],
    ),
    "scores": (
        "a.csv",
        table(*PRICES, rows=300),
        [
            "the labels are numbers with 100 values (3.00, 4.37, 5.74, …): scores, not classes; "
            "sort them into a few classes, or choose another column with --label-column"
        ],
    ),
    "a list of labels": (
        "a.jsonl",
        jsonl(["joy"], ["fear"], ["joy", "fear"], rows=6),
        [
            f"line {number}: several labels in 'label' (['joy', 'fear']); {ADVICE}"
            for number in (3, 6)
        ],
    ),
    "labels with commas": (
        "a.csv",
        table("joy", "fear", "joy, fear"),
        [f"several labels in one cell ('joy, fear'); {ADVICE}"],
    ),
    "a list in a cell": (
        "a.csv",
        table("[0]", "[1]", "[0, 2]"),
        [f"several labels in one cell ('[0, 2]'); {ADVICE}"],
    ),
}


@pytest.mark.parametrize("name, content, problems", REFUSED.values(), ids=REFUSED)
def test_impossible_labels_are_refused(tmp_path, name, content, problems):
    places = [f"{name}, " if problem.startswith("line") else f"{name}: " for problem in problems]
    expected = [place + problem for place, problem in zip(places, problems, strict=True)]
    assert refusals(tmp_path, name, content) == expected


def test_each_validation_label_missing_from_training_is_reported(in_process, tmp_path, tiny):
    write(tmp_path, "d/train.csv", CSV)
    rows = "good,positive\nfair,neutral\nfine,mixed\nso so,neutral\n"
    write(tmp_path, "d/dev.csv", "sentence,label\n" + rows)
    run = in_process("--model", tiny, "--data", "d", "--output-dir", "run")
    messages = [
        "dev.csv, line 3: the label 'neutral' is not in the training data; correct it, or add",
        "dev.csv, line 4: the label 'mixed' is not in the training data",
    ]
    check_refused(run, tmp_path / "run", *messages)


# ---- Names ----

WRITTEN = {
    "leading zeros": (["0101", "0102", "6205"], ["0101", "0102", "6205"]),
    "agents": (["007", "7"], ["007", "7"]),
    "ends of numbers": (["1.1", "1.2", "1.10", "2.1"], ["1.1", "1.10", "1.2", "2.1"]),
    "whole numbers": (["1", "1.0", "0", "+1", "-0"], ["0", "1"]),
    "whole numbers and a fraction": (["1.0", "1", "1.5"], ["1", "1.0", "1.5"]),
    "sorted by value": (["10", "9", "-1", "2.0", "2"], ["-1", "2", "9", "10"]),
    "sorted as text": (["b", "a", "C", "é"], ["C", "a", "b", "é"]),
    "truth values": (["True", "true", "FALSE"], ["FALSE", "True"]),
    "truth values and more": (["True", "true", "no"], ["True", "no", "true"]),
    "large numbers": ([f"{10**29 + 1}", f"{10**29 + 2}"], [f"{10**29 + 1}", f"{10**29 + 2}"]),
    "half stars": (
        [f"{i / 2}" for i in range(1, 11)],
        ["0.5", "1.0", "1.5", "2.0", "2.5", "3.0", "3.5", "4.0", "4.5", "5.0"],
    ),
    "a decimal comma": (["4,5", "4", "5"], ["4", "4,5", "5"]),
    "commas in names": (["Rome, Italy", "Oslo"], ["Oslo", "Rome, Italy"]),
    "a list of one in a cell": (["[0]", "['a b']"], ["0", "a b"]),
    "a frequent number among names": (["24", "Lost", "Heroes"], ["24", "Heroes", "Lost"]),
}


@pytest.mark.parametrize("values, names", WRITTEN.values(), ids=WRITTEN)
def test_the_classes_are_the_labels_as_written(tmp_path, values, names):
    text = load_text(tmp_path, "a.csv", table(*values, rows=4 * len(values)))
    assert text.labels == names and set(text.ids) == set(values)
    # The same as text in JSON.
    text = load_text(tmp_path, "a.jsonl", jsonl(*values, rows=4 * len(values)))
    assert text.labels == names


def test_values_of_json_are_classes_by_what_they_are(tmp_path):
    assert load_text(tmp_path, "a.jsonl", jsonl(["b"], ["a"])).labels == ["a", "b"]
    assert load_text(tmp_path, "b.jsonl", jsonl(True, False, "true")).labels == ["false", "true"]
    assert load_text(tmp_path, "c.jsonl", jsonl(1, 1.0, "1", 0)).labels == ["0", "1"]
    assert load_text(tmp_path, "d.jsonl", jsonl(0.1, 1, 1.5)).labels == ["0.1", "1", "1.5"]


def test_spellings_of_one_class_have_one_id_in_every_split(tmp_path):
    write(tmp_path, "train.csv", table("1", "2.0", "0"))
    write(tmp_path, "dev.jsonl", jsonl(1, 2.0, "+2", 0.0))
    text = data.load(str(tmp_path))
    assert text.labels == ["0", "1", "2"]
    assert [text.ids[label] for label in text.splits["validation"]["label"][:4]] == [1, 2, 2, 0]


def test_hundreds_of_classes_keep_their_ids(tmp_path):
    content = "text,label\n" + "".join(f"t{i},{i % 300}\n" for i in range(3000))
    text = load_text(tmp_path, "a.csv", content)
    assert text.labels == [str(i) for i in range(300)]
    assert text.ids == {str(i): i for i in range(300)}


def test_one_number_among_200_class_names_is_a_valid_label(tmp_path):
    names = [f"name{i}" for i in range(199)] + ["24"]
    rows = "".join(f"text {i},{names[i % 200]}\n" for i in range(2000))
    assert load_text(tmp_path, "a.csv", "text,label\n" + rows).labels == sorted(names)


@pytest.mark.parametrize("minus_one", ["-1", "-1.0"])
def test_a_minus_one_is_a_test_label_only_if_training_has_this_label(tmp_path, minus_one):
    write(tmp_path, "test.csv", f"text,label\nfine,{minus_one}\n")
    write(tmp_path, "train.csv", "text,label\n" + "good,1\nbad,0\n" * 5)
    assert "test" not in data.load(str(tmp_path)).splits
    write(tmp_path, "train.csv", "text,label\n" + "good,1\nbad,-1\n" * 5)
    assert "test" in data.load(str(tmp_path)).splits


# ---- Notes ----


@pytest.mark.parametrize("label", ["nan", "N/A", "-", "None", "-1", "NULL", "?"])
def test_a_label_that_often_means_none_is_a_class_with_a_note(tmp_path, capsys, label):
    others = ("1", "0") if label == "-1" else ("good", "bad")
    text = load_text(tmp_path, "a.csv", table(*others, *others, label, rows=25))
    assert sorted(text.labels) == sorted([*others, label])
    note = f"the label '{label}' (5 rows) often means no label; here it is a class"
    assert f"NOTE: {tmp_path / 'a.csv'}: {note}" in capsys.readouterr().err.splitlines()


def test_labels_that_differ_by_case_or_spaces_are_classes_with_a_note(tmp_path, capsys):
    text = load_text(tmp_path, "a.csv", table("Very Good", "very  good", "bad"))
    assert text.labels == ["Very Good", "bad", "very  good"]
    note = "the labels 'Very Good' and 'very  good' look the same or differ by case only; here they"
    assert note in capsys.readouterr().err


def test_classes_of_one_row_are_listed_in_a_note(tmp_path, capsys):
    content = table("good", "bad") + "one more,fair\nand more,poor\n"
    assert load_text(tmp_path, "a.csv", content).labels == ["bad", "fair", "good", "poor"]
    assert "2 of 4 classes have only one row ('fair', 'poor')" in capsys.readouterr().err


def test_usual_labels_need_no_note(tmp_path, capsys):
    load_text(tmp_path, "a.csv", table("good", "bad"))
    assert "NOTE" not in capsys.readouterr().err


# ---- Ids in place of names ----


@pytest.mark.parametrize(
    "written, names, ids",
    [
        (["0", "2.0", "-1"], ["b", "a", "c"], {"0": 0, "2.0": 2}),
        (["a", "c", "x"], ["b", "a", "c"], {"a": 1, "c": 2}),
        (["True", "false"], ["False", "true"], {"True": 1, "false": 0}),
        (["1.0", "5"], ["1", "5"], {"1.0": 0, "5": 1}),
        (["1", "5"], ["b", "a"], {}),
        (["007", "7"], ["007", "7"], {"007": 0, "7": 1}),
    ],
)
def test_labels_of_a_file_get_the_ids_of_the_model(written, names, ids):
    assert labels.ids_of(written, names, compare_ids=True) == ids


def test_ids_are_not_compared_if_the_order_of_the_names_is_unknown():
    assert labels.ids_of(["0", "1"], ["b", "a"], compare_ids=False) == {}
    assert labels.ids_of(["b"], ["b", "a"], compare_ids=False) == {"b": 0}


def test_scores_with_a_decimal_comma_are_refused_like_others(tmp_path):
    rows = "".join(
        f"text {i};{i * 37 % 500 / 100:.2f}".replace(".", ",") + "\n" for i in range(300)
    )
    (problem,) = refusals(tmp_path, "a.csv", "text;label\n" + rows)
    assert "the labels are numbers with 300 values" in problem
