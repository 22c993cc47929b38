"""The table of runs shows differing settings, joins seeds, and lists the best run first."""

import itertools
import os
import random
import shutil
from collections.abc import Sequence

import datasets
import numpy as np
import pytest
from harness.helpers import ROOT, make_answers, make_history

from outputs import compare, predictions


def make_run(folder, accuracy: float | None, seconds: float = 60.0, **settings: object):
    """An untrained run; a run without an accuracy is not complete."""
    record = {"settings": {"model": "m", "data": "d", "seed": 1, "batch_size": 32} | settings}
    # A random subset of the training data is different for each seed.
    data = {"train": settings.get("seed"), "validation": "z"}
    record["fingerprints"] = {"files": {"train": "x"}, "model": "y", "data": data}
    record |= {"sentences": {"validation": 1000}, "result": None}
    if accuracy:
        record["result"] = {"epoch": 0, "accuracy": accuracy, "seconds": seconds}
    return compare.Run(folder, record, make_history(60, 3))


def test_runs_on_two_drives_of_windows_have_their_full_names(tmp_path, monkeypatch):
    def refuse(paths: list) -> None:
        raise ValueError("Paths don't have the same drive")

    monkeypatch.setattr(os.path, "commonpath", refuse)
    table = compare.table([make_run(tmp_path / "a", 0.9), make_run(tmp_path / "b", 0.8)])
    assert f"{tmp_path / 'a'}, {tmp_path / 'b'}" in table


def test_the_table_of_runs_shows_different_settings_joins_seeds_and_lists_the_best_first(tmp_path):
    runs = [
        make_run(tmp_path / "a", 0.90, 120, learning_rate=3e-5),
        make_run(tmp_path / "b", 0.91, 180, learning_rate=1e-5, seed=2, output_dir="b"),
        make_run(tmp_path / "c", 0.93, 60, learning_rate=1e-5, seed=3, tensorboard=True),
        make_run(tmp_path / "d", None, learning_rate=1e-4, class_weights="balanced"),
    ]
    assert compare.table(runs).splitlines() == [
        "run   learning_rate  class_weights  seeds  accuracy         minutes    against the best",
        "b, c  1e-05          –              2 3    0.9200 ± 0.0141  2.0 ± 1.4  best",
        "a     3e-05          –              1      0.9000           2.0        "
        "unknown: each line needs several seeds",
        "d     0.0001         balanced       1      0.8667           –          not complete",
    ]
    # Two different data sets can have the same name.
    changed = make_run(tmp_path / "e", 0.5)
    changed.record["fingerprints"]["files"] = {"train": "another"}
    header, *lines = compare.table([make_run(tmp_path / "f", 0.6), changed]).splitlines()
    assert header.split()[:5] == ["run", "data", "seeds", "accuracy", "minutes"]
    first, second = (line.split()[1:3] for line in lines)
    assert first[0] == second[0] == "d" and first[1] != second[1]
    same = make_run(tmp_path / "g", 0.5, seed=2, data="/elsewhere/d")
    assert len(compare.table([make_run(tmp_path / "f", 0.6), same]).splitlines()) == 2
    same_seed = make_run(tmp_path / "h", 0.6)
    assert "±" not in compare.table([make_run(tmp_path / "f", 0.6), same_seed])


def test_macro_f1_has_a_column_if_any_run_recorded_macro_f1(tmp_path):
    old, new = make_run(tmp_path / "old", 0.9), make_run(tmp_path / "new", 0.8, epochs=2)
    assert "macro_f1 " not in compare.table([old, old._replace(folder=tmp_path / "other")])
    new.record["result"]["macro_f1"] = 0.75
    lines = compare.table([old, new]).splitlines()
    assert [line.split()[:6] for line in lines] == [
        ["run", "epochs", "seeds", "accuracy", "macro_f1", "minutes"],
        ["old", "–", "1", "0.9000", "–", "1.0"],
        ["new", "2", "1", "0.8000", "0.7500", "1.0"],
    ]


# ---- Is the best run better? ----


def verdicts(*runs: compare.Run) -> list[str]:
    """The last column of the table of runs, without its header."""
    header, *lines = compare.table(runs).splitlines()
    return [line[header.index("against the best") :] for line in lines]


def predict(run: compare.Run, right: Sequence[bool], source: str = "z") -> compare.Run:
    """Write the predictions of a run with these correct sentences, and correct its accuracy."""
    run.folder.mkdir()
    answers = make_answers([1] * len(right), np.array(right, int), [0.9] * len(right))
    rows = datasets.Dataset.from_dict({"line": range(len(right))})
    predictions.write_predictions(run.folder / "predictions.csv", ["no", "yes"], rows, answers)
    run.record["result"]["accuracy"] = sum(right) / len(right)
    run.record["sentences"]["validation"] = len(right)
    run.record["fingerprints"]["data"]["validation"] = source
    return run


@pytest.mark.parametrize(
    ("first_alone", "second_alone", "verdict"),
    [
        # Each difference is 12 sentences, but the first two models disagree on fewer.
        (14, 2, "worse on 400 sentences: 3.0 points (p 0.0042)"),
        (46, 34, "not distinguishable on 400 sentences (p 0.22)"),
        (0, 0, "not distinguishable on 400 sentences (p 1)"),
    ],
)
def test_two_runs_are_told_apart_by_the_sentences_that_only_one_of_them_gets_right(
    tmp_path, first_alone, second_alone, verdict
):
    best, other = np.ones((2, 400), bool)
    other[:first_alone] = False
    best[first_alone : first_alone + second_alone] = False
    best = predict(make_run(tmp_path / "a", 1.0), best)
    other = predict(make_run(tmp_path / "b", 1.0, epochs=2), other)
    assert verdicts(other, best) == ["best", verdict]
    # Alone, two seeds share a line, which tells if the seeds differ.
    other.record["settings"] |= {"seed": 2, "epochs": None}
    assert verdicts(other, best) == [f"worst run: {verdict}"]


def test_runs_on_different_validation_data_or_without_predictions_are_not_compared(tmp_path):
    best = predict(make_run(tmp_path / "a", 1.0), [True] * 20)
    other = predict(make_run(tmp_path / "b", 1.0, epochs=2), [False] * 20, "another source")
    assert verdicts(best, other) == ["best", "unknown: different validation data"]
    other.record["fingerprints"]["data"]["validation"] = "z"
    assert verdicts(best, other)[1] == "worse on 20 sentences: 100.0 points (p 1.9e-06)"
    file = other.folder / "predictions.csv"
    remedy = f"unknown: `python report.py {other.folder}` writes predictions.csv"
    for content in (None, "", 'line,label,prediction\n1,"yes', "line,label,prediction\n1\n"):
        file.unlink() if content is None else file.write_text(content)
        assert verdicts(best, other) == ["best", remedy]
    file.write_text("line,label,prediction\n1,yes,no\n")
    disagree = f"unknown: predictions.csv and run.json of {other.folder} disagree"
    assert verdicts(best, other) == ["best", disagree]


def test_a_table_of_many_equal_runs_needs_a_smaller_p_for_a_verdict(tmp_path):
    right = np.ones(100, bool)
    right[:6] = False
    best = predict(make_run(tmp_path / "best", 1.0), [True] * 100)
    others = [predict(make_run(tmp_path / f"{n}", 1.0, epochs=n), right) for n in range(1, 3)]
    assert verdicts(best, others[0])[1] == "worse on 100 sentences: 6.0 points (p 0.031)"
    assert verdicts(best, *others)[1:] == ["not distinguishable on 100 sentences (p 0.031)"] * 2


def test_a_run_is_compared_with_the_run_of_its_seed_on_a_line_of_several_seeds(tmp_path):
    # Each seed holds out its own sentences.
    best = [
        predict(make_run(tmp_path / f"a{seed}", 1.0, seed=seed), [True] * 20, f"held out {seed}")
        for seed in (1, 2)
    ]
    other = make_run(tmp_path / "b", 1.0, seed=2, epochs=2)
    predict(other, [False] * 20, "held out 2")
    expected = "worse on 20 sentences: 100.0 points (p 1.9e-06), seed 2 alone"
    assert verdicts(*best, other) == ["best", expected]


def test_a_line_with_a_lower_mean_is_called_better_if_its_seed_alone_is_better(tmp_path):
    # The means are 0.875 and 0.85, but with seed 2 the second line is better.
    half = [False] * 10 + [True] * 10
    best = [
        predict(make_run(tmp_path / f"a{seed}", 1.0, seed=seed), half if seed == 2 else [True] * 20)
        for seed in (1, 2, 3, 4)
    ]
    other = make_run(tmp_path / "b", 1.0, seed=2, epochs=2)
    predict(other, [False] * 3 + [True] * 17)
    expected = "better on 20 sentences: 35.0 points (p 0.016), seed 2 alone"
    assert verdicts(*best, other) == ["best", expected]


def test_equal_models_in_a_table_of_ten_are_rarely_told_apart(tmp_path):
    random, wrong = np.random.default_rng(0), 0
    for table in range(40):
        runs = [
            predict(make_run(tmp_path / f"{table}-{n}", 1.0, epochs=n), random.random(200) < 0.8)
            for n in range(1, 11)
        ]
        wrong += any("worse" in verdict for verdict in verdicts(*runs))
    # Without a correction for the choice of the best, 10 of 40 tables have a wrong verdict.
    assert wrong <= 2


def test_several_seeds_are_compared_by_the_interval_of_their_mean_difference(tmp_path):
    def group(name: str, accuracies: dict[int, float], **settings: object) -> list[compare.Run]:
        return [
            make_run(tmp_path / f"{name}{seed}", accuracy, seed=seed, **settings)
            for seed, accuracy in accuracies.items()
        ]

    best = group("a", {1: 0.90, 2: 0.92, 3: 0.94})
    # The same seeds are better by 1, 1.1 and 1.2 points: t is 4.303 for two degrees of freedom.
    paired = group("b", {1: 0.89, 2: 0.909, 3: 0.928}, epochs=2)
    expected = "worse on 1,000 sentences: 1.1 points (0.9 to 1.3), 3 seeds"
    assert verdicts(*best, *paired) == ["best", expected]
    # Between different seeds, the same accuracies say little.
    other = group("c", {4: 0.89, 5: 0.909, 6: 0.928}, epochs=2)
    (verdict,) = verdicts(*best, *other)[1:]
    assert verdict.startswith("not distinguishable on 1,000 sentences: 1.1 points (-3.3 to 5.5)")
    # One sentence of 1,000 for each seed gives an interval without width.
    shifted = group("d", {1: 0.899, 2: 0.919, 3: 0.939}, epochs=2)
    assert verdicts(*best, *shifted)[1] == "unknown: the seeds show no spread; use more seeds"
    # A seed that was repeated counts once.
    again = [*group("e", {1: 0.85}, epochs=2), *group("f", {1: 0.85}, epochs=2)]
    assert verdicts(*best, *again)[1].startswith("unknown: `python report.py")
    alone = group("h", {4: 0.85}, epochs=2)
    assert verdicts(*best, *alone)[1] == "unknown: each line needs several seeds"
    # Two seeds give an interval beyond all accuracies.
    two = group("i", {1: 0.30, 2: 0.70}, epochs=2)
    wide = "not distinguishable on 1,000 sentences: 41.0 points (-100.0 to 100.0), 2 seeds"
    assert verdicts(*best[:2], *two)[1] == wide
    equal = group("g", {1: 0.90, 2: 0.92, 3: 0.94}, epochs=2)
    (verdict,) = verdicts(*best, *equal)[1:]
    assert verdict == "not distinguishable on 1,000 sentences: 0.0 points (0.0 to 0.0), 3 seeds"
    for run in paired:
        run.record["fingerprints"]["data"]["validation"] = "another"
    assert verdicts(*best, *paired)[1] == "unknown: different validation data"


@pytest.mark.slow
def test_two_seeds_are_not_distinguishable_and_shuffled_labels_are(tmp_path, capsys):
    import report
    from finetune import finetune

    header, *rows = (ROOT / "builtin" / "train.csv").read_text("utf-8").splitlines()
    for name, labels in (
        ("real", [row.rpartition(",")[2] for row in rows]),
        ("shuffled", random.Random(0).sample([row.rpartition(",")[2] for row in rows], len(rows))),
    ):
        (tmp_path / name).mkdir()
        shutil.copy(ROOT / "builtin" / "dev.csv", tmp_path / name)
        texts = [row.rpartition(",")[0] for row in rows]
        lines = [f"{text},{label}" for text, label in zip(texts, labels, strict=True)]
        (tmp_path / name / "train.csv").write_text("\n".join([header, *lines]), "utf-8")

    def train(data: str, seed: int) -> str:
        folder = tmp_path / f"{data}-{seed}"
        finetune(model="builtin", data=tmp_path / data, output_dir=folder, seed=seed)
        return str(folder)

    def verdict(*folders: str) -> str:
        capsys.readouterr()
        report.main(folders)
        return capsys.readouterr().out.splitlines()[-1]

    real = [train("real", seed) for seed in range(7)]
    pairs = [verdict(*pair) for pair in itertools.combinations(real, 2)]
    equal = ["not distinguishable on 400 sentences" in line for line in pairs]
    # At a significance of 5 %, one of 20 pairs is told apart by chance.
    assert len(pairs) == 21 and sum(equal) >= 19, pairs
    shuffled = train("shuffled", 0)
    for folder in real:
        assert "  worse on 400 sentences" in verdict(folder, shuffled)
