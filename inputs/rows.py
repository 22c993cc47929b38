"""A table whose rows are not read yet: its columns, a reader of its rows, and their places."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from inputs.files import at
from system.console import Problem

Rows = Iterator[tuple[int, dict[str, object]]]


class Table(NamedTuple):
    """A table before its rows are read.

    `rows` is a function of (problems, columns, show). It adds a problem for each row of broken
    structure, and yields (number, {column: value}) for the other rows. A number is the line on
    which the row starts, or counts what `unit` says. Other columns than `columns` may be left out.
    With `show` it shows progress.
    """

    name: str
    columns: list[str]
    rows: Callable[[list[Problem], Sequence[str], bool], Rows]
    unit: str = "line"
    problems: Sequence[Problem] = ()  # Found in the first rows.
    class_names: Mapping[str, list[str]] = {}  # For columns; in the order of ids.
    notes: Sequence[str] = ()  # For the user: how the file is read.
    facts: Mapping[str, object] = {}  # For run.json: the same.
    is_json: bool = False
    duplicates: Collection[str] = ()  # Names that several columns have.
    files: Sequence[Path] = ()  # The file of each row, if each row has its own.
    fingerprint: Callable[[], str] = str  # Changes with the content.

    def place(self, number: int) -> str:
        """The place of a row, for messages."""
        return str(self.files[number - 1]) if self.files else at(self.name, number, self.unit)
