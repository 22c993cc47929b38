"""Unlabelled text: a whole file is checked before its use, and no line is lost."""

import io
import os
import threading

import pytest
from harness.checks import check_prediction_refused
from harness.helpers import CSV

from inputs import texts
from inputs.files import MAX_PROBLEMS
from system.console import InputError

UNUSABLE = [
    pytest.param(
        ["a.jsonl", "--output", "b.csv"],
        {"a.jsonl": '{"text": "a", "id": ["\\ud800"]}\n'},
        "a.jsonl, line 1: expected Unicode text, found a lone surrogate",
        id="a lone surrogate beside the text",
    ),
    pytest.param(
        ["a.csv"], {"a.csv": "words\ngood\n"}, "no column for the text", id="no text column"
    ),
    pytest.param(
        ["a.csv", "--text-column", "x"],
        {"a.csv": CSV},
        "no column 'x' (found 'sentence', 'label')",
        id="a missing column",
    ),
    pytest.param(
        ["a.csv", "--text-column", "sentence", "b"],
        {"a.csv": "sentence,b\nx,y\n"},
        "(expected 1, found 2); choose them with --text-column",
        id="two columns for a model of one",
    ),
    pytest.param(["a.csv"], {"a.csv": ""}, "a.csv: no rows", id="an empty file"),
    pytest.param(
        ["a.csv"], {"a.csv": CSV + "x\n"}, "a.csv, line 42: wrong number", id="a ragged row"
    ),
    pytest.param(
        ["a.jsonl"],
        {"a.jsonl": '{"text": 5}\n'},
        "line 1: expected text in 'text', found 5",
        id="a number for a text",
    ),
    pytest.param(
        ["a.csv", "--output", "b.csv"],
        {"a.csv": "text,prediction\na,1\n"},
        "the output column 'prediction' exists already",
        id="an existing prediction column",
    ),
]


@pytest.mark.parametrize("arguments, files, message", UNUSABLE)
def test_an_unusable_file_is_refused_in_one_line_and_nothing_is_written(
    predicted, tmp_path, arguments, files, message
):
    check_prediction_refused(predicted, tmp_path, arguments, files, message)


def test_every_bad_row_is_reported_up_to_a_limit(tmp_path):
    path = tmp_path / "many.jsonl"
    path.write_text('{"text": 5}\n{"text": "fine"}\n{"text": [1]}\n')
    with pytest.raises(InputError) as caught:
        texts.look_through(path, None, None, {})
    assert [problem.where for problem in caught.value.problems] == [
        f"{path}, line 1",
        f"{path}, line 3",
    ]
    path.write_text('{"text": 5}\n' * (MAX_PROBLEMS + 9))
    with pytest.raises(InputError) as caught:
        texts.look_through(path, None, None, {})
    assert len(caught.value.problems) == MAX_PROBLEMS


def test_a_blank_text_is_refused_only_in_a_file_for_glue(predicted, tmp_path):
    (tmp_path / "gap.jsonl").write_text('{"sentence": "fine"}\n{"sentence": " "}\n{}\n')
    assert predicted("gap.jsonl").code == 0
    run = predicted("gap.jsonl", "--glue", "--output", "gap.tsv")
    assert run.code == 2 and len(run.errors) == 2 and not (tmp_path / "gap.tsv").exists()
    assert "gap.jsonl, line 2: no text in 'sentence'; fill it in, because GLUE" in run.errors[0]


def test_the_columns_of_training_are_read_if_the_file_has_them(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("text,body,mark\na fine film,a dull film,1\n")
    trained = {"text_column": ["body"], "label_column": ["mark"]}
    file = texts.look_through(path, None, None, trained)
    assert (file.text_columns, file.label_column, file.labels) == (["body"], "mark", {"1"})
    assert texts.look_through(path, ["text"], None, trained).text_columns == ["text"]
    missing = {"text_column": ["review"], "label_column": ["stars"]}
    file = texts.look_through(path, None, None, missing)
    assert (file.text_columns, file.label_column) == (["text"], None)


def test_windows_of_an_endless_input_grow_but_stay_below_a_megabyte():
    class Endless(io.RawIOBase):
        def readable(self) -> bool:
            return True

        def readinto(self, buffer) -> int:
            buffer[:] = (b"a line of text\n" * (len(buffer) // 15 + 1))[: len(buffer)]
            return len(buffer)

    parts = texts.arrived_lines(io.BufferedReader(Endless()))
    sizes = [sum(map(len, next(parts))) for _ in range(12)]
    assert sizes[0] < 2**14 < sizes[3] < sizes[6] and max(sizes) < 2**20


def test_a_line_that_is_not_utf_8_is_refused_after_the_answers_to_earlier_lines(predicted):
    run = predicted(stdin=b"fine\n\ncaf\xe9\nbad\n")
    assert run.code == 2 and run.out.count("\n") == 2
    message = "standard input, line 3: expected UTF-8, found byte 0xe9; use UTF-8"
    assert run.errors == [f"error: {message}"]


def test_late_lines_of_a_non_blocking_pipe_are_read():
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    late = threading.Timer(0.3, lambda: (os.write(writing, b"late\n"), os.close(writing)))
    late.start()
    with open(reading, "rb") as stream:  # noqa: PTH123
        assert list(texts.arrived_lines(stream)) == [["late"]]
    late.join()
