"""run.json: enough to repeat a run, to see that it was repeated, and to continue it."""

import datetime
import hashlib
import json
import math
import platform
from collections.abc import Iterable
from pathlib import Path

from inputs import encoder_files, hub, tables
from system import ranks, rendezvous
from system.console import InputError, Problem, one_line, say
from training import settings as rules
from training.settings import AUTOMATIC, Settings, Values

NAME, METRICS = "run.json", "metrics.jsonl"
KINDS = {"settings": dict, "asked": dict, "replaced": dict, "fingerprints": dict}
KINDS |= {"versions": dict, "resumed": list, "result": dict | None}


def describe(settings: Settings, requested: Settings, replaced: dict, text, model: Path) -> dict:
    """The content of run.json at the start of a run.

    `settings` are resolved, `requested` as the user gave them; `builtin` stands in for `replaced`;
    `text` is a data.LabelledText; `model` is the folder of the checkpoint that is fine-tuned.
    """
    import torch  # Here, because --help and a wrong flag must not wait for it.

    on_gpu = settings.device == "cuda"
    return {
        "started": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "settings": settings.as_dict(),
        "asked": requested.as_dict(),
        "replaced": replaced,
        "labels": text.labels,
        "sentences": {split: len(rows) for split, rows in text.splits.items()},
        "fingerprints": {
            "data": {split: fingerprint(rows) for split, rows in text.splits.items()},
            "model": encoder_files.fingerprint(model),
            "files": tables.digests(settings.data),
        },
        "device": torch.cuda.get_device_name() if on_gpu else platform.processor() or "cpu",
        "processes": ranks.world_size(),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "versions": {"python": platform.python_version()} | rendezvous.versions(),
        "code": hashlib.sha256(repr(rendezvous.code()).encode()).hexdigest()[:12],
        "resumed": [],
        "result": None,
    }


def fingerprint(rows) -> str:
    """SHA-256 over the rows of a datasets.Dataset, however they lie in memory."""
    digest = hashlib.sha256()
    columns = rows.select_columns(["text", "text_pair", "label"]).with_format("arrow")
    for table in columns.iter(batch_size=10_000):
        # Copied by take(), equal rows have equal bytes; as a slice of a larger table they may not.
        for batch in table.take([*range(len(table))]).combine_chunks().to_batches():
            digest.update(batch.serialize())
    return digest.hexdigest()


def must_be_same(record: dict) -> dict[str, object]:
    """The values that must be equal on all machines of a run, by readable names."""
    settings, fingerprints = record["settings"], record["fingerprints"]
    return {
        "the data": (fingerprints["data"], record["labels"]),
        "the model": (fingerprints["model"],),
        "the device": f"{settings['device']}, {settings['precision']}",
    }


def summary(record: dict) -> list[str]:
    """Model, data and size of the run, in two lines."""
    settings, labels = record["settings"], record["labels"]
    columns = ", ".join([*settings["text_column"], settings["label_column"]])
    sizes = ", ".join(f"{size:,} {split}" for split, size in record["sentences"].items())
    classes = f"{len(labels)} classes" + (f" ({', '.join(labels)})" if len(labels) <= 10 else "")
    steps = math.ceil(record["sentences"]["train"] / settings["batch_size"])
    epochs, number = settings["epochs"], record["processes"]
    shared = f", shared by {number} processes" if number > 1 else ""
    return [
        f"{settings['model']} on {settings['data']} (columns {columns}): {sizes}; {classes}",
        f"{epochs} epoch{'s' * (epochs != 1)} of {steps:,} steps, learning rate "
        f"{settings['learning_rate']:g}, {settings['device']}, {settings['precision']}{shared}",
    ]


def read(folder: Path) -> dict | None:
    """The run.json in `folder`; None if there is none; InputError if it can't be read."""
    try:
        record = json.loads((folder / NAME).read_text("utf-8"))
        if "automatic" in record:  # An earlier version noted only which settings were automatic.
            record["asked"] = record["settings"] | dict.fromkeys(record["automatic"])
        for name, kind in KINDS.items():
            if not isinstance(record[name], kind):
                raise ValueError(name)
        if record["result"] and not record["result"].keys() >= {"epoch", "accuracy"}:
            raise ValueError("result")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or "not as this program writes it"
        what, remedy = f"{NAME} cannot be read ({reason})", "put back a copy of it, or"
        raise InputError(
            Problem(str(folder), what, f"{remedy} name a new folder", "--output-dir")
        ) from error
    return record


def read_history(folder: Path) -> list[dict]:
    """The lines of metrics.jsonl, without one that is still being written; or an InputError."""
    path = folder / METRICS
    try:
        *lines, _ = path.read_text("utf-8").split("\n") if path.exists() else [""]
        return [json.loads(line) for line in lines]
    except (OSError, ValueError) as error:
        raise InputError(Problem(str(path), f"cannot be read ({one_line(error)})")) from error


def adopt(values: Values, explicit: Iterable[str], record: dict) -> Values:
    """The settings `values` with the stand-ins and the precision that the run was started with."""
    parts = hub.DEFAULTS.keys() & record["replaced"].keys() - set(explicit)
    adopted = {part: "builtin" for part in parts if values.get(part) == hub.DEFAULTS[part]}
    if record["asked"].get("precision") in AUTOMATIC and values.get("precision") == "auto":
        adopted["precision"] = record["settings"]["precision"]
    return values | adopted


def changed_settings(
    values: Values, record: dict, folder: Path, early: bool = False
) -> list[Problem]:
    """A problem for each setting that affects the result and is not as the run was started.

    If `early`, nothing has been loaded, and automatic values are not known yet.
    """
    old, problems = dict.fromkeys(values) | record["settings"], []
    changed = {name: value for name, value in values.items() if value != old[name]}
    same = same_inputs(changed, record)  # Another spelling of the same files is no change.
    for name, value in changed.items():
        is_later = early and value in AUTOMATIC and record["asked"].get(name) in AUTOMATIC
        if rules.affects(name) == rules.RESULT and not is_later and not same.get(name):
            shown, was = (" ".join(v) if isinstance(v, list) else v for v in (value, old[name]))
            what = f"the run in {folder} was started with {was}"
            remedy = "go on with that, or start another with a new --output-dir"
            problems.append(Problem(str(shown), what, remedy, rules.flag(name)))
    return problems


def same_inputs(values: Values, record: dict) -> dict[str, bool]:
    """For data and model, if they are files here: whether they are those of the record."""
    prints, here = record["fingerprints"], {}
    if "data" in values and (digests := tables.digests(values["data"])):
        here["data"] = digests == prints.get("files")
    if values.get("model", "builtin") != "builtin" and Path(values["model"]).is_dir():
        here["model"] = encoder_files.fingerprint(Path(values["model"])) == prints.get("model")
    return here


def changed_inputs(values: Values, same: dict[str, bool], folder: Path) -> list[Problem]:
    """A problem for data or model if it is not the `same` as when the run was started."""
    what = f"it has changed since the run in {folder} was started"
    remedy = "give it as it was, or start another with a new --output-dir"
    changed = [part for part in same if not same[part]]
    return [Problem(str(values[part]), what, remedy, rules.flag(part)) for part in changed]


def resumed(was: dict, now: dict, step: int) -> dict:
    """The record `was` of a run that is resumed `now`, with a note of how, also printed."""
    say(f"resumed from step {step}")
    if was["replaced"]:
        say(hub.stand_in_line(was["replaced"]))
    old, new = _conditions(was), _conditions(now)
    if differing := [f"{k} {old[k]}, now {new[k]}" for k in new if new[k] != old[k]]:
        shown = ", ".join(differing)
        say(f"NOTE: not as when the run was started: {shown}; numbers may differ")
    changed = {k: v for k, v in now["settings"].items() if v != was["settings"].get(k)}
    changed.pop("resume", None)
    note = {"step": step, "started": now["started"]}
    note |= {"conditions": new, "changed_settings": changed}
    return was | {"resumed": [*was["resumed"], note]}


def _conditions(record: dict) -> dict:
    """The conditions on which the last digits of numbers depend."""
    names = ("device", "processes", "threads", "cpu_capability", "code")
    versions = {name: record["versions"].get(name) for name in ("python", *rendezvous.PACKAGES)}
    return {name: record.get(name) for name in names} | versions
