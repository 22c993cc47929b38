"""Label texts with the model that a run left.

python predict.py runs/first "a fine film" "a dull one"    texts
python predict.py runs/first < reviews.txt                 a text a line
python predict.py runs/first reviews.csv --output new.csv  a csv, tsv, jsonl or parquet file
python predict.py runs/first test.tsv --glue --output SST-2.tsv
                                                           as the GLUE benchmark's server takes it

On standard output a line a text, in their order: its label, a tab, and the probability. Where a
file has labels too, standard error says how well they agree. A tab parts the two texts of a pair.
"""

from system import console

if __name__ == "__main__":
    console.end_on_signals()

import argparse
import array
import contextlib
import io
import itertools
import os
import re
import select
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

from inputs import labels, tables
from inputs.files import READERS
from inputs.texts import (
    FIRST_WINDOW,
    LARGEST_WINDOW,
    MOST_TEXTS,
    TextFile,
    is_blank,
    look_through,
    trained_columns,
)
from outputs import writers
from outputs.writers import Answer
from system import disk as files
from system.console import InputError, Progress, progress, result, say

if TYPE_CHECKING:
    from outputs.classifier import Classifier

Text = Sequence[str | None]  # One, or two of a pair.
MOST_CLASSES = 20  # Whose confusions can be read in a table.


# ---- Lines ----


def arrived_lines(stream: io.BufferedReader) -> Iterator[list[str]]:
    """The lines of a stream, those that have arrived at a time: none is waited for.

    Raises:
        InputError: a line is not UTF-8; those before it have come.
    """
    unended, number, size = b"", 1, FIRST_WINDOW
    # Not by read1(): where a pipe does not block, it takes what has not come yet for the end.
    while (chunk := stream.raw.read(size)) != b"":
        if chunk is None:
            select.select([stream], [], [])
            continue
        *lines, unended = (unended + chunk).split(b"\n")
        yield from _decoded(lines, number)
        number, size = number + len(lines), min(2 * size, LARGEST_WINDOW)
    if unended:
        yield from _decoded([unended], number)


def _decoded(lines: list[bytes], first: int) -> Iterator[list[str]]:
    texts: list[str] = []
    for number, line in enumerate(lines, first):
        try:
            texts.append(line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r"))
        except UnicodeDecodeError as error:
            yield texts
            raise InputError(
                f"standard input, line {number}: byte {line[error.start]:#04x} is not UTF-8"
            ) from None
    yield texts


def label_lines(classifier: "Classifier", parts: Iterable[list[str]], what: str) -> None:
    """Print the answer to each line, of one part after the other."""
    number = 1
    takes_pairs = len(trained_columns(classifier.record, "text_column") or []) == 2
    with progress(None, "texts", "predicting") as bar:
        for lines in parts:
            texts: list[Text] = [[line] for line in lines]
            if takes_pairs:
                texts = [line.split("\t") if line.strip() else [None, None] for line in lines]
                texts = list(itertools.takewhile(lambda text: len(text) == 2, texts))
            show(answers(classifier, texts, bar), classifier.labels)
            number += len(texts)
            if len(texts) < len(lines):
                raise InputError(
                    f"{what} {number}: the model was trained on pairs of texts; give two, with one "
                    "tab between them"
                )


# ---- Answers ----


def answers(classifier: "Classifier", texts: Sequence[Text], bar: Progress) -> list[Answer]:
    """The answer to each text, in their order; None where there is none."""
    from outputs import classifier as classify

    asked = [number for number, text in enumerate(texts) if not any(map(is_blank, text))]
    found: list[Answer] = [None] * len(texts)
    for start in range(0, len(asked), MOST_TEXTS):
        part = asked[start : start + MOST_TEXTS]
        columns = zip(*(texts[number] for number in part), strict=True)
        classes, probabilities = classify.answer(classifier, *columns, on_batch=bar.update)
        for number, *best in zip(part, classes.tolist(), probabilities.tolist(), strict=True):
            found[number] = tuple(best)
    bar.update(len(texts) - len(asked))
    return found


def show(found: Sequence[Answer], names: Sequence[str]) -> None:
    """Print a line for each answer: the label, a tab, and the probability; nothing for none."""
    # A name may hold anything; a line is a line all the same.
    names = [" ".join(name.split()) for name in names]
    lines = [f"{names[best[0]]}\t{best[1]:.4f}" if best else "" for best in found]
    if lines:
        result("\n".join(lines))


# ---- Files ----


def label_file(classifier: "Classifier", file: TextFile, wanted: SimpleNamespace) -> None:
    """Print the answer to each row of a file, or write them with the rows; then the scores."""
    ids = labels.ids_of(file.labels, classifier.labels)
    references, predictions = array.array("i"), array.array("i")  # Four bytes each.

    def windows(bar: Progress) -> Iterator[tuple[list[dict], list[Answer]]]:
        for rows in file.windows():
            texts = [[row.get(column) for column in file.text_columns] for row in rows]
            found = answers(classifier, texts, bar)
            for row, best in zip(rows, found, strict=True):
                with contextlib.suppress(TypeError, KeyError):
                    if best and ids:
                        references.append(ids[tables.label_name(row.get(file.label_column))])
                        predictions.append(best[0])
            yield rows, found

    names = classifier.labels
    output = wanted.output and wanted.output.resolve()  # And not a link in its place.
    with progress(file.rows, "texts", "predicting") as bar:
        found = windows(bar)
        if wanted.output and wanted.glue:
            files.write_whole(output, lambda out: writers.write_glue(out, found))
        elif wanted.output:
            how = wanted.output.suffix.lower(), file.path, file.columns, names, found
            files.write_whole(output, lambda out: writers.write_table(out, *how))
        elif wanted.glue:
            writers.write_glue(sys.stdout.buffer, found)
        else:
            for _, answered in found:
                show(answered, names)
    if others := file.labels != {"-1"} and sorted(file.labels - ids.keys()):
        shown = ", ".join(map(repr, others[:5]))
        where = f"{file.path}: rows whose label in {file.label_column!r} the model does not know"
        say(f"{where} are not compared: {shown}")
    if references:
        say(scores(references, predictions, names))


def scores(references: Sequence[int], predictions: Sequence[int], names: list[str]) -> str:
    """How well predictions agree with what is right, in lines: by scikit-learn."""
    from sklearn.metrics import classification_report, confusion_matrix

    ids = sorted(set(references))  # Of others there is nothing to find.
    right = sum(map(int.__eq__, references, predictions))
    report = classification_report(
        references,
        predictions,
        labels=ids,
        target_names=[names[number] for number in ids],
        digits=4,
        zero_division=0,
    )
    matrix = confusion_matrix(references, predictions, labels=list(range(len(names))))
    width = max(len(str(matrix.max())), *map(len, names))
    total = len(references)
    lines = [f"accuracy {right / total:.4f}: {right:,} of {total:,} are right", report]
    if len(names) > MOST_CLASSES:
        return "\n".join(lines)
    lines.append("rows: what is right, columns: what was predicted")
    lines.append(" ".join(f"{name:>{width}}" for name in ["", *names]))
    for name, row in zip(names, matrix.tolist(), strict=True):
        lines.append(" ".join(f"{cell:>{width}}" for cell in [name, *row]))
    return "\n".join(lines)


# ---- The command line ----


def read_arguments(argv: Sequence[str]) -> SimpleNamespace:
    """What is asked for, checked as far as a look at names shows.

    Raises:
        InputError: with one problem for each thing that is wrong.
    """
    parser = console.Parser(
        prog="predict.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    about_run = "folder of a run or a model, or a Hub id"
    parser.add_argument("run", metavar="RUN", nargs="?", help=about_run)
    parser.add_argument(
        "texts", metavar="TEXT", nargs="*", help="texts, or a file of them; none: standard input"
    )
    parser.add_argument(
        "--output", type=Path, help=f"write the file's rows and answers: {', '.join(READERS)}"
    )
    parser.add_argument("--glue", action="store_true", help="write a file for GLUE's server")
    parser.add_argument(
        "--text-column", nargs="+", help="one column, or two of a pair; else as in training"
    )
    parser.add_argument("--label-column", type=lambda name: [name], help="else as in training")
    wanted = parser.parse_intermixed_args(argv)
    texts, columns, output = wanted.texts, wanted.text_column or [], wanted.output
    if not texts and len(columns) > 1 and _is_file(columns[-1]):
        texts.append(columns.pop())  # `--text-column a file.csv`
    named = [text for text in texts if _is_file(text)]
    wanted.file = Path(named[0]) if named and len(texts) == 1 else None
    problems = [] if wanted.run else ["RUN: name the folder of a run or a model first"]
    if len(texts) > 1:
        problems += [f"{name}: one file at a time, and no texts beside it" for name in named[:1]]
    elif wanted.file and not wanted.file.is_file():
        problems.append(f"{wanted.file}: no such file")
    elif wanted.file and wanted.file.suffix.lower() not in READERS:
        problems.append(
            f"{wanted.file}: the ending is unknown; known: {', '.join(READERS)}; with a text a "
            f"line, give it as standard input, `< {wanted.file}`"
        )
    for flag in ("output", "glue", "text_column", "label_column"):
        if getattr(wanted, flag) and not named:
            problems.append(f"--{flag.replace('_', '-')}: is for a file of texts; name one")
    if len(columns) > 2:
        problems.append(f"--text-column: found {columns}; one or two columns are meant")
    if output:
        try:
            problem = _problem_with(output, wanted)
        except OSError as error:  # A name too long, a folder closed to us.
            problem = f"{error.strerror}; name another"
        problems += [f"--output {output}: {problem}"] if problem else []
    if any(re.search(tables.HALF_CHARACTER, text) for text in texts):
        problems.append("a text on the command line is not UTF-8; give texts as UTF-8")
    if problems:
        raise InputError(*problems)
    return wanted


def _is_file(word: str) -> bool:
    """Whether a word is meant as the name of a file: there is one, or it looks like one."""
    try:
        is_there = Path(word).is_file()
    except (OSError, ValueError):  # Too long for a name, or with a NUL.
        return False
    return is_there or (Path(word).suffix.lower() in READERS and " " not in word)


def _problem_with(output: Path, wanted: SimpleNamespace) -> str | None:
    endings = [".tsv"] if wanted.glue else list(READERS)
    if output.suffix.lower() not in endings:
        return f"it must end with {' or '.join(endings)}"
    if not output.parent.is_dir():
        return f"there is no folder {output.parent}"
    if output.is_dir():
        return "it is a folder; name a file"
    if wanted.file and wanted.file.exists() and output.exists() and output.samefile(wanted.file):
        return "that is the file of texts itself; name another"
    if not os.access(output.parent, os.W_OK | os.X_OK):
        return f"no permission to write in {output.parent}"
    return None


def main(argv: Sequence[str]) -> None:
    """Answer what the command line asks for."""
    wanted = read_arguments(argv)
    from outputs import (
        classifier as classify,
    )  # Takes seconds, and a wrong word on the command line is answered at once.

    problems: list[str] = []
    classifier = file = None
    with console.gather(problems):
        classifier = classify.load(wanted.run)
    if wanted.file:
        with console.gather(problems):
            file = look_through(wanted.file, wanted, classifier and classifier.record)
    if problems:
        raise InputError(*problems)
    console.stop_on_signals()
    if hasattr(signal, "SIGPIPE") and not wanted.output:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends it, as it does any tool.
    sys.stdout.reconfigure(encoding="utf-8", newline="\n")
    if file:
        label_file(classifier, file, wanted)
    elif wanted.texts:
        label_lines(classifier, [wanted.texts], "text")
    elif sys.stdin is None:
        raise InputError("no texts: standard input is closed; give texts, or a file of them")
    else:
        if sys.stdin.isatty():
            say("a text a line; Ctrl-D ends")
        label_lines(classifier, arrived_lines(sys.stdin.buffer), "standard input, line")


if __name__ == "__main__":
    with console.exit_codes():
        files.mark_as_own()
        main(sys.argv[1:])
