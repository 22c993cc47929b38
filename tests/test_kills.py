"""A run that is killed or has no disk space resumes to the bytes of an undisturbed run."""

import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from harness.helpers import in_parts, own_process, scenario
from harness.stopped import FLAGS, SHORT, SHORTER

long, slow = pytest.mark.long, pytest.mark.slow


@pytest.mark.parametrize(
    "kills, different_steps",
    [pytest.param(20, 2, marks=long), pytest.param(240, 10, marks=slow)],
)
def test_a_run_killed_at_random_moments_ends_with_the_same_bytes(
    tmp_path, tiny, kills, different_steps
):
    flags = ["--model", str(tiny), *FLAGS]
    parts = [{"seed": kills + part} for part in range(2 if kills > 100 else 1)]
    results = in_parts("fuzz", tmp_path, parts, flags=flags, kills=kills // len(parts))
    steps = [step for part in results for step in part["resumed from"]]
    killed, runs = (sum(part[name] for part in results) for name in ("kills", "runs"))
    print(f"{killed} kills of {runs} runs; resumed from steps {steps}")
    assert killed >= kills
    assert len(set(steps) - {0}) >= different_steps


@pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"), reason="only for x86-64 Linux"
)
@pytest.mark.parametrize("share", [80, pytest.param(16, marks=long), pytest.param(1, marks=slow)])
def test_a_run_killed_at_a_file_operation_ends_with_the_same_bytes(
    tmp_path, tiny, few_sentences, share
):
    flags = ["--model", str(tiny), *(SHORT if share == 1 else SHORTER)]
    if share > 16:
        flags += ["--data", str(few_sentences)]
    count = 2 if share == 1 else 1
    parts = [{"part": part, "parts": count * share} for part in range(count)]
    results = in_parts("each_operation", tmp_path, parts, flags=flags)
    if "untraceable" in results[0]:
        pytest.skip(results[0]["untraceable"])
    operations = results[0]["operations"]
    kinds = {f"{call} {name.removeprefix('model.partial/')}" for call, name in operations}
    kills = sum(part["kills"] for part in results)
    print(f"{len(operations)} operations, {kills} kills")
    assert len(operations) > 150 and kills >= 300 / (2 * share)
    assert kinds >= {
        "mkdir .",
        "open run.json.partial",
        "rename run.json.partial",
        "fsync .",
        "write metrics.jsonl",
        "open checkpoint.pt.partial",
        "write checkpoint.pt.partial",
        "fsync checkpoint.pt.partial",
        "rename checkpoint.pt.partial",
        "unlink checkpoint.pt",
        "write config.json",
        "write .tmp",
        "fsync model.safetensors",
        "fsync model.partial",
        "rename model.partial",
        "unlink run.lock",
    }


def check_full_disk(results: dict, moments: int) -> None:
    print(results)
    assert len(results["errors"]) >= moments // 4
    reasons = ("No space left on device", "File too large", "os error 27", "os error 28")
    for error in results["errors"]:
        assert "could not be written" in error and "--resume" in error
        assert any(reason in error for reason in reasons)
    assert any("checkpoint.pt could not" in error for error in results["errors"])


@pytest.mark.parametrize("moments", [2, pytest.param(8, marks=long), pytest.param(60, marks=slow)])
def test_a_run_stopped_by_a_file_size_limit_resumes_without_it(
    tmp_path, tiny, few_sentences, moments
):
    flags = ["--model", str(tiny), *SHORT]
    if moments < 8:
        flags += ["--data", str(few_sentences)]
    limit = {"moments": moments, "limit": "file size"}
    check_full_disk(scenario("full_disk", tmp_path, flags=flags, **limit), moments)


def mount(folder: Path) -> list[str]:
    """The start of a command line that mounts a private disk of 80 MB at `folder`."""
    script = 'mount -t tmpfs -o size=80m none "$0" && exec "$@"'
    command = ["unshare", "--mount", "--map-root-user", "sh", "-c", script, str(folder)]
    if not shutil.which("unshare") or subprocess.run([*command, "true"]).returncode:
        pytest.skip("no disk can be mounted here")
    return command


@pytest.mark.parametrize("moments", [pytest.param(8, marks=long), pytest.param(60, marks=slow)])
def test_a_run_stopped_by_a_full_disk_resumes_when_there_is_space(tmp_path, tiny, moments):
    flags = ["--model", str(tiny), *SHORT]
    limit = {"moments": moments, "limit": "space"}
    results = own_process("full_disk", tmp_path, *mount(tmp_path), flags=flags, **limit)
    check_full_disk(results, moments)
    # Writing the second checkpoint failed, and the first checkpoint stayed whole.
    assert 3 in results["resumed from"]


@pytest.mark.parametrize("count", [5, pytest.param(15, marks=long), pytest.param(100, marks=slow)])
def test_a_damaged_checkpoint_is_refused_and_left_unchanged(tmp_path, tiny, few_sentences, count):
    flags = ["--model", str(tiny), *FLAGS]
    if count < 15:
        flags += ["--data", str(few_sentences)]
    results = scenario("damage", tmp_path, flags=flags, count=count, seed=0)
    assert len(results["ends"]) == count and results["resumed from"] == [6]
    for code, output in results["ends"]:
        errors = [line for line in output.splitlines() if line.startswith("error: ")]
        assert code == 2 and len(errors) == 1 and "Traceback" not in output, output
        assert "checkpoint.pt: " in errors[0] and "damaged" in errors[0], output
