"""A model on its device, in the form whose steps are the fastest there: equal but for rounding."""

import contextlib
import ctypes
import os
from types import SimpleNamespace

import torch
from torch import nn
from transformers import PreTrainedModel

# oneDNN would keep 1024 of the programs that it writes, a dozen for each length of a batch, in
# hundreds of megabytes; those of a step are enough. It looks here when it is first used.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "32")

# Encoders whose classifier reads the first token alone, and what they call a layer's feed-forward
# part. A kind stands here when tests/test_faster.py finds its numbers the same as without.
FEED_FORWARD = {"distilbert": "ffn"} | dict.fromkeys(
    ("bert", "camembert", "deberta", "deberta-v2", "electra", "roberta", "xlm-roberta"),
    "intermediate",
)


def prepare(model: PreTrainedModel, settings: SimpleNamespace) -> None:
    """Put the model on `settings.device`, and compile it or replace what is slow there."""
    model.to(settings.device)
    in_chunks = getattr(model.config, "chunk_size_feed_forward", 0)  # Of tokens; one has none.
    if model.config.model_type in FEED_FORWARD and not in_chunks:
        model.register_forward_pre_hook(_spell_out_the_mask, with_kwargs=True)
        name = "." + FEED_FORWARD[model.config.model_type]
        last = [module for path, module in model.named_modules() if path.endswith(name)][-1]
        last.register_forward_pre_hook(_keep_first_token)
    if settings.compile:
        model.compile(dynamic=True)  # One program for all lengths, not one for each.
    elif settings.device == "cpu":
        _keep_memory()
        if settings.precision == "fp32" and torch.backends.cpu.get_cpu_capability() == "AVX512":
            for module in model.modules():
                if type(module) is nn.Linear:
                    module.__class__ = OneDNNLinear


def _spell_out_the_mask(model: nn.Module, args: tuple, batch: dict) -> tuple[tuple, dict]:
    # transformers asks of a mask of (sentences, tokens) whether it hides anything, for which Python
    # waits until a GPU has answered; one of four dimensions it takes as it is.
    return args, batch | {"attention_mask": batch["attention_mask"][:, None, None, :].bool()}


def _keep_first_token(module: nn.Module, args: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
    # The classifier reads the first token of the last layer and no other, so the last feed-forward
    # part, a ninth of all work, need not be computed for the others. The residual connection
    # broadcasts what comes out over them; no logit and no gradient depends on it.
    return (args[0][:, :1],)


class _OneDNN(torch.autograd.Function):
    """x @ weight.T + bias and its gradients, as three matrix products by the library oneDNN."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None):
        x = x.contiguous()  # What a slice leaves takes oneDNN a hundred times as long.
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor):
        x, weight = ctx.saved_tensors
        gradient = gradient.contiguous()
        rows = gradient.flatten(0, -2)
        of_x, of_weight, of_bias = ctx.needs_input_grad
        return (
            _product(gradient, weight.t()) if of_x else None,
            _product(rows.t(), x.flatten(0, -2).t()) if of_weight else None,
            rows.sum(0) if of_bias else None,
        )


def _product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None):
    # The operator that torch.compile writes for a linear layer at inference.
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class OneDNNLinear(nn.Linear):
    """A linear layer in float32 by oneDNN.

    torch takes MKL for these, which leaves half of AMD's AVX-512 units idle: measured at 220
    against 480 GFLOP/s (benchmarks/README.md).
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _OneDNN.apply(x, self.weight, self.bias)


def _keep_memory() -> None:
    # The C library gives each large block back to the system when it is freed, and gets it anew,
    # to be cleared page by page, a moment later: a tenth of a step's time. Now it keeps them.
    with contextlib.suppress(AttributeError, OSError, TypeError):  # It is not glibc.
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-4, 0)  # M_MMAP_MAX: no block is mapped on its own.
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: bytes to keep at the end of the heap.
