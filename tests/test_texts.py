"""Unlabelled text: a whole file is checked before its use, and no line is lost."""

import io
import os
import re
import shlex
import threading

import pytest
from harness.checks import check_prediction_refused, write
from harness.helpers import CSV

from inputs import tables, texts
from inputs.files import MAX_PROBLEMS
from system.console import InputError

UNUSABLE = [
    pytest.param(
        ["a.jsonl", "--output", "b.csv"],
        {"a.jsonl": '{"text": "b"}\n{"text": "a", "id": ["\\ud800"]}\n'},
        "a.jsonl, line 2: expected Unicode text, found a lone surrogate",
        id="a lone surrogate beside the text",
    ),
    pytest.param(
        ["a.csv"],
        {"a.csv": "day,id\n2020-01-31,7\n"},
        "a.csv: no column for the text (found 'day' (one value), 'id' (one value))",
        id="no text column",
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
        ["a.csv"],
        {"a.csv": CSV + "x\n"},
        "a.csv, line 42: 1 field (expected 2); complete or remove the row",
        id="a ragged row",
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
        texts.look_through(path, texts.Request(), {})
    assert [problem.where for problem in caught.value.problems] == [
        f"{path}, line 1",
        f"{path}, line 3",
    ]
    path.write_text('{"text": 5}\n' * (MAX_PROBLEMS + 9))
    with pytest.raises(InputError) as caught:
        texts.look_through(path, texts.Request(), {})
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
    file = texts.look_through(path, texts.Request(), trained)
    assert (file.text_columns, file.label_column, file.labels) == (["body"], "mark", {"1"})
    assert texts.look_through(path, texts.Request(["text"]), trained).text_columns == ["text"]
    missing = {"text_column": ["review"], "label_column": ["stars"]}
    file = texts.look_through(path, texts.Request(), missing)
    assert (file.text_columns, file.label_column) == (["text"], None)


def test_the_text_of_a_file_is_found_by_its_content_and_named(tmp_path, capsys):
    rows = "".join(f"{i:05}a,a film of number {i}\n" for i in range(9))
    path = write(tmp_path, "a.csv", "key,plot\n" + rows)
    file = texts.look_through(path, texts.Request(), {})
    assert (file.text_columns, file.label_column, file.rows) == (["plot"], None, 9)
    assert capsys.readouterr().err.splitlines()[-1] == f"{path}: texts from 'plot'"


def test_a_file_of_the_same_columns_without_a_header_is_read_by_number(tmp_path, capsys):
    path = write(tmp_path, "a.csv", "".join(f"good,a film of number {i}\n" for i in range(9)))
    file = texts.look_through(path, texts.Request(), {"text_column": ["2"], "label_column": ["1"]})
    assert (file.text_columns, file.label_column, file.rows) == (["2"], "1", 9)
    assert "has no header: line 1 is data" in capsys.readouterr().err


def test_several_columns_of_a_model_of_one_text_are_joined(tmp_path):
    path = write(tmp_path, "a.csv", "title,body,end\na,b,c\n,d,\n")
    trained = {"text_column": ["title", "body", "end"]}
    file = texts.look_through(path, texts.Request(), trained)
    (rows,) = file.windows()
    joined = [tables.row_texts(row, file.text_columns) for row in rows]
    assert joined == [["a b c"], ["d"]]


def test_the_candidates_of_a_file_of_texts_come_with_a_command_that_can_be_pasted(
    predicted, tmp_path
):
    rows = "".join(f"a film of number {i},a book of number {i}\n" for i in range(9))
    write(tmp_path, "my texts.csv", "question,reply\n" + rows)
    run = predicted("my texts.csv")
    (line,) = run.errors
    assert "several columns could be the text: 'question' (text of about 5" in line
    _, script, _, *arguments = shlex.split(re.search("as in `(.*)`$", line)[1])
    assert script == "predict.py" and predicted(*arguments).out.count("\n") == 9


def test_a_file_in_another_encoding_is_read_with_a_note_or_as_the_flag_says(predicted, tmp_path):
    text = "text\n" + "un café très agréable\nune comédie drôle\n" * 5
    write(tmp_path, "a.csv", text.encode("cp1252"))
    run = predicted("a.csv", "--output", "b.csv")
    assert "NOTE: a.csv is not UTF-8; it is read as cp1252" in run.err
    assert "un café très agréable" in (tmp_path / "b.csv").read_text("utf-8")
    run = predicted("a.csv", "--encoding", "cp1250", "--output", "b.csv")
    assert run.code == 0 and "NOTE" not in run.err
    assert "un café trčs agréable" in (tmp_path / "b.csv").read_text("utf-8")
    (line,) = predicted("a.csv", "--encoding", "ascii").errors
    assert "a.csv, line 2: expected ascii, found byte 0xe9" in line


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
