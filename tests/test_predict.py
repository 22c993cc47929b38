"""Labels for new text: those of transformers' pipeline, in order, from whatever it comes in."""

import csv
import datetime
import decimal
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet
import pytest
from conftest import CSV, NEGATIVE, POSITIVE, ROOT, ROWS, SST2
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import predict
from system import console

TEXTS = [*POSITIVE, "a " * 300, *NEGATIVE, "x", "a fine film\0 with a NUL", "y" * 100_000]


@pytest.fixture(scope="module")
def classifier(trained):
    from outputs import classifier as classify

    return classify.load(str(trained.folder))


@pytest.fixture
def predicted(trained, classifier, tmp_path, monkeypatch, capfd):
    """What predict.py does, without seconds of imports: `predicted(*arguments, stdin=b"")`."""
    from outputs import classifier as classify

    load, run = classify.load, str(trained.folder)
    monkeypatch.setattr(classify, "load", lambda name: classifier if name == run else load(name))
    monkeypatch.setattr(console, "stop_on_signals", lambda: None)
    monkeypatch.setattr(console, "_ignore_signals", lambda: None)
    monkeypatch.setattr(predict.signal, "signal", lambda *_: None)
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object, stdin: bytes = b"", run: str = run) -> SimpleNamespace:
        source = io.BufferedReader(io.BytesIO(stdin))
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=source, isatty=lambda: False))
        out = io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True)
        monkeypatch.setattr(sys, "stdout", out)
        code = 0
        try:
            with console.exit_codes():
                predict.main([run, *map(str, arguments)])
        except SystemExit as end:
            code = end.code
        err = capfd.readouterr().err
        errors = [line for line in err.splitlines() if line.startswith("error: ")]
        said = out.buffer.getvalue().decode()
        return SimpleNamespace(code=code, out=said, err=err, errors=errors)

    return call


@pytest.fixture(scope="module")
def expected(trained) -> list[str]:
    """What transformers' own pipeline says of TEXTS, as lines."""
    from transformers import pipeline

    classify = pipeline("text-classification", model=str(trained.model_folder), truncation=True)
    classify.tokenizer.model_max_length = 64
    return [
        f"{found['label']}\t{found['score']:.4f}"
        for found in map(classify, TEXTS)
        for found in found
    ]


def close(lines: list[str], expected: list[str]) -> bool:
    """The same labels, and probabilities that differ by rounding alone."""
    assert len(lines) == len(expected)
    for line, other in zip(lines, expected, strict=True):
        label, _, probability = line.partition("\t")
        assert label == other.partition("\t")[0]
        if label:
            assert float(probability) == pytest.approx(float(other.split("\t")[1]), abs=2e-4)
    return True


def test_arguments_lines_and_files_are_answered_as_transformers_pipeline_does(
    predicted, expected, tmp_path
):
    assert {line.split("\t")[0] for line in expected} == {"negative", "positive"}
    by_arguments = predicted(*(text for text in TEXTS if "\0" not in text))
    assert by_arguments.code == 0, by_arguments.err
    without_nul = [line for text, line in zip(TEXTS, expected, strict=True) if "\0" not in text]
    assert close(by_arguments.out.splitlines(), without_nul)
    assert close(predicted(stdin="\n".join(TEXTS).encode()).out.splitlines(), expected)
    for ending, content in {
        "jsonl": "".join(json.dumps({"sentence": text}) + "\n" for text in TEXTS),
        "tsv": "sentence\n" + "".join(f"{text}\n" for text in TEXTS),
    }.items():
        (tmp_path / f"texts.{ending}").write_text(content)
        run = predicted(f"texts.{ending}")
        assert run.code == 0 and close(run.out.splitlines(), expected), run.err


def test_an_empty_line_gives_an_empty_line_and_none_is_lost_or_split(predicted):
    lines = ["a fine film\r", "", "  ", "\ufeffmark", "one\u2028line", "tab\there", "", "dull"]
    run = predicted(stdin="\n".join(lines).encode())  # The last one has no end.
    answers = run.out.split("\n")
    assert run.code == 0 and answers.pop() == ""
    assert [bool(answer) for answer in answers] == [True, False, False, *[True] * 3, False, True]
    assert predicted(stdin=b"").out == "" and predicted(stdin=b"\n\n").out == "\n\n"
    assert predicted("", "dull").out.split("\n")[0] == ""


@settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(lines=st.lists(st.text(st.characters(exclude_characters="\n", codec="utf-8"), max_size=80)))
def test_every_line_has_its_own_answer_whatever_came_with_it(predicted, lines):
    together = predicted(stdin="".join(line + "\n" for line in lines).encode()).out
    alone = "".join(predicted(stdin=(line + "\n").encode()).out for line in lines)
    assert close(together.split("\n"), alone.split("\n"))


def test_windows_grow_and_stay_within_a_megabyte_however_long_the_input(classifier):
    class Endless(io.RawIOBase):
        def readable(self) -> bool:
            return True

        def readinto(self, buffer) -> int:
            buffer[:] = (b"a line of text\n" * (len(buffer) // 15 + 1))[: len(buffer)]
            return len(buffer)

    parts = predict.arrived_lines(io.BufferedReader(Endless()))
    sizes = [sum(map(len, next(parts))) for _ in range(12)]
    assert sizes[0] < 2**14 < sizes[3] < sizes[6] and max(sizes) < 2**20


def test_a_file_larger_than_a_window_is_answered_in_order_and_in_little_memory(
    predicted, tmp_path, monkeypatch
):
    from outputs import classifier as classify

    def by_number(_, texts, pairs=None, on_batch=None, **__):
        on_batch(len(texts))
        numbers = np.array([int(text.split()[0]) for text in texts])
        return numbers % 2, np.full(len(texts), 0.5)

    monkeypatch.setattr(classify, "answer", by_number)
    peaks = []
    for rows in (6_000, 24_000):
        lines = (f"{number} {'word ' * 100}\n" for number in range(rows))
        (tmp_path / "many.tsv").write_text("sentence\n" + "".join(lines))
        tracemalloc.start()
        run = predicted("many.tsv", "--output", "out.tsv")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert run.code == 0, run.err
        with (tmp_path / "out.tsv").open(newline="") as file:
            found = [row["prediction"] for row in csv.DictReader(file, dialect="excel-tab")]
        assert found == [("negative", "positive")[number % 2] for number in range(rows)]
    assert (tmp_path / "many.tsv").stat().st_size > 10_000_000
    assert peaks[1] < peaks[0] + 2_000_000, peaks


def test_a_pipe_that_stays_open_is_answered_and_head_ends_it_without_a_word(trained):
    command = [sys.executable, str(ROOT / "predict.py"), str(trained.folder)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
    ) as process:
        process.stdin.write(b"a fine film\na dull")
        assert process.stdout.readline().startswith(b"positive\t0.")  # And no end was needed.
        process.stdin.write(b" film\n")
        assert process.stdout.readline().startswith(b"negative\t0.")
        process.stdout.close()
        process.stdin.write(b"warm\n" * 10)
        process.stdin.close()
        said = process.stderr.read()
    assert process.returncode == -13 and said == b"", said  # SIGPIPE, as `cat | head` has it.


def test_the_file_for_glue_is_what_its_server_takes_byte_for_byte(predicted, tmp_path):
    (tmp_path / "test.tsv").write_text(
        'label\tsentence\n-1\ta dull film\n-1\ta "fine film\n-1\ta fine film\n'
    )
    run = predicted("test.tsv", "--glue", "--output", "SST-2.tsv")
    assert run.code == 0 and run.out == "" and "accuracy" not in run.err
    assert run.err == "test.tsv: texts from 'sentence'\n"
    assert (tmp_path / "SST-2.tsv").read_bytes() == b"index\tprediction\n0\t0\n1\t1\n2\t1\n"
    assert predicted("--glue", "test.tsv").out == "index\tprediction\n0\t0\n1\t1\n2\t1\n"
    (tmp_path / "gap.jsonl").write_text('{"sentence": "fine"}\n{"sentence": " "}\n{}\n')
    run = predicted("gap.jsonl", "--glue", "--output", "gap.tsv")
    assert run.code == 2 and len(run.errors) == 2 and not (tmp_path / "gap.tsv").exists()
    assert "gap.jsonl, line 2: no text in 'sentence'; GLUE takes no empty answer" in run.errors[0]


@pytest.mark.skipif(not SST2.exists(), reason="needs GLUE's SST-2 in ../shared/sst2")
def test_the_file_for_glue_of_the_real_test_sentences_has_a_line_for_each(predicted, tmp_path):
    assert predicted(SST2 / "test.tsv", "--glue", "--output", "SST-2.tsv").code == 0
    lines = (tmp_path / "SST-2.tsv").read_text().splitlines()
    assert lines[0] == "index\tprediction" and len(lines) == 1822
    assert [line.split("\t")[0] for line in lines[1:]] == list(map(str, range(1821)))
    assert {line.split("\t")[1] for line in lines[1:]} <= {"0", "1"}


SOURCES = {
    "csv": 'id,sentence\n7,"a fine, warm film"\n8,\n9,a dull film\n',
    "tsv": 'id\tsentence\n7\t"a fine, warm film"\n8\t\n9\ta dull film\n',
    "jsonl": '{"id": 7, "sentence": "a fine, warm film"}\n{"id": 8, "more": [1]}\n'
    '{"id": 9, "sentence": "a dull film"}\n',
}


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "parquet"])
@pytest.mark.parametrize("source", ["csv", "tsv", "jsonl", "parquet"])
def test_the_rows_of_any_file_come_back_with_answers_in_any_other(
    predicted, tmp_path, source, ending
):
    texts = ["a fine, warm film", None, "a dull film"]
    if source == "parquet":
        table = pyarrow.table({"id": [7, 8, 9], "sentence": texts})
        pyarrow.parquet.write_table(table, tmp_path / "in.parquet")
    else:
        (tmp_path / f"in.{source}").write_text(SOURCES[source])
    run = predicted(f"in.{source}", "--output", f"out.{ending}")
    assert run.code == 0 and run.out == "", run.err
    out = tmp_path / f"out.{ending}"
    if ending == "parquet":
        rows = pyarrow.parquet.read_table(out).to_pylist()
        kept_type = type(rows[0]["id"])
        assert kept_type is (int if source == "parquet" else str)
    elif ending == "jsonl":
        rows = [json.loads(line) for line in out.read_text().splitlines()]
    else:
        with out.open(newline="") as file:
            rows = list(csv.DictReader(file, dialect="excel-tab" if ending == "tsv" else "excel"))
    assert [str(row["id"]) for row in rows] == ["7", "8", "9"]
    assert [row.get("sentence") or None for row in rows] == texts
    assert [row["prediction"] or None for row in rows] == ["positive", None, "negative"]
    assert all(0.5 <= float(row["probability"]) <= 1 for row in (rows[0], rows[2]))
    assert not rows[1]["probability"] and not list(tmp_path.glob("*.partial"))


def test_labels_of_a_file_are_compared_by_name_or_by_id(predicted, tmp_path):
    rows = [*ROWS[:8], ("a dull film", "positive"), ("a fine film", "unsure")]
    (tmp_path / "names.csv").write_text(
        "sentence,label\n" + "".join(f'"{t}",{x}\n' for t, x in rows)
    )
    run = predicted("names.csv")
    assert run.out.count("\n") == 10 and run.code == 0
    assert "accuracy 0.8889: 8 of 9 are right" in run.err
    lines = [line.split() for line in run.err.splitlines()]
    assert ["negative", "0.8000", "1.0000", "0.8889", "4"] in lines  # Precision, recall, F1, rows.
    assert ["positive", "1.0000", "0.8000", "0.8889", "5"] in lines
    assert ["negative", "4", "0"] in lines and ["positive", "1", "4"] in lines  # The matrix.
    assert (
        "rows whose label in 'label' the model does not know are not compared: 'unsure'" in run.err
    )
    assert "names.csv: texts from 'sentence', labels from 'label'" in run.err
    (tmp_path / "stars.csv").write_text('sentence,stars\n"a fine film",5\n"a dull film",1\n')
    run = predicted("--text-column", "sentence", "stars.csv")
    assert "accuracy" not in run.err and "are not compared: '1', '5'" in run.err  # And 1 is no id.
    numbers = {"negative": "0.0", "positive": "1"}
    content = "".join(f'"{text}",{numbers[label]}\n' for text, label in ROWS)
    (tmp_path / "ids.csv").write_text("sentence,label\n" + content)
    assert "accuracy 1.0000: 40 of 40 are right" in predicted("ids.csv").err


WRONG = {
    "no such file": (["no.csv"], {}, "no.csv: no such file"),
    "a file of an unknown ending": (
        *(["my texts.txt"], {"my texts.txt": "good\n"}),
        "my texts.txt: the ending is unknown; known: .csv, .tsv, .jsonl, .parquet; with a text a",
    ),
    "a name too long": (["a.csv", "--output", "x" * 300 + ".csv"], {"a.csv": CSV}, "name too long"),
    "GLUE's file as parquet": (
        *(["a.csv", "--glue", "--output", "b.parquet"], {"a.csv": CSV}),
        "--output b.parquet: it must end with .tsv",
    ),
    "half a character elsewhere": (
        *(["a.jsonl", "--output", "b.csv"], {"a.jsonl": '{"text": "a", "id": ["\\ud800"]}\n'}),
        "a.jsonl, line 1: half a character",
    ),
    "two files": (["a.csv", "b.csv"], {}, "a.csv: one file at a time"),
    "an ending that is none": (
        *(["a.csv", "--output", "a.xlsx"], {"a.csv": CSV}),
        "--output a.xlsx: it must end with .csv or .tsv or .jsonl or .parquet",
    ),
    "the file itself": (
        *(["a.csv", "--output", "./a.csv"], {"a.csv": CSV}),
        "that is the file of texts itself",
    ),
    "no folder": (["a.csv", "--output", "no/a.csv"], {"a.csv": CSV}, "there is no folder no"),
    "texts for a file": (["good", "--output", "a.csv"], {}, "--output: is for a file of texts"),
    "an unknown flag": (["--frobnicate"], {}, "--frobnicate"),
    "no text column": (["a.csv"], {"a.csv": "words\ngood\n"}, "no column for the text"),
    "a column that isn't there": (
        *(["a.csv", "--text-column", "x"], {"a.csv": CSV}),
        "no column 'x'; the columns are 'sentence', 'label'",
    ),
    "two columns for one": (
        *(["a.csv", "--text-column", "sentence", "b"], {"a.csv": "sentence,b\nx,y\n"}),
        "the model was trained on 1; name them with --text-column",
    ),
    "an empty file": (["a.csv"], {"a.csv": ""}, "a.csv: no rows in it"),
    "a ragged row": (["a.csv"], {"a.csv": CSV + "x\n"}, "a.csv, line 42: 1 fields"),
    "a number for a text": (["a.jsonl"], {"a.jsonl": '{"text": 5}\n'}, "line 1: 5 in 'text' is no"),
    "an answer there before": (
        *(["a.csv", "--output", "b.csv"], {"a.csv": "text,prediction\na,1\n"}),
        "it has a column 'prediction' already",
    ),
}


@pytest.mark.parametrize("arguments, content, message", WRONG.values(), ids=WRONG)
def test_what_cannot_be_answered_is_told_in_a_line_and_nothing_is_written(
    predicted, tmp_path, arguments, content, message
):
    for name, text in content.items():
        (tmp_path / name).write_text(text)
    run = predicted(*arguments)
    assert run.code == 2 and run.out == "" and len(run.errors) == 1, run.err
    assert message in run.errors[0] and "Traceback" not in run.err
    assert {path.name for path in tmp_path.iterdir()} == set(content)


def test_a_line_that_is_not_utf_8_is_named_and_those_before_it_are_answered(predicted):
    run = predicted(stdin=b"fine\n\ncaf\xe9\nbad\n")
    assert run.code == 2 and run.out.count("\n") == 2
    assert run.errors == ["error: standard input, line 3: byte 0xe9 is not UTF-8"]


def test_a_model_without_a_head_or_without_files_is_refused(predicted, tiny, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "begun").mkdir()
    record = {"settings": {}, "automatic": [], "replaced": {}, "fingerprints": {}, "versions": {}}
    record |= {"resumed": [], "result": None}
    (tmp_path / "begun" / "run.json").write_text(json.dumps(record))
    for run, message in {
        str(tiny): "it has no classification head",
        "empty": "empty: no config.json in it",
        "begun": "begun: a run without model/; no epoch of it is over yet",
        "nobody/nothing": "nobody/nothing: no folder here, the Hub cannot be reached, and the",
        "./no/folder/here": "./no/folder/here: no such folder",
        "": "RUN: name the folder of a run or a model first",
    }.items():
        found = predicted("a text", run=run)
        assert found.code == 2 and found.out == "" and message in found.errors[0], found.err
        assert "--model" not in found.err and "--output-dir" not in found.err


def test_a_model_trained_on_pairs_takes_a_tab_between_the_two(tmp_path, tiny, predicted):
    from finetune import finetune

    rows = [{"a": text, "b": "is it good ?", "label": word == "positive"} for text, word in ROWS]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = finetune(
        model=tiny, data="pairs.jsonl", text_column=["a", "b"], epochs=1, output_dir="pairs"
    )
    found = predicted(stdin=b"a fine film\tis it good ?\n\n", run=str(run.folder))
    assert found.code == 0 and found.out.split("\t")[0] in ("true", "false"), found.err
    assert found.out.endswith("\n\n")
    by_file = predicted("pairs.jsonl", run=str(run.folder))
    assert by_file.out.split("\n")[0] == found.out.split("\n")[0]
    alone = predicted(stdin=b"a\tb\nonly one\n", run=str(run.folder))
    assert alone.code == 2 and alone.out.count("\n") == 1
    assert "line 2: the model was trained on pairs of texts; give two" in alone.errors[0]


def test_a_carriage_return_in_a_text_makes_no_row_of_its_own(predicted, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a fine\\rfilm"}\n{"text": "a \\"dull\\" film"}\n')
    for ending in ("csv", "tsv"):
        assert predicted("a.jsonl", "--output", f"b.{ending}").code == 0
        with (tmp_path / f"b.{ending}").open(newline="") as file:
            rows = list(csv.DictReader(file, dialect="excel-tab" if ending == "tsv" else "excel"))
        assert [row["text"] for row in rows] == ["a fine\rfilm", 'a "dull" film']


def test_a_model_whose_head_is_no_choice_among_classes_is_refused(predicted, trained, tmp_path):
    for name, changes, message in (
        ("regression", {"problem_type": "regression"}, "its head gives no probabilities"),
        ("several", {"problem_type": "multi_label_classification"}, "its head gives no"),
        ("from one", {"id2label": {"1": "a", "2": "b"}}, "id2label does not count from 0"),
    ):
        folder = shutil.copytree(trained.model_folder, tmp_path / name)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | changes))
        run = predicted("a text", run=str(folder))
        assert run.code == 2 and len(run.errors) == 1 and message in run.err, run.err


def test_two_that_write_one_file_leave_one_of_theirs_whole(tmp_path):
    code = (
        "import pathlib, time; from system import disk as files; files.mark_as_own()\n"
        "def fill(out):\n    for _ in range(5): out.write({!r}); out.flush(); time.sleep(0.1)\n"
        "files.write_whole(pathlib.Path('out'), fill)"
    )
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", code.format(part)],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        for part in (b"one\n" * 9999, b"two\n" * 9999)
    ]
    assert [run.wait() for run in runs] == [0, 0]
    assert (tmp_path / "out").read_bytes() in (b"one\n" * 49995, b"two\n" * 49995)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_link_is_followed_and_dates_and_gaps_of_a_parquet_file_are_plain(predicted, tmp_path):
    day, price = datetime.date(2020, 1, 31), decimal.Decimal("1.50")
    table = {"text": ["fine", "bad"], "day": [day] * 2, "price": [price] * 2}
    pyarrow.parquet.write_table(
        pyarrow.table(table | {"gap": [float("nan")] * 2}), tmp_path / "a.parquet"
    )
    (tmp_path / "there.csv").write_text("of yesterday")
    (tmp_path / "link.csv").symlink_to("there.csv")
    assert predicted("a.parquet", "--output", "link.csv").code == 0
    assert (tmp_path / "link.csv").is_symlink()
    assert (tmp_path / "there.csv").read_text().splitlines()[1].startswith("fine,2020-01-31,1.50,")
    assert predicted("a.parquet", "--output", "b.jsonl").code == 0
    row = json.loads((tmp_path / "b.jsonl").read_text().splitlines()[0])
    assert row["gap"] is None and row["day"] == "2020-01-31"


def test_lines_of_a_pipe_that_does_not_block_are_waited_for():
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    late = threading.Timer(0.3, lambda: (os.write(writing, b"late\n"), os.close(writing)))
    late.start()
    with open(reading, "rb") as stream:  # noqa: PTH123
        assert list(predict.arrived_lines(stream)) == [["late"]]
    late.join()


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stop_while_a_file_is_written_leaves_the_one_before(trained, tmp_path, number, code):
    lines = (f"{ROWS[number % 40][0]} {number}\n" for number in range(300_000))
    (tmp_path / "in.tsv").write_text("sentence\n" + "".join(lines))
    (tmp_path / "out.csv").write_text("of yesterday")
    command = [sys.executable, str(ROOT / "predict.py"), str(trained.folder), "in.tsv"]
    process = subprocess.Popen(
        [*command, "--output", "out.csv"], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    partial = tmp_path / f"out.csv.{process.pid}.partial"
    while not (partial.exists() and partial.stat().st_size):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    said = process.communicate()[1]
    assert process.returncode == code and "Traceback" not in said, said
    assert (tmp_path / "out.csv").read_text() == "of yesterday" and not partial.exists()


@pytest.mark.slow
def test_a_million_lines_take_no_more_memory_than_ten_thousand(trained, tmp_path):
    peaks = []
    for count in (10_000, 1_000_000):
        path = tmp_path / f"{count}.txt"
        with path.open("w") as file:
            file.writelines(f"{ROWS[number % 40][0]} {number}\n" for number in range(count))
        code = (
            "import resource, runpy, sys; sys.argv = ['predict.py', sys.argv[1]]\n"
            "try: runpy.run_path('predict.py', run_name='__main__')\n"
            "finally: print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)"
        )
        with path.open() as lines, (tmp_path / "out").open("w") as out:
            done = subprocess.run(
                [sys.executable, "-c", code, str(trained.folder)],
                cwd=ROOT,
                stdin=lines,
                stdout=out,
                stderr=subprocess.PIPE,
                text=True,
                check=True,
            )
        assert sum(1 for _ in (tmp_path / "out").open()) == count
        peaks.append(int(done.stderr.splitlines()[-1]) / 1024)
    print("peak MB", peaks)
    assert peaks[1] < peaks[0] + 300
