"""The contents of the columns of a table: text, labels, numbers, dates, or something else."""

import collections
import itertools
import json
import re
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from inputs.files import SPLIT_WORDS, name_parts
from inputs.rows import Table
from system.console import Problem, plural

# Parts of the names of columns, such as airline_sentiment, OriginalTweet and tweet_id.
LABEL_PARTS = {"label", "sentiment", "class", "category", "target", "polarity", "star", "emotion"}
LABEL_PARTS |= {"mood", "intent", "topic", "rating", "stance", "verdict", "judgment", "overall"}
SCORE_WORDS = {"score", "grade", "similarity", "relatedness", "confidence", "probability"}
SCORE_PARTS = LABEL_PARTS | SCORE_WORDS
ID_PARTS = {"id", "asin", "uuid", "code", "key", "index", "url", "link", "date", "time"}
# So many values of a column are kept; a column with more values holds no labels.
MAX_VALUES, MAX_LABELS = 20_000, 1000
MAX_CODES = 50
MAX_SAMPLE = 2000  # Values that tell the kind of a column.
# A date has digits, signs between them, and names of months and days only.
DATE = re.compile(
    r"(?=.*\d)(?=.*([a-z]{3}|\d{4}[-/.]|[-/.]\d{4}|\d[-/.:]\d+[-/.:]\d))([-/:.,+ TZ\d]|"
    r"\b(jan|feb|mar|apr|may|june?|july?|aug|sept?|oct|nov|dec|mon|tue|wed|thu|fri|sat|sun)[a-z]*\b|"
    r"\b(am|pm|utc|gmt|[ecmp][sd]t)\b)+",
    re.IGNORECASE,
)
NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)
DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+")
# Chinese, Japanese and Thai have no spaces between words.
UNSPACED = re.compile("[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff]")


class Content(NamedTuple):
    """The contents of a column, over a whole table."""

    name: str
    kind: str  # text, labels, numbers, dates, ids, lists, splits, names, "one value", nothing
    counts: collections.Counter  # rows of each value; the first MAX_VALUES values
    size: float  # words in a value, at the median
    filled: float = 1  # the share of rows with a value

    def could_be_labels(self) -> bool:
        """True if the values may be classes with few rows, or class ids with gaps."""
        if self.kind != "numbers":
            return len(self.counts) <= self.counts.total() / 2
        is_often = min(self.counts.values()) >= 5 and len(self.counts) <= MAX_CODES
        return is_often and all(re.fullmatch(r"(?!(19|20)\d\d$)\d+", v) for v in self.counts)

    def __str__(self) -> str:
        """The column as candidates are listed."""
        text = self.kind
        if self.kind == "text":
            text = f"text of about {self.size:.0f} {plural('word', round(self.size))}"
        elif self.kind == "labels":
            shares = [
                f"{value[:30]} {count / self.counts.total():.0%}".replace("%", " %")
                for value, count in self.counts.most_common(3)
            ]
            more = ", …" if len(self.counts) > 3 else ""
            blank = f"; {1 - self.filled:.0%} blank".replace("%", " %") if self.filled < 1 else ""
            text = f"{len(self.counts)} values: {', '.join(shares)}{more}{blank}"
        return f"{self.name!r} ({text})"


def read_contents(
    table: Table, problems: list[Problem], max_rows: int | None = None
) -> list[Content]:
    """The contents of each column, over the whole table, or over its first rows."""
    rows, counts = 0, {name: collections.Counter() for name in table.columns}
    filled: collections.Counter = collections.Counter()
    listed: set[str] = set()
    for _, row in itertools.islice(table.rows(problems, (), max_rows is None), max_rows):
        rows += 1
        for name, values in counts.items():
            value = row.get(name)
            text = value.strip() if isinstance(value, str) else _as_text(value)
            if isinstance(value, dict) or (isinstance(value, list) and not _is_single(value)):
                listed.add(name)
            if text:
                filled[name] += 1
                if len(values) < MAX_VALUES or text in values:
                    values[text] += 1
    return [
        Content(name, "lists", values, 0)
        if name in listed
        else _content(name, rows, filled[name], values)
        for name, values in counts.items()
    ]


def _is_single(value: list) -> bool:
    return len(value) == 0 or (len(value) == 1 and not isinstance(value[0], list | dict))


def _as_text(value: object) -> str:
    if isinstance(value, list) and len(value) == 1:
        return _as_text(value[0])
    if value is None or value != value:
        return ""
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _content(name: str, rows: int, filled: int, counts: collections.Counter) -> Content:
    sample = list(itertools.islice(counts, MAX_SAMPLE))
    lengths = [_length(value) for value in sample]
    size = statistics.median(lengths) if sample else 0
    is_number = any(all(map(form.fullmatch, sample)) for form in (NUMBER, DECIMAL_COMMA))
    parts = name_parts(name)
    is_id = bool(ID_PARTS & name_parts(re.split(r"[\W_]", name)[-1])) and not parts & LABEL_PARTS
    # A label has few values, each of them many times, or is called so.
    limit = filled / 2 if parts & LABEL_PARTS else filled / 5
    is_few = counts.total() == filled and len(counts) <= min(MAX_LABELS, max(2, limit))
    if not sample:
        kind = "nothing"
    elif len(counts) == 1:
        kind = "one value"
    elif not is_number and sum(map(_is_date, sample)) >= 0.9 * len(sample):
        kind = "dates"
    elif is_number and not (is_few and not is_id and _is_scale(sample)):
        kind = "numbers"
    elif is_id and size < 3:
        kind = "ids"
    elif {value.lower() for value in sample} <= SPLIT_WORDS:
        kind = "splits"
    elif is_few and filled >= 0.5 * rows and not (size >= 6 and len(counts) > 20):
        kind = "labels"
    elif size >= 3 and len(counts) >= 0.1 * min(filled, MAX_VALUES):
        kind = "text"
    else:
        kind = "names"
    return Content(name, kind, counts, size, filled / max(rows, 1))


def _length(value: str) -> int:
    """The number of words; two characters without spaces between words count as one."""
    return max(len(value.split()), len(UNSPACED.findall(value)) // 2)


def _is_date(value: str) -> bool:
    return DATE.fullmatch(value) is not None and not NUMBER.fullmatch(value)


def _is_scale(values: Sequence[str]) -> bool:
    """True if numbers are codes, ids of classes or marks, and not amounts."""
    if any(len(value) > 1 and value.startswith("0") and value.isdigit() for value in values):
        return True
    numbers = sorted({float(value.replace(",", ".")) for value in values})
    is_whole = all(number.is_integer() for number in numbers)
    is_small = numbers[0] >= -10 and numbers[-1] <= 10
    is_gapless = is_whole and numbers[-1] - numbers[0] == len(numbers) - 1 and numbers[0] in (0, 1)
    return is_gapless or (is_small and all((2 * number).is_integer() for number in numbers))
