"""The state of a run in one file: written whole or not at all, read back exactly or refused."""

import hashlib
import os
import pickle
import re
from pathlib import Path
from types import SimpleNamespace
from typing import BinaryIO

import torch
from torch import nn

from system import disk as files
from system.console import InputError, RunError, one_line

FORMAT = 2  # Another one whenever what the state holds, or how it is meant, changes.
# Stands behind what torch.save has written, where torch.load does not look.
SEAL = "\nfinetune.py checkpoint, format {}, SHA-256 {}\n"
TENSORS = {"model", "optimizer"}
REMEDY = "put back a copy of it, or remove it to start the run again from step 0"


def new_state(run: dict) -> dict:
    """What the training loop works on, and `save` writes beside the tensors: that of a new run.

    Args:
        run: what its run.json says of when, how and on what it was started; a checkpoint is known
            by it.
    """
    return {
        "run": run,
        "epoch": 0,  # Epochs that are over, with their evaluation.
        "step": 0,  # Steps that are over, and sentences in them, of all epochs.
        "sentences": 0,
        "by_process": [],  # How many of them each process has trained on.
        "seconds": 0.0,  # Of all the work that has led here.
        "window": [],  # Loss and gradient norm of each step since the last logged one.
        "unread": [],  # The last of them, still on the device.
        "history": [],  # The lines of metrics.jsonl.
        "kept": {},  # The kept epoch and its scores.
    }


def save(path: Path, state: dict, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Write `state` and the tensors of model and optimizer as `path`, in place of what is there.

    Raises:
        RunError: it could not be written, or the weights are not finite; what was there before is
            whole.
    """
    # A step can ruin weights of which only the loss of the next one would tell.
    if not nn.utils.get_total_norm(model.parameters()).isfinite():
        raise RunError(
            f"step {state['step']}: the weights are not finite; try a lower --learning-rate"
        )
    state = state | {"model": model.state_dict(), "optimizer": optimizer.state_dict()}

    def fill(file: BinaryIO) -> None:
        digest = hashlib.sha256(str(FORMAT).encode())

        def write(part: bytes) -> int:
            digest.update(part)
            return file.write(part)

        torch.save(state, SimpleNamespace(write=write, flush=file.flush))
        file.write(SEAL.format(FORMAT, digest.hexdigest()).encode())

    files.write_whole(path, fill)


def load(path: Path, run: dict | None = None) -> dict:
    """The state that `save` wrote as `path`, with `model` and `optimizer` in it, on the CPU.

    Args:
        run: that of `new_state`, which it must have been; None: any.
    Raises:
        InputError: it is not whole, of another format or another run, or can't be read.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 200))
            seal = re.search(
                SEAL.format(r"(\d+)", r"([0-9a-f]{64})") + r"\Z", file.read().decode("latin-1")
            )
            if not seal:
                raise InputError(f"{path}: cut short or damaged; {REMEDY}")
            digest, rest = hashlib.sha256(seal[1].encode()), size - len(seal[0])
            file.seek(0)
            while rest and (part := file.read(min(rest, 2**20))):
                digest.update(part)
                rest -= len(part)
            if digest.hexdigest() != seal[2]:
                raise InputError(f"{path}: damaged (its SHA-256 is another); {REMEDY}")
            if int(seal[1]) != FORMAT:
                raise InputError(
                    f"{path}: written in format {seal[1]}, and this program reads {FORMAT}; go on "
                    "with the program that wrote it"
                )
            file.seek(0)
            # Tensors, numbers and words alone: no code that a pickle may name is run.
            state = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = one_line(error)[:99]
        raise InputError(f"{path}: has what no checkpoint holds ({found})") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    if not isinstance(state, dict) or state.keys() != new_state({}).keys() | TENSORS:
        raise InputError(f"{path}: lacks what a checkpoint holds; {REMEDY}")
    if run is not None and state["run"] != run:
        raise InputError(f"{path}: of another run than its folder; {REMEDY}")
    return state


def put_back(path: Path, state: dict, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Move the tensors of `state` into model and optimizer, where it was loaded from `path`.

    Raises:
        RunError: they are not those of this model and this optimizer.
    """
    if "model" not in state:
        return
    try:
        model.load_state_dict(state.pop("model"))
        optimizer.load_state_dict(state.pop("optimizer"))
    except (RuntimeError, ValueError, KeyError) as error:
        raise RunError(
            f"{path}: does not fit this model ({one_line(error)[:200]}); {REMEDY}"
        ) from error
