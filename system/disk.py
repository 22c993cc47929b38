"""Files and folders that are written whole or not at all, even if the writing breaks off."""

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from safetensors import SafetensorError

from system.console import RunError, one_line

PARTIAL, OLD = ".partial", ".old"  # End names of what is being written and being replaced.


def write_whole(path: Path, fill: Callable[[BinaryIO], object]) -> None:
    """Let `fill` write a file aside, flush it to disk, and rename it to `path`.

    RunError if it could not be written; `path` is then as it was before.
    """
    # Two processes that write the same file must not share a file aside.
    aside = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}")
    with write_errors(path):
        try:
            with aside.open("wb") as file:
                fill(file)
                file.flush()
                os.fsync(file.fileno())
            aside.replace(path)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise
        flush_folder(path.parent)


def replace_folder(folder: Path, fill: Callable[[Path], object]) -> None:
    """Let `fill` write a folder aside, flush it to disk, and put it in the place of `folder`.

    Two renames are needed, so for an instant there is no `folder`; never half of one. RunError if
    it could not be written; `folder` is then as it was before.
    """
    aside, old = (folder.with_name(folder.name + ending) for ending in (PARTIAL, OLD))
    with write_errors(folder):
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        try:
            fill(aside)
            for file in aside.iterdir():
                with file.open("rb") as opened:
                    os.fsync(opened.fileno())
            flush_folder(aside)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        aside.rename(folder)
        flush_folder(folder.parent)
        shutil.rmtree(old, ignore_errors=True)


def leftovers(path: Path) -> list[Path]:
    """Files and folders that a killed process left while it wrote or replaced `path`."""
    folders = (path.with_name(path.name + ending) for ending in (PARTIAL, OLD))
    files = path.parent.glob(f"{path.name}.*{PARTIAL}")
    return [*files, *(folder for folder in folders if folder.exists())]


def clear_leftovers(path: Path) -> None:
    """Remove the `leftovers` of `path`."""
    for leftover in leftovers(path):
        with write_errors(leftover):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()


def write_json(path: Path, record: dict) -> None:
    """Write `record` as the file `path`, as `write_whole` does."""
    text = json.dumps(record, indent=2) + "\n"  # ASCII, because names of files can be any bytes.
    write_whole(path, lambda file: file.write(text.encode("ascii")))


def write_lines(path: Path, records: list[dict]) -> None:
    """Write `records` as a file of JSON lines, as `write_whole` does."""
    text = "".join(json.dumps(record) + "\n" for record in records)
    write_whole(path, lambda file: file.write(text.encode("ascii")))


def append_line(path: Path, record: dict) -> None:
    """Add a record to a file of JSON lines."""
    with write_errors(path), path.open("a", encoding="ascii") as lines:
        lines.write(json.dumps(record) + "\n")


def flush_folder(folder: Path) -> None:
    """Flush the names in a folder to disk: only then a renamed file is at its new place."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # Some network drives can't.
            raise
    finally:
        os.close(opened)


def is_full(error: BaseException) -> bool:
    """Whether the cause is a full disk, or a limit on what may be written."""
    numbers = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    causes = (error, error.__cause__, error.__context__)
    return any(isinstance(cause, OSError) and cause.errno in numbers for cause in causes)


@contextlib.contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Raise a RunError that names `path`, as errors of a full disk don't."""
    try:
        yield
    except Exception as error:
        # torch reports a full disk by a RuntimeError with the system's error as its context;
        # tokenizers by a plain Exception, for which only the text tells.
        context = error.__context__ if type(error) is RuntimeError else None
        cause = context if isinstance(context, OSError) else error
        if not isinstance(cause, OSError | SafetensorError) and "os error" not in str(error):
            raise
        reason = getattr(cause, "strerror", None) or one_line(cause)
        remedy = "mend that, then give the same command, a run with --output-dir and --resume"
        raise RunError(f"{path} could not be written ({reason}); {remedy}") from error
