"""Labelled text in, batches of tensors out: load, tokenize once, batch by length."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import datasets
import numpy as np
import pyarrow.compute
import torch
import transformers
from torch.utils.data import DataLoader

from inputs import batches, columns, encoder, files, forms, hub, labels, tables
from inputs import splits as parts
from inputs.rows import Table
from system import collectives, ranks
from system.console import InputError, Problem, collect_problems, progress, quoted, raise_any, say
from system.randomness import generator

datasets.disable_progress_bars()

# For a process whose share of a batch is empty: torch ignores the label -100, so the loss is 0.
NO_SENTENCE = {
    "input_ids": torch.zeros(1, 1, dtype=torch.int64),
    "attention_mask": torch.ones(1, 1, dtype=torch.int64),
    "labels": torch.tensor([-100]),
}


# ---- Load ----


class LabelledText(NamedTuple):
    """The splits of a data set and its classes."""

    splits: dict[str, datasets.Dataset]  # train, validation, perhaps test
    labels: list[str]  # The names of the classes, by id.
    ids: dict[str, int]  # The id of each label as written.
    text_columns: list[str]  # One; two for pairs; more are joined.
    label_column: str
    facts: dict[str, object]  # For run.json: how the files were read.


def load(
    name: str,
    text_columns: Sequence[str] | None = None,
    label_column: str | None = None,
    seed: int = 0,
    encoding: str | None = None,
) -> LabelledText:
    """The checked splits of `name`; a tenth of train is held out if there is no validation split.

    The name is `sst2`, `builtin`, a Hub data set (`id` or `id:config`), a file, or a folder. A
    column that is None is found by its name or its content, and an encoding by the bytes. `seed`
    decides which rows are held out. A test split without labels is left out, as in GLUE.
    InputError names the problems of all splits.
    """
    read = _read_splits(name, text_columns, label_column, encoding)
    splits = {split: part.checked.rows for split, part in read.items()}
    opened = {split: part.table for split, part in read.items()}
    used = read["train"].columns
    facts: dict[str, object] = {split: tables.report(*part) for split, part in read.items()}
    own_names = opened["train"].class_names.get(used.label)
    classes = labels.find_classes(splits, opened, own_names)
    class_of_row = np.concatenate([parts.class_ids(rows, classes.ids) for rows in splits.values()])
    first = parts.first_rows(splits)
    copies = parts.find_copies(splits, opened, class_of_row, first)
    for note in [*classes.notes, *copies.notes]:
        say(note)
    # Other splits come behind the rows of train.
    train = slice(len(splits["train"]))
    if "validation" not in splits:
        splits |= parts.hold_out(splits["train"], class_of_row[train], first[train], seed)
    sizes = np.bincount(class_of_row[train], minlength=len(classes.names)).tolist()
    facts |= {"columns": used.source, "classes": sizes, "copies": copies.counts}
    facts["has_class_names"] = own_names is not None
    return LabelledText(splits, classes.names, classes.ids, used.text, used.label, facts)


class ReadSplit(NamedTuple):
    """A split as it was read."""

    table: Table
    columns: columns.Columns
    checked: tables.Checked


def _read_splits(
    name: str,
    text_columns: Sequence[str] | None,
    label_column: str | None,
    encoding: str | None,
) -> dict[str, ReadSplit]:
    """The splits that have labels, train first; InputError has the problems of all splits."""
    read: dict[str, ReadSplit] = {}
    problems: list[Problem] = []
    command = f"python finetune.py --data {quoted(name)}"
    for split, source in (files.find_files(name) or _hub_splits(name)).items():
        if split != "train" and not (text_columns and label_column):
            # Every split is read by the columns of train.
            break
        is_needed, named = split != "test", [*(text_columns or []), *filter(None, [label_column])]
        with collect_problems(problems):
            if isinstance(source, Path):
                table = forms.open_file(source, encoding, named)
            else:
                table = tables.open_hub_split(source, f"--data {name}, {split}")
            for note in table.notes:
                say(note)
            if not is_needed and not columns.find(table, label_column):
                say(f"the test split has no labels (no column {label_column!r}); it is left out")
                continue
            used = columns.find_columns(table, text_columns, label_column, is_needed, command)
            text_columns, label_column = used.text, used.label
            checked = tables.read_table(table, used.text, used.label, is_needed)
            read[split] = ReadSplit(table, used, checked)
    raise_any(problems)
    if test := read.pop("test", None):
        if labels.has_labels(test.checked.rows, read["train"].checked.rows):
            read["test"] = test._replace(checked=tables.drop_unlabelled(test.checked))
        else:
            say("the test split has no labels; it is left out")
    return read


def _hub_splits(name: str) -> dict[str, datasets.Dataset]:
    """The splits of a data set on the Hub, named train, validation and test."""
    published = hub.fetch_data(name)
    splits = {
        split: published[next(filter(published.__contains__, stems))]
        for split, stems in files.SPLIT_NAMES.items()
        if not published.keys().isdisjoint(stems)
    }
    if "train" not in splits:
        message = f"no train split (found {', '.join(published)})"
        raise InputError(Problem(name, message, "use another data set", "--data"))
    return splits


def subset(split: datasets.Dataset, size: int, seed: int) -> datasets.Dataset:
    """At most `size` random rows, in their original order."""
    chosen = generator(seed, "subset").permutation(len(split))[:size]
    return split.select(np.sort(chosen))


# ---- Tokenize ----


class TokenizedText(torch.utils.data.Dataset):
    """Token ids and label ids of one split, mapped from disk, unpadded.

    `rows` has the columns `input_ids`, `labels`, and `token_type_ids` if the model reads them;
    `lengths` holds the number of tokens of each row, int32 of shape (rows,).
    """

    def __init__(self, rows: datasets.Dataset, pad_token_id: int, max_length: int, classes: int):
        self.rows, self.pad_token_id = rows, pad_token_id
        self.max_length, self.classes = max_length, classes
        chunks = rows.data["input_ids"].chunks
        self.lengths = np.concatenate([pyarrow.compute.list_value_length(c) for c in chunks])

    def class_weights(self, kind: str | None, device: str) -> torch.Tensor | None:
        """The setting CLASS_WEIGHTS as float32 of shape (classes,); None: all sentences count 1."""
        if kind is None:
            return None
        chunks = self.rows.data["labels"].chunks
        counts = sum(np.bincount(chunk, minlength=self.classes) for chunk in chunks)
        return balanced_weights(counts).to(device)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, list[int] | int]:
        return self.rows[index]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, list[int] | int]]:
        columns = self.rows[indices]
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def balanced_weights(counts: np.ndarray) -> torch.Tensor:
    """The weight of a sentence of each class, so that all classes count the same; the mean is 1."""
    weights = counts.sum() / counts.clip(min=1) / np.count_nonzero(counts)
    return torch.tensor(weights, dtype=torch.float32)


def tokenize(
    text: LabelledText, tokenizer: transformers.PreTrainedTokenizerFast, max_length: int
) -> dict[str, TokenizedText]:
    """Every split as at most `max_length` token ids a row; computed once and kept in the cache."""
    with collectives.local_main_first():
        return {split: tokenize_split(text, split, tokenizer, max_length) for split in text.splits}


def tokenize_split(
    text: LabelledText, name: str, tokenizer: transformers.PreTrainedTokenizerFast, max_length: int
) -> TokenizedText:
    """The split `name` as at most `max_length` token ids a row."""
    split, ids = text.splits[name], text.ids
    pairs = split[0]["text_pair"] is not None
    columns = {"input_ids": datasets.List(datasets.Value("int32"))}
    if pairs and "token_type_ids" in tokenizer.model_input_names:
        columns["token_type_ids"] = datasets.List(datasets.Value("int8"))
    others = {"labels": datasets.Value("int64"), "was_cut": datasets.Value("bool")}

    def encode_rows(batch: dict[str, list]) -> dict[str, list]:
        second = batch["text_pair"] if pairs else None
        encoded = encoder.encode(tokenizer, batch["text"], second, max_length)
        bar.update(len(batch["text"]))
        return {column: encoded[column] for column in columns} | {
            "labels": [ids[label] for label in batch["label"]],
            "was_cut": [bool(encoding.overflowing) for encoding in encoded.encodings],
        }

    # The cache key is computed here, because a tokenizer's own hash changes with its use.
    encoder.forget_padding(tokenizer)
    state = (tokenizer.backend_tokenizer.to_str(), tokenizer.truncation_side, max_length)
    content = (split._fingerprint, state, sorted(columns), ids, "tokens 2")
    with progress(len(split), "sentences", f"tokenizing {name}") as bar:
        rows = split.map(
            encode_rows,
            batched=True,
            batch_size=tables.CHUNK_ROWS,
            remove_columns=split.column_names,
            features=datasets.Features(columns | others),
            new_fingerprint=datasets.fingerprint.Hasher.hash(content),
            writer_batch_size=tables.CHUNK_ROWS,
        )
    cut = sum(chunk.true_count for chunk in rows.data["was_cut"].chunks)
    rows = rows.remove_columns("was_cut")
    tokens = TokenizedText(rows, tokenizer.pad_token_id, max_length, len(text.labels))
    if name == "train":
        median, high = np.percentile(tokens.lengths, [50, 95])
        say(f"train: median length {median:.0f} tokens, 95 % up to {high:.0f}")
    if cut:
        say(f"{name}: truncated {cut:,} of {len(rows):,} sentences to {max_length} tokens")
    return tokens


# ---- Batch ----


class Batching(Protocol):
    """The settings that decide which sentences share a batch and a micro-batch."""

    seed: int
    batch_size: int
    micro_batch_size: int | None
    device: str


class Batch(NamedTuple):
    """One batch: the share of this process, and the number of `sentences` in all processes."""

    micro_batches: list[dict[str, torch.Tensor]]  # As returned by `batches.collate`.
    sentences: int
    rows: np.ndarray  # Row numbers.


def training_loader(
    tokens: TokenizedText, settings: Batching, epoch: int, skip: int = 0
) -> DataLoader[Batch]:
    """The batches of an epoch, in random order; the first `skip` batches are not read."""
    order = batches.epoch_batches(tokens.lengths, settings.batch_size, settings.seed, epoch)
    return make_loader(tokens, order[skip:], settings, fill_empty=True)


def evaluation_loader(tokens: TokenizedText, settings: Batching) -> DataLoader[Batch]:
    """Every sentence once, the longest first."""
    order = batches.sorted_batches(tokens.lengths, settings.batch_size)
    return make_loader(tokens, order, settings)


def make_loader(
    tokens: TokenizedText, order: list[np.ndarray], settings: Batching, fill_empty: bool = False
) -> DataLoader[Batch]:
    """This process's share of each batch in `order`, which holds row numbers, as padded tensors.

    With `fill_empty`, an empty share is NO_SENTENCE: the other processes wait for its gradient.
    """
    max_tokens, multiple = batches.limits(settings.device, tokens.max_length)
    max_rows, padding = settings.micro_batch_size, tokens.pad_token_id

    def load_one(numbers: np.ndarray) -> Batch:
        own = numbers[batches.share_out(tokens.lengths[numbers], ranks.world_size())[ranks.rank()]]
        micro_batches = [NO_SENTENCE] if fill_empty else []
        if len(own):
            rows = tokens.__getitems__(own)
            micro_batches = batches.collate(rows, padding, max_rows, max_tokens, multiple)
        return Batch(micro_batches, len(numbers), own)

    # batch_size is None, because each item of `order` already is a batch.
    pinned = settings.device == "cuda"
    return DataLoader(order, batch_size=None, collate_fn=load_one, pin_memory=pinned)
