"""Load a trained model and predict the class of each text, with all probabilities."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import transformers

from inputs import batches, encoder, encoder_files, hub
from system import speed
from system.console import InputError, say
from training import record as records

# Longer than any token of a real tokenizer.
MAX_CHARACTERS_PER_TOKEN = 1000
# The batch size changes predictions only by rounding.
BATCH_SIZE = 64


class Classifier(NamedTuple):
    """A model on its device; `labels` are in the order of ids, `record` is the run's run.json."""

    model: transformers.PreTrainedModel
    tokenizer: transformers.PreTrainedTokenizerFast
    max_length: int  # tokens per text
    precision: str
    labels: list[str]
    record: dict | None


def load(name: str) -> Classifier:
    """The classifier `name`: the folder of a run or a model, or a Hub id; or an InputError.

    The model is on the best device, in its fast form.
    """
    return prepare(load_plain(name), "auto")


def load_plain(name: str) -> Classifier:
    """The same as `load`, but the model is on the CPU, as transformers loads it."""
    try:
        return _load(name)
    except InputError as error:
        # finetune.py names the model by a flag, predict.py does not.
        raise InputError(*(problem._replace(flag="") for problem in error.problems)) from None


def _load(name: str) -> Classifier:
    encoder_files.check_name(name)
    record = max_length = None
    if encoder_files.is_run(name):
        record = records.read(Path(name))
        if not record["result"]:
            say(f"{name}: the run is not complete; using the epoch kept so far")
        folder = encoder_files.local_folder(name)
        name, max_length = str(folder), record["settings"].get("max_length")
    hub.reach(model=name)
    model, tokenizer, max_length, _ = encoder.load(name, None, max_length)
    labels = [model.config.id2label[number] for number in range(model.config.num_labels)]
    return Classifier(model, tokenizer, max_length, "fp32", labels, record)


def prepare(classifier: Classifier, device: str) -> Classifier:
    """The classifier with its model on `device`, which may be `auto`, in its fast form."""
    device = speed.choose_device(device)
    # In float32 the answers are the same on every CPU, whether it has units for bf16 or not.
    precision = "fp32" if device == "cpu" else speed.choose_precision("auto", device)
    speed.prepare(classifier.model, device, precision)
    return classifier._replace(precision=precision)


@torch.inference_mode()
def answer(
    classifier: Classifier,
    texts: Sequence[str],
    pairs: Sequence[str] | None = None,
    batch_size: int = BATCH_SIZE,
    on_batch: Callable[[int], object] = lambda texts: None,
) -> tuple[np.ndarray, np.ndarray]:
    """Each text's class id and probabilities: int64 (texts,) and float32 (texts, classes).

    `on_batch` is called with the number of texts in each batch.
    """
    classes = np.empty(len(texts), np.int64)
    probabilities = np.empty((len(texts), classifier.model.config.num_labels), np.float32)
    for numbers, micro_batches in make_batches(classifier, texts, pairs, batch_size):
        parts = [
            speed.forward(classifier.model, inputs, classifier.precision)[0]
            for inputs in micro_batches
        ]
        logits = torch.cat(parts)
        classes[numbers] = logits.argmax(dim=-1).cpu()
        probabilities[numbers] = logits.softmax(dim=-1).cpu()
        on_batch(len(numbers))
    return classes, probabilities


def make_batches(
    classifier: Classifier,
    texts: Sequence[str],
    pairs: Sequence[str] | None,
    batch_size: int = BATCH_SIZE,
) -> Iterator[tuple[np.ndarray, list[dict[str, torch.Tensor]]]]:
    """The numbers of the texts in each batch and its micro-batches, the longest texts first."""
    tokenizer, max_length = classifier.tokenizer, classifier.max_length
    # Long text is cut early: tokens after max_length are dropped anyway, and take memory.
    texts, pairs = (
        column and [text[: MAX_CHARACTERS_PER_TOKEN * max_length] for text in column]
        for column in (texts, pairs)
    )
    encoded = encoder.encode(tokenizer, texts, pairs, max_length)
    # `collate` makes the attention mask.
    names = [name for name in encoded if name != "attention_mask"]
    lengths = np.array([len(ids) for ids in encoded["input_ids"]])
    limits = batches.limits(classifier.model.device.type, max_length)
    for numbers in batches.sorted_batches(lengths, batch_size):
        rows = [{name: encoded[name][number] for name in names} for number in numbers]
        yield numbers, batches.collate(rows, tokenizer.pad_token_id, None, *limits)
