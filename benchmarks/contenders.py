"""Five training loops for the same model and sentences, each as its users write it.

Arguments are a model, rows of `work.make_sentences`, the batch size, the number of timed steps, and
the precision, `fp32` or `bf16`. A function trains until measure.py stops it.
"""

import dataclasses
import tempfile
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from work import lengths_of, pick

if TYPE_CHECKING:
    from data import TokenizedText
    from training.settings import Settings


def tutorials_loop(model, rows, batch_size, steps, precision) -> None:
    import torch
    from torch.utils.data import DataLoader
    from tutorial import SST2Dataset, train

    longest = lengths_of(rows).max()
    columns = ("input_ids", "attention_mask")
    padded = {key: [row + [0] * (longest - len(row)) for row in rows[key][:]] for key in columns}
    loader = DataLoader(SST2Dataset(padded, rows["labels"][:]), batch_size=batch_size, shuffle=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    optimizer = torch.optim.AdamW(model.to(device).parameters(), lr=1e-5, weight_decay=0.0)
    train(model, loader, optimizer, device)


def padding_collator():
    """Pads a batch to its own longest sentence, as transformers' guides recommend."""
    from tokenizers import Tokenizer, models
    from transformers import DataCollatorWithPadding, PreTrainedTokenizerFast

    # The rows are token ids already: the collator only pads them.
    vocabulary = Tokenizer(models.WordLevel({"[PAD]": 0}))
    return DataCollatorWithPadding(
        PreTrainedTokenizerFast(tokenizer_object=vocabulary, pad_token="[PAD]")
    )


def trainer(model, rows, batch_size, steps, precision, **options) -> None:
    import torch
    from torch.utils.data import DataLoader
    from transformers import Trainer, TrainingArguments

    class OnPickedBatches(Trainer):
        def get_train_dataloader(self):
            order = np.array(list(self._get_train_sampler(rows)))
            batches = pick(order, lengths_of(rows), batch_size, steps)
            loader = DataLoader(rows, batch_sampler=batches, collate_fn=self.data_collator)
            return self.accelerator.prepare(loader)

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=batch_size,
            save_strategy="no",
            report_to=[],
            bf16=precision == "bf16",
            # Otherwise transformers refuses bf16 on a machine without a GPU.
            use_cpu=not torch.cuda.is_available(),
            **options,
        )
        OnPickedBatches(
            model, arguments, train_dataset=rows, data_collator=padding_collator()
        ).train()


def trainer_grouped(model, rows, batch_size, steps, precision) -> None:
    trainer(model, rows, batch_size, steps, precision, train_sampling_strategy="group_by_length")


def accelerates_example(model, rows, batch_size, steps, precision) -> None:
    """The loop, optimizer and schedule of accelerate's examples/nlp_example.py."""
    import torch
    from accelerate import Accelerator
    from torch.utils.data import DataLoader, RandomSampler
    from transformers import get_linear_schedule_with_warmup

    mixed = "bf16" if precision == "bf16" else "no"
    accelerator = Accelerator(cpu=not torch.cuda.is_available(), mixed_precision=mixed)
    order = np.array(list(RandomSampler(rows)))
    batches = pick(order, lengths_of(rows), batch_size, steps)
    loader = DataLoader(rows, batch_sampler=batches, collate_fn=padding_collator())
    optimizer = torch.optim.AdamW(params=model.parameters(), lr=2e-5)
    schedule = get_linear_schedule_with_warmup(optimizer, 100, 3 * len(rows) // batch_size)
    model, optimizer, loader, schedule = accelerator.prepare(model, optimizer, loader, schedule)
    model.train()
    for batch in loader:
        batch.to(accelerator.device)
        accelerator.backward(model(**batch).loss)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()


def this_project(model, rows, batch_size, steps, precision) -> None:
    import data
    import finetune
    from system import speed

    settings = project_settings(batch_size, precision)
    speed.prepare(model, settings.device, settings.precision)
    tokens = project_tokens(rows, settings)
    batches = project_batches(tokens, steps, settings)
    optimizer = finetune.make_optimizer(model, settings)
    speed.allocate_averages(optimizer)
    train_steps(model, optimizer, data.make_loader(tokens, batches, settings), settings)


def train_steps(model, optimizer, loader, settings: "Settings") -> None:
    """The loop of finetune.train over `loader`; losses are read as often as in a run."""
    import torch

    import finetune
    from system.randomness import dropout_seed

    steps, losses = settings.epochs * len(loader), []
    model.train()
    for step, batch in enumerate(loader):
        for group in optimizer.param_groups:
            group["lr"] = finetune.learning_rate_at(step, steps, settings)
        torch.manual_seed(dropout_seed(settings.seed, step))
        losses.append(torch.stack(finetune.training_step(model, optimizer, batch, settings)))
        if (step + 1) % settings.log_every == 0:
            torch.stack(losses).tolist()
            losses = []


def project_settings(batch_size: int, precision: str) -> "Settings":
    """finetune.py's own settings on a GPU or a CPU, resolved as its main does."""
    import torch

    import finetune
    from training import program
    from training.settings import from_flags

    flags = ["--model", "builtin", "--data", "builtin", "--learning-rate", "3e-5"]
    flags += ["--batch-size", str(batch_size), "--precision", precision]
    settings = program.read_settings(from_flags, vars(finetune), flags)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return dataclasses.replace(settings, device=device, max_length=512)


def project_tokens(rows, settings: "Settings") -> "TokenizedText":
    """The rows of `work.make_sentences` in the form that data.tokenize_split returns."""
    import data

    rows = rows.remove_columns("attention_mask")
    return data.TokenizedText(rows, pad_token_id=0, max_length=settings.max_length, classes=2)


def project_batches(tokens: "TokenizedText", steps: int, settings: "Settings") -> list[np.ndarray]:
    """Batches that `pick` selects from one epoch of this project's own batches."""
    from inputs.batches import epoch_batches

    size = settings.batch_size
    batches = epoch_batches(tokens.lengths, size, settings.seed, 0)
    # `pick` cuts at multiples of `size`, which a smaller batch would shift.
    order = np.concatenate([batch for batch in batches if len(batch) == size])
    return pick(order, tokens.lengths, size, steps)


CONTENDERS: dict[str, Callable] = {
    "tutorial's loop": tutorials_loop,
    "Trainer, default": trainer,
    "Trainer, grouped by length": trainer_grouped,
    "accelerate's example": accelerates_example,
    "this project": this_project,
}
