"""Fine-tune DistilBERT on SST-2, or any encoder on any table of labelled text.

python finetune.py --epochs 3                         DistilBERT on SST-2, from the Hub
python finetune.py --data reviews.csv                 your own table of texts and labels
python finetune.py --model builtin --data builtin     what is installed here, without a network
python finetune.py … --output-dir runs/a --resume     starts a run, or goes on with the one there
torchrun --nproc-per-node 8 finetune.py …             the same run on eight GPUs, or CPU cores
torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST finetune.py …
                                                      on two machines: given on each of them
"""

from system import console

if __name__ == "__main__":
    console.end_on_signals()

import contextlib
import itertools
import math
import shlex
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from inputs import encoder_files as model_files
from inputs import hub
from system import collectives as processes
from system import disk as files
from system.console import InputError, RunError, progress, result, say
from training import record as records
from training import run_folder
from training.settings import Settings, from_keywords, read_settings

# ---- Settings: each constant is also a flag (`BATCH_SIZE` is `--batch-size`). ----

# Hub id or folder of an encoder checkpoint; `builtin` is the one that requirements.txt installs.
MODEL = "distilbert/distilbert-base-uncased"
# `sst2`, `builtin`, a Hub data set (`id` or `id:config`), a file, or a folder with a train file.
DATA = "sst2"
# One column of text, or two for a pair of sentences; None: by the usual names, such as `sentence`.
TEXT_COLUMN = None
# None: by the usual names, such as `label`.
LABEL_COLUMN = None
# Passes over the training data; BERT's authors advise two to four.
EPOCHS = 3
# Sentences per optimizer step, over all devices; BERT's authors advise 16 or 32.
BATCH_SIZE = 32
# The most sentences on a device at a time; less takes less memory. None: the whole batch; on a CPU
# as many as have 1024 tokens, with more of which it is no faster.
MICRO_BATCH_SIZE = None
# Tokens of a sentence, the rest is cut off; None: 512, or fewer where the model takes fewer.
MAX_LENGTH = None
# Train on that many sentences, drawn at random, for a quick look; None: on all.
MAX_TRAIN_SAMPLES = None
# Every random number of a run follows from this one; another seed tells luck from skill.
SEED = 42
# At its highest, after the warm-up. None: 3e-5, which suits DistilBERT, or 1e-4 for builtin.
LEARNING_RATE = None
# The fraction of all steps in which the learning rate rises from 0, as AdamW's averages of the
# gradients are poor at first; then it falls to 0 in a line. BERT and RoBERTa took 6 to 10 %.
WARMUP = 0.06
# How much weights of two or more dimensions shrink a step, times the learning rate; BERT's value.
WEIGHT_DECAY = 0.01
# Longer gradients are scaled down to this length, so that one odd batch cannot throw the weights;
# 0: never.
MAX_GRAD_NORM = 1.0
# Leave the word embeddings as they were pretrained: 6 % faster on a CPU, with other results.
FREEZE_EMBEDDINGS = False
# `balanced`: the rarer a class, the more each of its sentences counts in the loss, so that all
# classes count alike; None: all sentences do.
CLASS_WEIGHTS = None
# Which epoch's model is kept: `best` by validation accuracy (of equals the earlier), by `macro_f1`,
# to which a rare class matters as much as others, or `last`.
KEEP = "best"
# auto takes the fastest that is there, in this order: cuda, mps, cpu.
DEVICE = "auto"
# fp32; bf16 (faster where the device has it, weights stay fp32); auto: bf16 on a GPU that has it.
PRECISION = "auto"
# Let torch.compile write the device's code: minutes at the start for faster steps on a GPU.
COMPILE = False
# Steps between two lines of metrics.jsonl; each makes the device wait.
LOG_EVERY = 20
# Write what is logged for TensorBoard too, where that is installed: `tensorboard --logdir runs`.
TENSORBOARD = False
# The most minutes of training that are lost where the machine vanishes.
CHECKPOINT_MINUTES = 10
# Where the run is written; None: a new folder runs/<date>-<time>.
OUTPUT_DIR = None
# Go on with the run that OUTPUT_DIR holds, or start it there: the same command, given again, is
# always right.
RESUME = False

if __name__ == "__main__":
    # Read before the libraries below, whose import takes seconds: --help and a wrong flag are
    # answered at once. The Hub is asked here too: where it is silent, those would wait for minutes.
    with console.exit_codes(processes.may_tell), processes.losses_told():
        processes.join(sys.argv[1:])
        settings = processes.by_first(read_settings, globals(), sys.argv[1:])
        if finished := processes.by_first(run_folder.result_of, settings):
            say(f"this run is complete; {finished}")
            sys.exit()
        hub_problem = processes.by_first(hub.ask, settings)
        if hub_problem:
            hub.go_offline()

import numpy as np
import torch
import transformers
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

import data
import report
from inputs import encoder as models
from outputs import model_card
from system import speed as faster
from training import boards, checkpoint

# ---- Train ----


def make_optimizer(model: nn.Module, settings: Settings) -> torch.optim.AdamW:
    """AdamW that decays matrices and embeddings, and leaves biases and layer norms alone."""
    # By dimensions, as names differ: a norm is sa_layer_norm in DistilBERT, LayerNorm in BERT.
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, fused=True)


def learning_rate_at(step: int, steps: int, settings: Settings) -> float:
    """The learning rate of `step` (from 0) of `steps`: a straight rise from 0, then a fall to 0."""
    warmup_steps = math.ceil(steps * settings.warmup)
    if step < warmup_steps:
        return settings.learning_rate * step / warmup_steps
    return settings.learning_rate * (steps - step) / (steps - warmup_steps)


def balanced_weights(counts: np.ndarray) -> torch.Tensor:
    """How much a sentence of each class counts where all classes are to count alike.

    Args:
        counts: of the training sentences of each class, int64 of shape (classes,).
    Returns:
        float32 of shape (classes,); in the mean over the sentences 1.
    """
    weights = counts.sum() / counts.clip(min=1) / np.count_nonzero(counts)
    return torch.tensor(weights, dtype=torch.float32)


def forward(
    model: nn.Module, batch: dict[str, torch.Tensor], settings: Settings
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, float32 of shape (sentences, classes), and labels, (sentences,), on the device."""
    batch = {name: tensor.to(model.device, non_blocking=True) for name, tensor in batch.items()}
    labels = batch.pop("labels")
    with torch.autocast(model.device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
        logits = model(**batch).logits
    return logits.float(), labels


def training_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: data.Batch,
    settings: Settings,
    class_weights: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One optimizer step on one batch: its mean loss and the gradient's norm, on the device."""
    sentences = sum(batch.shares)
    loss = torch.zeros((), device=model.device)
    optimizer.zero_grad()  # backward() adds to the gradients that are there.
    # Where the share of this process is empty, the others wait for its gradient all the same.
    micro_batches = batch.micro_batches or [data.NO_SENTENCE]
    for micro_batch in micro_batches:
        with processes.only_added_up(model, is_last=micro_batch is micro_batches[-1]):
            logits, labels = forward(model, micro_batch, settings)
            # Summed, then divided by the sentences of the whole step: micro-batches of any size,
            # on any number of processes, add up to exactly the mean of the batch, and so do their
            # gradients.
            part = F.cross_entropy(logits, labels, class_weights, reduction="sum") / sentences
            # Of several processes' gradients the mean is taken, and not the sum.
            (part * len(batch.shares)).backward()
        loss += part.detach()
    processes.sum_up(loss)
    faster.complete_gradients(model)
    norm = nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm or math.inf)
    optimizer.step()
    return loss, norm


def train_epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loader: DataLoader[data.Batch],
    settings: Settings,
    state: dict,
    steps: int,
    class_weights: torch.Tensor | None = None,
) -> Iterator[dict | None]:
    """Take a step with each batch of `loader`, which has what is left of the epoch.

    Args:
        state: of `checkpoint.new_state`; what the steps change in it is counted on.
        steps: those of all epochs together.
        class_weights: how much a sentence of each class counts, in the mean 1; None: all alike.
    Yields:
        After each step None, or each LOG_EVERY steps and at the end of the epoch a line to log.
    Raises:
        RunError: the loss or the gradient of a step was not finite.
    """
    model.train()
    sentences, started = state["sentences"], time.monotonic()
    # Each process leaves out weights of its own.
    dropout = "dropout" if processes.is_first() else f"dropout of process {processes.rank()}"
    for batch in loader:
        step = state["step"]
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, steps, settings)
        # Dropout's numbers follow from the step alone, so that any step can be repeated.
        torch.manual_seed(int(data.generator(settings.seed, dropout, step).integers(2**63)))
        loss_and_norm = training_step(model, optimizer, batch, settings, class_weights)
        state["unread"].append(torch.stack(loss_and_norm))
        state["step"] += 1
        state["sentences"] += sum(batch.shares)
        pairs = itertools.zip_longest(state["by_process"], batch.shares, fillvalue=0)
        state["by_process"] = list(map(sum, pairs))
        ends_epoch, line = (step + 1) % (steps // settings.epochs) == 0, None
        if (step + 1) % settings.log_every == 0 or ends_epoch:
            read_window(state, steps, settings)
            losses, norms = zip(*state["window"], strict=True)
            line = {
                "step": step + 1,
                "epoch": state["epoch"],
                "loss": sum(losses) / len(losses),
                "learning_rate": learning_rate_at(step, steps, settings),
                "grad_norm": norms[-1],
                "samples_per_second": round(
                    (state["sentences"] - sentences) / (time.monotonic() - started), 1
                ),
            }
            state["window"], sentences, started = [], state["sentences"], time.monotonic()
        yield line


def read_window(state: dict, steps: int, settings: Settings) -> None:
    """Read loss and norm of the last steps from the device, and stop where one is not finite.

    Here alone, and seldom: each reading makes the device wait for Python.
    """
    if state["unread"]:
        state["window"] += torch.stack(state["unread"]).tolist()
        state["unread"] = []
    first = state["step"] - len(state["window"])
    for step, values in enumerate(state["window"], first):
        if not all(map(math.isfinite, values)):
            raise RunError(
                f"step {step + 1}: the loss or its gradient is not finite, at learning rate "
                f"{learning_rate_at(step, steps, settings):.3g}; try a lower --learning-rate"
            )


# ---- Evaluate ----


@torch.inference_mode()
def evaluate(
    model: nn.Module, loader: DataLoader[data.Batch], settings: Settings
) -> tuple[dict[str, float], float, report.Answers]:
    """Accuracy, macro-F1 and mean loss over all sentences of `loader`, of all processes.

    Returns:
        The scores, the loss, and what the model says of each sentence, in their order.
    """
    from training.scores import Accuracy, macro_f1  # Seconds to import; the input is right by now.

    model.eval()
    rows, answers, loss_sum = [np.empty(0, int)], [torch.empty(0, 3)], 0.0
    with progress(len(loader), "batches", "evaluating") as bar:
        for batch in loader:
            rows.append(batch.rows)
            for micro_batch in batch.micro_batches:
                logits, labels = forward(model, micro_batch, settings)
                predictions = logits.argmax(dim=-1)
                probabilities = logits.softmax(dim=-1).amax(dim=-1)
                answers.append(torch.stack([labels, predictions, probabilities], dim=1).cpu())
                loss_sum += F.cross_entropy(logits, labels, reduction="sum").item()
            bar.update()
            processes.stop_if_told()
    of_all = processes.gather((np.concatenate(rows), torch.cat(answers).numpy(), loss_sum))
    rows, answers, losses = zip(*of_all, strict=True)
    labels, predictions, probabilities = np.concatenate(answers)[np.argsort(np.concatenate(rows))].T
    found = report.Answers(labels.astype(int), predictions.astype(int), probabilities)
    scores = Accuracy().compute(predictions=found.predictions, references=found.references)
    scores["macro_f1"] = macro_f1(found.references, found.predictions)
    return scores, sum(losses) / len(labels), found


# ---- The whole run ----


def fit(
    model: transformers.PreTrainedModel,
    tokenizer: transformers.PreTrainedTokenizerFast,
    tokens: dict[str, data.TokenizedText],
    settings: Settings,
    folder: Path,
    state: dict,
) -> tuple[dict[str, float], report.Answers]:
    """All epochs from `state` on; the kept epoch's model is in `folder`/model at the end.

    Args:
        state: of `checkpoint.new_state`, or that of a run which goes on.
    Returns:
        The kept epoch (from 0), its scores and loss on validation, and its accuracy on test; and
        what it says of each validation sentence.
    """

    def loader(split: str, batches: list) -> DataLoader[data.Batch]:
        widths = tokenizer.pad_token_id, settings.micro_batch_size, settings.max_length
        place = processes.rank(), processes.count()
        return data.make_loader(tokens[split], batches, *widths, settings.device, *place)

    def score(model: nn.Module, split: str, most: int | None = None) -> tuple:
        batches = data.sorted_batches(tokens[split].lengths, settings.batch_size)
        return evaluate(model, loader(split, batches[:most]), settings)

    def log(line: dict) -> None:
        state["history"].append(line)
        if processes.is_first():
            files.append_line(folder / run_folder.METRICS, line)
        show(line)

    def save() -> None:
        nonlocal saved, saved_at
        if processes.is_first() and saved != (state["epoch"], state["step"]):
            read_window(state, steps, settings)
            seconds = state["seconds"] + time.monotonic() - started
            checkpoint.save(checkpoint_file, state | {"seconds": seconds}, model, optimizer)
            saved, saved_at = (state["epoch"], state["step"]), time.monotonic()

    def keep() -> None:
        if not processes.is_first():
            return
        is_over = state["step"] == state["epoch"] * steps_per_epoch
        if is_over and state["kept"].get("epoch") == state["epoch"] - 1:
            models.save_model(model, tokenizer, kept_model)
        elif state["kept"] and not kept_model.is_dir():
            raise RunError(
                f"{kept_model}: the kept model is gone; put it back, or start another run"
            )

    checkpoint_file = folder / run_folder.CHECKPOINT
    kept_model = folder / run_folder.MODEL
    optimizer = make_optimizer(model, settings)
    checkpoint.put_back(checkpoint_file, state, model, optimizer)
    processes.send_averages(optimizer)
    trained = processes.distribute(model)  # And send the weights.
    counts = tokens["train"].count_classes(len(model.config.id2label))
    class_weights = None
    if settings.class_weights == "balanced":
        class_weights = balanced_weights(counts).to(settings.device)
    wanted = "accuracy" if settings.keep == "best" else settings.keep
    # Where accuracy can be high though a class is never found.
    has_rare = len(counts) > 2 or counts.min() < 0.2 * counts.sum() or wanted == "macro_f1"
    shown = ["accuracy", "macro_f1"] if has_rare else ["accuracy"]
    wants_board = settings.tensorboard and processes.is_first()
    lengths = tokens["train"].lengths
    steps_per_epoch = math.ceil(len(lengths) / settings.batch_size)
    steps, sentences = settings.epochs * steps_per_epoch, settings.epochs * len(lengths)
    started = saved_at = time.monotonic()  # A clock that nobody sets.
    saved = state["epoch"], state["step"]
    answers = None  # Of the kept epoch, if this process has evaluated it.
    # A first look at the longest sentences: what fails in the evaluation fails now, not in an hour.
    score(model, "validation", most=2)
    with (
        console.stop_between_steps(once_more=not processes.is_launched()),
        progress(sentences, "sentences", "training", state["sentences"]) as bar,
        boards.opened(folder, state["history"], wants_board) as show,
    ):
        try:
            while True:
                keep()  # At the start too, as a kill can come between a checkpoint and this.
                processes.stop_if_told()
                if state["epoch"] == settings.epochs:
                    break
                epoch = state["epoch"]
                batches = data.epoch_batches(lengths, settings.batch_size, settings.seed, epoch)
                # A run that goes on does not even read what it has trained on.
                rest = loader("train", batches[state["step"] - epoch * steps_per_epoch :])
                for line in train_epoch(
                    trained, optimizer, rest, settings, state, steps, class_weights
                ):
                    if line:
                        log(line)
                        bar.set_postfix_str(f"epoch {epoch}, loss {line['loss']:.3f}", False)
                    bar.update(state["sentences"] - bar.n)
                    if time.monotonic() - saved_at >= 60 * settings.checkpoint_minutes:
                        save()
                    processes.stop_if_told()
                metrics, loss, found = score(model, "validation")
                if not math.isfinite(loss):
                    raise RunError(
                        f"epoch {epoch}: the validation loss is not finite; try a lower "
                        "--learning-rate"
                    )
                scores = {f"eval_{name}": metrics[name] for name in shown}
                log({"epoch": epoch, "step": state["step"], "eval_loss": loss} | scores)
                best = state["kept"].get(wanted, -math.inf)
                if wanted == "last" or metrics[wanted] > best:
                    scores = {name: metrics[name] for name in shown}
                    state["kept"] = {"epoch": epoch, **scores, "loss": loss}
                    answers = found
                state["epoch"] = epoch + 1
                save()
                # Where stdout is closed, nothing else is lost.
                result(f"epoch {epoch}: {{'accuracy': {metrics['accuracy']}}}")
        except console.Stopped:
            save()
            processes.gather(None)  # Else torchrun ends them all with the first that has ended.
            where = shlex.quote(str(folder))
            how = f"give the same command with --output-dir {where} --resume"
            say(f"to go on from step {state['step']}, {how}")
            raise
    state["seconds"] += time.monotonic() - started
    kept = dict(state["kept"])
    if answers is None or "test" in tokens:  # By the kept model, as it was written.
        labels = list(model.config.id2label.values())
        path = str(kept_model.absolute())  # And no name of one on the Hub.
        written = processes.by_first(
            lambda: models.load_model(path, labels, settings.max_length)[0].state_dict()
        )
        model.load_state_dict(written)
    if answers is None:
        *_, answers = score(model, "validation")
    if "test" in tokens:  # Once.
        metrics, *_ = score(model, "test")
        say(f"test: {{'accuracy': {metrics['accuracy']}}}")
        kept["test_accuracy"] = metrics["accuracy"]
    return kept, answers


def load(settings: Settings, hub_problem: str | None) -> tuple:
    """What `settings` names, with what is left to be found out filled in there.

    Returns:
        The data.LabelledText, the model, its tokenizer, and the record of the run.
    Raises:
        InputError: with each problem of device, data and model.
    """
    replaced = hub.put_stand_ins(settings, hub_problem, model_files.find_model)
    settings.learning_rate = settings.learning_rate or models.learning_rate(settings.model)

    problems: list[str] = []
    labels = ["no", "labels"]  # Where the data is wrong the model is looked at all the same.
    with console.gather(problems):
        settings.device = models.choose_device(settings.device, processes.on_this_machine())
    with console.gather(problems):
        text = data.load(settings.data, settings.text_column, settings.label_column, settings.seed)
        labels = text.labels
    if not problems or not hub.is_needed("model", settings.model):  # Not after a long download.
        with console.gather(problems):
            torch.manual_seed(settings.seed)  # The weights of the new head are drawn from it.
            model, tokenizer, length = models.load_model(
                settings.model, labels, settings.max_length
            )
    if problems:
        raise InputError(*problems)

    # As they were taken, for the record.
    settings.precision = models.choose_precision(settings.precision, settings.device)
    settings.text_column, settings.label_column = text.text_columns, text.label_column
    settings.max_length = length
    if size := settings.max_train_samples:
        text.splits["train"] = data.subset(text.splits["train"], size, settings.seed)
    record = records.describe(settings, replaced, text, Path(model.name_or_path))
    return text, model, tokenizer, record


def main(settings: Settings, hub_problem: str | None) -> Path:
    """One run: from the names of model and data to the kept model in the run's folder."""
    started = time.monotonic()
    record = labels = checkpoint_folder = None
    with processes.together():
        if processes.leads():
            text, model, tokenizer, record = load(settings, hub_problem)
            labels, checkpoint_folder = text.labels, model.name_or_path
    processes.refuse_differences(record and records.must_be_same(record))
    # The others have it from the first process of their machine.
    settings, labels, source = processes.from_leader((settings, labels, checkpoint_folder))
    if not processes.leads():
        model, tokenizer, _ = models.load_model(source, labels, settings.max_length)
    if record:
        for line in records.summary(record):
            say(line)

    is_first = processes.is_first()
    claim = run_folder.claim(settings, record) if is_first else contextlib.nullcontext([None] * 3)
    with claim as (folder, record, state):
        words = {k: v for k, v in (state or {}).items() if k not in checkpoint.TENSORS}
        folder, words = processes.from_first((folder, words))
        state = state or words  # Tensors, which can be gigabytes, are sent by `fit`.
        say(f"writing to {folder}")
        tokens = {}
        with processes.together():
            if processes.leads():
                for split, rows in text.splits.items():
                    length = settings.max_length
                    tokens[split] = data.tokenize(rows, text.ids, tokenizer, length, split)
        found = processes.from_leader({split: rows.files() for split, rows in tokens.items()})
        tokens = tokens or {split: data.map_tokens(files) for split, files in found.items()}
        if settings.freeze_embeddings:
            model.get_input_embeddings().requires_grad_(False)
        faster.prepare(model, settings)
        state["seconds"] += time.monotonic() - started
        kept, answers = fit(model, tokenizer, tokens, settings, folder, state)
        if is_first:
            record["by_process"] = state["by_process"]
            record["result"] = kept | report.summary(kept["accuracy"], answers)
            record["result"]["seconds"] = round(state["seconds"], 1)
            try:
                report.write(folder, record, state["history"], text.splits["validation"], answers)
            except Exception as error:
                if files.is_full(error):  # With space, the same command writes it.
                    raise
                # A night's training is not lost over a picture.
                how = f"`python report.py {shlex.quote(str(folder))}` tries again"
                say(f"NOTE: its report is not complete ({console.one_line(error)[:200]}); {how}")
            run_folder.finish(folder, record, state["history"])
    if is_first:
        say(model_card.in_words(record["result"], len(answers.references)))
        say(run_folder.result_line(folder, record["result"]))
        if record["replaced"]:
            say(hub.stand_in_line(record["replaced"]))
    return folder


# ---- From Python, as in a notebook ----


class SettingsError(InputError):
    """The settings are wrong, or what they name. `problems` holds one line for each."""


_running = threading.Lock()


class Result(NamedTuple):
    """What a run has come to."""

    metrics: dict[str, float]  # The `result` of run.json: epoch, accuracy, loss, seconds and so on.
    folder: Path  # What else is in it, README.md says.
    model_folder: Path
    model: transformers.PreTrainedModel  # The kept epoch's, on the CPU, for use.
    tokenizer: transformers.PreTrainedTokenizerFast


def finetune(**settings: object) -> Result:
    """One run, as the program does it: `finetune(data="reviews.csv", epochs=2)`.

    Args:
        settings: of the constants above, in small letters, those that are to be others.
    Raises:
        SettingsError: with a line for each thing that is wrong.
        RunError: the run could not go on.
        KeyboardInterrupt: it was interrupted; with `output_dir` and `resume=True` it goes on.
    """
    if not _running.acquire(blocking=False):
        raise SettingsError("another run goes on in this process; they would share random numbers")
    try:
        chosen = from_keywords(globals(), settings)
        folder = Path(chosen.output_dir or "")
        if finished := run_folder.result_of(chosen):
            say(f"this run is complete; {finished}")
        else:
            hub_problem = hub.ask(chosen)
            if hub_problem:
                hub.go_offline()
            folder = main(chosen, hub_problem)
    except InputError as error:
        raise SettingsError(*error.problems) from None
    except console.Stopped as stop:
        raise KeyboardInterrupt(str(stop)) from None
    finally:
        _running.release()
    record = records.read(folder)
    kept = folder / run_folder.MODEL
    length = record["settings"]["max_length"]
    model, tokenizer, _ = models.load_model(str(kept.absolute()), record["labels"], length)
    return Result(record["result"], folder, kept, model, tokenizer)


if __name__ == "__main__":
    with console.exit_codes(processes.may_tell), processes.losses_told():
        main(settings, hub_problem)
        processes.leave()
