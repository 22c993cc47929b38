"""What a person looks at: how good a run's model is, where it is wrong, how runs differ.

python report.py runs/first    pictures, mistakes and model card of a run, as its end writes them
python report.py runs/*        a table, a line a run, and their curves in one picture
"""

from system import console

if __name__ == "__main__":
    console.end_on_signals()

import argparse
import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import numpy as np

from inputs import tables
from outputs import model_card, writers
from outputs import plots as pictures
from system import disk as files
from system.console import InputError, progress, say
from training import record as records
from training import run_folder

if TYPE_CHECKING:
    from datasets import Dataset

CURVES, CONFUSION, MISTAKES = "curves.png", "confusion.png", "mistakes.csv"
CALIBRATION, COMPARISON = "calibration.png", "comparison.png"
BINS = 15


class Answers(NamedTuple):
    """What a model says of the rows of a split, in their order; each of shape (rows,)."""

    references: np.ndarray  # Ids of what is right,
    predictions: np.ndarray  # and of what the model says,
    probabilities: np.ndarray  # and the probability that it gives that.


# ---- How good ----


def interval(accuracy: float, sentences: int) -> tuple[float, float]:
    """The ends of the 95 % interval of an accuracy on that many sentences (Wilson 1927)."""
    from scipy.stats import binomtest

    found = binomtest(round(accuracy * sentences), sentences).proportion_ci(method="wilson")
    return float(found.low), float(found.high)


def calibration(answers: Answers) -> tuple[float, list[dict]]:
    """The expected calibration error, and the bins of equal width that it is a mean over.

    The difference between how often answers are right and how probable the model calls them, in the
    mean over all sentences (Guo et al. 2017, On Calibration of Modern Neural Networks).
    """
    right = answers.references == answers.predictions
    numbers = np.clip(np.ceil(answers.probabilities * BINS).astype(int) - 1, 0, BINS - 1)
    error, bins = 0.0, []
    for number in np.unique(numbers):
        inside = numbers == number
        accuracy = float(right[inside].mean())
        probability = float(answers.probabilities[inside].mean())
        error += abs(accuracy - probability) * inside.mean()
        bins.append(
            {"low": number / BINS, "high": (number + 1) / BINS, "sentences": int(inside.sum())}
            | {"accuracy": accuracy, "probability": probability}
        )
    return float(error), bins


def summary(accuracy: float, answers: Answers) -> dict:
    """What run.json says of a result beside its scores."""
    ends = interval(accuracy, len(answers.references))
    return {
        "accuracy_interval": [round(end, 4) for end in ends],
        "calibration_error": round(calibration(answers)[0], 4),
    }


# ---- The report of one run ----


def write(
    folder: Path, record: dict, history: Sequence[dict], rows: "Dataset", answers: Answers
) -> None:
    """Write the pictures, the mistakes and the model card of a run.

    Args:
        record: as in run.json, with the result.
        history: the lines of metrics.jsonl.
        rows: the validation sentences, with the columns of `tables.read_table`.
        answers: what the kept model says of them.
    """
    names = record["labels"]
    curves(folder / CURVES, record, history)
    picture = (folder / CURVES).read_bytes()  # The model card shows it.
    files.write_whole(folder / run_folder.MODEL / CURVES, lambda file: file.write(picture))
    matrix = np.zeros((len(names), len(names)), int)
    np.add.at(matrix, (answers.references, answers.predictions), 1)
    sentences = len(answers.references)
    title = f"{int(np.trace(matrix)):,} of {sentences:,} validation sentences are right"
    pictures.confusion(folder / CONFUSION, matrix, names, title)
    error, bins = calibration(answers)
    pictures.calibration(folder / CALIBRATION, bins, f"expected calibration error {error:.4f}")
    write_mistakes(folder / MISTAKES, names, rows, answers)
    card = model_card.make(record)
    card_file = folder / run_folder.MODEL / "README.md"
    files.write_whole(card_file, lambda file: file.write(card.encode(errors="replace")))


def curves(path: Path, record: dict, history: Sequence[dict]) -> None:
    """Draw the curves of a run, complete or not, as the file `path`."""
    settings, result = record["settings"], record["result"]
    sentences = record["sentences"]["validation"]
    accuracies = [line["eval_accuracy"] for line in history if "eval_accuracy" in line]
    names = (Path(settings[part]).name or settings[part] for part in ("model", "data"))
    what = " on ".join(pictures.short(name, 40) for name in names)
    title = f"{what}\n{model_card.in_words(result, sentences) if result else 'not complete'}"
    intervals = [interval(accuracy, sentences) for accuracy in accuracies]
    pictures.curves(path, history, title, result, intervals)


def write_mistakes(path: Path, names: Sequence[str], rows: "Dataset", answers: Answers) -> None:
    """Write each sentence that was answered wrongly, the most confident answer first."""
    wrong = np.flatnonzero(answers.references != answers.predictions)
    wrong = wrong[np.argsort(-answers.probabilities[wrong], kind="stable")]
    has_pairs = len(rows) > 0 and rows[0]["text_pair"] is not None
    columns = ["text", "text_pair"] if has_pairs else ["text"]

    def fill(file: BinaryIO) -> None:
        write_row = writers.csv_writer(file)
        write_row(["line", *columns, "label", "prediction", "probability"])
        for number in wrong.tolist():
            row = rows[number]
            right, said = (names[ids[number]] for ids in (answers.references, answers.predictions))
            said_of_it = right, said, f"{answers.probabilities[number]:.4f}"
            write_row([row["line"], *(row[column] for column in columns), *said_of_it])

    files.write_whole(path, fill)


# ---- Alone, on what runs have left ----


def read_history(folder: Path) -> list[dict]:
    """The lines of a run's metrics.jsonl.

    Raises:
        InputError: it can't be read; but a last line that is being written is none yet.
    """
    path = folder / run_folder.METRICS
    try:
        *lines, _ = path.read_text("utf-8").split("\n") if path.exists() else [""]
        return [json.loads(line) for line in lines]
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({console.one_line(error)})") from error


def answers_of(folder: Path, record: dict) -> tuple["Dataset", Answers]:
    """The validation rows of a run, and what its model says of them.

    Raises:
        InputError: data or model are gone, or not those of the run.
    """
    import data
    from inputs import hub
    from outputs import classifier as classify

    settings = SimpleNamespace(**record["settings"])
    problems: list[str] = []
    with console.gather(problems):
        classifier = classify.load(str(folder))
    with console.gather(problems):
        hub.reach(data=settings.data)
        try:
            tables.find_files(settings.data)
        except InputError:
            raise InputError(
                f"{folder}: its data, {settings.data}, is not here; give the command where that of "
                "the run was given"
            ) from None
        text = data.load(settings.data, settings.text_column, settings.label_column, settings.seed)
        rows = text.splits["validation"]
        if records.fingerprint(rows) != record["fingerprints"]["data"]["validation"]:
            raise InputError(
                f"{folder}: its data, {settings.data}, has changed since the run was started; put "
                "it back as it was"
            )
    if problems:
        raise InputError(*problems)
    if classifier.labels != record["labels"]:
        raise InputError(f"{folder}: its {run_folder.MODEL}/ has other labels than the run had")
    found: list[tuple] = []
    with progress(len(rows), "sentences", "answering") as bar:
        for start in range(0, len(rows), 10_000):
            part = rows[start : start + 10_000]
            pairs = part["text_pair"] if part["text_pair"][0] is not None else None
            found.append(
                classify.answer(classifier, part["text"], pairs, settings.batch_size, bar.update)
            )
    classes, probabilities = map(np.concatenate, zip(*found, strict=True))
    references = np.array([text.ids[label] for label in rows["label"]])
    return rows, Answers(references, classes, probabilities)


def report_on(folder: Path, record: dict) -> None:
    """Write the report of the run in `folder` again; of one that is not complete, its curves."""
    history = read_history(folder)
    if not record["result"]:
        curves(folder / CURVES, record, history)
        say(f"{folder}: the run is not complete; its curves so far are in {folder / CURVES}")
        return
    rows, answers = answers_of(folder, record)
    # As a run of an earlier version lacks it.
    record["result"] |= summary(record["result"]["accuracy"], answers)
    write(folder, record, history, rows, answers)
    say(model_card.in_words(record["result"], len(answers.references)))
    names = ", ".join((CURVES, CONFUSION, CALIBRATION, MISTAKES))
    say(f"written in {folder}: {names}, and {run_folder.MODEL}/README.md, the model card")


@contextlib.contextmanager
def _as_this_program_writes(what: Path | str) -> Iterator[None]:
    """Call it damaged where something in a run's folder is missing, or of another kind."""
    try:
        yield
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{what}: {records.NAME} or {run_folder.METRICS} is not as this program writes it "
            f"({type(error).__name__}: {console.one_line(error)[:200]}); put back a copy"
        ) from error


def main(argv: Sequence[str]) -> None:
    """What the command line asks for."""
    parser = console.Parser(
        prog="report.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="the folder of a run")
    asked = parser.parse_args(argv).runs
    found: dict[Path, tuple[Path, dict]] = {}  # By what a folder is called in full, so once.
    problems: list[str] = []
    for path in asked:
        told: list[str] = []
        with console.gather(told):
            record = records.read(path) if path.is_dir() else None
            if record:
                found[path.resolve()] = path, record
            elif len(asked) == 1 or not path.exists():
                problems.append(f"{path}: no run is there; name a folder that holds {records.NAME}")
            elif path.name != COMPARISON:  # What else a shell finds for runs/*.
                say(f"{path}: not a run; left out")
        told = [problem.partition("; ")[0].removeprefix("--output-dir ") for problem in told]
        if len(asked) == 1:
            problems += told
        for problem in told if len(asked) > 1 else []:
            say(f"{problem}; left out")
    if problems:
        raise InputError(*problems)
    if not found:
        raise InputError("none of these folders holds a run")
    if len(found) == 1:
        ((folder, record),) = found.values()
        with _as_this_program_writes(folder):
            report_on(folder, record)
        return
    from outputs import compare

    runs = [compare.Run(path, record, read_history(path)) for path, record in found.values()]
    with _as_this_program_writes("one of the runs"):
        table = compare.table(runs)
    console.result(table)
    parents = {run.folder.absolute().parent for run in runs}
    where = (parents.pop() if len(parents) == 1 else Path()) / COMPARISON
    compare.picture(where, runs)
    which = "their curves" if len(runs) <= pictures.MOST_RUNS else f"the best {pictures.MOST_RUNS}"
    say(f"{which} are in {where}")


if __name__ == "__main__":
    with console.exit_codes():
        files.mark_as_own()
        sys.stdout.reconfigure(encoding="utf-8")
        main(sys.argv[1:])
