"""The folder of a run: one process writes at a time, and unusable folders are refused."""

import errno
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from harness.helpers import ROOT, drop_file_capabilities, start
from harness.stopped import SHORTER, check_refused, contents, read_settings

from training import run_folder

# ---- One process at a time ----


def test_a_folder_in_which_another_process_writes_is_refused_at_once(finetune, tmp_path, stopped):
    with run_folder._lock(tmp_path / "run"):
        before = contents(tmp_path / "run")
        run = finetune(*stopped)
        check_refused(run, tmp_path / "run", before, "another process is writing this run")
    # Importing the libraries takes ten seconds.
    assert run.seconds < 2


@pytest.mark.long
def test_a_second_process_is_refused_until_the_first_has_ended(
    finetune, tmp_path, stopped, monkeypatch
):
    first = start(tmp_path, *stopped)
    assert first.stdout.readline().startswith("epoch ")
    second = finetune(*stopped)
    # Importing the libraries takes ten seconds.
    assert second.seconds < 2
    assert second.code == 2 and len(second.errors) == 1, second.err
    assert "another process is writing this run" in second.errors[0]
    # A refused process must not wait for the end of the first one.
    monkeypatch.chdir(tmp_path)
    started = time.monotonic()
    with pytest.raises(ValueError, match="another process is writing this run"):
        read_settings(stopped)
    assert time.monotonic() - started < 5
    assert first.poll() is None
    first.kill()
    first.communicate()
    third = start(tmp_path, *stopped)
    assert third.stdout.readline().startswith("epoch ")
    third.send_signal(signal.SIGINT)
    _, err = third.communicate(timeout=60)
    assert third.returncode == 130 and "resumed from step " in err, err


@pytest.mark.long
def test_if_two_processes_start_a_run_together_one_is_refused(tmp_path, tiny):
    # Thirty epochs last longer than the other process loads, even on a busy machine.
    flags = ["--model", tiny, *SHORTER, "--epochs", "30", "--output-dir", "run", "--resume"]
    both = [start(tmp_path, *flags) for _ in range(2)]
    errors = [process.communicate(timeout=100)[1] for process in both]
    codes = [process.returncode for process in both]
    assert sorted(codes) == [0, 2], errors
    refused = errors[codes.index(2)]
    assert "another process" in refused and "Traceback" not in refused
    assert json.loads((tmp_path / "run" / "run.json").read_text())["result"]


def test_the_lock_of_a_run_has_one_holder_and_is_removed(tmp_path):
    with (
        run_folder._lock(tmp_path),
        pytest.raises(ValueError, match="another process"),
        run_folder._lock(tmp_path),
    ):
        pass
    assert contents(tmp_path) == {}


def test_a_disk_without_locks_gets_a_note_and_is_used(tmp_path, monkeypatch, capsys):
    def refuse(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(run_folder.filelock.FileLock, "acquire", refuse)
    with run_folder._lock(tmp_path):
        assert "this disk has no locks (No locks available)" in capsys.readouterr().err


# ---- Refused folders ----


def test_a_folder_on_a_drive_that_does_not_exist_is_refused(tmp_path, monkeypatch):
    # Everywhere except on Windows, the topmost folder exists.
    monkeypatch.setattr(os.path, "lexists", lambda path: False)
    with pytest.raises(ValueError, match="is not a folder; choose a different folder"):
        run_folder.take_up({"output_dir": str(tmp_path / "run")}, set())


def test_resuming_needs_the_folder_of_a_run_or_an_empty_one(in_process, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("years of work")
    flags = ["--model", "builtin", "--data", "builtin", "--resume"]
    run = in_process(*flags)
    assert run.code == 2 and "--resume: --output-dir is missing" in run.errors[0]
    run = in_process(*flags, "--output-dir", "run")
    assert run.code == 2 and "the folder holds files, but no run.json" in run.errors[0]
    assert contents(tmp_path / "run") == {"thesis.txt": b"years of work"}


def test_without_resume_a_stopped_run_is_not_touched(in_process, tmp_path, stopped):
    before = contents(tmp_path / "run")
    run = in_process(*stopped[:-1])
    check_refused(run, tmp_path / "run", before, "the folder holds a run already; use --resume")


@pytest.mark.parametrize("name", ["y" * 256, "b\udcffd"])
def test_an_impossible_folder_name_is_refused(tmp_path, in_process, name):
    run = in_process("--model", "builtin", "--data", "builtin", "--output-dir", name, "--resume")
    assert run.code == 2 and len(run.errors) == 1 and "choose a different" in run.errors[0], run.err


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="capabilities are Linux's")
@pytest.mark.parametrize(
    "closed", [".", "run.json", pytest.param("checkpoint.pt", marks=pytest.mark.long)]
)
def test_a_run_without_permission_to_read_or_write_is_refused(tmp_path, stopped, closed):
    (tmp_path / "run" / closed).chmod(0o555 if closed == "." else 0)
    done = subprocess.run(
        [sys.executable, str(ROOT / "finetune.py"), *stopped],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        preexec_fn=drop_file_capabilities,
    )
    (tmp_path / "run" / closed).chmod(0o755)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert (len(errors) == 1 and str(tmp_path / "run") in errors[0]) or "run/" in errors[0]
    assert "permission" in errors[0].lower()


# ---- Leftovers of a kill ----


def test_leftovers_of_a_kill_before_run_json_do_not_stop_a_new_start(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    for name in ("run.lock", "run.json.4711.partial"):
        (tmp_path / "run" / name).touch()
    flags = ["--model", "builtin", "--data", "builtin", "--output-dir", "run"]
    assert read_settings([*flags, "--resume"]).output_dir == "run"
    with pytest.raises(ValueError, match="the folder holds files"):
        read_settings(flags)


def test_leftovers_of_killed_processes_are_removed_when_the_run_is_resumed(
    in_process, tmp_path, tiny, few_sentences
):
    flags = ["--model", tiny, "--data", few_sentences, "--epochs", "1", "--output-dir", "run"]
    folder = tmp_path / "run"
    (folder / "model.partial").mkdir(parents=True)
    (folder / "model.partial" / "config.json").touch()
    (folder / "model").mkdir()
    written = ["run.json", "metrics.jsonl", "checkpoint.pt", "mistakes.csv", "curves.png"]
    for name in [*written, "model/README.md", "model/curves.png"]:
        (folder / f"{name}.4711.partial").touch()
    (folder / "run.json").write_text(json.dumps(started_record(in_process, tmp_path, flags)))
    run = in_process(*flags, "--resume")
    assert run.code == 0 and "resumed from step 0" in run.err, run.err
    assert not [*folder.rglob("*.partial")]


def started_record(in_process, tmp_path, flags: list[object]) -> dict:
    """The run.json of a run with these flags, as it was at the start."""
    run = in_process(*flags[:-1], "first")
    assert run.code == 0, run.err
    return json.loads((tmp_path / "first" / "run.json").read_text()) | {"result": None}
