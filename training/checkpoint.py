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

# A change of the fields of State, or of their meaning, needs a new number.
FORMAT = 3
# The seal follows torch.save's bytes; torch.load ignores the seal.
SEAL = "\nfinetune.py checkpoint, format {}, SHA-256 {}\n"
REMEDY = "restore it from a copy, or remove it to start the run again from step 0"


@dataclasses.dataclass
class State:
    """The progress of a run: a checkpoint holds it beside the tensors of model and optimizer.

    `run` identifies the run. Complete epochs, steps and sentences are counted. `window` has loss
    and gradient norm of unlogged steps, `history` the logged lines, `best` the kept epoch.
    """

    run: dict
    epoch: int = 0
    step: int = 0
    sentences: int = 0
    seconds: float = 0.0
    window: list = dataclasses.field(default_factory=list)
    history: list = dataclasses.field(default_factory=list)
    best: dict = dataclasses.field(default_factory=dict)


def save(path: Path, state: State, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Write `state` and the tensors of model and optimizer as `path`.

    RunError if the write fails or a weight is not finite; `path` then stays unchanged.
    """
    # The last step may have ruined the weights, and only the next loss would show it.
    if not nn.utils.get_total_norm(model.parameters()).isfinite():
        raise RunError(
            f"step {state.step}: the weights are not finite; use a lower --learning-rate"
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
    """The state in the checkpoint `path`, after a check of its seal; tensors stay on disk.

    InputError if the file is damaged, has a different format, or belongs to a different `run`.
    """
    try:
        _check_seal(path)
        content = _load(path, mmap=True)
    except pickle.UnpicklingError as error:
        problem_text = f"unexpected content ({one_line(error)[:99]})"
        raise InputError(Problem(str(path), problem_text, REMEDY)) from error
    except OSError as error:
        raise InputError(Problem(str(path), f"cannot be read ({error.strerror})")) from error
    names = {field.name for field in dataclasses.fields(State)}
    if not isinstance(content, dict) or content.keys() != names | {"model", "optimizer"}:
        raise InputError(Problem(str(path), "missing or unexpected entries", REMEDY))
    state = State(**{name: content[name] for name in names})
    if run is not None and state.run != run:
        raise InputError(Problem(str(path), "belongs to a different run", REMEDY))
    return state


def restore(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Load the tensors of a checkpoint into model and optimizer; RunError if they don't fit."""
    content = _load(path)
    try:
        model.load_state_dict(content["model"])
        optimizer.load_state_dict(content["optimizer"])
    except (RuntimeError, ValueError, KeyError) as error:
        raise RunError(
            f"{path}: does not fit this model ({one_line(error)[:200]}); {REMEDY}"
        ) from error


def _load(path: Path, mmap: bool = False) -> dict:
    # With weights_only torch.load runs no code that a pickle names.
    return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)


def _check_seal(path: Path) -> None:
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 200))
        pattern = SEAL.format(r"(\d+)", r"([0-9a-f]{64})") + r"\Z"
        seal = re.search(pattern, file.read().decode("latin-1"))
        if not seal:
            raise InputError(Problem(str(path), "truncated or damaged", REMEDY))
        digest, rest = hashlib.sha256(seal[1].encode()), size - len(seal[0])
        file.seek(0)
        while rest and (part := file.read(min(rest, 2**20))):
            digest.update(part)
            rest -= len(part)
    if digest.hexdigest() != seal[2]:
        raise InputError(Problem(str(path), "damaged (SHA-256 mismatch)", REMEDY))
    if int(seal[1]) != FORMAT:
        problem_text = f"expected format {FORMAT}, found {seal[1]}"
        remedy = "use the version of this program that wrote the file"
        raise InputError(Problem(str(path), problem_text, remedy))
