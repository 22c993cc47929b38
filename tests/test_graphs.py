"""system/graphs.py: training by graphs ends with the same bits as training without them.

The graphs of a machine without a GPU are stand-ins, which compute again what a graph would replay.
"""

import functools
import gc
import weakref
from types import SimpleNamespace

import pytest
import torch
import transformers
from torch.nn import functional as F

import finetune
from data import Batch
from system import graphs, speed

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
DEVICES = ["cpu", pytest.param("cuda", marks=on_gpu)]
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 2, "vocab_size": 100}
DISTILBERT_SIZES = {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 2, "vocab_size": 100}
SETTINGS = SimpleNamespace(
    weight_decay=0.01, learning_rate=1e-2, precision="fp32", max_grad_norm=1.0
)


class StandIn(graphs.Graphs):
    """Graphs without a GPU."""

    def _capture(self, inputs):
        self.keep_gradients()
        inputs = {name: tensor.clone() for name, tensor in inputs.items()}
        logits = torch.zeros(len(inputs["input_ids"]), 2)
        gradient = torch.zeros_like(logits)
        computed = []

        def replay_forward() -> None:
            with torch.enable_grad():
                computed.append(self.compute(self.model, inputs))
            logits.copy_(computed[-1].detach())

        def replay_backward() -> None:
            computed.pop().backward(gradient)

        forward = SimpleNamespace(replay=replay_forward)
        backward = SimpleNamespace(replay=replay_backward)
        return graphs.Graph(inputs, logits, gradient, forward, backward)


@pytest.fixture
def new_model(monkeypatch):
    """A function that makes a model of random weights, with or without graphs."""
    if not torch.cuda.is_available():
        monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))

    def make(device: str, has_graphs: bool, kind: str = "distilbert", precision: str = "fp32"):
        sizes = DISTILBERT_SIZES if kind == "distilbert" else SIZES
        config = transformers.AutoConfig.for_model(kind, **sizes)
        torch.manual_seed(0)
        model = transformers.AutoModelForSequenceClassification.from_config(config)
        # No classifier reads this parameter.
        model.unused = torch.nn.Parameter(torch.ones(3))
        speed.prepare(model, device, precision)
        if device == "cpu" and has_graphs:
            model.graphs = StandIn(model, functools.partial(speed._compute, precision))
        if not has_graphs:
            model.graphs = None
        return model.train()

    return make


def micro_batch(rows: int, width: int, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, width + 1, (rows, 1), generator=generator)
    return {
        "input_ids": torch.randint(5, 100, (rows, width), generator=generator),
        "attention_mask": (torch.arange(width) < lengths).long(),
        "labels": torch.randint(0, 2, (rows,), generator=generator),
    }


def train(model, shapes: list[list[tuple[int, int]]], precision: str = "fp32") -> list[float]:
    """The losses and gradient norms of a step for each list of shapes of micro-batches."""
    settings = SimpleNamespace(**vars(SETTINGS) | {"precision": precision})
    optimizer, numbers = finetune.make_optimizer(model, settings), []
    for step, parts in enumerate(shapes):
        batch = [micro_batch(*shape, 10 * step + n) for n, shape in enumerate(parts)]
        torch.manual_seed(step)
        count = sum(rows for rows, _ in parts)
        numbers += finetune.training_step(model, optimizer, Batch(batch, count, None), settings)
    return torch.stack(numbers).tolist()


def check_equal(model, other) -> None:
    weights = other.state_dict()
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, weights[name]), name


A, B, SHORT = (4, 8), (4, 16), (3, 8)
CASES = {
    "shapes in turns": [[A], [B], [A], [B], [B], [A], [SHORT], [A], [SHORT], [B]],
    # A plain micro-batch comes before a replayed one, and after it.
    "micro-batches": [[A], [A, A], [B, A], [(2, 8), B], [A, B, A], [B, B], [SHORT, A], [A, SHORT]],
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("case", CASES)
def test_replayed_steps_have_the_losses_and_weights_of_plain_steps(
    case, precision, device, new_model
):
    plain, fast = (new_model(device, has_graphs, precision=precision) for has_graphs in (0, 1))
    expected = train(plain, CASES[case], precision)
    assert train(fast, CASES[case], precision) == expected
    check_equal(fast, plain)
    assert sum(graph is not None for graph in fast.graphs.by_shape.values()) >= 2
    # The optimizer would decay the weights of a gradient of zeros.
    assert fast.unused.grad is None and torch.equal(fast.unused.cpu(), torch.ones(3))


@pytest.mark.parametrize("is_trained", [False, True])
def test_a_model_that_predicts_or_trains_with_graphs_is_freed(is_trained, new_model):
    model = new_model("cpu", has_graphs=True)
    if is_trained:
        train(model, [[A], [A], [A]])
    with torch.inference_mode():
        speed.forward(model.eval(), micro_batch(*A, 0), "fp32")
    freed = weakref.ref(model)
    del model
    gc.collect()
    assert freed() is None


@pytest.mark.parametrize("device", DEVICES)
def test_two_passes_before_one_backward_do_not_share_the_memory_of_a_graph(device, new_model):
    results = []
    for has_graphs in (False, True):
        model = new_model(device, has_graphs)
        optimizer = finetune.make_optimizer(model, SETTINGS)
        for step in range(4):
            torch.manual_seed(step)
            optimizer.zero_grad()
            # Dropout differs between the passes.
            inputs = micro_batch(*A, step)
            (one, labels), (two, _) = (speed.forward(model, inputs, "fp32") for _ in range(2))
            (F.cross_entropy(one, labels) + (one - two).square().sum()).backward()
            optimizer.step()
        results.append(model)
    # The sums of the two passes' gradients are taken in another order.
    for one, two in zip(*(model.parameters() for model in results), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


def test_a_large_micro_batch_gets_no_graph(new_model, monkeypatch):
    monkeypatch.setattr(graphs, "MAX_TOKENS", 32)
    model = new_model("cpu", has_graphs=True)
    train(model, [[A], [B], [A], [B]])
    tokens = {shape[0][1] * shape[0][2]: graph for shape, graph in model.graphs.by_shape.items()}
    assert tokens[32] and not tokens[64]


def test_evaluation_between_steps_uses_no_graph_and_changes_nothing(new_model):
    plain, fast = (new_model("cpu", has_graphs) for has_graphs in (False, True))
    for model in (plain, fast):
        train(model, [[A], [A]])
        model.eval()
        speed.forward(model, micro_batch(*A, 5), "fp32")
        with torch.inference_mode():
            speed.forward(model, micro_batch(*A, 5), "fp32")
        model.train()
        with torch.no_grad():
            speed.forward(model, micro_batch(*A, 5), "fp32")
        # A pass by a graph would be replaying until its backward(), and later steps would be plain.
        assert model is plain or not model.graphs.is_replaying
        train(model, [[A], [A]])
    check_equal(fast, plain)


@on_gpu
@pytest.mark.parametrize("kind", [kind for kind in speed.LAST_LAYERS if kind not in speed.DEBERTA])
def test_each_architecture_with_graphs_trains_to_the_same_weights(kind, new_model):
    plain, fast = (new_model("cuda", has_graphs, kind) for has_graphs in (False, True))
    assert train(fast, CASES["shapes in turns"]) == train(plain, CASES["shapes in turns"])
    check_equal(fast, plain)
    assert fast.graphs and any(fast.graphs.by_shape.values())


@pytest.mark.parametrize(
    "kind, device, compiled, processes, expected",
    [
        ("distilbert", "cuda", False, 1, True),
        ("distilbert", "cuda", True, 1, False),
        ("distilbert", "cuda", False, 2, False),
        ("distilbert", "cpu", False, 1, False),
        ("modernbert", "cuda", False, 1, False),
        ("deberta-v2", "cuda", False, 1, False),
    ],
)
def test_graphs_are_for_one_gpu_and_models_that_never_wait(
    kind, device, compiled, processes, expected, monkeypatch
):
    sizes = DISTILBERT_SIZES if kind == "distilbert" else SIZES | {"pad_token_id": 0}
    config = transformers.AutoConfig.for_model(kind, **sizes)
    model = transformers.AutoModelForSequenceClassification.from_config(config)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    monkeypatch.setattr(model, "to", lambda device: model)
    monkeypatch.setattr(speed.ranks, "world_size", lambda: processes)
    speed.prepare(model, device, "fp32", compiled)
    assert bool(getattr(model, "graphs", None)) == expected
