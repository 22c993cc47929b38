"""Check that the built-in sentences are as builtin/README.md describes them.

python benchmarks/builtin_data.py    half a minute; exits 1 with a line for each problem

Checks balance, near-duplicates within both files, lengths, vocabulary and words that reveal the
label. If SST-2 is available, near-duplicates and lengths are compared with SST-2's sentences too.
"""

import csv
import re
import sys

import numpy as np
from accuracy import read_rows, split_by_sentence
from scipy.stats import ks_2samp
from sklearn.feature_extraction.text import CountVectorizer
from work import HERE, SST2

# Two sentences are similar if they share this fraction of their different words.
MIN_OVERLAP = 0.5
# Shorter sentences share half of their words by chance, such as `a waste of time`.
MIN_WORDS = 4
# The Kolmogorov-Smirnov distance between the lengths here and in SST-2.
MAX_LENGTH_DISTANCE = 0.1
# Different words in 30,000: SST-2's sentences, with their titles and names, have 6,400.
MIN_VOCABULARY = 5_000
# The gain of a rule on one word over a guess: the best in SST-2 is 0.027, by `and`.
MAX_GAIN = 0.03


def read(name: str) -> tuple[list[str], np.ndarray]:
    """The sentences of a built-in file, and a boolean for each: is it positive?"""
    with (HERE.parent / "builtin" / name).open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [row["sentence"] for row in rows], np.array([row["label"] == "positive" for row in rows])


def read_sst2(*splits: str) -> list[str]:
    """The texts of SST-2's files; train has sentences and their phrases."""
    return [text for name in splits for text in read_rows(SST2 / f"{name}.tsv")[1]]


def split_words(sentence: str) -> list[str]:
    # SST-2 writes `is n't`, the built-in sentences `isn't`.
    return re.findall(r"n't|[a-z]+", sentence.lower().replace("n't", " n't"))


def similar_pairs(sentences: list[str], others: list[str] | None = None) -> list[tuple[str, str]]:
    """The pairs, in one list or between two, that share MIN_OVERLAP of their words.

    Between two lists, both sentences must have MIN_WORDS words, or exactly the same words.
    """
    counter = CountVectorizer(analyzer=split_words, binary=True, dtype=np.int32)
    counts = counter.fit_transform(sentences)
    other_counts = counts if others is None else counter.transform(others)
    lengths, other_lengths = (
        np.array([len(set(split_words(sentence))) for sentence in texts])
        for texts in (sentences, sentences if others is None else others)
    )
    pairs = []
    for start in range(0, len(sentences), 200):
        common = other_counts @ counts[start : start + 200].toarray().T
        total = other_lengths[:, None] + lengths[start : start + 200]
        for other, row in zip(*np.nonzero(common >= MIN_OVERLAP * (total - common)), strict=True):
            row += start
            is_same = common[other, row - start] == lengths[row] == other_lengths[other]
            is_long = min(lengths[row], other_lengths[other]) >= MIN_WORDS
            if other < row if others is None else is_same or is_long:
                pairs.append((sentences[row], (others or sentences)[other]))
    return pairs


def length_distance(sentences: list[str], others: list[str]) -> float:
    """The Kolmogorov-Smirnov distance between the sentences' numbers of words."""
    samples = ([len(split_words(text)) for text in texts] for texts in (sentences, others))
    return float(ks_2samp(*samples).statistic)


def vocabulary_size(sentences: list[str], count: int = 30_000) -> int:
    """Different words among the first `count` words of the sentences in random order."""
    order = np.random.default_rng(0).permutation(len(sentences))
    return len(set([word for row in order for word in split_words(sentences[row])][:count]))


def word_gains(sentences: list[str], positive: np.ndarray) -> list[tuple[str, int, int, float]]:
    """Each word, the positive and negative sentences that contain it, and its gain.

    The gain is the accuracy of a rule on this word alone, minus that of a guess. The largest gains
    come first.
    """
    counter = CountVectorizer(analyzer=split_words, binary=True)
    counts = counter.fit_transform(sentences)
    positives, negatives = counts[positive].sum(0).A1, counts[~positive].sum(0).A1
    gains = abs(positives / positive.sum() - negatives / (~positive).sum()) / 2
    order = np.argsort(-gains, kind="stable")
    names = counter.get_feature_names_out()
    return [(names[i], int(positives[i]), int(negatives[i]), float(gains[i])) for i in order]


def check(
    files: dict[str, tuple[list[str], np.ndarray]], texts: list[str] | None, other_texts: list[str]
) -> list[str]:
    """One line for each problem; prints the measurements.

    Args:
        files: for each file its sentences, and a boolean for each: is it positive?
        texts: SST-2's training sentences with their phrases, if available.
        other_texts: the sentences of SST-2's other splits.
    """
    sentences = [sentence for rows, _ in files.values() for sentence in rows]
    positive = np.concatenate([labels for _, labels in files.values()])
    problems = []
    for name, (rows, labels) in files.items():
        print(f"{name}: {len(rows):,} sentences, {labels.sum():,} positive")
        if 2 * labels.sum() != len(rows):
            counts = f"{labels.sum():,} of {len(rows):,}"
            problems.append(f"{name}: half of the sentences must be positive (found {counts})")
    problems += [f"similar: {first!r} and {second!r}" for first, second in similar_pairs(sentences)]
    size = vocabulary_size(sentences)
    print(f"words: {quantiles(sentences)}; {size:,} different in 30,000")
    if size < MIN_VOCABULARY:
        problems.append(f"different words: must be {MIN_VOCABULARY:,} in 30,000 (found {size:,})")
    if texts:
        *_, whole = split_by_sentence(texts)
        others = [texts[row] for row in whole]
        print(f"SST-2's: {quantiles(others)}; {vocabulary_size(others):,} different in 30,000")
        distance = length_distance(sentences, others)
        print(f"distributions of lengths: {distance:.3f} apart")
        if distance > MAX_LENGTH_DISTANCE:
            limit = f"at most {MAX_LENGTH_DISTANCE} from SST-2's (found {distance:.3f})"
            problems.append(f"lengths: distance must be {limit}")
        copies = {sentence for sentence, _ in similar_pairs(sentences, [*texts, *other_texts])}
        problems += [f"similar to SST-2: {text!r}" for text in sentences if text in copies]
    print("gain of a rule on one word over a guess (positive, negative sentences):")
    for word, positives, negatives, gain in word_gains(sentences, positive)[:10]:
        print(f"  {word:12}{100 * gain:4.1f} points ({positives}, {negatives})")
        if gain > MAX_GAIN:
            counts = f"{positives} positive, {negatives} negative"
            problems.append(f"{word!r}: reveals the label (found {counts})")
    return problems


def quantiles(sentences: list[str]) -> str:
    """The 5th, 25th, 50th, 75th and 95th percentile of words a sentence."""
    lengths = [len(split_words(sentence)) for sentence in sentences]
    return " ".join(f"{length:.0f}" for length in np.percentile(lengths, [5, 25, 50, 75, 95]))


def main() -> None:
    files = {name: read(name) for name in ("train.csv", "dev.csv")}
    is_available = (SST2 / "train.tsv").exists()
    texts = read_sst2("train") if is_available else None
    other_texts = read_sst2("dev", "test") if is_available else []
    # sys.exit prints a text and exits with code 1.
    sys.exit("\n".join(check(files, texts, other_texts)) or 0)


if __name__ == "__main__":
    main()
