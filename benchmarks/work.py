"""The sentences that the benchmarks train on, and the operations that a model needs for them."""

import json
import os
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
SST2 = Path(os.environ.get("SST2", HERE.parent.parent / "shared" / "sst2"))
sys.path.insert(0, str(HERE.parent))

# Steps before the clock starts: the first of them has the epoch's longest sentences.
WARM_UP = 3


def make_sentences(count: int | None = None, length_factor: float = 1.0):
    """Random token ids, in sentences as long as SST-2's training sentences.

    Args:
        count: number of sentences. None: all.
        length_factor: 2 makes sentences twice as long, with at most 512 tokens.
    """
    import datasets

    counts = json.loads((HERE / "sst2_lengths.json").read_text())
    lengths = np.repeat(np.arange(len(counts)), counts)
    random = np.random.default_rng(0)
    lengths = np.round(random.permutation(lengths)[:count] * length_factor)
    lengths = np.minimum(lengths, 512).astype(int)
    ids = [random.integers(1000, 30000, length).tolist() for length in lengths]
    columns = {"input_ids": ids, "labels": random.integers(0, 2, len(ids)).tolist()}
    columns["attention_mask"] = [[1] * length for length in lengths]
    return datasets.Dataset.from_dict(columns)


def lengths_of(rows) -> np.ndarray:
    """The number of tokens of each row, shape (rows,)."""
    return np.array(list(map(len, rows["input_ids"][:])))


def pick(order: np.ndarray, lengths: np.ndarray, batch_size: int, steps: int) -> list[np.ndarray]:
    """WARM_UP batches of an epoch, the longest first, then `steps` batches to be timed.

    Args:
        order: row numbers in the order of a contender's own sampler, which is cut into batches.
        lengths: tokens of each row, shape (rows,).
    Returns:
        Row numbers of each batch, shape (batch_size,). The timed batches are evenly spaced by
        width and in random order, so that their mean length is the epoch's.
    """
    batches = [order[i : i + batch_size] for i in range(0, len(order) - batch_size + 1, batch_size)]
    batches.sort(key=lambda batch: lengths[batch].max())
    positions = ((np.arange(steps) + 0.5) * len(batches) / steps).astype(int)
    timed = [batches[number] for number in np.random.default_rng(0).permutation(positions)]
    warm_up = [batches[number] for number in np.linspace(-1, -len(batches), WARM_UP).astype(int)]
    return warm_up + timed


def useful_flops(config, lengths: np.ndarray) -> float:
    """Floating-point operations of a training step, without padding.

    A layer needs 2·n·(4·d² + 2·d·h) + 4·n²·d operations for a sentence of n tokens. The terms are
    four matrices of attention (d × d), two of the feed-forward part (d × h), and attention itself.
    The backward pass needs twice as many. The classifier, on one token, is not counted.
    """
    width, hidden = _widths(config)
    n = lengths.astype(float)
    layer = 2 * n * (4 * width**2 + 2 * width * hidden) + 4 * n**2 * width
    return 3 * config.num_hidden_layers * layer.sum()


def left_out_flops(config, lengths: np.ndarray) -> float:
    """Operations that system/speed.py skips on a CPU.

    In the last layer, only the first token has a query, an output of attention (width × width each)
    and a feed-forward part (two matrices of width × hidden).
    """
    width, hidden = _widths(config)
    return 3 * 2 * (2 * width**2 + 2 * width * hidden) * float((lengths - 1).sum())


def _widths(config) -> tuple[int, int]:
    """The widths of a layer's output and of its feed-forward part."""
    # DistilBERT names the second hidden_dim, other models intermediate_size.
    return config.hidden_size, getattr(config, "hidden_dim", None) or config.intermediate_size


def new_model():
    import torch
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    torch.manual_seed(0)
    return DistilBertForSequenceClassification(DistilBertConfig())
