"""Files are written whole or not at all, also by two processes at once."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from harness.helpers import ROOT, limited
from harness.stopped import contents
from hypothesis import given, settings, strategies

from system import disk
from system.console import RunError

FULL = OSError(errno.ENOSPC, "No space left on device")


# ---- Files ----


@settings(max_examples=50, deadline=None)
@given(old=strategies.binary(max_size=300), new=strategies.lists(strategies.binary(max_size=99)))
def test_a_file_is_written_whole_or_stays_unchanged(tmp_path_factory, old, new):
    path = tmp_path_factory.mktemp("files") / "a"
    path.write_bytes(old)

    def fail_at_the_end(file):
        for part in new:
            file.write(part)
        raise FULL

    with pytest.raises(RunError, match=r"a could not be written \(No space left"):
        disk.write_whole(path, fail_at_the_end)
    assert contents(path.parent) == {"a": old}
    disk.write_whole(path, lambda file: [file.write(part) for part in new])
    assert contents(path.parent) == {"a": b"".join(new)}


def test_an_interrupted_write_leaves_the_old_file_and_no_partial_file(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"old")

    def interrupt(file):
        file.write(b"new")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        disk.write_whole(path, interrupt)
    assert contents(tmp_path) == {"a": b"old"}


def test_json_files_are_ascii_and_hold_names_that_are_not_utf_8(tmp_path):
    disk.write_json(tmp_path / "a.json", {"data": "b\udcffd é"})
    assert (tmp_path / "a.json").read_text("ascii") == '{\n  "data": "b\\udcffd \\u00e9"\n}\n'
    disk.write_lines(tmp_path / "a.jsonl", [{"step": 1}, {"é": 2}])
    disk.append_line(tmp_path / "a.jsonl", {"step": 3})
    lines = ['{"step": 1}', '{"\\u00e9": 2}', '{"step": 3}']
    assert (tmp_path / "a.jsonl").read_text("ascii").splitlines() == lines


WRITE = """
import pathlib, time
from system import disk

def fill(out):
    for _ in range(5):
        out.write({!r})
        out.flush()
        time.sleep(0.1)

disk.write_whole(pathlib.Path("out"), fill)
"""


def test_two_processes_that_write_the_same_file_leave_one_whole_file(tmp_path):
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WRITE.format(part)],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        for part in (b"one\n" * 9999, b"two\n" * 9999)
    ]
    assert [process.wait() for process in processes] == [0, 0]
    assert (tmp_path / "out").read_bytes() in (b"one\n" * 49995, b"two\n" * 49995)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


# ---- Folders ----


def test_a_folder_is_replaced_whole_or_stays_unchanged(tmp_path):
    def fill(content: str, error: Exception | None = None):
        def write(folder: Path) -> None:
            (folder / "config.json").write_text(content)
            if error:
                raise error

        return write

    disk.replace_folder(tmp_path / "model", fill("first"))
    with pytest.raises(RunError, match=r"model could not be written \(No space left"):
        disk.replace_folder(tmp_path / "model", fill("second", FULL))
    assert contents(tmp_path) == {"config.json": b"first"}
    disk.replace_folder(tmp_path / "model", fill("third"))
    assert contents(tmp_path) == {"config.json": b"third"}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_partial_files_of_any_process_are_removed_and_other_files_stay(tmp_path):
    for name in ("a.4711.partial", "a.12.partial", "ab.4711.partial", "a", "a.csv"):
        (tmp_path / name).touch()
    for name in ("m.partial", "m.old", "m"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").touch()
    expected = {"a.4711.partial", "a.12.partial"}
    assert {path.name for path in disk.leftovers(tmp_path / "a")} == expected
    disk.clear_leftovers(tmp_path / "a")
    disk.clear_leftovers(tmp_path / "m")
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["a", "a.csv", "ab.4711.partial", "m"]


# ---- Windows ----


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.skipif(sys.platform != "linux", reason="the rules are imposed through Linux's /proc")
def test_by_windows_rules_for_open_files_a_run_stops_resumes_and_ends(
    in_process, monkeypatch, tmp_path, tiny, few_sentences
):
    from harness import warm, windows

    flags = ["--model", tiny, "--data", few_sentences, "--epochs", "2", "--batch-size", "8"]
    flags += ["--learning-rate", "1e-3", "--output-dir", "run", "--resume"]
    monkeypatch.setattr(warm.finetune, "training_step", warm.finetune.training_step)
    with windows.rules() as refused:
        warm.signal_at("a step", 12, signal.SIGTERM)()
        stopped = in_process(*flags)
        before = names_in(tmp_path / "run")
        run = in_process(*flags)
    assert stopped.code == 143 and not stopped.errors, stopped.err
    assert before == {"run.json", "metrics.jsonl", "checkpoint.pt", "model"}
    assert run.code == 0 and "resumed from step 12" in run.err, run.err
    assert "the report is not complete" not in run.err
    reports = {"curves.png", "confusion.png", "calibration.png", "predictions.csv", "mistakes.csv"}
    assert names_in(tmp_path / "run") == {"run.json", "metrics.jsonl", "model", *reports}
    assert names_in(tmp_path / "run" / "model") >= {"model.safetensors", "README.md"}
    # The lock is removed after its release, too.
    assert set(refused) == {"unlink run/run.lock"}


def test_a_folder_that_can_not_be_flushed_is_an_error_if_the_system_flushes_folders(
    tmp_path, monkeypatch
):
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(RunError, match=r"a could not be written \(Permission denied\)"):
        disk.write_whole(tmp_path / "a", lambda file: file.write(b"new"))


# ---- Errors of writing ----


WRITE_MUCH = """
import pathlib, tokenizers, torch, safetensors.torch
from system import disk

numbers = torch.zeros(10_000)
vocabulary = {f"word {n}": n for n in range(999)}
tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary))
writers = {
    "python": lambda path: path.write_bytes(bytes(9999)),
    "torch": lambda path: torch.save(numbers, path.open("wb")),
    "safetensors": lambda path: safetensors.torch.save_file({"a": numbers}, path),
    "tokenizers": lambda path: tokenizer.save(str(path)),
}
for name, write in writers.items():
    try:
        with disk.write_errors(pathlib.Path("out") / name):
            write(pathlib.Path(name))
    except disk.RunError as error:
        print(error)
"""
REMEDY = "make space, then repeat the command (a run needs --output-dir and --resume)"


def test_the_full_disk_error_of_every_library_names_the_file(tmp_path):
    # RLIMIT_FSIZE makes each write beyond 1000 bytes fail like on a full disk.
    environment = limited(tmp_path, "RLIMIT_FSIZE", 1000)
    environment["PYTHONPATH"] += f"{os.pathsep}{ROOT}"
    done = subprocess.run(
        [sys.executable, "-c", WRITE_MUCH],
        cwd=tmp_path,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    messages = done.stdout.splitlines()
    libraries = ("python", "torch", "safetensors", "tokenizers")
    assert len(messages) == len(libraries), done.stderr
    for library, message in zip(libraries, messages, strict=True):
        assert message.startswith(f"out/{library} could not be written (")
        assert "File too large" in message or "os error 27" in message
        assert message.endswith(f"; {REMEDY}")


@pytest.mark.parametrize("error", [ValueError("wrong"), RuntimeError("wrong")], ids=repr)
def test_a_defect_is_not_reported_as_a_disk_error(tmp_path, error):
    def fail(file):
        raise error

    with pytest.raises(type(error)) as raised:
        disk.write_whole(tmp_path / "a", fail)
    assert raised.value is error
    assert contents(tmp_path) == {}


@pytest.mark.parametrize(
    "number, is_full",
    [
        (errno.ENOSPC, True),
        (errno.EDQUOT, True),
        (errno.EFBIG, True),
        (errno.EACCES, False),
        (errno.ENOENT, False),
    ],
)
def test_a_full_disk_is_recognized_by_the_error_or_its_cause(number, is_full):
    error = OSError(number, os.strerror(number))
    assert disk.is_full(error) == is_full
    with pytest.raises(RunError) as raised, disk.write_errors(Path("a")):
        raise error
    assert disk.is_full(raised.value) == is_full
