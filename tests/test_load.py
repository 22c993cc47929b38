"""Settings, data and model of a run: every problem at once, and resolved settings if none."""

import dataclasses

import pytest
from harness.checks import check_refused
from harness.helpers import CSV

import finetune as script
from inputs import encoder, hub
from system.console import InputError, Problem
from training import load, program, settings


def settings_of(*flags: object) -> settings.Settings:
    return program.read_settings(settings.from_flags, vars(script), [*map(str, flags)])


def test_problems_of_device_data_and_model_are_reported_at_once(
    in_process, tmp_path, tiny, monkeypatch
):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    (tmp_path / "a.csv").write_text(CSV + "good,\n")
    flags = ["--model", tiny, "--data", "a.csv", "--device", "cuda", "--max-length", "65"]
    run = in_process(*flags, "--output-dir", "run")
    bad = ["--device cuda: PyTorch finds no", "a.csv, line 42: no label", "--max-length 65: "]
    check_refused(run, tmp_path / "run", *bad)


def test_problems_of_flags_and_of_the_files_that_they_name_are_reported_at_once(
    in_process, tmp_path
):
    (tmp_path / "model").mkdir()
    flags = ["--epochs", "0", "--model", "model", "--data", "no.csv"]
    run = in_process(*flags, "--output-dir", "run")
    bad = ["--epochs: found 0", "--model model: no config.json", "--model model: no weights"]
    bad += ["--model model: no tokenizer", "--data no.csv: no such file"]
    check_refused(run, tmp_path / "run", *bad)


@pytest.mark.long  # The first test of this file is of the same check.
def test_cuda_on_a_machine_that_has_none_is_refused(finetune, tmp_path, tiny):
    flags = ["--model", tiny, "--data", "builtin", "--device", "cuda", "--output-dir", "run"]
    run = finetune(*flags, CUDA_VISIBLE_DEVICES="")
    check_refused(run, tmp_path / "run", "--device cuda: PyTorch finds no such device here")


def test_a_model_that_must_be_downloaded_is_not_if_the_data_is_wrong(tmp_path, monkeypatch):
    def download(name: str) -> None:
        raise AssertionError(f"{name} was downloaded")

    monkeypatch.setattr(hub, "fetch_model", download)
    (tmp_path / "a.csv").write_text(CSV + "good,\n")
    with pytest.raises(InputError, match=r"a\.csv, line 42: no label in 'label'") as caught:
        load.load(settings_of("--data", tmp_path / "a.csv", "--model", "owner/encoder"))
    assert len(caught.value.problems) == 1


def test_the_run_gets_resolved_settings_and_the_record_also_those_asked_for(tmp_path, tiny):
    (tmp_path / "a.csv").write_text(CSV)
    chosen = settings_of("--model", tiny, "--data", tmp_path / "a.csv", "--device", "cpu")
    loaded = load.load(chosen)
    resolved = {
        "text_column": ["sentence"],
        "label_column": "label",
        "max_length": 64,
        "learning_rate": 3e-5,
        "precision": "fp32",
    }
    assert loaded.settings == dataclasses.replace(chosen, **resolved)
    assert loaded.record["settings"] == loaded.settings.as_dict()
    assert loaded.record["asked"] == chosen.as_dict()
    assert loaded.record["replaced"] == {} and loaded.record["result"] is None
    assert loaded.model.config.id2label == {0: "negative", 1: "positive"}
    assert loaded.record["sentences"] == {"train": 36, "validation": 4}


def test_a_subset_of_the_training_sentences_leaves_validation_whole(tmp_path, tiny):
    (tmp_path / "a.csv").write_text(CSV)
    flags = ["--model", tiny, "--data", tmp_path / "a.csv", "--max-train-samples", 10]
    loaded = load.load(settings_of(*flags))
    assert {split: len(rows) for split, rows in loaded.text.splits.items()} == {
        "train": 10,
        "validation": 4,
    }
    assert loaded.record["sentences"] == {"train": 10, "validation": 4}


def test_stand_ins_are_recorded_with_the_names_that_they_replaced(small_builtin, capsys):
    chosen = dataclasses.replace(settings_of(), outage=hub.Outage("no network"))
    loaded = load.load(chosen)
    assert loaded.record["replaced"] == hub.DEFAULTS
    assert (loaded.settings.model, loaded.settings.data) == ("builtin", "builtin")
    assert loaded.settings.learning_rate == encoder.learning_rate("builtin")
    assert loaded.record["asked"]["model"] == hub.DEFAULTS["model"]
    assert capsys.readouterr().err.count("stands in for") == 1


def test_the_seed_decides_the_weights_of_a_new_head(tmp_path, tiny):
    (tmp_path / "a.csv").write_text(CSV)
    flags = ["--model", tiny, "--data", tmp_path / "a.csv", "--seed"]
    heads = [load.load(settings_of(*flags, seed)).model.classifier.weight for seed in (1, 1, 2)]
    assert heads[0].tolist() == heads[1].tolist() != heads[2].tolist()


def test_a_problem_in_load_is_a_value_with_its_place_and_remedy(tmp_path, tiny):
    (tmp_path / "a.csv").write_text(CSV + "good,\n")
    with pytest.raises(InputError) as caught:
        load.load(settings_of("--model", tiny, "--data", tmp_path / "a.csv"))
    place = f"{tmp_path / 'a.csv'}, line 42"
    expected = Problem(place, "no label in 'label'", "fill it in or remove the row")
    assert caught.value.problems == (expected,)
