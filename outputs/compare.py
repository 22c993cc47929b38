"""Several runs → a table and a picture that tell them apart."""

import hashlib
import json
import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from outputs import plots
from training import settings as rules


class Run(NamedTuple):
    """A run, read from its folder."""

    folder: Path
    record: dict
    history: list[dict]

    def score(self, name: str) -> float | None:
        """The kept epoch's score, or the best so far if the run is not complete."""
        if self.record["result"]:
            return self.record["result"].get(name)
        return max((x[f"eval_{name}"] for x in self.history if f"eval_{name}" in x), default=None)


def _compared(record: dict) -> dict[str, object]:
    """The settings in which repetitions with other seeds agree."""
    return {
        name: value
        for name, value in record["settings"].items()
        if rules.affects(name) != rules.NOTHING and name != "seed" and value is not None
    }


def _contents(record: dict) -> dict[str, str]:
    """A hash of the content of data and model, whose names may be other paths of the same files.

    For data it is that of the files, because the held-out part can depend on the seed. A data set
    on the Hub is known by its name.
    """
    prints, settings = record["fingerprints"], record["settings"]
    contents = {"data": prints.get("files"), "model": prints.get("model")}
    texts = {k: json.dumps(v or settings[k], sort_keys=True) for k, v in contents.items()}
    return {part: hashlib.sha256(text.encode()).hexdigest() for part, text in texts.items()}


def _key(run: Run) -> str:
    return json.dumps(_compared(run.record) | _contents(run.record), sort_keys=True)


def _groups(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs that differ at most in the seed together, best mean accuracy first."""
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
    differing = {}
    for name in dict.fromkeys(name for settings in compared for name in settings):
        values = [_shown(settings.get(name)) for settings in compared]
        if name in ("data", "model"):
            contents = [_contents(run.record)[name] for run in runs]
            if len({*zip(values, contents, strict=True)}) > len(set(values)):
                values = [f"{v} {c[:6]}" for v, c in zip(values, contents, strict=True)]
            elif len(set(contents)) == 1:
                continue
        if len(set(values)) > 1:
            differing[name] = values
    return differing


def _shown(value: object) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else "–" if value is None else str(value)


def _spread(group: Sequence[Run], values: Sequence[float | None], digits: int) -> str:
    """The mean of the runs' values, ± their standard deviation if there are several seeds."""
    values = [value for value in values if value is not None]
    if not values:
        return "–"
    mean = f"{statistics.mean(values):.{digits}f}"
    seeds = {run.record["settings"]["seed"] for run in group}
    return mean if len(seeds) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def table(runs: Sequence[Run]) -> str:
    """One line for all seeds of the same settings, best first: differences, scores, time."""
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
    """Each run's folder, relative to the folder that holds all of them."""
    top = os.path.commonpath([run.folder.absolute().parent for run in runs])
    return {run.folder: str(run.folder.absolute().relative_to(top)) for run in runs}


def picture(path: Path, runs: Sequence[Run]) -> None:
    """Draw the curves of all runs, the best ones first, as the file `path`."""
    names, differing, curves = _names(runs), _differing(runs), []
    for run in (run for group in _groups(runs) for run in group):
        score, number = run.score("accuracy"), runs.index(run)
        parts = [f"{name} {values[number]}" for name, values in differing.items()]
        parts.append("no accuracy yet" if score is None else f"accuracy {score:.4f}")
        curves.append((f"{names[run.folder]}: {', '.join(parts)}", run.history))
    plots.comparison(path, curves)
