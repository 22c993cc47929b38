"""The benchmark of accuracy holds out what it says, counts what it says, and repeats nothing."""

import json
import math
import os
import subprocess
import sys

import pytest
from harness.helpers import README, ROOT, save_tiny
from hypothesis import given
from hypothesis import strategies as some

sys.path.insert(0, str(ROOT / "benchmarks"))

import accuracy

WORDS = some.sampled_from(["a", "film", "so", "dull", "never", "good", "but", ",", "."])


@given(some.data())
def test_no_phrase_of_a_held_out_sentence_stays_in_training(data):
    sentences = data.draw(some.lists(some.lists(WORDS, min_size=1), min_size=10, max_size=30))
    rows = [" ".join(words) for words in sentences]
    for words in sentences:
        start = data.draw(some.integers(0, len(words) - 1))
        rows.append(" ".join(words[start : data.draw(some.integers(start + 1, len(words)))]))
    train, held_out, whole = accuracy.split_by_sentence(rows)
    assert len(held_out) == len(whole) // 10 and set(held_out) <= whole

    def is_phrase(one: str, other: str) -> bool:
        return f" {one} " in f" {other} "

    for number, row in enumerate(rows):  # Every row, as often as it is there, is told by its text.
        in_held_out = any(is_phrase(row, rows[other]) for other in held_out)
        assert (number in train) == (not in_held_out)
        longer = any(is_phrase(row, other) and row != other for other in rows)
        assert longer or row in {rows[other] for other in whole}
        assert not (longer and number in whole)


def run(folder, *arguments: str) -> subprocess.CompletedProcess:
    """The benchmark, of recipes of a tiny model, on an SST-2 of few sentences."""
    program = (
        "import sys, accuracy; from pathlib import Path; folder = Path(sys.argv.pop(1));"
        "accuracy.RESULTS, accuracy.RUNS = folder / 'results', folder / 'runs';"
        "accuracy.RATES = folder / 'rates.json';"
        "tiny = {'model': str(folder / 'tiny'), 'log_every': 1, 'learning_rate': 1e-3};"
        "constant = {'epochs': 2, 'constant_rate': True, 'batch_size': 16};"
        "accuracy.RECIPES = {'constant': tiny | constant};"
        "accuracy.MARK = 2;"
        "accuracy.start = accuracy.train;"
        "accuracy.main()"
    )
    return subprocess.run(
        [sys.executable, "-c", program, str(folder), *arguments],
        env=os.environ | {"SST2": str(folder / "sst2"), "PYTHONPATH": str(ROOT / "benchmarks")},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.long
def test_a_run_is_counted_marked_kept_at_its_last_epoch_and_not_trained_or_put_to_dev_twice(
    tmp_path,
):
    (tmp_path / "sst2").mkdir()
    lines = {
        split: [f"{n % 2}\t{'good' if n % 2 else 'dull'} film {split} {n}" for n in range(rows)]
        for split, rows in (("train", 160), ("dev", 30))
    }
    for split, rows in lines.items():
        text = "\n".join(["label\tsentence", *rows]) + "\n"
        (tmp_path / "sst2" / f"{split}.tsv").write_text(text)
    save_tiny(tmp_path / "tiny")
    nothing = run(tmp_path / "nowhere", "constant", "--seeds", "1")
    assert nothing.returncode == 2 and "train.tsv is not there; " in nothing.stderr
    first = run(tmp_path, "constant", "--seeds", "1")
    assert first.returncode == 0, first.stderr
    file = tmp_path / "results" / "constant-1.json"
    found = json.loads(file.read_text())
    metrics = tmp_path / "runs" / "constant-1" / "metrics.jsonl"
    logged = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert "dev" not in found and found["sentences"] == 2 * 144
    taken = {
        "model": str(tmp_path / "tiny"),
        "data": "SST-2",
        "learning_rate": 1e-3,
        "epochs": 2,
        "constant_rate": True,
        "batch_size": 16,
        "keep": "last",
        "weight_decay": 0.01,  # A default, which could be another one day.
    }
    assert found["settings"].items() > taken.items()
    assert "output_dir" not in found["settings"]
    assert [mark["step"] for mark in found["marks"]] == [2, 4, 6, 8, 10, 12, 14, 16, 18]
    assert [mark["sentences"] for mark in found["marks"]] == [32 * n for n in range(1, 10)]
    # The last epoch's, whichever was best; a mark looks at the same sentences as an epoch's end.
    last = logged[-1]
    held_out = found["held_out"]
    assert held_out["accuracy"] == found["marks"][-1]["accuracy"] == last["eval_accuracy"]
    assert len(found["validation"]) == 2 and found["validation"][1] == last["eval_accuracy"]
    assert abs(held_out["loss"] - last["eval_loss"]) < 1e-6
    assert {line["learning_rate"] for line in logged if "loss" in line} == {1e-3}
    assert "constant" in first.stdout and f"{100 * held_out['accuracy']:.2f}" in first.stdout

    trained = metrics.stat().st_mtime_ns
    again = run(tmp_path, "constant", "--seeds", "1", "--dev")
    assert metrics.stat().st_mtime_ns == trained
    assert again.returncode == 0 and "sentences/s" not in again.stderr, again.stderr
    with_dev = json.loads(file.read_text())
    dev = with_dev.pop("dev")
    assert with_dev == found
    from transformers import pipeline

    texts = [line.split("\t")[1] for line in lines["dev"]]
    classify = pipeline("text-classification", str(tmp_path / "runs" / "constant-1" / "model"))
    answers = classify(texts, top_k=None)
    right = [
        next(each["score"] for each in answer if each["label"] == line[0])
        for answer, line in zip(answers, lines["dev"], strict=True)
    ]
    assert dev["accuracy"] == sum(score > 0.5 for score in right) / 30
    assert abs(dev["loss"] + sum(map(math.log, right)) / 30) < 1e-5
    file.write_text(json.dumps(with_dev | {"dev": dev | {"accuracy": 0.125}}))
    assert run(tmp_path, "constant", "--seeds", "1", "--dev").returncode == 0
    assert json.loads(file.read_text())["dev"]["accuracy"] == 0.125
    # No result is printed for a model that is not the record's, and no mean of runs that differ.
    file.write_text(json.dumps(found | {"weights": "0" * 64}))
    other = run(tmp_path, "constant", "--seeds", "1", "--dev")
    assert other.returncode == 2 and "does not hold the model of" in other.stderr
    assert "dev" not in json.loads(file.read_text())
    changed = found | {"seed": 2, "settings": found["settings"] | {"weight_decay": 0.1}}
    file.with_name("constant-2.json").write_text(json.dumps(changed))
    mixed = run(tmp_path)
    assert mixed.returncode != 0 and "the runs of constant" in mixed.stderr


def test_the_tables_of_accuracies_in_the_readmes_are_made_of_the_recorded_runs():
    tables = accuracy.tables()
    assert tables.keys() == {"held out", "quick looks", "dev", "times"}
    page, front = (ROOT / "benchmarks" / "README.md").read_text(), README
    for words, lines in tables.items():
        assert lines.count("\n") >= 3 and lines in page, words
        assert words == "quick looks" or lines in front, words


def test_accuracies_are_told_with_their_spread_and_time_counts_from_the_mean_over_seeds():
    def made(recipe: str, seed: int, marks: list[float], end: float) -> dict:
        own = [{"sentences": 100 * n, "accuracy": value} for n, value in enumerate(marks, 1)]
        judged = {"accuracy": end, "loss": 0.3, "calibration_error": 0.05}
        head = {"recipe": recipe, "settings": {"epochs": 1}, "seed": seed, "minutes": 3.0 - seed}
        return head | {"sentences": 100 * len(marks) + 50, "marks": own, "held_out": judged}

    runs = [
        made("tutorial", 1, [0.5, 0.9, 0.7], 0.8),
        made("tutorial", 2, [0.5, 0.6, 0.9], 0.9),
        made("one pass", 1, [0.9, 0.8, 0.9], 0.9),
        made("one pass", 2, [0.7, 0.9, 0.9], 0.88),
        made("never", 1, [0.5, 0.6, 0.7], 0.84),
    ]
    lines = accuracy.results(runs, "held_out").splitlines()
    assert " ".join(lines[1].split()) == "tutorial 1 2 350 1 85.00 ± 7.07 90.00 80.00 0.300 0.050"
    assert " ".join(lines[3].split()) == "never 1 1 350 2 84.00 84.00 84.00 0.300 0.050"
    rounds = [{"tutorial's loop": 10.0, "this project": 60.0}]
    lines = accuracy.times(runs, rounds).splitlines()
    # The mean over seeds is 0.55, 0.75, 0.8 and 0.85; 0.8, 0.85, 0.9 and 0.89.
    assert [line.rsplit(maxsplit=4) for line in lines[1:]] == [
        ["tutorial, to its end", "350", "10.0", "0.6", "1.0"],
        ["tutorial, first at 85.00", "350", "10.0", "0.6", "1.0"],
        ["one pass, to its end", "350", "60.0", "0.1", "6.0"],
        ["one pass, first at 85.00", "200", "60.0", "0.1", "10.5"],
    ]
