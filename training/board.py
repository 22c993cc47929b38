"""The lines of metrics.jsonl for TensorBoard, if it is installed."""

import contextlib
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from system.console import InputError, Problem

FOLDER = "tensorboard"


def check(is_wanted: bool) -> None:
    """Refuse `--tensorboard` if it is not installed, before anything is loaded."""
    if is_wanted and not importlib.util.find_spec("tensorboard"):
        remedy = "`pip install tensorboard`"
        raise InputError(Problem("", "it is not installed here", remedy, "--tensorboard"))


@contextlib.contextmanager
def opened(
    folder: Path, history: Sequence[dict], is_wanted: bool
) -> Iterator[Callable[[dict], object]]:
    """A function that adds a line of metrics.jsonl to the events in a run's folder, if wanted.

    Events of `history` are added at once, and replace those that an earlier process wrote.
    """
    if not is_wanted:
        yield lambda line: None
        return
    from torch.utils.tensorboard import SummaryWriter

    def add(line: dict) -> None:
        group = "validation" if "eval_loss" in line else "training"
        for name in line.keys() - {"step", "epoch"}:
            writer.add_scalar(f"{group}/{name.removeprefix('eval_')}", line[name], line["step"])
        writer.flush()  # So that a person sees all that has been logged.

    with SummaryWriter(str(folder / FOLDER), purge_step=0) as writer:
        for line in history:
            add(line)
        yield add
