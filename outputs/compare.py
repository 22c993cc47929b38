"""Several runs in, a table and a picture that tell them apart out."""

import hashlib
import json
import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

# Runs that differ in these alone are repetitions of one another.
NOT_COMPARED = ("seed", "output_dir", "resume", "log_every", "checkpoint_minutes", "tensorboard")


class Run(NamedTuple):
    """A run, as its folder tells of it."""

    folder: Path
    record: dict
    history: list[dict]

    def score(self, name: str) -> float | None:
        """The kept epoch's score; of a run that is not complete, the best so far."""
        if self.record["result"]:
            return self.record["result"].get(name)
        return max((x[f"eval_{name}"] for x in self.history if f"eval_{name}" in x), default=None)


def _compared(record: dict) -> dict[str, object]:
    # A setting that an earlier version did not have is one that is off.
    settings = record["settings"].items()
    return {k: v for k, v in settings if k not in NOT_COMPARED and v is not None}


def _contents(record: dict) -> dict[str, str]:
    """What is behind the names of data and model, which may be other paths, or other files now.

    Of the data it is that of the files: which of it is trained on, and which held out, can follow
    from the seed. A data set of the Hub is known by its name.
    """
    found, settings = record["fingerprints"], record["settings"]
    contents = {"data": found.get("files"), "model": found.get("model")}
    texts = {k: json.dumps(v or settings[k], sort_keys=True) for k, v in contents.items()}
    return {part: hashlib.sha256(text.encode()).hexdigest() for part, text in texts.items()}


def _key(run: Run) -> str:
    return json.dumps(_compared(run.record) | _contents(run.record), sort_keys=True)


def _groups(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs of the same settings but for the seed together, best mean accuracy first."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(f"{_key(run)} {bool(run.record['result'])}", []).append(run)

    def rank(group: list[Run]) -> tuple[bool, float]:
        scores = [score for run in group if (score := run.score("accuracy")) is not None]
        return not group[0].record["result"], -statistics.mean(scores or [0])

    return sorted(groups.values(), key=rank)


def _differing(runs: Sequence[Run]) -> dict[str, list[str]]:
    """The settings that are not the same in all runs, and each run's value."""
    compared = [_compared(run.record) for run in runs]
    found = {}
    for name in dict.fromkeys(name for settings in compared for name in settings):
        values = [_shown(settings.get(name)) for settings in compared]
        if name in ("data", "model"):
            contents = [_contents(run.record)[name] for run in runs]
            if len({*zip(values, contents, strict=True)}) > len(set(values)):
                values = [f"{v} {c[:6]}" for v, c in zip(values, contents, strict=True)]
            elif len(set(contents)) == 1:
                continue
        if len(set(values)) > 1:
            found[name] = values
    return found


def _shown(value: object) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else "–" if value is None else str(value)


def _spread(group: Sequence[Run], values: Sequence[float | None], digits: int) -> str:
    """The mean of the runs' values, ± their standard deviation where the seeds are several."""
    values = [value for value in values if value is not None]
    if not values:
        return "–"
    mean = f"{statistics.mean(values):.{digits}f}"
    seeds = {run.record["settings"]["seed"] for run in group}
    return mean if len(seeds) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def table(runs: Sequence[Run]) -> str:
    """A line for the runs of the same settings, best first: what differs, scores, and time."""
    names, differing = _names(runs), _differing(runs)
    scores = ["accuracy"]
    if any(run.score("macro_f1") is not None for run in runs):
        scores.append("macro_f1")
    rows = [["run", *differing, "seeds", *scores, "minutes", ""]]
    for group in _groups(runs):
        first = runs.index(group[0])
        seconds = [(run.record["result"] or {}).get("seconds") for run in group]
        rows.append(
            [
                ", ".join(names[run.folder] for run in group),
                *(values[first] for values in differing.values()),
                " ".join(str(run.record["settings"]["seed"]) for run in group),
                *(_spread(group, [run.score(name) for run in group], 4) for name in scores),
                _spread(group, [value and value / 60 for value in seconds], 1),
                "" if group[0].record["result"] else "not complete",
            ]
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = (map(str.ljust, row, widths) for row in rows)
    return "\n".join("  ".join(row).rstrip() for row in padded)


def _names(runs: Sequence[Run]) -> dict[Path, str]:
    """Each run's folder as seen from the one in which they all lie."""
    top = os.path.commonpath([run.folder.absolute().parent for run in runs])
    return {run.folder: str(run.folder.absolute().relative_to(top)) for run in runs}


def picture(path: Path, runs: Sequence[Run]) -> None:
    """Draw the curves of all runs, the best ones first, as the file `path`."""
    from outputs import plots as pictures

    names, differing, curves = _names(runs), _differing(runs), []
    for run in (run for group in _groups(runs) for run in group):
        score, number = run.score("accuracy"), runs.index(run)
        what = [f"{name} {values[number]}" for name, values in differing.items()]
        what.append("no accuracy yet" if score is None else f"accuracy {score:.4f}")
        curves.append((f"{names[run.folder]}: {', '.join(what)}", run.history))
    pictures.comparison(path, curves)
