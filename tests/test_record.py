"""run.json: a resumed run has the settings, the data and the model that it started with."""

import json
import signal
from pathlib import Path

import datasets
import pytest
import torch
from harness import warm
from harness.helpers import CSV, save_tiny
from harness.stopped import SHORTER, check_refused, contents, read_settings

import finetune as script
from system import speed
from system.console import RunError
from training import record as records

# The precision that a run does not choose on this CPU.
OTHER = "fp32" if speed.has_bf16_units("cpu") else "bf16"

# ---- Settings ----


@pytest.mark.parametrize(
    "change, messages",
    [
        (["--seed", 1, "--epochs", 3], ["--epochs 3: the run in", "--seed 1: the run in"]),
        (["--model", "builtin"], ["--model builtin: the run in"]),
        (["--data", "builtin"], ["--data builtin: the run in"]),
        (["--max-train-samples", 7], ["--max-train-samples 7: the run in"]),
        (["--max-length", 8], ["--max-length 8: the run in"]),
        (["--precision", OTHER], [f"--precision {OTHER}: the run in"]),
        (["--freeze-embeddings"], ["--freeze-embeddings True: the run in"]),
    ],
    ids=str,
)
def test_each_changed_setting_is_reported_and_no_file_changes(
    in_process, tmp_path, stopped, change, messages
):
    before = contents(tmp_path / "run")
    check_refused(in_process(*stopped, *change), tmp_path / "run", before, *messages)


def test_a_flag_that_is_left_out_now_is_reported(in_process, tmp_path, stopped):
    position = stopped.index("--learning-rate")
    before = contents(tmp_path / "run")
    flags = stopped[:position] + stopped[position + 2 :]
    message = "--learning-rate None: the run in"
    check_refused(in_process(*flags), tmp_path / "run", before, message)
    # A flag must not replace a value that the run chose either.
    assert (
        in_process(*stopped, "--max-length", 64, "--text-column", "no")
        .errors[0]
        .startswith("error: --text-column no: the run in")
    )


def fail(*_: object) -> None:
    raise RunError("the step failed")


def test_settings_that_affect_rounding_or_nothing_may_change_and_are_recorded(
    finetune, in_process, tmp_path, tiny, monkeypatch
):
    flags = ["--model", tiny, *SHORTER, "--output-dir", "run", "--resume"]
    changes = ["--micro-batch-size", "2", "--device", "cpu", "--log-every", "1"]
    with monkeypatch.context() as patches:
        patches.setattr(script, "training_step", fail)
        assert in_process(*flags).code == 1
    run = in_process(*flags, *changes, "--checkpoint-minutes", "0")
    assert run.code == 0 and "resumed from step 0" in run.err, run.err
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    (resumed,) = record["resumed"]
    model = tmp_path / "run" / "model"
    assert len({path.stat().st_mode for path in model.iterdir()}) == 1
    assert "local_files_only" not in (model / "tokenizer_config.json").read_text()
    assert resumed["changed_settings"] == {
        "micro_batch_size": 2,
        "log_every": 1,
        "checkpoint_minutes": 0.0,
    }
    assert record["settings"]["micro_batch_size"] is None
    # On a complete run the same command ends without imports, which take ten seconds.
    (tmp_path / "run" / "checkpoint.pt").write_bytes(b"left by a kill")
    before = contents(tmp_path / "run")
    again = finetune(*flags)
    assert again.seconds < 2
    assert again.code == 0 and again.out == "" and "is complete; kept: epoch 0" in again.err
    assert before.pop("checkpoint.pt") and contents(tmp_path / "run") == before


def change_record(folder: Path, **changes: object) -> None:
    """Replace entries in the record of the run in `folder`."""
    path = folder / "run" / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_resumed_run_keeps_its_precision_on_a_different_device(stopped, tmp_path, monkeypatch):
    record = records.read(tmp_path / "run")
    assert record["asked"]["precision"] == "auto"
    change_record(tmp_path, settings=record["settings"] | {"precision": "bf16"})
    monkeypatch.chdir(tmp_path)
    assert read_settings(stopped).precision == "bf16"
    with pytest.raises(ValueError, match="--precision fp32: the run in"):
        read_settings([*stopped, "--precision", "fp32"])


def test_a_resumed_run_keeps_the_learning_rate_that_an_earlier_version_chose(
    in_process, tmp_path, stopped, monkeypatch
):
    position = stopped.index("--learning-rate")
    flags = stopped[:position] + stopped[position + 2 :]
    requested = records.read(tmp_path / "run")["asked"]
    change_record(tmp_path, asked=requested | {"learning_rate": None})
    # monkeypatch restores the function that signal_at replaces.
    monkeypatch.setattr(script, "training_step", script.training_step)
    warm.signal_at("a step", 1, signal.SIGTERM)()
    run = in_process(*flags)
    # A new run of this model would take 3e-5.
    assert run.code == 143 and "learning rate 0.001, " in run.err, run.err
    assert records.read(tmp_path / "run")["resumed"][0]["changed_settings"] == {}
    with pytest.raises(ValueError, match="--learning-rate 3e-05: the run in"):
        read_settings([*flags, "--learning-rate", "3e-5"])


def test_a_change_of_versions_threads_or_processor_gets_a_note(
    in_process, tmp_path, stopped, monkeypatch
):
    record = records.read(tmp_path / "run")
    versions = record["versions"] | {"torch": "2.0.0"}
    change_record(tmp_path, versions=versions, cpu_capability="an abacus")
    # monkeypatch restores the function that signal_at replaces.
    monkeypatch.setattr(script, "training_step", script.training_step)
    warm.signal_at("a step", 1, signal.SIGTERM)()
    err = in_process(*stopped).err
    assert "torch 2.0.0, now 2." in err and "cpu_capability an abacus, now " in err
    (resumed,) = records.read(tmp_path / "run")["resumed"]
    assert resumed["conditions"]["torch"] == torch.__version__ and resumed["step"] > 0


# ---- Data and model ----


def change_data(folder: Path) -> None:
    (folder / "a.csv").write_text(CSV.replace("a dull film", "a dim film", 1))


def change_weights(folder: Path) -> None:
    save_tiny(folder / "tiny", initializer_range=0.03)


def change_config(folder: Path) -> None:
    config = json.loads((folder / "tiny" / "config.json").read_text())
    (folder / "tiny" / "config.json").write_text(json.dumps(config | {"dropout": 0.2}))


def change_tokenizer(folder: Path) -> None:
    path = folder / "tiny" / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["normalizer"]["lowercase"] = False
    path.write_text(json.dumps(tokenizer))


@pytest.mark.parametrize(
    "change, message",
    [
        (change_data, "--data a.csv: content changed"),
        (change_weights, "--model tiny: content changed"),
        (change_config, "--model tiny: content changed"),
        (change_tokenizer, "--model tiny: content changed"),
    ],
)
def test_changed_data_or_a_changed_model_is_refused(in_process, tmp_path, stopped, change, message):
    before = contents(tmp_path / "run")
    change(tmp_path)
    check_refused(in_process(*stopped), tmp_path / "run", before, message)


def test_rows_that_changed_on_the_hub_are_refused(in_process, tmp_path, stopped):
    # A data set on the Hub has no local files to compare, only the fingerprint of its rows.
    fingerprints = records.read(tmp_path / "run")["fingerprints"]
    changed = fingerprints["data"] | {"train": "0" * 64}
    change_record(tmp_path, fingerprints=fingerprints | {"data": changed})
    before = contents(tmp_path / "run")
    message = "--data a.csv: content changed"
    check_refused(in_process(*stopped), tmp_path / "run", before, message)


def test_a_rewritten_file_with_the_same_rows_is_accepted(
    in_process, tmp_path, stopped, monkeypatch
):
    text = (tmp_path / "a.csv").read_text()
    (tmp_path / "a.csv").write_text(text.replace('"a dull film"', "a dull film"))
    assert (tmp_path / "a.csv").read_text() != text
    # monkeypatch restores the function that signal_at replaces.
    monkeypatch.setattr(script, "training_step", script.training_step)
    warm.signal_at("a step", 1, signal.SIGTERM)()
    run = in_process(*stopped)
    assert run.code == 143 and "resumed from step" in run.err, run.err


@pytest.mark.parametrize(
    "change, message",
    [
        (change_data, "--data a.csv: content changed"),
        (change_weights, "--model tiny: content changed"),
    ],
)
def test_a_complete_run_is_refused_if_its_data_or_model_has_changed(
    in_process, tmp_path, stopped, change, message
):
    change_record(tmp_path, result={"epoch": 1, "accuracy": 0.5})
    assert in_process(*stopped).code == 0
    change(tmp_path)
    check_refused(in_process(*stopped), tmp_path / "run", contents(tmp_path / "run"), message)


def test_a_different_spelling_of_the_same_paths_is_accepted(tmp_path, stopped, monkeypatch):
    monkeypatch.chdir(tmp_path)
    paths = ["--model", str(tmp_path / "tiny"), "--data", "./a.csv"]
    read_settings([*stopped, *paths])
    change_data(tmp_path)
    with pytest.raises(ValueError, match=r"--data \./a\.csv: the run in"):
        read_settings([*stopped, *paths])


def test_the_fingerprint_of_data_depends_on_its_rows_and_not_on_their_memory_layout():
    texts = [f"text {number} é" * (number % 7) for number in range(25_000)]
    columns = {"text": texts, "text_pair": [None] * len(texts), "label": ["a"] * len(texts)}
    rows = datasets.Dataset.from_dict(columns | {"line": range(len(texts))})
    shifted = datasets.concatenate_datasets([rows.select(range(3)), rows]).select(
        range(3, 3 + len(rows))
    )
    chosen = datasets.concatenate_datasets([rows, rows]).select([*range(len(rows))])
    reversed_twice = rows.select(range(len(rows))[::-1]).select(range(len(rows))[::-1])
    fingerprints = {records.fingerprint(r) for r in (rows, shifted, chosen, reversed_twice)}
    assert len(fingerprints) == 1
    different = [
        dict(columns, label=["a"] * (len(texts) - 1) + ["b"]),
        dict(columns, text=texts[::-1]),
    ]
    tables = [datasets.Dataset.from_dict(columns) for columns in different]
    assert not fingerprints & {records.fingerprint(table) for table in tables}


# ---- Damaged and old records ----


EMPTY = {name: {} for name in ("settings", "asked", "replaced", "fingerprints", "versions")}
EMPTY |= {"resumed": [], "result": None}
DAMAGED = {
    "empty": "",
    "cut short": "{",
    "a list": "[]",
    "a number": "5",
    "one entry": '{"settings": {}}',
    "deeply nested": "[" * 100_000,
    "settings of a wrong kind": json.dumps(EMPTY | {"settings": 1}),
    "an old record of a wrong kind": json.dumps(EMPTY | {"automatic": 5}),
    "a result without scores": json.dumps(EMPTY | {"result": {"epoch": 1}}),
    "no requested settings": json.dumps({k: v for k, v in EMPTY.items() if k != "asked"}),
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_record_is_refused(in_process, tmp_path, content):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text(content)
    run = in_process("--data", "builtin", "--model", "builtin", "--output-dir", "run", "--resume")
    assert run.code == 2 and len(run.errors) == 1 and "run.json cannot be read" in run.errors[0]


def test_a_record_of_the_previous_version_is_read(tmp_path, stopped, monkeypatch):
    path = tmp_path / "run" / "run.json"
    record = json.loads(path.read_text())
    requested = record.pop("asked")
    automatic = [name for name, value in requested.items() if value in (None, "auto")]
    path.write_text(json.dumps(record | {"automatic": automatic}))
    monkeypatch.chdir(tmp_path)
    chosen = speed.choose_precision("auto", "cpu")
    assert read_settings(stopped).precision == record["settings"]["precision"] == chosen
    with pytest.raises(ValueError, match="--max-length 8: the run in"):
        read_settings([*stopped, "--max-length", "8"])


def test_an_unfinished_last_line_of_metrics_is_left_out(tmp_path):
    assert records.read_history(tmp_path) == []
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert records.read_history(tmp_path) == [{"step": 1}, {"step": 2}]
    (tmp_path / "metrics.jsonl").write_text('{"step": 1\n{"step": 2}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl: cannot be read"):
        records.read_history(tmp_path)
