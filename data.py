"""Labelled text in, batches of tensors out: load, tokenize once, batch by length."""

import math
import sys
from collections.abc import Sequence
from typing import NamedTuple

import datasets
import numpy as np
import pyarrow.compute
import torch
import transformers

from inputs import hub, labels, tables
from inputs.encoder import forget_padding
from system import mapped
from system.console import InputError, progress, say

datasets.disable_progress_bars()

# Sentences are sorted by length inside a bucket of batches drawn at random: large, so that a batch
# holds sentences of one length; at most a quarter of the data, so that who meets whom in a batch
# is another matter in each epoch.
MOST_BATCHES_PER_BUCKET = 100
# At a time, where nobody says how many sentences: with more a CPU takes more memory, not less time.
MOST_TOKENS_ON_CPU = 1024
ROWS_BETWEEN_RELEASES = 250  # Of mapped pages: a row, wherever it lies, takes up to 200 kB of them.
# Of a share of a batch that is empty: it has no loss, as torch ignores this label.
NO_SENTENCE = {
    "input_ids": torch.zeros(1, 1, dtype=torch.int64),
    "attention_mask": torch.ones(1, 1, dtype=torch.int64),
    "labels": torch.tensor([-100]),
}


class LabelledText(NamedTuple):
    """The splits of a data set (`train`, `validation`, perhaps `test`) and the classes in it.

    A split has the columns of `tables.read_table`; `labels` are the names of the classes in the
    order of their ids; `ids` gives the id of each label as the data writes it; `text_columns` (one,
    or two of a pair) and `label_column` are those that were read.
    """

    splits: dict[str, datasets.Dataset]
    labels: list[str]
    ids: dict[str, int]
    text_columns: list[str]
    label_column: str


def generator(seed: int, use: str, *when: int) -> np.random.Generator:
    """Random numbers for one use alone, so that no use can shift the numbers of another."""
    return np.random.default_rng([seed, *use.encode(), *when])


def load(
    name: str,
    text_columns: Sequence[str] | None = None,
    label_column: str | None = None,
    seed: int = 0,
) -> LabelledText:
    """The checked splits of `name`; validation is a tenth of train, by `seed`, where it has none.

    Args:
        name: `sst2`, `builtin`, a Hub data set (`id` or `id:config`), a file, or a folder.
        text_columns: one column of text, or two for a pair; None to find it by the usual names.
        label_column: None to find it by the usual names.
    Raises:
        InputError: with one problem for each thing that is wrong in any of the splits.
    """
    files = tables.find_files(name)
    opened: dict[str, tables.Table] = {}
    splits: dict[str, datasets.Dataset] = {}
    own_order: list[str] | None = None
    problems: list[str] = []
    for split, source in (files or _hub_splits(name)).items():
        labelled = split != "test"  # GLUE and others publish their test split without labels.
        try:
            if files:
                table = tables.open_file(source)
            else:
                table = tables.open_hub_split(source, f"--data {name}, {split}")
            text, label = tables.find_columns(table, text_columns, label_column, labelled)
            # What train has is read of the others too, and not another column with a usual name.
            text_columns, label_column = text_columns or text, label_column or label
            own_order = own_order or table.names.get(label)
            opened[split] = table
            splits[split] = tables.read_table(table, text, label, labelled)
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError(*problems)
    if "test" in splits and not labels.has_labels(splits["test"], splits["train"]):
        del splits["test"]
        say("the test split has no labels; it is left out")
    ids, names = labels.label_ids(splits, opened, own_order)
    if "validation" not in splits:
        splits = hold_out(splits, ids, seed)
    return LabelledText(splits, names, ids, text_columns, label_column)


def _hub_splits(name: str) -> dict[str, datasets.Dataset]:
    """The splits of a data set on the Hub, by our names for them."""
    found = hub.fetch_data(name)
    splits = {
        split: found[next(filter(found.__contains__, stems))]
        for split, stems in tables.SPLIT_NAMES.items()
        if not found.keys().isdisjoint(stems)
    }
    if "train" not in splits:
        raise InputError(f"--data {name}: no train split; the splits are {', '.join(found)}")
    return splits


def hold_out(
    splits: dict[str, datasets.Dataset], ids: dict[str, int], seed: int
) -> dict[str, datasets.Dataset]:
    """A tenth of the training rows as validation, of each class alike; a class of one row stays."""
    train = splits["train"]
    parts = mapped.in_parts(train.data["label"].chunks)
    classes = np.concatenate([[ids[label] for label in part.to_pylist()] for part in parts])
    rows_of_class = np.bincount(classes)
    order = np.lexsort((generator(seed, "hold out").random(len(train)), classes))
    order = order[rows_of_class[classes[order]] > 1]
    # Every tenth of the rows in order of class: a tenth of each, and never the whole of one.
    held = np.zeros(len(train), dtype=bool)
    held[order[::10]] = True
    kept = {"train": np.flatnonzero(~held), "validation": np.flatnonzero(held)}
    say(f"no validation data: {held.sum():,} of {len(train):,} sentences are held out for it")
    return splits | {split: train.select(rows) for split, rows in kept.items()}


def subset(split: datasets.Dataset, size: int, seed: int) -> datasets.Dataset:
    """At most `size` of the rows, at random, in the order in which they stood."""
    chosen = generator(seed, "subset").permutation(len(split))[:size]
    return split.select(np.sort(chosen))


class TokenizedText(torch.utils.data.Dataset):
    """Token ids and label ids of one split, mapped from disk, unpadded.

    `rows` has the columns `input_ids`, `labels`, and `token_type_ids` if the model reads them;
    `lengths` holds the number of tokens of each row, int32 of shape (rows,).
    """

    def __init__(self, rows: datasets.Dataset):
        self.rows = rows
        chunks = mapped.in_parts(rows.data["input_ids"].chunks)
        self.lengths = np.concatenate(
            [pyarrow.compute.list_value_length(chunk) for chunk in chunks]
        )
        self.read = 0  # Rows since the last time that pages were let go.

    def files(self) -> list[str]:
        """The Arrow files on disk that hold the rows, for `map_tokens`."""
        return [file["filename"] for file in self.rows.cache_files]

    def count_classes(self, classes: int) -> np.ndarray:
        """How many rows each class has; int64 of shape (classes,)."""
        parts = mapped.in_parts(self.rows.data["labels"].chunks)
        return sum(np.bincount(part, minlength=classes) for part in parts)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, list[int] | int]:
        return self.rows[index]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, list[int] | int]]:
        columns = self.rows[indices]  # One look-up in place of 32.
        self.read += len(indices)
        if self.read >= ROWS_BETWEEN_RELEASES:
            mapped.release()
            self.read = 0
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def tokenize(
    split: datasets.Dataset, ids: dict[str, int], tokenizer, max_length: int, what: str
) -> TokenizedText:
    """The split as at most `max_length` token ids a row; done once, kept in datasets' cache."""
    pairs = split[0]["text_pair"] is not None
    columns = {"input_ids": datasets.List(datasets.Value("int32"))}
    if pairs and "token_type_ids" in tokenizer.model_input_names:
        columns["token_type_ids"] = datasets.List(datasets.Value("int8"))

    def encode_rows(batch: dict[str, list]) -> dict[str, list]:
        second = batch["text_pair"] if pairs else None
        encoded = encode(tokenizer, batch["text"], second, max_length)
        bar.update(len(batch["text"]))
        if bar.n % 100_000 < len(batch["text"]):
            mapped.release()
        return {column: encoded[column] for column in columns} | {
            "labels": [ids[label] for label in batch["label"]],
            "was_cut": [bool(encoding.overflowing) for encoding in encoded.encodings],
        }

    # The cache's key is made by hand: a tokenizer's state, and so its hash, changes with its use.
    forget_padding(tokenizer)
    state = (tokenizer.backend_tokenizer.to_str(), tokenizer.truncation_side, max_length)
    content = (split._fingerprint, state, sorted(columns), ids, "tokens 2")
    with progress(len(split), "sentences", f"tokenizing {what}") as bar:
        rows = split.map(
            encode_rows,
            batched=True,
            batch_size=tables.ROWS_AT_A_TIME,
            remove_columns=split.column_names,
            features=datasets.Features(
                columns | {"labels": datasets.Value("int64"), "was_cut": datasets.Value("bool")}
            ),
            new_fingerprint=datasets.fingerprint.Hasher.hash(content),
            writer_batch_size=tables.ROWS_AT_A_TIME,
        )
    cut = sum(part.true_count for part in mapped.in_parts(rows.data["was_cut"].chunks))
    if cut:
        say(f"{cut:,} of {len(rows):,} {what} sentences were cut to {max_length} tokens")
    return TokenizedText(rows.remove_columns("was_cut"))


def encode(
    tokenizer, texts: Sequence[str], pairs: Sequence[str] | None, max_length: int
) -> transformers.BatchEncoding:
    """Texts, or pairs of them, as at most `max_length` token ids each, unpadded.

    `token_type_ids`, which tell the first text from the second, are there for pairs alone, and if
    the model reads them.
    """
    return tokenizer(
        list(texts),
        list(pairs) if pairs is not None else None,
        truncation=True,
        max_length=max_length,
        padding=False,
        return_token_type_ids=pairs is not None and "token_type_ids" in tokenizer.model_input_names,
    )


def map_tokens(files: list[str]) -> TokenizedText:
    """What another process of this machine has tokenized, in the same files."""
    rows = datasets.concatenate_datasets(list(map(datasets.Dataset.from_file, files)))
    return TokenizedText(rows.remove_columns("was_cut"))


def epoch_batches(lengths: np.ndarray, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """The row numbers of each batch of an epoch: a pure function of its arguments.

    Batches hold sentences of like length, so that little is padded, and come in random order, so
    that no stretch of the epoch trains on long sentences alone. Every row comes once; one batch
    may be smaller.
    """
    random = generator(seed, "order", epoch)
    order = np.arange(len(lengths), dtype=np.int32)  # Half of the usual size, for millions.
    random.shuffle(order)
    bucket_size = batch_size * min(MOST_BATCHES_PER_BUCKET, len(lengths) // (4 * batch_size) or 1)
    for start in range(0, len(order), bucket_size):
        bucket = order[start : start + bucket_size]
        bucket[:] = bucket[np.argsort(lengths[bucket], kind="stable")]
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    return [batches[number] for number in random.permutation(len(batches))]


def sorted_batches(lengths: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """The row numbers of each batch of an evaluation, the longest rows first."""
    order = np.argsort(-lengths, kind="stable")
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


class Batch(NamedTuple):
    """What a process takes of one batch, and how many sentences each of them has of it."""

    micro_batches: list[dict[str, torch.Tensor]]  # As `collate` makes them; none of an empty share.
    shares: list[int]
    rows: np.ndarray  # The numbers of those in micro_batches.


def share_out(lengths: np.ndarray, processes: int) -> list[np.ndarray]:
    """Which sentences of a batch each process takes, so that all have about as many tokens.

    A process gets sentences of like length, so that little is padded. Shares differ by less than
    twice the tokens of the longest sentence; with few sentences or long ones some may be empty.

    Args:
        lengths: the number of tokens of each sentence of the batch.
    """
    if processes == 1:
        return [np.arange(len(lengths))]
    order = np.argsort(lengths, kind="stable")
    ends = np.cumsum(lengths[order])
    # A sentence belongs where its middle lies, of all tokens in a row.
    owners = ((ends - lengths[order] / 2) * processes // ends[-1]).astype(int)
    return [order[owners == process] for process in range(processes)]


def make_loader(
    tokens: TokenizedText,
    batches: list[np.ndarray],
    pad_token_id: int,
    most: int | None,
    max_length: int,
    device: str,
    rank: int = 0,
    processes: int = 1,
) -> torch.utils.data.DataLoader[Batch]:
    """What process `rank` takes of the `batches` of row numbers, padded, as tensors.

    Args:
        most: the most rows of a micro-batch; None: a share is whole, on a CPU of at most
            MOST_TOKENS_ON_CPU tokens.
    """
    most_tokens, multiple = limits(device, max_length)

    def load(batch: np.ndarray) -> Batch:
        shares = share_out(tokens.lengths[batch], processes)
        own, micro_batches = batch[shares[rank]], []
        if len(own):
            rows = tokens.__getitems__(own)
            micro_batches = collate(rows, pad_token_id, most, most_tokens, multiple)
        return Batch(micro_batches, list(map(len, shares)), own)

    # One by one, as they are batches already.
    return torch.utils.data.DataLoader(
        batches, batch_size=None, collate_fn=load, pin_memory=device == "cuda"
    )


def limits(device: str, max_length: int) -> tuple[int, int]:
    """`most_tokens` and `multiple` of `collate` that suit a device."""
    most_tokens = MOST_TOKENS_ON_CPU if device == "cpu" else sys.maxsize
    # The matrix units of a GPU work on tiles. A model may have max_length positions only.
    return most_tokens, 8 if device == "cuda" and max_length % 8 == 0 else 1


def collate(
    rows: Sequence[dict],
    pad_token_id: int,
    most: int | None,
    most_tokens: int = sys.maxsize,
    multiple: int = 1,
) -> list[dict[str, torch.Tensor]]:
    """One batch as micro-batches of at most `most` rows, each padded to its own longest row.

    Args:
        most_tokens: where `most` is None, a batch with more, padded to its longest row, is split
            into parts of like size.
        multiple: the number of tokens of a row is rounded up to a multiple of it.
    Returns:
        Per micro-batch: `input_ids`, `attention_mask` and perhaps `token_type_ids`, int64 of shape
        (rows, tokens), and `labels`, where rows have them, int64 of shape (rows,).
    """
    if most is None:
        longest = max(len(row["input_ids"]) for row in rows)
        parts = math.ceil(len(rows) / max(1, most_tokens // longest))
        most = math.ceil(len(rows) / parts)
    starts = range(0, len(rows), most)
    return [_pad(rows[start : start + most], pad_token_id, multiple) for start in starts]


def _pad(rows: Sequence[dict], pad_token_id: int, multiple: int) -> dict[str, torch.Tensor]:
    lengths = torch.tensor([len(row["input_ids"]) for row in rows])
    width = math.ceil(int(lengths.max()) / multiple) * multiple
    mask = torch.arange(width) < lengths[:, None]
    batch = {"attention_mask": mask.long()}
    if "labels" in rows[0]:
        batch["labels"] = torch.tensor([row["labels"] for row in rows])
    for column in rows[0].keys() - {"labels"}:
        padding = pad_token_id if column == "input_ids" else 0
        padded = torch.full(mask.shape, padding)
        padded[mask] = torch.tensor([number for row in rows for number in row[column]])
        batch[column] = padded
    return batch
