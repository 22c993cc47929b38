"""Sentences of similar length share a batch; their token ids become padded tensors."""

import math
import sys
from collections.abc import Sequence

import numpy as np
import torch

from system.randomness import generator

# A bucket of random sentences is sorted by length. It is large, so that a batch has similar
# lengths, and at most a quarter of the data, so that batches differ between epochs.
MAX_BATCHES_PER_BUCKET = 100
# Tokens at a time by default; more tokens only take more memory.
MAX_TOKENS_ON_CPU = 1024


def epoch_batches(lengths: np.ndarray, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """The row numbers of each batch of an epoch: a pure function of its arguments.

    A batch holds sentences of similar length, so that little is padded. Batches come in random
    order, so that no part has only long sentences. Every row comes once; one batch may be smaller.
    """
    random = generator(seed, "order", epoch)
    # int32 halves the memory, for millions of rows.
    order = np.arange(len(lengths), dtype=np.int32)
    random.shuffle(order)
    bucket_size = batch_size * min(MAX_BATCHES_PER_BUCKET, len(lengths) // (4 * batch_size) or 1)
    for start in range(0, len(order), bucket_size):
        bucket = order[start : start + bucket_size]
        bucket[:] = bucket[np.argsort(lengths[bucket], kind="stable")]
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    return [batches[number] for number in random.permutation(len(batches))]


def sorted_batches(lengths: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """The row numbers of each batch of an evaluation, the longest rows first."""
    order = np.argsort(-lengths, kind="stable")
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def share_out(lengths: np.ndarray, processes: int) -> list[np.ndarray]:
    """The sentences of a batch for each process, with about equal numbers of tokens.

    `lengths` are in tokens. A process gets sentences of similar length, so that little is padded;
    some shares may be empty. Shares differ by less than twice the tokens of the longest sentence.
    """
    if processes == 1:
        return [np.arange(len(lengths))]
    order = np.argsort(lengths, kind="stable")
    ends = np.cumsum(lengths[order])
    # The position of a sentence's middle among all tokens decides its process.
    owners = ((ends - lengths[order] / 2) * processes // ends[-1]).astype(int)
    return [order[owners == process] for process in range(processes)]


def limits(device: str, max_length: int) -> tuple[int, int]:
    """The `max_tokens` and `multiple` of `collate` for a device."""
    max_tokens = MAX_TOKENS_ON_CPU if device == "cpu" else sys.maxsize
    # A GPU's matrix units work on tiles of 8, but a model may have only max_length positions.
    return max_tokens, 8 if device == "cuda" and max_length % 8 == 0 else 1


def collate(
    rows: Sequence[dict],
    pad_token_id: int,
    max_rows: int | None,
    max_tokens: int = sys.maxsize,
    multiple: int = 1,
) -> list[dict[str, torch.Tensor]]:
    """One batch as micro-batches of at most `max_rows` rows, each padded to its own longest row.

    If `max_rows` is None, a batch of more than `max_tokens`, padded, is split into parts of
    similar size. Row lengths are rounded up to a `multiple`. Returns per micro-batch `input_ids`,
    `attention_mask` and perhaps `token_type_ids`, int64 of shape (rows, tokens), and `labels`,
    int64 of shape (rows,).
    """
    if max_rows is None:
        longest = max(len(row["input_ids"]) for row in rows)
        parts = math.ceil(len(rows) / max(1, max_tokens // longest))
        max_rows = math.ceil(len(rows) / parts)
    starts = range(0, len(rows), max_rows)
    return [_pad(rows[start : start + max_rows], pad_token_id, multiple) for start in starts]


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
