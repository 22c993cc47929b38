"""Predict the labels of texts with a trained model.

python predict.py runs/first "a fine film" "a dull one"    texts
python predict.py runs/first < reviews.txt                 one text a line
python predict.py runs/first reviews.csv --output new.csv  a table, such as a csv file
python predict.py runs/first test.tsv --glue --output SST-2.tsv
                                                           a file for the GLUE benchmark's server

Standard output gets a line for each text: label, tab, probability. If the file has labels, standard
error gets the scores. A model trained on pairs takes two texts with a tab between them.
"""

from system import console

if __name__ == "__main__":
    console.end_on_signals()

import argparse
import array
import contextlib
import itertools
import os
import shlex
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from inputs import encodings, files, labels, tables, texts
from inputs.texts import MAX_TEXTS, TextFile
from outputs import writers
from outputs.writers import Answer
from system import disk
from system.console import InputError, Problem, collect_problems, progress, raise_any, result, say

if TYPE_CHECKING:
    from outputs.classifier import Classifier

Text = Sequence[str | None]  # shape (1,), or (2,) for a pair


# ---- Predictions ----


def answers(classifier: "Classifier", batch: Sequence[Text], bar: tqdm) -> list[Answer]:
    """The prediction for each text, in order; None for a blank text."""
    from outputs import classifier as classifiers

    filled = [number for number, text in enumerate(batch) if not any(map(tables.is_blank, text))]
    results: list[Answer] = [None] * len(batch)
    for start in range(0, len(filled), MAX_TEXTS):
        part = filled[start : start + MAX_TEXTS]
        columns = zip(*(batch[number] for number in part), strict=True)
        classes, probabilities = classifiers.answer(classifier, *columns, on_batch=bar.update)
        for number, *answer in zip(part, classes.tolist(), probabilities.tolist(), strict=True):
            results[number] = tuple(answer)
    bar.update(len(batch) - len(filled))
    return results


def show(results: Sequence[Answer], names: Sequence[str]) -> None:
    """Print a line for each prediction: label, tab, probability; an empty line for None."""
    # A class name may contain tabs and newlines.
    names = [" ".join(name.split()) for name in names]
    lines = [f"{names[answer[0]]}\t{answer[1]:.4f}" if answer else "" for answer in results]
    if lines:
        result("\n".join(lines))


def label_lines(classifier: "Classifier", parts: Iterable[list[str]], unit: str) -> None:
    """Print the prediction for each line, part by part."""
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
                message = "expected two texts, because the model was trained on pairs"
                remedy = "separate them with one tab"
                raise InputError(Problem(f"{unit} {number}", message, remedy))


def label_file(classifier: "Classifier", file: TextFile, output: Path | None, glue: bool) -> None:
    """Print or write the prediction for each row of a file, then print the scores."""
    names = classifier.labels
    compares_ids = _knows_order(classifier) or not labels.are_ids(file.labels, names)
    ids = labels.ids_of(file.labels, names, compares_ids)
    references, predictions = array.array("i"), array.array("i")  # 4 bytes each

    def windows(bar: tqdm) -> Iterator[tuple[list[dict], list[Answer]]]:
        for rows in file.windows():
            batch = [tables.row_texts(row, file.text_columns) for row in rows]
            results = answers(classifier, batch, bar)
            for row, answer in zip(rows, results, strict=True):
                with contextlib.suppress(TypeError, KeyError):
                    if answer and ids:
                        references.append(ids[tables.label_name(row.get(file.label_column))])
                        predictions.append(answer[0])
            yield rows, results

    with progress(file.rows, "texts", "predicting") as bar:
        rows = windows(bar)
        if output:
            # A symbolic link is kept, and its target is written.
            ending, target = output.suffix.lower(), output.resolve()
            table = ending, Path(file.table.name), file.columns, names, rows
            fill = (lambda out: writers.write_glue(out, rows, names)) if glue else None
            disk.write_whole(target, fill or (lambda out: writers.write_table(out, *table)))
        elif glue:
            writers.write_glue(sys.stdout.buffer, rows, names)
        else:
            for _, results in rows:
                show(results, names)
    where = f"{file.table.name}, column {file.label_column!r}"
    if labels.are_ids(file.labels, names):
        listed = ", ".join(f"{number} is {name!r}" for number, name in enumerate(names))
        if not compares_ids:
            listed = "the order of the model's classes is unknown, so there is no score"
        say(f"NOTE: {where}: ids in place of names; {listed}")
    elif unknown := file.labels != {"-1"} and sorted(file.labels - ids.keys()):
        listed = ", ".join(map(repr, unknown[:5]))
        say(f"{where}: labels unknown to the model (found {listed}); their rows get no score")
    if references:
        from training import scores

        say(scores.report_lines(references, predictions, names))


def _knows_order(classifier: "Classifier") -> bool:
    """True if the ids of a data set are the model's: its classes had an order before training."""
    if not classifier.record:
        return True
    has_class_names = classifier.record.get("reading", {}).get("has_class_names")
    return has_class_names or classifier.record["settings"]["data"] in ("builtin", "sst2")


def _trained_columns(classifier: "Classifier | None") -> dict[str, list[str]]:
    """The columns of the training data, by setting; empty if the model has no run.json."""
    settings = classifier.record["settings"] if classifier and classifier.record else {}
    columns = {name: settings.get(name) or [] for name in ("text_column", "label_column")}
    return {name: [c] if isinstance(c, str) else c for name, c in columns.items()}


# ---- The command line ----


def read_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Parse and check the arguments; InputError has every problem."""
    parser = console.Parser(prog="predict.py", description=__doc__)
    endings, add = ", ".join(filter(None, files.ENDINGS)), parser.add_argument
    add("run", metavar="RUN", nargs="?", help="folder of a run or a model, or a Hub id")
    add("texts", metavar="TEXT", nargs="*", help="texts or one file; default: standard input")
    outputs = ", ".join(writers.WRITERS)
    add("--output", type=Path, help=f"file for the rows and their predictions: {outputs}")
    add("--glue", action="store_true", help="write the format of GLUE's server")
    add("--text-column", nargs="+", help="one column, or two for pairs; default: as in training")
    add("--label-column", help="column of labels for the scores; default: as in training")
    add("--encoding", help="encoding of the file; default: UTF-8, else found by its bytes")
    options = parser.parse_intermixed_args(argv)
    arguments, columns = options.texts, options.text_column or []
    # `--text-column a file.csv` takes the file for a second column.
    if not arguments and len(columns) > 1 and _is_file(columns[-1]):
        arguments.append(columns.pop())
    file_names = [word for word in arguments if _is_file(word)]
    options.file = Path(file_names[0]) if file_names and len(arguments) == 1 else None
    problems: list[Problem] = []
    if not options.run:
        problems.append(Problem("RUN", "missing", "name the folder of a run or a model"))
    if file_names and len(arguments) > 1:
        message = f"expected one file and no texts (found {len(arguments)} arguments)"
        problems.append(Problem(file_names[0], message, "choose one file"))
    elif options.file and not options.file.is_file():
        problems.append(Problem(file_names[0], "no such file"))
    elif options.file and files.ending(options.file) not in files.ENDINGS:
        message = f"unknown ending {options.file.suffix!r}"
        remedy = f"use one of {endings}, or `< {file_names[0]}` for one text a line"
        problems.append(Problem(file_names[0], message, remedy))
    for name in ("output", "glue", "text_column", "label_column", "encoding"):
        if getattr(options, name) and not file_names:
            flag = f"--{name.replace('_', '-')}"
            problems.append(Problem("", "needs a file of texts", "name a file", flag))
    if options.encoding and not encodings.is_codec(options.encoding):
        message = f"must be {encodings.DESCRIPTION} (found {options.encoding!r})"
        problems.append(Problem("", message, flag="--encoding"))
    problems += _output_problems(options)
    if any(map(tables.LONE_SURROGATE.search, arguments)):
        problems.append(Problem("text on the command line", "not UTF-8", "encode it as UTF-8"))
    raise_any(problems)
    return options


def _is_file(word: str) -> bool:
    """True if a file `word` exists, or if `word` looks like the name of a table."""
    try:
        is_there = Path(word).is_file()
    # A text can be too long for a file name, or contain a NUL.
    except (OSError, ValueError):
        return False
    is_table = files.ending(Path(word)) in filter(None, files.ENDINGS)
    return is_there or (is_table and " " not in word)


def _output_problems(options: argparse.Namespace) -> Iterator[Problem]:
    output, file = options.output, options.file
    if not output:
        return
    endings, message, remedy = [".tsv"] if options.glue else list(writers.WRITERS), "", ""
    try:
        if output.suffix.lower() not in endings:
            message = f"must end with {' or '.join(endings)}"
        elif not output.parent.is_dir():
            message, remedy = f"no such folder {output.parent}", "create it"
        elif output.is_dir():
            message, remedy = "is a folder", "name a file"
        elif file and file.exists() and output.exists() and output.samefile(file):
            message, remedy = "is the file of texts", "choose another file"
        elif not os.access(output.parent, os.W_OK | os.X_OK):
            message = f"no permission to write in {output.parent}"
    except OSError as error:
        message, remedy = error.strerror, "choose another file"
    if message:
        yield Problem(str(output), message, remedy, "--output")


def main(argv: Sequence[str]) -> None:
    """Run the command line `argv`."""
    options = read_arguments(argv)
    # A slow import, which a wrong argument must not wait for.
    from outputs import classifier as classifiers

    problems: list[Problem] = []
    classifier = file = None
    with collect_problems(problems):
        classifier = classifiers.load(options.run)
    if options.file:
        writes_rows = options.output and not options.glue
        added = (writers.PREDICTION, writers.PROBABILITY) if writes_rows else ()
        chosen = texts.Request(options.text_column, options.label_column, options.encoding)
        command = f"python predict.py {shlex.join([options.run, str(options.file)])}"
        with collect_problems(problems):
            trained = _trained_columns(classifier)
            file = texts.look_through(options.file, chosen, trained, added, options.glue, command)
    raise_any(problems)
    console.stop_on_signals()
    if hasattr(signal, "SIGPIPE") and not options.output:
        # `| head` ends this program silently, as it ends other tools.
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    sys.stdout.reconfigure(encoding="utf-8", newline="\n")
    if file:
        label_file(classifier, file, options.output, options.glue)
    elif options.texts:
        label_lines(classifier, [options.texts], "text")
    elif sys.stdin is None:
        raise InputError(Problem("standard input", "closed", "give texts or a file"))
    else:
        if sys.stdin.isatty():
            say("reading one text a line; Ctrl-D ends the input")
        label_lines(classifier, texts.arrived_lines(sys.stdin.buffer), "standard input, line")


if __name__ == "__main__":
    with console.exit_codes():
        main(sys.argv[1:])
