"""What is trained on: SST-2's sentences, or others of their lengths, and how much work they are."""

import json
import os
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
SST2 = Path(os.environ.get("SST2", HERE.parent.parent / "shared" / "sst2"))
sys.path.insert(0, str(HERE.parent))

WARM_UP = 3  # Steps before the clock starts; the first of them is the longest of the epoch.


def make_sentences(count: int | None = None, longer: float = 1.0):
    """`count` of SST-2's training sentences (None: all) as token ids, `longer` times as long.

    Ids are random where the sentences are not here, or are to be longer; at most 512.
    """
    import datasets
    import transformers

    import data
    from inputs.encoder_files import find_model

    if (SST2 / "train.tsv").exists() and longer == 1:
        text = data.load(str(SST2))
        tokenizer = transformers.AutoTokenizer.from_pretrained(find_model("builtin"))
        rows = data.tokenize_split(text, "train", tokenizer, 512).rows
        ids, labels = rows["input_ids"][:], rows["labels"][:]
    else:
        counts = json.loads((HERE / "sst2_lengths.json").read_text())
        lengths = np.repeat(np.arange(len(counts)), counts)
        random = np.random.default_rng(0)
        lengths = np.minimum(np.round(random.permutation(lengths) * longer), 512).astype(int)
        ids = [random.integers(1000, 30000, length).tolist() for length in lengths]
        labels = random.integers(0, 2, len(ids)).tolist()
    chosen = np.random.default_rng(1).permutation(len(ids))[:count].tolist()
    columns = {"input_ids": [ids[row] for row in chosen], "labels": [labels[row] for row in chosen]}
    columns["attention_mask"] = [[1] * len(row) for row in columns["input_ids"]]
    return datasets.Dataset.from_dict(columns)


def lengths_of(rows) -> np.ndarray:
    """The number of tokens of each row."""
    return np.array(list(map(len, rows["input_ids"][:])))


def pick(order: np.ndarray, lengths: np.ndarray, batch_size: int, steps: int) -> list[np.ndarray]:
    """WARM_UP batches of an epoch, the longest first, then `steps` that stand for all of it.

    Args:
        order: the row numbers in the order of a contender's own sampler, which decides who shares a
            batch. Every so-manieth batch by width is timed, in random order, so that a short
            measurement is not one of the lengths that it happened to draw.
    """
    batches = [order[i : i + batch_size] for i in range(0, len(order) - batch_size + 1, batch_size)]
    batches.sort(key=lambda batch: lengths[batch].max())
    every = ((np.arange(steps) + 0.5) * len(batches) / steps).astype(int)
    timed = [batches[number] for number in np.random.default_rng(0).permutation(every)]
    warm_up = [batches[number] for number in np.linspace(-1, -len(batches), WARM_UP).astype(int)]
    return warm_up + timed


def useful_flops(config, lengths: np.ndarray) -> float:
    """Floating-point operations of training on sentences of so many tokens, without any padding.

    Per layer and sentence of n tokens: the products with the four matrices of attention (d × d) and
    the two of the feed-forward part (d × h), 2·n·(4·d² + 2·d·h), and of tokens with each other,
    4·n²·d; the backward pass is twice the forward. The classifier, on one token, is left out.
    """
    width, hidden = _widths(config)
    n = lengths.astype(float)
    layer = 2 * n * (4 * width**2 + 2 * width * hidden) + 4 * n**2 * width
    return 3 * config.num_hidden_layers * layer.sum()


def left_out_flops(config, lengths: np.ndarray) -> float:
    """The operations that system/speed.py skips: the last feed-forward part of later tokens."""
    width, hidden = _widths(config)
    return 3 * 2 * 2 * width * hidden * float((lengths - 1).sum())


def _widths(config) -> tuple[int, int]:
    """Of a layer's output, and inside its feed-forward part, which DistilBERT calls otherwise."""
    return config.hidden_size, getattr(config, "hidden_dim", None) or config.intermediate_size


def new_model():
    import torch
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    torch.manual_seed(0)
    return DistilBertForSequenceClassification(DistilBertConfig())
