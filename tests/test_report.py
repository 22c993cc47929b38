"""report.py writes the files of a run's end again, and refuses changed data or a changed model."""

import csv
import json
import shutil
import subprocess
import sys

import datasets
import pytest
from harness.helpers import CSV, ROOT, make_answers, png_size

import report
from outputs import predictions
from system.console import InputError
from training import record as records

# ---- The files of a run ----


def test_report_py_writes_the_same_bytes_as_the_end_of_the_run(trained, tmp_path, capsys):
    names = ["curves.png", "confusion.png", "calibration.png", "mistakes.csv"]
    names += ["predictions.csv"]
    names += ["model/README.md", "model/curves.png"]
    before = {name: (trained.folder / name).read_bytes() for name in names}
    assert min(png_size(trained.folder / name)[0] for name in names[:3]) >= 800
    copy = shutil.copytree(trained.folder, tmp_path / "copy")
    for name in names:
        (copy / name).unlink()
    report.main([str(copy)])
    err = capsys.readouterr().err
    assert {name: (copy / name).read_bytes() for name in names} == before
    assert "accuracy 0.9302 (0.8139 to 0.9760, the 95 % interval of 43 sentences)" in err
    assert trained.metrics["accuracy"] == 40 / 43
    with (copy / "mistakes.csv").open() as file:
        mistakes = [(row["line"], row["text"], row["prediction"]) for row in csv.DictReader(file)]
    assert sorted(mistakes) == [
        ("42", "a fine film", "positive"),
        ("43", "a dull film", "negative"),
        ("44", "warm and funny", "positive"),
    ]


def test_mistakes_are_the_wrong_answers_in_order_of_confidence(tmp_path):
    columns = {"line": [2, 3, 4, 6], "text": ["a", 'b, "b"', "c", "d"], "text_pair": [None] * 4}
    rows = datasets.Dataset.from_dict(columns | {"label": ["no", "yes", "yes", "no"]})
    answers = make_answers([0, 1, 1, 0], [0, 0, 0, 1], [0.9, 0.6, 0.7, 0.8])
    predictions.write_mistakes(tmp_path / "mistakes.csv", ["no", "yes"], rows, answers)
    with (tmp_path / "mistakes.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [
            ["line", "text", "label", "prediction", "probability"],
            ["6", "d", "no", "yes", "0.8000"],
            ["4", "c", "yes", "no", "0.7000"],
            ["3", 'b, "b"', "yes", "no", "0.6000"],
        ]
    pairs = rows.remove_columns("text_pair").add_column("text_pair", list("wxyz"))
    predictions.write_mistakes(tmp_path / "mistakes.csv", ["no", "yes"], pairs, answers)
    lines = (tmp_path / "mistakes.csv").read_text().splitlines()
    assert lines[0].startswith("line,text,text_pair") and lines[1].startswith("6,d,z,no,yes")


def test_predictions_csv_has_each_validation_sentence_with_the_probability_of_each_class(trained):
    with (trained.folder / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    columns = ["line", "label", "prediction", "probability_negative", "probability_positive"]
    assert list(rows[0]) == columns and len(rows) == 43
    assert [row["line"] for row in rows] == [str(line) for line in range(2, 45)]
    assert [row["label"] for row in rows[-3:]] == ["negative", "positive", "negative"]
    assert sum(row["label"] == row["prediction"] for row in rows) == 40
    for row in rows:
        negative, positive = float(row["probability_negative"]), float(row["probability_positive"])
        assert negative + positive == pytest.approx(1, abs=2e-6)
        assert row["prediction"] == ("positive" if positive > negative else "negative")


def test_an_incomplete_run_gets_its_curves_so_far(trained, tmp_path, capsys):
    folder = tmp_path / "run"
    folder.mkdir()
    record = records.read(trained.folder) | {"result": None}
    (folder / "run.json").write_text(json.dumps(record))
    lines = (trained.folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    # The last line of the third file is unfinished.
    for written in ("", lines[0], "".join(lines[:9]) + lines[9][:-9]):
        (folder / "metrics.jsonl").write_text(written)
        report.main([str(folder)])
        assert "the run is not complete; its curves so far are in" in capsys.readouterr().err
        assert png_size(folder / "curves.png")[0] >= 1000
    assert not (folder / "confusion.png").exists()


def test_labels_in_no_font_are_named_in_a_note(in_process, tmp_path, tiny, monkeypatch):
    monkeypatch.setattr("matplotlib.font_manager.get_font_names", list)
    table = CSV.replace("positive", "好评").replace("negative", "差评")
    (tmp_path / "a.csv").write_text(table, "utf-8")
    run = in_process("--model", tiny, "--data", "a.csv", "--epochs", "1", "--output-dir", "run")
    note = (
        "NOTE: no font for '好', '差', '评'; confusion.png shows numbers: 0 is '好评', 1 is '差评'"
    )
    assert run.code == 0 and run.err.splitlines().count(note) == 1, run.err


# ---- Damaged and changed runs ----


def test_changed_data_and_a_missing_model_or_data_are_refused(trained, tmp_path):
    copy = shutil.copytree(trained.folder, tmp_path / "copy")
    record = json.loads((copy / "run.json").read_text())
    changed = tmp_path / "data"
    changed.mkdir()
    for name in ("train", "dev"):
        (changed / f"{name}.csv").write_text(
            "sentence,label\nfine,positive\nbad,negative\nso,negative\n"
        )
    record["settings"]["data"] = str(changed)
    (copy / "run.json").write_text(json.dumps(record))
    (copy / "mistakes.csv").unlink()
    with pytest.raises(InputError, match="has changed since the run was started"):
        report.main([str(copy)])
    shutil.rmtree(copy / "model")
    shutil.rmtree(changed)
    with pytest.raises(InputError) as caught:
        report.main([str(copy)])
    without_model, without_data = map(str, caught.value.problems)
    assert (
        "copy: model/ is missing; complete an epoch of this run, or restore a copy" in without_model
    )
    assert f"the data {changed} is missing" in without_data
    assert not (copy / "mistakes.csv").exists()


def damaged_copy(trained, folder, damage):
    """A copy of a run, with a record that `damage` has changed."""
    shutil.copytree(trained.folder, folder)
    record = json.loads((folder / "run.json").read_text())
    damage(record)
    (folder / "run.json").write_text(json.dumps(record))
    return folder


@pytest.mark.parametrize(
    "damage",
    [
        lambda record: record.pop("labels"),
        lambda record: record["settings"].pop("batch_size"),
        lambda record: record["result"].update(accuracy="x"),
        lambda record: record["result"].update(epoch=9),
        lambda record: record.update(labels=["positive", "negative"]),
    ],
    ids=["no labels", "no batch size", "accuracy as text", "no such epoch", "swapped labels"],
)
def test_a_damaged_record_is_refused_in_one_line(trained, tmp_path, damage):
    folder = damaged_copy(trained, tmp_path / "run", damage)
    with pytest.raises(InputError) as caught:
        report.main([str(folder)])
    (problem,) = caught.value.problems
    assert str(problem).startswith(str(folder))


def test_a_damaged_run_is_left_out_of_a_comparison(trained, tmp_path, capsys):
    folder = damaged_copy(trained, tmp_path / "run", dict.clear)
    for name in ("other", "third"):
        shutil.copytree(trained.folder, tmp_path / name)
    report.main([str(tmp_path / name) for name in ("run", "other", "third")])
    out, err = capsys.readouterr()
    assert out.splitlines()[1].startswith("other, third")
    assert f"{folder}: run.json cannot be read (unexpected content); left out" in err
    with pytest.raises(InputError, match=r"run\.json cannot be read") as caught:
        report.main([str(folder)])
    assert "--output-dir" not in str(caught.value)


# ---- Several runs ----


@pytest.fixture
def two_runs(trained, tmp_path) -> list[str]:
    """The folders of two runs that differ in the seed alone, without models."""
    for seed, name in enumerate(("one", "two")):
        (tmp_path / name).mkdir()
        for file in ("metrics.jsonl", "predictions.csv"):
            shutil.copy(trained.folder / file, tmp_path / name)
        record = json.loads((trained.folder / "run.json").read_text())
        record["settings"]["seed"] = seed
        (tmp_path / name / "run.json").write_text(json.dumps(record))
    return [str(tmp_path / "one"), str(tmp_path / "two")]


def test_report_py_on_several_runs_prints_a_table_and_draws_one_picture(two_runs, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    report.main(list(map(str, sorted(tmp_path.iterdir()))))
    out, err = capsys.readouterr()
    header, line = out.splitlines()
    assert header.split()[:5] == ["run", "seeds", "accuracy", "macro_f1", "minutes"]
    assert line.startswith("one, two")
    assert line.endswith("worst run: not distinguishable on 43 sentences (p 1)")
    assert "notes.txt: not a run; left out" in err
    assert png_size(tmp_path / "comparison.png")[0] >= 1000
    report.main([two_runs[0], two_runs[1], str(tmp_path / "comparison.png")])
    # A shell expands runs/* to the picture, too.
    assert "left out" not in capsys.readouterr().err


def test_a_pattern_that_the_shell_leaves_as_it_is_names_its_runs(two_runs, tmp_path, capsys):
    report.main([str(tmp_path / "*")])
    assert capsys.readouterr().out.splitlines()[1].startswith("one, two")
    with pytest.raises(InputError, match=r"other\*: run\.json is missing"):
        report.main([str(tmp_path / "other*")])


def test_folders_without_a_run_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"run\.json is missing; name the folder of a run$"):
        report.main([str(tmp_path / "nothing")])
    with pytest.raises(InputError, match=r"run\.json is missing; name the folder of a run$"):
        report.main([str(tmp_path)])


def test_several_runs_are_compared_without_the_slow_imports(two_runs):
    code = """
import sys, report
report.main(sys.argv[1:])
print(sorted({"torch", "transformers", "evaluate", "datasets", "sklearn"} & sys.modules.keys()))
"""
    command = [sys.executable, "-c", code, *two_runs]
    out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "[]", out
