"""Loading reports every problem of settings, data and model at once."""

import dataclasses
import json
import shlex
import shutil

import pytest
from harness.checks import check_done, check_refused
from harness.helpers import CSV, ROWS

import finetune as script
from inputs import hub
from system import speed
from system.console import InputError, Problem
from training import load, program, settings


def settings_of(*flags: object) -> settings.Settings:
    return program.read_settings(settings.from_flags, vars(script), [*map(str, flags)])


def test_problems_of_device_data_and_model_are_reported_at_once(
    in_process, tmp_path, tiny, monkeypatch
):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    (tmp_path / "a.csv").write_text(CSV + "good\n")
    flags = ["--model", tiny, "--data", "a.csv", "--device", "cuda", "--max-length", "65"]
    run = in_process(*flags, "--output-dir", "run")
    messages = [
        "--device cuda: PyTorch finds no",
        "a.csv, line 42: 1 field (expected 2)",
        "--max-length 65: ",
    ]
    check_refused(run, tmp_path / "run", *messages)
    assert "the classification head is new" not in run.err


def test_problems_of_flags_and_of_their_files_are_reported_at_once(in_process, tmp_path):
    (tmp_path / "model").mkdir()
    flags = ["--epochs", "0", "--model", "model", "--data", "no.csv"]
    run = in_process(*flags, "--output-dir", "run")
    messages = [
        "--epochs: must be a whole number from 1 to 2147483647 (found 0)",
        "--data no.csv: no such file",
        "--model model: no weights",
    ]
    messages += ["--model model: missing config.json", "--model model: missing tokenizer"]
    check_refused(run, tmp_path / "run", *messages)


# The first test of this file makes the same check in less time.
@pytest.mark.long
def test_cuda_is_refused_on_a_machine_without_cuda(finetune, tmp_path, tiny):
    flags = ["--model", tiny, "--data", "builtin", "--device", "cuda", "--output-dir", "run"]
    run = finetune(*flags, CUDA_VISIBLE_DEVICES="")
    check_refused(run, tmp_path / "run", "--device cuda: PyTorch finds no such device here")


def test_no_model_is_downloaded_if_the_data_is_wrong(tmp_path, monkeypatch):
    def download(name: str) -> None:
        raise AssertionError(f"{name} was downloaded")

    monkeypatch.setattr(hub, "fetch_model", download)
    (tmp_path / "a.csv").write_text(CSV + "good\n")
    with pytest.raises(InputError, match=r"a\.csv, line 42: 1 field") as caught:
        load.load(settings_of("--data", tmp_path / "a.csv", "--model", "owner/encoder"))
    assert len(caught.value.problems) == 1


def test_a_run_has_resolved_settings_and_its_record_also_the_requested_settings(
    tmp_path, tiny, capsys
):
    (tmp_path / "a.csv").write_text(CSV)
    requested = settings_of("--model", tiny, "--data", tmp_path / "a.csv", "--device", "cpu")
    loaded = load.load(requested)
    assert (
        "the classification head is new: it starts from random weights" in capsys.readouterr().err
    )
    resolved = {
        "text_column": ["sentence"],
        "label_column": "label",
        "max_length": 64,
        "learning_rate": 3e-5,
        "precision": speed.choose_precision("auto", "cpu"),
    }
    assert loaded.settings == dataclasses.replace(requested, **resolved)
    assert loaded.record["settings"] == loaded.settings.as_dict()
    assert loaded.record["asked"] == requested.as_dict()
    assert loaded.record["replaced"] == {} and loaded.record["result"] is None
    assert loaded.model.config.id2label == {0: "negative", 1: "positive"}
    assert loaded.record["sentences"] == {"train": 35, "validation": 5}
    assert loaded.record["reading"] == loaded.text.facts
    assert loaded.text.facts["columns"] == "names"


def test_max_train_samples_leaves_the_validation_split_whole(tmp_path, tiny):
    (tmp_path / "a.csv").write_text(CSV)
    flags = ["--model", tiny, "--data", tmp_path / "a.csv", "--max-train-samples", 10]
    loaded = load.load(settings_of(*flags))
    assert {split: len(rows) for split, rows in loaded.text.splits.items()} == {
        "train": 10,
        "validation": 5,
    }
    assert loaded.record["sentences"] == {"train": 10, "validation": 5}


def test_the_record_names_the_replaced_model_and_data(small_builtin, capsys):
    requested = dataclasses.replace(settings_of(), outage=hub.Outage("no network"))
    loaded = load.load(requested)
    assert loaded.record["replaced"] == hub.DEFAULTS
    assert (loaded.settings.model, loaded.settings.data) == ("builtin", "builtin")
    assert loaded.record["asked"]["model"] == hub.DEFAULTS["model"]
    assert capsys.readouterr().err.count("is used instead of") == 1


def test_the_seed_decides_the_weights_of_a_new_head(tmp_path, tiny):
    (tmp_path / "a.csv").write_text(CSV)
    flags = ["--model", tiny, "--data", tmp_path / "a.csv", "--seed"]
    heads = [load.load(settings_of(*flags, seed)).model.classifier.weight for seed in (1, 1, 2)]
    assert heads[0].tolist() == heads[1].tolist() != heads[2].tolist()


def test_a_problem_in_load_is_a_value_with_place_and_remedy(tmp_path, tiny):
    (tmp_path / "a.csv").write_text(CSV + "good\n")
    with pytest.raises(InputError) as caught:
        load.load(settings_of("--model", tiny, "--data", tmp_path / "a.csv"))
    place = f"{tmp_path / 'a.csv'}, line 42"
    expected = Problem(place, "1 field (expected 2)", "complete or remove the row")
    assert caught.value.problems == (expected,)


# ---- The look at the data ----


def test_a_run_starts_with_a_look_at_rows_classes_and_lengths(in_process, tmp_path, tiny):
    rows = [f"the café number {i} was fine,{'ab'[i % 4 == 0]}\n" for i in range(40)]
    (tmp_path / "a.csv").write_text("".join(rows), "cp1252")
    flags = ["--model", tiny, "--data", "a.csv", "--encoding", "latin-1", "--max-length", "7"]
    run = in_process(*flags, "--epochs", "1", "--output-dir", "run")
    record = check_done(run, tmp_path / "run")
    look = [line for line in run.err.splitlines() if " on a.csv " in line or "classes:" in line]
    assert look == [
        f"{tiny} on a.csv (columns 1, 2): 36 train, 4 validation",
        "2 classes: a 75 %, b 25 %",
    ]
    assert "train: median length 7 tokens, 95 % up to 7" in run.err.splitlines()
    assert "train: truncated 36 of 36 sentences to 7 tokens" in run.err.splitlines()
    assert record["settings"]["encoding"] == "latin-1"
    assert record["reading"] == {
        "train": {"encoding": "latin-1", "header": False},
        "columns": "by their content",
        "classes": [30, 10],
        "copies": {},
        "has_class_names": False,
    }
    # The tokenizer of the model cuts at the same length for everyone who loads it.
    saved = json.loads((tmp_path / "run" / "model" / "tokenizer_config.json").read_text())
    assert saved["model_max_length"] == 7


def test_the_commonest_and_the_rarest_of_many_classes_are_shown(tmp_path, tiny, capsys):
    labels = [f"c{i}" for i in range(1, 13) for _ in range(i)]
    rows = "".join(f"text {i},{label}\n" for i, label in enumerate(labels))
    (tmp_path / "a.csv").write_text("text,label\n" + rows)
    load.load(settings_of("--model", tiny, "--data", tmp_path / "a.csv", "--device", "cpu"))
    line = "12 classes: c12 15.4 %, c11 14.1 %, c10 12.8 %, …, c3 3.85 %, c2 2.56 %, c1 1.28 %"
    assert line in capsys.readouterr().err.splitlines()


# ---- A run that starts from the model of another run ----


def test_a_run_starts_from_the_model_of_the_run_that_it_names(in_process, trained, tmp_path):
    flags = ["--data", trained.folder.parent, "--learning-rate", "1e-12", "--epochs", "1"]
    run = in_process("--model", trained.folder, *flags, "--output-dir", "run", "--resume")
    check_done(run, tmp_path / "run")
    assert f"epoch 0: {{'accuracy': {trained.metrics['accuracy']}}}" in run.out
    assert "the classification head is that of the checkpoint" in run.err
    # The same command again, and after a change of the first run's model.
    assert in_process(
        "--model", trained.folder, *flags, "--output-dir", "run", "--resume"
    ).err.startswith("this run is complete")
    shutil.copytree(trained.folder, tmp_path / "first")
    config = tmp_path / "first" / "model" / "config.json"
    config.write_text(config.read_text().replace('"dropout": 0.1', '"dropout": 0.3'))
    changed = in_process("--model", "first", *flags, "--output-dir", "run", "--resume")
    assert changed.code == 2 and "--model first: " in changed.errors[0], changed.err


def test_a_note_says_if_the_first_run_is_not_complete_or_was_trained_on_the_validation_data(
    in_process, trained, tmp_path, tiny
):
    # Without a validation split, the seed chooses the held-out sentences.
    rows = "".join(f'"{text} {number}",{label}\n' for number, (text, label) in enumerate(ROWS))
    (tmp_path / "a.csv").write_text("text,label\n" + rows)
    flags = ["--data", "a.csv", "--epochs", "1", "--output-dir"]
    check_done(in_process("--model", tiny, *flags, "first"), tmp_path / "first")
    same = in_process("--model", "first", *flags, "same")
    assert "was trained on" not in same.err and "is not complete" not in same.err
    record = json.loads((tmp_path / "first" / "run.json").read_text())
    (tmp_path / "first" / "run.json").write_text(json.dumps(record | {"result": None}))
    other = in_process("--model", "first", *flags, "other", "--seed", "7")
    assert "NOTE: the model of first was trained on sentences of this validation" in other.err
    assert "flatter the score; use --seed 42\n" in other.err
    assert "NOTE: first: the run is not complete; using the epoch kept so far" in other.err
    (tmp_path / "a.csv").write_text("text,label\n" + rows.replace("negative", "neutral"))
    other = in_process("--model", "first", *flags, "third")
    note = (
        "NOTE: the labels of first are different ('negative', 'positive'), so its head is not used"
    )
    assert note in other.err


def test_a_run_without_a_kept_model_is_refused_as_a_model(in_process, trained, tmp_path):
    shutil.copytree(trained.folder, tmp_path / "first", ignore=lambda *_: ["model"])
    run = in_process("--model", "first", "--data", "builtin", "--output-dir", "run")
    message = "--model first: model/ is missing; complete an epoch of this run, or restore a copy"
    check_refused(run, tmp_path / "run", message)
    assert len(run.errors) == 1


def test_the_answer_to_more_epochs_for_a_complete_run_is_a_command_that_trains_them(
    in_process, tmp_path, tiny
):
    (tmp_path / "my data.csv").write_text(CSV)
    flags = ["--model", tiny, "--data", "my data.csv", "--text-column", "sentence", "--no-compile"]
    flags += ["--output-dir", "first", "--resume", "--learning-rate", "0.01"]
    check_done(in_process(*flags, "--epochs", "2"), tmp_path / "first", 2)
    (tmp_path / "first-2").mkdir()
    run = in_process(*flags, "--epochs", "5")
    check_refused(run, tmp_path / "first-3", "was started with 2; to train its kept model further")
    command = shlex.split(run.errors[0].split("`")[1])
    assert command == [
        *("python", "finetune.py", "--model", "first", "--data", "my data.csv"),
        *("--text-column", "sentence", "--epochs", "3", "--learning-rate", "0.01"),
        *("--no-compile", "--output-dir", "first-3"),
    ]
    longer = in_process(*command[2:])
    check_done(longer, tmp_path / "first-3", 3)
    assert "the classification head is that of the checkpoint" in longer.err
    # A folder as the shell completes it, and the stand-in of the first run.
    record = json.loads((tmp_path / "first" / "run.json").read_text())
    record["replaced"] = {"data": "sst2"}
    (tmp_path / "first" / "run.json").write_text(json.dumps(record))
    flags[flags.index("first")] = "first/"
    run = in_process(*flags, "--epochs", "5")
    assert "--output-dir first-4`" in run.errors[0] and "--data" in run.errors[0]
    # Fewer epochs, or another change, keep the plain answer.
    fewer = in_process(*flags, "--epochs", "1")
    assert "was started with 2; use that value" in fewer.errors[0]
