"""The folder of a run on disk: each part of it written whole or not at all."""

import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TextIO

from safetensors import SafetensorError

import model_files
from console import InputError, RunError, one_line

PACKAGES = ("torch", "transformers", "tokenizers", "datasets", "evaluate", "numpy", "safetensors")


def check_output(name: str | None) -> None:
    """Refuse a folder in which a run could not be written, as far as shows before it is tried."""
    folder = Path(name or "runs").absolute()
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        folder.lstat()  # Raises where the name is too long.
    existing = next(parent for parent in (folder, *folder.parents) if os.path.lexists(parent))
    problem = None
    if not existing.is_dir():
        problem = f"{existing} is not a folder"
    elif not os.access(existing, os.W_OK | os.X_OK):
        problem = f"no permission to write in {existing}"
    elif name and existing == folder and any(folder.iterdir()):
        holds = "a run" if (folder / "run.json").exists() else "files"
        problem = f"it holds {holds} already; name a new or an empty folder"
    if problem:
        raise InputError(f"--output-dir {folder}: {problem}")


def describe_run(settings: SimpleNamespace, replaced: dict, text, model: Path) -> dict:
    """What run.json says at the start: enough to repeat the run, and to see that it was.

    Args:
        text: data.LabelledText.
        model: the folder of the checkpoint that is fine-tuned.
    """
    import torch

    on_gpu = settings.device == "cuda"
    return {
        "started": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "settings": {name: value for name, value in vars(settings).items() if name != "given"},
        "replaced": replaced,
        "labels": text.labels,
        "sentences": {split: len(rows) for split, rows in text.splits.items()},
        "fingerprints": {
            "data": {split: rows._fingerprint for split, rows in text.splits.items()},
            "model": model_files.fingerprint(model),
        },
        "device": torch.cuda.get_device_name() if on_gpu else platform.processor() or "cpu",
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in PACKAGES},
        "result": None,
    }


def start_run(name: str | None, record: dict) -> Path:
    """Make the folder of a run and claim it for this process, by writing its run.json first.

    Args:
        name: the folder; None for a new one, runs/<date>-<time>.
    Raises:
        InputError: another run was quicker.
    """
    while True:
        folder = Path(name or time.strftime("runs/%Y-%m-%d-%H%M%S"))
        with _told(folder):
            try:
                folder.mkdir(parents=True, exist_ok=bool(name))
                break
            except FileExistsError:  # Of two runs started together one takes the next second.
                if name:
                    raise InputError(f"--output-dir {folder}: not a folder; name another") from None
                time.sleep(0.1)
    record_file = folder / "run.json"
    with _told(record_file):
        try:
            file = record_file.open("x", encoding="utf-8")
        except FileExistsError:
            raise InputError(f"--output-dir {folder}: it holds a run; name a new folder") from None
        try:
            with file:
                _write(file, record)
        except BaseException:
            record_file.unlink()  # A folder with half of it would hold a run that never was.
            raise
    return folder


def append_line(file: Path, record: dict) -> None:
    """Add a record to a file of JSON lines."""
    with _told(file), file.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(record) + "\n")


def write_record(folder: Path, record: dict) -> None:
    """Replace the run.json of a run."""
    aside = folder / "run.json.partial"
    with _told(folder / "run.json"):
        with aside.open("w", encoding="utf-8") as file:
            _write(file, record)
        aside.replace(folder / "run.json")


def replace_folder(folder: Path, fill: Callable[[Path], object]) -> None:
    """Put in place of `folder` what `fill` writes: aside, flushed, then renamed.

    Raises:
        RunError: it could not be written; what was there before is untouched.
    """
    aside, old = folder.with_name(folder.name + ".partial"), folder.with_name(folder.name + ".old")
    with _told(folder):
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        try:
            fill(aside)
            for file in aside.iterdir():
                with file.open("rb") as opened:
                    os.fsync(opened.fileno())
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        aside.rename(folder)
        shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    """Errors of writing name what could not be written: those of a full disk don't."""
    try:
        yield
    except Exception as error:
        # Tokenizers reports a full disk by a plain Exception with the system's words in it.
        if not isinstance(error, OSError | SafetensorError) and "os error" not in str(error):
            raise
        reason = getattr(error, "strerror", None) or one_line(error)
        raise RunError(
            f"{path} could not be written ({reason}); mend that, then run again"
        ) from error


def _write(file: TextIO, record: dict) -> None:
    file.write(json.dumps(record, indent=2) + "\n")  # ASCII: names of files can be any bytes.
    file.flush()
    os.fsync(file.fileno())
