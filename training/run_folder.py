"""The folder of a run: begun or gone on with by one process at a time, and left whole.

Nothing slow is imported before it is needed, so that a wrong flag is answered at once.
"""

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import filelock

from inputs import hub
from system import disk as files
from system.console import InputError, say
from training import record as records

METRICS, CHECKPOINT, MODEL, LOCK = "metrics.jsonl", "checkpoint.pt", "model", "run.lock"


# ---- Before anything is loaded ----


def check(settings: SimpleNamespace) -> None:
    """Refuse a folder in which the run could not be written, as far as shows before it is tried.

    Where a run is there to go on with, its settings are compared with these, and the stand-ins that
    it was started with are taken again.
    """
    name, resume = getattr(settings, "output_dir", None), getattr(settings, "resume", False)
    if resume and not name:
        raise InputError("--resume: name the folder of the run with --output-dir")
    folder = Path(name or "runs").absolute()
    if "\0" in str(folder):
        raise InputError("--output-dir: no name may hold a null byte; name another")
    try:
        str(folder).encode()
        problem = _problem_with(folder, bool(name), settings, resume)
    except UnicodeEncodeError:  # Tokenizers could not write there.
        problem = "not a name in UTF-8; name another"
    except OSError as error:  # A name too long, a folder closed to us.
        problem = f"{error.strerror}; name another"
    if problem:
        raise InputError(f"--output-dir {folder}: {problem}")


def _problem_with(
    folder: Path, is_named: bool, settings: SimpleNamespace, resume: bool
) -> str | None:
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        folder.lstat()  # Raises where the name is too long.
    existing = next(parent for parent in (folder, *folder.parents) if os.path.lexists(parent))
    if not existing.is_dir():
        return f"{existing} is not a folder"
    is_there = is_named and existing == folder
    record = records.read(folder) if is_there else None
    if record and not resume:
        return "it holds a run already; go on with it by --resume, or name a new folder"
    if is_there and not record and _holds_more_than_leftovers(folder, resume):
        return f"it holds files already, and no {records.NAME}; name a new or an empty folder"
    if record:
        _check_run(settings, record, folder)
        if record["result"]:
            return None
    if not os.access(existing, os.W_OK | os.X_OK):
        return f"no permission to write in {existing}"
    return None


def _check_run(settings: SimpleNamespace, record: dict, folder: Path) -> None:
    _take_what_was_taken(settings, record)
    records.refuse_changes(settings, record, folder, early=True)
    if not record["result"] and (folder / LOCK).exists():
        with _lock(folder):  # Now, and not after minutes of loading.
            pass
    if record["result"] and vars(settings).keys() >= {"data", "model"}:
        records.refuse_other_files(settings, record, folder)


def result_of(settings: SimpleNamespace) -> str | None:
    """What the run to go on with has come to, in one line; None where it is not complete."""
    folder = Path(settings.output_dir or "")
    record = records.read(folder) if settings.resume else None
    if not record or not record["result"]:
        return None
    if not (folder / MODEL).is_dir():
        raise InputError(f"--output-dir {folder}: the run is complete, and its {MODEL}/ is gone")
    if (folder / CHECKPOINT).exists() or (folder / LOCK).exists():  # A kill came just before.
        with _lock(folder):
            _remove_checkpoint(folder)
    return result_line(folder, record["result"])


def result_line(folder: Path | str, result: dict) -> str:
    """The result of a run, in one line."""
    accuracy = f"{result['accuracy']:.4f}"
    f1 = f", macro-F1 {result['macro_f1']:.4f}" if "macro_f1" in result else ""
    return f"kept: epoch {result['epoch']}, accuracy {accuracy}{f1}, in {Path(folder) / MODEL}"


def _holds_more_than_leftovers(folder: Path, resume: bool) -> bool:
    # A run that was killed before it had its run.json leaves the lock and a part of that.
    leftovers = {LOCK, records.NAME + files.PARTIAL} if resume else set()
    return any(path.name not in leftovers for path in folder.iterdir())


def _take_what_was_taken(settings: SimpleNamespace, record: dict) -> None:
    """What depends on where a run was started: stand-ins, and the precision of the device."""
    for part, default in hub.DEFAULTS.items():
        is_default = part not in settings.given and getattr(settings, part, None) == default
        if is_default and part in record["replaced"]:
            setattr(settings, part, "builtin")
    # And nothing else now: what was there at the start must be there again.
    settings.given |= hub.DEFAULTS.keys()
    if "precision" in record["automatic"] and getattr(settings, "precision", None) == "auto":
        settings.precision = record["settings"]["precision"]


# ---- While it runs ----


@contextlib.contextmanager
def claim(settings: SimpleNamespace, record: dict) -> Iterator[tuple[Path, dict, dict]]:
    """Make the folder of a run, or take up the one that is there, for this process alone.

    Args:
        record: of `records.describe`.
    Yields:
        The folder, the record of the run, and its state: new, or of its checkpoint.
    Raises:
        InputError: another process has it, or it holds a run that can't be gone on with.
    """
    from training import checkpoint

    folder = _make(settings.output_dir)
    with _lock(folder):
        found, path = records.read(folder), folder / CHECKPOINT
        if found and (found["result"] or not settings.resume):
            what = "complete" if found["result"] else "begun"
            raise InputError(f"--output-dir {folder}: the run there is {what} by now")
        if found:
            records.refuse_changes(settings, found, folder)
            records.refuse_other_inputs(settings, found, record, folder)
        run = {part: (found or record)[part] for part in ("started", "settings", "fingerprints")}
        state = checkpoint.load(path, run) if path.exists() else checkpoint.new_state(run)
        for name in (records.NAME, METRICS, CHECKPOINT, MODEL):
            files.clear_leftovers(folder / name)
        if found:
            record = records.resumed(found, record, state["step"])
            # Lines that came after the checkpoint will come again.
            files.write_lines(folder / METRICS, state["history"])
        files.write_json(folder / records.NAME, record)
        yield folder, record, state


def finish(folder: Path, record: dict, history: list[dict]) -> None:
    """Write the record with its result, after all else is on disk; then the checkpoint may go."""
    files.write_lines(folder / METRICS, history)
    files.write_json(folder / records.NAME, record)
    _remove_checkpoint(folder)


def _remove_checkpoint(folder: Path) -> None:
    with files.told(folder / CHECKPOINT):
        (folder / CHECKPOINT).unlink(missing_ok=True)


def _make(name: str | None) -> Path:
    while True:
        folder = Path(name or time.strftime("runs/%Y-%m-%d-%H%M%S"))
        with files.told(folder):
            try:
                is_new = not folder.is_dir()
                folder.mkdir(parents=True, exist_ok=bool(name))
                if is_new:
                    files.flush_folder(folder.parent)
                return folder
            except FileExistsError:  # Of two runs started together one takes the next second.
                if name:
                    raise InputError(f"--output-dir {folder}: not a folder; name another") from None
                time.sleep(0.1)


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    # The system lets go of it when the process ends, however it ends.
    lock = filelock.FileLock(folder / LOCK, timeout=0.5, fallback_to_soft=False)
    with files.told(folder / LOCK):
        try:
            lock.acquire()
        except filelock.Timeout:
            raise InputError(
                f"--output-dir {folder}: another process is writing this run; wait for its end, "
                f"or, if none is left on any machine, remove {folder / LOCK}"
            ) from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            say(f"NOTE: this disk has no locks ({error.strerror}); start nothing else in {folder}")
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # Where it can't be, what has gone wrong is told.
            (folder / LOCK).unlink()
        lock.release()
