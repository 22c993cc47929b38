"""A model on its device, in the form whose steps are the fastest there."""

import os
from types import SimpleNamespace

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel

from system import collectives as processes

# oneDNN would keep 1024 of the programs that it writes, up to 40 for each length of a batch, in
# hundreds of megabytes; those of a step are enough. It looks here when it is first used.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")

# Encoders that take a mask of four dimensions, and whose classifier reads the first token alone;
# and what they call a layer's feed-forward part. A kind stands here when tests/test_faster.py finds
# its numbers the same as without.
FEED_FORWARD = {"distilbert": "ffn"} | dict.fromkeys(
    ("bert", "camembert", "deberta", "deberta-v2", "electra", "roberta", "xlm-roberta"),
    "intermediate",
)


def prepare(model: PreTrainedModel, settings: SimpleNamespace) -> None:
    """Put the model on `settings.device`, and compile it or replace what is slow there.

    Logits and gradients stay what they were, but for rounding; of the last layer's own output the
    first token alone does. What is saved is an ordinary checkpoint.
    """
    model.to(settings.device)
    kind = model.config.model_type
    if kind in FEED_FORWARD:
        model.register_forward_pre_hook(_spell_out_the_mask, with_kwargs=True)
        name = "." + FEED_FORWARD[kind]
        parts = [module for path, module in model.named_modules() if path.endswith(name)]
        # A single token can't be split into chunks of several; and there may be no layers at all.
        if parts and not getattr(model.config, "chunk_size_feed_forward", 0):
            parts[-1].register_forward_pre_hook(_keep_first_token)
    if settings.compile:
        model.compile(dynamic=True)  # One program for all lengths, not one for each.
    elif settings.device == "cpu":
        words = model.get_input_embeddings()
        if type(words) is nn.Embedding and words.weight.requires_grad:
            _keep_gradient(words)
        has_onednn = torch.backends.mkldnn.is_available()
        is_wide = torch.backends.cpu.get_cpu_capability() == "AVX512"
        if has_onednn and is_wide and settings.precision == "fp32":
            for module in model.modules():
                if type(module) is nn.Linear:
                    module.__class__ = OneDNNLinear  # With the weights and names that it has.


def _spell_out_the_mask(model: nn.Module, args: tuple, batch: dict) -> tuple[tuple, dict]:
    # transformers asks of a mask of (sentences, tokens) whether it hides anything, for which Python
    # waits until a GPU has answered; one of four dimensions it takes as it is. A batch without
    # padding has a mask too, then, which on a GPU rules out the very fastest attention.
    # Other attention than sdpa would add it to its scores, or can't read it.
    mask = batch.get("attention_mask")
    if model.config._attn_implementation == "sdpa" and mask is not None and mask.dim() == 2:
        batch = batch | {"attention_mask": mask[:, None, None, :].bool()}
    return args, batch


def _keep_first_token(module: nn.Module, args: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
    # The classifier reads the first token of the last layer and no other, so the last feed-forward
    # part, a ninth of all work, need not be computed for the others. The residual connection
    # broadcasts what comes out over them; no logit and no gradient depends on it.
    return (args[0][:, :1],)


def _keep_gradient(words: nn.Embedding) -> None:
    # The gradient of the word embeddings, 94 MB of which a batch writes some hundred rows, would be
    # got from the system and given back at each step, and be cleared page by page: a tenth of the
    # time. It has one place for good; what backward() makes is only those rows, added to it.
    words.sparse, words.kept_gradient = True, torch.empty_like(words.weight)

    def clear(rows: torch.Tensor) -> None:
        if words.weight.grad is None:  # The first backward() since zero_grad().
            words.weight.grad = words.kept_gradient.zero_()

    if processes.count() == 1:
        words.weight.register_hook(clear)


def complete_gradients(model: nn.Module) -> None:
    """Of several processes on a CPU, which send each other only those rows: do that now."""
    words = getattr(model, "module", model).get_input_embeddings()
    if words.weight.grad is not None and words.weight.grad.is_sparse:
        processes.mean_of_rows(words.weight.grad, words.kept_gradient)
        words.weight.grad = words.kept_gradient


class OneDNNLinear(nn.Linear):
    """A linear layer in float32 by oneDNN.

    torch takes MKL for these, which leaves half of AMD's AVX-512 units idle: measured at 224
    against 444 GFLOP/s (benchmarks/README.md). Intel's were not measured.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # Shaped out here, where autograd sees it: DeBERTa changes a view of the result in place.
        rows = _OneDNN.apply(x.reshape(-1, self.in_features), self.weight, self.bias)
        return rows.view(*x.shape[:-1], self.out_features)


class _OneDNN(torch.autograd.Function):
    """x @ weight.T + bias and its gradients, as three matrix products by the library oneDNN."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None):
        x = x.contiguous()  # For speed alone: of a slice's gaps oneDNN makes a hundredfold work.
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: torch.Tensor):
        x, weight = ctx.saved_tensors
        gradient = gradient.contiguous()
        of_x, of_weight, of_bias = ctx.needs_input_grad
        return (
            _product(gradient, weight.t()) if of_x else None,
            _product(gradient.t(), x.t()) if of_weight else None,
            gradient.sum(0) if of_bias else None,
        )


def _product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None):
    # The operator that torch.compile writes for a linear layer at inference.
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
