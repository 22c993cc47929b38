"""finetune() from Python: keywords, exceptions, one run at a time, interruption, resuming."""

import errno
import json
import threading

import numpy as np
import pytest
import torch
from harness import warm
from harness.helpers import CSV, NEGATIVE, POSITIVE

import finetune as script
from finetune import finetune
from outputs import plots
from system import console
from system.console import InputError, RunError
from training import program
from training.settings import from_keywords

QUICK = {"epochs": 1, "learning_rate": 1e-2, "batch_size": 8}


@pytest.fixture
def keywords(tiny, tmp_path) -> dict:
    """The keywords of a quick run on a small table."""
    (tmp_path / "own.csv").write_text(CSV)
    return {"model": tiny, "data": tmp_path / "own.csv", **QUICK}


def read_keywords(**keywords: object):
    return program.read_settings(from_keywords, vars(script), keywords)


# ---- Keywords ----


def test_every_problem_with_the_keywords_is_raised_at_once_without_an_exit(tmp_path):
    wrong = {"epochs": 0, "learnig_rate": 3e-5, "data": "no.csv", "seed": "1", "sed": 1}
    with pytest.raises(InputError) as caught:
        finetune(**wrong, output_dir=str(tmp_path))
    problems = list(map(str, caught.value.problems))
    assert [p.partition(":")[0] for p in problems[:2]] == ["learnig_rate", "sed"]
    assert len(problems) == 5 and str(caught.value) == "\n".join(problems)
    assert "learnig_rate: unknown setting; did you mean learning_rate?" in problems
    assert "epochs: must be a whole number from 1 to 2147483647 (found 0)" in problems
    assert "seed: must be a whole number from 0 to 2**64 - 1 (found '1')" in problems
    assert any(problem.startswith("--data no.csv: ") for problem in problems)
    (tmp_path / "own.csv").write_text(CSV + "good\n")
    with pytest.raises(InputError, match=r"own\.csv, line 42: 1 field \(expected 2\)"):
        finetune(model="builtin", data=tmp_path / "own.csv", output_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_numpy_numbers_are_accepted_and_a_second_run_at_a_time_is_refused(tmp_path):
    settings = read_keywords(
        epochs=np.int64(2), learning_rate=np.float64(1e-3), data="builtin", text_column=("a", "b")
    )
    assert type(settings.epochs) is int and type(settings.learning_rate) is float
    assert settings.epochs == 2 and settings.learning_rate == 1e-3
    assert settings.text_column == ["a", "b"]
    assert settings.explicit == {"epochs", "learning_rate", "data", "text_column"}
    with program._running, pytest.raises(InputError, match="another run is active"):
        finetune(data="builtin")
    with pytest.raises(InputError, match="null byte"):
        finetune(data="builtin", output_dir=str(tmp_path / "a\0b"))
    with pytest.raises(InputError, match="found") as caught:
        finetune(data=["x" * 1000])
    assert len(str(caught.value)) < 300


def test_a_failed_call_does_not_block_the_next_call(keywords, tmp_path):
    for _ in range(2):
        with pytest.raises(InputError, match=r"epochs: must be .*\(found 0\)"):
            finetune(**keywords | {"epochs": 0}, output_dir=tmp_path / "run")
    assert not program._running.locked()


def test_each_call_asks_the_hub_again_unless_the_user_chose_offline_mode(monkeypatch):
    from huggingface_hub import constants

    from inputs import hub

    outages = iter([hub.Outage("no network"), None])
    monkeypatch.setattr(hub, "_find_outage", lambda *_: next(outages))
    hub_settings = read_keywords()
    for at_start in (False, True):
        monkeypatch.setattr(hub, "OFFLINE_AT_START", at_start)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        # A call without a network has set HF_HUB_OFFLINE; the user has not.
        if not at_start:
            assert program.ask_hub(hub_settings).outage == hub.Outage("no network")
            assert constants.HF_HUB_OFFLINE is True
            assert program.ask_hub(hub_settings).outage is None
            assert constants.HF_HUB_OFFLINE is False
    local_settings = read_keywords(model="builtin", data="builtin")
    assert program.ask_hub(local_settings).outage is None and constants.HF_HUB_OFFLINE is True


# ---- Results ----


def test_the_result_has_metrics_paths_and_the_kept_model_in_evaluation_mode(trained):
    from transformers import pipeline

    record = json.loads((trained.folder / "run.json").read_text())
    assert trained.metrics == record["result"] and trained.metrics["accuracy"] == 40 / 43
    assert trained.model_folder == trained.folder / "model" and trained.model_folder.is_dir()
    assert not trained.model.training
    classify = pipeline("text-classification", model=trained.model, tokenizer=trained.tokenizer)
    assert [a["label"] for a in classify(POSITIVE)] == ["positive"] * 4
    assert [a["label"] for a in classify(NEGATIVE)] == ["negative"] * 4


def test_the_same_call_with_resume_returns_the_complete_run_again(trained, capsys):
    data, folder = trained.folder.parent, trained.folder
    settings = {"epochs": 8, "batch_size": 8, "learning_rate": 1e-2, "log_every": 2}
    settings["precision"] = "fp32"
    model = json.loads((folder / "run.json").read_text())["settings"]["model"]
    result = finetune(model=model, data=data, output_dir=folder, resume=True, **settings)
    assert result.metrics == trained.metrics and capsys.readouterr().out == ""
    for name, value in result.model.state_dict().items():
        assert torch.equal(value, trained.model.state_dict()[name])
    with pytest.raises(InputError, match="the folder holds a run already"):
        finetune(model=model, data=data, output_dir=folder, **settings)


def test_an_interrupted_call_raises_keyboard_interrupt_and_its_repetition_resumes(
    keywords, tmp_path, monkeypatch
):
    monkeypatch.setattr(plots, "_save", warm.save_at_once)
    whole = finetune(**keywords, resume=True, output_dir=tmp_path / "whole")
    step, calls = script.training_step, []

    def interrupted_step(*arguments: object) -> object:
        calls.append(1)
        if len(calls) == 2:
            console.signal.raise_signal(console.signal.SIGINT)
        return step(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt, match="SIGINT"):
        patch.setattr(script, "training_step", interrupted_step)
        finetune(**keywords, resume=True, output_dir=tmp_path / "run")
    resumed = finetune(**keywords, resume=True, output_dir=tmp_path / "run")
    weights = [(run.model_folder / "model.safetensors").read_bytes() for run in (whole, resumed)]
    assert len(calls) == 2 and weights[0] == weights[1]


def test_a_call_outside_the_main_thread_trains(keywords, tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "_save", warm.save_at_once)
    results = []
    thread = threading.Thread(
        target=lambda: results.append(finetune(**keywords, output_dir=tmp_path / "run"))
    )
    thread.start()
    thread.join()
    assert results[0].metrics["epoch"] == 0


# ---- Failures ----


def test_a_plot_that_cannot_be_drawn_does_not_fail_the_run(keywords, tmp_path, monkeypatch, capsys):
    def fail(*_: object) -> None:
        raise ValueError("no such font")

    with monkeypatch.context() as patch:
        patch.setattr(script.report.plots, "confusion", fail)
        run = finetune(**keywords, output_dir=tmp_path / "run")
    assert run.metrics["epoch"] == 0 and not (run.folder / "checkpoint.pt").exists()
    messages = capsys.readouterr().err
    assert "NOTE: the report is not complete (no such font); run `python report.py" in messages
    script.report.main([str(run.folder)])
    assert (run.folder / "confusion.png").exists()


def test_a_report_that_fails_on_a_full_disk_is_written_on_resuming(keywords, tmp_path, monkeypatch):
    def fail(*_: object) -> None:
        raise console.RunError("full") from OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(console.RunError, match="full"):
        patch.setattr(script.report.plots, "confusion", fail)
        finetune(**keywords, resume=True, output_dir=tmp_path / "run")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["result"] is None
    run = finetune(**keywords, resume=True, output_dir=tmp_path / "run")
    assert (run.folder / "confusion.png").exists() and run.metrics["epoch"] == 0


@pytest.mark.parametrize(
    "error, message",
    [
        (MemoryError(), "out of memory; use a"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "out of memory; use a"),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            "No space left on device; check the free space",
        ),
    ],
)
def test_a_run_that_cannot_continue_raises_a_run_error_from_python(
    keywords, tmp_path, monkeypatch, error, message
):
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(script, "load", fail)
    with pytest.raises(RunError, match=message) as caught:
        finetune(**keywords, output_dir=tmp_path / "run")
    assert caught.value.__cause__ is error
    # The IndexError of a defect is not turned into a RunError.
    monkeypatch.setattr(script, "load", lambda _: [].pop())
    with pytest.raises(IndexError):
        finetune(**keywords, output_dir=tmp_path / "run")
