"""A checkpoint is read back exactly, or refused in one line and not changed."""

import dataclasses
from pathlib import Path

import pytest
import torch
from harness.stopped import contents, save_sealed, seal

from system.console import RunError
from training import checkpoint
from training.checkpoint import State

# ---- Written and read ----


def trained() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """A small model and its optimizer after two steps."""
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    for _ in range(2):
        model(torch.ones(1, 3)).sum().backward()
        optimizer.step()
    return model, optimizer


FULL = State(
    run={"started": "now", "settings": {"seed": 2**64 - 1, "text_column": ["a", "b"]}},
    epoch=1,
    step=7,
    sentences=56,
    seconds=0.1,
    window=[[0.1, 2.5]],
    history=[{"step": 5, "loss": 0.7}],
    best={"epoch": 0, "accuracy": 0.5},
)


def test_state_and_tensors_are_read_back_exactly(tmp_path):
    path = tmp_path / "checkpoint.pt"
    model, optimizer = trained()
    checkpoint.save(path, FULL, model, optimizer)
    assert checkpoint.read_state(path) == checkpoint.read_state(path, FULL.run) == FULL
    new_model = torch.nn.Linear(3, 2)
    new_optimizer = torch.optim.AdamW(new_model.parameters())
    checkpoint.restore(path, new_model, new_optimizer)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, new_model.state_dict()[name])
    for old, new in zip(model.parameters(), new_model.parameters(), strict=True):
        assert optimizer.state[old].keys() == new_optimizer.state[new].keys() != set()
        for name, tensor in optimizer.state[old].items():
            assert torch.equal(tensor, new_optimizer.state[new][name])


def test_the_state_of_a_new_run_is_empty():
    new = State({"started": "now"})
    assert (new.epoch, new.step, new.sentences, new.seconds) == (0, 0, 0, 0.0)
    assert new.window == new.history == [] and new.best == {}
    assert new.history is not State({}).history


class RunsCode:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_torch_alone_reads_a_checkpoint_and_reading_runs_no_code(tmp_path):
    path = tmp_path / "checkpoint.pt"
    model, optimizer = trained()
    checkpoint.save(path, FULL, model, optimizer)
    content = torch.load(path, weights_only=True)
    assert content["step"] == 7 and torch.equal(content["model"]["weight"], model.weight)
    # The seal is correct, but unpickling this content would run code.
    save_sealed(path, {"a": RunsCode(tmp_path / "ran")})
    with pytest.raises(ValueError, match="unexpected content"):
        checkpoint.read_state(path)
    assert not (tmp_path / "ran").exists()


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    path = tmp_path / "checkpoint.pt"
    model, optimizer = trained()
    checkpoint.save(path, FULL, model, optimizer)
    before = contents(tmp_path)
    model.weight.data[0, 0] = float("nan")
    with pytest.raises(RunError, match="step 8: the weights are not finite"):
        checkpoint.save(path, dataclasses.replace(FULL, step=8), model, optimizer)
    assert contents(tmp_path) == before


# ---- Refused ----


def test_a_sealed_file_with_missing_or_unexpected_entries_is_refused(tmp_path):
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, FULL, *trained())
    content = torch.load(path, weights_only=True)
    without_model = {name: value for name, value in content.items() if name != "model"}
    for wrong_content in ({"a": 1}, [1], without_model, content | {"kept": {}}):
        save_sealed(path, wrong_content)
        with pytest.raises(ValueError, match="missing or unexpected entries"):
            checkpoint.read_state(path)


def in_another_format(path: Path, other: Path) -> None:
    content = path.read_bytes()[: -len(seal(b""))]
    path.write_bytes(content + seal(content, number=27))


def of_another_run(path: Path, other: Path) -> None:
    path.write_bytes(other.read_bytes())


def of_another_model(path: Path, other: Path) -> None:
    """Write a complete checkpoint of this run, with a different model."""
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    checkpoint.save(path, checkpoint.read_state(path), model, optimizer)


def empty(path: Path, other: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize(
    "change, code, message",
    [
        (in_another_format, 2, "expected format 3, found 27"),
        (of_another_run, 2, "belongs to a different run"),
        (of_another_model, 1, "does not fit this model"),
        (empty, 2, "truncated or damaged"),
    ],
)
def test_a_checkpoint_of_a_different_run_model_or_format_is_refused(
    in_process, tmp_path, stopped, change, code, message
):
    change(tmp_path / "run" / "checkpoint.pt", tmp_path / "other" / "checkpoint.pt")
    before = contents(tmp_path / "run")
    run = in_process(*stopped)
    assert run.code == code and len(run.errors) == 1 and message in run.errors[0], run.err
    assert "checkpoint.pt" in run.errors[0] and "Traceback" not in run.err
    assert code == 1 or contents(tmp_path / "run") == before
