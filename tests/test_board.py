"""TensorBoard shows the lines of metrics.jsonl, also after a run is resumed."""

import json

import pytest
from harness.helpers import CSV

import finetune as script
from finetune import finetune
from system.console import InputError
from training import board


def test_tensorboard_shows_all_values_of_metrics_jsonl_after_a_run_is_resumed(
    tiny, tmp_path, monkeypatch
):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (tmp_path / "own.csv").write_text(CSV)
    settings = {"model": tiny, "data": tmp_path / "own.csv", "output_dir": tmp_path / "run"}
    settings |= {"epochs": 1, "learning_rate": 1e-2, "batch_size": 8, "log_every": 1}
    step, calls = script.training_step, []

    def fail_in_step_4(*arguments: object) -> object:
        calls.append(1)
        if len(calls) == 4:
            raise RuntimeError("out of memory")
        return step(*arguments)

    monkeypatch.setattr(script, "training_step", fail_in_step_4)
    with pytest.raises(RuntimeError):
        finetune(**settings, resume=True, tensorboard=True)
    run = finetune(**settings, resume=True, tensorboard=True)
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").open()]
    events = EventAccumulator(str(run.folder / board.FOLDER))
    events.Reload()
    for tag, name in (
        ("training/loss", "loss"),
        ("training/learning_rate", "learning_rate"),
        ("training/grad_norm", "grad_norm"),
        ("validation/loss", "eval_loss"),
        ("validation/accuracy", "eval_accuracy"),
        ("validation/macro_f1", "eval_macro_f1"),
    ):
        points = [(event.step, event.value) for event in events.Scalars(tag)]
        expected = [(line["step"], line[name]) for line in lines if name in line]
        assert points == [(step, pytest.approx(value, rel=1e-6)) for step, value in expected]
        assert points


def test_missing_tensorboard_is_reported_in_one_line_before_anything_is_loaded(monkeypatch):
    monkeypatch.setattr(board.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError) as caught:
        finetune(model="builtin", data="builtin", tensorboard=True)
    (problem,) = caught.value.problems
    message = "--tensorboard: TensorBoard is not installed; use `pip install tensorboard`"
    assert str(problem) == message
