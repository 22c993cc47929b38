"""Stand-ins replace only default names, and only if the Hub is out of reach."""

import importlib
import json
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import datasets
import huggingface_hub
import pyarrow
import pyarrow.parquet
import pytest
from harness import warm
from harness.helpers import ROWS, save_tiny, start
from harness.hub_server import hub

import finetune as script
from inputs import hub as hub_module
from system.console import InputError, Problem

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
    """A small default model and a small GLUE, laid out as on the Hub."""
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


def read_environment() -> None:
    """Reload the settings that the Hub's libraries read from the environment at their import."""
    for module in (huggingface_hub.constants, datasets.config):
        importlib.reload(module)
    hub_module.OFFLINE_AT_START = huggingface_hub.constants.HF_HUB_OFFLINE
    huggingface_hub.HfFileSystem.clear_instance_cache()


@pytest.fixture
def in_process_at(in_process, monkeypatch) -> Callable[..., SimpleNamespace]:
    """`in_process` with a Hub: `in_process_at(server, home, *flags)`."""

    def run(server, home: Path, *flags: object) -> SimpleNamespace:
        try:
            with monkeypatch.context() as patch:
                for name, value in environment(server, home).items():
                    patch.setenv(name, value)
                read_environment()
                return in_process(*flags)
        finally:
            read_environment()

    return run


def run_record(tmp_path: Path) -> dict:
    return json.loads((tmp_path / "run" / "run.json").read_text())


@pytest.mark.parametrize("as_program", [False, pytest.param(True, marks=pytest.mark.long)])
def test_the_default_command_trains_from_the_hub_and_then_from_its_cache(
    finetune, in_process_at, tmp_path, repositories, as_program
):
    def train(server, *flags: str, as_program: bool = as_program) -> SimpleNamespace:
        if as_program:
            return finetune(*flags, **environment(server, tmp_path / "h"))
        return in_process_at(server, tmp_path / "h", *flags)

    with hub(repositories) as server:
        run = train(server, "--epochs", "3", "--output-dir", "run")
        assert run.code == 0, run.err
    assert [line[:22] for line in run.out.splitlines()] == [
        f"epoch {epoch}: {{'accuracy': " for epoch in range(3)
    ]
    assert "is used instead" not in run.err and "the test split has no labels" in run.err
    record = run_record(tmp_path)
    assert record["replaced"] == {} and record["labels"] == ["negative", "positive"]
    assert record["sentences"] == {"train": 40, "validation": 40}
    config = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert config["architectures"] == ["DistilBertForSequenceClassification"]
    assert config["id2label"] == {"0": "negative", "1": "positive"}

    # After one failed request to the Hub, the run uses the cache.
    for mode in (503, 429):
        with hub(repositories, mode) as server:
            flags = ["--epochs", "3", "--output-dir", f"run {mode}"]
            again = train(server, *flags, as_program=as_program and mode == 503)
        assert again.code == 0 and again.out == run.out, again.err
        assert "is used instead" not in again.err
        # huggingface_hub itself sends a request for agent-harnesses once a day.
        assert set(server.requests) - {"/api/agent-harnesses"} == {f"/api/models/{MODEL}"}


def test_only_a_default_that_is_not_cached_is_replaced(
    in_process_at, small_builtin, tmp_path, repositories
):
    only_model = {key: value for key, value in repositories.items() if key[0] == "models"}
    home = tmp_path / "h"
    # This run puts the model in the cache.
    with hub(only_model) as server:
        flags = [*SHORT, "--data", "builtin", "--output-dir", "first"]
        run = in_process_at(server, home, *flags)
        assert run.code == 0, run.err
    with hub({}, mode=503) as server:
        run = in_process_at(server, home, *SHORT, "--output-dir", "run")
    assert run.code == 0, run.err
    assert run_record(tmp_path)["replaced"] == {"data": "sst2"}
    assert run_record(tmp_path)["settings"]["model"] == MODEL


def test_an_incomplete_cached_model_is_not_used(
    in_process_at, small_builtin, tmp_path, repositories
):
    cache = tmp_path / "h" / "hub" / "models--distilbert--distilbert-base-uncased"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text("0" * 40)
    (cache / "snapshots" / ("0" * 40)).mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        source = repositories["models", MODEL] / name
        (cache / "snapshots" / ("0" * 40) / name).write_bytes(source.read_bytes())
    with hub(repositories, mode=503) as server:
        run = in_process_at(server, tmp_path / "h", *SHORT, "--output-dir", "run")
    assert run.code == 0, run.err
    assert run_record(tmp_path)["replaced"] == {"model": MODEL, "data": "sst2"}


def test_a_refusal_of_the_hub_is_an_error_without_stand_ins(in_process_at, tmp_path, repositories):
    with hub(repositories, mode=429) as server:
        run = in_process_at(server, tmp_path / "h", "--output-dir", "run")
    check_error(run, tmp_path, "the Hub: request refused")


def check_stand_ins(code: int, out: str, err: str, tmp_path: Path) -> None:
    assert code == 0, err
    assert out.count("epoch ") == 1
    assert err.strip().splitlines()[-1].startswith("NOTE: `builtin` is used instead of")
    assert run_record(tmp_path)["replaced"] == {"model": MODEL, "data": "sst2"}


@pytest.mark.parametrize("mode", ["no server", "silent", "trickle", 503, 403, 407, "web page"])
def test_if_the_hub_is_out_of_reach_builtin_stands_in_within_20_seconds(
    in_process_at, small_builtin, tmp_path, repositories, mode, monkeypatch
):
    decision_times = []

    def stand_ins(*arguments: object, real: Callable = hub_module.stand_ins) -> dict:
        replaced = real(*arguments)
        decision_times.append(time.monotonic())
        return replaced

    monkeypatch.setattr(hub_module, "stand_ins", stand_ins)
    with hub(repositories, mode=mode) as server:
        if mode == "no server":
            server.url = "http://127.0.0.1:9"
        started = time.monotonic()
        run = in_process_at(server, tmp_path / "h", "--epochs", "1", "--output-dir", "run")
    seconds = decision_times[0] - started
    print(f"{mode}: decided after {seconds:.1f} s")
    # The program needs the other 8 s to import libraries, which this process has imported.
    assert seconds < 12
    check_stand_ins(run.code, run.out, run.err, tmp_path)


def test_the_real_program_decides_within_20_seconds_if_the_hub_is_silent(tmp_path, repositories):
    def seconds_in_queue() -> float:
        """Seconds in which the program waited for a processor."""
        path = Path(f"/proc/{process.pid}/schedstat")
        return int(path.read_text().split()[1]) / 1e9 if path.exists() else 0

    flags = ["--epochs", "1", "--max-train-samples", "64", "--output-dir", "run"]
    flags += ["--max-length", "8"]
    with hub(repositories, mode="silent") as server:
        started = time.monotonic()
        process = start(tmp_path, *flags, **environment(server, tmp_path / "h"))
        limit = threading.Timer(100, process.kill)
        limit.start()
        assert any("is used instead" in line for line in process.stderr), "none after 100 s"
        limit.cancel()
        seconds = time.monotonic() - started - seconds_in_queue()
        out, err = process.communicate(timeout=300)
    print(f"decided after {seconds:.1f} s")
    assert seconds < 20
    check_stand_ins(process.returncode, out, err, tmp_path)


def test_a_run_with_stand_ins_resumes_with_them_when_the_hub_is_back(
    in_process_at, small_builtin, tmp_path, repositories, monkeypatch
):
    flags = ["--epochs", "3", "--output-dir", "run", "--resume"]
    with hub(repositories, mode=503) as server, monkeypatch.context() as patch:
        # signal_at replaces training_step, and this line makes monkeypatch restore it.
        patch.setattr(script, "training_step", script.training_step)
        warm.signal_at("a step", 3, signal.SIGTERM)()
        first = in_process_at(server, tmp_path / "h", *flags)
        assert first.code == 143 and first.out.count("epoch ") == 1, first.err
    with hub(repositories) as server:
        resumed = in_process_at(server, tmp_path / "h", *flags)
        assert resumed.code == 0 and resumed.out.startswith("epoch 1"), resumed.err
        assert "resumed from step 3" in resumed.err and "is used instead" in resumed.err
        assert not [path for path in server.requests if "resolve" in path]
        # A run with the Hub's model does not resume with a stand-in.
        other_flags = ["--epochs", "1", "--output-dir", "other", "--resume"]
        first = in_process_at(server, tmp_path / "h", *other_flags)
        assert first.code == 0, first.err
    record = json.loads((tmp_path / "other" / "run.json").read_text())
    (tmp_path / "other" / "run.json").write_text(json.dumps(record | {"result": None}))
    with hub({}, mode=503) as server:
        run = in_process_at(server, tmp_path / "empty", *other_flags)
    assert run.code == 2 and "is used instead" not in run.err, run.err
    assert "--data sst2: the download from the Hub failed" in run.errors[0]


def check_error(run, tmp_path: Path, message: str) -> None:
    assert run.code == 2, run.err
    assert len(run.errors) == 1 and message in run.errors[0], run.err
    assert "Traceback" not in run.err and "is used instead" not in run.err and run.out == ""
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--model", "no/such-model"], "--model no/such-model: no such folder, and no such model"),
        (["--data", "no/such-data"], "--data no/such-data: no such file or folder, and no such"),
        (["--data", "nyu-mll/glue:no-such-task"], "no-such-task"),
    ],
)
def test_a_name_that_the_hub_does_not_know_is_an_error(
    in_process_at, tmp_path, repositories, flags, message
):
    with hub(repositories) as server:
        run = in_process_at(server, tmp_path / "h", *flags, "--output-dir", "run")
    check_error(run, tmp_path, message)


def test_an_interrupted_download_is_an_error_without_stand_ins(
    in_process_at, tmp_path, repositories
):
    with hub(repositories, mode="cut") as server:
        run = in_process_at(server, tmp_path / "h", "--output-dir", "run")
    check_error(run, tmp_path, f"--model {MODEL}: the download failed")


@pytest.mark.parametrize("flags", [["--model", MODEL], ["--data", "sst2"]])
def test_an_explicit_name_is_never_replaced(in_process_at, tmp_path, repositories, flags):
    with hub(repositories, mode=503) as server:
        run = in_process_at(server, tmp_path / "h", *flags, "--output-dir", "run")
    assert run.code == 2, run.err
    assert len(run.errors) == 1 and flags[1] in run.errors[0]
    assert not (tmp_path / "run").exists()


def test_a_hub_data_set_keeps_its_order_of_labels(in_process_at, tmp_path, repositories):
    folder = tmp_path / "pairs"
    folder.mkdir()
    lines = [{"premise": t, "hypothesis": "good", "Label": label} for t, label in ROWS]
    (folder / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    # The order of labels is kept even if the column is named `Label`.
    names = "{class_label: {names: {'0': positive, '1': negative}}}"
    (folder / "README.md").write_text(
        "---\ndataset_info:\n  features:\n  - {name: premise, dtype: string}\n"
        f"  - {{name: hypothesis, dtype: string}}\n  - {{name: Label, dtype: {names}}}\n---\n"
    )
    with hub(repositories | {("datasets", "me/pairs"): folder}) as server:
        flags = ["--data", "me/pairs", "--epochs", "1", "--output-dir", "run"]
        run = in_process_at(server, tmp_path / "h", *flags)
    assert run.code == 0, run.err
    assert run_record(tmp_path)["labels"] == ["positive", "negative"]
    assert run_record(tmp_path)["reading"]["has_class_names"]
    # A tenth of the eight different pairs is one, which has five rows.
    assert run_record(tmp_path)["sentences"] == {"train": 35, "validation": 5}


# ---- Without a server ----


@pytest.fixture
def empty_cache(monkeypatch) -> Callable[[str], Path]:
    """A Hub cache without files; the returned function serves as `find_model`."""

    def raise_not_cached(name: str) -> Path:
        raise InputError(Problem(name, "not in the cache"))

    monkeypatch.setattr(hub_module, "fetch_data", raise_not_cached)
    return raise_not_cached


def test_stand_ins_are_announced_and_replace_only_defaults(empty_cache, capsys):
    names, outage = dict(hub_module.DEFAULTS), hub_module.Outage("no network")

    def replaced(names: dict, *explicit: str, outage: hub_module.Outage | None = outage) -> dict:
        return hub_module.stand_ins(names, set(explicit), outage, empty_cache)

    assert replaced(names) == hub_module.DEFAULTS == names
    both = "the model distilbert/distilbert-base-uncased and the data sst2"
    assert capsys.readouterr().err.splitlines() == [
        "the Hub cannot be reached (no network); anything already in the Hub cache is used",
        f"NOTE: `builtin` is used instead of {both}",
    ]
    assert replaced(names, "model") == {"data": "sst2"}
    assert replaced(names, "model", "data") == {}
    assert replaced(names | {"data": "reviews.csv"}, "data") == {"model": MODEL}
    assert replaced(names | {"model": "an/edited-constant"}) == {"data": "sst2"}
    capsys.readouterr()
    assert replaced(names, outage=None) == {} and capsys.readouterr().err == ""


def test_a_refusal_is_an_error_only_if_the_cache_lacks_a_default(empty_cache, tmp_path):
    refusal = hub_module.Outage("request refused: 429", is_refusal=True)
    model = {"model": MODEL, "data": "builtin"}
    with pytest.raises(InputError, match=f"the Hub: request refused.* {MODEL} is not complete"):
        hub_module.stand_ins(model, set(), refusal, empty_cache)
    assert hub_module.stand_ins(model, set(), refusal, lambda name: tmp_path) == {}


@pytest.mark.parametrize(
    "model, data, expected",
    [
        ("builtin", "builtin", []),
        ("here", "here", []),
        ("owner/encoder", "sst2", [("model", "owner/encoder")]),
        ("here", "sst2", [("data", "nyu-mll/glue")]),
        ("builtin", "owner/reviews:books", [("data", "owner/reviews")]),
    ],
)
def test_the_hub_is_asked_at_most_once_and_only_for_names_that_are_not_local(
    monkeypatch, tmp_path, model, data, expected
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    # The reserved name `sst2` takes precedence over this folder.
    (tmp_path / "sst2").mkdir()
    requests = []
    monkeypatch.setattr(hub_module, "_find_outage", lambda *names: requests.append(names))
    assert hub_module.ask(model, data) is None
    assert requests == expected
