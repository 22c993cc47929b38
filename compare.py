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


def common_folder(folders: Sequence[Path]) -> Path:
    """The folder in which the folders lie."""
    return Path(os.path.commonpath([folder.absolute().parent for folder in folders]))


def _compared(record: dict) -> dict[str, object]:
    # A setting that an earlier version did not have is one that is off.
    settings = record["settings"].items()
    found = {k: v for k, v in settings if k not in NOT_COMPARED and v is not None}
    # Under one name there may be other content. Of the data it is that of the files: which of it is
    # trained on, and which held out, can follow from the seed.
    for part, kind in (("data", "files"), ("model", "model")):
        digest = json.dumps(record["fingerprints"].get(kind), sort_keys=True)
        found[f"{part}'s content"] = hashlib.sha256(digest.encode()).hexdigest()[:8]
    return found


def _groups(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs of the same settings but for the seed together, best mean accuracy first."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        key = json.dumps([_compared(run.record), bool(run.record["result"])], sort_keys=True)
        groups.setdefault(key, []).append(run)

    def rank(group: list[Run]) -> tuple[bool, float]:
        scores = [score for run in group if (score := run.score("accuracy")) is not None]
        return not group[0].record["result"], -statistics.mean(scores or [0])

    return sorted(groups.values(), key=rank)


def _differing(runs: Sequence[Run]) -> list[str]:
    """The settings that are not the same in all runs."""
    compared = [_compared(run.record) for run in runs]
    names = list(dict.fromkeys(name for found in compared for name in found))
    differing = [n for n in names if len({json.dumps(found.get(n)) for found in compared}) > 1]
    for part in ("data", "model"):  # Where names tell contents apart they are enough.
        pairs = {(json.dumps(f.get(part)), f[f"{part}'s content"]) for f in compared}
        if len(pairs) == len({name for name, _ in pairs}) and f"{part}'s content" in differing:
            differing.remove(f"{part}'s content")
    return differing


def _shown(value: object) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else "–" if value is None else str(value)


def _spread(values: Sequence[float | None], digits: int) -> str:
    """A value, or the mean ± standard deviation of several."""
    values = [value for value in values if value is not None]
    if not values:
        return "–"
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def table(runs: Sequence[Run]) -> str:
    """A line for the runs of the same settings, best first: what differs, scores, and time."""
    names = _names(runs)
    differing = _differing(runs)
    scores = ["accuracy"]
    if any(run.score("macro_f1") is not None for run in runs):
        scores.append("macro_f1")
    rows = [["run", *differing, "seeds", *scores, "minutes", ""]]
    for group in _groups(runs):
        compared = _compared(group[0].record)
        seconds = [(run.record["result"] or {}).get("seconds") for run in group]
        rows.append(
            [
                ", ".join(names[run.folder] for run in group),
                *(_shown(compared.get(name)) for name in differing),
                " ".join(str(run.record["settings"]["seed"]) for run in group),
                *(_spread([run.score(name) for run in group], 4) for name in scores),
                _spread([value and value / 60 for value in seconds], 1),
                "" if group[0].record["result"] else "not complete",
            ]
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = (map(str.ljust, row, widths) for row in rows)
    return "\n".join("  ".join(row).rstrip() for row in padded)


def _names(runs: Sequence[Run]) -> dict[Path, str]:
    """Each run's folder as seen from the one in which they all lie."""
    top = common_folder([run.folder for run in runs])
    return {run.folder: str(run.folder.absolute().relative_to(top)) for run in runs}


def picture(path: Path, runs: Sequence[Run]) -> None:
    """Draw the curves of all runs, the best ones first, as the file `path`."""
    import pictures

    names, differing, curves = _names(runs), _differing(runs), []
    for run in (run for group in _groups(runs) for run in group):
        compared, score = _compared(run.record), run.score("accuracy")
        what = [f"{name} {_shown(compared.get(name))}" for name in differing]
        what.append("no accuracy yet" if score is None else f"accuracy {score:.4f}")
        curves.append((f"{names[run.folder]}: {', '.join(what)}", run.history))
    pictures.comparison(path, curves)
