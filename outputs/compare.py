"""Compare several runs in a table and in a plot."""

import hashlib
import json
import math
import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from outputs import plots, predictions
from system.console import plural, quoted
from training import scores
from training import settings as rules

# The probability of a wrong verdict in a table of equal groups.
SIGNIFICANCE = 0.05
OTHER_DATA = "unknown: different validation data"


class Run(NamedTuple):
    """A run, read from its folder."""

    folder: Path
    record: dict
    history: list[dict]

    def score(self, name: str) -> float | None:
        """The kept epoch's score, or the best so far if the run is not complete."""
        if self.record["result"]:
            return self.record["result"].get(name)
        key = f"eval_{name}"
        return max((line[key] for line in self.history if key in line), default=None)


def _recipe(record: dict) -> dict[str, object]:
    """The settings that repetitions with different seeds have in common."""
    return {
        name: value
        for name, value in record["settings"].items()
        if rules.affects(name) != rules.NOTHING and name != "seed" and value is not None
    }


def _content_hashes(record: dict) -> dict[str, str]:
    """The hashes of data and model, because different paths can hold the same files.

    The files of the data are hashed, because the held-out part can depend on the seed. A data set
    on the Hub is identified by its name.
    """
    fingerprints, settings = record["fingerprints"], record["settings"]
    contents = {"data": fingerprints.get("files"), "model": fingerprints.get("model")}
    texts = {k: json.dumps(v or settings[k], sort_keys=True) for k, v in contents.items()}
    return {part: hashlib.sha256(text.encode()).hexdigest() for part, text in texts.items()}


def _key(run: Run) -> str:
    return json.dumps(_recipe(run.record) | _content_hashes(run.record), sort_keys=True)


def _groups(runs: Sequence[Run]) -> list[list[Run]]:
    """Groups of runs that differ at most in the seed, best mean accuracy first."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(f"{_key(run)} {bool(run.record['result'])}", []).append(run)

    def sort_key(group: list[Run]) -> tuple[bool, float]:
        accuracies = [score for run in group if (score := run.score("accuracy")) is not None]
        return not group[0].record["result"], -statistics.mean(accuracies or [0])

    return sorted(groups.values(), key=sort_key)


def _differing(runs: Sequence[Run]) -> dict[str, list[str]]:
    """The settings that differ between runs, and each run's value."""
    recipes = [_recipe(run.record) for run in runs]
    differing = {}
    for name in dict.fromkeys(name for recipe in recipes for name in recipe):
        values = [_format(recipe.get(name)) for recipe in recipes]
        if name in ("data", "model"):
            hashes = [_content_hashes(run.record)[name] for run in runs]
            if len({*zip(values, hashes, strict=True)}) > len(set(values)):
                values = [f"{v} {h[:6]}" for v, h in zip(values, hashes, strict=True)]
            elif len(set(hashes)) == 1:
                continue
        if len(set(values)) > 1:
            differing[name] = values
    return differing


def _format(value: object) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else "–" if value is None else str(value)


def _spread(group: Sequence[Run], values: Sequence[float | None], digits: int) -> str:
    """The mean of the runs' values, ± the standard deviation if their seeds differ."""
    values = [value for value in values if value is not None]
    if not values:
        return "–"
    mean = f"{statistics.mean(values):.{digits}f}"
    seeds = {run.record["settings"]["seed"] for run in group}
    return mean if len(seeds) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def _verdicts(groups: Sequence[list[Run]]) -> list[str]:
    """For each group: is the best group better, or can chance explain the difference?"""
    complete = [group for group in groups if group[0].record["result"]]
    verdicts = ["not complete"] * len(groups)
    # Any two groups could have been the best and another one, so all pairs count (Bonferroni).
    significance = SIGNIFICANCE / max(1, math.comb(len(complete), 2))
    # Complete groups come first.
    for number, group in enumerate(complete):
        verdicts[number] = _verdict_on_group(complete[0], group, significance) if number else "best"
    if len(complete) == 1 and len(complete[0]) > 1:
        best, *_, worst = sorted(complete[0], key=lambda run: -run.record["result"]["accuracy"])
        significance = SIGNIFICANCE / math.comb(len(complete[0]), 2)
        verdicts[0] = f"worst run: {_verdict_on_run(best, worst, significance)}"
    return verdicts


def _verdict_on_group(best: Sequence[Run], other: Sequence[Run], significance: float) -> str:
    if len(best) == len(other) == 1:
        return _verdict_on_run(best[0], other[0], significance)
    # Runs of one seed are one experiment.
    by_seed = [{run.record["settings"]["seed"]: run for run in group} for group in (best, other)]
    is_paired = by_seed[0].keys() == by_seed[1].keys()
    columns = [[runs[seed] for seed in sorted(runs)] for runs in by_seed]
    first, second = ([_validation(run) for run in column] for column in columns)
    # Without a validation split, each seed has its own validation data.
    has_same_data = (is_paired and first == second) or len({*first, *second}) == 1
    if min(map(len, columns)) == 1 and (common := by_seed[0].keys() & by_seed[1].keys()):
        seed = min(common)
        verdict = _verdict_on_run(by_seed[0][seed], by_seed[1][seed], significance)
        return f"{verdict}, seed {seed} alone"
    if not has_same_data:
        return OTHER_DATA
    if min(map(len, columns)) == 1:
        return "unknown: each line needs several seeds"
    accuracies = [[run.record["result"]["accuracy"] for run in column] for column in columns]
    difference = scores.mean_difference(*accuracies, is_paired, 1 - significance)
    has_no_width = math.isclose(difference.low, difference.high, abs_tol=1e-9)
    if has_no_width and not math.isclose(difference.mean, 0, abs_tol=1e-9):
        return "unknown: the seeds show no spread; use more seeds"
    word = "not distinguishable" if difference.low <= 0 <= difference.high else "worse"
    # No accuracy is above 1, but the interval of a few seeds can be.
    shown = (100 * min(max(value, -1), 1) for value in difference)
    points = "{:.1f} points ({:.1f} to {:.1f})".format(*shown)
    share = " of each seed" if len({*first}) > 1 else ""
    return f"{word} on {_sentences(best[0])}{share}: {points}, {min(map(len, columns))} seeds"


def _verdict_on_run(best: Run, other: Run, significance: float) -> str:
    if _validation(best) != _validation(other):
        return OTHER_DATA
    correct = [predictions.read_correct(run.folder) for run in (best, other)]
    for run, is_correct in zip((best, other), correct, strict=True):
        if is_correct is None:
            command = f"python report.py {quoted(str(run.folder))}"
            return f"unknown: `{command}` writes {predictions.PREDICTIONS}"
        total, accuracy = run.record["sentences"]["validation"], run.record["result"]["accuracy"]
        if (len(is_correct), sum(is_correct)) != (total, round(accuracy * total)):
            return f"unknown: {predictions.PREDICTIONS} and run.json of {run.folder} disagree"
    p_value = scores.mcnemar(*correct)
    if p_value >= significance:
        return f"not distinguishable on {_sentences(best)} (p {p_value:.2g})"
    points = 100 * (best.record["result"]["accuracy"] - other.record["result"]["accuracy"])
    # On the seed that two lines share, the line with the better mean may be worse.
    word = "worse" if points > 0 else "better"
    return f"{word} on {_sentences(best)}: {abs(points):.1f} points (p {p_value:.2g})"


def _validation(run: Run) -> str:
    """The hash of the validation data."""
    return run.record["fingerprints"]["data"]["validation"]


def _sentences(run: Run) -> str:
    number = run.record["sentences"]["validation"]
    return f"{number:,} {plural('sentence', number)}"


def table(runs: Sequence[Run]) -> str:
    """A line for each group of runs, best first: settings, seeds, scores, minutes, verdict."""
    names, differing = _names(runs), _differing(runs)
    columns = ["accuracy"]
    if any(run.score("macro_f1") is not None for run in runs):
        columns.append("macro_f1")
    rows = [["run", *differing, "seeds", *columns, "minutes", "against the best"]]
    groups = _groups(runs)
    for group, verdict in zip(groups, _verdicts(groups), strict=True):
        first = runs.index(group[0])
        seconds = [(run.record["result"] or {}).get("seconds") for run in group]
        rows.append(
            [
                ", ".join(names[run.folder] for run in group),
                *(values[first] for values in differing.values()),
                " ".join(str(run.record["settings"]["seed"]) for run in group),
                *(_spread(group, [run.score(name) for run in group], 4) for name in columns),
                _spread(group, [value and value / 60 for value in seconds], 1),
                verdict,
            ]
        )
    return align(rows)


def align(rows: Sequence[Sequence[str]]) -> str:
    """The rows as lines, with columns aligned to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = (map(str.ljust, row, widths) for row in rows)
    return "\n".join("  ".join(row).rstrip() for row in padded)


def _names(runs: Sequence[Run]) -> dict[Path, str]:
    """Each run's folder, relative to the folder that contains all runs."""
    folders = {run.folder: run.folder.absolute() for run in runs}
    try:
        top = os.path.commonpath([folder.parent for folder in folders.values()])
    except ValueError:
        # Two drives of Windows are in no folder.
        return {name: str(folder) for name, folder in folders.items()}
    return {name: str(folder.relative_to(top)) for name, folder in folders.items()}


def picture(path: Path, runs: Sequence[Run]) -> None:
    """Plot the learning curves of all runs, best first, in the file `path`."""
    names, differing, curves = _names(runs), _differing(runs), []
    for run in (run for group in _groups(runs) for run in group):
        score, number = run.score("accuracy"), runs.index(run)
        parts = [f"{name} {values[number]}" for name, values in differing.items()]
        parts.append("no accuracy yet" if score is None else f"accuracy {score:.4f}")
        curves.append((f"{names[run.folder]}: {', '.join(parts)}", run.history))
    plots.comparison(path, curves)
