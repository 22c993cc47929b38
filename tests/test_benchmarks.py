"""The benchmarks give every contender the same work, count operations right and time every step."""

import json
import os
import statistics
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from harness.helpers import PAGES, README, ROOT, readme_row, save_tiny
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

RESULTS = ROOT / "benchmarks" / "results"
TINY = DistilBertConfig(dim=32, hidden_dim=64, n_layers=2, n_heads=2)


@pytest.fixture(scope="module")
def rows():
    return work.make_sentences(640)


def test_the_formula_of_useful_operations_agrees_with_a_count():
    model = DistilBertForSequenceClassification(DistilBertConfig(n_layers=2))
    model.distilbert.embeddings.requires_grad_(False)
    batch = {"input_ids": torch.full((2, 24), 7), "attention_mask": torch.ones(2, 24)}
    with FlopCounterMode(display=False) as counter:
        hidden = model.distilbert.embeddings(batch["input_ids"]).requires_grad_()
        for layer in model.distilbert.transformer.layer:
            hidden = layer(hidden)
        hidden.sum().backward()
    flops = counter.get_total_flops()
    assert work.useful_flops(model.config, np.array([24, 24])) == pytest.approx(flops, rel=1e-6)


def test_a_prepared_model_skips_as_many_operations_as_the_benchmark_says(monkeypatch):
    # FlopCounterMode counts mm, and not the operator of oneDNN.
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    model = DistilBertForSequenceClassification(TINY).eval()
    batch = {"input_ids": torch.full((2, 24), 7), "attention_mask": torch.ones(2, 24)}
    flops = []
    for _ in range(2):
        with FlopCounterMode(display=False) as counter:
            model(**batch).logits.sum().backward()
        flops.append(counter.get_total_flops())
        prepare(model, "cpu", "fp32")
    left_out = work.left_out_flops(TINY, np.array([24, 24]))
    assert flops[0] - flops[1] == pytest.approx(left_out, rel=1e-6)


def test_the_sentences_have_sst2s_lengths():
    lengths = work.lengths_of(work.make_sentences())
    assert len(lengths) == 67_349 and lengths.max() == 66
    assert lengths.mean() == pytest.approx(13.3, abs=0.1)
    counts = (ROOT / "benchmarks" / "sst2_lengths.json").read_text()
    assert np.bincount(lengths).tolist() == json.loads(counts)
    longer = work.lengths_of(work.make_sentences(5_000, 10.2))
    assert longer.mean() == pytest.approx(135, rel=0.05) and longer.max() <= 512


def test_the_timed_batches_have_the_mean_length_of_their_epoch():
    lengths = np.random.default_rng(0).integers(3, 60, 20_000)
    order = np.argsort(lengths + np.random.default_rng(1).normal(0, 2, 20_000))
    batches = work.pick(order, lengths, 32, 40)
    assert len(batches) == 40 + work.WARM_UP and all(len(batch) == 32 for batch in batches)
    assert lengths[batches[0]].max() == lengths.max()
    assert lengths[np.concatenate(batches[work.WARM_UP :])].mean() == pytest.approx(
        lengths.mean(), rel=0.02
    )


@pytest.mark.parametrize(
    "name, precision",
    [(name, "fp32") for name in CONTENDERS]
    # The last three rows of the benchmark are measured in bf16, too.
    + [(name, "bf16") for name, *_ in speed.TURNS[-3:]],
)
def test_each_contender_trains_and_stops_after_the_timed_steps(name, precision, rows):
    # accelerate keeps the precision of the first contender in a process.
    AcceleratorState._reset_state(reset_partial_state=True)
    torch.manual_seed(0)
    model = DistilBertForSequenceClassification(TINY)
    before = model.distilbert.transformer.layer[0].ffn.lin1.weight.detach().clone()
    sizes = []
    model.register_forward_pre_hook(
        lambda _, args, batch: sizes.append(len(batch["attention_mask"])), with_kwargs=True
    )
    product_types = set()
    model.distilbert.transformer.layer[0].ffn.lin1.register_forward_hook(
        lambda _, args, output: product_types.add(output.dtype)
    )
    result = measure.measure(name, model, rows, 8, 4, precision, time.time())
    assert product_types == {torch.float32 if precision == "fp32" else torch.bfloat16}
    assert sum(sizes) == 8 * (work.WARM_UP + 4)
    assert not torch.equal(before, model.distilbert.transformer.layer[0].ffn.lin1.weight)
    assert result["sentences_per_second"] > 0 and result["peak_memory_mb"] > 100
    assert 0 <= result["padding"] < 1
    if name == "tutorial's loop":
        assert result["padding"] > 0.5


@pytest.mark.long
def test_the_tutorials_loop_prints_a_line_an_epoch(tmp_path, repositories):  # noqa: F811
    tokenizer = save_tiny(tmp_path / "bert")
    all_repositories = repositories | {("models", "google-bert/bert-base-uncased"): tokenizer}
    with hub(all_repositories) as server:
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


def test_a_share_of_the_limit_is_of_the_rows_own_precision_and_bf16_is_compared_with_fp32():
    others = ("padding", "peak_memory_mb", "first_step_seconds", "useful_tokens_per_second")
    contenders = [("Trainer", 32, 40), ("accelerate", 32, 40), ("this project", 32, 40)]
    turns, results = speed.turns_of(contenders, has_bf16=True), {}
    for key, (name, _, _, precision) in turns.items():
        gflops = 60.0 if precision == "fp32" else 90.0
        results[key] = dict.fromkeys(others, 1.0) | {
            "precision": precision,
            "sentences_per_second": gflops / (1 if name == "this project" else 3),
            "evaluated_per_second": 4 * gflops,
            "useful_gflops": gflops,
            "computed_gflops": gflops,
        }
    limit = {"fp32": {"torch": 80.0, "oneDNN": 100.0}, "bf16": {"torch": 180.0}}
    text = speed.comparison([{"limit": limit} | results])
    lines = [line.split() for line in text.splitlines()]
    assert [line[-4] for line in lines[1:7]] == ["60%"] * 3 + ["50%"] * 3
    assert ["Trainer", "@32", "3.00", "4.50"] in lines
    assert ["Trainer,", "bf16", "@32", "2.00", "3.00"] in lines
    assert "this project, bf16 @32: 1.50 times its rate in fp32\n" in text


@pytest.mark.parametrize(
    "name, table, key",
    [
        ("speed-zen5", speed.comparison, "rounds"),
        ("speed-zen4", speed.comparison, "rounds"),
        ("speed-zen3", speed.comparison, "rounds"),
        ("scaling", speed.growth, "rounds"),
        ("several", several.table, "rounds"),
        ("checkpoints", checkpoints.table, "found"),
        ("much_data", much_data.table, "found"),
        ("predicting", predicting.table, "found"),
    ],
)
def test_a_page_shows_the_table_of_the_recorded_measurements(name, table, key):
    record = json.loads((RESULTS / f"{name}.json").read_text())
    assert table(record[key]).splitlines() == record["table"]
    assert any("\n".join(record["table"]) in page.read_text("utf-8") for page in PAGES)


@pytest.mark.parametrize("processor, column", [("zen5", 0), ("zen4", 1), ("zen3", 2)])
def test_the_readmes_speed_rows_agree_with_the_recorded_rounds(processor, column):
    rounds = json.loads((RESULTS / f"speed-{processor}.json").read_text())["rounds"]
    contenders = {
        "the original tutorial's loop": "tutorial's loop",
        "accelerate's example": "accelerate's example",
        "`Trainer` grouped by length, float32": "Trainer, grouped by length",
        "`Trainer` grouped by length, bf16": "Trainer, grouped by length, bf16",
    }

    def ratio(own: str, other: str, digits: int) -> str:
        rates = [[results[n]["sentences_per_second"] for n in (own, other)] for results in rounds]
        return f"{statistics.median(own / other for own, other in rates):.{digits}f}"

    for title, contender in contenders.items():
        _, batch, *cells = readme_row(title)
        precision, cell = ", bf16" if "bf16" in title else "", cells[column]
        own, other = f"this project{precision} @{batch}", f"{contender} @{batch}"
        if other in rounds[0]:
            assert cell == ratio(own, other, len(cell.partition(".")[2]))
        else:
            assert cell in ("not measured", "no bf16 units")
    if processor == "zen4":
        times = ratio("this project, bf16 @32", "this project @32", 2)
        assert f"Training in bf16 is {times} times as fast as float32 on a Zen 4" in README


@pytest.mark.long
def test_the_benchmark_of_checkpoints_times_each_write_of_a_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checkpoints, "new_model", lambda: DistilBertForSequenceClassification(TINY))
    monkeypatch.setattr(checkpoints, "SST2", tmp_path)
    # The benchmark replaces these functions, and monkeypatch restores them.
    for module, name in ((checkpoint, "save"), (encoder, "save"), (run_folder, "finish")):
        monkeypatch.setattr(module, name, getattr(module, name))
    result = checkpoints.measure(quick=True)
    sizes = {part: [write["mb"] for write in result["writes"][part]] for part in checkpoints.PARTS}
    assert len(sizes["checkpoint"]) >= 1 and len(sizes["kept model"]) == 1
    weights = sum(p.numel() for p in DistilBertForSequenceClassification(TINY).parameters())
    assert sizes["checkpoint"][0] == pytest.approx(3 * 4 * weights / 1e6, rel=0.05)
    assert 0 < result["read_seconds"] < result["seconds"]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_profile_of_a_step_has_time_in_every_part(rows, monkeypatch, precision):
    monkeypatch.setattr(
        profile_step, "new_model", lambda: DistilBertForSequenceClassification(TINY)
    )
    monkeypatch.setattr(profile_step, "STEPS", 2)
    for variant in ("before", "after"):
        *parts, batches = profile_step.prepare(variant, precision, rows)
        assert profile_step.run(*parts, batches) > 0
        shares = profile_step.shares(*parts, batches)
        assert sum(shares.values()) == pytest.approx(1)
        assert min(share for part, share in shares.items() if part != "word embeddings") > 0


@pytest.mark.slow
def test_ten_times_the_data_needs_little_more_memory_and_is_tokenized_once():
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "much_data.py"), "--quick"],
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    record = json.loads((RESULTS / "much_data-quick.json").read_text())
    print("\n".join(record["table"]))
    few, many = record["found"]
    processes = zip(*map(much_data.memory_of_starts, (few, many)), strict=True)
    for process_with_few, process_with_many in processes:
        for small, large in zip(process_with_few, process_with_many, strict=True):
            assert large["VmHWM"] < 1.5 * small["VmHWM"]
    assert many["second"]["seconds_to_step"] < many["first"]["seconds_to_step"] / 2


@pytest.mark.slow
def test_the_quick_benchmark_records_every_contender_in_every_precision():
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "speed.py"), "--quick"],
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    record = json.loads((RESULTS / "quick.json").read_text())
    assert record["machine"]["versions"]["torch"] and record["table"] == done.stdout.splitlines()
    (results,) = record["rounds"]
    assert list(results.pop("limit")) == measure.precisions()
    turns = speed.turns_of(speed.QUICK, "bf16" in measure.precisions())
    assert list(results) == list(turns)
    for key, (*_, precision) in turns.items():
        assert results[key]["precision"] == precision
        assert results[key]["sentences_per_second"] > 0
