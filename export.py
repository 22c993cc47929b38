"""Export the model of a run to ONNX, which runs without PyTorch.

python export.py runs/first           writes runs/first/onnx/ with model.onnx and its tokenizer
python export.py runs/first --int8    also writes model_int8.onnx, a smaller and faster model

Standard output gets a table of PyTorch and the exported models, on the validation data of the run
and on the CPU: accuracy, sentences per second, size in MB, labels that are not PyTorch's, and the
largest difference of a probability. The data must be in place, as for report.py.
"""

from system import console

if __name__ == "__main__":
    console.end_on_signals()

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

from outputs import compare
from system import disk
from system.console import InputError, Problem, raise_any, say
from training import record as records
from training import run_folder

FOLDER = "onnx"
# Optional packages, in the versions of tests/requirements.txt.
PACKAGES = ("onnx==1.23.2", "onnxscript==0.7.2", "onnxruntime==1.32.0")


def read_arguments(argv: Sequence[str]) -> tuple[argparse.Namespace, dict]:
    """The arguments and the record of the run; InputError has every problem."""
    parser = console.Parser(prog="export.py", description=__doc__)
    parser.add_argument("run", metavar="RUN", type=Path, help="folder of a run")
    parser.add_argument("--int8", action="store_true", help="also write a model of 8-bit integers")
    options = parser.parse_args(argv)
    problems: list[Problem] = []
    names = [package.partition("==")[0] for package in PACKAGES]
    if missing := [name for name in names if not importlib.util.find_spec(name)]:
        remedy = f"use `pip install {' '.join(PACKAGES)}`"
        problems.append(Problem(", ".join(missing), "not installed", remedy))
    record = None
    try:
        record = records.read(options.run)
        if not record:
            message, remedy = f"{records.NAME} is missing", "name the folder of a run"
            problems.append(Problem(str(options.run), message, remedy))
    except InputError as error:
        problems += [problem._replace(flag="") for problem in error.problems]
    raise_any(problems)
    return options, record


def main(argv: Sequence[str]) -> None:
    """Run the command line `argv`."""
    options, record = read_arguments(argv)
    # Slow imports, which a wrong argument must not wait for.
    from outputs import classifier as classifiers
    from outputs import onnx_export
    from outputs import validation as validations

    with records.damaged(options.run):
        classifier, validation = validations.load(options.run, record)
    target = options.run / FOLDER
    say(f"exporting {options.run / run_folder.MODEL}, which can take minutes")
    program = onnx_export.export(classifier, validation.has_pairs)
    classifier = classifiers.prepare(classifier, "cpu")
    rows = [["", "accuracy", "sentences/s", "MB", "changed labels", "largest difference"]]

    def fill(folder: Path) -> None:
        onnx_export.write(folder, program, classifier, options.int8)
        for form in onnx_export.measure(classifier, validation, folder):
            numbers = f"{form.accuracy:.4f}", f"{form.rate:.1f}", f"{form.megabytes:.1f}"
            rows.append([form.name, *numbers, str(form.changed), f"{form.difference:.7f}"])

    # From here on, a signal removes the partial folder. PyTorch's export would swallow Stopped.
    console.stop_on_signals()
    disk.replace_folder(target, fill)
    console.result(compare.align(rows))
    say(f"written to {target}: {', '.join(sorted(file.name for file in target.iterdir()))}")


if __name__ == "__main__":
    with console.exit_codes():
        sys.stdout.reconfigure(encoding="utf-8")
        main(sys.argv[1:])
