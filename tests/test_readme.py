"""The README says what the program does: its code runs, its commands are those that are run."""

import re
import subprocess
import sys

import pytest
import torch
from conftest import README, ROOT, block
from torch.nn.functional import cross_entropy


def test_the_step_by_hand_runs_and_does_what_it_says(capsys, monkeypatch):
    seen = {"losses": [], "gradients": []}
    step = torch.optim.AdamW.step

    def watch(optimizer, *arguments):
        weight = optimizer.param_groups[0]["params"][-1]
        seen["gradients"].append(weight.grad.clone())
        return step(optimizer, *arguments)

    monkeypatch.setattr(torch.optim.AdamW, "step", watch)
    names: dict = {}
    exec(block("by hand"), names)
    out = capsys.readouterr().out
    first, second = (float(loss) for loss in re.findall(r"loss (\d\.\d{4})", out))
    assert abs(first - 0.6931) < 0.1 and second != first
    assert "logits (3, 2)" in out
    assert names["probabilities"].shape == (3, 2)
    assert torch.allclose(names["probabilities"].sum(dim=1), torch.ones(3))
    answers = re.findall(r"^(this is .*): (\w+) \((0\.\d+)\)$", out, re.MULTILINE)
    assert [sentence for sentence, *_ in answers] == names["sentences"]
    assert len(seen["gradients"]) == 2

    # What it says of the loss by hand, of zero_grad, and of train and eval.
    model, batch, labels = names["model"], names["batch"], names["labels"]
    outputs = model(**batch, labels=labels)
    assert torch.equal(outputs.loss, cross_entropy(outputs.logits, labels))
    weight = model.classifier.weight
    assert weight.grad is None
    outputs.loss.backward()
    once = weight.grad.clone()
    model(**batch, labels=labels).loss.backward()
    assert torch.allclose(weight.grad, 2 * once)


@pytest.mark.parametrize(
    "mark, file", [("run", "requirements.txt"), ("test", "tests/requirements.txt")]
)
def test_each_first_command_sets_up_all_that_it_needs(mark, file):
    command = block(mark).strip()
    assert command.count("\n") == 0
    assert f"pip install -r {file}" in command and "python3 -m venv .venv" in command
    assert (ROOT / file).exists()
    for line in (ROOT / file).read_text().splitlines():
        assert not line or line.startswith(("#", "-r ")) or re.fullmatch(r"[\w-]+==[\w.]+", line)


def test_ci_runs_the_readmes_test_command_as_it_stands():
    script = (ROOT / ".ci" / "run").read_text()
    line = next(line for line in script.splitlines() if line.startswith("command="))
    told = subprocess.run(
        ["bash", "-c", f'{line}; printf "%s" "$command"'], cwd=ROOT, capture_output=True, text=True
    ).stdout
    assert told == block("test").strip()


def test_every_file_in_the_readmes_table_exists_and_none_is_missing():
    listed = set(re.findall(r"^\| `(\w+\.py)` \|", README, re.MULTILINE))
    assert listed == {file.name for file in ROOT.glob("*.py")}


def test_the_code_passes_ruff():
    for arguments in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *arguments, str(ROOT)], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout
