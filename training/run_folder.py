"""The folder of a run: created, locked, resumed or refused. Only one process may write in it."""

import contextlib
import errno
import itertools
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import filelock

from inputs import encoder_files, hub
from system import collectives, console, disk
from system.console import InputError, Problem, raise_any, say
from training import record as records
from training import settings as rules
from training.settings import Settings, Values

if TYPE_CHECKING:
    from training.checkpoint import State

CHECKPOINT, MODEL, LOCK = "checkpoint.pt", encoder_files.RUN_MODEL, "run.lock"
OTHER_FOLDER = "choose a different folder"


class Claimed(NamedTuple):
    """A run whose folder this process has locked; the state is new or from the checkpoint."""

    folder: Path
    record: dict
    state: "State"


def take_up(values: Values, explicit: set[str]) -> tuple[Values, set[str]]:
    """The settings, with the values that the run to resume chose at its start, if there is one.

    `explicit` has the names of the settings that flags or keywords set. InputError if the folder
    cannot be used or holds a different run.
    """
    name, resume = values.get("output_dir"), values.get("resume", False)
    if resume and not name:
        remedy = "use --output-dir to name the folder of the run"
        raise InputError(Problem("", "--output-dir is missing", remedy, "--resume"))
    folder = Path(name or "runs").absolute()
    try:
        str(folder).encode()
        record = _find_run(folder, bool(name), resume)
    except UnicodeEncodeError:
        # The tokenizers library cannot write to such a path.
        raise _error(folder, "the name is not valid UTF-8", OTHER_FOLDER) from None
    except OSError as error:
        raise _error(folder, error.strerror, OTHER_FOLDER) from None
    if not record:
        return values, explicit
    values = records.adopt(values, explicit, record)
    problems = records.changed_settings(values, record, folder, early=True)
    # An invalid value has its own problem, and no place in a command.
    is_valid = explicit <= values.keys()
    if is_valid and record["result"] and values["epochs"] > record["settings"]["epochs"]:
        remedy = f"to train its kept model further, use `{_longer(values, explicit, record)}`"
        problems = [p._replace(remedy=remedy) if p.flag == "--epochs" else p for p in problems]
    raise_any(problems)
    if record["result"]:
        same = records.same_inputs(values, record)
        raise_any(records.changed_inputs(values, same, folder))
    elif (folder / LOCK).exists():
        # A second process is refused now, not after minutes of loading.
        with _lock(folder):
            pass
    # A name counts as explicit, because no new stand-in may replace it.
    return values, explicit | hub.DEFAULTS.keys()


def _longer(values: Values, explicit: set[str], record: dict) -> str:
    """The command that starts from the model of a complete run and trains the missing epochs."""
    first = str(Path(values["output_dir"]))
    number = next(n for n in itertools.count(2) if not os.path.lexists(f"{first}-{n}"))
    missing = values["epochs"] - record["settings"]["epochs"]
    # The name `builtin` is never a path.
    model = f"./{first}" if first == "builtin" else first
    changed = {"model": model, "epochs": missing, "output_dir": f"{first}-{number}"}
    names = explicit - {"resume"} | changed.keys() | record["replaced"].keys()
    chosen = {name: (values | changed)[name] for name in rules.ROWS if name in names}
    return f"python finetune.py {console.quoted(*rules.as_flags(chosen))}"


def _error(folder: Path, problem_text: str, remedy: str = "") -> InputError:
    return InputError(Problem(str(folder), problem_text, remedy, "--output-dir"))


def _find_run(folder: Path, is_named: bool, resume: bool) -> dict | None:
    """The record of the run to resume; None if a new run can start in `folder`."""
    if "\0" in str(folder):
        raise _error(folder, "the name contains a null byte", OTHER_FOLDER)
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        # Raises an OSError if the name is too long.
        folder.lstat()
    # On Windows a whole drive can be missing.
    existing = next(filter(os.path.lexists, (folder, *folder.parents)), folder)
    if not existing.is_dir():
        raise _error(folder, f"{existing} is not a folder", OTHER_FOLDER)
    exists = is_named and existing == folder
    record = records.read(folder) if exists else None
    if record and not resume:
        remedy = "use --resume to continue the run, or choose a new folder"
        raise _error(folder, "the folder holds a run already", remedy)
    if exists and not record:
        # A run that is killed before it has run.json leaves its lock and a partial run.json.
        own = {folder / LOCK, *disk.leftovers(folder / records.NAME)} if resume else set()
        if any(path not in own for path in folder.iterdir()):
            problem_text = f"the folder holds files, but no {records.NAME}"
            raise _error(folder, problem_text, "choose a new or an empty folder")
    if not (record and record["result"]) and not os.access(existing, os.W_OK | os.X_OK):
        raise _error(folder, f"no permission to write in {existing}", OTHER_FOLDER)
    return record


def result_of(settings: Settings) -> str | None:
    """The result of the run to resume, in one line; None if it is not complete."""
    folder = Path(settings.output_dir or "")
    record = records.read(folder) if settings.resume else None
    if not record or not record["result"]:
        return None
    if not (folder / MODEL).is_dir():
        remedy = f"restore {MODEL}/ from a copy, or choose a new folder"
        raise _error(folder, f"the run is complete, but {MODEL}/ is missing", remedy)
    # A kill at the end of the run leaves these files.
    if (folder / CHECKPOINT).exists() or (folder / LOCK).exists():
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
    """Create and lock a run's folder, or resume its run; InputError if that is not possible."""
    with contextlib.ExitStack() as locks:
        yield collectives.from_main(_create_or_resume, locks, settings, record)


def _create_or_resume(locks: contextlib.ExitStack, settings: Settings, current: dict) -> Claimed:
    # --help must not wait for torch, which this module imports.
    from training import checkpoint

    folder = _make(settings.output_dir)
    locks.enter_context(_lock(folder))
    initial, path, values = records.read(folder), folder / CHECKPOINT, settings.as_dict()
    if initial and (initial["result"] or not settings.resume):
        event = "completed" if initial["result"] else "started"
        remedy = "repeat the command" if settings.resume else "choose a new folder"
        raise _error(folder, f"another process has {event} this run", remedy)
    if initial:
        old, new = initial["fingerprints"], current["fingerprints"]
        same = {part: old.get(part) == new[part] for part in ("data", "model")}
        problems = records.changed_settings(values, initial, folder)
        raise_any(problems or records.changed_inputs(values, same, folder))
    run = {part: (initial or current)[part] for part in ("started", "settings", "fingerprints")}
    state = checkpoint.read_state(path, run) if path.exists() else checkpoint.State(run)
    # A kill during the report leaves partial files here and in the model's folder.
    for name in ("*", MODEL, f"{MODEL}/*"):
        disk.clear_leftovers(folder / name)
    record = records.resumed(initial, current, state.step) if initial else current
    if initial:
        disk.write_lines(folder / records.METRICS, state.history)
    disk.write_json(folder / records.NAME, record)
    return Claimed(folder, record, state)


def finish(folder: Path, record: dict, history: list[dict]) -> None:
    """Write the history, then the record with its result, and then remove the checkpoint."""
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
            except FileExistsError:
                if name:
                    raise _error(folder, "not a folder", OTHER_FOLDER) from None
                # Another run started in the same second, so this run takes the next second.
                time.sleep(0.1)


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    # The system releases this lock if the process is killed.
    lock = filelock.FileLock(folder / LOCK, timeout=0.5, fallback_to_soft=False)
    with disk.write_errors(folder / LOCK):
        try:
            lock.acquire()
        except filelock.Timeout:
            remedy = f"wait until it ends; if it has ended on all machines, remove {folder / LOCK}"
            raise _error(folder, "another process is writing this run", remedy) from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            say(f"NOTE: this disk has no locks ({error.strerror}); use one process in {folder}")
    try:
        yield
    finally:
        # An error here must not hide the error that ends the run. Windows removes no open file;
        # there, release() removes the lock.
        with contextlib.suppress(OSError):
            (folder / LOCK).unlink()
        lock.release()
