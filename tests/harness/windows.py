"""Windows' rules for open files and folders, imposed on this process through Linux's `/proc`."""

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import filelock
import pytest


@contextlib.contextmanager
def rules() -> Iterator[list[str]]:
    """Inside, the system refuses the calls that Windows would refuse, and adds them to the list."""
    refused: list[str] = []

    def refuse(number: int, call: str, path: Path) -> None:
        refused.append(f"{call} {path}")
        raise OSError(number, os.strerror(number), str(path))

    def open_no_folder(call: str, path: str, *_: object) -> None:
        if Path(path).is_dir():
            refuse(errno.EACCES, call, Path(path))

    def flush_only_writable(call: str, descriptor: int) -> None:
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            refuse(errno.EBADF, call, Path(f"/proc/self/fd/{descriptor}").readlink())

    def change_no_open_file(call: str, *paths: str) -> None:
        for path in map(Path, paths):
            full = path.parent.resolve() / path.name
            if any(full in (file, *file.parents) for file in open_files()):
                refuse(errno.EACCES, call, path)
        if call == "rename" and os.path.lexists(paths[1]):
            refuse(errno.EEXIST, call, Path(paths[1]))

    checks = {"open": open_no_folder, "fsync": flush_only_writable}
    checks |= dict.fromkeys(("unlink", "rmdir", "rename", "replace"), change_no_open_file)
    with pytest.MonkeyPatch.context() as system:
        for name, check in checks.items():
            system.setattr(os, name, checked(getattr(os, name), check))
        # Windows has neither.
        system.delattr(os, "O_DIRECTORY")
        system.setattr(shutil, "_use_fd_functions", False)
        # On Windows, filelock removes its file.
        system.setattr(filelock.FileLock, "release", and_remove(filelock.FileLock.release))
        yield refused


def checked(call: Callable, check: Callable) -> Callable:
    def check_then_call(*arguments: object, **options: object) -> object:
        check(call.__name__, *arguments)
        return call(*arguments, **options)

    return check_then_call


def and_remove(release: Callable) -> Callable:
    def release_and_remove(lock: filelock.FileLock, *arguments: object) -> None:
        release(lock, *arguments)
        Path(lock.lock_file).unlink(missing_ok=True)

    return release_and_remove


def open_files() -> set[Path]:
    """The files that this process has open or mapped."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    files = {Path(line.split(maxsplit=5)[5]) for line in lines if "/" in line}
    for descriptor in [*Path("/proc/self/fd").iterdir()]:
        # The listing had a descriptor of its own.
        with contextlib.suppress(FileNotFoundError):
            files.add(descriptor.readlink())
    return files
