"""Helpers of tests of the training loop: settings, sentences, models without dropout, a run."""

import dataclasses
import random
from pathlib import Path

import torch

import data
import finetune
from harness.helpers import save_tiny
from inputs import encoder
from system import speed
from training import load as loading
from training import program
from training.run import Run
from training.settings import Settings, from_flags

NO_DROPOUT = {"dropout": 0.0, "attention_dropout": 0.0, "seq_classif_dropout": 0.0}


def make_settings(*flags: str) -> Settings:
    """The settings of a command line, on the CPU in float32."""
    argv = ["--model", "builtin", "--data", "builtin", *flags]
    settings = program.read_settings(from_flags, vars(finetune), argv)
    return dataclasses.replace(settings, device="cpu", precision="fp32")


def write_sentences(folder: Path, count: int) -> list[tuple[str, int]]:
    """Write train and dev files of `count` random sentences, with labels that a model can learn."""
    vocabulary = ["film", "plot", "warm", "cold", "fine", "dull", "a", "the", "of", "and", "with"]
    rng = random.Random(0)
    texts = [" ".join(rng.choices(vocabulary, k=rng.randint(2, 12))) for _ in range(count)]
    rows = [(text, int("warm" in text)) for text in texts]
    folder.mkdir(exist_ok=True)
    lines = "".join(f"{text},{label}\n" for text, label in rows)
    for name in ("train", "dev"):
        (folder / f"{name}.csv").write_text("text,label\n" + lines)
    return rows


def no_dropout(folder: Path) -> Path:
    """A tiny checkpoint without dropout, for tests that compare runs."""
    return save_tiny(folder, **NO_DROPOUT)


def load_head(name: Path) -> torch.nn.Module:
    """A checkpoint with a head for two classes, initialized with a fixed seed."""
    torch.manual_seed(0)
    return encoder.load(str(name), ["0", "1"], None).model


def load(
    folder: Path, count: int, *flags: str, run: str = "run", **changes: float
) -> loading.Loaded:
    """Load a run over `count` sentences with a tiny model in `folder`.

    Args:
        changes: entries of the model's config; the default config has no dropout.
    """
    rows, model = folder / "sentences", folder / "model"
    if not model.exists():
        write_sentences(rows, count)
        save_tiny(model, **NO_DROPOUT | changes)
    names = ["--model", str(model), "--data", str(rows), "--output-dir", str(folder / run)]
    return loading.load(make_settings(*names, *flags))


def train(loaded: loading.Loaded) -> list[dict]:
    """Train all epochs as finetune.main does; the lines of metrics.jsonl."""
    settings, model = loaded.settings, loaded.model
    with Run.open(loaded) as run:
        splits = data.tokenize(loaded.text, loaded.tokenizer, settings.max_length)
        speed.prepare(model, settings.device, settings.precision, settings.compile)
        optimizer = finetune.make_optimizer(model, settings)
        with run.training(model, loaded.tokenizer, optimizer):
            finetune.train(run, model, optimizer, splits, settings)
    return run.state.history


def largest_difference(first: torch.nn.Module, second: torch.nn.Module) -> float:
    """The largest difference between the weights of two models."""
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return max((a - b).abs().max().item() for a, b in pairs)
