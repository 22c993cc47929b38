"""Training on a GPU as CUDA graphs: Python starts a pass at once, not operation by operation."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

# Padded tokens of a micro-batch. Graphs reserve memory for activations in addition to that of
# other passes: at DistilBERT's size, 1.3 GB for this many tokens.
MAX_TOKENS = 4096

# Computes logits of inputs by a function that is called as a model is.
Compute = Callable[[Callable, dict[str, torch.Tensor]], torch.Tensor]


class Graph(NamedTuple):
    """The forward and backward pass of one shape of micro-batch, and their fixed memory."""

    inputs: dict[str, torch.Tensor]
    logits: torch.Tensor  # Shape (sentences, classes).
    gradient: torch.Tensor  # The loss's derivative by the logits, same shape.
    forward: torch.cuda.CUDAGraph
    backward: torch.cuda.CUDAGraph


class Graphs:
    """Passes of a model in training; losses and gradients have the same bits as without graphs.

    The first micro-batch of a shape runs as usual, which also prepares libraries for the capture.
    The second one is captured, and replayed from then on.
    """

    def __init__(self, model: PreTrainedModel, compute: Compute):
        self.model, self.compute = model, compute
        self.by_shape: dict[tuple, Graph | None] = {}
        # Each parameter that has a gradient, and the memory in which its gradient stays. For other
        # parameters the optimizer must not see a gradient of zeros.
        self.gradients: dict[nn.Parameter, torch.Tensor | None] = {}
        self.is_replaying = False
        # autograd calls backward() only if an input needs a gradient.
        self.anchor = torch.zeros((), device=model.device, requires_grad=True)
        self.pool = torch.cuda.graph_pool_handle()
        self.hooks: list[RemovableHandle] = []

    def logits(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Logits of a micro-batch, whose tensors are on the GPU."""
        self._watch_gradients()
        shape = tuple((name, *tensor.shape) for name, tensor in inputs.items())
        # All graphs share their memory for activations, so a pass must end before the next starts.
        is_first = not self.gradients or shape not in self.by_shape
        if is_first or self.is_replaying or inputs["input_ids"].numel() > MAX_TOKENS:
            self.by_shape.setdefault(shape, None)
            return self.compute(self.model, inputs)
        graph = self.by_shape[shape] = self.by_shape[shape] or self._capture(inputs)
        for name, tensor in inputs.items():
            graph.inputs[name].copy_(tensor)
        self.is_replaying = True
        return _Replay.apply(self.anchor, self, graph)

    def _watch_gradients(self) -> None:
        # Hooks of the first backward() show which parameters have gradients. They are removed
        # after it, because a model with such hooks is never freed.
        if self.gradients:
            while self.hooks:
                self.hooks.pop().remove()
        elif not self.hooks:
            self.hooks = [
                parameter.register_post_accumulate_grad_hook(self._notice)
                for parameter in self.model.parameters()
                if parameter.requires_grad
            ]

    def _notice(self, parameter: nn.Parameter) -> None:
        self.gradients.setdefault(parameter, None)

    def _capture(self, inputs: dict[str, torch.Tensor]) -> Graph:
        self.keep_gradients()
        inputs = {name: tensor.clone() for name, tensor in inputs.items()}
        # autograd would wait for other passes that used the same parameters, which a graph can't.
        # So it gets new ones, in the same memory.
        parameters = {}
        for name, parameter in self.model.named_parameters():
            parameters[name] = parameter.detach().requires_grad_(parameter in self.gradients)
            parameters[name].grad = self.gradients.get(parameter)

        def call(**inputs: torch.Tensor) -> object:
            return functional_call(self.model, parameters, (), inputs)

        forward, logits = record(lambda: self.compute(call, inputs), self.pool)
        gradient = torch.zeros_like(logits)
        backward, _ = record(lambda: logits.backward(gradient), self.pool)
        return Graph(inputs, logits.detach(), gradient, forward, backward)

    def keep_gradients(self) -> None:
        """Move the gradients so far to their fixed memory, to which a graph adds."""
        for parameter, kept in self.gradients.items():
            if kept is None:
                kept = self.gradients[parameter] = torch.empty_like(parameter, requires_grad=False)
            if parameter.grad is None:
                parameter.grad = kept.zero_()
            elif parameter.grad is not kept:
                parameter.grad = kept.copy_(parameter.grad)


def record(function: Callable, pool: tuple[int, int]) -> tuple[torch.cuda.CUDAGraph, object]:
    """The graph of the GPU's operations in `function`, which do not run, and what it returns."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        returned = function()
    return graph, returned


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(ctx, anchor: torch.Tensor, graphs: Graphs, graph: Graph) -> torch.Tensor:
        ctx.graphs, ctx.graph = graphs, graph
        graph.forward.replay()
        return graph.logits.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: torch.Tensor):
        ctx.graphs.keep_gradients()
        ctx.graph.gradient.copy_(gradient)
        ctx.graph.backward.replay()
        ctx.graphs.is_replaying = False
        return None, None, None
