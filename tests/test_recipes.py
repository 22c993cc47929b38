"""Each change of a recipe changes what it names, and nothing else."""

import dataclasses
import re
import sys
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from harness.helpers import ROOT
from hypothesis import given
from hypothesis import strategies as some
from torch.nn import functional
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer

sys.path.insert(0, str(ROOT / "benchmarks"))

import accuracy
import changes
import masked_words
import recipes
import rows

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


def test_a_cosine_rate_has_the_same_warm_up_and_falls_as_half_a_cosine():
    import finetune

    module = SimpleNamespace(learning_rate_at=finetune.learning_rate_at)
    changes.CHANGES["cosine_rate"](module, True)
    settings = SimpleNamespace(learning_rate=1.0, warmup=0.2)
    rates = [module.learning_rate_at(step, 100, settings) for step in range(101)]
    assert rates[:20] == [finetune.learning_rate_at(step, 100, settings) for step in range(20)]
    quarters = [1, 0.5 + 0.5**1.5, 0.5, 0.5 - 0.5**1.5, 0]
    assert rates[20::20] == pytest.approx(quarters)


def test_the_last_weights_are_the_mean_over_the_last_steps_of_a_resumed_run_too():
    def steps(first: int, last: int, averaged: bool, state: dict | None = None):
        """The weights after each of these steps out of ten, and the state after the last one."""
        weights = torch.nn.Parameter(torch.zeros(3))
        frozen = torch.nn.Parameter(torch.ones(3), requires_grad=False)
        optimizer = torch.optim.AdamW([weights, frozen], lr=0.1, fused=True)
        if state:
            optimizer.load_state_dict(state["optimizer"])
            weights.data.copy_(state["weights"])
        run, after = SimpleNamespace(step=first, steps=10), []

        def train(run, *_: object) -> None:
            while run.step < last:
                weights.grad = torch.arange(1.0, 4.0) * (-1.5) ** run.step
                optimizer.step()
                after.append(weights.detach().clone())
                run.step += 1

        module = SimpleNamespace(train=train)
        if averaged:
            changes.CHANGES["averaged"](module, 0.25)
        module.train(run, None, optimizer, None, None)
        assert torch.equal(frozen, torch.ones(3))
        return after, {"optimizer": optimizer.state_dict(), "weights": after[-1]}

    plain, _ = steps(0, 10, averaged=False)
    mean = torch.stack(plain[7:]).mean(0)
    averaged, _ = steps(0, 10, averaged=True)
    assert all(map(torch.equal, averaged[:9], plain[:9]))
    assert torch.allclose(averaged[9], mean) and not torch.allclose(plain[9], mean)
    for stop in (5, 8, 9):
        _, state = steps(0, stop, averaged=True)
        resumed, _ = steps(stop, 10, averaged=True, state=state)
        assert torch.equal(resumed[-1], averaged[9]), stop


def test_long_batches_tend_to_come_late_in_an_order_of_seed_and_epoch():
    from inputs.batches import epoch_batches

    lengths = np.random.default_rng(0).integers(3, 50, 9600)

    def order(
        strength: float, seed: int = 1, epoch: int = 0, plain: Callable = epoch_batches
    ) -> list[np.ndarray]:
        batches = SimpleNamespace(epoch_batches=plain)
        module = SimpleNamespace(data=SimpleNamespace(batches=batches))
        changes.CHANGES["long_late"](module, strength)
        return batches.epoch_batches(lengths, 32, seed, epoch)

    def tuples(batches: list[np.ndarray]) -> list[tuple[int, ...]]:
        return [tuple(batch.tolist()) for batch in batches]

    def correlation(batches: list[np.ndarray]) -> float:
        return np.corrcoef(range(300), [lengths[batch].mean() for batch in batches])[0, 1]

    assert sorted(tuples(order(0.5))) == sorted(tuples(epoch_batches(lengths, 32, 1, 0)))
    assert tuples(order(0.5)) == tuples(order(0.5))
    # The sum of numbers from 0 to 0.5 and from 0 to 1 correlates with the first at 0.45.
    means = [
        np.mean([correlation(order(strength, seed)) for seed in range(20)])
        for strength in (0.0, 0.5, 1e6)
    ]
    assert means == pytest.approx([0.0, 0.45, 0.99], abs=0.04)
    # Seed and epoch decide the order of the same batches, too.
    batches = epoch_batches(lengths, 32, 1, 0)
    orders = [order(0.5, *numbers, lambda *_: batches) for numbers in ((1, 0), (1, 1), (2, 0))]
    assert len(set(map(tuple, map(tuples, orders)))) == 3


@given(some.lists(some.tuples(some.sampled_from("01"), some.text("ab", min_size=1, max_size=8))))
def test_a_row_is_dropped_if_another_has_it_and_one_or_two_more_words_at_an_end(pairs):
    labels, texts = [label for label, _ in pairs], [" ".join(text) for _, text in pairs]
    tokens, chosen = [text.split() for text in texts], list(range(0, len(pairs), 2))

    def replaces(other: int, row: int) -> bool:
        """True if the row `other` is a reason to drop `row`."""
        if labels[other] != labels[row] or other == row:
            return False
        if tokens[other] == tokens[row]:
            return other < row
        size = len(tokens[row])
        extra = len(tokens[other]) - size
        starts = range(max(0, extra - 2), min(2, extra) + 1)
        return any(tokens[other][start : start + size] == tokens[row] for start in starts)

    left = rows.ROWS["no near-duplicates"](chosen, labels, texts, set())
    assert left == [row for row in chosen if not any(replaces(other, row) for other in chosen)]


def write_sst2(folder) -> None:
    """Thirty sentences with one phrase each."""
    lines = [f"{n % 2}\t{text}" for n in range(30) for text in (f"a {n} b", f"{n} b")]
    folder.joinpath("train.tsv").write_text("\n".join(["label\tsentence", *lines]) + "\n")


def test_other_training_rows_leave_the_held_out_sentences_and_the_label_of_each_row(
    tmp_path, monkeypatch, capsys
):
    import finetune

    write_sst2(tmp_path)
    monkeypatch.setattr(accuracy, "SST2", tmp_path)
    monkeypatch.setattr(accuracy, "RUNS", tmp_path / "runs")
    # `prepare` changes finetune.py's module, and monkeypatch restores it.
    monkeypatch.setattr(finetune, "train", finetune.train)
    texts = {}
    for name, count in (("10k", 40), ("10k sentences 4", 100), ("10k no near-duplicates", 20)):
        settings, folder = accuracy.prepare(name)
        assert not settings.keys() & {"rows", "held_out"}
        # The record then names SST-2 as the data.
        assert settings["data"] == str(folder) and settings["precision"] == "fp32"
        assert f"{count} training rows" in capsys.readouterr().err
        texts[name] = [(folder / file).read_text() for file in ("train.tsv", "dev.tsv")]
        assert texts[name][1] == texts["10k"][1]
    plain, many, few = (train.splitlines()[1:] for train, _ in texts.values())
    for row in plain:
        is_sentence = "a " in row
        assert (many.count(row), few.count(row)) == ((4, 1) if is_sentence else (1, 0)), row
    assert accuracy.prepare("10k bf16")[0]["precision"] == "bf16"


def test_a_recipe_has_only_settings_changes_and_known_rows():
    from training.settings import ROWS

    for name, recipe in recipes.RECIPES.items():
        assert recipe.keys() <= ROWS.keys() | changes.CHANGES.keys() | {"held_out", "rows"}, name
        assert recipe.get("rows") in (None, *rows.ROWS), name


def test_every_second_step_has_the_loss_of_two_passes_and_their_divergence(model, monkeypatch):
    import finetune

    for name in ("train", "forward", "F", "training_step"):
        monkeypatch.setattr(finetune, name, getattr(finetune, name))
    ids = torch.randint(1000, 2000, (6, 9), generator=torch.Generator().manual_seed(0))
    labels, passes, losses = torch.tensor([0, 1, 1, 0, 0, 1]), [], []
    # Large weights make the logits of two passes very different.
    model.classifier.weight.data *= 40
    forward, optimizer = finetune.forward, torch.optim.SGD(model.parameters(), lr=0.0)

    def record(*inputs: object) -> tuple[torch.Tensor, torch.Tensor]:
        result = forward(*inputs)
        passes.append(result[0].detach())
        return result

    settings = SimpleNamespace(precision="fp32", max_grad_norm=0.0)
    parts = [{"input_ids": ids[part], "labels": labels[part]} for part in (slice(4), slice(4, 6))]

    def train(run, *_: object) -> None:
        for run.step in range(4):
            batch = SimpleNamespace(micro_batches=parts, sentences=6)
            losses.append(finetune.training_step(model, optimizer, batch, settings, None)[0])
            # An evaluation between two steps passes once.
            assert finetune.forward is record and finetune.F is functional

    finetune.forward, finetune.train = record, train
    changes.CHANGES["half_r_drop"](finetune, 0.7)
    model.train()
    finetune.train(SimpleNamespace(step=0))
    assert [len(logits) for logits in passes] == [4, 4, 2, 2, 4, 2] * 2
    first, second = (torch.cat([passes[n], passes[n + 2]]) for n in (0, 1))
    entropies = [functional.cross_entropy(logits, labels) for logits in (first, second)]
    p, q = (torch.distributions.Categorical(logits=logits) for logits in (first, second))
    both = torch.distributions.kl_divergence(p, q) + torch.distributions.kl_divergence(q, p)
    assert both.mean() > 0.01
    assert torch.allclose(losses[0], sum(entropies) / 2 + 0.7 * both.mean() / 2)
    assert torch.allclose(losses[1], functional.cross_entropy(torch.cat(passes[4:6]), labels))


def test_masked_words_are_15_percent_and_change_as_in_bert(tiny):
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    special = tokenizer.all_special_ids
    ids = np.tile(np.r_[tokenizer.cls_token_id, 5000:5030, tokenizer.sep_token_id, 0, 0], 3000)
    masked, places = masked_words.mask(ids, tokenizer, np.random.default_rng(0))
    assert np.array_equal(np.delete(masked, places), np.delete(ids, places))
    assert not np.isin(ids[places], special).any()
    assert len(places) / 90_000 == pytest.approx(0.15, abs=0.005)
    new = masked[places]
    shares = [(new == tokenizer.mask_token_id).mean(), (new == ids[places]).mean()]
    assert shares == pytest.approx([0.8, 0.1], abs=0.01)
    assert len(np.unique(new)) > 1000


def test_the_loss_of_masked_words_is_that_of_transformers(tiny):
    reference = AutoModelForMaskedLM.from_pretrained(tiny).eval()
    head = masked_words.make_head(reference.get_input_embeddings())
    for own, other in ((0, "vocab_transform"), (2, "vocab_layer_norm"), (3, "vocab_projector")):
        part = getattr(reference, other)
        # Random weights, because those of a new layer norm and a new bias change nothing.
        torch.nn.init.normal_(part.bias)
        head[own].load_state_dict(part.state_dict())
    assert head[3].weight is reference.get_input_embeddings().weight
    # Small weights would hide attention to padding.
    for weights in reference.distilbert.transformer.parameters():
        weights.data *= 10
    random = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, 2000, (3, 8), generator=random)
    mask = (torch.arange(8) < torch.tensor([8, 5, 3])[:, None]).long()
    masked, places = ids.numpy().ravel().copy(), np.array([1, 6, 10, 17])
    masked[places] = 103
    labels = torch.full((24,), -100)
    labels[places] = ids.ravel()[places]
    inputs = {"input_ids": ids, "attention_mask": mask, "labels": torch.zeros(3)}
    loss = masked_words.loss_of(reference.distilbert, head, inputs, masked, places, "fp32")
    inputs = {"input_ids": torch.from_numpy(masked).view(3, 8), "attention_mask": mask}
    assert torch.allclose(loss, 4 * reference(**inputs, labels=labels.view(3, 8)).loss)


def test_a_new_run_learns_masked_words_first_and_keeps_its_head(tiny, capsys):
    import finetune
    from system import speed

    tokenizer = AutoTokenizer.from_pretrained(tiny)
    values = vars(SETTINGS) | {"seed": 3, "warmup": 0.1, "max_grad_norm": 1.0}
    settings = dataclasses.make_dataclass("Settings", values)(**values)
    ids = torch.tensor([[101, *range(3000, 3016), 102]] * 8)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids[:, 0]}
    batches = [SimpleNamespace(micro_batches=[inputs, inputs])] * 40

    def weights_at(step: int, is_prepared: bool) -> dict[str, torch.Tensor]:
        """The model's weights after the pass of a run at this step."""
        model, trained = AutoModelForSequenceClassification.from_pretrained(tiny), []
        cleared = []

        def make_optimizer(*arguments: object) -> torch.optim.Optimizer:
            optimizer = finetune.make_optimizer(*arguments)
            clear = optimizer.zero_grad
            optimizer.zero_grad = lambda: cleared.append(clear())
            return optimizer

        for name, weights in model.named_parameters():
            if "classifier" in name:
                weights.data.fill_(0.5)
        if is_prepared:
            speed.prepare(model, "cpu", "fp32")
        run = SimpleNamespace(step=step, watch=lambda loader, title: loader, _tokenizer=tokenizer)
        module = SimpleNamespace(
            data=SimpleNamespace(training_loader=lambda *_: batches),
            make_optimizer=make_optimizer,
            learning_rate_at=finetune.learning_rate_at,
            train=lambda *arguments: trained.append(arguments[-1]),
        )
        changes.CHANGES["masked_pass"](module, 1e-2)
        module.train(run, model, None, {"train": None}, settings)
        # The run itself has its own settings.
        assert trained == [settings]
        # A step has no gradient of the step before.
        assert len(cleared) == (0 if step else 40)
        return {name: weights.detach() for name, weights in model.named_parameters()}

    # A resumed run has no such pass.
    before = weights_at(1, is_prepared=True)
    assert "masked words" not in capsys.readouterr().err
    after = weights_at(0, is_prepared=True)
    losses = re.search(r"masked words: mean loss (\S+) in .*, (\S+) in", capsys.readouterr().err)
    first, last = map(float, losses.groups())
    # The logarithm of the number of tokens is 10.3, and 16 tokens are left to guess from.
    assert 7 < first < 11 and last < 4
    repeated = weights_at(0, is_prepared=False)
    for name, weights in after.items():
        is_same = "classifier" in name
        assert torch.equal(weights, before[name]) == is_same, name
        # The pass ignores the shortcuts of a prepared model.
        assert torch.equal(weights, repeated[name]), name
