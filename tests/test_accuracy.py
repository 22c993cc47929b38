"""The benchmark of accuracy holds out whole sentences, counts right, and never repeats a run."""

import json
import math
import os
import re
import statistics
import subprocess
import sys

import pytest
from harness.helpers import PAGES, ROOT, readme_row, save_tiny
from hypothesis import given
from hypothesis import strategies as some

sys.path.insert(0, str(ROOT / "benchmarks"))

import accuracy

VOCABULARY = some.sampled_from(["a", "film", "so", "dull", "never", "good", "but", ",", "."])


@given(some.data())
def test_no_phrase_of_a_held_out_sentence_stays_in_training(data):
    sentences = data.draw(some.lists(some.lists(VOCABULARY, min_size=1), min_size=10, max_size=30))
    rows = [" ".join(tokens) for tokens in sentences]
    for tokens in sentences:
        start = data.draw(some.integers(0, len(tokens) - 1))
        rows.append(" ".join(tokens[start : data.draw(some.integers(start + 1, len(tokens)))]))
    train, held_out, whole = accuracy.split_by_sentence(rows)
    assert len(held_out) == len(whole) // 10 and set(held_out) <= whole

    def is_phrase(text: str, sentence: str) -> bool:
        return f" {text} " in f" {sentence} "

    for number, row in enumerate(rows):
        is_held_out = any(is_phrase(row, rows[other]) for other in held_out)
        assert (number in train) == (not is_held_out)
        longer = any(is_phrase(row, other) and row != other for other in rows)
        assert longer or row in {rows[other] for other in whole}
        assert not (longer and number in whole)


def run(folder, *arguments: str) -> subprocess.CompletedProcess:
    """Run the benchmark with a recipe of a tiny model on the small SST-2 in `folder`."""
    program = (
        "import sys, accuracy; from pathlib import Path; folder = Path(sys.argv.pop(1));"
        "accuracy.RESULTS, accuracy.RUNS = folder / 'results', folder / 'runs';"
        "tiny = {'model': str(folder / 'tiny'), 'log_every': 1, 'learning_rate': 1e-3};"
        "constant = {'epochs': 2, 'constant_rate': True, 'batch_size': 16};"
        "other = {'epochs': 1, 'data': str(folder / 'other')};"
        "accuracy.RECIPES = {'constant': tiny | constant, 'other': tiny | other};"
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
def test_a_run_is_counted_marked_kept_at_its_last_epoch_and_not_trained_or_evaluated_twice(
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
    missing = run(tmp_path / "nowhere", "constant", "--seeds", "1")
    assert missing.returncode == 2 and "train.tsv: file is missing; " in missing.stderr
    first = run(tmp_path, "constant", "--seeds", "1")
    assert first.returncode == 0, first.stderr
    file = tmp_path / "results" / "constant-1.json"
    record = json.loads(file.read_text())
    metrics = tmp_path / "runs" / "constant-1" / "metrics.jsonl"
    logged = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert "dev" not in record and record["sentences"] == 2 * 144
    settings = {
        "model": str(tmp_path / "tiny"),
        "data": "SST-2",
        "learning_rate": 1e-3,
        "epochs": 2,
        "constant_rate": True,
        "batch_size": 16,
        "keep": "last",
        "weight_decay": 0.01,
    }
    assert record["settings"].items() > settings.items()
    assert "output_dir" not in record["settings"]
    assert [mark["step"] for mark in record["marks"]] == [2, 4, 6, 8, 10, 12, 14, 16, 18]
    assert [mark["sentences"] for mark in record["marks"]] == [32 * n for n in range(1, 10)]
    # The kept model is the last epoch's, and a mark uses the same sentences as the end of an epoch.
    last = logged[-1]
    held_out = record["held_out"]
    assert held_out["accuracy"] == record["marks"][-1]["accuracy"] == last["eval_accuracy"]
    assert len(record["validation"]) == 2 and record["validation"][1] == last["eval_accuracy"]
    sentences = tmp_path / "runs" / "data-10" / "dev.tsv"
    again = accuracy.evaluate(tmp_path / "runs" / "constant-1", sentences)
    assert held_out == pytest.approx(again, abs=1e-4)
    assert {line["learning_rate"] for line in logged if "loss" in line} == {1e-3}
    # A run on other data is evaluated on the held-out sentences, too.
    (tmp_path / "other").mkdir()
    for split, rows in lines.items():
        text = "\n".join(["label\tsentence", *rows[::-1]]) + "\n"
        (tmp_path / "other" / f"{split}.tsv").write_text(text)
    assert run(tmp_path, "other", "--seeds", "1").returncode == 0
    other = json.loads((tmp_path / "results" / "other-1.json").read_text())
    assert other["settings"]["data"] == str(tmp_path / "other") and other["sentences"] == 160
    again = accuracy.evaluate(tmp_path / "runs" / "other-1", sentences)
    assert other["held_out"] == again
    (tmp_path / "results" / "other-1.json").unlink()
    assert "constant" in first.stdout and f"{100 * held_out['accuracy']:.2f}" in first.stdout

    written = metrics.stat().st_mtime_ns
    again = run(tmp_path, "constant", "--seeds", "1", "--dev")
    assert metrics.stat().st_mtime_ns == written
    assert again.returncode == 0 and "sentences/s" not in again.stderr, again.stderr
    with_dev = json.loads(file.read_text())
    dev = with_dev.pop("dev")
    assert with_dev == record
    from transformers import pipeline

    texts = [line.split("\t")[1] for line in lines["dev"]]
    classify = pipeline("text-classification", str(tmp_path / "runs" / "constant-1" / "model"))
    answers = classify(texts, top_k=None)
    probabilities = [
        next(score["score"] for score in answer if score["label"] == line[0])
        for answer, line in zip(answers, lines["dev"], strict=True)
    ]
    assert dev["accuracy"] == sum(probability > 0.5 for probability in probabilities) / 30
    assert abs(dev["loss"] + sum(map(math.log, probabilities)) / 30) < 1e-5
    file.write_text(json.dumps(with_dev | {"dev": dev | {"accuracy": 0.125}}))
    assert run(tmp_path, "constant", "--seeds", "1", "--dev").returncode == 0
    assert json.loads(file.read_text())["dev"]["accuracy"] == 0.125
    # A model that does not match its record gets no score, and different recipes have no mean.
    file.write_text(json.dumps(record | {"weights": "0" * 64}))
    other = run(tmp_path, "constant", "--seeds", "1", "--dev")
    assert other.returncode == 2 and "model does not match the record" in other.stderr
    assert "dev" not in json.loads(file.read_text())
    changed = record | {"seed": 2, "settings": record["settings"] | {"weight_decay": 0.1}}
    file.with_name("constant-2.json").write_text(json.dumps(changed))
    mixed = run(tmp_path)
    assert mixed.returncode != 0 and "the runs of constant; remove" in mixed.stderr


def test_a_page_shows_each_table_of_the_recorded_runs():
    tables = accuracy.tables()
    assert tables.keys() == {
        "held out",
        "paired, 10k",
        "paired, 43k",
        "quick looks",
        "dev",
        "times, zen3",
        "times, zen4",
        "times, zen5",
    }
    for title, lines in tables.items():
        block = f"<!-- {title} -->\n```\n{lines}```\n"
        assert lines.count("\n") >= 3, title
        assert any(block in page.read_text("utf-8") for page in PAGES), title


def test_the_readmes_accuracies_agree_with_the_recorded_runs():
    tables = accuracy.tables()
    recipes = {
        "one epoch": "one pass",
        "one epoch in bf16": "one pass bf16",
        "31,000 rows": "short no dropout",
        "the [original tutorial]": "tutorial",
        "built-in sentences": "built-in defaults",
    }
    for title, recipe in recipes.items():
        row = readme_row(title)
        for table, cell in zip(("dev", "held out"), row[1:3], strict=True):
            line = next(x for x in tables[table].splitlines() if x.startswith(f"{recipe}  "))
            columns = re.split(r"  +", line)
            assert cell == f"{columns[5]} ({columns[2]} seeds)", row
    record, *_ = json.loads((ROOT / "benchmarks" / "results" / "gpu.json").read_text())
    lines = [part["line"] for part in record["found"] if part["part"] == "accuracy"]
    scores = [100 * float(re.search(r"0\.\d+", line)[0]) for line in lines]
    mean, deviation = statistics.mean(scores), statistics.stdev(scores)
    cell = f"{mean:.2f} ± {deviation:.2f} ({len(scores)} seeds)"
    assert readme_row("one epoch on an NVIDIA H200, bf16")[1] == cell


def test_a_table_has_the_spread_over_seeds_and_time_counts_until_the_mean_reaches_the_target():
    def make_run(recipe: str, seed: int, accuracies: list[float], end: float) -> dict:
        marks = [{"sentences": 100 * n, "accuracy": value} for n, value in enumerate(accuracies, 1)]
        scores = {"accuracy": end, "loss": 0.3, "calibration_error": 0.05}
        run = {"recipe": recipe, "settings": {"epochs": 1}, "seed": seed, "minutes": 3.0 - seed}
        return run | {"sentences": 100 * len(marks) + 50, "marks": marks, "held_out": scores}

    runs = [
        make_run("tutorial", 1, [0.5, 0.9, 0.7], 0.8),
        make_run("tutorial", 2, [0.5, 0.6, 0.9], 0.9),
        make_run("one pass", 1, [0.9, 0.8, 0.9], 0.9),
        make_run("one pass", 2, [0.7, 0.9, 0.9], 0.88),
        make_run("never", 1, [0.5, 0.6, 0.7], 0.84),
    ]
    lines = accuracy.results(runs, "held_out").splitlines()
    assert " ".join(lines[1].split()) == "tutorial 1 2 350 1 85.00 ± 7.07 90.00 80.00 0.300 0.050"
    assert " ".join(lines[3].split()) == "never 1 1 350 2 84.00 84.00 84.00 0.300 0.050"
    rounds = [{"tutorial's loop": 10.0, "this project": 60.0}]
    lines = accuracy.times(runs, rounds).splitlines()
    # The means over seeds are 0.5, 0.75, 0.8 and 0.85; then 0.8, 0.85, 0.9 and 0.89.
    assert [re.split("  +", line) for line in lines[1:]] == [
        ["tutorial, to its end", "350", "10.0", "0.6", "1.0", "85.00", "1 of 2"],
        ["tutorial, first at 85.00", "350", "10.0", "0.6", "1.0", "85.00", "1 of 2"],
        ["one pass, to its end", "350", "60.0", "0.1", "6.0", "89.00", "2 of 2"],
        ["one pass, first at 85.00", "200", "60.0", "0.1", "10.5", "85.00", "1 of 2"],
    ]


def test_the_difference_of_two_recipes_is_that_of_the_seeds_that_both_have():
    def make_run(recipe: str, seed: int, accuracy: float, loss: float) -> dict:
        return {"recipe": recipe, "seed": seed, "held_out": {"accuracy": accuracy, "loss": loss}}

    runs = [make_run("10k", seed, 0.8 + seed / 100, 0.3) for seed in (1, 2, 3, 4)]
    runs += [make_run("10k b", seed, 0.81 + seed / 100, 0.3 + seed / 1000) for seed in (2, 3, 4)]
    runs += [make_run("10k c", 4, 0.83, 0.4), make_run("10k c", 9, 0.99, 0.1)]
    runs += [make_run("10k d", 9, 0.99, 0.1)]
    table = accuracy.differences(runs, "10k").splitlines()
    assert [re.split(r"  +", line) for line in table[1:]] == [
        [
            *("10k b", "3", "84.00", "83.00", "+1.00 (+1.00 to +1.00)"),
            # Losses differ by 0.002, 0.003 and 0.004; 95 % of two degrees of freedom is t = 4.303.
            *("0.3030", "0.3000", "+0.0030 (+0.0005 to +0.0055)"),
        ],
        ["10k c", "1", "83.00", "84.00", "-1.00", "0.4000", "0.3000", "+0.1000"],
    ]
