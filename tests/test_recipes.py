"""Each change of a recipe changes what it names, and nothing else."""

import sys
from types import SimpleNamespace

import pytest
import torch
from harness.helpers import ROOT
from torch.nn import functional
from transformers import AutoModelForSequenceClassification

sys.path.insert(0, str(ROOT / "benchmarks"))

import recipes

SETTINGS = SimpleNamespace(learning_rate=1e-3, weight_decay=0.0, precision="fp32", device="cpu")


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
    recipes.CHANGES[change](module, value)
    optimizer = module.make_optimizer(model, SETTINGS)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    for rate in (1e-2, 1e-3):
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
    for part, scale in scales.items():
        names = [name for name in before if part in name]
        assert names
        for name in names:
            # With constant gradients, AdamW moves each weight by the learning rate.
            moved = before[name] - model.get_parameter(name)
            assert torch.allclose(moved, torch.full_like(moved, scale * 1.1e-2), rtol=2e-3), name


def test_smooth_labels_change_the_training_loss_and_not_the_evaluation_loss():
    module = SimpleNamespace(F=functional)
    recipes.CHANGES["label_smoothing"](module, 0.1)
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
    recipes.CHANGES["dropout"](module, 0.0)
    module.load(SETTINGS)
    assert torch.equal(model(**inputs).logits, model(**inputs).logits)


def test_a_probed_head_classifies_sentences_by_the_features_of_an_unchanged_encoder(model):
    import finetune

    random = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, 20000, (60, 12), generator=random)
    labels = torch.arange(60) % 2
    ids[:, 5] = torch.where(labels == 1, 2204, 2919)
    batches = [
        SimpleNamespace(
            micro_batches=[{"input_ids": ids[part], "labels": labels[part]} for part in halves]
        )
        for halves in ((slice(0, 20), slice(20, 40)), (slice(40, 60),))
    ]
    trained = []
    data = SimpleNamespace(training_loader=lambda *_: batches)
    module = SimpleNamespace(
        data=data, forward=finetune.forward, train=lambda *_: trained.append(1)
    )
    body = {name: p.clone() for name, p in model.named_parameters() if name[:11] != "classifier."}
    recipes.CHANGES["probed_head"](module, 40)
    module.train(None, model, None, {"train": None}, SETTINGS)
    assert trained and all(torch.equal(p, model.get_parameter(name)) for name, p in body.items())
    model.eval()
    with torch.inference_mode():
        logits = model(input_ids=ids).logits
    # 33 random features don't separate 40 sentences fully.
    assert (logits.argmax(1) == labels)[:40].float().mean() > 0.75
    # The two classes have opposite logits, because their targets do.
    assert torch.allclose(logits.sum(1), torch.zeros(60), atol=1e-4)
