"""Files that are written whole or not at all, wherever the writing breaks off."""

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

PARTIAL = ".partial"  # Ends the name of what is being written.
_mark = ""  # Stands before that, where several processes may write the same file.
OLD = ".old"  # Ends the name of a folder that is being replaced.


def write_whole(path: Path, fill: Callable[[BinaryIO], object]) -> None:
    """Put in place of the file `path` what `fill` writes: aside, flushed to disk, then renamed.

    Raises:
        RunError: it could not be written; what was there before is whole, or else this is there.
    """
    aside = path.with_name(path.name + _mark + PARTIAL)
    with told(path):
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


def mark_as_own() -> None:
    """From now on write aside under a name of this process's own: no lock keeps others away."""
    global _mark
    _mark = f".{os.getpid()}"


def is_full(error: BaseException) -> bool:
    """Whether a disk, or what may be written of it, was full."""
    numbers = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    causes = (error, error.__cause__, error.__context__)
    return any(isinstance(cause, OSError) and cause.errno in numbers for cause in causes)


def replace_folder(folder: Path, fill: Callable[[Path], object]) -> None:
    """Put in place of `folder` what `fill` writes: aside, flushed to disk, then renamed.

    No system swaps two folders: for an instant there is none, never half of one.

    Raises:
        RunError: it could not be written; what was there before is whole, or else this is there.
    """
    aside, old = (folder.with_name(folder.name + ending) for ending in (PARTIAL, OLD))
    with told(folder):
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


def clear_leftovers(path: Path) -> None:
    """Remove what a killed process had begun to write for `path`, or to remove from its place."""
    for leftover in (path.with_name(path.name + PARTIAL), path.with_name(path.name + OLD)):
        with told(leftover):
            if leftover.is_dir():
                shutil.rmtree(leftover)
            else:
                leftover.unlink(missing_ok=True)


def write_json(path: Path, record: dict) -> None:
    """Write `record` as the file `path`, as `write_whole` does."""
    text = json.dumps(record, indent=2) + "\n"  # ASCII: names of files can be any bytes.
    write_whole(path, lambda file: file.write(text.encode("ascii")))


def write_lines(path: Path, records: list[dict]) -> None:
    """Write `records` as a file of JSON lines, as `write_whole` does."""
    text = "".join(json.dumps(record) + "\n" for record in records)
    write_whole(path, lambda file: file.write(text.encode("ascii")))


def append_line(path: Path, record: dict) -> None:
    """Add a record to a file of JSON lines."""
    with told(path), path.open("a", encoding="ascii") as lines:
        lines.write(json.dumps(record) + "\n")


def flush_folder(folder: Path) -> None:
    """Flush the names in a folder to disk: a file renamed is at its new place only after that."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # Some network drives can't.
            raise
    finally:
        os.close(opened)


@contextlib.contextmanager
def told(path: Path) -> Iterator[None]:
    """Errors of writing name what could not be written: those of a full disk don't."""
    try:
        yield
    except Exception as error:
        # torch reports a full disk by a RuntimeError behind the system's error; tokenizers by a
        # plain Exception with the system's words in it.
        behind = error.__context__ if type(error) is RuntimeError else None
        cause = behind if isinstance(behind, OSError) else error
        if not isinstance(cause, OSError | SafetensorError) and "os error" not in str(error):
            raise
        reason = getattr(cause, "strerror", None) or one_line(cause)
        raise RunError(
            f"{path} could not be written ({reason}); mend that, then give the same command, a run "
            "with --output-dir and --resume"
        ) from error
