"""predict.py prints the labels of transformers' pipeline, in the order of the texts."""

import csv
import json
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from harness.checks import check_prediction_refused
from harness.helpers import CSV, NEGATIVE, POSITIVE, ROOT, ROWS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inputs.texts import LARGEST_WINDOW

TEXTS = [*POSITIVE, "a " * 300, *NEGATIVE, "x", "a fine film\0 with a NUL", "y" * 100_000]


@pytest.fixture(scope="module")
def expected(trained) -> list[str]:
    """The answers of transformers' own pipeline to TEXTS, as lines."""
    from transformers import pipeline

    classify = pipeline("text-classification", model=str(trained.model_folder), truncation=True)
    classify.tokenizer.model_max_length = 64
    return [
        f"{answer['label']}\t{answer['score']:.4f}"
        for answers in map(classify, TEXTS)
        for answer in answers
    ]


def are_close(lines: list[str], expected: list[str]) -> bool:
    """Assert that labels are equal and probabilities differ only by rounding; return True."""
    assert len(lines) == len(expected)
    for line, other in zip(lines, expected, strict=True):
        label, _, probability = line.partition("\t")
        assert label == other.partition("\t")[0]
        if label:
            assert float(probability) == pytest.approx(float(other.split("\t")[1]), abs=2e-4)
    return True


# ---- Answers ----


def test_arguments_lines_and_files_get_the_answers_of_transformers_pipeline(
    predicted, expected, tmp_path
):
    assert {line.split("\t")[0] for line in expected} == {"negative", "positive"}
    by_arguments = predicted(*(text for text in TEXTS if "\0" not in text))
    assert by_arguments.code == 0, by_arguments.err
    without_nul = [line for text, line in zip(TEXTS, expected, strict=True) if "\0" not in text]
    assert are_close(by_arguments.out.splitlines(), without_nul)
    by_lines = predicted(stdin="\n".join(TEXTS).encode())
    assert are_close(by_lines.out.splitlines(), expected)
    for ending, content in {
        "jsonl": "".join(json.dumps({"sentence": text}) + "\n" for text in TEXTS),
        "tsv": "sentence\n" + "".join(f"{text}\n" for text in TEXTS if "\0" not in text),
    }.items():
        (tmp_path / f"texts.{ending}").write_text(content)
        run = predicted(f"texts.{ending}")
        # JSON escapes a NUL, and a table of text has none.
        lines = expected if ending == "jsonl" else without_nul
        assert run.code == 0 and are_close(run.out.splitlines(), lines), run.err


def test_all_gives_the_probability_of_each_class_as_the_pipeline_does_with_top_k_none(
    predicted, trained, tmp_path
):
    from transformers import pipeline

    options = {"model": str(trained.model_folder), "truncation": True, "top_k": None}
    replies = pipeline("text-classification", **options)(TEXTS)
    every = [{answer["label"]: answer["score"] for answer in reply} for reply in replies]
    lines = predicted("--all", stdin="\n".join(TEXTS).encode()).out.splitlines()
    header = "label\tprobability\tprobability_negative\tprobability_positive"
    assert lines[0] == header and len(lines) == len(TEXTS) + 1
    rows = [{"sentence": text} for text in TEXTS]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert predicted("texts.jsonl", "--all").out.splitlines() == lines
    run = predicted("texts.jsonl", "--all", "--output", "all.csv")
    with (tmp_path / "all.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert run.code == 0 and len(table) == len(TEXTS)
    for line, row, expected in zip(lines[1:], table, every, strict=True):
        cells = dict(zip(header.split("\t"), line.split("\t"), strict=True))
        best = max(expected, key=expected.get)
        assert (cells["label"], row["prediction"]) == (best, best)
        for name in ("negative", "positive"):
            for value in (cells[f"probability_{name}"], row[f"probability_{name}"]):
                assert float(value) == pytest.approx(expected[name], abs=1e-4)
        assert float(cells["probability"]) == pytest.approx(expected[best], abs=1e-4)


@pytest.fixture
def sure_from(classifier, monkeypatch) -> None:
    """The model's probability of `positive` is the number that the text is."""
    from outputs import classifier as classifiers

    def answer(_, texts, on_batch):
        on_batch(len(texts))
        positive = np.array(texts, np.float32)
        return (positive >= 0.5).astype(int), np.stack([1 - positive, positive], axis=1)

    monkeypatch.setattr(classifiers, "answer", answer)


def test_at_least_leaves_a_less_probable_answer_empty_and_scores_the_others(
    sure_from, predicted, tmp_path
):
    lines = b"0.9\n0.89\n\n0.05\n0.11\n"
    run = predicted("--at-least", "0.9", stdin=lines)
    assert run.out == "positive\t0.9000\n\n\nnegative\t0.9500\n\n"
    assert "answered 2 of 4 texts, with a probability of at least 0.9" in run.err
    both = predicted("--at-least", "0.9", "--all", stdin=lines).out.splitlines()[1:]
    assert both[:3] == ["positive\t0.9000\t0.1000\t0.9000", "\t\t0.1100\t0.8900", "\t\t\t"]
    text = "text,label\n0.95,positive\n0.97,negative\n0.6,negative\n,positive\n0.01,negative\n"
    (tmp_path / "a.csv").write_text(text)
    run = predicted("a.csv", "--at-least", "0.9", "--output", "b.csv")
    assert "answered 3 of 4 texts, with a probability of at least 0.9" in run.err
    assert "scores of the answered texts:\naccuracy 0.6667: 2 of 3 correct" in run.err
    assert (tmp_path / "b.csv").read_text().splitlines() == [
        "text,label,prediction,probability",
        "0.95,positive,positive,0.95",
        "0.97,negative,positive,0.97",
        "0.6,negative,,",
        ",positive,,",
        "0.01,negative,negative,0.99",
    ]
    none = predicted("a.csv", "--at-least", "1")
    assert none.out == "\n" * 5 and "answered 0 of 4 texts" in none.err
    assert "accuracy" not in none.err and none.code == 0
    assert "answered" not in predicted("a.csv").err


def test_columns_of_all_probabilities_are_numbers_in_a_parquet_file(predicted, tmp_path):
    import pyarrow.parquet

    # The file's own column looks like one of the added columns and holds text.
    (tmp_path / "a.csv").write_text("text,probability_old\na fine film,high\n,low\n")
    assert predicted("a.csv", "--all", "--output", "b.parquet").code == 0
    table = pyarrow.parquet.read_table(tmp_path / "b.parquet")
    kinds = {field.name: str(field.type) for field in table.schema}
    numbers = ["probability", "probability_negative", "probability_positive"]
    texts = ["text", "probability_old", "prediction"]
    assert kinds == dict.fromkeys(texts, "string") | dict.fromkeys(numbers, "double")
    first, blank = table.to_pylist()
    total = first["probability_negative"] + first["probability_positive"]
    assert total == pytest.approx(1, abs=2e-6)
    assert [blank[name] for name in ("prediction", *numbers)] == [None] * 4


def test_an_empty_line_gives_an_empty_line_and_no_line_is_lost_or_split(predicted):
    lines = ["a fine film\r", "", "  ", "\ufeffmark", "one\u2028line", "tab\there", "", "dull"]
    run = predicted(stdin="\n".join(lines).encode())
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
def test_the_answer_to_a_line_does_not_depend_on_other_lines(predicted, lines):
    together = predicted(stdin="".join(line + "\n" for line in lines).encode()).out
    separate = "".join(predicted(stdin=(line + "\n").encode()).out for line in lines)
    assert are_close(together.split("\n"), separate.split("\n"))


def test_a_model_trained_on_pairs_reads_two_texts_separated_by_a_tab(tmp_path, tiny, predicted):
    from finetune import finetune

    rows = [{"a": text, "b": "is it good ?", "label": label == "positive"} for text, label in ROWS]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = finetune(
        model=tiny, data="pairs.jsonl", text_column=["a", "b"], epochs=1, output_dir="pairs"
    )
    by_line = predicted(stdin=b"a fine film\tis it good ?\n\n", run=str(run.folder))
    assert by_line.code == 0 and by_line.out.split("\t")[0] in ("true", "false"), by_line.err
    assert by_line.out.endswith("\n\n")
    by_file = predicted("pairs.jsonl", run=str(run.folder))
    assert by_file.out.split("\n")[0] == by_line.out.split("\n")[0]
    unpaired = predicted(stdin=b"a\tb\nonly one\n", run=str(run.folder))
    assert unpaired.code == 2 and unpaired.out.count("\n") == 1
    assert "line 2: expected two texts, because the model was trained" in unpaired.errors[0]


# ---- The command line ----

WRONG = [
    pytest.param(["no.csv"], {}, "no.csv: no such file", id="no such file"),
    pytest.param(["no.txt"], {}, "no.txt: no such file", id="no such file of lines"),
    pytest.param(
        ["my texts.pdf"],
        {"my texts.pdf": "good\n"},
        "my texts.pdf: unknown ending '.pdf'; use one of .csv, .tsv, .txt, .data, .label, .json, "
        ".jsonl, .parquet, .arrow, .xlsx, or `< my texts.pdf` for one text a line",
        id="a file of an unknown ending",
    ),
    pytest.param(
        ["a.csv", "--encoding", "cp1525"],
        {"a.csv": CSV},
        "--encoding: must be the name of an encoding, such as utf-8 or cp1252 (found 'cp1525')",
        id="an unknown encoding",
    ),
    pytest.param(
        ["good", "--at-least", "90"],
        {},
        "--at-least: must be a number from 0 to 1 (found '90')",
        id="a percentage",
    ),
    pytest.param(
        ["good", "--at-least", "nan"],
        {},
        "--at-least: must be a number from 0 to 1 (found 'nan')",
        id="not a number",
    ),
    pytest.param(
        ["a.csv", "--glue", "--at-least", "0.9"],
        {"a.csv": CSV},
        "--at-least: GLUE's file has one answer to each row; leave out --glue or this flag",
        id="GLUE's file with empty answers",
    ),
    pytest.param(
        ["a.csv", "--all", "--output", "b.csv"],
        {"a.csv": "text,probability_positive\na,b\n"},
        "a.csv: the output column 'probability_positive' exists already; rename it in the file",
        id="a column of the output in the file",
    ),
    pytest.param(
        ["good", "--encoding", "cp1252"],
        {},
        "--encoding: needs a file of texts; name a file",
        id="an encoding of no file",
    ),
    pytest.param(
        ["a.csv", "--output", "x" * 300 + ".csv"],
        {"a.csv": CSV},
        "name too long",
        id="a name too long",
    ),
    pytest.param(
        ["a.csv", "--glue", "--output", "b.parquet"],
        {"a.csv": CSV},
        "--output b.parquet: must end with .tsv",
        id="GLUE's file as parquet",
    ),
    pytest.param(["a.csv", "b.csv"], {}, "a.csv: expected one file and no texts", id="two files"),
    pytest.param(
        ["a.csv", "--output", "a.xlsx"],
        {"a.csv": CSV},
        "--output a.xlsx: must end with .csv or .tsv or .jsonl or .parquet",
        id="output with an unknown ending",
    ),
    pytest.param(
        ["a.csv", "--output", "./a.csv"],
        {"a.csv": CSV},
        "--output a.csv: is the file of texts; choose",
        id="the file itself",
    ),
    pytest.param(
        ["a.csv", "--output", "no/a.csv"],
        {"a.csv": CSV},
        "no such folder no; create it",
        id="no folder",
    ),
    pytest.param(
        ["good", "--output", "a.csv"], {}, "--output: needs a file of texts", id="texts for a file"
    ),
    pytest.param(["--frobnicate"], {}, "--frobnicate", id="an unknown flag"),
]


@pytest.mark.parametrize("arguments, files, message", WRONG)
def test_a_wrong_command_line_is_refused_in_one_line_and_nothing_is_written(
    predicted, tmp_path, arguments, files, message
):
    check_prediction_refused(predicted, tmp_path, arguments, files, message)


def test_an_output_that_is_a_link_stays_a_link_and_its_target_is_written(predicted, tmp_path):
    (tmp_path / "a.csv").write_text("text\nfine\n")
    (tmp_path / "there.csv").write_text("of yesterday")
    (tmp_path / "link.csv").symlink_to("there.csv")
    assert predicted("a.csv", "--output", "link.csv").code == 0
    assert (tmp_path / "link.csv").is_symlink()
    assert (tmp_path / "there.csv").read_text().splitlines()[1].startswith("fine,")


# ---- The process ----


def test_help_and_a_wrong_flag_are_answered_before_the_slow_imports():
    code = """
import sys, predict
for flag in ("--frobnicate", "--help"):
    try:
        predict.main([flag])
    except (predict.InputError, SystemExit) as error:
        print(type(error).__name__)
print(sorted({"torch", "transformers", "evaluate", "sklearn", "datasets"} & sys.modules.keys()))
"""
    command = [sys.executable, "-c", code]
    out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    lines = out.splitlines()
    assert (lines[0], *lines[-2:]) == ("InputError", "SystemExit", "[]"), out


def test_an_open_pipe_is_answered_at_once_and_a_closed_output_ends_it_silently(trained):
    command = [sys.executable, str(ROOT / "predict.py"), str(trained.folder)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
    ) as process:
        process.stdin.write(b"a fine film\na dull")
        assert process.stdout.readline().startswith(b"positive\t0.")
        process.stdin.write(b" film\n")
        assert process.stdout.readline().startswith(b"negative\t0.")
        process.stdout.close()
        process.stdin.write(b"warm\n" * 10)
        process.stdin.close()
        err = process.stderr.read()
    assert process.returncode == -signal.SIGPIPE and err == b"", err


@pytest.mark.parametrize(
    "number, code",
    [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.long)],
)
def test_a_signal_while_a_file_is_written_keeps_the_old_file(trained, tmp_path, number, code):
    lines = (f"{ROWS[number % 40][0]} {number}\n" for number in range(50_000))
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
    err = process.communicate()[1]
    assert process.returncode == code and "Traceback" not in err, err
    assert (tmp_path / "out.csv").read_text() == "of yesterday" and not partial.exists()


# ---- Files larger than a window ----


@pytest.fixture
def label_by_number(monkeypatch) -> None:
    """Replace the model: a text that begins with an odd number is positive, any other negative."""
    from outputs import classifier as classifiers

    def answer(_, batch, pairs=None, on_batch=None, **__):
        on_batch(len(batch))
        numbers = np.array([int(text.split()[0]) for text in batch])
        return numbers % 2, np.full((len(batch), 2), 0.5)

    monkeypatch.setattr(classifiers, "answer", answer)


def write_numbered(path: Path, rows: int) -> None:
    lines = (f"{number} {'word ' * 100}\n" for number in range(rows))
    path.write_text("sentence\n" + "".join(lines))


def check_numbered(path: Path, rows: int) -> None:
    with path.open(newline="") as file:
        labels = [row["prediction"] for row in csv.DictReader(file, dialect="excel-tab")]
    assert labels == [("negative", "positive")[number % 2] for number in range(rows)]


def test_a_file_larger_than_a_window_is_answered_in_order(predicted, label_by_number, tmp_path):
    write_numbered(tmp_path / "many.tsv", 6_000)
    assert (tmp_path / "many.tsv").stat().st_size > 2 * LARGEST_WINDOW
    run = predicted("many.tsv", "--output", "out.tsv")
    assert run.code == 0, run.err
    check_numbered(tmp_path / "out.tsv", 6_000)


@pytest.mark.long
def test_memory_does_not_grow_with_the_size_of_a_file(predicted, label_by_number, tmp_path):
    peaks = []
    for rows in (6_000, 24_000):
        write_numbered(tmp_path / "many.tsv", rows)
        tracemalloc.start()
        run = predicted("many.tsv", "--output", "out.tsv")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert run.code == 0, run.err
        check_numbered(tmp_path / "out.tsv", rows)
    assert (tmp_path / "many.tsv").stat().st_size > 10_000_000
    assert peaks[1] < peaks[0] + 2_000_000, peaks


@pytest.mark.slow
def test_a_million_lines_take_no_more_memory_than_ten_thousand_lines(trained, tmp_path):
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
            process = subprocess.run(
                [sys.executable, "-c", code, str(trained.folder)],
                cwd=ROOT,
                stdin=lines,
                stdout=out,
                stderr=subprocess.PIPE,
                text=True,
                check=True,
            )
        assert sum(1 for _ in (tmp_path / "out").open()) == count
        peaks.append(int(process.stderr.splitlines()[-1]) / 1024)
    print("peak MB", peaks)
    assert peaks[1] < peaks[0] + 300
