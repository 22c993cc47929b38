"""The folder of a run: created, locked, resumed or refused, by one process at a time."""

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import filelock

from inputs import hub
from system import collectives, disk
from system.console import InputError, Problem, raise_any, say
from training import record as records
from training.settings import Settings, Values

if TYPE_CHECKING:
    from training.checkpoint import State

CHECKPOINT, MODEL, LOCK = "checkpoint.pt", "model", "run.lock"


class Claimed(NamedTuple):
    """A run whose folder is locked by this program."""

    folder: Path
    record: dict  # The content of run.json.
    state: "State"  # New, or that of the checkpoint.


def take_up(values: Values, explicit: set[str]) -> tuple[Values, set[str]]:
    """The settings with the stand-ins and the precision of the run to resume, if there is one.

    `explicit` are the names that a flag or keyword named. InputError if the folder can't be used,
    or holds another run.
    """
    name, resume = values.get("output_dir"), values.get("resume", False)
    if resume and not name:
        what = "name the folder of the run with --output-dir"
        raise InputError(Problem("", what, flag="--resume"))
    folder = Path(name or "runs").absolute()
    try:
        str(folder).encode()
        record = _find_run(folder, bool(name), resume)
    except UnicodeEncodeError:  # Tokenizers could not write there.
        raise _error(folder, "not a name in UTF-8", "name another") from None
    except OSError as error:  # A name too long, a folder that may not be read.
        raise _error(folder, error.strerror, "name another") from None
    if not record:
        return values, explicit
    values = records.adopt(values, explicit, record)
    raise_any(records.changed_settings(values, record, folder, early=True))
    if record["result"]:
        same = records.same_inputs(values, record)
        raise_any(records.changed_inputs(values, same, folder))
    elif (folder / LOCK).exists():
        with _lock(folder):  # Now, and not after minutes of loading.
            pass
    return values, explicit | hub.DEFAULTS.keys()  # No other stand-in may begin now.


def _error(folder: Path, what: str, remedy: str = "") -> InputError:
    return InputError(Problem(str(folder), what, remedy, "--output-dir"))


def _find_run(folder: Path, is_named: bool, resume: bool) -> dict | None:
    """The record of the run to resume; None if a new one can be written in `folder`."""
    if "\0" in str(folder):
        raise _error(folder, "no name may hold a null byte", "name another")
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        folder.lstat()  # Raises an OSError if the name is too long.
    existing = next(parent for parent in (folder, *folder.parents) if os.path.lexists(parent))
    if not existing.is_dir():
        raise _error(folder, f"{existing} is not a folder")
    is_there = is_named and existing == folder
    record = records.read(folder) if is_there else None
    if record and not resume:
        remedy = "go on with it by --resume, or name a new folder"
        raise _error(folder, "it holds a run already", remedy)
    if is_there and not record:
        # A run that was killed before it had its run.json leaves the lock and a part of that.
        own = {folder / LOCK, *disk.leftovers(folder / records.NAME)} if resume else set()
        if any(path not in own for path in folder.iterdir()):
            what = f"it holds files already, and no {records.NAME}"
            raise _error(folder, what, "name a new or an empty folder")
    if not (record and record["result"]) and not os.access(existing, os.W_OK | os.X_OK):
        raise _error(folder, f"no permission to write in {existing}")
    return record


def result_of(settings: Settings) -> str | None:
    """The result of the run to resume, in one line; None if it is not complete."""
    folder = Path(settings.output_dir or "")
    record = records.read(folder) if settings.resume else None
    if not record or not record["result"]:
        return None
    if not (folder / MODEL).is_dir():
        raise _error(folder, f"the run is complete, and its {MODEL}/ is gone")
    if (folder / CHECKPOINT).exists() or (folder / LOCK).exists():  # Left by a kill at its end.
        with _lock(folder):
            _remove_checkpoint(folder)
    return result_line(folder, record["result"])


def result_line(folder: Path | str, result: dict) -> str:
    """The result of a run, in one line."""
    accuracy = f"{result['accuracy']:.4f}"
    f1 = f", macro-F1 {result['macro_f1']:.4f}" if "macro_f1" in result else ""
    return f"kept: epoch {result['epoch']}, accuracy {accuracy}{f1}, in {Path(folder) / MODEL}"


@contextlib.contextmanager
def claim(settings: Settings, record: dict) -> Iterator[Claimed]:
    """Create the folder of a run, or take up the one that is there; only the main process does.

    InputError if another process has it, or if the run that is there can't be resumed.
    """
    with contextlib.ExitStack() as locks:
        yield collectives.from_main(_create_or_resume, locks, settings, record)


def _create_or_resume(locks: contextlib.ExitStack, settings: Settings, now: dict) -> Claimed:
    from training import checkpoint  # Imports torch, and --help must not wait for it.

    folder = _make(settings.output_dir)
    locks.enter_context(_lock(folder))
    was, path, values = records.read(folder), folder / CHECKPOINT, settings.as_dict()
    if was and (was["result"] or not settings.resume):
        raise _error(folder, f"the run there is {'complete' if was['result'] else 'begun'} by now")
    if was:
        old, new = was["fingerprints"], now["fingerprints"]
        same = {part: old.get(part) == new[part] for part in ("data", "model")}
        problems = records.changed_settings(values, was, folder)
        raise_any(problems or records.changed_inputs(values, same, folder))
    run = {part: (was or now)[part] for part in ("started", "settings", "fingerprints")}
    state = checkpoint.read_state(path, run) if path.exists() else checkpoint.State(run)
    for name in ("*", MODEL, f"{MODEL}/*"):  # A kill can come in the middle of the report, too.
        disk.clear_leftovers(folder / name)
    record = records.resumed(was, now, state.step) if was else now
    if was:  # Lines logged after the checkpoint will be logged again.
        disk.write_lines(folder / records.METRICS, state.history)
    disk.write_json(folder / records.NAME, record)
    return Claimed(folder, record, state)


def finish(folder: Path, record: dict, history: list[dict]) -> None:
    """Write the record with its result, when all else is on disk; then remove the checkpoint."""
    disk.write_lines(folder / records.METRICS, history)
    disk.write_json(folder / records.NAME, record)
    _remove_checkpoint(folder)


def _remove_checkpoint(folder: Path) -> None:
    with disk.write_errors(folder / CHECKPOINT):
        (folder / CHECKPOINT).unlink(missing_ok=True)


def _make(name: str | None) -> Path:
    while True:
        folder = Path(name or time.strftime("runs/%Y-%m-%d-%H%M%S"))
        with disk.write_errors(folder):
            try:
                is_new = not folder.is_dir()
                folder.mkdir(parents=True, exist_ok=bool(name))
                if is_new:
                    disk.flush_folder(folder.parent)
                return folder
            except FileExistsError:  # Two runs started together: one takes the next second.
                if name:
                    raise _error(folder, "not a folder", "name another") from None
                time.sleep(0.1)


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    # The system releases it when the process ends, however it ends.
    lock = filelock.FileLock(folder / LOCK, timeout=0.5, fallback_to_soft=False)
    with disk.write_errors(folder / LOCK):
        try:
            lock.acquire()
        except filelock.Timeout:
            remedy = f"wait for its end, or, if none is left on any machine, remove {folder / LOCK}"
            raise _error(folder, "another process is writing this run", remedy) from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            say(f"NOTE: this disk has no locks ({error.strerror}); start nothing else in {folder}")
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # The error that ends the run is reported instead.
            (folder / LOCK).unlink()
        lock.release()
