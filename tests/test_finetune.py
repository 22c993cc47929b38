"""The arithmetic of finetune.py equals that of transformers' Trainer."""

import collections
import copy
import functools
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from harness import training
from harness.helpers import save_tiny
from torch.utils.data import DataLoader

import data
import finetune as script
from inputs import batches, encoder
from system import speed
from training.scores import Answers


@pytest.mark.parametrize("speedups", [True, False])
def test_losses_and_weights_equal_those_of_transformers_trainer(tmp_path, monkeypatch, speedups):
    from transformers import Trainer, TrainingArguments

    # The sentences are short, and a limit of 100 tokens still splits their batches.
    monkeypatch.setattr(batches, "MAX_TOKENS_ON_CPU", 100 if speedups else sys.maxsize)
    if not speedups:
        monkeypatch.setattr(speed, "prepare", lambda model, *_: model)
    flags = ["--batch-size", "20", "--epochs", "1", "--learning-rate", "3e-3", "--log-every", "1"]
    # The last batch is smaller.
    count = 20 * 50 - 7
    loaded = training.load(tmp_path, count, *flags, "--warmup", "0.1")
    rows = training.write_sentences(tmp_path / "sentences", count)
    initial_model, trainer_model = copy.deepcopy(loaded.model), copy.deepcopy(loaded.model)
    tokens = data.tokenize_split(loaded.text, "train", loaded.tokenizer, 64)
    lines = [line for line in training.train(loaded) if "loss" in line]

    order = batches.epoch_batches(tokens.lengths, 20, loaded.settings.seed, 0)
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "trainer"),
        per_device_train_batch_size=20,
        num_train_epochs=1,
        learning_rate=3e-3,
        warmup_steps=5,
        lr_scheduler_type="linear",
        weight_decay=0.01,
        max_grad_norm=1.0,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )

    class OrderedTrainer(Trainer):
        def get_train_dataloader(self):
            encode = functools.partial(loaded.tokenizer, padding=True, return_tensors="pt")

            def collate(numbers):
                batch = encode([rows[i][0] for i in numbers], truncation=True, max_length=64)
                batch.pop("token_type_ids", None)
                return batch | {"labels": torch.tensor([rows[i][1] for i in numbers])}

            return DataLoader(range(len(rows)), batch_sampler=order, collate_fn=collate)

    trainer = OrderedTrainer(model=trainer_model, args=arguments, train_dataset=range(len(rows)))
    trainer.train()
    history = [line for line in trainer.state.log_history if "loss" in line]
    assert len(lines) == len(history) == 50
    for line, reference in zip(lines, history, strict=True):
        assert line["learning_rate"] == pytest.approx(reference["learning_rate"], rel=1e-9)
        assert line["grad_norm"] == pytest.approx(reference["grad_norm"], rel=1e-3)
    losses = np.array([[line["loss"] for line in run] for run in (lines, history)])
    loss_difference = np.abs(losses[0] / losses[1] - 1).max()
    change = training.largest_difference(loaded.model, initial_model)
    difference = training.largest_difference(loaded.model, trainer_model)
    print(f"speedups {speedups}: largest relative difference of 50 losses {loss_difference:.1e}")
    print(f"largest difference of weights {difference:.1e}, change by training {change:.1e}")
    assert loss_difference < 1e-5 and difference < 1e-4 < change
    assert losses[0][-10:].mean() < losses[0][:10].mean() - 0.1


# ---- Steps ----


def test_micro_batches_of_4_train_like_the_whole_batch_of_32(tmp_path):
    # The last batch is smaller.
    count = 512 - 3
    flags = ["--epochs", "1", "--learning-rate", "1e-3", "--batch-size", "32"]
    whole = training.load(tmp_path, count, *flags, run="whole")
    micro = training.load(tmp_path, count, *flags, "--micro-batch-size", "4", run="micro")
    training.train(whole)
    training.train(micro)
    difference = training.largest_difference(whole.model, micro.model)
    print(f"largest difference of weights {difference:.1e}")
    assert 0 < difference < 1e-5


def test_a_max_grad_norm_of_0_clips_nothing(tmp_path):
    flags = ["--epochs", "1", "--learning-rate", "1e-3", "--max-grad-norm"]
    models = []
    for max_norm in ("0", "1e9", "1e-9"):
        loaded = training.load(tmp_path, 64, *flags, max_norm, run=max_norm)
        training.train(loaded)
        models.append(loaded.model)
    unclipped, large_limit, clipped = models
    assert training.largest_difference(unclipped, large_limit) == 0
    assert training.largest_difference(unclipped, clipped) > 0


def test_weight_decay_applies_to_matrices_only(tmp_path):
    model = training.load_head(training.no_dropout(tmp_path / "model"))
    settings = training.make_settings("--weight-decay", "0.5", "--learning-rate=1")
    optimizer = script.make_optimizer(model, settings)
    weight_decays = {
        id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]
    }
    for name, parameter in model.named_parameters():
        is_matrix = not (name.endswith("bias") or "layer_norm" in name or "LayerNorm" in name)
        assert weight_decays[id(parameter)] == (0.5 if is_matrix else 0.0), name
    assert all(group["fused"] for group in optimizer.param_groups)


def test_the_learning_rate_follows_the_linear_schedule_of_transformers():
    from transformers import get_linear_schedule_with_warmup

    settings = training.make_settings("--learning-rate", "3e-5", "--warmup", "0.06")
    optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=3e-5)
    schedule = get_linear_schedule_with_warmup(optimizer, math.ceil(0.06 * 107), 107)
    for step in range(107):
        rate = script.learning_rate_at(step, 107, settings)
        assert rate == pytest.approx(schedule.get_last_lr()[0], rel=1e-12)
        optimizer.step()
        schedule.step()


def test_a_step_with_class_weights_averages_torchs_weighted_loss_over_sentences(tiny):
    weights = data.balanced_weights(np.array([30, 8, 0, 2]))
    rows = [{"input_ids": [101, 2000 + i, 102], "labels": int(i % 4 == 1)} for i in range(8)]
    settings = training.make_settings("--learning-rate", "1e-3")
    losses = []
    for max_rows in (8, 3):
        torch.manual_seed(0)
        model = encoder.load(str(tiny), list("abcd"), None).model
        optimizer = script.make_optimizer(model, settings)
        batch = data.Batch(batches.collate(rows, 0, max_rows), 8, np.arange(8))
        with torch.no_grad():
            (inputs,) = batches.collate(rows, 0, 8)
            labels = inputs.pop("labels")
            expected = torch.nn.functional.cross_entropy(
                model(**inputs).logits, labels, weights, reduction="none"
            )
        loss, _ = script.training_step(model, optimizer, batch, settings, weights)
        assert loss.item() == pytest.approx(expected.sum().item() / 8, rel=1e-5)
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_every_step_uses_the_class_weights_of_the_training_split(tmp_path, monkeypatch):
    flags = ["--epochs", "1", "--batch-size", "8", "--class-weights", "balanced"]
    loaded = training.load(tmp_path, 20, *flags)
    step, steps = script.training_step, []

    def spy(*arguments: object) -> object:
        steps.append(arguments[-1].tolist())
        return step(*arguments)

    monkeypatch.setattr(script, "training_step", spy)
    training.train(loaded)
    counts = collections.Counter(loaded.text.splits["train"]["label"])
    assert counts["0"] != counts["1"]
    assert steps == [pytest.approx([10 / counts["0"], 10 / counts["1"]])] * 3


@pytest.fixture
def reads(monkeypatch) -> collections.Counter:
    """The number of device reads by each file; each read makes Python wait for a GPU."""
    counts = collections.Counter()
    for name in ("item", "tolist", "__bool__", "__float__", "__int__", "cpu", "numpy"):
        real = getattr(torch.Tensor, name)

        def spy(tensor, *arguments, _real=real, **options):
            counts[Path(sys._getframe(1).f_code.co_filename).name] += 1
            return _real(tensor, *arguments, **options)

        monkeypatch.setattr(torch.Tensor, name, spy)
    return counts


def test_training_reads_from_the_device_only_to_log(tmp_path, monkeypatch, reads):
    answers = Answers(*(np.ones(1) for _ in Answers._fields))
    monkeypatch.setattr(script, "evaluate", lambda *_: ({"accuracy": 1.0}, answers))
    monkeypatch.setattr(script.Run, "save", lambda run: None)
    monkeypatch.setattr(script.Run, "_write_kept_model", lambda run: None)
    flags = ["--batch-size", "8", "--epochs", "1", "--learning-rate", "1e-3", "--log-every", "1000"]
    loaded = training.load(tmp_path, 64, *flags)
    reads.clear()
    training.train(loaded)
    # run.py logs the last step of the epoch; the other two files make batches on the CPU.
    assert reads.pop("run.py") == 1
    assert reads.keys() <= {"batches.py", "dataloader.py"}


def test_an_evaluation_reads_from_the_device_only_at_its_end(tmp_path, reads):
    loaded = training.load(tmp_path, 64, "--batch-size", "8")
    speed.prepare(loaded.model, "cpu", "fp32")
    tokens = data.tokenize_split(loaded.text, "train", loaded.tokenizer, 64)
    loader = data.evaluation_loader(tokens, loaded.settings)
    reads.clear()
    script.evaluate(loaded.model, loader, loaded.settings)
    # cpu() and numpy() read each of the four columns once.
    assert reads.pop("scores.py") == 2 * 4
    assert reads.keys() <= {"batches.py", "dataloader.py"}


# ---- Evaluation, dropout and frozen weights ----


def test_evaluation_counts_every_sentence_once_and_agrees_with_a_pipeline(tmp_path):
    from transformers import pipeline

    rows = training.write_sentences(tmp_path, 45)
    model = training.load_head(training.no_dropout(tmp_path / "model"))
    tokenizer = encoder.load("builtin", ["0", "1"], None).tokenizer
    tokens = data.tokenize_split(data.load(str(tmp_path)), "train", tokenizer, 64)
    settings = training.make_settings("--batch-size", "8", "--micro-batch-size", "3")
    loader = data.evaluation_loader(tokens, settings)
    scores, answers = script.evaluate(model, loader, settings)
    replies = pipeline("text-classification", model=model, tokenizer=tokenizer, top_k=None)(
        [text for text, _ in rows]
    )
    best = [max(reply, key=lambda a: a["score"]) for reply in replies]
    is_right = [a["label"] == str(label) for a, (_, label) in zip(best, rows, strict=True)]
    assert scores["accuracy"] == sum(is_right) / 45
    assert answers.labels.tolist() == [label for _, label in rows]
    assert [str(number) for number in answers.predictions] == [a["label"] for a in best]
    assert answers.confidences == pytest.approx([a["score"] for a in best], abs=1e-6)
    every = [[{a["label"]: a["score"] for a in reply}[name] for name in "01"] for reply in replies]
    assert answers.probabilities == pytest.approx(np.array(every), abs=1e-6)
    expected = [
        -math.log({a["label"]: a["score"] for a in reply}[str(label)])
        for reply, (_, label) in zip(replies, rows, strict=True)
    ]
    assert answers.losses == pytest.approx(np.array(expected), rel=1e-5, abs=1e-6)
    assert answers.losses.mean() == pytest.approx(np.mean(expected), rel=1e-5)


def test_dropout_is_on_in_every_training_epoch_and_off_in_evaluation(tmp_path):
    flags = ["--epochs", "2", "--learning-rate", "1e-3"]
    loaded = training.load(tmp_path, 64, *flags, dropout=0.1, attention_dropout=0.1)
    modes = []
    loaded.model.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    training.train(loaded)
    epoch = [True, True, False, False]
    assert modes == [False, False, *epoch, *epoch]
    tokens = data.tokenize_split(loaded.text, "validation", loaded.tokenizer, 64)
    loader = data.evaluation_loader(tokens, loaded.settings)
    first, second = (script.evaluate(loaded.model, loader, loaded.settings) for _ in range(2))
    assert modes[10:] == [False] * 4 and first[0] == second[0]
    for column, repeated in zip(first[1], second[1], strict=True):
        assert column.tolist() == repeated.tolist()


@pytest.mark.parametrize("flag", ["--freeze-embeddings", "--no-freeze-embeddings"])
def test_only_frozen_embeddings_stay_unchanged(in_process, tmp_path, tiny, flag):
    flags = ["--model", tiny, "--data", "builtin", "--max-train-samples", "64", "--epochs", "1"]
    run = in_process(*flags, flag, "--learning-rate", "1e-3", "--output-dir", "run")
    assert run.code == 0, run.err
    names = ["negative", "positive"]
    after = encoder.load(str(tmp_path / "run" / "model"), names, None).model.state_dict()
    before = encoder.load(str(tiny), names, None).model.state_dict()
    unchanged = {name for name in before if torch.equal(before[name], after[name])}
    embeddings = {"distilbert.embeddings.word_embeddings.weight"}
    # The bias of a key adds the same value to all scores of a query, so attention ignores it.
    assert unchanged - {name for name in before if "k_lin.bias" in name} == (
        embeddings if flag == "--freeze-embeddings" else set()
    )


def test_a_run_with_dropout_0_is_that_of_a_checkpoint_without_dropout(in_process, tmp_path, tiny):
    flags = ["--data", "builtin", "--max-train-samples", "64", "--epochs", "1", "--dropout"]
    weights = []
    for name, model, dropout in (
        ("a", training.no_dropout(tmp_path / "plain"), "0"),
        ("b", tiny, "0"),
        ("c", tiny, "0.1"),
    ):
        run = in_process("--model", model, *flags, dropout, "--output-dir", name)
        assert run.code == 0, run.err
        weights.append((tmp_path / name / "model" / "model.safetensors").read_bytes())
    assert weights[0] == weights[1] != weights[2]


# ---- Precision and compilation ----


def test_bf16_computes_in_bf16_and_keeps_the_weights_in_float32(tmp_path):
    training.write_sentences(tmp_path, 32)
    model = training.load_head(training.no_dropout(tmp_path / "model"))
    tokenizer = encoder.load("builtin", ["0", "1"], None).tokenizer
    tokens = data.tokenize_split(data.load(str(tmp_path)), "train", tokenizer, 64)
    (batch,) = batches.collate(tokens.__getitems__(list(range(32))), 0, 32)
    fp32, _ = script.forward(model, batch, "fp32")
    bf16, _ = script.forward(model, batch, "bf16")
    assert bf16.dtype == torch.float32 and {p.dtype for p in model.parameters()} == {torch.float32}
    assert 1e-5 < (fp32 - bf16).abs().max() < 0.05


@pytest.mark.long
def test_compile_without_a_compiler_ends_with_one_error_line(finetune, tmp_path, tiny):
    flags = ["--model", tiny, "--data", "builtin", "--max-train-samples", "32", "--compile"]
    env = {"CC": "/no/compiler", "CXX": "/no/compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    run = finetune(*flags, "--output-dir", "run", **env)
    assert run.code == 1 and len(run.errors) == 1 and "Traceback" not in run.err, run.err
    assert run.errors[0].startswith("error: --compile: ")


@pytest.mark.slow
def test_compile_makes_at_most_4_programs_for_batches_of_40_lengths(tmp_path):
    model = training.load_head(save_tiny(tmp_path / "model"))
    settings = training.make_settings("--learning-rate", "1e-3")
    speed.prepare(model, "cpu", "fp32", compiled=True)
    optimizer = script.make_optimizer(model, settings)
    torch._dynamo.utils.counters.clear()
    for tokens in range(4, 44):
        rows = [{"input_ids": [1000] * (tokens - row), "labels": row % 2} for row in range(3)]
        batch = data.Batch(batches.collate(rows, 0, 3), 3, np.arange(3))
        model.train()
        script.training_step(model, optimizer, batch, settings)
        model.eval()
        with torch.inference_mode():
            script.forward(model, batch.micro_batches[0], "fp32")
    programs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    print(f"{programs} programs")
    assert 1 <= programs <= 4


@pytest.mark.slow
def test_a_compiled_model_keeps_the_loss_and_the_weight_names(finetune, tmp_path, tiny):
    flags = ["--model", tiny, "--data", "builtin", "--max-train-samples", "300", "--epochs", "1"]
    losses = []
    for name, compiled in (("a", "--no-compile"), ("b", "--compile")):
        run = finetune(*flags, compiled, "--output-dir", name, timeout=900)
        assert run.code == 0, run.err
        losses.append(json.loads((tmp_path / name / "run.json").read_text())["result"]["loss"])
        assert encoder.load(str(tmp_path / name / "model"), ["x", "y"], None).model
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)
