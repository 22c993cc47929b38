"""Text and label are found by names, parts of names and content, or the candidates are listed."""

import csv
import io
import re
import shlex

import pytest
from harness.checks import lines, load_text, open_text, refusals, sentences, write

import data
from inputs import columns
from system.console import InputError

TEXTS = [text for text, _ in sentences(60, "")]
DAYS = [f"2020-03-{1 + i % 28:02}" for i in range(60)]
MOODS = [("good", "bad")[i % 2] for i in range(60)]
TOWNS = [("Oslo", "", "Rome")[i % 3] for i in range(60)]
STARS = [1 + i % 5 for i in range(60)]
IDS = [f"{i:05}a" for i in range(60)]


def table(**values: list) -> str:
    """A csv file with these columns."""
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerow(values)
    writer.writerows(zip(*values.values(), strict=True))
    return file.getvalue()


# ---- By name ----


def test_a_pair_is_found_by_its_names_and_all_splits_use_the_same_columns(tmp_path):
    rows = "who ?,he did,yes\nwhere ?,she did,no\n" * 3
    text = load_text(tmp_path, "qnli.csv", "question,sentence,label\n" + rows)
    assert text.text_columns == ["question", "sentence"]
    assert set(text.splits["train"]["text_pair"]) == {"he did", "she did"}
    write(tmp_path, "d/train.csv", "text,label\n" + "good,1\nbad,0\n" * 3)
    write(tmp_path, "d/dev.csv", "sentence,text,label\n" + "x,good,1\ny,bad,0\n" * 3)
    assert data.load(str(tmp_path / "d")).splits["validation"]["text"][:2] == ["good", "bad"]
    write(tmp_path, "d/dev.csv", "sentence,label\n" + "good,1\nbad,0\n" * 3)
    with pytest.raises(InputError, match=r"dev\.csv: no column 'text'"):
        data.load(str(tmp_path / "d"))


def test_names_of_columns_are_found_in_any_case_and_the_most_specific_first(tmp_path):
    opened = open_text(tmp_path, "a.csv", "Text,Sentence,LABEL\na,b,1\n")
    by_name = columns.find_columns(opened, None, None, labelled=True)
    assert by_name == (["Sentence"], "LABEL", [], "names")
    by_flag = columns.find_columns(opened, ["text"], "label", labelled=True)
    assert by_flag == (["Text"], "LABEL", [], "flags")


def test_a_missing_column_is_reported_with_the_existing_ones(tmp_path):
    assert refusals(tmp_path, "a.csv", "x,y\n1,2\n", ["text"], "z") == [
        "a.csv: no column 'text' (found 'x', 'y'); choose one with --text-column",
        "a.csv: no column 'z' (found 'x', 'y'); choose one with --label-column",
    ]


def test_one_column_is_not_both_text_and_label(tmp_path):
    assert refusals(tmp_path, "a.csv", "text,label\na b,1\n", ["label"], "label") == [
        "a.csv: the column 'label' is used twice; choose different columns"
    ]


def test_more_than_two_named_text_columns_are_joined(tmp_path):
    content = table(title=TEXTS[:20], body=["", "b"] * 10, end=["e", " "] * 10, label=MOODS[:20])
    text = load_text(tmp_path, "a.csv", content, ["title", "body", "end"])
    rows = sorted(text.splits["train"]["text"][:] + text.splits["validation"]["text"][:])
    expected = [f"{TEXTS[i]} {('e', 'b')[i % 2]}" for i in range(20)]
    assert rows == sorted(expected) and text.splits["train"]["text_pair"][0] is None
    assert text.text_columns == ["title", "body", "end"]


def test_a_row_of_joined_columns_is_blank_only_if_all_are(tmp_path):
    content = table(a=["", "x", "y"] * 5, b=["", "", "z"] * 5, c=["", "", ""] * 5, label=STARS[:15])
    facts = load_text(tmp_path, "a.csv", content, ["a", "b", "c"]).facts
    assert facts["train"]["left_out"] == 5 and facts["train"]["first_left_out"] == [2, 5, 8, 11, 14]


# ---- By parts of names and by content ----

FOUND = {
    "parts before content": (
        table(id=IDS, airline_sentiment=MOODS, airline=TOWNS, text=TEXTS),
        (["text"], "airline_sentiment", "by parts of their names"),
    ),
    "capitals in names": (
        table(UserName=range(60), Place=TOWNS, TweetAt=DAYS, OriginalTweet=TEXTS, Mood=MOODS),
        (["OriginalTweet"], "Mood", "by parts of their names"),
    ),
    "content": (
        table(v1=MOODS, v2=TEXTS, v3=[""] * 60, v4=DAYS, v5=IDS),
        (["v2"], "v1", "by their content"),
    ),
    "a usual text and content": (
        table(Score=STARS, Text=TEXTS, Time=DAYS, Version=["1.2"] * 60),
        (["Text"], "Score", "by their content"),
    ),
    "numbers that are amounts": (
        table(words=TEXTS, price=[i * 37 for i in STARS], ok=[i % 2 for i in range(60)]),
        (["words"], "ok", "by their content"),
    ),
    "a pair by its numbers": (
        table(s1=TEXTS, s2=TEXTS[::-1], y=MOODS),
        (["s1", "s2"], "y", "by their content"),
    ),
    "a text much longer than its title": (
        table(short=TEXTS, long=[" ".join([text] * 6) for text in TEXTS], y=MOODS),
        (["long"], "y", "by their content"),
    ),
    "a text without spaces": (
        table(a=[f"这部电影{i}太无聊了，而且时间太长" for i in range(60)], b=MOODS),
        (["a"], "b", "by their content"),
    ),
    "a usual name above ids": (
        table(content=IDS, words=TEXTS, label=MOODS),
        (["words"], "label", "by their content"),
    ),
    "a label that is missing in some rows": (
        table(a=TEXTS, b=[mood if i % 3 else "" for i, mood in enumerate(MOODS)], c=IDS),
        (["a"], "b", "by their content"),
    ),
    "few rows of each class": (
        table(a=TEXTS, b=[f"class {i % 25}" for i in range(60)], c=IDS),
        (["a"], "b", "by their content"),
    ),
    "ids of classes with gaps": (
        table(a=TEXTS, b=[(3, 17, 250)[i % 3] for i in range(60)], year=[2019, 2020] * 30),
        (["a"], "b", "by their content"),
    ),
    "texts of one word": (
        table(a=[f"word{i}" for i in range(60)], b=MOODS),
        (["a"], "b", "by their content"),
    ),
    "names beside their ids": (
        table(words=TEXTS, topic_id=[i % 2 for i in range(60)], topic_name=MOODS),
        (["words"], "topic_name", "by their content"),
    ),
    "names of splits": (
        table(words=TEXTS, subset=["train", "train", "test"] * 20, mark=MOODS),
        (["words"], "mark", "by their content"),
    ),
    "a label far below the first rows": (
        table(a=TEXTS, b=IDS, c=["x"] * 59 + ["y"], d=MOODS),
        None,
    ),
}


@pytest.mark.parametrize("content, expected", FOUND.values(), ids=FOUND)
def test_columns_without_usual_names_are_found_and_named_in_one_line(
    tmp_path, capsys, content, expected
):
    if expected is None:
        (problem,) = refusals(tmp_path, "a.csv", content)
        assert "several columns could be the label: 'c' (2 values: x 98 %, y 2 %), 'd'" in problem
        return
    text = load_text(tmp_path, "a.csv", content)
    texts, label, source = expected
    assert (text.text_columns, text.label_column) == (texts, label)
    # run.json gets the same.
    assert text.facts["columns"] == source
    listed = ", ".join(map(repr, texts))
    line = f"{tmp_path / 'a.csv'}: text from {listed}, label from {label!r} ({source});"
    line += " choose others with --text-column and --label-column"
    assert capsys.readouterr().err.splitlines().count(line) == 1


def test_usual_names_need_no_line(tmp_path, capsys):
    load_text(tmp_path, "a.csv", table(text=TEXTS, label=MOODS))
    assert "choose others" not in capsys.readouterr().err


def test_a_second_column_named_like_a_label_is_named_in_a_note(tmp_path, capsys):
    content = table(tweet=TEXTS, target=["him", "her", "them"] * 20, stance=MOODS)
    assert load_text(tmp_path, "a.csv", content).label_column == "target"
    note = "the label is 'target'; 'stance' could be meant, too; choose with --label-column"
    assert note in capsys.readouterr().err
    load_text(tmp_path, "a.csv", content, ["tweet"], "target")
    assert "could be meant" not in capsys.readouterr().err


def test_a_column_of_splits_beside_usual_names_is_named_in_a_note(tmp_path, capsys):
    content = table(text=TEXTS, label=MOODS, split=["train", "train", "test"] * 20)
    assert len(load_text(tmp_path, "a.csv", content).splits["train"]) == 54
    assert "the column 'split' names splits; it is not used" in capsys.readouterr().err


def test_a_score_is_not_passed_over_for_a_column_that_happens_to_have_few_values(tmp_path):
    content = table(words=TEXTS, genre=MOODS, score=[i * 0.37 for i in range(60)])
    (problem,) = refusals(tmp_path, "a.csv", content)
    assert "could be the label: 'score' (numbers), 'genre' (2 values: " in problem


def test_a_wide_table_is_listed_in_a_line_of_eight_columns(tmp_path):
    content = table(**{f"n{i}": [i * j for j in range(60)] for i in range(2, 40)})
    for problem in refusals(tmp_path, "a.csv", content):
        assert "'n9' (numbers) and 30 more)" in problem and len(problem) < 400


# ---- Several candidates, or none ----

AMBIGUOUS = {
    "two labels": (
        table(id=IDS, subject_text=TEXTS, department=MOODS, urgency=["low", "high", "mid"] * 20),
        [
            "several columns could be the label: 'department' (2 values: good 50 %, bad 50 %), "
            "'urgency' (3 values: low 33 %, high 33 %, mid 33 %); choose one, as in "
        ],
        (["subject_text"], "department"),
    ),
    "two texts": (
        table(question=TEXTS, reply=TEXTS[::-1], Score=[5, 5, 5, 4, 1, 2] * 10),
        [
            "several columns could be the text: 'question' (text of about 5 words), "
            "'reply' (text of about 5 words); choose one, or two for a pair, as in "
        ],
        (["question"], "Score"),
    ),
    "many values": (
        table(text=TEXTS, Score=[5, 5, 5, 4, 1, 2] * 10, stage=["a b", "c", "d"] * 20),
        [
            "several columns could be the label: 'Score' (4 values: 5 50 %, 4 17 %, 1 17 %, …), "
            "'stage' (3 values: a b 33 %, c 33 %, d 33 %); choose one, as in "
        ],
        (["text"], "stage"),
    ),
    "columns of 0 and 1": (
        table(comment=TEXTS, rude=[0, 1] * 30, spam=[0, 0, 1] * 20, off_topic=[0, 0, 0, 1] * 15),
        [
            "several columns could be the label: 'rude' (2 values: 0 50 %, 1 50 %), 'spam' (2 "
            "values: 0 67 %, 1 33 %), 'off_topic' (2 values: 0 75 %, 1 25 %); columns of 0 and 1 "
            "are often several labels of one text; choose one, as in "
        ],
        (["comment"], "off_topic"),
    ),
    "names with spaces and quotes": (
        table(**{"the 'text'": TEXTS, "a $b": MOODS, "c;d": MOODS[::-1]}),
        ["several columns could be the label: 'a $b' (2 values"],
        (["the 'text'"], "a $b"),
    ),
}


@pytest.mark.parametrize("content, messages, chosen", AMBIGUOUS.values(), ids=AMBIGUOUS)
def test_candidates_are_listed_with_a_command_that_can_be_pasted(
    tmp_path, content, messages, chosen
):
    problems = refusals(tmp_path, "my data.csv", content)
    assert len(problems) == len(messages)
    for problem, message in zip(problems, messages, strict=True):
        assert problem.startswith(f"my data.csv: {message}")
    # The pasted command trains on the columns that it names.
    with pytest.raises(InputError) as caught:
        data.load(str(tmp_path / "my data.csv"))
    command = re.search("as in `(.*)`$", str(caught.value))[1]
    python, script, *flags = shlex.split(command)
    assert (python, script) == ("python", "finetune.py")
    values = dict(_pairs(flags))
    assert values.pop("--data") == [str(tmp_path / "my data.csv")]
    texts, label = values["--text-column"], values["--label-column"]
    assert (texts, *label) == chosen
    text = data.load(str(tmp_path / "my data.csv"), texts, *label)
    assert (text.text_columns, text.label_column) == chosen


def _pairs(flags: list[str]) -> list[tuple[str, list[str]]]:
    starts = [i for i, flag in enumerate(flags) if flag.startswith("--")]
    ends = [*starts[1:], len(flags)]
    return [(flags[i], flags[i + 1 : j]) for i, j in zip(starts, ends, strict=True)]


def test_a_table_without_text_or_label_lists_all_columns(tmp_path):
    problems = refusals(tmp_path, "a.csv", table(id=IDS, day=DAYS, price=range(0, 600, 10)))
    assert [problem.partition(";")[0] for problem in problems] == [
        f"a.csv: no column for the {kind} (found 'id' (ids), 'day' (dates), 'price' (numbers))"
        for kind in ("text", "label")
    ]


def test_broken_rows_are_named_beside_the_candidates(tmp_path):
    content = table(a=TEXTS, b=MOODS, c=MOODS[::-1]) + "one,two\n"
    problems = refusals(tmp_path, "a.csv", content)
    assert problems[0] == "a.csv, line 62: 2 fields (expected 3); complete or remove the row"
    assert "several columns could be the label" in problems[1]


def test_a_named_column_leaves_only_the_other_to_be_found(tmp_path):
    content = table(id=IDS, words=TEXTS, department=MOODS, urgency=["low", "high", "mid"] * 20)
    text = load_text(tmp_path, "a.csv", content, label_column="urgency")
    assert (text.text_columns, text.label_column) == (["words"], "urgency")
    assert text.facts["columns"] == "by their content"


# ---- Splits ----


def test_a_test_split_without_the_label_column_is_left_out(tmp_path, capsys):
    write(tmp_path, "train.csv", "text,y\n" + "good,1\nbad,0\n" * 5)
    write(tmp_path, "test.csv", "text\nfine\n")
    for label in (None, "y"):
        assert data.load(str(tmp_path), ["text"], label).splits.keys() == {"train", "validation"}
        message = "the test split has no labels (no column 'y'); it is left out"
        assert capsys.readouterr().err.count(message) == 1
    write(tmp_path, "test.csv", "id,y\n1,1\n")
    with pytest.raises(InputError, match=r"test\.csv: no column 'text' \(found 'id'"):
        data.load(str(tmp_path), label_column="y")


@pytest.mark.parametrize("names", ["sentence1,sentence2", "premise,hypothesis", "s1,s2"])
def test_the_second_text_of_a_pair_is_never_the_label_of_a_test_split(tmp_path, names):
    pairs = [(text, TEXTS[i - 1]) for i, text in enumerate(TEXTS)]
    rows = [(*pair, label) for pair, label in zip(pairs, MOODS, strict=True)]
    write(tmp_path, "train.csv", f"{names},label\n" + lines(rows))
    write(tmp_path, "test.csv", f"{names}\n" + lines(pairs))
    text = data.load(str(tmp_path))
    assert text.splits.keys() == {"train", "validation"} and text.labels == ["bad", "good"]
