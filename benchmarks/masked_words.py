"""One pass of masked-language modelling over the training rows, before a run in one process."""

import dataclasses
import math
from collections.abc import Iterable
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from system.console import say
from system.randomness import generator

if TYPE_CHECKING:
    from data import Batch
    from training.settings import Settings


def mask(
    ids: np.ndarray, tokenizer: PreTrainedTokenizerFast, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Token ids with some of them masked, and the indices of the tokens to predict, sorted.

    A token is predicted with a probability of 15 %, unless it is special, as padding is. It
    becomes [MASK] with a probability of 80 %, a random token with 10 %, and stays with 10 %.
    """
    is_word = ~np.isin(ids, tokenizer.all_special_ids)
    (places,) = np.nonzero(is_word & (random.random(len(ids)) < 0.15))
    others = random.integers(len(tokenizer), size=len(places))
    kinds, masked = random.random(len(places)), ids.copy()
    masked[places] = np.select(
        [kinds < 0.8, kinds < 0.9], [tokenizer.mask_token_id, others], ids[places]
    )
    return masked, places


def make_head(embeddings: nn.Embedding) -> nn.Sequential:
    """BERT's head of masked-language modelling: hidden states to logits of the vocabulary."""
    width = embeddings.embedding_dim
    output = nn.Linear(width, embeddings.num_embeddings, device="meta")
    output.weight, output.bias = embeddings.weight, nn.Parameter(torch.zeros(output.out_features))
    return nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width), output)


def learn(
    finetune: ModuleType,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    batches: Iterable["Batch"],
    steps: int,
    settings: "Settings",
) -> None:
    """Train the encoder of `model` in place; the classification head stays as it is.

    Clipping, weight decay and the shape of the learning rate are those of the run.
    """
    random = generator(settings.seed, "masked words")
    # The seed of the new head and of dropout.
    torch.manual_seed(int(random.integers(2**63)))
    # A copy, because the last layer of the run's model computes only the first token.
    copy = type(model)(model.config)
    copy.load_state_dict(model.state_dict())
    encoder = copy.base_model.train()
    head = make_head(encoder.get_input_embeddings())
    parts = nn.ModuleList([encoder, head]).to(model.device)
    optimizer, losses = finetune.make_optimizer(parts, settings), []
    for step, batch in enumerate(batches):
        rate = finetune.learning_rate_at(step, steps, settings)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        masked = [
            mask(inputs["input_ids"].numpy().ravel(), tokenizer, random)
            for inputs in batch.micro_batches
        ]
        count = max(1, sum(len(places) for _, places in masked))
        loss = torch.zeros((), device=model.device)
        for inputs, (ids, places) in zip(batch.micro_batches, masked, strict=True):
            part = loss_of(encoder, head, inputs, ids, places, settings.precision) / count
            part.backward()
            loss += part.detach()
        nn.utils.clip_grad_norm_(parts.parameters(), settings.max_grad_norm or math.inf)
        optimizer.step()
        losses.append(loss)
    model.load_state_dict(copy.state_dict())
    tenth = math.ceil(steps / 10)
    first, last = (torch.stack(part).mean().item() for part in (losses[:tenth], losses[-tenth:]))
    say(f"masked words: mean loss {first:.2f} in the first tenth, {last:.2f} in the last")


def loss_of(
    encoder: PreTrainedModel,
    head: nn.Sequential,
    inputs: dict[str, Tensor],
    ids: np.ndarray,
    places: np.ndarray,
    precision: str,
) -> Tensor:
    """The summed cross-entropy of the tokens at `places`, which index the micro-batch's tokens."""
    targets = inputs["input_ids"].ravel()[places]
    masked = torch.from_numpy(ids).view_as(inputs["input_ids"])
    inputs = {name: tensor for name, tensor in inputs.items() if name != "labels"}
    # transformers would check a mask of two dimensions, and Python would wait for the GPU.
    attended = inputs["attention_mask"][:, None, None, :].bool()
    inputs |= {"input_ids": masked, "attention_mask": attended, "places": torch.from_numpy(places)}
    device = encoder.device
    inputs = {name: tensor.to(device, non_blocking=True) for name, tensor in inputs.items()}
    places = inputs.pop("places")
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        states = encoder(**inputs).last_hidden_state.flatten(0, 1)
        logits = head(states.index_select(0, places))
    targets = targets.to(device, non_blocking=True)
    return functional.cross_entropy(logits.float(), targets, reduction="sum")


def train_first(finetune: ModuleType, rate: float) -> None:
    """Change finetune.py's `train`: a new run starts with a pass at `rate`, its highest rate."""
    train = finetune.train

    def train_after_pass(run, model, optimizer, splits, settings) -> None:
        # A resumed run has the weights of its checkpoint.
        if run.step == 0:
            loader = finetune.data.training_loader(splits["train"], settings, 0)
            batches = run.watch(loader, "masked words")
            own = dataclasses.replace(settings, learning_rate=rate)
            learn(finetune, model, run._tokenizer, batches, len(loader), own)
        train(run, model, optimizer, splits, settings)

    finetune.train = train_after_pass
