"""system/speed.py: a prepared model has the same logits and gradients, and does less work."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from harness.helpers import copy_tokenizer
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from inputs import encoder
from system import speed
from system.console import InputError

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "vocab_size": 30522,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
DISTILBERT_SIZES = {
    **{"dim": 32, "hidden_dim": 64, "n_layers": 3, "n_heads": 2},
    **{"dropout": 0.0, "attention_dropout": 0.0, "seq_classif_dropout": 0.0},
}
# The options of DeBERTa, and of DeBERTa v3, whose xlarge model has a convolution.
DISENTANGLED = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]}
BUCKETS = {"position_buckets": 8, "share_att_key": True, "norm_rel_ebd": "layer_norm"}
CASES = [(kind, {}) for kind in (*speed.LAST_LAYERS, "albert", "mpnet", "modernbert")] + [
    ("distilbert", {"attn_implementation": "eager"}),
    ("bert", {"attn_implementation": "eager"}),
    ("distilbert", {"chunk_size_feed_forward": 4}),
    ("bert", {"chunk_size_feed_forward": 4}),
    ("deberta", DISENTANGLED),
    ("deberta-v2", DISENTANGLED | BUCKETS),
    ("deberta-v2", DISENTANGLED | BUCKETS | {"conv_kernel_size": 3, "conv_act": "gelu"}),
]


def load(kind: str, folder: Path, options: dict | None = None) -> torch.nn.Module:
    sizes = dict(DISTILBERT_SIZES if kind == "distilbert" else SIZES) | (options or {})
    if not (folder / "config.json").exists():
        torch.manual_seed(0)
        sizes |= {"pad_token_id": 0} if kind == "modernbert" else {}
        sizes |= {"embedding_size": 32, "classifier_dropout_prob": 0} if kind == "albert" else {}
        config = transformers.AutoConfig.for_model(kind, **sizes)
        transformers.AutoModelForMaskedLM.from_config(config).save_pretrained(folder)
        written = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(written | (options or {})))
        copy_tokenizer(folder)
    torch.manual_seed(1)
    return encoder.load(str(folder), ["a", "b"], None).model.train()


def gradients(model: torch.nn.Module, seed: int) -> tuple[torch.Tensor, dict]:
    torch.manual_seed(seed)
    batch = {
        "input_ids": torch.randint(1000, 2000, (3, 8)),
        "attention_mask": torch.tensor([[1] * 8, [1] * 4 + [0] * 4, [1] * 7 + [0]]),
    }
    model.zero_grad()
    logits = model(**batch).logits
    F.cross_entropy(logits, torch.tensor([0, 1, 1])).backward()
    return logits.detach(), {name: p.grad for name, p in model.named_parameters()}


needs_onednn = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="this build of torch has no oneDNN"
)


@pytest.fixture
def capability(request, monkeypatch):
    """The instruction set that torch reports for the CPU, which is AMD's."""
    monkeypatch.setattr(speed, "_is_amd", lambda: True)
    if request.param == "AVX512" and not torch.backends.mkldnn.is_available():
        pytest.skip("this build of torch has no oneDNN")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: request.param)
    return request.param


def on_both_cpus() -> list:
    """Each case for AVX512, and for AVX2, for which all cases except for two are marked long."""
    return [
        pytest.param(kind, options, capability, marks=[pytest.mark.long] * is_long)
        for capability in ("AVX512", "AVX2")
        for number, (kind, options) in enumerate(CASES)
        for is_long in [capability == "AVX2" and number > 1]
    ]


@pytest.mark.parametrize("kind, options, capability", on_both_cpus(), indirect=["capability"])
def test_a_prepared_model_has_the_logits_and_gradients_of_the_plain_model(
    kind, options, tmp_path, capability
):
    plain, fast = load(kind, tmp_path, options), load(kind, tmp_path, options)
    attention = fast.config._attn_implementation
    assert attention == options.get("attn_implementation", attention)
    speed.prepare(fast, "cpu", "fp32")
    # The second step must not depend on the first.
    for seed in (2, 3):
        logits, expected = gradients(plain, seed)
        fast_logits, computed = gradients(fast, seed)
        torch.testing.assert_close(fast_logits, logits, rtol=1e-5, atol=1e-6)
        assert expected.keys() == computed.keys()
        for name in expected:
            # A pooler or an adapter that nothing reads has no gradient.
            assert (expected[name] is None) == (computed[name] is None), name
            if expected[name] is not None:
                torch.testing.assert_close(
                    computed[name], expected[name], rtol=1e-4, atol=1e-6, msg=name
                )
    is_onednn = {type(module) for module in fast.modules()} & {speed.OneDNNLinear}
    assert bool(is_onednn) == (capability == "AVX512")


def test_a_later_change_of_attention_still_masks_padding(tmp_path):
    plain, fast = load("bert", tmp_path), load("bert", tmp_path)
    speed.prepare(fast, "cpu", "fp32")
    fast.set_attn_implementation("eager")
    torch.testing.assert_close(gradients(fast, 2)[0], gradients(plain, 2)[0], rtol=1e-5, atol=1e-6)


def test_a_model_without_layers_keeps_its_logits(tmp_path):
    plain, fast = (load("bert", tmp_path, {"num_hidden_layers": 0}) for _ in range(2))
    speed.prepare(fast, "cpu", "fp32")
    torch.testing.assert_close(gradients(fast, 2)[0], gradients(plain, 2)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", speed.LAST_LAYERS)
def test_the_last_layer_computes_only_what_the_first_token_needs(kind, tmp_path, monkeypatch):
    # FlopCounterMode doesn't know oneDNN's products.
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    model = load(kind, tmp_path)
    speed.prepare(model, "cpu", "fp32")
    with FlopCounterMode(display=False) as counter:
        model(input_ids=torch.full((2, 9), 1000), attention_mask=torch.ones(2, 9))
    counts = {path: sum(operations.values()) for path, operations in counter.flop_counts.items()}
    for name in filter(None, speed.LAST_LAYERS[kind]):
        flops = [count for path, count in counts.items() if path.endswith(f".{name}")]
        assert flops == [9 * flops[-1], 9 * flops[-1], flops[-1]]


def test_only_a_model_on_a_cpu_gets_the_query_and_the_averages_that_no_gpu_has_tried(tmp_path):
    model = load("distilbert", tmp_path)
    speed.prepare(model, "meta", "fp32")
    optimizer = torch.optim.AdamW(model.parameters())
    speed.allocate_averages(optimizer)
    last = model.distilbert.transformer.layer[-1]
    assert "forward" not in vars(last.attention.q_lin)
    assert not last.attention.out_lin._forward_pre_hooks and last.ffn._forward_pre_hooks
    assert not any(optimizer.state.values())


def test_the_gradient_of_the_embeddings_keeps_its_memory_and_holds_one_step(tmp_path):
    model = load("distilbert", tmp_path)
    speed.prepare(model, "cpu", "fp32")
    weights = model.get_input_embeddings().weight
    addresses = set()
    for token in (1000, 1001):
        batch = {"input_ids": torch.full((2, 8), token), "attention_mask": torch.ones(2, 8)}
        model.zero_grad()
        model(**batch).logits[:, 0].sum().backward()
        once = weights.grad[token].clone()
        # A second micro-batch adds to the gradient, and an evaluation does not clear it.
        model(**batch).logits[:, 0].sum().backward()
        torch.testing.assert_close(weights.grad[token], 2 * once)
        with torch.inference_mode():
            model(**batch)
        assert weights.grad.layout == torch.strided and weights.grad.count_nonzero() == 32
        addresses.add(weights.grad.data_ptr())
        twice = weights.grad.clone()
        # Some loops clear gradients between the forward and the backward pass.
        logits = model(**batch).logits
        model.zero_grad()
        logits[:, 0].sum().backward()
        torch.testing.assert_close(weights.grad, twice / 2)
    assert len(addresses) == 1


def test_averages_that_exist_before_the_first_step_keep_their_memory_and_change_no_step(tmp_path):
    results = []
    for allocates in (True, False):
        model = load("distilbert", tmp_path)
        model.get_input_embeddings().requires_grad_(False)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
        if allocates:
            speed.allocate_averages(optimizer)
        addresses = [state["exp_avg"].data_ptr() for state in optimizer.state.values() if state]
        for seed in (2, 3):
            gradients(model, seed)
            optimizer.step()
            # A second call replaces nothing, as after a checkpoint has been restored.
            speed.allocate_averages(optimizer)
        states = [state for state in optimizer.state.values() if state]
        assert not allocates or addresses == [state["exp_avg"].data_ptr() for state in states]
        results.append(states + [{"weights": p} for p in model.parameters()])
    trainable = sum(p.requires_grad for p in model.parameters())
    assert len(addresses) == 0 and len(states) == trainable
    for one, other in zip(*results, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("when", ["before", "after"])
def test_frozen_word_embeddings_get_no_gradient(tmp_path, when):
    model = load("distilbert", tmp_path)
    if when == "after":
        speed.prepare(model, "cpu", "fp32")
    embeddings = model.get_input_embeddings().requires_grad_(False)
    if when == "before":
        speed.prepare(model, "cpu", "fp32")
    gradients(model, 2)
    assert embeddings.weight.grad is None


@needs_onednn
@pytest.mark.parametrize("shape", [(5, 8), (3, 5, 8)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_onednn_layer_has_the_results_and_gradients_of_a_linear_layer(shape, bias):
    torch.manual_seed(0)
    layer, expected = torch.nn.Linear(8, 6, bias), torch.nn.Linear(8, 6, bias)
    expected.load_state_dict(layer.state_dict())
    layer.__class__ = speed.OneDNNLinear
    x = torch.randn(*shape)
    results = []
    for linear in (layer, expected):
        # A slice of a larger tensor has gaps between its rows, and so has its gradient.
        wide = F.pad(x, (2, 1)).requires_grad_()
        F.pad(linear(wide[..., 2:-1]), (1, 1)).square().sum().backward()
        results.append([wide.grad, *(p.grad for p in linear.parameters())])
        with torch.inference_mode():
            results[-1].append(linear(x))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@needs_onednn
def test_second_derivatives_of_a_onednn_layer_are_refused():
    layer = speed.OneDNNLinear(8, 6)
    x = torch.randn(2, 8, requires_grad=True)
    (gradient,) = torch.autograd.grad(layer(x).pow(2).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@needs_onednn
@pytest.mark.parametrize("frozen", ["weight", "bias"])
def test_a_frozen_weight_of_a_onednn_layer_gets_no_gradient(frozen):
    layer = speed.OneDNNLinear(8, 6)
    getattr(layer, frozen).requires_grad_(False)
    layer(torch.randn(2, 8)).sum().backward()
    assert {name for name, p in layer.named_parameters() if p.grad is not None} == (
        {"weight", "bias"} - {frozen}
    )


def test_bf16_compiled_models_and_intels_cpus_keep_torchs_own_linear_layers(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    cases = (("bf16", False, True), ("fp32", True, True), ("fp32", False, False))
    for precision, compiled, is_amd in cases:
        monkeypatch.setattr(speed, "_is_amd", lambda is_amd=is_amd: is_amd)
        model = load("distilbert", tmp_path)
        speed.prepare(model, "cpu", precision, compiled)
        assert not any(isinstance(module, speed.OneDNNLinear) for module in model.modules())


def test_the_vendor_of_the_cpu_is_that_of_linux_or_of_the_platform(tmp_path, monkeypatch):
    monkeypatch.setattr(speed, "Path", lambda name: tmp_path / name.lstrip("/"))
    (tmp_path / "proc").mkdir()
    monkeypatch.setattr(speed.platform, "processor", lambda: "AMD64 Family 25, AuthenticAMD")
    assert speed._is_amd()
    for vendor in ("AuthenticAMD", "GenuineIntel"):
        (tmp_path / "proc" / "cpuinfo").write_text(f"processor\t: 0\nvendor_id\t: {vendor}\n")
        assert speed._is_amd() == (vendor == "AuthenticAMD")


# ---- Device and precision ----


@pytest.mark.parametrize(
    "name, gpus, has_mps, processes, expected",
    [
        ("auto", 0, False, 1, "cpu"),
        ("auto", 0, True, 1, "mps"),
        # Several processes can't share an mps device.
        ("auto", 0, True, 2, "cpu"),
        ("auto", 2, True, 2, "cuda"),
        ("cpu", 2, True, 4, "cpu"),
        ("cuda", 0, True, 1, "no such device here; use --device auto"),
        ("mps", 0, True, 2, "no such device here; use --device auto"),
        ("auto", 1, False, 2, "machine with 1 GPU; use torchrun --nproc-per-node 1"),
        ("cuda", 3, False, 4, "machine with 3 GPUs; use torchrun --nproc-per-node 3"),
    ],
)
def test_a_device_is_chosen_or_refused(monkeypatch, name, gpus, has_mps, processes, expected):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: has_mps)
    monkeypatch.setattr(speed.ranks, "local_world_size", lambda: processes)
    if expected in ("cpu", "mps", "cuda"):
        assert speed.choose_device(name) == expected
    else:
        with pytest.raises(InputError, match=expected) as caught:
            speed.choose_device(name)
        assert str(caught.value).startswith(f"--device {name}: ")


@pytest.mark.parametrize("on_gpu", [False, True])
@pytest.mark.parametrize("avx512, amx", [(False, False), (True, False), (False, True)])
def test_bf16_is_only_chosen_where_a_gpu_or_cpu_has_units_for_it(avx512, amx, on_gpu, monkeypatch):
    supported = lambda including_emulation: on_gpu or including_emulation  # noqa: E731
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert speed.choose_precision("auto", "cuda") == ("bf16" if on_gpu else "fp32")
    assert speed.choose_precision("auto", "cpu") == ("bf16" if avx512 or amx else "fp32")
    assert speed.choose_precision("auto", "mps") == "fp32"
    for name in ("bf16", "fp32"):
        assert {speed.choose_precision(name, device) for device in ("cpu", "cuda")} == {name}
