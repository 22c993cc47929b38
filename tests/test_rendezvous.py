"""Processes of a run compare code and data; if one fails, all end and one reports the error."""

import signal
import time

import pytest
import torch
from harness.helpers import CSV, ROOT, scenario
from harness.stopped import FLAGS

from system import rendezvous
from system.console import RunError

# ---- One process ----


def test_the_compared_code_is_the_program_without_tests_and_benchmarks():
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    files = {path.relative_to(ROOT) for path in ROOT.glob("*.py")}
    files |= {path.relative_to(ROOT) for path in ROOT.glob("*/*.py")}
    program = {str(file) for file in files if file.parent.name in packages | {""}}
    assert rendezvous.code().keys() == program
    assert {"finetune.py", "inputs/labels.py", "system/rendezvous.py"} < program


def test_the_compared_versions_are_the_installed_ones():
    assert rendezvous.versions()["torch"] == torch.__version__


def test_a_single_process_does_not_wait_and_may_report():
    seconds = []
    # The fastest of five counts, because other programs may slow some of them.
    for _ in range(5):
        started = time.monotonic()
        rendezvous.check_same({"the data": 1})
        rendezvous.code()
        rendezvous.join([])
        rendezvous.leave()
        assert rendezvous.may_report()
        seconds.append(time.monotonic() - started)
    assert min(seconds) < 0.1


@pytest.mark.parametrize(
    "error, is_lost",
    [
        (torch.distributed.DistNetworkError("Failed to recv, got 0 bytes"), True),
        (torch.distributed.DistStoreError("wait timeout after 300000ms"), True),
        (RuntimeError("Application timeout caused pair closure"), True),
        (RunError("runs/nccl/checkpoint.pt could not be written (No space left)"), False),
        (RuntimeError("CUDA error: the launch timed out"), False),
        (RuntimeError("NCCL error: CUDA out of memory"), False),
    ],
    ids=str,
)
def test_only_the_error_of_a_lost_process_names_a_lost_process(monkeypatch, error, is_lost):
    for count in (1, 2):
        monkeypatch.setattr(rendezvous.ranks, "world_size", lambda count=count: count)
        with pytest.raises(RuntimeError) as raised, rendezvous.lost_peers():
            raise error
        assert ("another process" in str(raised.value)) == (is_lost and count == 2)


# ---- Several processes ----


def test_exactly_one_of_two_processes_may_report(tmp_path):
    results = scenario("exchange", tmp_path, count=2, machines=1)
    assert sorted(process["may report"] for process in results) == [False, True]


CASES = {
    "killed": "another process of this run has ended",
    "first killed": "another process of this run has ended",
    "first out of memory": "out of memory; use a smaller",
    "out of memory": "out of memory; use a smaller",
    "disk": "checkpoint.pt could not be written",
    "code": "differs from the main process on",
}
LONG_CASES = ("killed", "first out of memory", "disk")


@pytest.mark.parametrize(
    "cases",
    [
        [case for case in CASES if case not in LONG_CASES],
        pytest.param(LONG_CASES, marks=pytest.mark.long),
    ],
    ids=", ".join,
)
def test_if_one_process_fails_all_end_within_seconds_and_one_reports(
    tmp_path, tiny, few_sentences, cases
):
    flags = ["--model", str(tiny), *FLAGS, "--checkpoint-minutes", "0"]
    flags += ["--data", str(few_sentences)]
    results = scenario("failures", tmp_path, flags=flags, cases=cases)
    for case in cases:
        codes, log = results[case]["codes"], results[case]["log"]
        errors = [line for line in log.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1 and CASES[case] in errors[0], (case, log)
        assert "Traceback" not in log and results[case]["seconds"] < 10
        assert "/pytorch/" not in errors[0] and "stopped by" not in log
        if "killed" in case:
            assert codes.count(-signal.SIGKILL) == 1 and codes.count(1) == 2, case
        else:
            assert set(codes) == {2 if case == "code" else 1}, (case, codes)
        if case == "code":
            assert "data.py" in log


def test_machines_with_different_data_or_commands_are_refused_and_nothing_is_written(
    tmp_path, tiny
):
    for rank, text in enumerate((CSV, CSV.replace("a dull film", "a dill film"))):
        (tmp_path / f"machine{rank}" / "data").mkdir(parents=True)
        (tmp_path / f"machine{rank}" / "data" / "train.csv").write_text(text)
    flags = ["--model", str(tiny), *FLAGS[2:]]
    results = scenario("different_machines", tmp_path, flags=flags, data="data")
    for case, name in (("other data", "the data"), ("other flags", "the command line")):
        log = results[case]["log"]
        assert results[case]["codes"] == [2, 2] and not results[case]["is there"], log
        errors = [line for line in log.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1 and f": {name}" in errors[0] and "; use the same" in errors[0]
    assert " --epochs 9, expected --" in errors[0]
