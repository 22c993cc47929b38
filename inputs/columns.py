"""Which columns of a table hold the text and the label: by name, else by what the columns hold."""

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from inputs.contents import (
    ID_PARTS,
    LABEL_PARTS,
    SCORE_PARTS,
    SCORE_WORDS,
    Content,
    read_contents,
)
from inputs.files import name_parts
from inputs.rows import Table
from system.console import InputError, Problem, flag_arguments, quoted

# The usual names of columns, the most specific first; a tuple of two is a pair of sentences.
TEXT_COLUMNS = [
    *(("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2")),
    *(("question", "sentence"), ("question", "passage")),
    *("sentence", "text", "review", "content", "comment", "message", "body", "tweet", "document"),
]
LABEL_COLUMNS = [
    *("label", "labels", "gold_label", "sentiment", "class", "category", "target", "polarity"),
    "stars",
]
USUAL = {name for names in TEXT_COLUMNS for name in ([names] if isinstance(names, str) else names)}
USUAL |= {*LABEL_COLUMNS}
# Parts of the names of text columns, such as OriginalTweet.
TEXT_PARTS = {name for name in TEXT_COLUMNS if isinstance(name, str)}
TEXT_PARTS |= {"utterance", "headline", "post", "statement", "description", "query", "abstract"}
TEXT_PARTS |= {"title", "subject"}
MAX_LISTED = 8  # Columns in a message.
# A text is so many times longer than its title.
MUCH_LONGER = 5
# So many columns of 0 and 1 are several labels of one text.
MANY_FLAGS = 3
SOURCES = ("by parts of their names", "by their content")
# The names of a pair differ by one of these: sentence_A and sentence_B, #1 String and #2 String.
PAIR_SIGN = r"[12ABab](?![a-z])"
# Rows that tell if a usual name is right.
SAMPLE_ROWS = 1000


class Columns(NamedTuple):
    """The columns in use: one of text, two of a pair, or several that are joined; and the label."""

    text: list[str]
    label: str | None
    notes: Sequence[str]  # For the user, if names alone did not decide.
    source: str  # For run.json: names, flags, parts of names, or content.


def find_columns(
    table: Table,
    text_columns: Sequence[str] | None,
    label_column: str | None,
    labelled: bool,
    command: str = "",
) -> Columns:
    """The columns of text and label; InputError if they are missing, or if several could be meant.

    A None column is found by usual names, else by parts of names and by content. The label may be
    None if not `labelled`. `command` starts the command that an error shows.
    """
    problems: list[Problem] = []
    notes: list[str] = []
    if text_columns:
        text = _named(table, text_columns, "--text-column", problems)
    else:
        text = _usual_text(table, notes)
    if not label_column:
        label = _usual(table, LABEL_COLUMNS) or [*table.class_names][: len(table.class_names) == 1]
    elif labelled or find(table, label_column):
        label = _named(table, [label_column], "--label-column", problems)
    else:
        label = []
    source = "flags" if text_columns or label_column else "names"
    if not problems and not (text and (label or not labelled)):
        contents = read_contents(table, problems)
        text_source = label_source = source
        if not text:
            text, text_source = _choose_text(contents, set(label))
        if not label and labelled:
            label, label_source = _choose_label(contents, set(text))
        # A table whose rows are all broken has no contents to list.
        if any(column.counts for column in contents):
            problems += _missing(table, contents, text, label, labelled, command)
        source = max(text_source, label_source, key=["flags", "names", *SOURCES].index)
    problems += _unusable(table, [*text, *label])
    if problems:
        raise InputError(*dict.fromkeys([*problems, *table.problems]))
    if source in SOURCES:
        label_part = f", label from {label[0]!r}" if label else ""
        note = f"{table.name}: text from {', '.join(map(repr, text))}{label_part} ({source})"
        flags = "--text-column and --label-column" if labelled else "--text-column"
        notes.append(f"{note}; choose others with {flags}")
    others = [name for name in table.columns if _is_label_name(name) and name not in text + label]
    # label_text has the names of the ids in label.
    others = [name for name in others if not (label and name.startswith(label[0]))]
    if others and labelled and not label_column:
        note = f"the label is {label[0]!r}; {_listed(map(repr, others))} could be meant, too"
        notes.append(f"NOTE: {table.name}: {note}; choose with --label-column")
    return Columns(text, label[0] if label else None, notes, source)


def _unusable(table: Table, used: Sequence[str]) -> Iterator[Problem]:
    for name in {name for name in used if used.count(name) > 1}:
        message = f"the column {name!r} is used twice"
        yield Problem(table.name, message, "choose different columns")
    for name in set(used) & set(table.duplicates):
        yield Problem(table.name, f"duplicate column {name!r}", "rename one")


# ---- By name ----


def find(table: Table, name: str) -> str | None:
    """The column `name`, in any case."""
    if name in table.columns:
        return name
    return next((column for column in table.columns if column.lower() == name.lower()), None)


def _named(table: Table, names: Sequence[str], flag: str, problems: list[Problem]) -> list[str]:
    columns = [find(table, name) for name in names]
    if all(columns):
        return columns
    missing = ", ".join(repr(name) for name in names if not find(table, name))
    message = f"no column {missing} (found {_listed(map(repr, table.columns))})"
    problems.append(Problem(table.name, message, f"choose one with {flag}"))
    return []


def _listed(columns: Iterable[object]) -> str:
    columns = list(columns)
    more = f" and {len(columns) - MAX_LISTED} more" if len(columns) > MAX_LISTED else ""
    return ", ".join(map(str, columns[:MAX_LISTED])) + more


def _usual(table: Table, usual: Sequence[str | tuple[str, ...]]) -> list[str]:
    for names in usual:
        columns = [find(table, name) for name in ([names] if isinstance(names, str) else names)]
        if all(columns):
            return columns
    return []


def _usual_text(table: Table, notes: list[str]) -> list[str]:
    """The text column or pair of a usual name, unless it holds ids or codes beside a text."""
    text = _usual(table, TEXT_COLUMNS)
    contents = read_contents(table, [], SAMPLE_ROWS) if text else []
    kinds = {column.name: column.kind for column in contents}
    notes += [
        f"NOTE: {table.name}: the column {name!r} names splits; it is not used"
        for name, kind in kinds.items()
        if kind == "splits"
    ]
    is_odd = "text" in kinds.values() and "text" not in map(kinds.get, text)
    return [] if is_odd else text


def _is_label_name(name: str) -> bool:
    return bool(name_parts(name) & LABEL_PARTS) and not name_parts(name) & (ID_PARTS | SCORE_WORDS)


# ---- By content ----


def _choose_text(contents: Sequence[Content], taken: set[str]) -> tuple[list[str], str]:
    """The text column that stands out, or the pair, and what told it; [] if there is none."""
    texts = [column for column in contents if column.kind == "text" and column.name not in taken]
    if not texts:
        # Texts of one or two words are like names. They count if no other column is like that.
        names = [c for c in contents if c.kind == "names" and c.name not in taken]
        texts = names[: len(names) == 1]
    source, columns = _ranked(texts, TEXT_PARTS)
    if len(columns) == 2 and len({re.sub(PAIR_SIGN, "", column.name) for column in columns}) == 1:
        return [column.name for column in columns], source
    # A title is much shorter than its text.
    for column in columns:
        others = [other for other in columns if other is not column]
        longer = [other for other in texts if other.size >= MUCH_LONGER * column.size]
        if all(column.size >= MUCH_LONGER * other.size for other in others) and not longer:
            return [column.name], source
    return [], source


def _choose_label(contents: Sequence[Content], taken: set[str]) -> tuple[list[str], str]:
    others = [column for column in contents if column.name not in taken]
    labels = [column for column in others if column.kind == "labels"]
    for kind in ("names", "numbers"):
        # Without a likelier column, few rows of each class or ids with gaps are enough.
        few = [c for c in others if c.kind == kind and c.could_be_labels()]
        labels = labels or few[: len(few) == 1]
    source, columns = _ranked(labels, LABEL_PARTS)
    if len(columns) > 1:
        # If there are topic and topic_id, the first has names.
        columns = [column for column in columns if not name_parts(column.name) & ID_PARTS]
    is_flag = len(columns) == 1 and columns[0] in _flags(labels)
    # Several columns of 0 and 1 are several labels of one text, and a score is no label.
    is_doubtful = (is_flag and len(_flags(labels)) >= MANY_FLAGS) or (
        source == SOURCES[1] and scores(contents)
    )
    return [column.name for column in columns] if len(
        columns
    ) == 1 and not is_doubtful else [], source


def scores(contents: Sequence[Content]) -> list[Content]:
    """Columns of numbers that are named as labels are: the target may be a score."""
    return [c for c in contents if c.kind == "numbers" and name_parts(c.name) & SCORE_PARTS]


def _flags(columns: Sequence[Content]) -> list[Content]:
    """The columns of 0 and 1, or of true and false."""
    pairs = ({"0", "1"}, {"true", "false"})
    return [c for c in columns if any({value.lower() for value in c.counts} <= p for p in pairs)]


def _ranked(columns: Sequence[Content], parts: set[str]) -> tuple[str, Sequence[Content]]:
    """The columns with a usual part in their names; if there are none, all columns."""
    named = [column for column in columns if name_parts(column.name) & parts]
    return (SOURCES[0], named) if named else (SOURCES[1], columns)


def _missing(
    table: Table,
    contents: Sequence[Content],
    text: list[str],
    label: list[str],
    labelled: bool,
    command: str,
) -> list[Problem]:
    """A problem for the text and for the label, if no column or several could be meant."""
    texts, labels = (
        [
            column
            for column in contents
            if column.kind == kind and column.name not in (*text, *label)
        ]
        for kind in ("text", "labels")
    )
    # The command names the likeliest column, so that it is worth a try.
    texts = sorted(texts, key=lambda c: -c.size)
    ranked = sorted(labels, key=lambda c: (not name_parts(c.name) & LABEL_PARTS, len(c.counts)))
    labels = [*scores(contents), *labels]
    columns_of_flags = {"--text-column": text or [c.name for c in texts[:1]] or ["NAME"]}
    if labelled:
        columns_of_flags["--label-column"] = label or [c.name for c in ranked[:1]] or ["NAME"]
    flags = [flag_arguments(flag, names) for flag, names in columns_of_flags.items()]
    example = f"as in `{command} {quoted(*itertools.chain(*flags))}`"
    problems = []
    for kind, chosen, candidates in (("text", text, texts), ("label", label, labels)):
        if chosen or (kind == "label" and not labelled):
            continue
        listed = _listed(candidates or contents)
        message = f"no column for the {kind} (found {listed})"
        if len(candidates) > 1:
            message = f"several columns could be the {kind}: {listed}"
        if len(_flags(candidates)) > 1:
            message += "; columns of 0 and 1 are often several labels of one text"
        pair = ", or two for a pair" if kind == "text" and len(candidates) > 1 else ""
        problems.append(Problem(table.name, message, f"choose one{pair}, {example}"))
    return problems
