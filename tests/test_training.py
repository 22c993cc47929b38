"""The training loop: equal to transformers' Trainer, to itself, and to what it says it does."""

import collections
import concurrent.futures
import functools
import hashlib
import json
import math
import random
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROWS, limited, save_tiny
from torch.utils.data import DataLoader

import data
import finetune as script
from inputs import encoder as models
from system import speed as faster
from training import checkpoint, run_folder
from training.settings import read_settings


def make_settings(*flags: str) -> SimpleNamespace:
    settings = read_settings(vars(script), ["--model", "builtin", "--data", "builtin", *flags])
    settings.device, settings.precision = "cpu", "fp32"
    return settings


def make_tokens(tmp_path, count: int) -> tuple:
    """`count` sentences of random words, with labels that can be learned."""
    words = ["film", "plot", "warm", "cold", "fine", "dull", "a", "the", "of", "and", "with"]
    choose = random.Random(0)
    texts = [" ".join(choose.choices(words, k=choose.randint(2, 12))) for _ in range(count)]
    rows = [(text, int("warm" in text)) for text in texts]
    for name in ("train", "dev"):
        lines = "".join(f"{text},{label}\n" for text, label in rows)
        (tmp_path / f"{name}.csv").write_text("text,label\n" + lines)
    text = data.load(str(tmp_path))
    _, tokenizer, _ = models.load_model("builtin", text.labels, None)
    return data.tokenize(text.splits["train"], text.ids, tokenizer, 64, "train"), tokenizer, rows


def no_dropout(tmp_path) -> torch.nn.Module:
    folder = save_tiny(
        tmp_path / "model", dropout=0.0, attention_dropout=0.0, seq_classif_dropout=0.0
    )
    torch.manual_seed(0)
    return models.load_model(str(folder), ["0", "1"], None)[0]


def train(model, tokens, settings) -> list[dict]:
    """The first epoch as `fit` runs it."""
    faster.prepare(model, settings)
    batches = data.epoch_batches(tokens.lengths, settings.batch_size, settings.seed, 0)
    loader = data.make_loader(tokens, batches, 0, settings.micro_batch_size, 64, settings.device)
    optimizer, state = script.make_optimizer(model, settings), checkpoint.new_state({})
    steps = settings.epochs * len(batches)
    lines = script.train_epoch(model, optimizer, loader, settings, state, steps)
    return [line for line in lines if line]


def largest_difference(one: torch.nn.Module, other: torch.nn.Module) -> float:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return max((a - b).abs().max().item() for a, b in pairs)


@pytest.mark.parametrize("way", ["as it runs", "without what makes it faster"])
def test_50_losses_and_the_weights_equal_those_of_transformers_trainer(tmp_path, monkeypatch, way):
    from transformers import Trainer, TrainingArguments

    # These sentences are short; so that batches are split all the same, a CPU takes few tokens.
    most = 100 if way == "as it runs" else sys.maxsize
    monkeypatch.setattr(data, "MOST_TOKENS_ON_CPU", most)
    if way != "as it runs":
        monkeypatch.setattr(faster, "prepare", lambda model, settings: model)
    tokens, tokenizer, rows = make_tokens(tmp_path, 20 * 50 - 7)  # The last batch is smaller.
    flags = ["--batch-size", "20", "--epochs", "1", "--learning-rate", "3e-3", "--log-every", "1"]
    settings = make_settings(*flags, "--warmup", "0.1")
    ours = no_dropout(tmp_path)
    theirs = no_dropout(tmp_path)
    assert largest_difference(ours, theirs) == 0
    lines = train(ours, tokens, settings)

    order = data.epoch_batches(tokens.lengths, 20, settings.seed, 0)
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

    class InOurOrder(Trainer):
        def get_train_dataloader(self):
            encode = functools.partial(tokenizer, padding=True, return_tensors="pt")

            def collate(numbers):
                batch = encode([rows[i][0] for i in numbers], truncation=True, max_length=64)
                batch.pop("token_type_ids", None)
                return batch | {"labels": torch.tensor([rows[i][1] for i in numbers])}

            return DataLoader(range(len(rows)), batch_sampler=order, collate_fn=collate)

    trainer = InOurOrder(model=theirs, args=arguments, train_dataset=range(len(rows)))
    trainer.train()
    history = [line for line in trainer.state.log_history if "loss" in line]
    assert len(lines) == len(history) == 50
    for mine, other in zip(lines, history, strict=True):
        assert mine["learning_rate"] == pytest.approx(other["learning_rate"], rel=1e-9)
        assert mine["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)
    losses = np.array([[line["loss"] for line in run] for run in (lines, history)])
    worst = np.abs(losses[0] / losses[1] - 1).max()
    moved = largest_difference(ours, no_dropout(tmp_path))
    apart = largest_difference(ours, theirs)
    print(f"{way}: largest relative difference of 50 losses {worst:.1e}, of weights {apart:.1e}")
    print(f"the weights moved by up to {moved:.1e}")
    assert worst < 1e-5 and apart < 1e-4 < moved
    assert losses[0][-10:].mean() < losses[0][:10].mean() - 0.1  # And both have learned.


def test_micro_batches_of_4_train_as_the_whole_batch_of_32(tmp_path):
    tokens, *_ = make_tokens(tmp_path, 512 - 3)  # The last batch is smaller than the others.
    whole, micro = no_dropout(tmp_path), no_dropout(tmp_path)
    flags = ["--epochs", "1", "--learning-rate", "1e-3", "--batch-size", "32"]
    train(whole, tokens, make_settings(*flags))
    train(micro, tokens, make_settings(*flags, "--micro-batch-size", "4"))
    difference = largest_difference(whole, micro)
    print(f"largest difference of weights {difference:.1e}")
    assert 0 < difference < 1e-5


def test_a_max_grad_norm_of_0_clips_nothing(tmp_path):
    tokens, *_ = make_tokens(tmp_path, 64)
    flags = ["--epochs", "1", "--learning-rate", "1e-3", "--max-grad-norm"]
    off, never, clipped = (no_dropout(tmp_path) for _ in range(3))
    for model, most in ((off, "0"), (never, "1e9"), (clipped, "1e-9")):
        train(model, tokens, make_settings(*flags, most))
    assert largest_difference(off, never) == 0 < largest_difference(off, clipped)


def test_weights_decay_in_matrices_and_in_nothing_else(tmp_path):
    model = no_dropout(tmp_path)
    optimizer = script.make_optimizer(
        model, make_settings("--weight-decay", "0.5", "--learning-rate=1")
    )
    decayed = {
        id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]
    }
    for name, parameter in model.named_parameters():
        is_matrix = not (name.endswith("bias") or "layer_norm" in name or "LayerNorm" in name)
        assert decayed[id(parameter)] == (0.5 if is_matrix else 0.0), name
    assert all(group["fused"] for group in optimizer.param_groups)


def test_the_learning_rate_rises_then_falls_to_zero_as_transformers_schedule():
    from transformers import get_linear_schedule_with_warmup

    settings = make_settings("--learning-rate", "3e-5", "--warmup", "0.06")
    optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=3e-5)
    schedule = get_linear_schedule_with_warmup(optimizer, math.ceil(0.06 * 107), 107)
    for step in range(107):
        rate = script.learning_rate_at(step, 107, settings)
        assert rate == pytest.approx(schedule.get_last_lr()[0], rel=1e-12)
        optimizer.step()
        schedule.step()


def test_the_loop_reads_back_from_the_device_only_where_it_logs(tmp_path, monkeypatch):
    """Reading a value makes the processor wait for the GPU."""
    model = no_dropout(tmp_path)
    tokens, *_ = make_tokens(tmp_path, 64)
    settings = make_settings("--batch-size", "8", "--epochs", "1", "--learning-rate", "1e-3")
    settings.log_every = 1000
    reads = []
    for name in ("item", "tolist", "__bool__", "__float__", "__int__", "cpu", "numpy"):
        real = getattr(torch.Tensor, name)

        def spy(tensor, *arguments, _real=real, **options):
            reads.append(sys._getframe(1).f_code.co_filename)
            return _real(tensor, *arguments, **options)

        monkeypatch.setattr(torch.Tensor, name, spy)
    train(model, tokens, settings)
    counts = collections.Counter(Path(file).name for file in reads)
    assert counts.pop("finetune.py") == 1  # The line that is logged at the end of the epoch.
    assert counts.keys() <= {"data.py", "dataloader.py"}  # Of batches that are made on the CPU.


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_first_bad_step(
    in_process, tmp_path, tiny
):
    run = in_process(
        *("--model", tiny, "--data", "builtin", "--output-dir", "run", "--learning-rate", "1e30"),
        *("--max-grad-norm", "1e30", "--warmup", "0", "--log-every", "5"),
    )
    assert run.code == 1 and len(run.errors) == 1, run.err
    assert "Traceback" not in run.err and run.out == ""
    assert "step 2: the loss or its gradient is not finite, at learning rate" in run.errors[0]
    assert "--learning-rate" in run.errors[0]
    assert not (tmp_path / "run" / "model").exists()


def test_weights_that_the_last_step_ruined_are_not_kept(in_process, tmp_path, tiny):
    flags = ["--model", tiny, "--data", "builtin", "--max-train-samples", "64", "--epochs", "1"]
    run = in_process(*flags, "--learning-rate", "1e39", "--output-dir", "run")
    assert run.code == 1 and "is not finite" in run.errors[0] and run.out == "", run.err
    assert not (tmp_path / "run" / "model").exists()


def test_default_folders_of_runs_started_together_are_different(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        folders = list(pool.map(run_folder._make, [None] * 3))
    assert len(set(folders)) == 3


def test_two_runs_with_one_seed_write_the_same_bytes_and_another_seed_does_not(
    finetune, in_process, tmp_path, tiny
):
    digests, fingerprints = [], []
    for name, seed, program in (("a", 1, finetune), ("b", 1, finetune), ("c", 2, in_process)):
        flags = ["--model", tiny, "--data", "builtin", "--epochs", "2", "--seed", seed]
        flags += ["--max-train-samples", "300"]
        run = program(*flags, "--output-dir", name)
        assert run.code == 0, run.err
        weights = tmp_path / name / "model" / "model.safetensors"
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        losses = [line.get("loss", line.get("eval_loss")) for line in map(json.loads, lines)]
        record = json.loads((tmp_path / name / "run.json").read_text())
        fingerprints.append(record["fingerprints"])
        digests.append((hashlib.sha256(weights.read_bytes()).hexdigest(), losses, run.out))
    assert digests[0] == digests[1]
    assert digests[0][0] != digests[2][0]
    assert fingerprints[0]["model"] == fingerprints[2]["model"]  # Of the checkpoint, not the head.


def test_metrics_of_a_run_hold_every_logged_step_and_each_evaluation(in_process, tmp_path, tiny):
    flags = ["--model", tiny, "--data", "builtin", "--epochs", "2", "--max-train-samples", "100"]
    run = in_process(
        *flags, "--batch-size", "10", "--log-every", "4", "--keep", "last", "--output-dir", "run"
    )
    assert run.code == 0, run.err
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    assert [line["step"] for line in lines] == [4, 8, 10, 10, 12, 16, 20, 20]
    assert set(lines[0]) == {
        "step",
        "epoch",
        "loss",
        "learning_rate",
        "grad_norm",
        "samples_per_second",
    }
    assert set(lines[3]) == {"epoch", "step", "eval_loss", "eval_accuracy"}
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["result"]["epoch"] == 1
    assert record["settings"]["learning_rate"] == 3e-5 and record["settings"]["batch_size"] == 10
    said = [
        f"epoch {i}: {{'accuracy': {lines[n]['eval_accuracy']!r}}}" for i, n in ((0, 3), (1, 7))
    ]
    assert run.out.splitlines() == said


def test_evaluation_counts_every_sentence_once_as_a_pipeline_does(tmp_path):
    from transformers import pipeline

    tokens, tokenizer, rows = make_tokens(tmp_path, 45)
    model = no_dropout(tmp_path)
    settings = make_settings("--batch-size", "8")
    loader = data.make_loader(tokens, data.sorted_batches(tokens.lengths, 8), 0, 3, 64, "cpu")
    metrics, loss, said = script.evaluate(model, loader, settings)
    answers = pipeline("text-classification", model=model, tokenizer=tokenizer, top_k=None)(
        [text for text, _ in rows]
    )
    right = [
        max(answer, key=lambda a: a["score"])["label"] == str(label)
        for answer, (_, label) in zip(answers, rows, strict=True)
    ]
    assert metrics["accuracy"] == sum(right) / 45
    assert said.references.tolist() == [label for _, label in rows]
    best = [max(answer, key=lambda a: a["score"]) for answer in answers]
    assert [str(number) for number in said.predictions] == [answer["label"] for answer in best]
    assert said.probabilities == pytest.approx([answer["score"] for answer in best], abs=1e-6)
    expected = [
        -math.log({a["label"]: a["score"] for a in answer}[str(label)])
        for answer, (_, label) in zip(answers, rows, strict=True)
    ]
    assert loss == pytest.approx(np.mean(expected), rel=1e-5)


@pytest.mark.parametrize(
    "keep, scores, kept",
    [
        ("best", [0.5, 0.9, 0.7], 1),
        ("best", [0.9, 0.9, 0.7], 0),  # Of equals the earlier.
        ("last", [0.5, 0.9, 0.7], 2),
        ("macro_f1", [0.9, 0.5, 0.7], 1),  # Of which macro-F1 is one less the accuracy.
    ],
)
def test_the_epoch_that_is_kept_is_the_one_written_and_the_one_tested(
    tmp_path, monkeypatch, keep, scores, kept
):
    tokens, tokenizer, _ = make_tokens(tmp_path, 40)
    model = no_dropout(tmp_path)
    settings = make_settings("--keep", keep, "--epochs", "3", "--learning-rate", "1e-2")
    settings.max_length = 64
    weights = []

    def evaluate(model, loader, settings):
        weights.append({name: value.clone() for name, value in model.state_dict().items()})
        # The first look, an evaluation each epoch, the test with the kept model.
        accuracy = [0.0, *scores, 0.25][len(weights) - 1]
        return {"accuracy": accuracy, "macro_f1": 1 - accuracy}, 1.0, len(weights)

    monkeypatch.setattr(script, "evaluate", evaluate)
    folder = tmp_path / "run"
    folder.mkdir()
    splits = {"train": tokens, "validation": tokens, "test": tokens}
    new = checkpoint.new_state({})
    result, answers = script.fit(model, tokenizer, splits, settings, folder, new)
    if keep == "macro_f1":
        assert result.pop("macro_f1") == 1 - scores[kept]
    assert result == {"epoch": kept, "accuracy": scores[kept], "loss": 1.0, "test_accuracy": 0.25}
    assert answers == 2 + kept
    saved = models.load_model(str(folder / "model"), ["0", "1"], None)[0].state_dict()
    for name, value in saved.items():
        assert torch.equal(value, weights[1 + kept][name]) and torch.equal(value, weights[4][name])
    assert not torch.equal(weights[1]["classifier.weight"], weights[3]["classifier.weight"])


@pytest.mark.parametrize("flag", ["--freeze-embeddings", "--no-freeze-embeddings"])
def test_frozen_word_embeddings_stay_as_they_were_and_all_else_learns(
    in_process, tmp_path, tiny, flag
):
    flags = ["--model", tiny, "--data", "builtin", "--max-train-samples", "64", "--epochs", "1"]
    run = in_process(*flags, flag, "--learning-rate", "1e-3", "--output-dir", "run")
    assert run.code == 0, run.err
    names = ["negative", "positive"]
    after = models.load_model(str(tmp_path / "run" / "model"), names, None)[0].state_dict()
    before = models.load_model(str(tiny), names, None)[0].state_dict()
    same = {name for name in before if torch.equal(before[name], after[name])}
    words = {"distilbert.embeddings.word_embeddings.weight"}
    # A key's bias moves no attention: it is added to all scores of a query alike.
    assert same - {name for name in before if "k_lin.bias" in name} == (
        words if flag == "--freeze-embeddings" else set()
    )


def test_training_has_dropout_and_evaluation_has_none(tmp_path):
    tokens, *_ = make_tokens(tmp_path, 64)
    torch.manual_seed(0)
    model = models.load_model(str(save_tiny(tmp_path / "model")), ["0", "1"], None)[0]
    modes = []
    model.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    settings = make_settings("--epochs", "1", "--learning-rate", "1e-3")
    train(model, tokens, settings)
    assert modes == [True, True]
    loader = data.make_loader(tokens, data.sorted_batches(tokens.lengths, 32), 0, 32, 64, "cpu")
    first, again = (script.evaluate(model, loader, settings) for _ in range(2))
    assert modes[2:] == [False] * 4 and first[:2] == again[:2]


def test_bf16_computes_in_bf16_and_keeps_weights_in_float32(tmp_path):
    tokens, *_ = make_tokens(tmp_path, 32)
    model = no_dropout(tmp_path)
    (batch,) = data.collate(tokens.__getitems__(list(range(32))), 0, 32)
    settings = make_settings()
    whole, _ = script.forward(model, batch, settings)
    settings.precision = "bf16"
    half, _ = script.forward(model, batch, settings)
    assert half.dtype == torch.float32 and {p.dtype for p in model.parameters()} == {torch.float32}
    assert 1e-5 < (whole - half).abs().max() < 0.05


@pytest.mark.parametrize(
    "said",
    [
        "CUDA out of memory. Tried to allocate 2.00 GiB",
        "[enforce fail at alloc_cpu.cpp:120] DefaultCPUAllocator: can't allocate memory",
        "MPS backend out of memory",
        "CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate",
    ],
)
def test_each_way_of_running_out_of_memory_is_known(said):
    from system.console import is_out_of_memory

    assert is_out_of_memory(RuntimeError(said)) and is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("shapes do not match"))


def test_a_log_file_gets_lines_with_rate_loss_and_time_left(monkeypatch, capsys):
    from system import console

    monkeypatch.setattr(console, "SECONDS_BETWEEN_LOG_LINES", 0)
    with console.progress(total=200, unit="sentences", desc="training") as bar:
        bar.start -= 10
        bar.set_postfix_str("loss 0.321")
        bar.update(50)
    line = capsys.readouterr().err
    assert line == "training: 50 of 200,  5.00 sentences/s, 00:30 left, loss 0.321\n"


def test_compiling_without_a_compiler_ends_with_one_line(finetune, tmp_path, tiny):
    flags = ["--model", tiny, "--data", "builtin", "--max-train-samples", "32", "--compile"]
    none = {"CC": "/no/compiler", "CXX": "/no/compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    run = finetune(*flags, "--output-dir", "run", **none)
    assert run.code == 1 and len(run.errors) == 1 and "Traceback" not in run.err, run.err
    assert run.errors[0].startswith("error: --compile: ")


@pytest.mark.slow
def test_compiling_writes_a_few_programs_for_batches_of_forty_lengths(tmp_path):
    model = models.load_model(str(save_tiny(tmp_path / "model")), ["0", "1"], None)[0]
    settings = make_settings("--learning-rate", "1e-3")
    settings.compile = True
    faster.prepare(model, settings)
    optimizer = script.make_optimizer(model, settings)
    torch._dynamo.utils.counters.clear()
    for tokens in range(4, 44):
        rows = [{"input_ids": [1000] * (tokens - row), "labels": row % 2} for row in range(3)]
        batch = data.Batch(data.collate(rows, 0, 3), [3], None)
        model.train()
        script.training_step(model, optimizer, batch, settings)
        model.eval()
        with torch.inference_mode():
            script.forward(model, batch.micro_batches[0], settings)
    programs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    print(f"{programs} programs")
    assert 1 <= programs <= 4


@pytest.mark.slow
def test_a_compiled_model_learns_the_same_and_is_saved_under_its_own_names(
    finetune, tmp_path, tiny
):
    flags = ["--model", tiny, "--data", "builtin", "--max-train-samples", "300", "--epochs", "1"]
    losses = []
    for name, compiled in (("a", "--no-compile"), ("b", "--compile")):
        run = finetune(*flags, compiled, "--output-dir", name, timeout=900)
        assert run.code == 0, run.err
        losses.append(json.loads((tmp_path / name / "run.json").read_text())["result"]["loss"])
        assert models.load_model(str(tmp_path / name / "model"), ["x", "y"], None)
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)


def test_out_of_memory_names_the_micro_batch_size(finetune, tmp_path):
    # 12 sentences of 64 tokens, which is what a CPU takes at a time, take 1.6 GB for each of the
    # three results and gradients of the first of two layers so wide; the process may have 6.4.
    save_tiny(tmp_path / "wide", hidden_dim=2**19, n_layers=2)
    rows = "".join(f"{'word ' * 62}{text},{label}\n" for text, label in ROWS)
    (tmp_path / "a.csv").write_text("text,label\n" + rows.replace(" , ", " "))
    run = finetune(
        *("--model", "wide", "--data", "a.csv", "--output-dir", "run", "--batch-size", "40"),
        **limited(tmp_path, "RLIMIT_AS", 6 * 2**30),
    )
    assert run.code == 1 and len(run.errors) == 1, run.err
    assert "--micro-batch-size" in run.errors[0] and "Traceback" not in run.err


@pytest.mark.parametrize("first_to_fail", ["checkpoint.pt", "model"])
def test_a_full_disk_ends_the_run_with_one_line_and_keeps_what_was_whole(
    finetune, tmp_path, first_to_fail
):
    # A checkpoint of 12 MB; or one that fits, where the tokenizer of 0.7 MB does not.
    narrow = {"dim": 1, "hidden_dim": 2, "n_heads": 1} if first_to_fail == "model" else {}
    save_tiny(tmp_path / "model", **narrow)
    flags = ["--model", "model", "--data", "builtin", "--output-dir", "run", "--epochs", "1"]
    run = finetune(*flags, **limited(tmp_path, "RLIMIT_FSIZE", 2**19))
    assert run.code == 1 and len(run.errors) == 1, run.err
    assert f"{first_to_fail} could not be written" in run.errors[0] and "Traceback" not in run.err
    assert "File too large" in run.errors[0] or "os error 27" in run.errors[0]
    left = {file.name for file in (tmp_path / "run").iterdir()}
    whole = {"checkpoint.pt"} if first_to_fail == "model" else set()
    assert left == {"metrics.jsonl", "run.json"} | whole
