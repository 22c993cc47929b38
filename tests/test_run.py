"""Run: its log, its kept epoch, its files, and its end if it cannot continue."""

import concurrent.futures
import hashlib
import json
import os
import signal
import time

import numpy as np
import pytest
import torch
from harness import training
from harness.helpers import ROWS, limited, save_tiny

import finetune as script
from inputs import encoder
from system.console import RunError
from training import checkpoint, run_folder
from training.run import Run
from training.scores import Answers


def test_adamws_averages_exist_before_the_first_step_where_memory_has_no_gaps_yet(tmp_path):
    loaded = training.load(tmp_path, 32)
    optimizer = script.make_optimizer(loaded.model, loaded.settings)
    with Run.open(loaded) as run, run.training(loaded.model, loaded.tokenizer, optimizer):
        assert all("exp_avg" in optimizer.state[p] for p in loaded.model.parameters())


# ---- The log ----


def test_metrics_jsonl_holds_every_logged_step_and_each_evaluation(in_process, tmp_path, tiny):
    flags = ["--model", tiny, "--data", "builtin", "--epochs", "2", "--max-train-samples", "100"]
    run = in_process(
        *flags, "--batch-size", "10", "--log-every", "4", "--keep", "last", "--output-dir", "run"
    )
    assert run.code == 0, run.err
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    assert [line["step"] for line in lines] == [4, 8, 10, 10, 12, 16, 20, 20]
    assert [line["epoch"] for line in lines] == [0, 0, 0, 0, 1, 1, 1, 1]
    steps = {"step", "epoch", "loss", "learning_rate", "grad_norm", "samples_per_second"}
    scores = {"epoch", "step", "eval_loss", "eval_accuracy", "eval_macro_f1"}
    for number, line in enumerate(lines):
        assert set(line) == (scores if number in (3, 7) else steps)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["result"]["epoch"] == 1
    assert record["settings"]["learning_rate"] == 3e-5 and record["settings"]["batch_size"] == 10
    printed = [
        f"epoch {i}: {{'accuracy': {lines[n]['eval_accuracy']!r}}}" for i, n in ((0, 3), (1, 7))
    ]
    assert run.out.splitlines() == printed


def test_a_logged_loss_is_the_mean_over_the_steps_since_the_last_line(tmp_path):
    flags = ["--epochs", "1", "--batch-size", "10"]
    dense, sparse = (
        training.train(training.load(tmp_path, 70, *flags, "--log-every", every, run=every))
        for every in ("1", "3")
    )
    losses = [line["loss"] for line in dense if "loss" in line]
    assert len(losses) == 7
    expected = [np.mean(losses[:3]), np.mean(losses[3:6]), losses[6]]
    assert [line["loss"] for line in sparse if "loss" in line] == pytest.approx(expected, rel=1e-6)


def test_samples_per_second_leave_out_the_time_of_evaluations(tmp_path, monkeypatch):
    evaluate, seconds = script.evaluate, iter([1.5, 1.5, 0])

    def slow(*arguments: object) -> object:
        time.sleep(next(seconds))
        return evaluate(*arguments)

    monkeypatch.setattr(script, "evaluate", slow)
    lines = training.train(training.load(tmp_path, 32, "--epochs", "2"))
    rates = [line["samples_per_second"] for line in lines if "loss" in line]
    assert len(rates) == 2 and min(rates) > 32 / 1.5


def test_two_runs_with_one_seed_write_the_same_bytes_and_another_seed_does_not(
    finetune, in_process, tmp_path, tiny
):
    digests, fingerprints = [], []
    for name, seed, program in (("a", 1, finetune), ("b", 1, in_process), ("c", 2, in_process)):
        flags = ["--model", tiny, "--data", "builtin", "--epochs", "2", "--seed", seed]
        flags += ["--max-train-samples", "300"]
        run = program(*flags, "--output-dir", name)
        assert run.code == 0, run.err
        weights = tmp_path / name / "model" / "model.safetensors"
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        losses = [line.get("loss", line.get("eval_loss")) for line in map(json.loads, lines)]
        record = json.loads((tmp_path / name / "run.json").read_text())
        fingerprints.append(record["fingerprints"])
        digests.append((hashlib.sha256(weights.read_bytes()).hexdigest(), losses, run.out))
    assert digests[0] == digests[1]
    assert digests[0][0] != digests[2][0]
    # The model's fingerprint leaves out the head, whose weights depend on the seed.
    assert fingerprints[0]["model"] == fingerprints[2]["model"]


# ---- The kept epoch ----


@pytest.mark.parametrize(
    "keep, accuracies, kept",
    [
        ("best", [0.5, 0.9, 0.7], 1),
        # If two epochs tie, the earlier one is kept.
        ("best", [0.9, 0.9, 0.7], 0),
        ("last", [0.5, 0.9, 0.7], 2),
        ("macro_f1", [0.9, 0.5, 0.7], 1),
    ],
)
def test_the_kept_epoch_is_the_one_that_is_saved_and_tested(
    tmp_path, monkeypatch, keep, accuracies, kept
):
    rows = training.write_sentences(tmp_path / "sentences", 40)
    (tmp_path / "sentences" / "test.csv").write_text(
        "text,label\n" + "".join(f"{text},{label}\n" for text, label in rows)
    )
    training.no_dropout(tmp_path / "model")
    weights, reported = [], []

    def evaluate(model, batches, settings):
        # Run.watch handles signals between batches.
        list(batches)
        weights.append({name: value.clone() for name, value in model.state_dict().items()})
        # The first evaluation, one for each epoch, and the test of the kept model.
        accuracy = [0.0, *accuracies, 0.25][len(weights) - 1]
        class_ids, number = np.ones(40, int), len(weights)
        probabilities = np.full((40, 2), number / 10)
        answers = Answers(class_ids, class_ids, probabilities, np.full(40, float(number)))
        return {"accuracy": accuracy, "macro_f1": 1 - accuracy}, answers

    monkeypatch.setattr(script, "evaluate", evaluate)
    monkeypatch.setattr(script.report, "write", lambda run, rows, answers: reported.append(answers))
    names = ["--model", str(tmp_path / "model"), "--data", str(tmp_path / "sentences")]
    names += ["--output-dir", str(tmp_path / "run")]
    flags = ["--keep", keep, "--epochs", "3", "--learning-rate", "1e-2"]
    folder = script.main(training.make_settings(*names, *flags))
    result, loaded = script.load_result(folder)
    assert result.pop("seconds") > 0 and len(result.pop("accuracy_interval")) == 2
    assert result.pop("calibration_error") == pytest.approx(1 - (2 + kept) / 10)
    assert result == {
        "epoch": kept,
        "accuracy": accuracies[kept],
        "macro_f1": 1 - accuracies[kept],
        "loss": 2 + kept,
        "test_accuracy": 0.25,
    }
    assert len(weights) == 5 and not (folder / "checkpoint.pt").exists()
    (answers,) = reported
    assert answers.losses.tolist() == [2 + kept] * 40
    for name, value in loaded.model.state_dict().items():
        assert torch.equal(value, weights[1 + kept][name]) and torch.equal(value, weights[4][name])
    assert not torch.equal(weights[1]["classifier.weight"], weights[3]["classifier.weight"])


# ---- Numbers that are not finite ----


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_first_bad_step(
    in_process, tmp_path, tiny
):
    run = in_process(
        *("--model", tiny, "--data", "builtin", "--output-dir", "run", "--learning-rate", "1e30"),
        *("--max-grad-norm", "1e30", "--warmup", "0", "--log-every", "5"),
    )
    assert run.code == 1 and len(run.errors) == 1, run.err
    assert "Traceback" not in run.err and run.out == ""
    assert "step 2: the loss or its gradient is not finite (learning rate" in run.errors[0]
    assert "--learning-rate" in run.errors[0]
    assert not (tmp_path / "run" / "model").exists()


def test_weights_that_are_not_finite_after_the_last_step_are_not_kept(in_process, tmp_path, tiny):
    flags = ["--model", tiny, "--data", "builtin", "--max-train-samples", "64", "--epochs", "1"]
    run = in_process(*flags, "--learning-rate", "1e39", "--output-dir", "run")
    assert run.code == 1 and "is not finite" in run.errors[0] and run.out == "", run.err
    assert not (tmp_path / "run" / "model").exists()


def test_an_epoch_whose_validation_loss_is_not_finite_is_not_kept(tmp_path, monkeypatch):
    answers = Answers(*(np.full(1, np.nan) for _ in Answers._fields))
    monkeypatch.setattr(script, "evaluate", lambda *_: ({"accuracy": 1.0}, answers))
    with pytest.raises(RunError, match="epoch 0: the validation loss is not finite; use a lower"):
        training.train(training.load(tmp_path, 20, "--epochs", "1"))
    assert not (tmp_path / "run" / "model").exists()
    assert not (tmp_path / "run" / "checkpoint.pt").exists()


# ---- Memory and disk ----


@pytest.mark.long
def test_an_out_of_memory_error_suggests_the_micro_batch_size(finetune, tmp_path):
    # At 12 sentences of 64 tokens, each of three tensors of a layer takes 1.6 of 6.4 GB.
    save_tiny(tmp_path / "wide", hidden_dim=2**19, n_layers=2)
    rows = "".join(f"{'word ' * 62}{text},{label}\n" for text, label in ROWS)
    (tmp_path / "a.csv").write_text("text,label\n" + rows.replace(" , ", " "))
    run = finetune(
        *("--model", "wide", "--data", "a.csv", "--output-dir", "run", "--batch-size", "40"),
        *("--precision", "fp32"),
        **limited(tmp_path, "RLIMIT_AS", 6 * 2**30),
    )
    assert run.code == 1 and len(run.errors) == 1, run.err
    assert "--micro-batch-size" in run.errors[0] and "Traceback" not in run.err


@pytest.mark.long
@pytest.mark.parametrize("first_to_fail", ["checkpoint.pt", "model"])
def test_a_full_disk_ends_the_run_with_one_error_and_keeps_complete_files(
    finetune, tmp_path, first_to_fail
):
    # A checkpoint of 12 MB is too large; a narrow one fits, but the tokenizer of 0.7 MB does not.
    narrow = {"dim": 1, "hidden_dim": 2, "n_heads": 1} if first_to_fail == "model" else {}
    save_tiny(tmp_path / "model", **narrow)
    rows = "".join(f'"{text} {number}",{label}\n' for number in range(5) for text, label in ROWS)
    (tmp_path / "a.csv").write_text("text,label\n" + rows)
    flags = ["--model", "model", "--data", "a.csv", "--output-dir", "run", "--epochs", "1"]
    run = finetune(*flags, **limited(tmp_path, "RLIMIT_FSIZE", 2**19))
    assert run.code == 1 and len(run.errors) == 1, run.err
    assert f"{first_to_fail} could not be written" in run.errors[0] and "Traceback" not in run.err
    assert "File too large" in run.errors[0] or "os error 27" in run.errors[0]
    left = {file.name for file in (tmp_path / "run").iterdir()}
    whole = {"checkpoint.pt"} if first_to_fail == "model" else set()
    assert left == {"metrics.jsonl", "run.json"} | whole


def test_default_folders_of_runs_started_together_are_different(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        folders = list(pool.map(run_folder._make, [None] * 3))
    assert len(set(folders)) == 3


def test_a_checkpoint_names_the_kept_epoch_before_its_model_replaces_the_last_one(
    in_process, tmp_path, tiny, monkeypatch
):
    save, states = encoder.save, []

    def watched(*arguments: object) -> None:
        state = checkpoint.read_state(tmp_path / "run" / "checkpoint.pt")
        states.append((state.epoch, state.best["epoch"]))
        save(*arguments)

    monkeypatch.setattr(encoder, "save", watched)
    flags = ["--model", tiny, "--data", "builtin", "--epochs", "2", "--max-train-samples", "32"]
    run = in_process(*flags, "--keep", "last", "--output-dir", "run", "--max-length", "8")
    assert run.code == 0, run.err
    assert states == [(1, 0), (2, 1)]


def test_a_signal_stops_a_resumed_run_that_has_no_epoch_left(
    in_process, tmp_path, tiny, monkeypatch
):
    flags = ["--model", tiny, "--data", "builtin", "--epochs", "1", "--max-train-samples", "32"]
    flags += ["--output-dir", "run", "--resume", "--max-length", "8"]

    def fail(*_: object) -> None:
        raise RunError("no space for the report")

    with monkeypatch.context() as patches:
        patches.setattr(script.report, "write", fail)
        assert in_process(*flags).code == 1
    evaluate = script.evaluate

    def evaluate_after_signal(*arguments: object) -> object:
        monkeypatch.setattr(script, "evaluate", evaluate)
        os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(*arguments)

    monkeypatch.setattr(script, "evaluate", evaluate_after_signal)
    run = in_process(*flags)
    assert run.code == 143 and "stopped by SIGTERM" in run.err, run.err
    assert in_process(*flags).code == 0
