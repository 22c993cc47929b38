"""Checks of a refused or a complete run, and small tables."""

import json
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

import data
from inputs import forms
from inputs.rows import Table
from system.console import InputError, Problem

Run = SimpleNamespace


def check_refused(run: Run, output: Path, *messages: str) -> None:
    """Check for exit code 2, one error line a message, no traceback, empty stdout and no output."""
    assert run.code == 2, run.err
    assert run.out == ""
    assert "Traceback" not in run.err
    assert len(run.errors) == len(messages), run.err
    for message in messages:
        assert any(message in line for line in run.errors), f"{message!r} not in {run.errors}"
    assert not output.exists()


def check_prediction_refused(
    predicted: Callable[..., Run],
    folder: Path,
    arguments: list[str],
    files: dict[str, str],
    message: str,
) -> None:
    """Check that predict.py refuses `arguments` with one error line and writes nothing."""
    for name, text in files.items():
        (folder / name).write_text(text)
    run = predicted(*arguments)
    assert run.code == 2 and run.out == "" and len(run.errors) == 1, run.err
    assert message in run.errors[0] and "Traceback" not in run.err, run.err
    assert {path.name for path in folder.iterdir()} == set(files)


def check_done(run: Run, output: Path, epochs: int = 1) -> dict:
    """Check for exit code 0, a line for each epoch, a model and a result; returns run.json."""
    assert run.code == 0, run.err
    assert [line.split("{")[0] for line in run.out.splitlines()] == [
        f"epoch {epoch}: " for epoch in range(epochs)
    ]
    assert run.out.count(": {'accuracy': ") == epochs
    assert (output / "model" / "model.safetensors").exists()
    record = json.loads((output / "run.json").read_text())
    assert record["result"]["accuracy"] >= 0
    return record


def check_file_refused(
    in_process, model: Path, folder: Path, name: str, content: str | bytes | None, message: str
) -> None:
    """Check that the program refuses the file `name` in one line; with None the file is missing."""
    if content is not None:
        content = content if isinstance(content, bytes) else content.encode()
        (folder / name).write_bytes(content)
    run = in_process("--model", model, "--data", name, "--output-dir", "run")
    check_refused(run, folder / "run", message)


# ---- Small tables ----


def lines(rows: Collection[Sequence[object]], separator: str = ",", end: str = "\n") -> str:
    """The rows as separated values, without quotes."""
    return "".join(separator.join(map(str, row)) + end for row in rows)


def sentences(count: int, *classes: object) -> list[tuple[str, object]]:
    """Different texts of five words, with the classes in turn."""
    return [(f"this is the text {i}", classes[i % len(classes)]) for i in range(count)]


def write(folder: Path, name: str, content: str | bytes) -> Path:
    """Write a file, and the folders above it."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def load_text(
    folder: Path, name: str, content: str | bytes, *columns: object, **options: object
) -> data.LabelledText:
    """Write the table `content` to the file `name`, and load the file."""
    return data.load(str(write(folder, name, content)), *columns, **options)


def open_text(folder: Path, name: str, content: str | bytes, named: Collection[str] = ()) -> Table:
    """Write `content` to the file `name`, and open its table."""
    return forms.open_file(write(folder, name, content), named=named)


def read(table: Table) -> tuple[list[tuple[int, dict[str, object]]], list[str]]:
    """All rows of a table with their numbers, and the problems as text."""
    problems: list[Problem] = []
    rows = list(table.rows(problems, (), False))
    return rows, list(map(str, problems))


def refusals(
    folder: Path, name: str, content: str | bytes, *columns: object, **options: object
) -> list[str]:
    """The problems for which a file is refused, without its folder."""
    with pytest.raises(InputError) as caught:
        load_text(folder, name, content, *columns, **options)
    return [str(problem).replace(f"{folder}/", "") for problem in caught.value.problems]
