"""What is logged of a run, for TensorBoard."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from console import InputError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FOLDER = "tensorboard"


def check(asked: bool) -> None:
    """Refuse `--tensorboard` where it is not installed, before anything is loaded."""
    if asked and not importlib.util.find_spec("tensorboard"):
        raise InputError("--tensorboard: it is not installed here; `pip install tensorboard`")


def open_board(folder: Path, history: Sequence[dict]) -> "SummaryWriter":
    """A writer of events in the folder of a run, with the lines of `history` in it.

    Of a run that goes on, TensorBoard is told to forget what a process before has written.
    """
    from torch.utils.tensorboard import SummaryWriter

    board = SummaryWriter(str(folder / FOLDER), purge_step=0)
    for line in history:
        add(board, line)
    return board


def add(board: "SummaryWriter", line: dict) -> None:
    """Add a line of metrics.jsonl."""
    group = "validation" if "eval_loss" in line else "training"
    for name in line.keys() - {"step", "epoch"}:
        board.add_scalar(f"{group}/{name.removeprefix('eval_')}", line[name], line["step"])
    board.flush()  # So that what is seen is what has been logged.
