"""What run.json says of a run: enough to repeat it, to see that it was, and to go on with it."""

import datetime
import hashlib
import json
import math
import platform
from pathlib import Path
from types import SimpleNamespace

from inputs import encoder_files as model_files
from inputs import hub, tables
from system import collectives as processes
from system import mapped
from system.console import InputError, say

NAME = "run.json"
AUTOMATIC = (None, "auto")  # The values of a setting that the run finds out.
# These change nothing in what a run comes to, or how sums are rounded (and, with dropout, which
# random numbers a device draws); a run goes on with others.
MAY_DIFFER = {
    *("device", "micro_batch_size", "compile", "log_every", "tensorboard"),
    *("checkpoint_minutes", "output_dir", "resume"),
}
# What can be compared without loading, and under which of the fingerprints.
BY_FILES = {"data": "files", "model": "model"}
NEEDED = {"settings": dict, "automatic": list, "replaced": dict, "fingerprints": dict}
NEEDED |= {"versions": dict, "resumed": list, "result": dict | None}


def describe(settings: SimpleNamespace, replaced: dict, text, model: Path) -> dict:
    """What run.json says at the start: enough to repeat the run, and to see that it was.

    Args:
        text: data.LabelledText.
        model: the folder of the checkpoint that is fine-tuned.
    """
    import torch

    on_gpu = settings.device == "cuda"
    device = torch.cuda.get_device_name() if on_gpu else platform.processor() or "cpu"
    return {
        "started": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "settings": _of_run(settings),
        "automatic": settings.automatic,
        "replaced": replaced,
        "labels": text.labels,
        "sentences": {split: len(rows) for split, rows in text.splits.items()},
        "fingerprints": {
            "data": {split: fingerprint(rows) for split, rows in text.splits.items()},
            "model": model_files.fingerprint(model),
            "files": tables.digests(settings.data),
        },
        "device": device,
        "processes": processes.count(),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "versions": {"python": platform.python_version()} | processes.versions(),
        "code": hashlib.sha256(repr(processes.code()).encode()).hexdigest()[:12],
        "resumed": [],
        "result": None,
    }


def must_be_same(record: dict) -> dict[str, object]:
    """What each machine of a run must have found to be the same, by its name for people."""
    settings, fingerprints = record["settings"], record["fingerprints"]
    return {
        "the data": (fingerprints["data"], record["labels"]),
        "the model": (fingerprints["model"],),
        "the device": f"{settings['device']}, {settings['precision']}",
    }


def fingerprint(rows) -> str:
    """SHA-256 over what is trained on, wherever it came from, and by whatever version."""
    digest = hashlib.sha256()
    columns = rows.select_columns(["text", "text_pair", "label"]).with_format("arrow")
    for table in mapped.in_parts(columns.iter(batch_size=10_000), size=10):
        # Taken, the same rows have the same bytes; as they lie in a larger table they may not.
        for batch in table.take([*range(len(table))]).combine_chunks().to_batches():
            digest.update(batch.serialize())
    return digest.hexdigest()


def read(folder: Path) -> dict | None:
    """The run.json in `folder`; None where there is none.

    Raises:
        InputError: it can't be read, or is none of a run.
    """
    try:
        record = json.loads((folder / NAME).read_text("utf-8"))
        for name, kind in NEEDED.items():
            if not isinstance(record[name], kind):
                raise ValueError(name)
        if record["result"] and not record["result"].keys() >= {"epoch", "accuracy"}:
            raise ValueError("result")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or "not as this program writes it"
        raise InputError(
            f"--output-dir {folder}: {NAME} cannot be read ({reason}); put back a copy of it, or "
            "name a new folder"
        ) from error
    return record


def summary(record: dict) -> list[str]:
    """What is trained on what, in two lines."""
    settings, labels = record["settings"], record["labels"]
    columns = ", ".join([*settings["text_column"], settings["label_column"]])
    sizes = ", ".join(f"{size:,} {split}" for split, size in record["sentences"].items())
    classes = f"{len(labels)} classes" + (f" ({', '.join(labels)})" if len(labels) <= 10 else "")
    steps = math.ceil(record["sentences"]["train"] / settings["batch_size"])
    number = record["processes"]
    shared = f", shared by {number} processes" if number > 1 else ""
    return [
        f"{settings['model']} on {settings['data']} (columns {columns}): {sizes}; {classes}",
        f"{settings['epochs']} epochs of {steps:,} steps, learning rate "
        f"{settings['learning_rate']:g}, {settings['device']}, {settings['precision']}{shared}",
    ]


def refuse_changes(
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
        is_same = value == was or (name in BY_FILES and _is_of_files(name, value, record))
        if name not in MAY_DIFFER and not is_same and not later:
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


def refuse_other_inputs(settings: SimpleNamespace, was: dict, now: dict, folder: Path) -> None:
    """Raise an InputError with a line for data or model that is not what it was."""
    old, new = was["fingerprints"], now["fingerprints"]
    _refuse(settings, [part for part in BY_FILES if old.get(part) != new[part]], folder)


def refuse_other_files(settings: SimpleNamespace, record: dict, folder: Path) -> None:
    """As `refuse_other_inputs`, by a look at what are files here, which takes no loading."""
    seen = {part: _is_of_files(part, getattr(settings, part), record) for part in BY_FILES}
    _refuse(settings, [part for part, is_same in seen.items() if is_same is False], folder)


def _refuse(settings: SimpleNamespace, changed: list[str], folder: Path) -> None:
    if changed:
        raise InputError(
            *(
                f"--{part} {getattr(settings, part)}: it has changed since the run in {folder} was "
                "started; give it as it was, or start another with a new --output-dir"
                for part in changed
            )
        )


def _is_of_files(part: str, name: str, record: dict) -> bool | None:
    """Whether the data or the model `name` has the recorded files; None where it has none here."""
    if part == "model":
        is_folder = name != "builtin" and Path(name).is_dir()
        seen = model_files.fingerprint(Path(name)) if is_folder else None
    else:
        seen = tables.digests(name)
    return seen == record["fingerprints"].get(BY_FILES[part]) if seen else None


def resumed(found: dict, now: dict, step: int) -> dict:
    """The record `found` of a run that goes on, with a note of how; and that is said, too.

    Args:
        now: what `describe` says of the run now.
    """
    say(f"resumed from step {step}")
    if found["replaced"]:
        say(hub.stand_in_line(found["replaced"]))
    was, conditions = _conditions(found), _conditions(now)
    if differing := [name for name in conditions if conditions[name] != was[name]]:
        shown = ", ".join(f"{name} {was[name]}, now {conditions[name]}" for name in differing)
        say(f"NOTE: not as when the run was started: {shown}; numbers may differ")
    changed = {
        name: value
        for name, value in now["settings"].items()
        if name != "resume" and value != found["settings"].get(name)
    }
    note = {"step": step, "started": now["started"]}
    note |= {"conditions": conditions, "changed_settings": changed}
    return found | {"resumed": [*found["resumed"], note]}


def _conditions(record: dict) -> dict:
    """What numbers can depend on in their last digits."""
    names = ("device", "processes", "threads", "cpu_capability", "code")
    return {name: record.get(name) for name in names} | {
        name: record["versions"].get(name) for name in ("python", *processes.PACKAGES)
    }
