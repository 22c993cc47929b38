"""What a person looks at: numbers that are right, pictures that can be read, a card that is one."""

import csv
import dataclasses
import itertools
import json
import shutil
import struct

import datasets
import huggingface_hub
import numpy as np
import pytest

import report
from outputs import compare, model_card
from outputs import plots as pictures
from system.console import InputError
from training import record as records


def png_size(path) -> tuple[int, int]:
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", content[16:24])


# ---- Numbers ----


def test_793_of_872_is_90_94_percent_give_or_take_1_9_points():
    low, high = report.interval(793 / 872, 872)
    # Wilson's formula by hand.
    n, p, z = 872, 793 / 872, 1.959964
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * (p * (1 - p) / n + z**2 / (4 * n**2)) ** 0.5
    assert (low, high) == pytest.approx((middle - half, middle + half), abs=1e-6)
    words = model_card.in_words({"accuracy": 793 / 872, "accuracy_interval": [low, high]}, 872)
    assert words.startswith("accuracy 0.9094 ± 1.9 points (0.8885 to 0.9267")
    assert report.interval(1.0, 10)[0] < 0.75  # And not 1 to 1, as the plain formula has it.


def test_the_calibration_error_is_the_mean_gap_between_probability_and_accuracy():
    probabilities = np.array([0.99, 0.99, 0.99, 0.99, 0.62, 0.62], np.float32)
    answers = report.Answers(np.array([1, 1, 1, 0, 1, 0]), np.ones(6, int), probabilities)
    error, bins = report.calibration(answers)
    # Three of four are right at 0.99, one of two at 0.62.
    assert error == pytest.approx(4 / 6 * 0.24 + 2 / 6 * 0.12, abs=1e-6)
    assert [found["sentences"] for found in bins] == [2, 4]
    assert all(found["low"] < found["probability"] <= found["high"] for found in bins)
    sure = report.Answers(np.ones(3, int), np.ones(3, int), np.ones(3, np.float32))
    assert report.calibration(sure)[0] == 0


# ---- Files ----


def test_a_run_ends_with_its_report_and_report_py_writes_the_same_bytes_again(
    trained, tmp_path, monkeypatch, capsys
):
    names = ["curves.png", "confusion.png", "calibration.png", "mistakes.csv"]
    names += ["model/README.md", "model/curves.png"]
    before = {name: (trained.folder / name).read_bytes() for name in names}
    assert min(png_size(trained.folder / name)[0] for name in names[:3]) >= 800
    copy = shutil.copytree(trained.folder, tmp_path / "copy")
    for name in names:
        (copy / name).unlink()
    report.main([str(copy)])
    said = capsys.readouterr().err
    assert {name: (copy / name).read_bytes() for name in names} == before
    assert "accuracy 0.9302 (0.8139 to 0.9760, the 95 % interval of 43 sentences)" in said
    assert trained.metrics["accuracy"] == 40 / 43
    with (copy / "mistakes.csv").open() as file:
        mistakes = [(row["line"], row["text"], row["prediction"]) for row in csv.DictReader(file)]
    assert sorted(mistakes) == [
        ("42", "a fine film", "positive"),
        ("43", "a dull film", "negative"),
        ("44", "warm and funny", "positive"),
    ]


def test_mistakes_are_the_wrong_answers_most_confident_first(tmp_path):
    columns = {"line": [2, 3, 4, 6], "text": ["a", 'b, "b"', "c", "d"], "text_pair": [None] * 4}
    rows = datasets.Dataset.from_dict(columns | {"label": ["no", "yes", "yes", "no"]})
    said = np.array([0.9, 0.6, 0.7, 0.8], np.float32)
    answers = report.Answers(np.array([0, 1, 1, 0]), np.array([0, 0, 0, 1]), said)
    report.write_mistakes(tmp_path / "mistakes.csv", ["no", "yes"], rows, answers)
    with (tmp_path / "mistakes.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [
            ["line", "text", "label", "prediction", "probability"],
            ["6", "d", "no", "yes", "0.8000"],
            ["4", "c", "yes", "no", "0.7000"],
            ["3", 'b, "b"', "yes", "no", "0.6000"],
        ]
    pairs = rows.remove_columns("text_pair").add_column("text_pair", list("wxyz"))
    report.write_mistakes(tmp_path / "mistakes.csv", ["no", "yes"], pairs, answers)
    lines = (tmp_path / "mistakes.csv").read_text().splitlines()
    assert lines[0].startswith("line,text,text_pair") and lines[1].startswith("6,d,z,no,yes")


def test_the_model_card_is_read_back_by_huggingface_hub(trained, tmp_path):
    card = huggingface_hub.ModelCard.load(trained.model_folder / "README.md")
    (result,) = card.data.eval_results
    assert result.metric_type == "accuracy" and result.dataset_split == "validation"
    assert result.metric_value == trained.metrics["accuracy"]
    assert card.data.library_name == "transformers" and card.data.metrics == ["accuracy"]
    assert card.data.pipeline_tag == "text-classification"
    assert str(trained.folder.parent) not in str(card)  # No path of a machine.
    for words in ("`learning_rate`: 0.01", "`negative`, `positive`", "](curves.png)"):
        assert words in card.text
    assert (trained.model_folder / "curves.png").exists()


def test_the_card_of_the_defaults_names_base_model_license_and_data_set(trained):
    record = records.read(trained.folder)
    record["settings"] |= {"model": "distilbert/distilbert-base-uncased", "data": "sst2"}
    record["result"] |= {"test_accuracy": 0.75, "macro_f1": 0.5}
    record["sentences"]["test"] = 4
    card = huggingface_hub.ModelCard(model_card.make(record))
    assert card.data.base_model == "distilbert/distilbert-base-uncased"
    assert card.data.license == "apache-2.0" and card.data.datasets == ["nyu-mll/glue"]
    found = [
        (result.dataset_type, result.dataset_config, result.dataset_split, result.metric_type)
        for result in card.data.eval_results
    ]
    glue = ("nyu-mll/glue", "sst2")
    assert found == [
        (*glue, "validation", "accuracy"), (*glue, "validation", "f1"), (*glue, "test", "accuracy")
    ]  # fmt: skip
    record["settings"]["model"] = "builtin"
    card = huggingface_hub.ModelCard(model_card.make(record))
    assert card.data.base_model == "sentence-transformers/all-MiniLM-L6-v2"
    assert dataclasses.asdict(card.data.eval_results[0])["metric_value"] == 40 / 43


def test_data_or_a_model_that_has_changed_is_not_reported_on(trained, tmp_path, capsys):
    copy = shutil.copytree(trained.folder, tmp_path / "copy")
    record = json.loads((copy / "run.json").read_text())
    other = tmp_path / "data"
    other.mkdir()
    for name in ("train", "dev"):
        (other / f"{name}.csv").write_text(
            "sentence,label\nfine,positive\nbad,negative\nso,negative\n"
        )
    record["settings"]["data"] = str(other)
    (copy / "run.json").write_text(json.dumps(record))
    (copy / "mistakes.csv").unlink()
    with pytest.raises(InputError, match="has changed since the run was started"):
        report.main([str(copy)])
    shutil.rmtree(copy / "model")
    shutil.rmtree(other)
    with pytest.raises(InputError) as caught:
        report.main([str(copy)])
    without_model, without_data = caught.value.problems
    assert "a run without model/; its model is gone" in without_model
    assert f"its data, {other}, is not here" in without_data
    assert not (copy / "mistakes.csv").exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda record: record.pop("labels"),
        lambda record: record["settings"].pop("batch_size"),
        lambda record: record["result"].update(accuracy="x"),
        lambda record: record["result"].update(epoch=9),
        lambda record: record.update(labels=["positive", "negative"]),
    ],
)
def test_a_run_that_is_damaged_is_told_in_a_line_and_the_others_are_compared(
    trained, tmp_path, capsys, damage
):
    folder = tmp_path / "run"
    shutil.copytree(trained.folder, folder)
    record = json.loads((folder / "run.json").read_text())
    damage(record)
    (folder / "run.json").write_text(json.dumps(record))
    with pytest.raises(InputError) as caught:
        report.main([str(folder)])
    (problem,) = caught.value.problems
    assert problem.startswith(str(folder))
    (folder / "run.json").write_text("{}")
    shutil.copytree(trained.folder, tmp_path / "other")
    capsys.readouterr()
    shutil.copytree(trained.folder, tmp_path / "third")
    report.main([str(tmp_path / name) for name in ("run", "other", "third")])
    out, err = capsys.readouterr()
    assert out.splitlines()[1].startswith("other, third")
    assert f"{folder}: run.json cannot be read (not as this program writes it); left out" in err
    with pytest.raises(InputError, match=r"run\.json cannot be read") as caught:
        report.main([str(folder)])
    assert "--output-dir" not in str(caught.value)


def test_of_a_run_that_is_not_complete_there_are_curves(trained, tmp_path, capsys):
    folder = tmp_path / "run"
    folder.mkdir()
    record = records.read(trained.folder) | {"result": None}
    (folder / "run.json").write_text(json.dumps(record))
    lines = (trained.folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    for written in ("", lines[0], "".join(lines[:9]) + lines[9][:-9]):  # One is being written.
        (folder / "metrics.jsonl").write_text(written)
        report.main([str(folder)])
        assert "the run is not complete; its curves so far are in" in capsys.readouterr().err
        assert png_size(folder / "curves.png")[0] >= 1000
    assert not (folder / "confusion.png").exists()


# ---- Pictures ----

NASTY = ["$x$ and {y}", "a very long name of a class, longer than any", "两个", "\n", "_^\\frac"]


def check_legible(figure, least_points: float = 8) -> None:
    """No two texts overlap, none is cut off, and none is small."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text

    FigureCanvasAgg(figure).draw()
    texts = [t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip()]
    boxes = [(text, text.get_window_extent()) for text in texts]
    # Of ticks that lie outside of what is shown nothing is drawn.
    inside = [(t, box) for t, box in boxes if not _is_hidden_tick(figure, t)]
    assert len(inside) >= 4
    for text, box in inside:
        assert text.get_fontsize() >= least_points, text
        assert box.x0 >= -1 and box.y0 >= -1, text
        assert box.x1 <= figure.bbox.x1 + 1 and box.y1 <= figure.bbox.y1 + 1, text
    for (one, first), (other, second) in itertools.combinations(inside, 2):
        width = min(first.x1, second.x1) - max(first.x0, second.x0)
        height = min(first.y1, second.y1) - max(first.y0, second.y0)
        assert width <= 1 or height <= 1, (one, other)


def _is_hidden_tick(figure, text) -> bool:
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            shown = {id(tick) for tick in axis._update_ticks()}
            for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]:
                if text in (tick.label1, tick.label2):
                    return id(tick) not in shown
    return False


@pytest.fixture
def drawn(monkeypatch) -> list:
    figures = []
    monkeypatch.setattr(pictures, "_save", lambda figure, path: figures.append(figure))
    return figures


def history(steps: int, epochs: int, **more: float) -> list[dict]:
    random, lines = np.random.default_rng(0), []
    for step in range(20, steps + 1, 20):
        rate = 3e-5 * (1 - step / steps)
        loss = 0.7 * np.exp(-step / steps) + random.normal() / 20
        lines.append({"step": step, "loss": loss, "learning_rate": rate})
        if step % (steps // epochs) == 0:
            accuracy = 0.9 - 0.2 / (len(lines) + 1)
            lines.append({"step": step, "eval_loss": loss, "eval_accuracy": accuracy} | more)
    return lines


@pytest.mark.parametrize("steps, epochs", [(20, 1), (60, 3), (6300, 3), (200_000, 20)])
def test_curves_have_no_words_over_one_another(drawn, tmp_path, steps, epochs):
    lines = history(steps, epochs, eval_macro_f1=0.6)
    count = sum("eval_loss" in line for line in lines)
    kept = {"epoch": count - 1, "accuracy": lines[-1]["eval_accuracy"]}
    words = model_card.in_words(kept | {"accuracy_interval": [0.8, 0.9]}, 872)
    title = f"distilbert-base-uncased on {NASTY[0]}\n{words}"
    pictures.curves(tmp_path / "a.png", lines, title, kept, [(0.8, 0.99)] * count)
    check_legible(drawn[0])


@pytest.mark.parametrize("names", [["0", "1"], NASTY, [f"class {i}" for i in range(12)]])
def test_confusions_have_no_words_over_one_another(drawn, tmp_path, names):
    matrix = np.random.default_rng(0).integers(1_000_000, size=(len(names), len(names)))
    pictures.confusion(tmp_path / "a.png", matrix, names, "793 of 872 sentences are right")
    check_legible(drawn[0])


def test_a_confusion_of_hundreds_of_classes_is_drawn_without_their_names(tmp_path):
    matrix = np.eye(300, dtype=int)
    pictures.confusion(tmp_path / "a.png", matrix, [f"class {i}" for i in range(300)], "all right")
    assert png_size(tmp_path / "a.png")[0] >= 800


def test_a_reliability_plot_has_no_words_over_one_another(drawn, tmp_path):
    right = np.random.default_rng(0).random(872) < 0.8
    said = np.linspace(0.34, 1, 872, dtype=np.float32)
    _, bins = report.calibration(report.Answers(right.astype(int), np.ones(872, int), said))
    pictures.calibration(tmp_path / "a.png", bins, "expected calibration error 0.1234")
    check_legible(drawn[0])


def test_many_runs_in_one_picture_have_no_words_over_one_another(drawn, tmp_path):
    runs = [(f"run{i}: learning_rate 3e-05, {NASTY[i % 5]}", history(60, 3)) for i in range(30)]
    pictures.comparison(tmp_path / "a.png", [*runs, ("empty", [])])
    check_legible(drawn[0])
    pictures.comparison(tmp_path / "a.png", [("empty", [])])
    pictures.comparison(tmp_path / "a.png", [("_base", history(60, 3)), ("\udcff", [])])
    (legend,) = drawn[-1].legends
    assert [text.get_text().strip() for text in legend.get_texts()] == ["_base", "?"]


# ---- Runs apart ----


def make_run(folder, accuracy: float | None, seconds: float = 60.0, **settings: object):
    record = {"settings": {"model": "m", "data": "d", "seed": 1, "batch_size": 32} | settings}
    # What is trained on differs from seed to seed where a part is drawn.
    fingerprints = {"files": {"train": "x"}, "model": "y", "data": settings.get("seed")}
    record |= {"fingerprints": fingerprints, "result": None}
    if accuracy:
        record["result"] = {"epoch": 0, "accuracy": accuracy, "seconds": seconds}
    return compare.Run(folder, record, history(60, 3))


def test_the_table_of_runs_shows_what_differs_folds_seeds_and_has_the_best_first(tmp_path):
    runs = [
        make_run(tmp_path / "a", 0.90, 120, learning_rate=3e-5),
        make_run(tmp_path / "b", 0.91, 180, learning_rate=1e-5, seed=2, output_dir="b"),
        make_run(tmp_path / "c", 0.93, 60, learning_rate=1e-5, seed=3, tensorboard=True),
        make_run(tmp_path / "d", None, learning_rate=1e-4, class_weights="balanced"),
    ]
    assert compare.table(runs).splitlines() == [
        "run   learning_rate  class_weights  seeds  accuracy         minutes",
        "b, c  1e-05          –              2 3    0.9200 ± 0.0141  2.0 ± 1.4",
        "a     3e-05          –              1      0.9000           2.0",
        "d     0.0001         balanced       1      0.8667           –          not complete",
    ]
    other = make_run(tmp_path / "e", 0.5)
    other.record["fingerprints"]["files"] = {"train": "another"}
    header, *lines = compare.table([make_run(tmp_path / "f", 0.6), other]).splitlines()
    assert header.split() == ["run", "data", "seeds", "accuracy", "minutes"]
    first, second = (line.split()[1:3] for line in lines)
    assert first[0] == second[0] == "d" and first[1] != second[1]  # Other content of that name.
    same = make_run(tmp_path / "g", 0.5, seed=2, data="/elsewhere/d")
    assert len(compare.table([make_run(tmp_path / "f", 0.6), same]).splitlines()) == 2
    again = make_run(tmp_path / "h", 0.6)
    assert "±" not in compare.table([make_run(tmp_path / "f", 0.6), again])  # Of one seed.


def test_report_py_on_several_runs_prints_a_table_and_draws_one_picture(trained, tmp_path, capsys):
    for seed, name in enumerate(("one", "two")):
        (tmp_path / name).mkdir()
        shutil.copy(trained.folder / "metrics.jsonl", tmp_path / name)
        record = json.loads((trained.folder / "run.json").read_text())
        record["settings"]["seed"] = seed
        (tmp_path / name / "run.json").write_text(json.dumps(record))
    (tmp_path / "notes.txt").write_text("mine")
    report.main(list(map(str, sorted(tmp_path.iterdir()))))
    out, err = capsys.readouterr()
    assert out.splitlines()[1].startswith("one, two") and len(out.splitlines()) == 2
    assert "notes.txt: not a run; left out" in err
    assert png_size(tmp_path / "comparison.png")[0] >= 1000
    with pytest.raises(InputError, match="no run is there"):
        report.main([str(tmp_path / "nothing")])
    with pytest.raises(InputError, match="no run is there"):
        report.main([str(tmp_path)])
