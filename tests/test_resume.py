"""A stopped and resumed run ends with the bytes of an uninterrupted one."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from harness.helpers import CSV, ROOT, block, scenario
from harness.stopped import FLAGS, SHORT, save_sealed

from training import checkpoint

STEP, EVALUATION, WRITING = "a step", "a batch of an evaluation", "a part of a checkpoint"
TERM, INT, KILL = signal.SIGTERM, signal.SIGINT, signal.SIGKILL
PLANS = {
    # Each signal has a place and a call, which each process counts from 1.
    "in the middle of an epoch": [[STEP, 5, TERM]],
    "in the first step": [[STEP, 1, INT]],
    "at the end of an epoch": [[STEP, 8, TERM]],
    "in the last step": [[STEP, 16, TERM]],
    # The first evaluation has two batches, later ones 38; a batch has three micro-batches.
    "in the middle of an evaluation": [[EVALUATION, 60, TERM]],
    "in the middle of the last evaluation": [[EVALUATION, 170, INT]],
    "killed in the middle of an epoch": [[STEP, 13, KILL]],
    "killed in the middle of an evaluation": [[EVALUATION, 170, KILL]],
    "stopped while a checkpoint is written": [[WRITING, 40, TERM]],
    "killed while a checkpoint is written": [[WRITING, 40, KILL]],
    "killed while a second checkpoint is written": [[STEP, 10, TERM], [WRITING, 40, KILL]],
    "ten times": [
        *([STEP, 2, TERM], [STEP, 3, TERM], [EVALUATION, 30, INT], [WRITING, 9, TERM]),
        *([STEP, 1, KILL], [STEP, 1, TERM], [STEP, 1, TERM], [WRITING, 3, KILL]),
        *([STEP, 6, INT], [EVALUATION, 90, TERM]),
    ],
}


def check_stops(folder: Path, flags: list[str], plans: dict[str, list]) -> dict[str, list[int]]:
    """Run the plans and check their exit codes; the steps from which each run was resumed."""
    results = scenario("stops", folder, flags=flags, plans=plans)
    assert results.keys() == plans.keys()
    for plan, signals in plans.items():
        codes = {TERM: 143, INT: 130, KILL: -KILL}
        assert results[plan]["codes"] == [codes[number] for *_, number in signals], plan
    steps = {plan: stops["resumed from"] for plan, stops in results.items()}
    print(steps)
    return steps


def test_a_stopped_run_ends_with_the_bytes_of_an_uninterrupted_one(tmp_path, tiny, few_sentences):
    flags = ["--model", str(tiny), *FLAGS, "--data", str(few_sentences)]
    # The first evaluation has six micro-batches, later ones nine.
    plan = [[STEP, 5, TERM], [EVALUATION, 10, INT], [WRITING, 40, KILL], [STEP, 2, KILL]]
    # A stopped run loses nothing; a killed run loses the steps after its last checkpoint.
    steps = check_stops(tmp_path, flags, {"a few times": plan})
    assert steps == {"a few times": [5, 8, 8, 8]}


@pytest.mark.long
@pytest.mark.parametrize(
    "choice", ["--keep best", "--keep last --freeze-embeddings --precision bf16"]
)
def test_a_run_stopped_at_any_place_ends_with_the_bytes_of_an_uninterrupted_one(
    tmp_path, tiny, choice
):
    flags = ["--model", str(tiny), *FLAGS, *choice.split(), "--seed", str(2**64 - 1)]
    steps = check_stops(tmp_path, flags, PLANS)
    assert steps.pop("ten times") == [2, 5, 8, 8, 8, 9, 10, 10, 16, 16]
    assert list(steps.values()) == [[5], [1], [8], [16], [8], [16], [8], [8], [8], [0], [10, 10]]


def test_weights_that_are_not_finite_never_replace_a_good_checkpoint(tmp_path, tiny, few_sentences):
    flags = ["--model", str(tiny), *FLAGS, "--data", str(few_sentences)]
    run = scenario("weights_not_finite", tmp_path, flags=flags)
    assert run["code"] == 1 and "step 6: the weights are not finite" in run["output"]
    assert run["kept"] == 5 and run["resumed from"] == [5]


def test_a_jump_of_the_clock_moves_no_checkpoint(tmp_path, tiny, few_sentences):
    flags = ["--model", str(tiny), *FLAGS, "--data", str(few_sentences)]
    run = scenario("random_clock", tmp_path, flags=flags)
    assert run == {"code": 0, "checkpoints": [8, 16]}


def test_a_second_signal_stops_at_once_and_leaves_a_checkpoint(tmp_path, tiny, few_sentences):
    flags = ["--model", str(tiny), *FLAGS, "--data", str(few_sentences)]
    run = scenario("second_signal", tmp_path, flags=flags)
    assert run["code"] == 143 and run["seconds"] < 5 and run["resumed from"] == [5]


def test_a_missing_kept_model_ends_the_run_with_one_error_and_its_checkpoint(
    in_process, tmp_path, stopped
):
    # The kept epoch must not be the last one, whose model would be written again.
    path = tmp_path / "run" / "checkpoint.pt"
    content = torch.load(path, weights_only=True)
    save_sealed(path, content | {"best": content["best"] | {"epoch": -9}})
    shutil.rmtree(tmp_path / "run" / "model")
    run = in_process(*stopped)
    assert run.code == 1 and len(run.errors) == 1 and "the kept model is missing" in run.errors[0]
    assert path.exists() and "Traceback" not in run.err
    path = tmp_path / "run" / "run.json"
    result = {"result": {"epoch": 1, "accuracy": 0.5}}
    path.write_text(json.dumps(json.loads(path.read_text()) | result))
    run = in_process(*stopped)
    assert run.code == 2 and "complete, but model/ is missing" in run.errors[0]


# ---- The real program ----


def test_an_epoch_whose_line_cannot_be_printed_is_not_lost(tmp_path, tiny):
    command = [sys.executable, ROOT / "finetune.py", "--model", tiny, *SHORT, "--resume"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*command, "--output-dir", "run"],
            cwd=tmp_path,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 1, done.stderr
    assert "error: standard output could not be written (No space left" in done.stderr
    assert checkpoint.read_state(tmp_path / "run" / "checkpoint.pt").epoch == 1


def test_the_documented_command_starts_a_run_and_reports_a_complete_one(
    in_process, small_builtin, tmp_path
):
    _, script, *flags = block("resume").split()
    assert script == "finetune.py" and "--resume" in flags
    for message in ("kept: epoch", "this run is complete; kept: epoch"):
        run = in_process(*flags)
        assert run.code == 0 and message in run.err, run.err
    assert (tmp_path / "runs" / "first" / "model" / "model.safetensors").exists()


# ---- Several processes ----


SHARED = ["--data", "builtin", "--epochs", "2", "--max-train-samples", "61", "--batch-size", "8"]
SHARED += ["--learning-rate", "3e-4", "--log-every", "3", "--keep", "last"]
PROCESS_COUNTS = {
    "2, then 2": [2, 2],
    "2, then 1": [2, 0],
    "2, 3, 1, 2": [2, 3, 1, 2],
    "2, killed, 2": [2, 2],
}


@pytest.mark.long
def test_another_number_of_processes_changes_a_resumed_run_only_by_rounding(tmp_path, no_dropout):
    # Each start of a plan except for the last stops after five more of the 16 steps.
    flags = ["--model", str(no_dropout), *SHARED, "--precision", "fp32"]
    results = scenario("changed_counts", tmp_path, flags=flags, plans=PROCESS_COUNTS)
    killed = results["2, killed, 2"]
    assert killed["codes"] == [[1, -signal.SIGKILL]] and killed["is_whole"]
    # Step 8 is the end of the first epoch.
    assert killed["resumed"] == [8]
    for plan, counts in PROCESS_COUNTS.items():
        run = results[plan]
        if plan != "2, killed, 2":
            assert all(set(codes) == {143} for codes in run["codes"]), run["log"]
            assert run["resumed"] == [5 * n for n in range(1, len(counts))]
        assert run["difference"] < 1e-5 and run["sentences"] == 122
        assert "Traceback" not in run["log"]
    assert results["2, then 2"]["is_whole"] and results["2, then 2"]["difference"] == 0
    assert "processes 2, now 1" in results["2, then 1"]["log"]


def test_dropout_differs_between_processes_and_is_repeated_by_a_resumed_run(tmp_path, tiny):
    plans = {"2, then 2": [2, 2]}
    flags = ["--model", str(tiny), *SHARED]
    run = scenario("changed_counts", tmp_path, flags=flags, plans=plans)["2, then 2"]
    assert run["is_whole"] and run["resumed"] == [5] and run["codes"] == [[143, 143]]


def test_the_same_command_resumes_if_its_columns_are_written_in_another_case(
    in_process, tmp_path, tiny
):
    (tmp_path / "a.csv").write_text(CSV)
    flags = ["--model", tiny, "--data", "a.csv", "--text-column", "SENTENCE", "--epochs", "1"]
    flags += ["--label-column", "Label", "--output-dir", "run", "--resume"]
    for _ in range(2):
        run = in_process(*flags)
        assert run.code == 0, run.err
