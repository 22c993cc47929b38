"""The fastest form of a model's step on its device: prepared once, used for every batch."""

import os

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel

from system import collectives, ranks
from system.console import InputError, Problem

# oneDNN would keep 1024 of the programs that it writes, up to 40 for each length of a batch, in
# hundreds of megabytes; those of one step are enough. It reads this when it is first used.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")

# Encoders that take a mask of four dimensions and whose classifier reads the first token only, and
# the name of a layer's feed-forward part. tests/test_speed.py compares each with the plain model.
FEED_FORWARD = {"distilbert": "ffn"} | dict.fromkeys(
    ("bert", "camembert", "deberta", "deberta-v2", "electra", "roberta", "xlm-roberta"),
    "intermediate",
)


def choose_device(name: str) -> str:
    """The device `name`; `auto` is the first available of cuda, mps, cpu; or an InputError."""
    processes, gpus = ranks.local_world_size(), torch.cuda.device_count()
    if name in ("auto", "cuda") and 0 < gpus < processes:
        problem = f"{processes} processes on a machine of {gpus} GPU{'s' * (gpus != 1)}"
        remedy = "start one for each (torchrun --nproc-per-node)"
        raise InputError(Problem(name, problem, remedy, "--device"))
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available() and processes == 1,
        "cpu": True,
    }
    if name != "auto" and not available[name]:
        problem = "PyTorch finds no such device here"
        raise InputError(Problem(name, problem, "try --device auto", "--device"))
    return next(device for device in available if available[device] and name in ("auto", device))


def choose_precision(name: str, device: str) -> str:
    """The precision `name`, or for `auto` bf16 on a GPU that has units for it, else fp32."""
    if name != "auto":
        return name
    has_bf16 = device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if has_bf16 else "fp32"


def prepare(model: PreTrainedModel, device: str, precision: str, compiled: bool = False) -> None:
    """Move the model to `device`, and compile it or replace what is slow there.

    Logits and gradients stay the same except for rounding, but of the last layer's output only the
    first token is right. What is saved is an ordinary checkpoint.
    """
    model.to(device)
    kind = model.config.model_type
    if kind in FEED_FORWARD:
        model.register_forward_pre_hook(_expand_mask, with_kwargs=True)
        name = "." + FEED_FORWARD[kind]
        parts = [module for path, module in model.named_modules() if path.endswith(name)]
        # One token can't be split into chunks of several; and there may be no layers at all.
        if parts and not getattr(model.config, "chunk_size_feed_forward", 0):
            parts[-1].register_forward_pre_hook(_keep_first_token)
    if compiled:
        model.compile(dynamic=True)  # One program for all lengths, not one for each.
    elif device == "cpu":
        embeddings = model.get_input_embeddings()
        if type(embeddings) is nn.Embedding and embeddings.weight.requires_grad:
            _keep_gradient(embeddings)
        has_onednn = torch.backends.mkldnn.is_available()
        is_wide = torch.backends.cpu.get_cpu_capability() == "AVX512"
        if has_onednn and is_wide and precision == "fp32":
            for module in model.modules():
                if type(module) is nn.Linear:
                    module.__class__ = OneDNNLinear  # It keeps its weights and names.


def forward(
    model: nn.Module, inputs: dict[str, torch.Tensor], precision: str
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Logits and labels of a micro-batch: the forward pass of training, evaluation and prediction.

    Logits are float32 of shape (sentences, classes), labels int64 of shape (sentences,), or None if
    `inputs` has none; both are on the model's device.
    """
    inputs = {name: tensor.to(model.device, non_blocking=True) for name, tensor in inputs.items()}
    labels = inputs.pop("labels", None)
    with torch.autocast(model.device.type, torch.bfloat16, enabled=precision == "bf16"):
        logits = model(**inputs).logits
    return logits.float(), labels


def _expand_mask(model: nn.Module, args: tuple, batch: dict) -> tuple[tuple, dict]:
    # transformers asks whether a mask of (sentences, tokens) hides anything, and Python waits for
    # the GPU's answer; a mask of four dimensions is taken as it is. A batch without padding then
    # has a mask too, which on a GPU rules out the very fastest attention. Attention other than sdpa
    # would add it to its scores, or can't read it.
    mask = batch.get("attention_mask")
    if model.config._attn_implementation == "sdpa" and mask is not None and mask.dim() == 2:
        batch = batch | {"attention_mask": mask[:, None, None, :].bool()}
    return args, batch


def _keep_first_token(module: nn.Module, args: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
    # The classifier reads only the first token of the last layer, so the last feed-forward part, a
    # ninth of all work, need not be computed for the others. The residual connection broadcasts
    # the result over them; no logit and no gradient depends on it.
    return (args[0][:, :1],)


def _keep_gradient(embeddings: nn.Embedding) -> None:
    # The gradient of the word embeddings, 94 MB of which a batch writes some hundred rows, would be
    # allocated, cleared page by page and freed in each step: a tenth of the time. It keeps its
    # place; backward() makes only those rows, which are added to it.
    embeddings.sparse, embeddings.kept_gradient = True, torch.empty_like(embeddings.weight)

    def clear(rows: torch.Tensor) -> None:
        if embeddings.weight.grad is None:  # The first backward() since zero_grad().
            embeddings.weight.grad = embeddings.kept_gradient.zero_()

    if ranks.world_size() == 1:
        embeddings.weight.register_hook(clear)


def complete_gradients(model: nn.Module) -> None:
    """Exchange the rows of a sparse gradient: DistributedDataParallel leaves it out on a CPU."""
    embeddings = getattr(model, "module", model).get_input_embeddings()
    if embeddings.weight.grad is not None and embeddings.weight.grad.is_sparse:
        collectives.mean_of_rows(embeddings.weight.grad, embeddings.kept_gradient)
        embeddings.weight.grad = embeddings.kept_gradient


class OneDNNLinear(nn.Linear):
    """A linear layer in float32 by oneDNN.

    torch takes MKL for these, which leaves half of AMD's AVX-512 units idle: measured at 224
    against 444 GFLOP/s (benchmarks/README.md). Intel's were not measured.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # Shaped outside _OneDNN, so that autograd sees it: DeBERTa changes a view of it in place.
        rows = _OneDNN.apply(x.reshape(-1, self.in_features), self.weight, self.bias)
        return rows.view(*x.shape[:-1], self.out_features)


class _OneDNN(torch.autograd.Function):
    """x @ weight.T + bias and its gradients, as three matrix products by the library oneDNN."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None):
        x = x.contiguous()  # For speed only: the gaps of a slice slow oneDNN down a hundredfold.
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
