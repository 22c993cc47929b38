"""Whether the built-in sentences are what builtin/README.md says they are.

python benchmarks/builtin_data.py    half a minute; exits 1 with a line for each thing that is not

Balance; duplicates and near-duplicates, inside, across the two files and against SST-2 (where the
environment variable SST2 names GLUE's folder of it, or it lies beside the clone); lengths, beside
those of SST-2's sentences; vocabulary; and words that give the label away.
"""

import csv
import re
import sys

import numpy as np
from accuracy import read_rows, split_by_sentence
from scipy.stats import ks_2samp
from sklearn.feature_extraction.text import CountVectorizer
from work import HERE, SST2

# Words in common of all words of two sentences, from which on they are alike.
ALIKE = 0.5
# With fewer different words, sentences are alike by chance (`a waste of time`), or word for word.
FEWEST_WORDS = 4
# How far apart the shares of sentences of up to any length may be, here and in SST-2.
LENGTHS_APART = 0.1
# Different words in 30,000. SST-2's sentences, with their titles and names, have 6,400.
FEWEST_DIFFERENT = 5_000
# A rule on one word may beat a guess by this much: SST-2's own best is 0.027, `and`.
GIVEN_AWAY = 0.03


def read(name: str) -> tuple[list[str], np.ndarray]:
    """The sentences of a file here, and which are positive."""
    with (HERE.parent / "builtin" / name).open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [row["sentence"] for row in rows], np.array([row["label"] == "positive" for row in rows])


def read_sst2(*splits: str) -> list[str]:
    """The texts of SST-2's files: sentences, and in train their phrases."""
    return [text for name in splits for text in read_rows(SST2 / f"{name}.tsv")[1]]


def words_of(sentence: str) -> list[str]:
    # SST-2 writes `is n't` where we write `isn't`.
    return re.findall(r"n't|[a-z]+", sentence.lower().replace("n't", " n't"))


def alike(sentences: list[str], others: list[str] | None = None) -> list[tuple[str, str]]:
    """The pairs, of one list or of two, that have ALIKE of their words in common.

    Of two lists only where both sentences have FEWEST_WORDS, or where all words are the same.
    """
    counter = CountVectorizer(analyzer=words_of, binary=True, dtype=np.int32)
    ours = counter.fit_transform(sentences)  # Words that are in none of them can't be in common.
    theirs = ours if others is None else counter.transform(others)
    lengths, their_lengths = (
        np.array([len(set(words_of(sentence))) for sentence in each])
        for each in (sentences, sentences if others is None else others)
    )
    found = []
    for start in range(0, len(sentences), 200):
        common = theirs @ ours[start : start + 200].toarray().T
        of_two = their_lengths[:, None] + lengths[start : start + 200]
        for hit, row in zip(*np.nonzero(common >= ALIKE * (of_two - common)), strict=True):
            row += start
            same = common[hit, row - start] == lengths[row] == their_lengths[hit]
            long_enough = min(lengths[row], their_lengths[hit]) >= FEWEST_WORDS
            if hit < row if others is None else same or long_enough:
                found.append((sentences[row], (others or sentences)[hit]))
    return found


def lengths_apart(sentences: list[str], others: list[str]) -> float:
    """The largest distance of the two distributions of their numbers of words."""
    one, other = ([len(words_of(sentence)) for sentence in each] for each in (sentences, others))
    return float(ks_2samp(one, other).statistic)


def different_words(sentences: list[str], of: int = 30_000) -> int:
    """How many different words the first `of` have, of sentences in random order."""
    order = np.random.default_rng(0).permutation(len(sentences))
    return len(set([word for row in order for word in words_of(sentences[row])][:of]))


def give_aways(sentences: list[str], positive: np.ndarray) -> list[tuple[str, int, int, float]]:
    """Each word, how many positive and negative sentences have it, and what it gives away.

    The last is by how much more than a guess a rule is right that knows this word alone; the words
    that give away most come first.
    """
    counter = CountVectorizer(analyzer=words_of, binary=True)
    has = counter.fit_transform(sentences)
    ups, downs = has[positive].sum(0).A1, has[~positive].sum(0).A1
    given = abs(ups / positive.sum() - downs / (~positive).sum()) / 2
    order = np.argsort(-given, kind="stable")
    names = counter.get_feature_names_out()
    return [(names[i], int(ups[i]), int(downs[i]), float(given[i])) for i in order]


def check(
    files: dict[str, tuple[list[str], np.ndarray]], texts: list[str] | None, known: list[str]
) -> list[str]:
    """A line for each thing that is not as it should be; prints what it finds on the way.

    Args:
        files: of each the sentences, and which are positive.
        texts: SST-2's training sentences with their phrases, where they are there.
        known: its other sentences.
    """
    sentences = [sentence for own, _ in files.values() for sentence in own]
    positive = np.concatenate([ups for _, ups in files.values()])
    problems = []
    for name, (own, ups) in files.items():
        print(f"{name}: {len(own):,} sentences, {ups.sum():,} positive")
        if 2 * ups.sum() != len(own):
            problems.append(f"{name}: {ups.sum():,} of {len(own):,} are positive, and not half")
    problems += [f"alike: {one!r} and {other!r}" for one, other in alike(sentences)]
    different = different_words(sentences)
    print(f"words: {quantiles(sentences)}; {different:,} different in 30,000")
    if different < FEWEST_DIFFERENT:
        problems.append(f"{different:,} different words in 30,000, of {FEWEST_DIFFERENT:,}")
    if texts:
        *_, whole = split_by_sentence(texts)
        others = [texts[row] for row in whole]
        print(f"SST-2's: {quantiles(others)}; {different_words(others):,} different in 30,000")
        apart = lengths_apart(sentences, others)
        print(f"distributions of lengths: {apart:.3f} apart")
        if apart > LENGTHS_APART:
            problems.append(f"lengths are not those of SST-2's sentences: {apart:.3f} apart")
        copies = {one for one, _ in alike(sentences, [*texts, *known])}
        problems += [f"like one of SST-2's: {one!r}" for one in sentences if one in copies]
    print("what a rule on one word is right in, over a guess (positive, negative sentences):")
    for word, ups, downs, given in give_aways(sentences, positive)[:10]:
        print(f"  {word:12}{100 * given:4.1f} points ({ups}, {downs})")
        if given > GIVEN_AWAY:
            problems.append(f"{word!r} gives the label away: {ups} positive, {downs} negative")
    return problems


def quantiles(sentences: list[str]) -> str:
    """Of 5, 25, 50, 75 and 95 % of the sentences the most words."""
    lengths = [len(words_of(sentence)) for sentence in sentences]
    return " ".join(f"{length:.0f}" for length in np.percentile(lengths, [5, 25, 50, 75, 95]))


def main() -> None:
    files = {name: read(name) for name in ("train.csv", "dev.csv")}
    is_here = (SST2 / "train.tsv").exists()
    texts, known = (read_sst2("train"), read_sst2("dev", "test")) if is_here else (None, [])
    sys.exit("\n".join(check(files, texts, known)) or 0)  # Words are told, and are exit code 1.


if __name__ == "__main__":
    main()
