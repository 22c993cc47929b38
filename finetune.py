"""Fine-tune DistilBERT on SST-2, or any encoder on any table of labelled text.

python finetune.py --epochs 3                         DistilBERT on SST-2, from the Hub
python finetune.py --data reviews.csv                 your own table of texts and labels
python finetune.py --model builtin --data builtin     no network: what requirements.txt installs
python finetune.py … --output-dir runs/a --resume     start a run, or continue the one in runs/a
torchrun --nproc-per-node 8 finetune.py …             the same run on eight GPUs or CPU cores

One pass (--epochs 1) of the built-in encoder over SST-2 reaches 88.95 ± 0.74 % (6 seeds, held-out
sentences) in about 7 minutes on 2 CPU cores. DistilBERT has not been measured yet.
"""

from training import program

# ---- Settings: every constant is also a flag (BATCH_SIZE is --batch-size). ----

# Hub id or folder of an encoder; `builtin` is the one that requirements.txt installs.
MODEL = "distilbert/distilbert-base-uncased"
# `sst2`, `builtin`, a Hub data set (`id` or `id:config`), a file, or a folder with a train file.
DATA = "sst2"
# One column of text, or two for sentence pairs. None: look for a usual name, such as `sentence`.
TEXT_COLUMN = None
# None: look for a usual name, such as `label`.
LABEL_COLUMN = None
# Passes over the training data. BERT's authors advise two to four.
EPOCHS = 3
# Sentences per optimizer step, over all devices. BERT's authors advise 16 or 32.
BATCH_SIZE = 32
# Sentences on one device at a time; fewer need less memory. None: the whole batch, or on a CPU
# about 1024 tokens, beyond which it gets no faster.
MICRO_BATCH_SIZE = None
# Tokens per sentence; the rest is cut off. None: 512, or the model's own limit if that is lower.
MAX_LENGTH = None
# Train on this many randomly chosen sentences, for a quick look. None: on all of them.
MAX_TRAIN_SAMPLES = None
# All random numbers of a run derive from it. Try several before believing a small difference.
SEED = 42
# The peak, reached after warm-up. None: 3e-5, which suits DistilBERT, or 1e-4 for `builtin`.
LEARNING_RATE = None
# Fraction of all steps over which the learning rate rises from 0, as AdamW's averages are poor at
# first; then it falls linearly to 0. BERT and RoBERTa used 6 to 10 %.
WARMUP = 0.06
# Applied to weight matrices only, not to biases and layer norms. BERT's value.
WEIGHT_DECAY = 0.01
# Longer gradients are scaled down to this norm, so that one odd batch cannot ruin the weights.
# 0: never.
MAX_GRAD_NORM = 1.0
# Keep the word embeddings as pretrained: 6 % faster on a CPU, with different results.
FREEZE_EMBEDDINGS = False
# `balanced`: weight the loss so that every class counts the same. None: every sentence does.
CLASS_WEIGHTS = None
# Which epoch to keep: `best` by validation accuracy (ties: the earlier), `macro_f1`, or `last`.
KEEP = "best"
# auto: the first available of cuda, mps, cpu.
DEVICE = "auto"
# fp32, or bf16 (faster where supported; weights stay fp32). auto: bf16 on a GPU that has it.
PRECISION = "auto"
# torch.compile: minutes at the start, then faster steps on a GPU.
COMPILE = False
# Steps between two lines of metrics.jsonl. Each line makes the GPU wait for Python once.
LOG_EVERY = 20
# Also log for TensorBoard, if it is installed: `tensorboard --logdir runs`.
TENSORBOARD = False
# At most this many minutes of training are lost if the machine dies.
CHECKPOINT_MINUTES = 10
# The folder of the run. None: a new folder runs/<date>-<time>.
OUTPUT_DIR = None
# Continue the run in OUTPUT_DIR, or start it there: it is always safe to repeat the same command.
RESUME = False

if __name__ == "__main__":
    # Before the slow imports below, so that --help and a typo are answered at once.
    chosen = program.start(globals())

import itertools
import math
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import data
import report
from data import Batch, TokenizedText
from system import collectives, console, ranks, speed
from system.randomness import dropout_seed
from system.speed import forward
from training.load import load
from training.run import Run, load_result
from training.scores import Answers, gather_answers, load_accuracy, macro_f1
from training.settings import Settings

# ---- Train ----


def make_optimizer(model: nn.Module, settings: Settings) -> torch.optim.AdamW:
    """AdamW that decays weight matrices, and leaves biases and layer norms alone."""
    # Dimensions tell, not names: a norm is sa_layer_norm in DistilBERT, LayerNorm in BERT.
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, fused=True)


def learning_rate_at(step: int, steps: int, settings: Settings) -> float:
    """Linear warm-up from 0, then linear decay to 0; `step` counts from 0."""
    warmup_steps = math.ceil(steps * settings.warmup)
    if step < warmup_steps:
        return settings.learning_rate * step / warmup_steps
    return settings.learning_rate * (steps - step) / (steps - warmup_steps)


def training_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    settings: Settings,
    class_weights: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One optimizer step. Returns mean loss and gradient norm, both still on the device."""
    loss = torch.zeros((), device=model.device)
    optimizer.zero_grad()  # Otherwise backward() adds to the old gradients.
    for micro_batch in batch.micro_batches:
        is_last = micro_batch is batch.micro_batches[-1]
        with collectives.no_sync(model, enabled=not is_last):
            logits, labels = forward(model, micro_batch, settings.precision)
            # Sum over sentences, divided by the sentences of the whole batch: micro-batches of any
            # size, on any number of processes, add up to exactly the batch's mean loss.
            losses = F.cross_entropy(logits, labels, class_weights, reduction="sum")
            part = losses / batch.sentences
            # DistributedDataParallel averages gradients over processes; we want their sum.
            (part * ranks.world_size()).backward()
        loss += part.detach()
    collectives.all_reduce_sum(loss)
    speed.complete_gradients(model)
    norm = nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm or math.inf)
    optimizer.step()
    return loss, norm


# ---- Evaluate ----


@torch.inference_mode()
def evaluate(
    model: nn.Module, batches: Iterable[Batch], settings: Settings
) -> tuple[dict[str, float], Answers]:
    """Accuracy and macro-F1, and the answer to every sentence in the order of the data's rows."""
    model.eval()
    rows, parts = [], []
    for batch in batches:
        rows.append(batch.rows)
        for micro_batch in batch.micro_batches:
            logits, labels = forward(model, micro_batch, settings.precision)
            losses = F.cross_entropy(logits, labels, reduction="none")
            probabilities = logits.softmax(dim=-1).amax(dim=-1)
            parts.append((labels, logits.argmax(dim=-1), probabilities, losses))
    answers = gather_answers(rows, parts)  # From all processes.
    metric = load_accuracy()
    metric.add_batch(predictions=answers.predictions, references=answers.labels)
    # Each entry is logged as eval_…, and those of the kept epoch are the result in run.json.
    metrics = metric.compute()
    metrics["macro_f1"] = macro_f1(answers.labels, answers.predictions)
    return metrics, answers


# ---- The whole run ----


def train(
    run: Run,
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    splits: dict[str, TokenizedText],
    settings: Settings,
) -> None:
    """Every epoch that `run` has left: its steps, then its evaluation; the best one is kept."""
    replica = collectives.data_parallel(model)
    class_weights = splits["train"].class_weights(settings.class_weights, settings.device)
    validation = data.evaluation_loader(splits["validation"], settings)
    # The longest sentences first: if memory is short, it shows now and not after an hour.
    evaluate(model, itertools.islice(validation, 2), settings)
    for epoch in range(run.epoch, settings.epochs):
        replica.train()
        loader = data.training_loader(splits["train"], settings, epoch, skip=run.steps_into_epoch)
        for batch in run.watch(loader):
            learning_rate = learning_rate_at(run.step, run.steps, settings)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate
            # Dropout depends on the step alone, so that any step can be repeated after a crash.
            torch.manual_seed(dropout_seed(settings.seed, run.step))
            loss, norm = training_step(replica, optimizer, batch, settings, class_weights)
            run.end_step(batch, loss, norm, learning_rate)
        metrics, answers = evaluate(model, run.watch(validation, "evaluating"), settings)
        run.end_epoch(metrics, answers)
        console.result(f"epoch {epoch}: {{'accuracy': {metrics['accuracy']}}}")


def main(settings: Settings) -> Path:
    """One run, from the names of a model and a data set to a folder with the best epoch's model."""
    loaded = load(settings)  # Reports every problem with settings, data and model at once.
    settings, model, tokenizer = loaded.settings, loaded.model, loaded.tokenizer
    with Run.open(loaded) as run:  # A new run, or the one to continue.
        splits = data.tokenize(loaded.text, tokenizer, settings.max_length)
        if settings.freeze_embeddings:
            model.get_input_embeddings().requires_grad_(False)
        speed.prepare(model, settings.device, settings.precision, settings.compile)
        optimizer = make_optimizer(model, settings)
        # Takes up the last checkpoint, if there is one. Inside, Ctrl-C and SIGTERM end the run
        # after the current step, with a checkpoint.
        with run.training(model, tokenizer, optimizer):
            train(run, model, optimizer, splits, settings)
        run.restore_best(model)
        answers, test_metrics = run.best_answers, None
        if answers is None:  # An earlier process evaluated the best epoch.
            loader = data.evaluation_loader(splits["validation"], settings)
            _, answers = evaluate(model, run.watch(loader, "evaluating"), settings)
        if "test" in splits:  # Once, and only here.
            loader = data.evaluation_loader(splits["test"], settings)
            test_metrics, _ = evaluate(model, run.watch(loader, "testing"), settings)
        run.add_result(answers, test_metrics)
        report.write(run, loaded.text.splits["validation"], answers)
        run.finish()  # Last: run.json gets its result, and the checkpoint is removed.
    return run.folder


class Result(NamedTuple):
    """The result of a run."""

    metrics: dict[str, float]  # The `result` of run.json.
    folder: Path
    model_folder: Path
    model: PreTrainedModel  # The kept epoch, on the CPU, ready for inference.
    tokenizer: PreTrainedTokenizerFast


def finetune(**settings: object) -> Result:
    """One run from Python: `finetune(data="reviews.csv", epochs=2)`.

    Args:
        settings: any of the constants above, in lower case.
    Raises:
        InputError: one line for each problem with the settings, the data or the model.
        RunError: the run could not continue.
        KeyboardInterrupt: it was interrupted; `output_dir` and `resume=True` continue it.
    """
    folder = program.call(main, globals(), settings)
    metrics, kept = load_result(folder)
    return Result(metrics, folder, folder / "model", kept.model, kept.tokenizer)


if __name__ == "__main__":
    program.finish(main, chosen)
