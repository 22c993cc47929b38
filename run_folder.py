"""The folder of a run: whose it is, what run.json says of it, and whether it can be gone on with.

Nothing slow is imported before it is needed, so that a wrong flag is answered at once.
"""

import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import filelock

import files
import hub
import model_files
from console import InputError, say

RECORD, METRICS, CHECKPOINT = "run.json", "metrics.jsonl", "checkpoint.pt"
MODEL, LOCK = "model", "run.lock"
PACKAGES = ("torch", "transformers", "tokenizers", "datasets", "evaluate", "numpy", "safetensors")
AUTOMATIC = (None, "auto")  # The values of a setting that the run finds out.
# These change nothing in what a run comes to, or how sums are rounded (and, with dropout, which
# random numbers a device draws); a run goes on with others.
MAY_DIFFER = {
    *("device", "micro_batch_size", "compile", "log_every", "checkpoint_minutes"),
    *("output_dir", "resume"),
}
NEEDED = {"settings", "automatic", "replaced", "fingerprints", "versions", "resumed", "result"}


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
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        folder.lstat()  # Raises where the name is too long.
    existing = next(parent for parent in (folder, *folder.parents) if os.path.lexists(parent))
    problem = None
    if not existing.is_dir():
        problem = f"{existing} is not a folder"
    elif not os.access(existing, os.W_OK | os.X_OK):
        problem = f"no permission to write in {existing}"
    elif name and existing == folder:
        record = read_record(folder)
        if resume and record:
            _check_free(folder)
            _take_stand_ins(settings, record)
            _refuse_changes(settings, record, folder, early=True)
        elif record:
            problem = "it holds a run already; go on with it by --resume, or name a new folder"
        elif _holds_more_than_leftovers(folder, resume):
            problem = f"it holds files already, and no {RECORD}; name a new or an empty folder"
    if problem:
        raise InputError(f"--output-dir {folder}: {problem}")


def result_of(settings: SimpleNamespace) -> str | None:
    """What the run to go on with has come to, in one line; None where it is not complete."""
    record = read_record(Path(settings.output_dir)) if settings.resume else None
    if not record or not record["result"]:
        return None
    _remove_checkpoint(Path(settings.output_dir))  # A kill can have come just before.
    return result_line(settings.output_dir, record["result"])


def result_line(folder: Path | str, result: dict) -> str:
    """The result of a run, in one line."""
    accuracy = f"{result['accuracy']:.4f}"
    return f"kept: epoch {result['epoch']}, accuracy {accuracy}, in {Path(folder) / MODEL}"


def read_record(folder: Path) -> dict | None:
    """The run.json in `folder`; None where there is none.

    Raises:
        InputError: it can't be read, or is none of a run.
    """
    try:
        record = json.loads((folder / RECORD).read_text("utf-8"))
        if not isinstance(record, dict) or not record.keys() >= NEEDED:
            raise ValueError
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or "this program has not written it so"
        raise InputError(f"--output-dir {folder}: {RECORD} cannot be read ({reason})") from error
    return record


def _holds_more_than_leftovers(folder: Path, resume: bool) -> bool:
    # A run that was killed before it had its run.json leaves the lock and a part of that.
    leftovers = {LOCK, RECORD + files.PARTIAL} if resume else set()
    return any(path.name not in leftovers for path in folder.iterdir())


def _check_free(folder: Path) -> None:
    if (folder / LOCK).exists():
        with _lock(folder):
            pass


def _take_stand_ins(settings: SimpleNamespace, record: dict) -> None:
    for part, default in hub.DEFAULTS.items():
        is_default = part not in settings.given and getattr(settings, part, None) == default
        if is_default and part in record["replaced"]:
            setattr(settings, part, "builtin")
    # And nothing else now: what was there at the start must be there again.
    settings.given |= hub.DEFAULTS.keys()


def _refuse_changes(
    settings: SimpleNamespace, record: dict, folder: Path, early: bool = False
) -> None:
    """Raise an InputError with a line for each setting that is not what it was.

    Args:
        early: nothing has been loaded, and what follows from that is still None or auto.
    """
    problems = []
    for name, value in _of_run(settings).items():
        was = record["settings"].get(name)
        later = early and name in record["automatic"] and value in AUTOMATIC
        if name not in MAY_DIFFER and value != was and not later:
            flag = "--" + name.replace("_", "-")
            problems.append(
                f"{flag} {_shown(value)}: the run in {folder} was started with {_shown(was)}; go "
                "on with that, or start another with a new --output-dir"
            )
    if problems:
        raise InputError(*problems)


def _of_run(settings: SimpleNamespace) -> dict:
    return {k: v for k, v in vars(settings).items() if k not in ("given", "automatic")}


def _shown(value: object) -> str:
    return " ".join(value) if isinstance(value, list) else str(value)


# ---- While it runs ----


def describe(settings: SimpleNamespace, replaced: dict, text, model: Path) -> dict:
    """What run.json says at the start: enough to repeat the run, and to see that it was.

    Args:
        text: data.LabelledText.
        model: the folder of the checkpoint that is fine-tuned.
    """
    import torch

    on_gpu = settings.device == "cuda"
    return {
        "started": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "settings": _of_run(settings),
        "automatic": settings.automatic,
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
        "resumed": [],
        "result": None,
    }


@contextlib.contextmanager
def claim(settings: SimpleNamespace, record: dict) -> Iterator[tuple[Path, dict, dict]]:
    """Make the folder of a run, or take up the one that is there, for this process alone.

    Args:
        record: of `describe`.
    Returns:
        The folder, the record of the run, and its state: new, or of its checkpoint.
    Raises:
        InputError: another process has it, or it holds a run that can't be gone on with.
    """
    import checkpoint

    folder = _make(settings.output_dir)
    with _lock(folder):
        found, path = read_record(folder), folder / CHECKPOINT
        if found and (found["result"] or not settings.resume):
            raise InputError(f"--output-dir {folder}: another process has begun or ended this run")
        state = checkpoint.new_state({part: record[part] for part in ("settings", "fingerprints")})
        if found:
            _refuse_changes(settings, found, folder)
            _refuse_other_inputs(settings, found, record, folder)
            if path.exists():
                state = checkpoint.load(path)
                _refuse_changes(settings, state["run"], path)
                _refuse_other_inputs(settings, state["run"], record, path)
            record = _note_resumption(found, record, state["step"])
            # Lines that came after the checkpoint will come again.
            files.write_lines(folder / METRICS, state["history"])
        for name in (RECORD, METRICS, CHECKPOINT, MODEL):
            files.clear_leftovers(folder / name)
        files.write_json(folder / RECORD, record)
        yield folder, record, state


def finish(folder: Path, record: dict, history: list[dict]) -> None:
    """Write the record with its result, after all else is on disk; then the checkpoint may go."""
    files.write_lines(folder / METRICS, history)
    files.write_json(folder / RECORD, record)
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
    lock = filelock.FileLock(folder / LOCK, timeout=0.5)
    with files.told(folder / LOCK):
        try:
            lock.acquire()
        except filelock.Timeout:
            raise InputError(
                f"--output-dir {folder}: another process is writing this run; wait for its end"
            ) from None
    try:
        yield
    finally:
        (folder / LOCK).unlink(missing_ok=True)
        lock.release()


def _refuse_other_inputs(settings: SimpleNamespace, was: dict, now: dict, where: Path) -> None:
    problems = []
    for part, name in (("data", settings.data), ("model", settings.model)):
        if was["fingerprints"][part] != now["fingerprints"][part]:
            problems.append(
                f"--{part} {name}: it has changed since the run in {where} was started; put it "
                "back, or start another with a new --output-dir"
            )
    if problems:
        raise InputError(*problems)


def _note_resumption(found: dict, now: dict, step: int) -> dict:
    say(f"resumed from step {step}")
    if found["replaced"]:
        say(hub.stand_in_line(found["replaced"]))
    for package, version in now["versions"].items():
        if found["versions"].get(package) != version:
            say(
                f"NOTE: {package} is {version}, and was {found['versions'].get(package)} when the "
                "run was started; numbers may differ by rounding, or more"
            )
    changed = {
        name: value
        for name, value in now["settings"].items()
        if name != "resume" and value != found["settings"].get(name)
    }
    note = {"step": step, "started": now["started"], "device": now["device"]}
    note |= {"versions": now["versions"], "changed_settings": changed}
    return found | {"resumed": [*found["resumed"], note]}
