"""A run that is stopped and resumed ends with the bytes of one that nothing interrupted."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from harness.helpers import ROOT, block, scenario
from harness.stopped import FLAGS, SHORT, save_sealed

from training import checkpoint

STEP, EVALUATION, WRITING = "a step", "a batch of an evaluation", "a part of a checkpoint"
TERM, INT, KILL = signal.SIGTERM, signal.SIGINT, signal.SIGKILL
PLANS = {
    # Which signal comes at which call, counted in each process anew.
    "in the middle of an epoch": [[STEP, 5, TERM]],
    "in the first step": [[STEP, 1, INT]],
    "at the end of an epoch": [[STEP, 8, TERM]],
    "in the last step": [[STEP, 16, TERM]],
    # The first look has two batches, each evaluation 38, and a batch three micro-batches.
    "in the middle of an evaluation": [[EVALUATION, 60, TERM]],
    "in the middle of the last evaluation": [[EVALUATION, 170, INT]],
    "killed in the middle of an epoch": [[STEP, 13, KILL]],
    "killed in the middle of an evaluation": [[EVALUATION, 170, KILL]],
    "stopped while a checkpoint is written": [[WRITING, 40, TERM]],
    "killed while a checkpoint is written": [[WRITING, 40, KILL]],
    "killed while a second checkpoint is written": [[STEP, 10, TERM], [WRITING, 40, KILL]],
    "often": [
        *([STEP, 2, TERM], [STEP, 3, TERM], [EVALUATION, 30, INT], [WRITING, 9, TERM]),
        *([STEP, 1, KILL], [STEP, 1, TERM], [STEP, 1, TERM], [WRITING, 3, KILL]),
        *([STEP, 6, INT], [EVALUATION, 90, TERM]),
    ],
}


def check_stops(folder: Path, flags: list[str], plans: dict[str, list]) -> dict[str, list[int]]:
    """Run the plans and check their exit codes; the steps that each was resumed from."""
    results = scenario("stops", folder, flags=flags, plans=plans)
    assert results.keys() == plans.keys()
    for plan, moments in plans.items():
        codes = {TERM: 143, INT: 130, KILL: -KILL}
        assert results[plan]["codes"] == [codes[number] for *_, number in moments], plan
    steps = {plan: stops["resumed from"] for plan, stops in results.items()}
    print(steps)
    return steps


def test_a_stopped_run_ends_with_the_bytes_of_an_uninterrupted_one(tmp_path, tiny, few_sentences):
    flags = ["--model", str(tiny), *FLAGS, "--data", str(few_sentences)]
    # The first look has six micro-batches, an evaluation nine.
    plan = [[STEP, 5, TERM], [EVALUATION, 10, INT], [WRITING, 40, KILL], [STEP, 2, KILL]]
    # A run that is stopped loses nothing; one that is killed, all after its last checkpoint.
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
    assert steps.pop("often") == [2, 5, 8, 8, 8, 9, 10, 10, 16, 16]
    assert list(steps.values()) == [[5], [1], [8], [16], [8], [16], [8], [8], [8], [0], [10, 10]]


def test_weights_that_a_step_ruined_never_replace_a_good_checkpoint(tmp_path, tiny, few_sentences):
    flags = ["--model", str(tiny), *FLAGS, "--data", str(few_sentences)]
    run = scenario("ruin", tmp_path, flags=flags)
    assert run["code"] == 1 and "step 6: the weights are not finite" in run["output"]
    assert run["kept"] == 5 and run["resumed from"] == [5]


def test_a_clock_that_jumps_changes_nothing(tmp_path, tiny, few_sentences):
    flags = ["--model", str(tiny), *FLAGS, "--data", str(few_sentences)]
    run = scenario("clock", tmp_path, flags=flags)
    assert run == {"code": 0, "checkpoints": [8, 16]}


def test_a_second_signal_stops_at_once_and_leaves_a_checkpoint(tmp_path, tiny, few_sentences):
    flags = ["--model", str(tiny), *FLAGS, "--data", str(few_sentences)]
    run = scenario("second_signal", tmp_path, flags=flags)
    assert run["code"] == 143 and run["seconds"] < 5 and run["resumed from"] == [5]


def test_a_kept_model_that_is_gone_ends_the_run_with_a_line_and_its_checkpoint(
    in_process, tmp_path, stopped
):
    # The last epoch's model would be written again: the kept epoch must be another one.
    path = tmp_path / "run" / "checkpoint.pt"
    content = torch.load(path, weights_only=True)
    save_sealed(path, content | {"best": content["best"] | {"epoch": -9}})
    shutil.rmtree(tmp_path / "run" / "model")
    run = in_process(*stopped)
    assert run.code == 1 and len(run.errors) == 1 and "the kept model is gone" in run.errors[0]
    assert path.exists() and "Traceback" not in run.err
    path = tmp_path / "run" / "run.json"
    result = {"result": {"epoch": 1, "accuracy": 0.5}}
    path.write_text(json.dumps(json.loads(path.read_text()) | result))
    run = in_process(*stopped)
    assert run.code == 2 and "complete, and its model/ is gone" in run.errors[0]


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


def test_the_readmes_command_starts_a_run_and_says_when_it_is_complete(
    in_process, small_builtin, tmp_path
):
    _, script, *flags = block("resume").split()
    assert script == "finetune.py" and "--resume" in flags
    for message in ("kept: epoch", "this run is complete; kept: epoch"):
        run = in_process(*flags)
        assert run.code == 0 and message in run.err, run.err
    assert (tmp_path / "runs" / "first" / "model" / "model.safetensors").exists()


# ---- Several processes ----


PROCESSES = ["--data", "builtin", "--epochs", "2", "--max-train-samples", "61", "--batch-size", "8"]
PROCESSES += ["--learning-rate", "3e-4", "--log-every", "3", "--keep", "last"]
CHANGES = {
    "2, then 2": [2, 2],
    "2, then 1": [2, 0],
    "2, 3, 1, 2": [2, 3, 1, 2],
    "2, killed, 2": [2, 2],
}


@pytest.mark.long
def test_a_run_resumed_by_as_many_processes_repeats_its_bits_and_by_others_all_but_rounding(
    tmp_path, no_dropout
):
    # Stopped after step 5 of 16, and, if resumed three times, after each fifth.
    flags = ["--model", str(no_dropout), *PROCESSES]
    results = scenario("changes", tmp_path, flags=flags, plans=CHANGES)
    killed = results["2, killed, 2"]
    assert killed["codes"] == [[1, -signal.SIGKILL]] and killed["is_whole"]
    assert killed["resumed"] == [8]  # The end of the first epoch.
    for plan, counts in CHANGES.items():
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
    flags = ["--model", str(tiny), *PROCESSES]
    run = scenario("changes", tmp_path, flags=flags, plans=plans)["2, then 2"]
    assert run["is_whole"] and run["resumed"] == [5] and run["codes"] == [[143, 143]]
