"""TensorBoard events for the lines of metrics.jsonl."""

import contextlib
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from system.console import InputError, Problem

FOLDER = "tensorboard"


def check(enabled: bool) -> None:
    """Raise an InputError if TensorBoard is enabled and not installed."""
    if enabled and not importlib.util.find_spec("tensorboard"):
        remedy = "use `pip install tensorboard`"
        raise InputError(Problem("", "TensorBoard is not installed", remedy, "--tensorboard"))


@contextlib.contextmanager
def opened(
    folder: Path, history: Sequence[dict], enabled: bool
) -> Iterator[Callable[[dict], object]]:
    """A function that writes a line of metrics.jsonl as an event, or does nothing if not enabled.

    The events of `history` replace the events of an earlier process.
    """
    if not enabled:
        yield lambda line: None
        return
    from torch.utils.tensorboard import SummaryWriter

    def add(line: dict) -> None:
        group = "validation" if "eval_loss" in line else "training"
        for name in line.keys() - {"step", "epoch"}:
            writer.add_scalar(f"{group}/{name.removeprefix('eval_')}", line[name], line["step"])
        # Otherwise TensorBoard shows the line later.
        writer.flush()

    with SummaryWriter(str(folder / FOLDER), purge_step=0) as writer:
        for line in history:
            add(line)
        yield add
