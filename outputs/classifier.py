"""A trained model and texts in, the class of each and its probability out."""

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import torch
import transformers

import data
from inputs import encoder as models
from inputs import encoder_files as model_files
from inputs import hub
from system import speed as faster
from system.console import InputError, say
from training import record as records
from training import run_folder

MOST_CHARACTERS = 1000  # For each token.
BATCH_SIZE = 64  # Answers do not depend on it, but for rounding.


class Classifier(NamedTuple):
    """A model for use, on its device, and what is needed to give it texts."""

    model: transformers.PreTrainedModel
    tokenizer: transformers.PreTrainedTokenizerFast
    max_length: int  # Tokens of a text; the rest is cut off.
    precision: str  # fp32 or bf16.
    labels: list[str]  # The names of the classes, in the order of their ids.
    record: dict | None  # The run.json of the run that left it, if one did.


def load(name: str) -> Classifier:
    """The classifier in `name`, with the checks that a model passes before it is trained.

    Args:
        name: the folder of a run, another folder, or an id on the Hub, of a model with a head.
    Raises:
        InputError: it isn't there, it can't classify, or its files are not whole.
    """
    try:
        return _load(name)
    except InputError as error:  # Flags of finetune.py, from which these messages are.
        told = [p.replace(f"--output-dir {name}", name, 1) for p in error.problems]
        raise InputError(*(problem.removeprefix("--model ") for problem in told)) from None


def _load(name: str) -> Classifier:
    folder = Path(name)
    record = records.read(folder) if folder.is_dir() else None
    length = None
    if record:
        folder /= run_folder.MODEL
        if not folder.is_dir():
            problem = "its model is gone" if record["result"] else "no epoch of it is over yet"
            raise InputError(f"{name}: a run without {run_folder.MODEL}/; {problem}")
        if not record["result"]:
            say(f"{name}: the run is not complete; this is the epoch that is kept so far")
        name, length = str(folder), record["settings"].get("max_length")
    model_files.check_name(name)
    hub.reach(model=name)
    model, tokenizer, length = models.load_model(name, None, length)
    device = models.choose_device("auto")
    precision = models.choose_precision("auto", device)
    faster.prepare(model, SimpleNamespace(device=device, precision=precision, compile=False))
    labels = [model.config.id2label[number] for number in range(model.config.num_labels)]
    return Classifier(model, tokenizer, length, precision, labels, record)


@torch.inference_mode()
def answer(
    classifier: Classifier,
    texts: Sequence[str],
    pairs: Sequence[str] | None = None,
    batch_size: int = BATCH_SIZE,
    on_batch: Callable[[int], object] = lambda texts: None,
) -> tuple[np.ndarray, np.ndarray]:
    """The id of the class of each text, and its probability, in the order of the texts.

    Args:
        pairs: the second text of each, of pairs.
        on_batch: is called with the number of texts that were answered.
    Returns:
        int64 and float32, each of shape (texts,).
    """
    model, tokenizer, device = classifier.model, classifier.tokenizer, classifier.model.device
    # What lies far behind the last token that is read would take memory for nothing.
    texts, pairs = (
        column and [text[: MOST_CHARACTERS * classifier.max_length] for text in column]
        for column in (texts, pairs)
    )
    encoded = data.encode(tokenizer, texts, pairs, classifier.max_length)
    names = [name for name in encoded if name != "attention_mask"]  # `collate` makes that.
    lengths = np.array([len(ids) for ids in encoded["input_ids"]])
    most, multiple = data.limits(device.type, classifier.max_length)
    classes, probabilities = np.empty(len(texts), np.int64), np.empty(len(texts), np.float32)
    use_bf16 = classifier.precision == "bf16"
    for numbers in data.sorted_batches(lengths, batch_size):
        rows = [{name: encoded[name][number] for name in names} for number in numbers]
        of_batch = []
        for batch in data.collate(rows, tokenizer.pad_token_id, None, most, multiple):
            batch = {name: tensor.to(device) for name, tensor in batch.items()}
            with torch.autocast(device.type, torch.bfloat16, enabled=use_bf16):
                of_batch.append(model(**batch).logits.float())
        logits = torch.cat(of_batch)
        classes[numbers] = logits.argmax(dim=-1).cpu()
        probabilities[numbers] = logits.softmax(dim=-1).amax(dim=-1).cpu()
        on_batch(len(numbers))
    return classes, probabilities
