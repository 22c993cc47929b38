"""Other training rows than SST-2's, for the recipes with the key `rows`."""

from collections.abc import Callable


def repeat_sentences(
    rows: list[int], labels: list[str], texts: list[str], sentences: set[int]
) -> list[int]:
    """Each whole sentence four times, and each other row once, in their original order."""
    return [row for row in rows for _ in range(4 if row in sentences else 1)]


def drop_near_duplicates(
    rows: list[int], labels: list[str], texts: list[str], sentences: set[int]
) -> list[int]:
    """The rows without near-duplicates, in their original order.

    A row is dropped if another row has its label and its tokens, and one or two more at an end. The
    longer row may be dropped too, because of a third. If several rows have the same label and
    tokens, the first one stays.
    """
    tokens = {row: texts[row].split() for row in rows}
    shorter = {
        (labels[row], *parts[start : len(parts) - end])
        for row, parts in tokens.items()
        for start in range(3)
        for end in range(3)
        if start + end
    }
    first = {(labels[row], *parts): row for row, parts in reversed(tokens.items())}
    return sorted(row for phrase, row in first.items() if phrase not in shorter)


# Each takes the numbers of the training rows, the labels and texts of all rows, and the numbers of
# all sentences. It returns the numbers of the rows to train on.
ROWS: dict[str, Callable[[list[int], list[str], list[str], set[int]], list[int]]] = {
    "sentences 4": repeat_sentences,
    "no near-duplicates": drop_near_duplicates,
}
