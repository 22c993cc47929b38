"""What is logged of a run, for TensorBoard."""

import contextlib
import functools
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from system.console import InputError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FOLDER = "tensorboard"


def check(asked: bool) -> None:
    """Refuse `--tensorboard` where it is not installed, before anything is loaded."""
    if asked and not importlib.util.find_spec("tensorboard"):
        raise InputError("--tensorboard: it is not installed here; `pip install tensorboard`")


@contextlib.contextmanager
def opened(
    folder: Path, history: Sequence[dict], is_wanted: bool
) -> Iterator[Callable[[dict], object]]:
    """A function that adds a line of metrics.jsonl to the events in a run's folder, if wanted.

    Those of `history` are there at once. Of a run that goes on, TensorBoard is told to forget what
    a process before has written.
    """
    if not is_wanted:
        yield lambda line: None
        return
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder / FOLDER), purge_step=0) as board:
        for line in history:
            _add(board, line)
        yield functools.partial(_add, board)


def _add(board: "SummaryWriter", line: dict) -> None:
    group = "validation" if "eval_loss" in line else "training"
    for name in line.keys() - {"step", "epoch"}:
        board.add_scalar(f"{group}/{name.removeprefix('eval_')}", line[name], line["step"])
    board.flush()  # So that what is seen is what has been logged.
