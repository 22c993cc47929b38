"""Report on a run, or compare several runs.

python report.py runs/first    plots, predictions and model card of a run, as after training
python report.py runs/*        a table of the runs, best first, and their curves in one plot
"""

from system import console

if __name__ == "__main__":
    console.end_on_signals()

import fnmatch
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from outputs import compare, model_card, plots, predictions
from outputs.predictions import MISTAKES, PREDICTIONS
from system import disk, ranks
from system.console import InputError, Problem, raise_any, say
from training import record as records
from training import run_folder, scores
from training.scores import Answers

if TYPE_CHECKING:
    from datasets import Dataset

    from training.run import Run

CURVES, CONFUSION = "curves.png", "confusion.png"
CALIBRATION, COMPARISON = "calibration.png", "comparison.png"


# ---- The report of one run ----


def write(run: "Run", rows: "Dataset", answers: Answers) -> None:
    """Write the report at the end of a run, in the main process; a failure only prints a note."""
    if not ranks.is_main():
        return
    try:
        write_files(run.folder, run.record, run.state.history, rows, answers)
    except Exception as error:
        # After a full disk, the same command with --resume writes the report.
        if disk.is_full(error):
            raise
        # A failed plot must not cost the trained model.
        remedy = f"run `python report.py {console.quoted(str(run.folder))}`"
        say(f"NOTE: the report is not complete ({console.one_line(error)[:200]}); {remedy}")


def write_files(
    folder: Path, record: dict, history: Sequence[dict], rows: "Dataset", answers: Answers
) -> None:
    """Write the plots, the predictions, the mistakes and the model card of a run."""
    names = record["labels"]
    predictions.write_predictions(folder / PREDICTIONS, names, rows, answers)
    predictions.write_mistakes(folder / MISTAKES, names, rows, answers)
    write_curves(folder / CURVES, record, history)
    plot = (folder / CURVES).read_bytes()
    disk.write_whole(folder / run_folder.MODEL / CURVES, lambda file: file.write(plot))
    matrix = scores.confusion(answers.labels, answers.predictions, len(names))
    correct, sentences = int(np.trace(matrix)), len(answers.labels)
    title = f"{correct:,} of {sentences:,} validation sentences correct"
    if missing := plots.confusion(folder / CONFUSION, matrix, names, title):
        characters = ", ".join(map(repr, sorted(missing)[:5]))
        listed = ", ".join(f"{number} is {name!r}" for number, name in enumerate(names))
        say(f"NOTE: no font for {characters}; {CONFUSION} shows numbers: {listed}")
    error, bins = scores.calibration(answers)
    plots.calibration(folder / CALIBRATION, bins, f"expected calibration error {error:.4f}")
    card = model_card.make(record)
    card_file = folder / run_folder.MODEL / "README.md"
    disk.write_whole(card_file, lambda file: file.write(card.encode(errors="replace")))


def write_curves(path: Path, record: dict, history: Sequence[dict]) -> None:
    """Plot the curves of a run, complete or not, in the file `path`."""
    settings, result = record["settings"], record["result"]
    sentences = record["sentences"]["validation"]
    accuracies = [line["eval_accuracy"] for line in history if "eval_accuracy" in line]
    names = [Path(settings[part]).name or settings[part] for part in ("model", "data")]
    subtitle = scores.accuracy_line(result, sentences) if result else "not complete"
    intervals = [scores.interval(accuracy, sentences) for accuracy in accuracies]
    plots.curves(path, history, names, subtitle, result, intervals)


# ---- From the folders of runs ----


def report_on(folder: Path, record: dict) -> None:
    """Write the report of a run again; only its curves if the run is not complete."""
    history = records.read_history(folder)
    if not record["result"]:
        write_curves(folder / CURVES, record, history)
        say(f"{folder}: the run is not complete; its curves so far are in {folder / CURVES}")
        return
    # A slow import, which a comparison of runs does not need.
    from outputs import classifier as classifiers
    from outputs import validation as validations

    classifier, validation = validations.load(folder, record)
    classifier = classifiers.prepare(classifier, "auto")
    answers = validations.answer(classifier, validation, record["settings"]["batch_size"])
    # Runs of earlier versions lack these entries.
    record["result"] |= scores.summary(record["result"]["accuracy"], answers)
    write_files(folder, record, history, validation.rows, answers)
    say(scores.accuracy_line(record["result"], len(answers.labels)))
    names = ", ".join((CURVES, CONFUSION, CALIBRATION, PREDICTIONS, MISTAKES))
    say(f"written to {folder}: {names} and the model card {run_folder.MODEL}/README.md")


def compare_runs(runs: Sequence[compare.Run]) -> None:
    """Print a table of several runs, and write a plot of their curves."""
    with records.damaged("one of the runs"):
        table = compare.table(runs)
    console.result(table)
    parents = {run.folder.absolute().parent for run in runs}
    path = (parents.pop() if len(parents) == 1 else Path()) / COMPARISON
    compare.picture(path, runs)
    best = f" of the best {plots.MAX_RUNS}" if len(runs) > plots.MAX_RUNS else ""
    say(f"curves{best} written to {path}")


def find_runs(paths: Sequence[Path]) -> dict[Path, dict]:
    """The record of each run by its folder; InputError if no folder holds a run."""
    # The keys are full paths, so that each run counts once.
    runs: dict[Path, tuple[Path, dict]] = {}
    problems: list[Problem] = []
    for path in paths:
        try:
            record = records.read(path) if path.is_dir() else None
        except InputError as error:
            problem = error.problems[0]._replace(flag="", remedy="left out")
            if len(paths) == 1:
                raise InputError(problem._replace(remedy="")) from None
            say(str(problem))
            continue
        if record:
            runs[path.resolve()] = path, record
        elif len(paths) == 1 or not path.exists():
            message = f"{records.NAME} is missing"
            problems.append(Problem(str(path), message, "name the folder of a run"))
        # `runs/*` also matches the plot of an earlier comparison.
        elif path.name != COMPARISON:
            say(f"{path}: not a run; left out")
    if not runs and not problems:
        message = f"{records.NAME} is missing in each of these folders"
        problems.append(Problem("RUN", message, "name the folder of a run"))
    raise_any(problems)
    return dict(runs.values())


def main(argv: Sequence[str]) -> None:
    """Run the command line `argv`."""
    parser = console.Parser(prog="report.py", description=__doc__)
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="folder of a run")
    paths: list[Path] = []
    for path in parser.parse_args(argv).runs:
        # The shells of Windows leave `runs/*` to the program.
        matches = path.parent.glob("*") if "*" in path.name else []
        paths += sorted(p for p in matches if fnmatch.fnmatch(p.name, path.name)) or [path]
    runs = find_runs(paths)
    if len(runs) > 1:
        compare_runs([compare.Run(path, r, records.read_history(path)) for path, r in runs.items()])
        return
    ((folder, record),) = runs.items()
    with records.damaged(folder):
        report_on(folder, record)


if __name__ == "__main__":
    with console.exit_codes():
        sys.stdout.reconfigure(encoding="utf-8")
        main(sys.argv[1:])
