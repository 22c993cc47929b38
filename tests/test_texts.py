"""Unlabelled text: a file is checked from end to end before it is used, and no line is lost."""

import io
import os
import threading

import pytest
from harness.checks import check_prediction_refused
from harness.helpers import CSV

from inputs import texts
from inputs.files import MOST_PROBLEMS
from system.console import InputError

UNUSABLE = [
    pytest.param(
        ["a.jsonl", "--output", "b.csv"],
        {"a.jsonl": '{"text": "a", "id": ["\\ud800"]}\n'},
        "a.jsonl, line 1: half a character",
        id="half a character beside the text",
    ),
    pytest.param(
        ["a.csv"], {"a.csv": "words\ngood\n"}, "no column for the text", id="no text column"
    ),
    pytest.param(
        ["a.csv", "--text-column", "x"],
        {"a.csv": CSV},
        "no column 'x'; the columns are 'sentence', 'label'",
        id="a column that isn't there",
    ),
    pytest.param(
        ["a.csv", "--text-column", "sentence", "b"],
        {"a.csv": "sentence,b\nx,y\n"},
        "the model was trained on 1; name them with --text-column",
        id="two columns for one",
    ),
    pytest.param(["a.csv"], {"a.csv": ""}, "a.csv: no rows in it", id="an empty file"),
    pytest.param(["a.csv"], {"a.csv": CSV + "x\n"}, "a.csv, line 42: 1 fields", id="a ragged row"),
    pytest.param(
        ["a.jsonl"],
        {"a.jsonl": '{"text": 5}\n'},
        "line 1: 5 in 'text' is no",
        id="a number for a text",
    ),
    pytest.param(
        ["a.csv", "--output", "b.csv"],
        {"a.csv": "text,prediction\na,1\n"},
        "it has a column 'prediction' already",
        id="an answer there before",
    ),
]


@pytest.mark.parametrize("arguments, files, message", UNUSABLE)
def test_a_file_that_cannot_be_used_is_refused_in_one_line_and_nothing_is_written(
    predicted, tmp_path, arguments, files, message
):
    check_prediction_refused(predicted, tmp_path, arguments, files, message)


def test_every_row_that_cannot_be_used_is_named_up_to_a_limit(tmp_path):
    path = tmp_path / "many.jsonl"
    path.write_text('{"text": 5}\n{"text": "fine"}\n{"text": [1]}\n')
    with pytest.raises(InputError) as caught:
        texts.look_through(path, None, None, {})
    assert [problem.where for problem in caught.value.problems] == [
        f"{path}, line 1",
        f"{path}, line 3",
    ]
    path.write_text('{"text": 5}\n' * (MOST_PROBLEMS + 9))
    with pytest.raises(InputError) as caught:
        texts.look_through(path, None, None, {})
    assert len(caught.value.problems) == MOST_PROBLEMS


def test_a_blank_text_is_refused_only_in_a_file_for_glue(predicted, tmp_path):
    (tmp_path / "gap.jsonl").write_text('{"sentence": "fine"}\n{"sentence": " "}\n{}\n')
    assert predicted("gap.jsonl").code == 0
    run = predicted("gap.jsonl", "--glue", "--output", "gap.tsv")
    assert run.code == 2 and len(run.errors) == 2 and not (tmp_path / "gap.tsv").exists()
    assert "gap.jsonl, line 2: no text in 'sentence'; GLUE takes no empty answer" in run.errors[0]


def test_the_columns_of_training_are_read_if_the_file_has_them(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("text,body,mark\na fine film,a dull film,1\n")
    trained = {"text_column": ["body"], "label_column": ["mark"]}
    file = texts.look_through(path, None, None, trained)
    assert (file.text_columns, file.label_column, file.labels) == (["body"], "mark", {"1"})
    assert texts.look_through(path, ["text"], None, trained).text_columns == ["text"]
    gone = {"text_column": ["review"], "label_column": ["stars"]}
    file = texts.look_through(path, None, None, gone)
    assert (file.text_columns, file.label_column) == (["text"], None)


def test_windows_grow_and_stay_within_a_megabyte_however_long_the_input():
    class Endless(io.RawIOBase):
        def readable(self) -> bool:
            return True

        def readinto(self, buffer) -> int:
            buffer[:] = (b"a line of text\n" * (len(buffer) // 15 + 1))[: len(buffer)]
            return len(buffer)

    parts = texts.arrived_lines(io.BufferedReader(Endless()))
    sizes = [sum(map(len, next(parts))) for _ in range(12)]
    assert sizes[0] < 2**14 < sizes[3] < sizes[6] and max(sizes) < 2**20


def test_a_line_that_is_not_utf_8_is_named_and_those_before_it_are_answered(predicted):
    run = predicted(stdin=b"fine\n\ncaf\xe9\nbad\n")
    assert run.code == 2 and run.out.count("\n") == 2
    assert run.errors == ["error: standard input, line 3: byte 0xe9 is not UTF-8"]


def test_lines_of_a_pipe_that_does_not_block_are_waited_for():
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    late = threading.Timer(0.3, lambda: (os.write(writing, b"late\n"), os.close(writing)))
    late.start()
    with open(reading, "rb") as stream:  # noqa: PTH123
        assert list(texts.arrived_lines(stream)) == [["late"]]
    late.join()
