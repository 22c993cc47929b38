"""The benchmark measures what it says: same work for all, the formula right, nothing skipped."""

import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from harness.helpers import ROOT, save_tiny
from harness.hub_server import hub
from test_hub import MODEL, environment, repositories  # noqa: F401
from torch.utils.flop_counter import FlopCounterMode
from transformers import DistilBertConfig, DistilBertForSequenceClassification

sys.path.insert(0, str(ROOT / "benchmarks"))

import checkpoints
import measure
import much_data
import predicting
import profile_step
import several
import speed
import work
from contenders import CONTENDERS

from inputs import encoder
from system.speed import prepare
from training import checkpoint, run_folder

TINY = DistilBertConfig(dim=32, hidden_dim=64, n_layers=2, n_heads=2)


@pytest.fixture(scope="module")
def rows():
    return work.make_sentences(640)


def test_the_formula_of_useful_operations_agrees_with_a_count_of_them():
    model = DistilBertForSequenceClassification(DistilBertConfig(n_layers=2))
    model.distilbert.embeddings.requires_grad_(False)
    batch = {"input_ids": torch.full((2, 24), 7), "attention_mask": torch.ones(2, 24)}
    with FlopCounterMode(display=False) as counter:
        hidden = model.distilbert.embeddings(batch["input_ids"]).requires_grad_()
        for layer in model.distilbert.transformer.layer:
            hidden = layer(hidden)
        hidden.sum().backward()
    counted = counter.get_total_flops()
    assert work.useful_flops(model.config, np.array([24, 24])) == pytest.approx(counted, rel=1e-6)


def test_what_is_said_to_be_left_out_is_what_a_prepared_model_does_not_compute(monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")  # mm is counted.
    model = DistilBertForSequenceClassification(TINY).eval()
    batch = {"input_ids": torch.full((2, 24), 7), "attention_mask": torch.ones(2, 24)}
    counted = []
    for _ in range(2):
        with FlopCounterMode(display=False) as counter:
            model(**batch).logits.sum().backward()
        counted.append(counter.get_total_flops())
        prepare(model, "cpu", "fp32")
    left_out = work.left_out_flops(TINY, np.array([24, 24]))
    assert counted[0] - counted[1] == pytest.approx(left_out, rel=1e-6)


def test_sentences_have_the_lengths_of_sst2_where_it_is_not_there(monkeypatch, tmp_path):
    monkeypatch.setattr(work, "SST2", tmp_path)
    lengths = work.lengths_of(work.make_sentences())
    assert len(lengths) == 67_349 and lengths.max() == 66
    assert lengths.mean() == pytest.approx(13.3, abs=0.1)
    recorded = (ROOT / "benchmarks" / "sst2_lengths.json").read_text()
    assert np.bincount(lengths).tolist() == json.loads(recorded)
    longer = work.lengths_of(work.make_sentences(5_000, 10.2))
    assert longer.mean() == pytest.approx(135, rel=0.05) and longer.max() <= 512


def test_the_few_timed_batches_have_the_mean_length_of_the_epoch_that_they_stand_for():
    lengths = np.random.default_rng(0).integers(3, 60, 20_000)
    order = np.argsort(lengths + np.random.default_rng(1).normal(0, 2, 20_000))
    picked = work.pick(order, lengths, 32, 40)
    assert len(picked) == 40 + work.WARM_UP and all(len(batch) == 32 for batch in picked)
    assert lengths[picked[0]].max() == lengths.max()
    assert lengths[np.concatenate(picked[work.WARM_UP :])].mean() == pytest.approx(
        lengths.mean(), rel=0.02
    )


@pytest.mark.parametrize("name", CONTENDERS)
def test_each_contender_trains_and_is_stopped_after_the_steps_that_are_timed(name, rows):
    torch.manual_seed(0)
    model = DistilBertForSequenceClassification(TINY)
    before = model.distilbert.transformer.layer[0].ffn.lin1.weight.detach().clone()
    sizes = []
    model.register_forward_pre_hook(
        lambda _, args, batch: sizes.append(len(batch["attention_mask"])), with_kwargs=True
    )
    found = measure.measure(name, model, rows, 8, 4, time.time())
    assert sum(sizes) == 8 * (work.WARM_UP + 4)
    assert not torch.equal(before, model.distilbert.transformer.layer[0].ffn.lin1.weight)
    assert found["sentences_per_second"] > 0 and found["peak_memory_mb"] > 100
    assert 0 <= found["padding"] < 1
    if name == "tutorial's loop":
        assert found["padding"] > 0.5


@pytest.mark.long
def test_the_tutorial_runs_as_a_tutorial_does(tmp_path, repositories):  # noqa: F811
    tokenizer = save_tiny(tmp_path / "bert")
    served = repositories | {("models", "google-bert/bert-base-uncased"): tokenizer}
    with hub(served) as server:
        done = subprocess.run(
            [sys.executable, str(ROOT / "benchmarks" / "tutorial.py")],
            env=os.environ | environment(server, tmp_path / "h"),
            capture_output=True,
            text=True,
            timeout=300,
        )
    assert done.returncode == 0, done.stderr
    assert [line[:22] for line in done.stdout.splitlines()] == [
        f"epoch {epoch}: {{'accuracy': " for epoch in range(3)
    ]


def test_the_tables_in_the_readmes_are_made_of_the_recorded_rounds():
    page = (ROOT / "benchmarks" / "README.md").read_text()
    tables = {}
    for name, make in (("speed", speed.comparison), ("scaling", speed.growth)):
        record = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())
        tables[name] = record["table"]
        assert make(record["rounds"]).splitlines() == tables[name]
        assert "\n".join(tables[name]).strip() in page
    short = [line.split() for line in (ROOT / "README.md").read_text().splitlines()]
    for line in tables["speed"][1 : tables["speed"].index("")]:
        name, rest = line.split("(")[0].split(), line.split(")")[1].split()
        assert [*name, rest[2], rest[4]] in short  # Contender, batch, sentences/s, share, memory.
    for name, make, part in (
        ("checkpoints", checkpoints.table, "found"),
        ("several", several.table, "rounds"),
        ("much_data", much_data.table, "found"),
        ("predicting", predicting.table, "found"),
    ):
        record = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())
        assert make(record[part]).splitlines() == record["table"]
        for text in (page, (ROOT / "README.md").read_text()):
            assert "\n".join(record["table"]) in text


@pytest.mark.long
def test_the_benchmark_of_checkpoints_times_each_write_of_a_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checkpoints, "new_model", lambda: DistilBertForSequenceClassification(TINY))
    monkeypatch.setattr(checkpoints, "SST2", tmp_path)
    for module, name in ((checkpoint, "save"), (encoder, "save"), (run_folder, "finish")):
        monkeypatch.setattr(module, name, getattr(module, name))  # Put back afterwards.
    found = checkpoints.measure(quick=True)
    sizes = {part: [write["mb"] for write in found["writes"][part]] for part in checkpoints.PARTS}
    assert len(sizes["checkpoint"]) >= 1 and len(sizes["kept model"]) == 1
    weights = sum(p.numel() for p in DistilBertForSequenceClassification(TINY).parameters())
    assert sizes["checkpoint"][0] == pytest.approx(3 * 4 * weights / 1e6, rel=0.05)
    assert 0 < found["read_seconds"] < found["seconds"]
    assert not list(tmp_path.iterdir())


def test_the_profile_of_a_step_has_the_parts_that_it_names(rows, monkeypatch):
    monkeypatch.setattr(
        profile_step, "new_model", lambda: DistilBertForSequenceClassification(TINY)
    )
    monkeypatch.setattr(profile_step, "STEPS", 2)
    for way in ("before", "after"):
        *parts, batches = profile_step.prepare(way, rows)
        assert profile_step.run(*parts, batches) > 0
        shares = profile_step.shares(*parts, batches)
        assert sum(shares.values()) == pytest.approx(1)
        assert min(share for part, share in shares.items() if part != "word embeddings") > 0


@pytest.mark.slow
def test_ten_times_the_data_takes_little_more_memory_and_is_tokenized_once():
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "much_data.py"), "--quick"],
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((ROOT / "benchmarks" / "results" / "much_data-quick.json").read_text())
    print("\n".join(found["table"]))
    little, much = (much_data.both(one) for one in found["found"])
    for few, many in zip(little, much, strict=True):
        for before, after in zip(few, many, strict=True):
            assert after["VmHWM"] < 1.5 * before["VmHWM"]
    second = found["found"][1]["second"]
    assert second["seconds_to_step"] < found["found"][1]["first"]["seconds_to_step"] / 2


@pytest.mark.slow
def test_the_quick_benchmark_ends_in_two_minutes_with_a_table_and_a_record():
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "speed.py"), "--quick"],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - started < 150  # A noisy machine may take some longer.
    record = json.loads((ROOT / "benchmarks" / "results" / "quick.json").read_text())
    assert record["machine"]["versions"]["torch"] and record["table"] == done.stdout.splitlines()
    for name in CONTENDERS:
        assert name in done.stdout
