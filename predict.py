"""Predict the labels of texts with a trained model.

python predict.py runs/first "a fine film" "a dull one"    texts
python predict.py runs/first < reviews.txt                 one text a line
python predict.py runs/first reviews.csv --output new.csv  a table, such as a csv file
python predict.py runs/first reviews.csv --all             the probability of each class, too
python predict.py runs/first reviews.csv --at-least 0.9    no answer below this probability
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
import signal
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tqdm import tqdm

from inputs import encodings, files, labels, tables, texts
from inputs.texts import TextFile
from outputs import answers, writers
from outputs.answers import Answer, Text
from system import disk
from system.console import InputError, Problem, collect_problems, progress, raise_any, say

if TYPE_CHECKING:
    from outputs.classifier import Classifier


# ---- Predictions ----


class OutputOptions(NamedTuple):
    """The form of the output; an answer below the probability `at_least` is empty."""

    every_class: bool
    at_least: float
    glue: bool
    output: Path | None


def label_lines(
    classifier: "Classifier", parts: Iterable[list[str]], unit: str, form: OutputOptions
) -> None:
    """Print the answer to each line, part by part."""
    number, counts = 1, Counter()
    if form.every_class:
        answers.show_header(classifier.labels)
    takes_pairs = len(_trained_columns(classifier)["text_column"]) == 2
    with progress(None, "texts", "predicting") as bar:
        for lines in parts:
            batch: list[Text] = [[line] for line in lines]
            if takes_pairs:
                batch = [line.split("\t") if line.strip() else [None, None] for line in lines]
                batch = list(itertools.takewhile(lambda text: len(text) == 2, batch))
            results = answers.answer_texts(classifier, batch, form.at_least, bar)
            answers.show(results, classifier.labels, form.every_class)
            number, counts = number + len(batch), counts + answers.count(results)
            if len(batch) < len(lines):
                message = "expected two texts, because the model was trained on pairs"
                remedy = "separate them with one tab"
                raise InputError(Problem(f"{unit} {number}", message, remedy))
    answers.say_count(counts, form.at_least)


def label_file(classifier: "Classifier", file: TextFile, form: OutputOptions) -> None:
    """Print or write the answer to each row of a file, then print the scores."""
    names = classifier.labels
    compares_ids = _knows_order(classifier) or not labels.are_ids(file.labels, names)
    ids = labels.ids_of(file.labels, names, compares_ids)
    references, predictions = array.array("i"), array.array("i")  # 4 bytes each
    counts = Counter()

    def windows(bar: tqdm) -> Iterator[tuple[list[dict], list[Answer]]]:
        for rows in file.windows():
            batch = [tables.row_texts(row, file.text_columns) for row in rows]
            results = answers.answer_texts(classifier, batch, form.at_least, bar)
            counts.update(answers.count(results))
            for row, answer in zip(rows, results, strict=True):
                with contextlib.suppress(TypeError, KeyError):
                    if answer.class_id is not None and ids:
                        references.append(ids[tables.label_name(row.get(file.label_column))])
                        predictions.append(answer.class_id)
            yield rows, results

    with progress(file.rows, "texts", "predicting") as bar:
        rows = windows(bar)
        if form.output:
            # A symbolic link is kept, and its target is written.
            ending, target = form.output.suffix.lower(), form.output.resolve()
            added = answers.added_columns(names, form.every_class)
            table = ending, Path(file.table.name), file.columns, added, names, rows
            fill = (lambda out: writers.write_glue(out, rows, names)) if form.glue else None
            disk.write_whole(target, fill or (lambda out: writers.write_table(out, *table)))
        elif form.glue:
            writers.write_glue(sys.stdout.buffer, rows, names)
        else:
            if form.every_class:
                answers.show_header(names)
            for _, results in rows:
                answers.show(results, names, form.every_class)
    answers.say_count(counts, form.at_least)
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

        if form.at_least:
            say("scores of the answered texts:")
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
    add("--all", action="store_true", help="also give the probability of each class")
    add("--at-least", metavar="P", default="0", help="no answer below this probability")
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
    problems += _answer_problems(options)
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


def _answer_problems(options: argparse.Namespace) -> Iterator[Problem]:
    is_probability = _is_probability(options.at_least)
    if not is_probability:
        message = f"must be a number from 0 to 1 (found {options.at_least!r})"
        yield Problem("", message, flag="--at-least")
    is_partial = is_probability and float(options.at_least) > 0
    for flag, is_set in (("--all", options.all), ("--at-least", is_partial)):
        if options.glue and is_set:
            message = "GLUE's file has one answer to each row"
            yield Problem("", message, "leave out --glue or this flag", flag)


def _is_probability(text: str) -> bool:
    try:
        return 0 <= float(text) <= 1
    except ValueError:
        return False


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
        names = classifier.labels if classifier else []
        added = answers.added_columns(names, options.all) if writes_rows else ()
        chosen = texts.Request(options.text_column, options.label_column, options.encoding)
        command = f"python predict.py {console.quoted(options.run, str(options.file))}"
        with collect_problems(problems):
            trained = _trained_columns(classifier)
            file = texts.look_through(options.file, chosen, trained, added, options.glue, command)
    raise_any(problems)
    console.stop_on_signals()
    if hasattr(signal, "SIGPIPE") and not options.output:
        # `| head` ends this program silently, as it ends other tools.
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    sys.stdout.reconfigure(encoding="utf-8", newline="\n")
    form = OutputOptions(options.all, float(options.at_least), options.glue, options.output)
    if file:
        label_file(classifier, file, form)
    elif options.texts:
        label_lines(classifier, [options.texts], "text", form)
    elif sys.stdin is None:
        raise InputError(Problem("standard input", "closed", "give texts or a file"))
    else:
        if sys.stdin.isatty():
            say("reading one text a line; Ctrl-D (on Windows Ctrl-Z, Enter) ends the input")
        lines = texts.arrived_lines(sys.stdin.buffer)
        label_lines(classifier, lines, "standard input, line", form)


if __name__ == "__main__":
    with console.exit_codes():
        main(sys.argv[1:])
