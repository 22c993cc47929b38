"""How good a run's model is, where it is wrong, and how runs differ.

python report.py runs/first    pictures, mistakes and model card of a run, as its end writes them
python report.py runs/*        a table, one line a run, and their curves in one picture
"""

from system import console

if __name__ == "__main__":
    console.end_on_signals()

import contextlib
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from inputs import files, hub
from outputs import compare, model_card, plots, writers
from system import disk, ranks
from system.console import InputError, Problem, collect_problems, progress, raise_any, say
from training import record as records
from training import run_folder, scores
from training.scores import Answers

if TYPE_CHECKING:
    from datasets import Dataset

    from training.run import Run

CURVES, CONFUSION, MISTAKES = "curves.png", "confusion.png", "mistakes.csv"
CALIBRATION, COMPARISON = "calibration.png", "comparison.png"


# ---- The report of one run ----


def write(run: "Run", rows: "Dataset", answers: Answers) -> None:
    """Write the report at the end of a run, in the main process; a failure is only noted.

    `rows` are the validation sentences, as of `tables.read_table`.
    """
    if not ranks.is_main():
        return
    try:
        write_files(run.folder, run.record, run.state.history, rows, answers)
    except Exception as error:
        if disk.is_full(error):  # With space, the same command writes it.
            raise
        # A night's training must not be lost over a picture.
        retry = f"`python report.py {shlex.quote(str(run.folder))}` tries again"
        say(f"NOTE: its report is not complete ({console.one_line(error)[:200]}); {retry}")


def write_files(
    folder: Path, record: dict, history: Sequence[dict], rows: "Dataset", answers: Answers
) -> None:
    """Write the pictures, the mistakes and the model card of a run."""
    names = record["labels"]
    write_curves(folder / CURVES, record, history)
    picture = (folder / CURVES).read_bytes()  # The model card shows it.
    disk.write_whole(folder / run_folder.MODEL / CURVES, lambda file: file.write(picture))
    matrix = scores.confusion(answers.labels, answers.predictions, len(names))
    right, sentences = int(np.trace(matrix)), len(answers.labels)
    title = f"{right:,} of {sentences:,} validation sentences are right"
    plots.confusion(folder / CONFUSION, matrix, names, title)
    error, bins = scores.calibration(answers)
    plots.calibration(folder / CALIBRATION, bins, f"expected calibration error {error:.4f}")
    write_mistakes(folder / MISTAKES, names, rows, answers)
    card = model_card.make(record)
    card_file = folder / run_folder.MODEL / "README.md"
    disk.write_whole(card_file, lambda file: file.write(card.encode(errors="replace")))


def write_curves(path: Path, record: dict, history: Sequence[dict]) -> None:
    """Draw the curves of a run, complete or not, as the file `path`."""
    settings, result = record["settings"], record["result"]
    sentences = record["sentences"]["validation"]
    accuracies = [line["eval_accuracy"] for line in history if "eval_accuracy" in line]
    names = (Path(settings[part]).name or settings[part] for part in ("model", "data"))
    title = " on ".join(plots.short(name, 40) for name in names)
    title += f"\n{scores.accuracy_line(result, sentences) if result else 'not complete'}"
    intervals = [scores.interval(accuracy, sentences) for accuracy in accuracies]
    plots.curves(path, history, title, result, intervals)


def write_mistakes(path: Path, names: Sequence[str], rows: "Dataset", answers: Answers) -> None:
    """Write each sentence that was answered wrongly, the most confident answer first."""
    wrong = np.flatnonzero(answers.labels != answers.predictions)
    wrong = wrong[np.argsort(-answers.probabilities[wrong], kind="stable")]
    has_pairs = len(rows) > 0 and rows[0]["text_pair"] is not None
    columns = ["text", "text_pair"] if has_pairs else ["text"]

    def fill(file: BinaryIO) -> None:
        write_row = writers.csv_writer(file)
        write_row(["line", *columns, "label", "prediction", "probability"])
        for number in wrong.tolist():
            row = rows[number]
            label, prediction = names[answers.labels[number]], names[answers.predictions[number]]
            probability = f"{answers.probabilities[number]:.4f}"
            texts = [row[column] for column in columns]
            write_row([row["line"], *texts, label, prediction, probability])

    disk.write_whole(path, fill)


# ---- From the folders of runs ----


def answers_of(folder: Path, record: dict) -> tuple["Dataset", Answers]:
    """The validation rows of a run, and its model's answers; InputError if either has changed."""
    import data  # Here, because a comparison of runs needs neither.
    from outputs import classifier as classifiers

    settings = record["settings"]
    problems: list[Problem] = []
    with collect_problems(problems):
        classifier = classifiers.load(str(folder))
    with collect_problems(problems):
        hub.reach(data=settings["data"])
        try:
            files.find_files(settings["data"])
        except InputError:
            what = f"its data, {settings['data']}, is not here"
            remedy = "give the command where that of the run was given"
            raise InputError(Problem(str(folder), what, remedy)) from None
        columns = settings["text_column"], settings["label_column"]
        text = data.load(settings["data"], *columns, settings["seed"])
        rows = text.splits["validation"]
        if records.fingerprint(rows) != record["fingerprints"]["data"]["validation"]:
            what = f"its data, {settings['data']}, has changed since the run was started"
            raise InputError(Problem(str(folder), what, "put it back as it was"))
    raise_any(problems)
    if classifier.labels != record["labels"]:
        what = f"its {run_folder.MODEL}/ has other labels than the run had"
        raise InputError(Problem(str(folder), what))
    parts: list[tuple] = []
    with progress(len(rows), "sentences", "answering") as bar:
        for start in range(0, len(rows), 10_000):
            part = rows[start : start + 10_000]
            texts = part["text"], part["text_pair"] if part["text_pair"][0] is not None else None
            parts.append(classifiers.answer(classifier, *texts, settings["batch_size"], bar.update))
    classes, probabilities = map(np.concatenate, zip(*parts, strict=True))
    labels = np.array([text.ids[label] for label in rows["label"]])
    return rows, Answers(labels, classes, probabilities, np.full(len(labels), np.nan, np.float32))


def report_on(folder: Path, record: dict) -> None:
    """Write the report of the run in `folder` again; only its curves if it is not complete."""
    history = records.read_history(folder)
    if not record["result"]:
        write_curves(folder / CURVES, record, history)
        say(f"{folder}: the run is not complete; its curves so far are in {folder / CURVES}")
        return
    rows, answers = answers_of(folder, record)
    # A run of an earlier version lacks it.
    record["result"] |= scores.summary(record["result"]["accuracy"], answers)
    write_files(folder, record, history, rows, answers)
    say(scores.accuracy_line(record["result"], len(answers.labels)))
    names = ", ".join((CURVES, CONFUSION, CALIBRATION, MISTAKES))
    say(f"written in {folder}: {names}, and {run_folder.MODEL}/README.md, the model card")


def compare_runs(runs: Sequence[compare.Run]) -> None:
    """Print a table of several runs, and draw their curves in one picture."""
    with _damaged("one of the runs"):
        table = compare.table(runs)
    console.result(table)
    parents = {run.folder.absolute().parent for run in runs}
    path = (parents.pop() if len(parents) == 1 else Path()) / COMPARISON
    compare.picture(path, runs)
    which = "their curves" if len(runs) <= plots.MOST_RUNS else f"the best {plots.MOST_RUNS}"
    say(f"{which} are in {path}")


@contextlib.contextmanager
def _damaged(where: Path | str) -> Iterator[None]:
    """Raise an InputError if something in a run's folder is missing, or of another type."""
    try:
        yield
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        cause = f"{type(error).__name__}: {console.one_line(error)[:200]}"
        what = f"{records.NAME} or {records.METRICS} is not as this program writes it ({cause})"
        raise InputError(Problem(str(where), what, "put back a copy")) from error


def find_runs(paths: Sequence[Path]) -> dict[Path, dict]:
    """The record of the run in each folder; InputError if there is none in any."""
    runs: dict[Path, tuple[Path, dict]] = {}  # Full paths, so each run once.
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
            remedy = f"name a folder that holds {records.NAME}"
            problems.append(Problem(str(path), "no run is there", remedy))
        elif path.name != COMPARISON:  # A shell finds other files for runs/*.
            say(f"{path}: not a run; left out")
    if not runs and not problems:
        problems.append(Problem("RUN", "none of these folders holds a run"))
    raise_any(problems)
    return dict(runs.values())


def main(argv: Sequence[str]) -> None:
    """Do what the command line asks for."""
    parser = console.Parser(prog="report.py", description=__doc__)
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="the folder of a run")
    runs = find_runs(parser.parse_args(argv).runs)
    if len(runs) > 1:
        compare_runs([compare.Run(path, r, records.read_history(path)) for path, r in runs.items()])
        return
    ((folder, record),) = runs.items()
    with _damaged(folder):
        report_on(folder, record)


if __name__ == "__main__":
    with console.exit_codes():
        sys.stdout.reconfigure(encoding="utf-8")
        main(sys.argv[1:])
