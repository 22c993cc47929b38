"""With the Hub, without it, and with one that lies: what is used, what is replaced, how soon."""

import json
import time
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from conftest import ROWS, save_tiny, start
from hub_server import hub

MODEL = "distilbert/distilbert-base-uncased"
SHORT = ["--max-train-samples", "32", "--epochs", "1"]
CARD = """---
configs:
- config_name: sst2
  data_files:
  - {split: train, path: sst2/train-*}
  - {split: validation, path: sst2/validation-*}
  - {split: test, path: sst2/test-*}
dataset_info:
- config_name: sst2
  features:
  - {name: sentence, dtype: string}
  - {name: label, dtype: {class_label: {names: {'0': negative, '1': positive}}}}
  - {name: idx, dtype: int32}
---
"""


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """The default model and GLUE as the Hub lays them out, small."""
    model = save_tiny(tmp_path_factory.mktemp("hub_model"))
    glue = tmp_path_factory.mktemp("glue")
    (glue / "sst2").mkdir()
    (glue / "README.md").write_text(CARD)
    for split in ("train", "validation", "test"):
        labels = [-1 if split == "test" else int(label == "positive") for _, label in ROWS]
        table = {"sentence": [t for t, _ in ROWS], "label": labels, "idx": range(len(ROWS))}
        path = glue / "sst2" / f"{split}-00000-of-00001.parquet"
        pyarrow.parquet.write_table(pyarrow.table({k: list(v) for k, v in table.items()}), path)
    return {("models", MODEL): model, ("datasets", "nyu-mll/glue"): glue}


def environment(server, home: Path) -> dict[str, str]:
    return {"HF_ENDPOINT": server.url, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"}


def run_record(tmp_path: Path) -> dict:
    return json.loads((tmp_path / "run" / "run.json").read_text())


def test_the_unchanged_command_trains_the_hubs_model_on_the_hubs_sst2_then_from_the_cache(
    finetune, tmp_path, repositories
):
    with hub(repositories) as server:
        run = finetune(
            "--epochs", "3", "--output-dir", "run", **environment(server, tmp_path / "h")
        )
        assert run.code == 0, run.err
    assert [line[:22] for line in run.out.splitlines()] == [
        f"epoch {epoch}: {{'accuracy': " for epoch in range(3)
    ]
    assert "stands in" not in run.err and "the test split has no labels" in run.err
    record = run_record(tmp_path)
    assert record["replaced"] == {} and record["labels"] == ["negative", "positive"]
    assert record["sentences"] == {"train": 40, "validation": 40}
    config = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert config["architectures"] == ["DistilBertForSequenceClassification"]
    assert config["id2label"] == {"0": "negative", "1": "positive"}

    # The Hub is gone; what it gave is in the cache, and nothing is asked of it after that.
    for mode in (503, 429):
        with hub(repositories, mode) as server:
            flags = ["--epochs", "3", "--output-dir", f"run {mode}"]
            started = time.monotonic()
            again = finetune(*flags, **environment(server, tmp_path / "h"))
            seconds = time.monotonic() - started
        assert again.code == 0 and again.out == run.out, again.err
        assert "stands in" not in again.err
        # Apart from what its library asks for itself, once a day.
        assert set(server.asked) - {"/api/agent-harnesses"} == {f"/api/models/{MODEL}"}
        print(f"all cached, the Hub answers {mode}: {seconds:.1f} s for the run")


def test_the_default_model_and_data_are_replaced_each_on_its_own(finetune, tmp_path, repositories):
    only_model = {key: value for key, value in repositories.items() if key[0] == "models"}
    home = tmp_path / "h"
    with hub(only_model) as server:  # Puts the model in the cache.
        flags = [*SHORT, "--data", "builtin", "--output-dir", "first"]
        run = finetune(*flags, **environment(server, home))
        assert run.code == 0, run.err
    with hub({}, mode=503) as server:
        run = finetune(*SHORT, "--output-dir", "run", **environment(server, home))
    assert run.code == 0, run.err
    assert run_record(tmp_path)["replaced"] == {"data": "sst2"}
    assert run_record(tmp_path)["settings"]["model"] == MODEL


def test_a_cache_that_holds_the_default_model_in_part_is_not_used(finetune, tmp_path, repositories):
    snapshots = tmp_path / "h" / "hub" / "models--distilbert--distilbert-base-uncased"
    (snapshots / "refs").mkdir(parents=True)
    (snapshots / "refs" / "main").write_text("0" * 40)
    (snapshots / "snapshots" / ("0" * 40)).mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        source = repositories["models", MODEL] / name
        (snapshots / "snapshots" / ("0" * 40) / name).write_bytes(source.read_bytes())
    with hub(repositories, mode=503) as server:
        run = finetune(*SHORT, "--output-dir", "run", **environment(server, tmp_path / "h"))
    assert run.code == 0, run.err
    assert run_record(tmp_path)["replaced"] == {"model": MODEL, "data": "sst2"}


def test_a_refusal_of_the_hub_itself_is_an_error_and_no_stand_in(finetune, tmp_path, repositories):
    with hub(repositories, mode=429) as server:
        run = finetune("--output-dir", "run", **environment(server, tmp_path / "h"))
    check_error(run, tmp_path, "the Hub: it refused to answer")


def seconds_to_the_decision(flags: list[str], tmp_path: Path, **environment: str) -> float:
    """From the start of the real program to the line that says what stands in."""
    process = start(tmp_path, *flags, **environment)
    started = time.monotonic()
    seconds = next(
        (time.monotonic() - started for line in process.stderr if "stands in" in line), None
    )
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert out.count("epoch ") == 1 and seconds is not None
    assert err.strip().splitlines()[-1].startswith("NOTE: what ships with this project")
    return seconds


@pytest.mark.parametrize("mode", ["no server", "silent", "trickle", 503, 403, 407, "web page"])
def test_where_the_hub_is_out_of_reach_builtin_stands_in_within_20_seconds(
    tmp_path, repositories, mode
):
    flags = ["--epochs", "1", "--max-train-samples", "64", "--output-dir", "run"]
    with hub(repositories, mode=mode) as server:
        settings = environment(server, tmp_path / "h")
        if mode == "no server":
            settings["HF_ENDPOINT"] = "http://127.0.0.1:9"
        seconds = seconds_to_the_decision(flags, tmp_path, **settings)
    print(f"{mode}: decided after {seconds:.1f} s")
    assert seconds < 20
    assert run_record(tmp_path)["replaced"] == {"model": MODEL, "data": "sst2"}


def test_a_run_that_a_stand_in_began_goes_on_with_it_where_the_hub_is_back(
    finetune, tmp_path, repositories
):
    flags = ["--epochs", "500", "--max-train-samples", "64", "--output-dir", "run", "--resume"]
    with hub(repositories, mode=503) as server:
        process = start(tmp_path, *flags, **environment(server, tmp_path / "h"))
        assert process.stdout.readline().startswith("epoch 0")
        process.terminate()
        printed = process.communicate(timeout=60)[0].count("epoch")
    with hub(repositories) as server:
        other = start(tmp_path, *flags, **environment(server, tmp_path / "h"))
        assert other.stdout.readline().startswith(f"epoch {1 + printed}")
        other.terminate()
        _, err = other.communicate(timeout=60)
        assert other.returncode == 143 and "resumed from step " in err and "stands in" in err
        assert not [path for path in server.asked if "resolve" in path]
        # And one that the Hub's model began does not go on with a stand-in.
        began = [*flags[:5], "other", "--resume"]
        first = finetune(*began[:1], "1", *began[2:], **environment(server, tmp_path / "h"))
        assert first.code == 0, first.err
    record = json.loads((tmp_path / "other" / "run.json").read_text())
    (tmp_path / "other" / "run.json").write_text(json.dumps(record | {"result": None}))
    with hub({}, mode=503) as server:
        run = finetune(*began[:1], "1", *began[2:], **environment(server, tmp_path / "empty"))
    assert run.code == 2 and "stands in" not in run.err, run.err
    assert "--data sst2: cannot be fetched" in run.errors[0]


def check_error(run, tmp_path: Path, message: str) -> None:
    assert run.code == 2, run.err
    assert len(run.errors) == 1 and message in run.errors[0], run.err
    assert "Traceback" not in run.err and "stands in" not in run.err and run.out == ""
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--model", "no/such-model"], "--model no/such-model: neither a folder here nor a model"),
        (["--data", "no/such-data"], "--data no/such-data: neither a file or folder here nor"),
        (["--data", "nyu-mll/glue:no-such-task"], "no-such-task"),
    ],
)
def test_a_wrong_name_with_the_hub_up_is_an_error(finetune, tmp_path, repositories, flags, message):
    with hub(repositories) as server:
        run = finetune(*flags, "--output-dir", "run", **environment(server, tmp_path / "h"))
    check_error(run, tmp_path, message)


def test_a_download_that_is_cut_half_way_is_an_error_and_no_stand_in(
    finetune, tmp_path, repositories
):
    with hub(repositories, mode="cut") as server:
        run = finetune("--output-dir", "run", **environment(server, tmp_path / "h"))
    check_error(run, tmp_path, f"--model {MODEL}: the download broke off")


@pytest.mark.parametrize("flags", [["--model", MODEL], ["--data", "sst2"]])
def test_a_name_that_the_user_gave_is_never_replaced(finetune, tmp_path, repositories, flags):
    with hub(repositories, mode=503) as server:
        run = finetune(*flags, "--output-dir", "run", **environment(server, tmp_path / "h"))
    assert run.code == 2, run.err
    assert len(run.errors) == 1 and flags[1] in run.errors[0]
    assert not (tmp_path / "run").exists()


def test_a_hub_data_set_of_pairs_keeps_its_own_order_of_labels(finetune, tmp_path, repositories):
    folder = tmp_path / "pairs"
    folder.mkdir()
    lines = [{"premise": t, "hypothesis": "good", "Label": label} for t, label in ROWS]
    (folder / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    # In capitals: its order of labels belongs to the column that is read, however it was found.
    names = "{class_label: {names: {'0': positive, '1': negative}}}"
    (folder / "README.md").write_text(
        "---\ndataset_info:\n  features:\n  - {name: premise, dtype: string}\n"
        f"  - {{name: hypothesis, dtype: string}}\n  - {{name: Label, dtype: {names}}}\n---\n"
    )
    with hub(repositories | {("datasets", "me/pairs"): folder}) as server:
        flags = ["--data", "me/pairs", "--epochs", "1", "--output-dir", "run"]
        run = finetune(*flags, **environment(server, tmp_path / "h"))
    assert run.code == 0, run.err
    assert run_record(tmp_path)["labels"] == ["positive", "negative"]
    assert run_record(tmp_path)["sentences"] == {"train": 36, "validation": 4}
