"""The recipes of accuracy.py: settings of finetune.py, and changes that are no settings.

torch is imported in functions, so that --help is answered at once.
"""

from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module
    from torch.optim import Optimizer

    from training.settings import Settings

# Settings that differ from finetune.py's defaults. `held_out` 10 holds out one sentence in ten. The
# keys of CHANGES are not settings.
BASE = {"model": "builtin", "keep": "last", "held_out": 10}
# Quick looks compare recipes over few steps, and hold out more sentences, because the accuracies of
# two models on 688 sentences differ by a point by chance.
MANY_HELD_OUT = 3
QUICK = {"epochs": 1, "max_train_samples": 10_000, "held_out": MANY_HELD_OUT}
RECIPES = {
    "tutorial": {
        "epochs": 3,
        "batch_size": 16,
        "learning_rate": 1e-5,
        "constant_rate": True,
        "weight_decay": 0.0,
        "max_grad_norm": 0.0,
    },
    "one pass": {"epochs": 1},
    "two passes": {"epochs": 2},
    # Half of the rows of `one pass`.
    "short pass": {"epochs": 1, "max_train_samples": 29_688, "freeze_embeddings": True},
    "built-in defaults": {"data": "builtin", "keep": "best"},
    "10k": QUICK,
    "10k rate 2e-4": QUICK | {"learning_rate": 2e-4},
    "10k no dropout": QUICK | {"dropout": 0.0},
    "10k frozen embeddings": QUICK | {"freeze_embeddings": True},
    "10k probed head": QUICK | {"probed_head": 2_000},
    "10k head 2": QUICK | {"head_rate": 2.0},
    "10k layers 0.9": QUICK | {"layer_decay": 0.9},
    "10k smoothing": QUICK | {"label_smoothing": 0.1},
}


def use_constant_rate(finetune: ModuleType, is_constant: bool) -> None:
    """No warm-up and no decay of the learning rate."""
    if is_constant:
        finetune.learning_rate_at = lambda step, steps, settings: settings.learning_rate


def set_dropout(finetune: ModuleType, probability: float) -> None:
    """Another probability for each dropout of the model, that of attention included."""
    from torch import nn

    load = finetune.load

    def load_with_dropout(settings: "Settings"):
        loaded = load(settings)
        for module in loaded.model.modules():
            if isinstance(module, nn.Dropout):
                module.p = probability
        return loaded

    finetune.load = load_with_dropout


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


# Each changes finetune.py's module before a run, by the value in the recipe.
CHANGES: dict[str, Callable[[ModuleType, float], None]] = {
    "constant_rate": use_constant_rate,
    "dropout": set_dropout,
    "probed_head": probe_head,
    "label_smoothing": smooth_labels,
    "head_rate": scale_head_rate,
    "layer_decay": decay_rate_by_layer,
}
