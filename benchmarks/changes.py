"""Changes of finetune.py's module that are no settings, for the recipes of recipes.py.

torch is imported in functions, so that --help is answered at once.
"""

import math
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module
    from torch.optim import Optimizer

    from training.settings import Settings


def use_constant_rate(finetune: ModuleType, is_constant: bool) -> None:
    """No warm-up and no decay of the learning rate."""
    if is_constant:
        finetune.learning_rate_at = lambda step, steps, settings: settings.learning_rate


def use_cosine_rate(finetune: ModuleType, is_cosine: bool) -> None:
    """The same warm-up, then half a cosine to 0 instead of the line.

    Source: Loshchilov and Hutter 2017, SGDR, without its restarts.
    """
    rate_at = finetune.learning_rate_at

    def cosine_rate_at(step: int, steps: int, settings: "Settings") -> float:
        warmup_steps = math.ceil(steps * settings.warmup)
        if step < warmup_steps:
            return rate_at(step, steps, settings)
        progress = (step - warmup_steps) / (steps - warmup_steps)
        return settings.learning_rate * (1 + math.cos(math.pi * progress)) / 2

    if is_cosine:
        finetune.learning_rate_at = cosine_rate_at


def probe_head(finetune: ModuleType, sentences: int) -> None:
    """Fit the new head by ridge regression on the encoder's features of some sentences.

    These sentences are those of the first batches. Source: Kumar et al. 2022, Fine-Tuning can
    Distort Pretrained Features.
    """
    import torch
    from torch.nn import functional

    train = finetune.train

    def fit(model: "Module", batches: list, settings: "Settings") -> None:
        features, parts = [], []
        hook = model.classifier.register_forward_pre_hook(
            lambda module, inputs: features.append(inputs[0])
        )
        model.eval()
        with torch.inference_mode():
            for batch in batches:
                for micro_batch in batch.micro_batches:
                    parts.append(finetune.forward(model, micro_batch, settings.precision)[1])
                if sum(map(len, parts)) >= sentences:
                    break
        hook.remove()
        inputs = functional.pad(torch.cat(features).double(), (0, 1), value=1.0)
        class_ids = torch.cat(parts)
        # Logits are 2 for the right class and -2 for the wrong class.
        logits = 4.0 * functional.one_hot(class_ids, model.config.num_labels).double() - 2.0
        products = inputs.T @ inputs
        # The penalty keeps weights small where features are few or alike.
        penalty = 1e-2 * products.diagonal().mean() * torch.eye(len(products)).to(products)
        solution = torch.linalg.solve(products + penalty, inputs.T @ logits).float()
        with torch.no_grad():
            model.classifier.weight.copy_(solution[:-1].T)
            model.classifier.bias.copy_(solution[-1])

    def train_probed(run, model, optimizer, splits, settings) -> None:
        # A resumed run has its trained head already.
        if run.step == 0:
            fit(model, finetune.data.training_loader(splits["train"], settings, 0), settings)
        train(run, model, optimizer, splits, settings)

    finetune.train = train_probed


def smooth_labels(finetune: ModuleType, share: float) -> None:
    """Divide a `share` of each label's probability among all classes, in training only.

    Source: Szegedy et al. 2016, Rethinking the Inception Architecture.
    """
    cross_entropy = finetune.F.cross_entropy

    def smooth(logits, labels, weights=None, reduction="mean") -> "Tensor":
        # Only the training step sums the losses of a batch.
        smoothing = share if reduction == "sum" else 0.0
        return cross_entropy(
            logits, labels, weights, reduction=reduction, label_smoothing=smoothing
        )

    finetune.F = SimpleNamespace(cross_entropy=smooth)


def scale_rates(finetune: ModuleType, scale: Callable[[str, int], float]) -> None:
    """The learning rate of a parameter, times `scale` of its name and the number of layers."""
    import torch

    make_optimizer = finetune.make_optimizer

    def make(model: "Module", settings: "Settings") -> "Optimizer":
        optimizer = make_optimizer(model, settings)
        names = {id(p): name for name, p in model.named_parameters()}
        layers = model.config.num_hidden_layers
        groups = [
            group | {"params": [p], "scale": group.get("scale", 1.0) * scale(names[id(p)], layers)}
            for group in optimizer.param_groups
            for p in group["params"]
        ]
        scaled = torch.optim.AdamW(groups, fused=True)

        def apply(optimizer: "Optimizer", *_: object) -> None:
            for group in optimizer.param_groups:
                group["lr"] *= group["scale"]

        # The loop sets one rate for all groups before each step.
        scaled.register_step_pre_hook(apply)
        return scaled

    finetune.make_optimizer = make


def scale_head_rate(finetune: ModuleType, factor: float) -> None:
    """The head learns at `factor` times the rate."""
    scale_rates(finetune, lambda name, layers: factor if "classifier" in name else 1.0)


def decay_rate_by_layer(finetune: ModuleType, decay: float) -> None:
    """Each layer learns at `decay` of the rate of the layer above, the embeddings at the lowest.

    Source: Clark et al. 2020, ELECTRA.
    """

    def scale(name: str, layers: int) -> float:
        _, separator, rest = name.partition(".layer.")
        if separator:
            return decay ** (layers - int(rest.split(".")[0]))
        return decay ** (layers + 1) if ".embeddings." in name else 1.0

    scale_rates(finetune, scale)


def average_weights(finetune: ModuleType, share: float) -> None:
    """At the end, each weight is its mean over the steps of the last `share` of the run.

    Only a run of one epoch is meant, because earlier epochs would be evaluated without the mean.
    Source: Izmailov et al. 2018, Averaging Weights Leads to Wider Optima.
    """
    import torch

    train = finetune.train

    def train_averaged(run, model, optimizer, splits, settings) -> None:
        count = math.ceil(share * run.steps)

        @torch.no_grad()
        def average(optimizer: "Optimizer", *_: object) -> None:
            # run.step does not count this step yet.
            number = run.step + 1 - (run.steps - count)
            if number < 1:
                return
            for weights, state in optimizer.state.items():
                # A checkpoint holds the optimizer's state, so that a resumed run has the sum.
                state["sum"] = state["sum"].add_(weights) if number > 1 else weights.clone()
                if number == count:
                    weights.copy_(state.pop("sum") / count)

        optimizer.register_step_post_hook(average)
        train(run, model, optimizer, splits, settings)

    finetune.train = train_averaged


def order_long_late(finetune: ModuleType, strength: float) -> None:
    """Batches of short rows tend to come sooner in an epoch, and those of long rows later.

    The key of the order is the rank of a batch's mean length, from 0 to `strength`, plus a random
    number from 0 to 1. Seed and epoch decide the order, in a resumed run too. Source: Platanios et
    al. 2019, Competence-based Curriculum Learning, which is stricter.
    """
    from system.randomness import generator

    epoch_batches = finetune.data.batches.epoch_batches

    def ordered(lengths: np.ndarray, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
        batches = epoch_batches(lengths, batch_size, seed, epoch)
        ranks = np.argsort(np.argsort([lengths[rows].mean() for rows in batches], kind="stable"))
        places = strength * ranks / max(1, len(batches) - 1)
        places += generator(seed, "long late", epoch).random(len(batches))
        return [batches[number] for number in np.argsort(places)]

    finetune.data.batches.epoch_batches = ordered


def drop_twice(finetune: ModuleType, weight: float) -> None:
    """R-Drop in every second step: a batch passes twice, with different dropout.

    The loss of a sentence is the mean of its two cross-entropies and a weighted divergence. The
    divergence is the mean of KL(p, q) and KL(q, p). The number of the step decides, in a resumed
    run too. Source: Liang et al. 2021, R-Drop, whose alpha is twice this weight.
    """
    import torch

    forward, functions, training_step = finetune.forward, finetune.F, finetune.training_step
    train = finetune.train

    def forward_twice(*inputs: object) -> tuple["Tensor", "Tensor"]:
        (first, labels), (second, _) = forward(*inputs), forward(*inputs)
        return torch.stack([first, second]), labels

    def loss_of_both(both, labels, weights=None, reduction="mean") -> "Tensor":
        losses = [functions.cross_entropy(x, labels, weights, reduction=reduction) for x in both]
        logs = both.log_softmax(-1)
        # The sum of KL(p, q) and KL(q, p), over the sentences of the micro-batch.
        divergences = ((logs[0].exp() - logs[1].exp()) * (logs[0] - logs[1])).sum()
        return sum(losses) / 2 + weight * divergences / 2

    def train_half(run, *arguments: object) -> None:
        def step(*arguments: object) -> tuple["Tensor", "Tensor"]:
            if run.step % 2:
                return training_step(*arguments)
            finetune.forward = forward_twice
            finetune.F = SimpleNamespace(cross_entropy=loss_of_both)
            result = training_step(*arguments)
            # An evaluation between two steps is an ordinary one.
            finetune.forward, finetune.F = forward, functions
            return result

        finetune.training_step = step
        train(run, *arguments)

    finetune.train = train_half


def learn_masked_words_first(finetune: ModuleType, rate: float) -> None:
    """A pass of masked-language modelling over the run's training rows, before its first step.

    Source: Devlin et al. 2019, BERT; Gururangan et al. 2020, Don't Stop Pretraining.
    """
    import masked_words

    masked_words.train_first(finetune, rate)


# Each changes finetune.py's module before a run, by the value in the recipe.
CHANGES: dict[str, Callable[[ModuleType, float], None]] = {
    "constant_rate": use_constant_rate,
    "cosine_rate": use_cosine_rate,
    "probed_head": probe_head,
    "label_smoothing": smooth_labels,
    "head_rate": scale_head_rate,
    "layer_decay": decay_rate_by_layer,
    "averaged": average_weights,
    "long_late": order_long_late,
    "half_r_drop": drop_twice,
    "masked_pass": learn_masked_words_first,
}
