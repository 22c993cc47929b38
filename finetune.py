"""Fine-tune DistilBERT on SST-2, or any encoder on any table of labelled text.

python finetune.py --epochs 3                         DistilBERT on SST-2, from the Hub
python finetune.py --data reviews.csv                 your own table of texts and labels
python finetune.py --model builtin --data builtin     offline: model and data of this project
python finetune.py … --output-dir runs/a --resume     start a run, or continue the one in runs/a
torchrun --nproc-per-node 8 finetune.py …             the same run on eight GPUs or CPU cores

With --epochs 1 --precision fp32 the built-in encoder reaches 88.95 ± 0.74 % accuracy on SST-2 (6
seeds, held-out sentences) in about 7 minutes on 2 cores of a Zen 5. DistilBERT has not been
measured yet.
"""

from training import program

# ---- Settings: every constant is also a flag (BATCH_SIZE is --batch-size). ----

# An encoder: its Hub id, its folder, or `builtin` (installed by requirements.txt).
MODEL = "distilbert/distilbert-base-uncased"
# `sst2`, `builtin`, a Hub data set (`id` or `id:config`), a file, or a folder with a train file.
DATA = "sst2"
# A column of text, or two for sentence pairs. None: find it by its name or by what it holds.
TEXT_COLUMN = None
# The column of labels. None: find it by its name or by what it holds.
LABEL_COLUMN = None
# The encoding of text files, such as `cp1252`. None: UTF-8, or the one that fits the bytes.
ENCODING = None
# Passes over the training data. BERT's authors advise two to four.
EPOCHS = 3
# Sentences per optimizer step, over all devices. BERT's authors advise 16 or 32.
BATCH_SIZE = 32
# Sentences on one device at a time; fewer sentences need less memory. None: the whole batch, or on
# a CPU about 1024 tokens, because more tokens are no faster.
MICRO_BATCH_SIZE = None
# Tokens per sentence; longer sentences are cut. None: 512, or the model's limit if it is lower.
MAX_LENGTH = None
# Train on this many random sentences, for a quick look. None: all sentences.
MAX_TRAIN_SAMPLES = None
# The source of all random numbers. Compare several seeds before you trust a small difference.
SEED = 42
# The highest rate, reached after warm-up. None: chosen for the encoder, 3e-5 for DistilBERT.
LEARNING_RATE = None
# The fraction of steps in which the learning rate rises from 0; then it falls linearly to 0.
# AdamW's running averages are poor in the first steps. BERT and RoBERTa used 6 to 10 %.
WARMUP = 0.06
# Applied to weight matrices only, not to biases and layer norms. 0.01 is BERT's value.
WEIGHT_DECAY = 0.01
# Clip gradients to this norm, so that one odd batch cannot ruin the weights. 0: no clipping.
MAX_GRAD_NORM = 1.0
# The fraction of activations set to zero in training. None: the encoder's own, 0.1 for DistilBERT.
# Without dropout, one pass of the built-in encoder over SST-2 is faster and no less accurate.
DROPOUT = None
# Do not train the word embeddings: 6 % faster on a CPU, with different results.
FREEZE_EMBEDDINGS = False
# `balanced`: all classes have equal weight in the loss. None: all sentences have equal weight.
CLASS_WEIGHTS = None
# The epoch to keep: `best` accuracy, best `macro_f1`, or `last`. If two tie, the earlier is kept.
KEEP = "best"
# auto: the first of cuda, mps and cpu that is available.
DEVICE = "auto"
# bf16 is faster on a GPU or CPU with units for it; weights stay fp32. auto: bf16 there, else fp32.
PRECISION = "auto"
# torch.compile takes minutes at the start. On one GPU it replaces CUDA graphs, which are faster.
COMPILE = False
# Steps between two lines of metrics.jsonl. Each line makes Python wait for the GPU.
LOG_EVERY = 20
# Also log for TensorBoard, which must be installed; `tensorboard --logdir runs` shows the log.
TENSORBOARD = False
# At most this many minutes of training are lost if the machine dies.
CHECKPOINT_MINUTES = 10
# The folder of the run. None: a new folder runs/<date>-<time>.
OUTPUT_DIR = None
# Continue the run in OUTPUT_DIR, or start it there. Repeating the same command is always safe.
RESUME = False

if __name__ == "__main__":
    # Read flags before the slow imports below, so that --help and a typo are answered at once.
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
    """AdamW with weight decay for matrices, and without it for biases and layer norms."""
    # Dimensions decide, because names differ: sa_layer_norm in DistilBERT, LayerNorm in BERT.
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
    """Take an optimizer step; return mean loss and gradient norm, both still on the device."""
    loss = torch.zeros((), device=model.device)
    # Clear the old gradients, because backward() adds to them.
    optimizer.zero_grad()
    for micro_batch in batch.micro_batches:
        is_last = micro_batch is batch.micro_batches[-1]
        with collectives.no_sync(model, enabled=not is_last):
            logits, labels = forward(model, micro_batch, settings.precision)
            # Sums are divided by the sentences of the whole batch. The micro-batches of all
            # processes then add up to exactly the batch's mean loss.
            losses = F.cross_entropy(logits, labels, class_weights, reduction="sum")
            part = losses / batch.sentences
            # DistributedDataParallel divides gradients by the number of processes; this undoes it.
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
    """Accuracy and macro-F1, and the answer to each sentence in the order of the data's rows."""
    model.eval()
    rows, parts = [], []
    for batch in batches:
        rows.append(batch.rows)
        for micro_batch in batch.micro_batches:
            logits, labels = forward(model, micro_batch, settings.precision)
            losses = F.cross_entropy(logits, labels, reduction="none")
            parts.append((labels, logits.argmax(dim=-1), logits.softmax(dim=-1), losses))
    answers = gather_answers(rows, parts)
    metric = load_accuracy()
    metric.add_batch(predictions=answers.predictions, references=answers.labels)
    # metrics.jsonl gets each metric as eval_…; run.json gets the metrics of the kept epoch.
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
    """Train and evaluate each epoch that `run` has left; `run` keeps the best epoch."""
    replica = collectives.data_parallel(model)
    class_weights = splits["train"].class_weights(settings.class_weights, settings.device)
    validation = data.evaluation_loader(splits["validation"], settings)
    # The longest sentences come first: if they don't fit in memory, the run fails before training.
    evaluate(model, itertools.islice(validation, 2), settings)
    for epoch in range(run.epoch, settings.epochs):
        replica.train()
        loader = data.training_loader(splits["train"], settings, epoch, skip=run.steps_into_epoch)
        for batch in run.watch(loader):
            learning_rate = learning_rate_at(run.step, run.steps, settings)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate
            # Dropout depends on seed and step, so that any step can be repeated after a crash.
            torch.manual_seed(dropout_seed(settings.seed, run.step))
            loss, norm = training_step(replica, optimizer, batch, settings, class_weights)
            run.end_step(batch, loss, norm, learning_rate)
        metrics, answers = evaluate(model, run.watch(validation, "evaluating"), settings)
        run.end_epoch(metrics, answers)
        console.result(f"epoch {epoch}: {{'accuracy': {metrics['accuracy']}}}")


def main(settings: Settings) -> Path:
    """Load, train, evaluate and report; return the folder of the run, with the kept model."""
    loaded = load(settings)
    settings, model, tokenizer = loaded.settings, loaded.model, loaded.tokenizer
    with Run.open(loaded) as run:
        splits = data.tokenize(loaded.text, tokenizer, settings.max_length)
        if settings.freeze_embeddings:
            model.get_input_embeddings().requires_grad_(False)
        speed.prepare(model, settings.device, settings.precision, settings.compile)
        optimizer = make_optimizer(model, settings)
        # run.training() restores the last checkpoint, if any. Inside, Ctrl-C and SIGTERM stop the
        # run after the current step, with a checkpoint.
        with run.training(model, tokenizer, optimizer):
            train(run, model, optimizer, splits, settings)
        run.restore_best(model)
        answers, test_metrics = run.best_answers, None
        # If the best epoch was evaluated before a restart, its answers are computed again.
        if answers is None:
            loader = data.evaluation_loader(splits["validation"], settings)
            _, answers = evaluate(model, run.watch(loader, "evaluating"), settings)
        # The test split is used once and only here, so that no choice can depend on it.
        if "test" in splits:
            loader = data.evaluation_loader(splits["test"], settings)
            test_metrics, _ = evaluate(model, run.watch(loader, "testing"), settings)
        run.add_result(answers, test_metrics)
        report.write(run, loaded.text.splits["validation"], answers)
        # finish() comes last, because it writes the result to run.json and removes the checkpoint.
        run.finish()
    return run.folder


class Result(NamedTuple):
    """The `result` of run.json, the folders, and the kept model on the CPU, ready for inference."""

    metrics: dict[str, float]
    folder: Path
    model_folder: Path
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast


def finetune(**settings: object) -> Result:
    """Run from Python, for example `finetune(data="reviews.csv", epochs=2)`.

    Args:
        settings: any of the constants above, in lower case.
    Raises:
        InputError: settings, data or model are wrong; the error has a line for each problem.
        RunError: the run could not continue.
        KeyboardInterrupt: a signal stopped the run; `output_dir` and `resume=True` continue it.
    """
    folder = program.call(main, globals(), settings)
    metrics, kept = load_result(folder)
    return Result(metrics, folder, folder / "model", kept.model, kept.tokenizer)


if __name__ == "__main__":
    program.finish(main, chosen)
