"""Files and folders are written whole or not at all, even if the writing process is killed."""

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

# Endings of the names of files and folders that are being written, and being replaced.
PARTIAL, OLD = ".partial", ".old"


def write_whole(path: Path, fill: Callable[[BinaryIO], object]) -> None:
    """Let `fill` write a temporary file, flush it to disk, and rename it to `path`.

    Raises RunError if the file could not be written; `path` is then unchanged.
    """
    # Two processes that write the same file must not share a temporary file.
    temporary = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}")
    with write_errors(path):
        try:
            with temporary.open("wb") as file:
                fill(file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        flush_folder(path.parent)


def replace_folder(folder: Path, fill: Callable[[Path], object]) -> None:
    """Let `fill` write a temporary folder, flush it to disk, and put it in place of `folder`.

    Two renames leave a moment without `folder`, but never with a partial `folder`. Raises RunError
    if the folder could not be written; `folder` is then unchanged.
    """
    temporary, old = (folder.with_name(folder.name + ending) for ending in (PARTIAL, OLD))
    with write_errors(folder):
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        try:
            fill(temporary)
            for path in temporary.iterdir():
                # Windows flushes only files that are open for writing.
                with path.open("r+b") as file:
                    os.fsync(file.fileno())
            flush_folder(temporary)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        temporary.rename(folder)
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
    """Write `record` to `path` as JSON, whole or not at all."""
    # ASCII, because names of files can hold any bytes.
    text = json.dumps(record, indent=2) + "\n"
    write_whole(path, lambda file: file.write(text.encode("ascii")))


def write_lines(path: Path, records: list[dict]) -> None:
    """Write `records` to `path` as JSON lines, whole or not at all."""
    text = "".join(json.dumps(record) + "\n" for record in records)
    write_whole(path, lambda file: file.write(text.encode("ascii")))


def append_line(path: Path, record: dict) -> None:
    """Add a record to a file of JSON lines."""
    # Windows would end each line by two characters.
    with write_errors(path), path.open("a", encoding="ascii", newline="\n") as lines:
        lines.write(json.dumps(record) + "\n")


def flush_folder(folder: Path) -> None:
    """Flush the names in a folder to disk, so that a rename survives a crash."""
    # Windows lacks this flag and opens no folder, so a power failure there can undo a rename.
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network drives can't flush a folder.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def is_full(error: BaseException) -> bool:
    """True if the cause is a full disk, a quota, or a limit on the size of files."""
    numbers = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    causes = (error, error.__cause__, error.__context__)
    return any(isinstance(cause, OSError) and cause.errno in numbers for cause in causes)


@contextlib.contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Turn an error of writing into a RunError that names `path`: a full disk's error does not."""
    try:
        yield
    except Exception as error:
        # torch reports a full disk by a RuntimeError with the system's error as its context.
        # tokenizers raises a plain Exception that only its text identifies.
        context = error.__context__ if type(error) is RuntimeError else None
        cause = context if isinstance(context, OSError) else error
        if not isinstance(cause, OSError | SafetensorError) and "os error" not in str(error):
            raise
        reason = getattr(cause, "strerror", None) or one_line(cause)
        remedy = "make space, then repeat the command (a run needs --output-dir and --resume)"
        raise RunError(f"{path} could not be written ({reason}); {remedy}") from error
