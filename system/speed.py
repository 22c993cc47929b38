"""Faster steps of a model on its device: prepared once, used for every batch."""

import os
import platform
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import MethodType
from typing import NamedTuple

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from system import collectives, ranks
from system.console import InputError, Problem, plural
from system.graphs import Graphs

# oneDNN would cache 1024 primitives, up to 40 for each length of a batch, in hundreds of megabytes.
# The primitives of one step are enough. oneDNN reads this variable at its first use.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")


class LastLayer(NamedTuple):
    """Names of those parts of an encoder's last layer that compute only the first token."""

    feed_forward: str
    attention_output: str
    query: str | None


DEBERTA = ("deberta", "deberta-v2")
_BERT = LastLayer("intermediate", "attention.output.dense", "self.query")
# Encoders that take a mask of four dimensions and whose classifier reads only the first token.
# DeBERTa computes query, key and value in one product, and DeBERTa-v2's query can project positions
# too. tests/test_speed.py compares each with the plain model.
LAST_LAYERS = {
    "distilbert": LastLayer("ffn", "out_lin", "q_lin"),
    **dict.fromkeys(("bert", "camembert", "electra", "roberta", "xlm-roberta"), _BERT),
    **dict.fromkeys(DEBERTA, _BERT._replace(query=None)),
}


def choose_device(name: str) -> str:
    """The device `name`, or for `auto` the first available of cuda, mps, cpu; or an InputError."""
    processes, gpus = ranks.local_world_size(), torch.cuda.device_count()
    if name in ("auto", "cuda") and 0 < gpus < processes:
        message = f"{processes} processes on a machine with {gpus} {plural('GPU', gpus)}"
        remedy = f"use torchrun --nproc-per-node {gpus}"
        raise InputError(Problem(name, message, remedy, "--device"))
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available() and processes == 1,
        "cpu": True,
    }
    if name != "auto" and not available[name]:
        message = "PyTorch finds no such device here"
        raise InputError(Problem(name, message, "use --device auto", "--device"))
    return next(device for device in available if available[device] and name in ("auto", device))


def choose_precision(name: str, device: str) -> str:
    """The precision `name`, or for `auto` bf16 on a GPU or CPU that has units for it, else fp32."""
    if name != "auto":
        return name
    return "bf16" if has_bf16_units(device) else "fp32"


def has_bf16_units(device: str) -> bool:
    """Whether products in bf16 are fast on `device`; mps has no known sign of it."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    has_units = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return device == "cpu" and has_units


def prepare(model: PreTrainedModel, device: str, precision: str, compiled: bool = False) -> None:
    """Move the model to `device`, and compile it or replace its slow parts.

    Without dropout, logits and gradients change only by rounding, but the last layer's output and
    attention are right only for the first token. The saved model is an ordinary checkpoint.
    """
    model.to(device)
    if model.config.model_type in LAST_LAYERS:
        model.register_forward_pre_hook(_expand_mask, with_kwargs=True)
        # One token can't be split into chunks, which are too rare for a condition of their own.
        if not getattr(model.config, "chunk_size_feed_forward", 0):
            _compute_first_token(model)
    if compiled:
        # One program serves all lengths, instead of one program for each length.
        model.compile(dynamic=True)
    elif device == "cuda" and can_use_graphs(model):
        model.graphs = Graphs(model, partial(_compute, precision))
    elif device == "cpu":
        embeddings = model.get_input_embeddings()
        if type(embeddings) is nn.Embedding and embeddings.weight.requires_grad:
            _keep_gradient(embeddings)
        if linear_library() == "oneDNN" and precision == "fp32":
            for module in model.modules():
                # A change of class keeps the module's weights and their names.
                if type(module) is nn.Linear:
                    module.__class__ = OneDNNLinear


def can_use_graphs(model: PreTrainedModel) -> bool:
    """Whether a model can train as CUDA graphs here."""
    # In a graph Python can't wait for the GPU, as it does for the positions of DeBERTa and for the
    # two-dimensional masks of models outside LAST_LAYERS.
    kind = model.config.model_type
    return ranks.world_size() == 1 and kind in LAST_LAYERS and kind not in DEBERTA


def linear_library() -> str:
    """The library of a CPU's float32 linear layers: oneDNN where it is faster, else torch's own."""
    has_onednn = torch.backends.mkldnn.is_available()
    is_wide = torch.backends.cpu.get_cpu_capability() == "AVX512"
    # On Intel's Xeon a step is faster with MKL (docs/performance.md).
    return "oneDNN" if has_onednn and is_wide and _is_amd() else "torch"


def _is_amd() -> bool:
    file = Path("/proc/cpuinfo")
    return "AuthenticAMD" in (file.read_text() if file.exists() else platform.processor())


def forward(
    model: nn.Module, inputs: dict[str, torch.Tensor], precision: str
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Logits and labels of a micro-batch: the forward pass of training, evaluation and prediction.

    Logits are float32 of shape (sentences, classes), labels int64 of shape (sentences,). Labels are
    None if `inputs` has none. Both are on the model's device.
    """
    inputs = {name: tensor.to(model.device, non_blocking=True) for name, tensor in inputs.items()}
    labels = inputs.pop("labels", None)
    graphs = getattr(model, "graphs", None)
    if graphs and model.training and torch.is_grad_enabled():
        return graphs.logits(inputs), labels
    return _compute(precision, model, inputs), labels


def _compute(
    precision: str, model: Callable[..., ModelOutput], inputs: dict[str, torch.Tensor]
) -> torch.Tensor:
    device = inputs["input_ids"].device.type
    with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
        return model(**inputs).logits.float()


def _expand_mask(model: nn.Module, args: tuple, batch: dict) -> tuple[tuple, dict]:
    # transformers checks a mask of (sentences, tokens) for padding, and Python waits for the GPU.
    # A mask of four dimensions is not checked. A batch without padding then has a mask too, which
    # rules out the fastest attention on a GPU. Other attention than sdpa would add the mask to its
    # scores, or can't read it.
    mask = batch.get("attention_mask")
    if model.config._attn_implementation == "sdpa" and mask is not None and mask.dim() == 2:
        batch = batch | {"attention_mask": mask[:, None, None, :].bool()}
    return args, batch


def _compute_first_token(model: PreTrainedModel) -> None:
    # The classifier reads only the first token of the last layer. All other tokens of this layer
    # are keys and values of attention. They need no query, no output of attention and no
    # feed-forward part: an eighth of DistilBERT's work. Residual connections broadcast the first
    # token's results over the other tokens; no logit and no gradient depends on them.
    names = LAST_LAYERS[model.config.model_type]
    feed_forward, output, query = (_last_module(model, name) for name in names)
    if feed_forward is not None:
        feed_forward.register_forward_pre_hook(_keep_first_token)
    # Query and output were not tried with the attention of a GPU.
    if output is not None and model.device.type == "cpu":
        output.register_forward_pre_hook(_keep_first_token)
    if query is not None and model.device.type == "cpu":
        query.forward = MethodType(_query_of_first_token, query)


def _last_module(model: nn.Module, name: str | None) -> nn.Module | None:
    modules = [module for path, module in model.named_modules() if path.endswith(f".{name}")]
    return modules[-1] if modules else None


def _keep_first_token(module: nn.Module, args: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
    # For speed only: the gaps of a slice slow oneDNN down.
    return (args[0][:, :1].contiguous(),)


def _query_of_first_token(linear: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    # Attention expects a query for each token, so the first one stands for all, without a copy.
    return type(linear).forward(linear, x[:, :1]).expand(*x.shape[:-1], -1)


def _keep_gradient(embeddings: nn.Embedding) -> None:
    # The gradient of the word embeddings has 94 MB, in which a batch writes some hundred rows.
    # Allocating, clearing and freeing the gradient would take a tenth of each step. The memory
    # is kept instead; backward() makes only the written rows, which are added to the kept gradient.
    embeddings.sparse, embeddings.kept_gradient = True, torch.empty_like(embeddings.weight)

    def clear(rows: torch.Tensor) -> None:
        # The gradient is None in the first backward() after zero_grad().
        if embeddings.weight.grad is None:
            embeddings.weight.grad = embeddings.kept_gradient.zero_()

    if ranks.world_size() == 1:
        embeddings.weight.register_hook(clear)


def allocate_averages(optimizer: torch.optim.AdamW) -> None:
    """Give AdamW its averages on a CPU before the first step, unless a checkpoint had them.

    AdamW would allocate them at its first step, in the memory that the activations have just left.
    The activations of later batches would not fit into the gaps (docs/performance.md).
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            is_trained = parameter.requires_grad and parameter.device.type == "cpu"
            if is_trained and not optimizer.state[parameter]:
                # AdamW itself starts with these entries.
                optimizer.state[parameter] = {
                    "step": torch.tensor(0.0),
                    "exp_avg": torch.zeros_like(parameter, requires_grad=False),
                    "exp_avg_sq": torch.zeros_like(parameter, requires_grad=False),
                }


def complete_gradients(model: nn.Module) -> None:
    """Exchange the rows of a sparse gradient, which `data_parallel` leaves out on a CPU."""
    embeddings = getattr(model, "module", model).get_input_embeddings()
    if embeddings.weight.grad is not None and embeddings.weight.grad.is_sparse:
        collectives.mean_of_rows(embeddings.weight.grad, embeddings.kept_gradient)
        embeddings.weight.grad = embeddings.kept_gradient


class OneDNNLinear(nn.Linear):
    """A float32 linear layer that computes with oneDNN.

    torch uses MKL instead, which leaves half of a Zen 5's AVX-512 units idle: 224 GFLOP/s, not 444
    (docs/performance.md).
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # reshape() stays outside _OneDNN for autograd, because DeBERTa changes a view in place.
        rows = _OneDNN.apply(x.reshape(-1, self.in_features), self.weight, self.bias)
        return rows.view(*x.shape[:-1], self.out_features)


class _OneDNN(torch.autograd.Function):
    """x @ weight.T + bias and its gradients, as three matrix products by oneDNN."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None):
        # For speed only: the gaps of a slice make oneDNN a hundred times slower.
        x = x.contiguous()
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: torch.Tensor):
        x, weight = ctx.saved_tensors
        gradient = gradient.contiguous()
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            _product(gradient, weight.t()) if needs_x else None,
            _product(gradient.t(), x.t()) if needs_weight else None,
            gradient.sum(0) if needs_bias else None,
        )


def _product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None):
    # torch.compile uses this operator for a linear layer at inference.
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
