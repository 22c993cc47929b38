"""Label texts with the model of a run.

python predict.py runs/first "a fine film" "a dull one"    texts
python predict.py runs/first < reviews.txt                 one text a line
python predict.py runs/first reviews.csv --output new.csv  a csv, tsv, jsonl or parquet file
python predict.py runs/first test.tsv --glue --output SST-2.tsv
                                                           a file for the GLUE benchmark's server

On standard output one line a text, in their order: its label, a tab, and the probability. If a file
has labels too, standard error says how well they agree. A tab separates the two texts of a pair.
"""

from system import console

if __name__ == "__main__":
    console.end_on_signals()

import argparse
import array
import contextlib
import itertools
import os
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from inputs import labels, tables, texts
from inputs.files import READERS
from inputs.texts import MOST_TEXTS, TextFile
from outputs import writers
from outputs.writers import Answer
from system import disk
from system.console import InputError, Problem, collect_problems, progress, raise_any, result, say

if TYPE_CHECKING:
    from outputs.classifier import Classifier

Text = Sequence[str | None]  # One, or two of a pair.


# ---- Answers ----


def answers(classifier: "Classifier", batch: Sequence[Text], bar: tqdm) -> list[Answer]:
    """The answer to each text, in their order; None for a blank one."""
    from outputs import classifier as classifiers

    filled = [number for number, text in enumerate(batch) if not any(map(tables.is_blank, text))]
    results: list[Answer] = [None] * len(batch)
    for start in range(0, len(filled), MOST_TEXTS):
        part = filled[start : start + MOST_TEXTS]
        columns = zip(*(batch[number] for number in part), strict=True)
        classes, probabilities = classifiers.answer(classifier, *columns, on_batch=bar.update)
        for number, *best in zip(part, classes.tolist(), probabilities.tolist(), strict=True):
            results[number] = tuple(best)
    bar.update(len(batch) - len(filled))
    return results


def show(results: Sequence[Answer], names: Sequence[str]) -> None:
    """Print a line for each answer: the label, a tab, and the probability; empty for None."""
    names = [" ".join(name.split()) for name in names]  # A name may hold anything.
    lines = [f"{names[best[0]]}\t{best[1]:.4f}" if best else "" for best in results]
    if lines:
        result("\n".join(lines))


def label_lines(classifier: "Classifier", parts: Iterable[list[str]], unit: str) -> None:
    """Print the answer to each line, one part after the other."""
    number = 1
    takes_pairs = len(_trained_columns(classifier)["text_column"]) == 2
    with progress(None, "texts", "predicting") as bar:
        for lines in parts:
            batch: list[Text] = [[line] for line in lines]
            if takes_pairs:
                batch = [line.split("\t") if line.strip() else [None, None] for line in lines]
                batch = list(itertools.takewhile(lambda text: len(text) == 2, batch))
            show(answers(classifier, batch, bar), classifier.labels)
            number += len(batch)
            if len(batch) < len(lines):
                what = "the model was trained on pairs of texts"
                remedy = "give two, with one tab between them"
                raise InputError(Problem(f"{unit} {number}", what, remedy))


def label_file(classifier: "Classifier", file: TextFile, output: Path | None, glue: bool) -> None:
    """Print the answer to each row of a file, or write them with the rows; then the scores."""
    ids, names = labels.ids_of(file.labels, classifier.labels), classifier.labels
    references, predictions = array.array("i"), array.array("i")  # Four bytes each.

    def windows(bar: tqdm) -> Iterator[tuple[list[dict], list[Answer]]]:
        for rows in file.windows():
            batch = [[row.get(column) for column in file.text_columns] for row in rows]
            results = answers(classifier, batch, bar)
            for row, best in zip(rows, results, strict=True):
                with contextlib.suppress(TypeError, KeyError):
                    if best and ids:
                        references.append(ids[tables.label_name(row.get(file.label_column))])
                        predictions.append(best[0])
            yield rows, results

    with progress(file.rows, "texts", "predicting") as bar:
        rows = windows(bar)
        if output:
            ending, target = output.suffix.lower(), output.resolve()  # Not the link itself.
            table = ending, file.path, file.columns, names, rows
            fill = (lambda out: writers.write_glue(out, rows)) if glue else None
            disk.write_whole(target, fill or (lambda out: writers.write_table(out, *table)))
        elif glue:
            writers.write_glue(sys.stdout.buffer, rows)
        else:
            for _, answered in rows:
                show(answered, names)
    if unknown := file.labels != {"-1"} and sorted(file.labels - ids.keys()):
        shown = ", ".join(map(repr, unknown[:5]))
        where = f"{file.path}: rows whose label in {file.label_column!r} the model does not know"
        say(f"{where} are not compared: {shown}")
    if references:
        from training import scores

        say(scores.report_lines(references, predictions, names))


def _trained_columns(classifier: "Classifier | None") -> dict[str, list[str]]:
    """The columns on which a model was trained, by setting; empty if its run.json is not there."""
    settings = classifier.record["settings"] if classifier and classifier.record else {}
    columns = {name: settings.get(name) or [] for name in ("text_column", "label_column")}
    return {name: [c] if isinstance(c, str) else c for name, c in columns.items()}


# ---- The command line ----


def read_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments, checked by a look at names; InputError with everything that is wrong."""
    parser = console.Parser(prog="predict.py", description=__doc__)
    endings, add = ", ".join(READERS), parser.add_argument
    add("run", metavar="RUN", nargs="?", help="folder of a run or a model, or a Hub id")
    add("texts", metavar="TEXT", nargs="*", help="texts, or a file; none: standard input")
    outputs = ", ".join(writers.WRITERS)
    add("--output", type=Path, help=f"write the file's rows and answers: {outputs}")
    add("--glue", action="store_true", help="write a file for GLUE's server")
    add("--text-column", nargs="+", help="one column, or two of a pair; else as in training")
    add("--label-column", help="else as in training")
    chosen = parser.parse_intermixed_args(argv)
    arguments, columns = chosen.texts, chosen.text_column or []
    if not arguments and len(columns) > 1 and _is_file(columns[-1]):
        arguments.append(columns.pop())  # `--text-column a file.csv`
    named = [word for word in arguments if _is_file(word)]
    chosen.file = Path(named[0]) if named and len(arguments) == 1 else None
    problems: list[Problem] = []
    if not chosen.run:
        problems.append(Problem("RUN", "name the folder of a run or a model first"))
    if named and len(arguments) > 1:
        problems.append(Problem(named[0], "one file at a time, and no texts beside it"))
    elif chosen.file and not chosen.file.is_file():
        problems.append(Problem(named[0], "no such file"))
    elif chosen.file and chosen.file.suffix.lower() not in READERS:
        remedy = f"with one text a line, give it as standard input, `< {named[0]}`"
        problems.append(Problem(named[0], f"the ending is unknown; known: {endings}", remedy))
    for name in ("output", "glue", "text_column", "label_column"):
        if getattr(chosen, name) and not named:
            flag = f"--{name.replace('_', '-')}"
            problems.append(Problem("", "is for a file of texts", "name one", flag))
    if len(columns) > 2:
        remedy = "one or two columns are meant"
        problems.append(Problem("", f"found {columns}", remedy, "--text-column"))
    problems += _output_problems(chosen)
    if any(map(tables.HALF_CHARACTER.search, arguments)):
        problems.append(Problem("a text on the command line", "not UTF-8", "give it as UTF-8"))
    raise_any(problems)
    return chosen


def _is_file(word: str) -> bool:
    """Whether a word means a file: there is one, or it looks like the name of one."""
    try:
        is_there = Path(word).is_file()
    except (OSError, ValueError):  # Too long for a name, or with a NUL.
        return False
    return is_there or (Path(word).suffix.lower() in READERS and " " not in word)


def _output_problems(chosen: argparse.Namespace) -> Iterator[Problem]:
    output, file = chosen.output, chosen.file
    if not output:
        return
    endings, what, remedy = [".tsv"] if chosen.glue else list(writers.WRITERS), "", ""
    try:
        if output.suffix.lower() not in endings:
            what = f"it must end with {' or '.join(endings)}"
        elif not output.parent.is_dir():
            what = f"there is no folder {output.parent}"
        elif output.is_dir():
            what, remedy = "it is a folder", "name a file"
        elif file and file.exists() and output.exists() and output.samefile(file):
            what, remedy = "that is the file of texts itself", "name another"
        elif not os.access(output.parent, os.W_OK | os.X_OK):
            what = f"no permission to write in {output.parent}"
    except OSError as error:  # A name too long, a folder that may not be read.
        what, remedy = error.strerror, "name another"
    if what:
        yield Problem(str(output), what, remedy, "--output")


def main(argv: Sequence[str]) -> None:
    """Do what the command line asks for."""
    chosen = read_arguments(argv)
    from outputs import classifier as classifiers  # After the arguments, because it takes seconds.

    problems: list[Problem] = []
    classifier = file = None
    with collect_problems(problems):
        classifier = classifiers.load(chosen.run)
    if chosen.file:
        writes_rows = chosen.output and not chosen.glue
        added = (writers.PREDICTION, writers.PROBABILITY) if writes_rows else ()
        columns = chosen.text_column, chosen.label_column
        with collect_problems(problems):
            trained = _trained_columns(classifier)
            file = texts.look_through(chosen.file, *columns, trained, added, chosen.glue)
    raise_any(problems)
    console.stop_on_signals()
    if hasattr(signal, "SIGPIPE") and not chosen.output:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends it, as it does any tool.
    sys.stdout.reconfigure(encoding="utf-8", newline="\n")
    if file:
        label_file(classifier, file, chosen.output, chosen.glue)
    elif chosen.texts:
        label_lines(classifier, [chosen.texts], "text")
    elif sys.stdin is None:
        what = "standard input is closed"
        raise InputError(Problem("no texts", what, "give texts, or a file of them"))
    else:
        if sys.stdin.isatty():
            say("one text a line; Ctrl-D ends")
        label_lines(classifier, texts.arrived_lines(sys.stdin.buffer), "standard input, line")


if __name__ == "__main__":
    with console.exit_codes():
        main(sys.argv[1:])
