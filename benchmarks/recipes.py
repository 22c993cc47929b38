"""The recipes of accuracy.py: settings of finetune.py, and changes that are no settings."""

from collections.abc import Callable
from types import ModuleType, SimpleNamespace

import torch
from torch import nn

# A quick look: one pass over random rows, which the seed chooses. A third of the sentences is held
# out, because 688 sentences alone would hide a difference of 1 point between two models.
QUICK = {"epochs": 1, "max_train_samples": 10_000, "held_out": 3}
# Settings that differ from finetune.py's defaults, `held_out`: one sentence in so many is held out,
# and the keys of CHANGES.
BASE = {"model": "builtin", "keep": "last", "held_out": 10}
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
    # Half of the rows, for the time to the tutorial's accuracy.
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


def use_constant_rate(finetune: ModuleType, enabled: bool) -> None:
    """No warm-up and no decay of the learning rate."""
    finetune.learning_rate_at = lambda step, steps, settings: settings.learning_rate


def set_dropout(finetune: ModuleType, probability: float) -> None:
    """Another probability for each dropout of the model, that of attention included."""
    load = finetune.load

    def load_with_dropout(settings: object) -> object:
        loaded = load(settings)
        for module in loaded.model.modules():
            if isinstance(module, nn.Dropout):
                module.p = probability
        return loaded

    finetune.load = load_with_dropout


def probe_head(finetune: ModuleType, sentences: int) -> None:
    """Set the new head by least squares on the encoder's own features of the first sentences."""
    from torch.nn import functional as F

    train = finetune.train

    def train_probed(run, model, optimizer, splits, settings) -> None:
        features, labels = [], []
        hook = model.classifier.register_forward_pre_hook(
            lambda module, inputs: features.append(inputs[0])
        )
        batches = finetune.data.training_loader(splits["train"], settings, 0)
        model.eval()
        with torch.inference_mode():
            for batch in batches:
                for micro_batch in batch.micro_batches:
                    labels.append(finetune.forward(model, micro_batch, settings.precision)[1])
                if sum(map(len, labels)) >= sentences:
                    break
        hook.remove()
        inputs, targets = torch.cat(features).double(), torch.cat(labels)
        inputs = F.pad(inputs, (0, 1), value=1.0)
        # Logits of 2 and -2 for the right and the wrong class; the ridge keeps the weights small.
        wanted = 4.0 * F.one_hot(targets, model.config.num_labels).double() - 2.0
        products = inputs.T @ inputs
        ridge = 1e-2 * products.diagonal().mean() * torch.eye(len(products), dtype=torch.double)
        solution = torch.linalg.solve(products + ridge, inputs.T @ wanted).float()
        with torch.no_grad():
            model.classifier.weight.copy_(solution[:-1].T)
            model.classifier.bias.copy_(solution[-1])
        train(run, model, optimizer, splits, settings)

    finetune.train = train_probed


def smooth_labels(finetune: ModuleType, share: float) -> None:
    """A `share` of each label's probability is divided among all classes, in training only."""
    cross_entropy = finetune.F.cross_entropy

    def smooth(logits, labels, weights=None, reduction="mean") -> torch.Tensor:
        smoothing = share if reduction == "sum" else 0.0
        return cross_entropy(
            logits, labels, weights, reduction=reduction, label_smoothing=smoothing
        )

    finetune.F = SimpleNamespace(cross_entropy=smooth)


def scale_rates(finetune: ModuleType, scale: Callable[[str, int], float]) -> None:
    """The learning rate of a parameter, times `scale` of its name and the number of layers."""
    make_optimizer = finetune.make_optimizer

    def make(model: nn.Module, settings: object) -> torch.optim.Optimizer:
        optimizer = make_optimizer(model, settings)
        names = {id(p): name for name, p in model.named_parameters()}
        layers = model.config.num_hidden_layers
        groups = [
            group | {"params": [p], "scale": scale(names[id(p)], layers)}
            for group in optimizer.param_groups
            for p in group["params"]
        ]
        scaled = torch.optim.AdamW(groups, fused=True)

        def apply(optimizer: torch.optim.Optimizer, *_: object) -> None:
            for group in optimizer.param_groups:
                group["lr"] *= group["scale"]

        # The loop sets the same rate for all groups before each step.
        scaled.register_step_pre_hook(apply)
        return scaled

    finetune.make_optimizer = make


def scale_head_rate(finetune: ModuleType, factor: float) -> None:
    """The head learns at `factor` times the rate."""
    scale_rates(finetune, lambda name, layers: factor if "classifier" in name else 1.0)


def decay_rate_by_layer(finetune: ModuleType, decay: float) -> None:
    """Each layer learns at `decay` of the rate of the layer above, the embeddings at the lowest."""

    def scale(name: str, layers: int) -> float:
        _, has_number, rest = name.partition(".layer.")
        if has_number:
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
