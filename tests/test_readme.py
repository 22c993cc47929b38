"""The README says what the program does: its code runs, its commands are those that are run."""

import json
import re
import shlex
import shutil
import subprocess
import sys

import pytest
import torch
from harness.helpers import README, ROOT, ROWS, block
from torch.nn.functional import cross_entropy

import predict
import report
from system import console


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

    # Its sentences on the loss by hand, on zero_grad, and on train and eval.
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


def test_own_data_in_five_lines_of_python_ends_with_a_model(tmp_path, monkeypatch):
    rows = "".join(f'{number},"{text}",{label}\n' for number, (text, label) in enumerate(ROWS))
    (tmp_path / "tickets.csv").write_text(f"Id,Message,Queue\n{rows}7,,positive\n")
    monkeypatch.chdir(tmp_path)
    code = block("own data")
    assert len(code.strip().splitlines()) == 6 and "\n\n" in code  # Five, and an empty one.
    names: dict = {}
    exec(code, names)
    assert names["result"].model_folder.is_dir()
    record = json.loads((names["result"].folder / "run.json").read_text())
    assert record["labels"] == ["negative", "positive"]
    assert sum(record["sentences"].values()) == 40


def test_the_commands_for_answers_and_reports_run_as_they_stand(
    trained, tmp_path, monkeypatch, capsys
):
    shutil.copytree(trained.folder, tmp_path / "runs" / "first")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(console, "stop_on_signals", lambda: None)
    monkeypatch.setattr(predict.signal, "signal", lambda *_: None)
    monkeypatch.setattr(sys.stdout, "reconfigure", lambda **_: None, raising=False)
    program, *arguments = shlex.split(block("predict.py"))[1:]
    assert program == "predict.py"
    predict.main(arguments)
    assert re.fullmatch(r"((negative|positive)\t0\.\d{4}\n){2}", capsys.readouterr().out)
    one, several = (line.partition("#")[0].split() for line in block("report").splitlines())
    assert one[1] == several[1] == "report.py" and several[2] == "runs/*"
    report.main(one[2:])
    shutil.copytree("runs/first", "runs/second")
    report.main(list(map(str, (tmp_path / "runs").iterdir())))
    assert capsys.readouterr().out.startswith("run")
    assert (tmp_path / "runs" / "comparison.png").exists()


def test_each_step_of_the_tutorial_leads_to_a_function_that_is_there():
    section = README.partition("## From the tutorial to here")[2].partition("\n## ")[0]
    found = re.findall(r"`(\w+)` in `([\w/]+\.py)`", section)
    assert len(found) >= 12
    for name, file in found:
        assert re.search(rf"^(def|class) {name}\b", (ROOT / file).read_text(), re.MULTILINE), name


def test_every_picture_of_the_readme_is_there():
    pictures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", README)
    assert pictures and all((ROOT / picture).is_file() for picture in pictures)


def test_the_readmes_table_lists_every_file_once_and_room_by_room():
    listed = re.findall(r"^\| `([\w/]+\.py)` \|", README, re.MULTILINE)
    rooms = ("", "inputs", "training", "outputs", "system")  # The first are the files at the top.
    files = [file for room in rooms for file in (ROOT / room).glob("*.py")]
    modules = [f.relative_to(ROOT).as_posix() for f in files if f.name != "__init__.py"]
    assert sorted(listed) == sorted(modules)
    order = [rooms.index(file.rpartition("/")[0]) for file in listed]
    assert order == sorted(order)


def test_the_code_passes_ruff():
    for arguments in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *arguments, str(ROOT)], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout
