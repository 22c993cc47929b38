"""The rows of each split: a tenth held out, and the texts that occur more than once."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas
import pyarrow.compute
from datasets import Dataset

from inputs.rows import Table
from system.console import say
from system.randomness import generator

MAX_NAMED = 2


class Copies(NamedTuple):
    """Texts that occur more than once, and what a user must know of them."""

    counts: dict[str, int]  # For run.json, by kind.
    notes: list[str]


def first_rows(splits: Mapping[str, Dataset]) -> np.ndarray:
    """The first row with the same text, or pair, as each row: int64 of shape (all rows,).

    Rows are counted over all splits in turn. A text that does not repeat is its own first row.
    """
    hashes = np.concatenate([_hashes(rows) for rows in splits.values()])
    first = np.arange(len(hashes))
    ordered = np.sort(hashes)
    repeated = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    if len(repeated):
        places = np.searchsorted(repeated, hashes).clip(max=len(repeated) - 1)
        (copies,) = np.nonzero(repeated[places] == hashes)
        _, index, text = np.unique(hashes[copies], return_index=True, return_inverse=True)
        first[copies] = copies[index][text]
    return first


def _hashes(rows: Dataset) -> np.ndarray:
    """A hash of each row's text, or pair, without the spaces around it: uint64 of shape (rows,)."""
    hashes = np.zeros(len(rows), np.uint64)
    for name in ("text", "text_pair"):
        column, start = rows.data[name], 0
        if column.null_count == len(column):
            continue
        for chunk in column.chunks:
            texts = pyarrow.compute.utf8_trim_whitespace(chunk).to_numpy(zero_copy_only=False)
            part = hashes[start : start + len(texts)]
            # The factor keeps (a, b) and (b, a) apart.
            part[:] = part * np.uint64(1_000_003) + pandas.util.hash_array(texts, categorize=False)
            start += len(texts)
    return hashes


def class_ids(rows: Dataset, ids: Mapping[str, int]) -> np.ndarray:
    """The id of the class of each row: int64 of shape (rows,)."""
    parts = []
    for chunk in rows.data["label"].chunks:
        encoded = chunk.dictionary_encode()
        classes = np.array([ids[label] for label in encoded.dictionary.to_pylist()], np.int64)
        parts.append(classes[encoded.indices.to_numpy()])
    return np.concatenate(parts)


def find_copies(
    splits: Mapping[str, Dataset],
    opened: Mapping[str, Table],
    classes: np.ndarray,
    first: np.ndarray,
) -> Copies:
    """Count texts that repeat in train, that are in other splits, too, or that have two labels.

    They flatter the score, or limit it. Nothing is removed. `classes` and `first` have a value for
    each row of all splits, train first.
    """
    ends = np.cumsum([len(rows) for rows in splits.values()])
    counts: dict[str, int] = {}
    notes: list[str] = []
    is_copy = first != np.arange(len(first))
    if repeated := int(is_copy[: ends[0]].sum()):
        counts["repeated"] = repeated
        note = f"{repeated:,} of {ends[0]:,} rows repeat an earlier text"
        notes.append(f"NOTE: {opened['train'].name}: {note}")
    for split, start, end in zip(list(splits)[1:], ends[:-1], ends[1:], strict=True):
        if shared := int((first[start:end] < ends[0]).sum()):
            counts[f"{split}_in_train"] = shared
            note = f"{shared:,} of {end - start:,} texts are in train, too; they flatter the score"
            notes.append(f"NOTE: {opened[split].name}: {note}")
    (others,) = np.nonzero(classes != classes[first])
    if len(others):
        texts, index = np.unique(first[others], return_index=True)
        counts["two_labels"] = number = len(texts)
        pairs = list(zip(texts, others[index], strict=True))[:MAX_NAMED]
        listed = [_places(*(_find_row(row, splits, opened) for row in pair)) for pair in pairs]
        more = "; …" if number > MAX_NAMED else ""
        note = "1 text has" if number == 1 else f"{number:,} texts have"
        notes.append(f"NOTE: {note} two labels ({'; '.join(listed)}{more})")
    return Copies(counts, notes)


def _find_row(
    row: int, splits: Mapping[str, Dataset], opened: Mapping[str, Table]
) -> tuple[Table, int]:
    """The table and the number of a row that is counted over all splits."""
    for split, rows in splits.items():
        if row < len(rows):
            return opened[split], rows[int(row)]["line"]
        row -= len(rows)
    raise IndexError(row)


def _places(*rows: tuple[Table, int]) -> str:
    tables, numbers = zip(*rows, strict=True)
    if tables[0] is tables[1] and not tables[0].files:
        return f"{tables[0].name}, {tables[0].unit}s {' and '.join(map(str, numbers))}"
    return " and ".join(table.place(number) for table, number in rows)


def hold_out(
    train: Dataset, classes: np.ndarray, first: np.ndarray, seed: int
) -> dict[str, Dataset]:
    """Hold out a tenth of each class as validation; all rows with one text stay on one side.

    A class with one text stays in training. `classes` and `first` have a value for each row.
    """
    random = generator(seed, "hold out").random(len(train))
    (texts,) = np.nonzero(first == np.arange(len(train)))
    # A text with very many copies would make validation much more than a tenth.
    limits = np.maximum(np.bincount(classes)[classes[texts]] // 10, 1)
    usual = texts[np.bincount(first, minlength=len(train))[texts] <= limits]
    texts = usual if len(usual) else texts
    held = _every_tenth(texts, classes, random)[first]
    if not held.any():
        say("NOTE: each class has one text only, so copies of texts in training are held out")
        held = _every_tenth(np.arange(len(train)), classes, random)
    say(f"no validation split: held out {held.sum():,} of {len(train):,} training sentences")
    kept = {"train": np.flatnonzero(~held), "validation": np.flatnonzero(held)}
    return {split: train.select(rows) for split, rows in kept.items()}


def _every_tenth(texts: np.ndarray, classes: np.ndarray, random: np.ndarray) -> np.ndarray:
    """True for every tenth of the rows `texts`, in random order within classes: (all rows,)."""
    classes_of_texts = classes[texts]
    order = texts[np.lexsort((random[texts], classes_of_texts))]
    order = order[np.bincount(classes_of_texts)[classes[order]] > 1]
    # Every tenth text in the order of classes takes a tenth of each class, and never a whole class.
    held = np.zeros(len(classes), dtype=bool)
    held[order[::10]] = True
    return held
