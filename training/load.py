"""Load and check everything that a run needs: settings, text, model, tokenizer, record."""

import dataclasses
import time
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import data
from inputs import encoder, encoder_files, hub, learning_rates
from system import collectives, rendezvous, speed
from system.console import Problem, collect_problems, raise_any, say
from training import record as records
from training.settings import Settings


class Loaded(NamedTuple):
    """The inputs of a run, in every process: resolved settings, and `record` for run.json."""

    settings: Settings
    text: data.LabelledText
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    record: dict
    started: float  # time.monotonic(), in seconds


def load(requested: Settings) -> Loaded:
    """Load text and model; one InputError reports every problem with device, data and model."""
    started = time.monotonic()
    problems: list[Problem] = []
    # These labels let the model be checked even if the data is wrong.
    labels = ["no", "labels"]
    with collectives.local_main_first():
        names = {"model": requested.model, "data": requested.data}
        find = encoder_files.find_model
        replaced = hub.stand_ins(names, requested.explicit, requested.outage, find)
        settings = dataclasses.replace(requested, **dict.fromkeys(replaced, "builtin"))
        with collect_problems(problems):
            device = speed.choose_device(settings.device)
        with collect_problems(problems):
            columns = settings.text_column, settings.label_column
            text = data.load(settings.data, *columns, settings.seed, settings.encoding)
            labels = text.labels
        # Problems are reported before a long download of the model, not after it.
        if not problems or not hub.is_needed("model", settings.model):
            with collect_problems(problems):
                torch.manual_seed(settings.seed)
                loaded = encoder.load(settings.model, labels, settings.max_length, settings.dropout)
        raise_any(problems)
    if loaded.has_new_head:
        say("the classification head is new: it starts from random weights")
    else:
        say("the classification head is that of the checkpoint")
    resolved = dataclasses.replace(
        settings,
        text_column=text.text_columns,
        label_column=text.label_column,
        max_length=loaded.max_length,
        learning_rate=settings.learning_rate or learning_rates.choose(loaded.model.config),
        device=device,
        precision=speed.choose_precision(settings.precision, device),
    )
    if settings.max_train_samples:
        train = data.subset(text.splits["train"], settings.max_train_samples, settings.seed)
        text = text._replace(splits=text.splits | {"train": train})
    record = records.describe(resolved, requested, replaced, text, Path(loaded.model.name_or_path))
    rendezvous.check_same(records.must_be_same(record))
    for line in (*records.summary(record), *records.origin_notes(record)):
        say(line)
    return Loaded(resolved, text, loaded.model, loaded.tokenizer, record, started)
