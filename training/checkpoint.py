"""The state of a run in one sealed file: written whole or not at all, read back exactly."""

import dataclasses
import hashlib
import os
import pickle
import re
from pathlib import Path
from types import SimpleNamespace
from typing import BinaryIO

import torch
from torch import nn

from system import disk
from system.console import InputError, Problem, RunError, one_line

FORMAT = 3  # Changes whenever the content of State, or its meaning, changes.
# Follows the bytes of torch.save, where torch.load does not look.
SEAL = "\nfinetune.py checkpoint, format {}, SHA-256 {}\n"
REMEDY = "put back a copy of it, or remove it to start the run again from step 0"


@dataclasses.dataclass
class State:
    """How far a run is: what a checkpoint holds beside the tensors of model and optimizer."""

    run: dict  # Entries of run.json that name the run, so that a checkpoint of another is refused.
    epoch: int = 0  # Epochs that are over, with their evaluation.
    step: int = 0  # Steps that are over, of all epochs.
    sentences: int = 0  # Sentences in those steps.
    seconds: float = 0.0
    window: list = dataclasses.field(default_factory=list)  # Loss and norm of unlogged steps.
    history: list = dataclasses.field(default_factory=list)  # The lines of metrics.jsonl.
    best: dict = dataclasses.field(default_factory=dict)  # The kept epoch and its scores.


def save(path: Path, state: State, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Write `state` and the tensors of model and optimizer as `path`.

    RunError if it could not be written or the weights are not finite; `path` is then as before.
    """
    # A step can ruin weights, and only the loss of the next one would show it.
    if not nn.utils.get_total_norm(model.parameters()).isfinite():
        raise RunError(
            f"step {state.step}: the weights are not finite; try a lower --learning-rate"
        )
    tensors = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}

    def fill(file: BinaryIO) -> None:
        digest = hashlib.sha256(str(FORMAT).encode())

        def write(part: bytes) -> int:
            digest.update(part)
            return file.write(part)

        torch.save(vars(state) | tensors, SimpleNamespace(write=write, flush=file.flush))
        file.write(SEAL.format(FORMAT, digest.hexdigest()).encode())

    disk.write_whole(path, fill)


def read_state(path: Path, run: dict | None = None) -> State:
    """The state in the checkpoint `path`, whose seal is checked; its tensors stay on disk.

    InputError if it is damaged, of another format, or not of `run`.
    """
    try:
        _check_seal(path)
        content = _load(path, mmap=True)
    except pickle.UnpicklingError as error:
        what = f"has what no checkpoint holds ({one_line(error)[:99]})"
        raise InputError(Problem(str(path), what)) from error
    except OSError as error:
        raise InputError(Problem(str(path), f"cannot be read ({error.strerror})")) from error
    names = {field.name for field in dataclasses.fields(State)}
    if not isinstance(content, dict) or content.keys() != names | {"model", "optimizer"}:
        raise InputError(Problem(str(path), "lacks what a checkpoint holds", REMEDY))
    state = State(**{name: content[name] for name in names})
    if run is not None and state.run != run:
        raise InputError(Problem(str(path), "of another run than its folder", REMEDY))
    return state


def restore(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put the tensors of a checkpoint into model and optimizer; RunError if they don't fit."""
    content = _load(path)
    try:
        model.load_state_dict(content["model"])
        optimizer.load_state_dict(content["optimizer"])
    except (RuntimeError, ValueError, KeyError) as error:
        raise RunError(
            f"{path}: does not fit this model ({one_line(error)[:200]}); {REMEDY}"
        ) from error


def _load(path: Path, mmap: bool = False) -> dict:
    # Only tensors, numbers and words: no code that a pickle may name is run.
    return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)


def _check_seal(path: Path) -> None:
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 200))
        pattern = SEAL.format(r"(\d+)", r"([0-9a-f]{64})") + r"\Z"
        seal = re.search(pattern, file.read().decode("latin-1"))
        if not seal:
            raise InputError(Problem(str(path), "cut short or damaged", REMEDY))
        digest, rest = hashlib.sha256(seal[1].encode()), size - len(seal[0])
        file.seek(0)
        while rest and (part := file.read(min(rest, 2**20))):
            digest.update(part)
            rest -= len(part)
    if digest.hexdigest() != seal[2]:
        raise InputError(Problem(str(path), "damaged (SHA-256 mismatch)", REMEDY))
    if int(seal[1]) != FORMAT:
        what = f"written in format {seal[1]}, and this program reads {FORMAT}"
        raise InputError(Problem(str(path), what, "continue with the program that wrote it"))
