"""The first row of a table: a header, or data."""

import itertools
from collections.abc import Iterable

from inputs.columns import TEXT_PARTS, USUAL
from inputs.contents import LABEL_PARTS, NUMBER
from inputs.files import name_parts

SAMPLE_ROWS = 100
LONGEST_NAME = 100  # Characters; the questions of a survey are long names.


def is_header(first: list[str], rows: Iterable[list[str]]) -> tuple[bool, bool]:
    """True if the `first` row names the columns of the `rows`, and True if that is sure.

    A header has short cells, no numbers, and no cell that comes again below in its column.
    """
    # pandas calls columns without names 0, 1, 2.
    numbers = [name for name in first if name]
    if numbers == [str(number) for number in range(len(numbers))] and len(first) > 1:
        return True, True
    is_long = any(len(cell) > LONGEST_NAME or _is_sentence(cell) for cell in first)
    is_usual = not is_long and any(cell.lower() in USUAL for cell in first)
    sample: list[list[str]] = []
    for row in itertools.islice(rows, SAMPLE_ROWS) if is_usual else rows:
        # A header that comes again as a whole is still a header.
        if any(map(_is_same, first, row)) and not is_equal(row, first):
            return False, True
        if len(sample) < SAMPLE_ROWS:
            sample.append(row)
    # A name stands above numbers.
    if is_usual or any(itertools.starmap(_is_above_numbers, zip(first, *sample[1:], strict=False))):
        return True, True
    short = [cell for cell in first if cell.count(" ") < 3]
    has_part = any(name_parts(cell) & (TEXT_PARTS | LABEL_PARTS) for cell in short)
    return not is_long and not any(map(NUMBER.fullmatch, first)), has_part


def _is_same(name: str, cell: str) -> bool:
    return name != "" and cell.strip() == name


def _is_above_numbers(name: str, *below: str) -> bool:
    cells = {cell.strip() for cell in below} - {""}
    is_number = name == "" or NUMBER.fullmatch(name) is not None
    return bool(cells) and not is_number and all(map(NUMBER.fullmatch, cells))


def _is_sentence(cell: str) -> bool:
    return cell.endswith((".", "!")) and cell.count(" ") >= 3


def bare(cell: str) -> str:
    """A cell of a header, without spaces and quotes around it."""
    return cell.strip().strip('" ')


def is_equal(row: list[str], first: list[str]) -> bool:
    """True if a row is the header again."""
    return [*map(bare, row)] == first
