"""Accuracy and macro-F1 equal those of scikit-learn, in every place that shows scores."""

import json
import math
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch
from harness import warm
from harness.helpers import make_answers
from hypothesis import strategies
from sklearn.metrics import accuracy_score, f1_score

from finetune import finetune
from outputs import plots
from training import run_folder, scores

CLASS_PAIR = strategies.tuples(strategies.integers(0, 3), strategies.integers(0, 3))
IDS = strategies.lists(CLASS_PAIR, min_size=1, max_size=50)


@pytest.fixture(autouse=True)
def no_drawing(monkeypatch) -> None:
    monkeypatch.setattr(plots, "_save", warm.save_at_once)


@hypothesis.settings(max_examples=30)
@hypothesis.given(IDS)
def test_accuracy_and_macro_f1_are_those_of_scikit_learn(pairs):
    labels, predictions = (np.array(column) for column in zip(*pairs, strict=True))
    metric = scores.load_accuracy()
    metric.add_batch(predictions=predictions, references=labels)
    assert metric.compute() == {"accuracy": accuracy_score(labels, predictions)}
    # A class without sentences is left out; a class that is never predicted counts 0.
    expected = np.mean(
        [
            f1_score(labels == number, predictions == number, zero_division=0)
            for number in set(labels)
        ]
    )
    assert scores.macro_f1(labels, predictions) == pytest.approx(expected)


def test_answers_are_gathered_in_the_order_of_their_rows_even_if_a_process_has_none(monkeypatch):
    rows = [np.array([4, 1]), np.array([0, 3, 2])]
    parts = [
        [torch.tensor([40, 10]), torch.tensor([4, 1]), torch.tensor([0.4, 0.1]), torch.ones(2)],
        [torch.tensor([0]), torch.tensor([0]), torch.tensor([0.0]), torch.ones(1)],
        [torch.tensor([30, 20]), torch.tensor([3, 2]), torch.tensor([0.3, 0.2]), torch.ones(2)],
    ]
    answers = scores.gather_answers(rows, parts)
    assert answers.labels.tolist() == [0, 10, 20, 30, 40]
    assert answers.predictions.tolist() == [0, 1, 2, 3, 4]
    assert answers.probabilities.tolist() == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    # A process without sentences gets the answers of the others.
    columns = map(torch.cat, zip(*parts, strict=True))
    whole = (np.concatenate(rows), *(column.numpy() for column in columns))
    monkeypatch.setattr(scores.collectives, "all_gather", lambda own: [own, whole])
    assert all(map(np.array_equal, scores.gather_answers([np.empty(0, int)], []), answers))


def test_the_line_of_793_right_of_872_shows_wilsons_interval_of_1_9_points():
    low, high = scores.interval(793 / 872, 872)
    # Wilson's formula by hand.
    n, p, z = 872, 793 / 872, 1.959964
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * (p * (1 - p) / n + z**2 / (4 * n**2)) ** 0.5
    assert (low, high) == pytest.approx((middle - half, middle + half), abs=1e-6)
    line = scores.accuracy_line({"accuracy": 793 / 872, "accuracy_interval": [low, high]}, 872)
    assert line.startswith("accuracy 0.9094 ± 1.9 points (0.8885 to 0.9267")
    # The normal approximation gives 1 to 1.
    assert scores.interval(1.0, 10)[0] < 0.75


@pytest.mark.parametrize(("labels", "note"), [("aaab", True), ("aaaa", False)])
def test_a_note_names_a_class_that_the_kept_model_never_predicts(
    tiny, tmp_path, labels, note, capsys
):
    for name, classes in (("train", "a" * 31 + "b"), ("dev", labels)):
        rows = [f"text {number},{label}\n" for number, label in enumerate(classes)]
        (tmp_path / f"{name}.csv").write_text("text,label\n" + "".join(rows))
    names = {"model": tiny, "data": tmp_path, "output_dir": tmp_path / "run"}
    run = finetune(**names, epochs=1, learning_rate=1e-2, batch_size=4)
    assert run.metrics["accuracy"] == labels.count("a") / 4
    line = "NOTE: the model never predicts 'b' (1 of 4 validation sentences); change --learning"
    assert (line in capsys.readouterr().err) == note


def test_mcnemars_p_is_that_of_a_fair_coin_on_the_sentences_that_divide_the_models():
    first = np.array([True] * 5 + [False] * 20)
    second = np.array([False] * 5 + [True] * 15 + [False] * 5)
    # Twice the chance of at most 5 heads in 20 throws of a coin.
    expected = 2 * sum(math.comb(20, heads) for heads in range(6)) / 2**20
    assert scores.mcnemar(first, second) == scores.mcnemar(second, first)
    assert scores.mcnemar(first, second) == pytest.approx(expected)
    assert scores.mcnemar(first, first) == 1


def test_the_calibration_error_is_the_mean_gap_between_probability_and_accuracy():
    answers = make_answers([1, 1, 1, 0, 1, 0], [1] * 6, [0.99] * 4 + [0.62] * 2)
    error, bins = scores.calibration(answers)
    # Three of four are right at 0.99, one of two at 0.62.
    assert error == pytest.approx(4 / 6 * 0.24 + 2 / 6 * 0.12, abs=1e-6)
    assert [row["sentences"] for row in bins] == [2, 4]
    assert all(row["low"] < row["probability"] <= row["high"] for row in bins)
    assert scores.calibration(make_answers([1] * 3, [1] * 3, [1.0] * 3))[0] == 0


@pytest.mark.parametrize("labels", [["a", "b"] * 10, ["a"] * 17 + ["b"] * 4, ["a", "b", "c"] * 7])
def test_macro_f1_is_in_every_logged_line_the_result_and_the_model_card(
    tiny, tmp_path, labels, capsys
):
    (tmp_path / "data").mkdir()
    texts = [f"text {number}" for number in range(len(labels))]
    rows = "".join(f"{text},{label}\n" for text, label in zip(texts, labels, strict=True))
    for name in ("train", "dev"):
        (tmp_path / "data" / f"{name}.csv").write_text("text,label\n" + rows)
    names = {"model": tiny, "data": tmp_path / "data", "output_dir": tmp_path / "run"}
    run = finetune(**names, epochs=2, learning_rate=1e-2, batch_size=8, keep="last")
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").open()]
    evaluations = [line for line in lines if "eval_loss" in line]
    assert len(evaluations) == 2 and all(0 <= line["eval_macro_f1"] <= 1 for line in evaluations)
    assert run.metrics["macro_f1"] == evaluations[1]["eval_macro_f1"]
    shown = f"{run.metrics['macro_f1']:.4f}"
    assert f"macro-F1 {shown}" in (run.model_folder / "README.md").read_text()
    out, err = capsys.readouterr()
    accuracies = [line["eval_accuracy"] for line in evaluations]
    assert out == "".join(f"epoch {i}: {{'accuracy': {x}}}\n" for i, x in enumerate(accuracies))
    kept = run_folder.result_line(run.folder, run.metrics)
    assert f", accuracy {accuracies[1]:.4f}, macro-F1 {shown}, in " in kept and kept in err
    with torch.inference_mode():
        batch = run.tokenizer(texts, padding=True, return_tensors="pt")
        batch.pop("token_type_ids", None)
        predictions = run.model(**batch).logits.argmax(dim=-1).tolist()
    right = [sorted(set(labels)).index(label) for label in labels]
    expected = f1_score(right, predictions, average="macro", zero_division=0)
    assert run.metrics["macro_f1"] == pytest.approx(expected)


# ---- Classes of unequal size ----


def write_unequal(folder: Path) -> Path:
    """A folder with texts: nine in ten are `no`, and six in ten of those with the word "odd"."""
    folder.mkdir()
    choose = np.random.default_rng(0)
    for name, count in (("train", 400), ("dev", 200)):
        lines = []
        for number in range(count):
            is_rare = number % 10 == 0
            word = "odd" if choose.random() < (0.8 if is_rare else 0.13) else "even"
            lines.append(f"{word} {number % 7},{'yes' if is_rare else 'no'}\n")
        (folder / f"{name}.csv").write_text("text,label\n" + "".join(lines))
    return folder


@pytest.mark.long
def test_balanced_weights_find_a_rare_class_that_plain_training_never_finds(tiny, tmp_path):
    data, recalls = write_unequal(tmp_path / "data"), {}
    for weights in (None, "balanced"):
        run = finetune(
            model=tiny,
            data=data,
            class_weights=weights,
            epochs=8,
            learning_rate=1e-2,
            keep="last",
            output_dir=tmp_path / str(weights),
        )
        with (run.folder / "mistakes.csv").open() as file:
            missed = sum(line.split(",")[-3] == "yes" for line in file)
        recalls[weights] = 1 - missed / 20
        assert 0 < run.metrics["macro_f1"] < run.metrics["accuracy"]
        assert f"macro-F1 {run.metrics['macro_f1']:.4f}" in run_folder.result_line("a", run.metrics)
    print(recalls)
    assert recalls[None] < 0.2 and recalls["balanced"] > 0.5
