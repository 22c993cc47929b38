"""A trained model → the class of each text, and its probability."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import transformers

from inputs import batches, encoder, encoder_files, hub
from system import speed
from system.console import InputError, Problem, say
from training import record as records
from training import run_folder

MOST_CHARACTERS = 1000  # For each token.
BATCH_SIZE = 64  # Changes answers only by rounding.


class Classifier(NamedTuple):
    """A model ready for use on its device, and how to give texts to it."""

    model: transformers.PreTrainedModel
    tokenizer: transformers.PreTrainedTokenizerFast
    max_length: int  # Tokens of a text; the rest is cut off.
    precision: str  # fp32 or bf16.
    labels: list[str]  # The names of the classes, in the order of their ids.
    record: dict | None  # The run.json of the run that produced it, if there is one.


def load(name: str) -> Classifier:
    """The classifier `name`: the folder of a run or a model, or an id on the Hub; or an InputError.

    It passes the checks of a model that is trained.
    """
    try:
        return _load(name)
    except InputError as error:  # Here no flag names the model.
        raise InputError(*(problem._replace(flag="") for problem in error.problems)) from None


def _load(name: str) -> Classifier:
    folder = Path(name)
    record = records.read(folder) if folder.is_dir() else None
    max_length = None
    if record:
        folder /= run_folder.MODEL
        if not folder.is_dir():
            reason = "its model is gone" if record["result"] else "no epoch of it is over yet"
            raise InputError(Problem(name, f"a run without {run_folder.MODEL}/", reason))
        if not record["result"]:
            say(f"{name}: the run is not complete; this is the epoch that is kept so far")
        name, max_length = str(folder), record["settings"].get("max_length")
    encoder_files.check_name(name)
    hub.reach(model=name)
    model, tokenizer, max_length = encoder.load(name, None, max_length)
    device = speed.choose_device("auto")
    precision = speed.choose_precision("auto", device)
    speed.prepare(model, device, precision)
    labels = [model.config.id2label[number] for number in range(model.config.num_labels)]
    return Classifier(model, tokenizer, max_length, precision, labels, record)


@torch.inference_mode()
def answer(
    classifier: Classifier,
    texts: Sequence[str],
    pairs: Sequence[str] | None = None,
    batch_size: int = BATCH_SIZE,
    on_batch: Callable[[int], object] = lambda texts: None,
) -> tuple[np.ndarray, np.ndarray]:
    """The id of the class of each text, and its probability; int64 and float32 of shape (texts,).

    `on_batch` is called with the number of texts of each batch.
    """
    model, tokenizer, max_length = classifier.model, classifier.tokenizer, classifier.max_length
    # Text far behind the last token that is read would only take memory.
    texts, pairs = (
        column and [text[: MOST_CHARACTERS * max_length] for text in column]
        for column in (texts, pairs)
    )
    encoded = encoder.encode(tokenizer, texts, pairs, max_length)
    names = [name for name in encoded if name != "attention_mask"]  # `collate` makes that.
    lengths = np.array([len(ids) for ids in encoded["input_ids"]])
    limits = batches.limits(model.device.type, max_length)
    classes, probabilities = np.empty(len(texts), np.int64), np.empty(len(texts), np.float32)
    for numbers in batches.sorted_batches(lengths, batch_size):
        rows = [{name: encoded[name][number] for name in names} for number in numbers]
        micro_batches = batches.collate(rows, tokenizer.pad_token_id, None, *limits)
        parts = [speed.forward(model, inputs, classifier.precision)[0] for inputs in micro_batches]
        logits = torch.cat(parts)
        classes[numbers] = logits.argmax(dim=-1).cpu()
        probabilities[numbers] = logits.softmax(dim=-1).amax(dim=-1).cpu()
        on_batch(len(numbers))
    return classes, probabilities
