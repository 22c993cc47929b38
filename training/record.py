"""run.json: the record of a run, with which a resumed or repeated run is compared."""

import contextlib
import datetime
import hashlib
import json
import math
import platform
from collections.abc import Iterable, Iterator
from pathlib import Path

from inputs import encoder_files, hub, tables
from system import ranks, rendezvous
from system.console import InputError, Problem, one_line, plural, say
from training import settings as rules
from training.settings import AUTOMATIC, Settings, Values

NAME, METRICS = encoder_files.RUN_RECORD, "metrics.jsonl"
KINDS = {"settings": dict, "asked": dict, "replaced": dict, "fingerprints": dict}
KINDS |= {"versions": dict, "resumed": list, "result": dict | None}
# Classes whose shares are printed.
MAX_LISTED = 10


def describe(settings: Settings, requested: Settings, replaced: dict, text, model: Path) -> dict:
    """The content of run.json at the start of a run.

    `settings` are resolved, `requested` are from the user. `builtin` stands in for `replaced`.
    `text` is a data.LabelledText. `model` is the folder of the checkpoint to fine-tune.
    """
    # --help and a wrong flag must not wait for this import.
    import torch

    from system import speed

    on_gpu = settings.device == "cuda"
    return {
        "started": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "settings": settings.as_dict(),
        "asked": requested.as_dict(),
        "replaced": replaced,
        "labels": text.labels,
        "sentences": {split: len(rows) for split, rows in text.splits.items()},
        "reading": text.facts,
        "fingerprints": {
            "data": {split: fingerprint(rows) for split, rows in text.splits.items()},
            "model": encoder_files.fingerprint(model),
            "files": tables.digests(settings.data),
        },
        "device": torch.cuda.get_device_name() if on_gpu else platform.processor() or "cpu",
        "processes": ranks.world_size(),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "linear_library": speed.linear_library(),
        "versions": {"python": platform.python_version()} | rendezvous.versions(),
        "code": hashlib.sha256(repr(rendezvous.code()).encode()).hexdigest()[:12],
        "resumed": [],
        "result": None,
    }


def fingerprint(rows) -> str:
    """SHA-256 over the rows of a datasets.Dataset, independent of their memory layout."""
    digest = hashlib.sha256()
    columns = rows.select_columns(["text", "text_pair", "label"]).with_format("arrow")
    for table in columns.iter(batch_size=10_000):
        # take() copies the rows: slices of larger tables may store equal rows in different bytes.
        for batch in table.take([*range(len(table))]).combine_chunks().to_batches():
            digest.update(batch.serialize())
    return digest.hexdigest()


def must_be_same(record: dict) -> dict[str, object]:
    """The values that must be equal on all machines of a run, by their names in messages."""
    settings, fingerprints = record["settings"], record["fingerprints"]
    return {
        "the data": (fingerprints["data"], record["labels"]),
        "the model": (fingerprints["model"],),
        "the device": f"{settings['device']}, {settings['precision']}",
    }


def summary(record: dict) -> list[str]:
    """Model, data, classes and size of the run, in three lines."""
    settings, labels, counts = record["settings"], record["labels"], record["reading"]["classes"]
    columns = ", ".join([*settings["text_column"], settings["label_column"]])
    sizes = ", ".join(f"{size:,} {split}" for split, size in record["sentences"].items())
    shares = [
        f"{' '.join(label.split())} {100 * count / sum(counts):.3g} %"
        for count, label in sorted(zip(counts, labels, strict=True), key=lambda pair: -pair[0])
    ]
    if len(shares) > MAX_LISTED:
        shares = [*shares[:3], "…", *shares[-3:]]
    steps = math.ceil(record["sentences"]["train"] / settings["batch_size"])
    epochs, processes = settings["epochs"], record["processes"]
    shared = f", shared by {processes} processes" if processes > 1 else ""
    return [
        f"{settings['model']} on {settings['data']} (columns {columns}): {sizes}",
        f"{len(labels)} classes: {', '.join(shares)}",
        f"{epochs} {plural('epoch', epochs)} of {steps:,} {plural('step', steps)}, learning rate "
        f"{settings['learning_rate']:g}, {settings['device']}, {settings['precision']}{shared}",
    ]


def origin_notes(record: dict) -> Iterator[str]:
    """Notes on the run that the new run's model comes from, if there is one."""
    name, new = record["settings"]["model"], record["fingerprints"]
    if not encoder_files.is_run(name):
        return
    earlier = read(Path(name))
    if not earlier["result"]:
        yield f"NOTE: {name}: the run is not complete; using the epoch kept so far"
    if earlier["labels"] != record["labels"]:
        listed = ", ".join(map(repr, earlier["labels"][:MAX_LISTED]))
        yield f"NOTE: the labels of {name} are different ({listed}), so its head is not used"
    old, seed = earlier["fingerprints"], earlier["settings"]["seed"]
    has_same_files = bool(new["files"]) and old.get("files") == new["files"]
    if has_same_files and old["data"]["validation"] != new["data"]["validation"]:
        yield (
            f"NOTE: the model of {name} was trained on sentences of this validation data, which "
            f"flatter the score; use --seed {seed}"
        )


def read(folder: Path) -> dict | None:
    """The record in `folder`, or None if it has no run.json; InputError if run.json is damaged."""
    try:
        record = json.loads((folder / NAME).read_text("utf-8"))
        # An earlier version recorded only the names of automatic settings.
        if "automatic" in record:
            record["asked"] = record["settings"] | dict.fromkeys(record["automatic"])
        for name, kind in KINDS.items():
            if not isinstance(record[name], kind):
                raise ValueError(name)
        if record["result"] and not record["result"].keys() >= {"epoch", "accuracy"}:
            raise ValueError("result")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or "unexpected content"
        problem_text = f"{NAME} cannot be read ({reason})"
        remedy = "restore the file from a copy, or choose a new folder"
        raise InputError(Problem(str(folder), problem_text, remedy, "--output-dir")) from error
    return record


@contextlib.contextmanager
def damaged(where: Path | str) -> Iterator[None]:
    """Raise an InputError if run.json or metrics.jsonl lacks an entry or has a wrong type."""
    try:
        yield
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        cause = f"{type(error).__name__}: {one_line(error)[:200]}"
        problem_text = f"{NAME} or {METRICS} is damaged ({cause})"
        raise InputError(Problem(str(where), problem_text, "restore a copy")) from error


def read_history(folder: Path) -> list[dict]:
    """The lines of metrics.jsonl except for an incomplete last line; InputError if damaged."""
    path = folder / METRICS
    try:
        *lines, _ = path.read_text("utf-8").split("\n") if path.exists() else [""]
        return [json.loads(line) for line in lines]
    except (OSError, ValueError) as error:
        raise InputError(Problem(str(path), f"cannot be read ({one_line(error)})")) from error


def adopt(values: Values, explicit: Iterable[str], record: dict) -> Values:
    """The settings `values`, with stand-ins, precision and learning rate of the run to resume."""
    parts = hub.DEFAULTS.keys() & record["replaced"].keys() - set(explicit)
    adopted = {part: "builtin" for part in parts if values.get(part) == hub.DEFAULTS[part]}
    # Another device, or a later version of this program, would choose different values.
    for name in ("precision", "learning_rate"):
        if values.get(name) in AUTOMATIC and record["asked"].get(name) in AUTOMATIC:
            adopted[name] = record["settings"][name]
    return values | adopted


def changed_settings(
    values: Values, record: dict, folder: Path, early: bool = False
) -> list[Problem]:
    """A problem for each changed setting that affects the result.

    If `early`, nothing is loaded yet, so automatic values are unknown.
    """
    old, problems = dict.fromkeys(values) | record["settings"], []
    changed = {name: value for name, value in values.items() if value != old[name]}
    # A different spelling of the same files is no change.
    same = same_inputs(changed, record)
    for name, value in changed.items():
        # A column is named as in the file, in whatever case it was asked for.
        is_same = (early and value == record["asked"].get(name)) or same.get(name)
        is_unknown = early and value in AUTOMATIC and record["asked"].get(name) in AUTOMATIC
        if rules.affects(name) == rules.RESULT and not is_unknown and not is_same:
            new, initial = (" ".join(v) if isinstance(v, list) else v for v in (value, old[name]))
            problem_text = f"the run in {folder} was started with {initial}"
            remedy = "use that value, or choose a new --output-dir"
            problems.append(Problem(str(new), problem_text, remedy, rules.flag(name)))
    return problems


def same_inputs(values: Values, record: dict) -> dict[str, bool]:
    """For data and model, if they are local files: True if their content is that of `record`."""
    fingerprints, same = record["fingerprints"], {}
    if "data" in values and (digests := tables.digests(values["data"])):
        same["data"] = digests == fingerprints.get("files")
    if checkpoint := encoder_files.local_folder(values.get("model", "builtin")):
        same["model"] = encoder_files.fingerprint(checkpoint) == fingerprints.get("model")
    return same


def changed_inputs(values: Values, same: dict[str, bool], folder: Path) -> list[Problem]:
    """A problem for each of data and model that is not the `same` as at the start of the run."""
    problem_text = f"content changed since the run in {folder} was started"
    remedy = "restore the content, or choose a new --output-dir"
    changed = [part for part in same if not same[part]]
    return [Problem(str(values[part]), problem_text, remedy, rules.flag(part)) for part in changed]


def resumed(initial: dict, current: dict, step: int) -> dict:
    """The `initial` record with an entry for the `current` attempt; prints changed conditions."""
    say(f"resumed from step {step}")
    if initial["replaced"]:
        say(hub.stand_in_line(initial["replaced"]))
    old, new = _conditions(initial), _conditions(current)
    if changes := [f"{k} {old[k]}, now {new[k]}" for k in new if new[k] != old[k]]:
        say(f"NOTE: different from the start of the run: {', '.join(changes)}; numbers may differ")
    changed = {k: v for k, v in current["settings"].items() if v != initial["settings"].get(k)}
    changed.pop("resume", None)
    entry = {"step": step, "started": current["started"]}
    entry |= {"conditions": new, "changed_settings": changed}
    return initial | {"resumed": [*initial["resumed"], entry]}


def _conditions(record: dict) -> dict:
    """The conditions that determine the rounding of a run's numbers."""
    names = ("device", "processes", "threads", "cpu_capability", "linear_library", "code")
    versions = {name: record["versions"].get(name) for name in ("python", *rendezvous.PACKAGES)}
    return {name: record.get(name) for name in names} | versions
