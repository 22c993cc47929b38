"""Each change of a recipe changes what it names, and nothing else."""

import sys
from types import SimpleNamespace

import pytest
import torch
from harness.helpers import ROOT
from torch.nn import functional
from transformers import AutoModelForSequenceClassification

sys.path.insert(0, str(ROOT / "benchmarks"))

import changes

SETTINGS = SimpleNamespace(learning_rate=1e-3, weight_decay=0.5, precision="fp32", device="cpu")


@pytest.fixture
def model(tiny) -> torch.nn.Module:
    return AutoModelForSequenceClassification.from_pretrained(tiny)


@pytest.mark.parametrize(
    ("change", "value", "scales"),
    [
        ("head_rate", 2.0, {"classifier": 2.0, "layer.1": 1.0, "embeddings": 1.0}),
        ("layer_decay", 0.5, {"classifier": 1.0, "layer.1": 0.5, "layer.0": 0.25}),
        ("layer_decay", 0.1, {"embeddings": 0.001, "pre_classifier": 1.0}),
    ],
)
def test_each_parameter_learns_at_its_own_share_of_the_rate(model, change, value, scales):
    import finetune

    module = SimpleNamespace(make_optimizer=finetune.make_optimizer)
    changes.CHANGES[change](module, value)
    optimizer = module.make_optimizer(model, SETTINGS)
    names = {id(p): name for name, p in model.named_parameters()}

    def decays(optimizer: torch.optim.Optimizer) -> dict[str, float]:
        groups = optimizer.param_groups
        return {names[id(p)]: group["weight_decay"] for group in groups for p in group["params"]}

    assert decays(optimizer) == decays(finetune.make_optimizer(model, SETTINGS))
    for group in optimizer.param_groups:
        group["weight_decay"] = 0.0
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    for rate in (1e-2, 1e-3):
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
    for part, scale in scales.items():
        named = [name for name in before if part in name]
        assert named
        for name in named:
            # With constant gradients, AdamW moves each weight by the learning rate.
            moved = before[name] - model.get_parameter(name)
            assert torch.allclose(moved, torch.full_like(moved, scale * 1.1e-2), rtol=2e-3), name


def test_smooth_labels_change_the_training_loss_and_not_the_evaluation_loss():
    module = SimpleNamespace(F=functional)
    changes.CHANGES["label_smoothing"](module, 0.1)
    logits, labels = (
        torch.randn(8, 2, generator=torch.Generator().manual_seed(0)),
        torch.arange(8) % 2,
    )
    log = logits.log_softmax(-1)
    right, wrong = log.gather(1, labels[:, None]), log.gather(1, 1 - labels[:, None])
    trained = module.F.cross_entropy(logits, labels, None, reduction="sum")
    assert torch.allclose(trained, -(0.95 * right + 0.05 * wrong).sum())
    evaluated = module.F.cross_entropy(logits, labels, reduction="none")
    assert torch.allclose(evaluated, -right[:, 0])


def test_without_dropout_a_model_in_training_repeats_its_logits(model):
    inputs = {"input_ids": torch.arange(5, 25)[None], "attention_mask": torch.ones(1, 20)}
    module = SimpleNamespace(load=lambda settings: SimpleNamespace(model=model))
    model.train()
    assert not torch.equal(model(**inputs).logits, model(**inputs).logits)
    changes.CHANGES["dropout"](module, 0.0)
    module.load(SETTINGS)
    assert torch.equal(model(**inputs).logits, model(**inputs).logits)


def test_a_probed_head_classifies_sentences_by_the_features_of_an_unchanged_encoder(model):
    import finetune

    random = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, 20000, (60, 12), generator=random)
    labels = torch.arange(60) % 2
    ids[:, 5] = torch.where(labels == 1, 2204, 2919)

    def probe(step: int, labels: torch.Tensor) -> torch.Tensor:
        """The head's weights after `train` at this step, with two batches of 40 and 20."""
        batches = [
            SimpleNamespace(
                micro_batches=[{"input_ids": ids[part], "labels": labels[part]} for part in parts]
            )
            for parts in ((slice(0, 20), slice(20, 40)), (slice(40, 60),))
        ]
        trained = []
        module = SimpleNamespace(
            data=SimpleNamespace(training_loader=lambda *_: batches),
            forward=finetune.forward,
            train=lambda *_: trained.append(1),
        )
        changes.CHANGES["probed_head"](module, 40)
        module.train(SimpleNamespace(step=step), model, None, {"train": None}, SETTINGS)
        assert trained
        return model.classifier.weight.clone()

    before = {name: p.clone() for name, p in model.named_parameters()}
    # A resumed run keeps its head.
    assert torch.equal(probe(1, labels), before["classifier.weight"])
    head = probe(0, labels)
    # 40 sentences are enough here, so that the third micro-batch has no effect.
    assert torch.equal(probe(0, torch.where(torch.arange(60) < 40, labels, 0)), head)
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) != name.startswith("classifier."), name
    with torch.inference_mode():
        logits = model.eval()(input_ids=ids).logits
    # 33 random features don't separate 40 sentences fully.
    assert (logits.argmax(1) == labels)[:40].float().mean() > 0.75
    # The two classes have opposite logits, because their targets do.
    assert torch.allclose(logits.sum(1), torch.zeros(60), atol=1e-4)


def test_a_constant_rate_is_constant_only_if_the_recipe_says_so():
    import finetune

    for is_constant in (False, True):
        module = SimpleNamespace(learning_rate_at=finetune.learning_rate_at)
        changes.CHANGES["constant_rate"](module, is_constant)
        settings = SimpleNamespace(learning_rate=1e-3, warmup=0.1)
        assert (module.learning_rate_at(99, 100, settings) == 1e-3) == is_constant


def test_changes_of_the_rate_multiply(model):
    import finetune

    module = SimpleNamespace(make_optimizer=finetune.make_optimizer)
    changes.CHANGES["head_rate"](module, 3.0)
    changes.CHANGES["layer_decay"](module, 0.5)
    scales = {group["scale"] for group in module.make_optimizer(model, SETTINGS).param_groups}
    assert scales == {3.0, 0.5, 0.25, 0.125}
