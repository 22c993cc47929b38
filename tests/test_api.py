"""finetune() from Python, as in a notebook; TensorBoard; classes of unequal size."""

import errno
import json
import threading
from pathlib import Path

import nbclient
import nbformat
import numpy as np
import pytest
import torch
from conftest import CSV, NEGATIVE, POSITIVE, ROOT

import finetune as script
from finetune import SettingsError, finetune
from system import console
from training import boards, run_folder

QUICK = {"epochs": 1, "learning_rate": 1e-2, "batch_size": 8}


# ---- From Python ----


def test_every_problem_with_the_keywords_is_raised_at_once_and_nothing_exits(tmp_path):
    with pytest.raises(SettingsError) as caught:
        finetune(epochs=0, learnig_rate=3e-5, data="no.csv", seed="1", output_dir=str(tmp_path))
    problems = caught.value.problems
    assert len(problems) == 4
    assert "unknown setting learnig_rate; did you mean learning_rate?" in problems
    assert "epochs: found 0; it must be a whole number from 1 to 2147483647" in problems
    assert "seed: found '1'; it must be a whole number from 0 to 2**64 - 1" in problems
    (tmp_path / "own.csv").write_text(CSV + "good,\n")
    with pytest.raises(SettingsError, match=r"own\.csv, line 42: no label in 'label'"):
        finetune(model="builtin", data=tmp_path / "own.csv", output_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_result_has_metrics_paths_and_the_kept_model_for_use(trained):
    from transformers import pipeline

    record = json.loads((trained.folder / "run.json").read_text())
    assert trained.metrics == record["result"] and trained.metrics["accuracy"] == 40 / 43
    assert trained.model_folder == trained.folder / "model" and trained.model_folder.is_dir()
    assert not trained.model.training
    classify = pipeline("text-classification", model=trained.model, tokenizer=trained.tokenizer)
    assert [a["label"] for a in classify(POSITIVE)] == ["positive"] * 4
    assert [a["label"] for a in classify(NEGATIVE)] == ["negative"] * 4


def test_the_same_call_with_resume_gives_the_complete_run_again(trained, capsys):
    data, folder = trained.folder.parent, trained.folder
    settings = {"epochs": 8, "batch_size": 8, "learning_rate": 1e-2, "log_every": 2}
    model = json.loads((folder / "run.json").read_text())["settings"]["model"]
    again = finetune(model=model, data=data, output_dir=folder, resume=True, **settings)
    assert again.metrics == trained.metrics and capsys.readouterr().out == ""
    for name, value in again.model.state_dict().items():
        assert torch.equal(value, trained.model.state_dict()[name])
    with pytest.raises(SettingsError, match="it holds a run already"):
        finetune(model=model, data=data, output_dir=folder, **settings)


def test_the_hub_is_asked_anew_by_each_call_and_never_against_the_users_word(monkeypatch):
    from huggingface_hub import constants

    from inputs import hub

    answers = iter(["no network", None])
    monkeypatch.setattr(hub, "_why_out_of_reach", lambda *_: next(answers))
    chosen = script.from_keywords(vars(script), {})
    for at_start in (False, True):
        monkeypatch.setattr(hub, "OFFLINE_AT_START", at_start)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        if not at_start:  # As after a call without a network.
            assert hub.ask(chosen) == "no network" and hub.ask(chosen) is None
            assert constants.HF_HUB_OFFLINE is False
    here = script.from_keywords(vars(script), {"model": "builtin", "data": "builtin"})
    assert hub.ask(here) is None and constants.HF_HUB_OFFLINE is True


def test_numbers_of_numpy_are_numbers_and_one_run_goes_on_at_a_time(tmp_path):
    settings = script.from_keywords(
        vars(script), {"epochs": np.int64(2), "learning_rate": np.float64(1e-3), "data": "builtin"}
    )
    assert type(settings.epochs) is int and type(settings.learning_rate) is float
    with script._running, pytest.raises(SettingsError, match="another run goes on"):
        finetune(data="builtin")
    with pytest.raises(SettingsError, match="null byte"):
        finetune(data="builtin", output_dir=str(tmp_path / "a\0b"))
    with pytest.raises(SettingsError, match="found") as caught:
        finetune(data=["x" * 1000])
    assert len(str(caught.value)) < 300


def test_an_interrupted_call_is_a_keyboard_interrupt_and_goes_on_when_repeated(
    tiny, tmp_path, monkeypatch
):
    (tmp_path / "own.csv").write_text(CSV)
    how = {"model": tiny, "data": tmp_path / "own.csv", "resume": True, **QUICK}
    whole = finetune(**how, output_dir=tmp_path / "whole")
    step, calls = script.training_step, []

    def interrupted(*arguments: object) -> object:
        calls.append(1)
        if len(calls) == 2:
            console.signal.raise_signal(console.signal.SIGINT)
        return step(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt, match="SIGINT"):
        patch.setattr(script, "training_step", interrupted)
        finetune(**how, output_dir=tmp_path / "run")
    resumed = finetune(**how, output_dir=tmp_path / "run")
    weights = [(run.model_folder / "model.safetensors").read_bytes() for run in (whole, resumed)]
    assert len(calls) == 2 and weights[0] == weights[1]


def test_a_picture_that_cannot_be_drawn_does_not_cost_the_run(tiny, tmp_path, monkeypatch, capsys):
    def fail(*_: object) -> None:
        raise ValueError("no such font")

    (tmp_path / "own.csv").write_text(CSV)
    with monkeypatch.context() as patch:
        patch.setattr(script.report.pictures, "confusion", fail)
        run = finetune(model=tiny, data=tmp_path / "own.csv", output_dir=tmp_path / "run", **QUICK)
    assert run.metrics["epoch"] == 0 and not (run.folder / "checkpoint.pt").exists()
    said = capsys.readouterr().err
    assert "NOTE: its report is not complete (no such font); `python report.py" in said
    script.report.main([str(run.folder)])
    assert (run.folder / "confusion.png").exists()


def test_a_report_for_which_the_disk_has_no_space_is_written_when_there_is(
    tiny, tmp_path, monkeypatch
):
    def fail(*_: object) -> None:
        raise console.RunError("full") from OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "own.csv").write_text(CSV)
    how = {"model": tiny, "data": tmp_path / "own.csv", "resume": True, **QUICK}
    with monkeypatch.context() as patch, pytest.raises(console.RunError, match="full"):
        patch.setattr(script.report.pictures, "confusion", fail)
        finetune(**how, output_dir=tmp_path / "run")
    assert (finetune(**how, output_dir=tmp_path / "run").folder / "confusion.png").exists()


def test_a_call_in_a_thread_trains_though_signals_come_to_the_main_thread_alone(tiny, tmp_path):
    (tmp_path / "own.csv").write_text(CSV)
    found = []

    def train() -> None:
        found.append(
            finetune(model=tiny, data=tmp_path / "own.csv", output_dir=tmp_path / "run", **QUICK)
        )

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert found[0].metrics["epoch"] == 0


def test_the_notebook_runs_from_top_to_bottom_with_bars_of_its_own(tmp_path, monkeypatch):
    source = ROOT / "examples" / "finetune.ipynb"
    notebook = nbformat.read(source, as_version=4)
    nbformat.validate(notebook)
    assert all(not cell.get("outputs") for cell in notebook.cells)  # None of another day.
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(console, "SECONDS_BETWEEN_LOG_LINES", 0)
    client = nbclient.NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    text = json.dumps(outputs)
    assert "'accuracy'" in text and "unknown setting learnig_rate" in text
    assert "image/png" in text
    assert "application/vnd.jupyter.widget-view+json" in text  # A bar.
    answers = notebook.cells[-1].outputs[-1]["data"]["text/plain"]
    assert answers.index("'label': 'positive'") < answers.index("'label': 'negative'")
    (folder,) = (tmp_path / "runs").iterdir()
    assert (folder / "model" / "README.md").exists()


# ---- TensorBoard ----


def test_tensorboard_shows_what_metrics_jsonl_has_also_of_a_run_that_went_on(
    tiny, tmp_path, monkeypatch
):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (tmp_path / "own.csv").write_text(CSV)
    how = {"model": tiny, "data": tmp_path / "own.csv", "log_every": 1, "resume": True, **QUICK}
    step, calls = script.training_step, []

    def fails_once(*arguments: object) -> object:
        calls.append(1)
        if len(calls) == 4:
            raise RuntimeError("out of memory")
        return step(*arguments)

    monkeypatch.setattr(script, "training_step", fails_once)
    with pytest.raises(RuntimeError):
        finetune(**how, output_dir=tmp_path / "run", tensorboard=True)
    run = finetune(**how, output_dir=tmp_path / "run", tensorboard=True)
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").open()]
    board = EventAccumulator(str(run.folder / boards.FOLDER))
    board.Reload()
    for tag, name in (
        ("training/loss", "loss"),
        ("training/learning_rate", "learning_rate"),
        ("validation/loss", "eval_loss"),
        ("validation/accuracy", "eval_accuracy"),
    ):
        events = [(event.step, event.value) for event in board.Scalars(tag)]
        expected = [(line["step"], line[name]) for line in lines if name in line]
        assert events == [(step, pytest.approx(value, rel=1e-6)) for step, value in expected]


def test_tensorboard_that_is_not_installed_is_one_line_before_anything_is_loaded(monkeypatch):
    monkeypatch.setattr(boards.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SettingsError) as caught:
        finetune(model="builtin", data="builtin", tensorboard=True)
    (problem,) = caught.value.problems
    assert problem == "--tensorboard: it is not installed here; `pip install tensorboard`"


# ---- Classes of unequal size ----


def write_unequal(folder: Path) -> Path:
    """Nine in ten are `no`, and of those with "odd", which most of the others have, six in ten."""
    folder.mkdir()
    choose = np.random.default_rng(0)
    for name, count in (("train", 400), ("dev", 200)):
        lines = []
        for number in range(count):
            is_rare = number % 10 == 0
            word = "odd" if choose.random() < (0.8 if is_rare else 0.13) else "even"
            lines.append(f"{word} {number % 7},{'yes' if is_rare else 'no'}\n")
        (folder / f"{name}.csv").write_text("text,label\n" + "".join(lines))
    return folder


def test_balanced_weights_find_a_rare_class_that_plain_training_never_finds(tiny, tmp_path):
    data, recalls = write_unequal(tmp_path / "data"), {}
    for weights in (None, "balanced"):
        run = finetune(
            model=tiny,
            data=data,
            class_weights=weights,
            epochs=8,
            learning_rate=1e-2,
            keep="last",
            output_dir=tmp_path / str(weights),
        )
        with (run.folder / "mistakes.csv").open() as file:
            missed = sum(line.split(",")[-3] == "yes" for line in file)
        recalls[weights] = 1 - missed / 20
        assert 0 < run.metrics["macro_f1"] < run.metrics["accuracy"]
        assert f"macro-F1 {run.metrics['macro_f1']:.4f}" in run_folder.result_line("a", run.metrics)
    print(recalls)
    assert recalls[None] < 0.2 and recalls["balanced"] > 0.5


def test_the_weighted_loss_is_torchs_and_its_weights_are_scikit_learns(tiny):
    from sklearn.utils.class_weight import compute_class_weight

    import data
    from inputs import encoder as models

    counts = np.array([30, 8, 0, 2])
    labels = np.repeat(np.arange(4), counts)
    weights = script.balanced_weights(counts)
    expected = compute_class_weight("balanced", classes=np.array([0, 1, 3]), y=labels)
    assert weights[[0, 1, 3]].tolist() == pytest.approx(expected.tolist())
    assert weights[torch.from_numpy(labels)].mean() == pytest.approx(1)

    names = list("abcd")
    rows = [{"input_ids": [101, 2000 + i, 102], "labels": int(i % 4 == 1)} for i in range(8)]
    losses = []
    for most in (8, 3):
        torch.manual_seed(0)
        model, *_ = models.load_model(str(tiny), names, None)
        settings = script.from_keywords(vars(script), {"model": "builtin", "data": "builtin"})
        settings.learning_rate, settings.precision = 1e-3, "fp32"
        optimizer = script.make_optimizer(model, settings)
        batch = data.Batch(data.collate(rows, 0, most), [8], None)
        with torch.no_grad():
            (whole,) = data.collate(rows, 0, 8)
            right = whole.pop("labels")
            each = torch.nn.functional.cross_entropy(
                model(**whole).logits, right, weights, reduction="none"
            )
        loss, _ = script.training_step(model, optimizer, batch, settings, weights)
        assert loss.item() == pytest.approx(each.sum().item() / 8, rel=1e-5)
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize(
    "labels, shown",
    [(["a", "b"] * 10, False), (["a"] * 17 + ["b"] * 4, True), (["a", "b", "c"] * 7, True)],
)
def test_macro_f1_stands_beside_accuracy_where_a_class_is_rare_or_there_are_more_than_two(
    tiny, tmp_path, labels, shown, capsys
):
    from sklearn.metrics import f1_score

    (tmp_path / "data").mkdir()
    rows = "".join(f"text {number},{label}\n" for number, label in enumerate(labels))
    for name in ("train", "dev"):
        (tmp_path / "data" / f"{name}.csv").write_text("text,label\n" + rows)
    run = finetune(model=tiny, data=tmp_path / "data", output_dir=tmp_path / "run", **QUICK)
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").open()]
    assert ("eval_macro_f1" in lines[-1]) == shown == ("macro_f1" in run.metrics)
    assert ("Macro-F1" in (run.model_folder / "README.md").read_text()) == shown
    assert capsys.readouterr().out == f"epoch 0: {{'accuracy': {run.metrics['accuracy']}}}\n"
    if shown:
        with torch.inference_mode():
            texts = [f"text {number}" for number in range(len(labels))]
            batch = run.tokenizer(texts, padding=True, return_tensors="pt")
            batch.pop("token_type_ids", None)
            said = run.model(**batch).logits.argmax(dim=-1).tolist()
        right = [sorted(set(labels)).index(label) for label in labels]
        expected = f1_score(right, said, average="macro", zero_division=0)
        assert run.metrics["macro_f1"] == pytest.approx(expected)
