"""Helpers of tests that stop and resume runs: flags, folder contents, sealed checkpoints."""

import hashlib
from pathlib import Path
from types import SimpleNamespace

import torch

import finetune
from training import checkpoint, program
from training.settings import Settings, from_flags

# Two epochs of eight steps, with dropout; a logged line can cover steps before and after a stop.
FLAGS = ["--data", "builtin", "--epochs", "2", "--max-train-samples", "64", "--batch-size", "8"]
FLAGS += ["--learning-rate", "1e-3", "--log-every", "3", "--micro-batch-size", "3"]
SHORT = [*FLAGS[:2], "--epochs", "2", "--max-train-samples", "24", *FLAGS[6:10]]
SHORTER = [*FLAGS[:2], "--epochs", "1", "--max-train-samples", "24", *FLAGS[6:10]]

# The flags of the run of the fixture `stopped`.
LONG = ["--model", "tiny", "--data", "a.csv", "--epochs", "2000", "--learning-rate", "1e-3"]
LONG += ["--output-dir", "run", "--resume"]


def read_settings(flags: list[str]) -> Settings:
    """The settings of finetune.py with these flags."""
    return program.read_settings(from_flags, vars(finetune), flags)


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of each file in a folder and its subfolders."""
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def check_refused(
    run: SimpleNamespace, folder: Path, before: dict[str, bytes], *messages: str
) -> None:
    """Check that a run was refused with these errors and did not change its folder."""
    assert run.code == 2 and len(run.errors) == len(messages), run.err
    assert "Traceback" not in run.err and run.out == ""
    for error, message in zip(run.errors, messages, strict=True):
        assert message in error, run.err
    assert contents(folder) == before


def seal(content: bytes, number: int = checkpoint.FORMAT) -> bytes:
    """The seal of a checkpoint with this content and this format number."""
    digest = hashlib.sha256(str(number).encode() + content).hexdigest()
    return checkpoint.SEAL.format(number, digest).encode()


def save_sealed(path: Path, content: object) -> None:
    """Write any content as a checkpoint with a correct seal."""
    torch.save(content, path)
    path.write_bytes(path.read_bytes() + seal(path.read_bytes()))
