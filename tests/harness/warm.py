"""Run the program in forks of a process that has already imported everything.

A fork saves seconds of imports, so a test can kill the program hundreds of times. The parent must
not start a thread, because threads do not survive a fork.
"""

import contextlib
import functools
import hashlib
import itertools
import json
import math
import os
import random
import re
import shutil
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import matplotlib.figure
import safetensors.torch
import scipy.io
import scipy.stats  # noqa: F401
import sklearn.metrics  # noqa: F401
import torch
import torch.utils.serialization
import transformers.models.bert.tokenization_bert
import transformers.models.distilbert.modeling_distilbert
import transformers.trainer_utils  # noqa: F401
from transformers import conversion_mapping

import finetune
from outputs import plots
from system import console, disk
from training import checkpoint, program, run_folder, scores

# These calls import `evaluate` and compile hundreds of patterns, so the children need not do so.
scores.load_accuracy()
conversion_mapping.get_checkpoint_conversion_mapping("distilbert")


def run_program(flags: list[str]) -> None:
    before, sys.argv = sys.argv, ["finetune.py", *flags]
    try:
        program.finish(finetune.main, program.start(vars(finetune)))
    finally:
        sys.argv = before


def start(flags: list[str], log: Path, before: Callable[[], None] = lambda: None) -> int:
    """Start the program in a child that appends its output to `log`; the child's process id."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        console.end_on_signals()
        before()
        run_program(flags)
        code = 0
    except SystemExit as stop:
        code = stop.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def exit_code(pid: int) -> int:
    """Wait for a child; its exit code, or minus the number of the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


# ---- The outcome of a run ----


def outcome(folder: Path) -> dict:
    """Everything in a run's folder that must be equal after interruptions; no times or speeds."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
    record = json.loads((folder / "run.json").read_text())
    return {
        "names": sorted(path.name for path in folder.iterdir()),
        "model": {path.name: digest(path.read_bytes()) for path in (folder / "model").iterdir()},
        "metrics": [without_times(line) for line in lines],
        "result": without_times(record["result"]),
        "last state": digest(repr(comparable(load_content(last_state(folder)))).encode()),
    }


def load_content(path: Path) -> dict:
    """The content of a checkpoint after a check of its seal."""
    checkpoint.read_state(path)
    return torch.load(path, weights_only=True)


def digest(part: bytes) -> str:
    return hashlib.sha256(part).hexdigest()


def without_times(record: dict) -> dict:
    return {k: v for k, v in record.items() if k not in ("samples_per_second", "seconds")}


def comparable(value: object) -> object:
    """A state without its times, with each tensor as the digest of its bytes."""
    if isinstance(value, dict):
        names = sorted(without_times(value).keys() - {"run"}, key=str)
        return [(name, comparable(value[name])) for name in names]
    if isinstance(value, list):
        return list(map(comparable, value))
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), digest(value.numpy().tobytes())
    return value


def last_state(folder: Path) -> Path:
    """The path of the copy of a run's last checkpoint, which `copy_last_state` makes."""
    return folder.with_name(folder.name + ".last.pt")


def resumed_steps(log: Path) -> list[int]:
    """The steps from which a run was resumed, read from its log."""
    return [int(step) for step in re.findall(r"^resumed from step (\d+)$", log.read_text(), re.M)]


class Runs:
    """Interrupted runs with the same flags, and an uninterrupted run for comparison."""

    def __init__(self, folder: Path, flags: list[str]):
        self.folder, self.flags = folder, flags
        # The first run fills the cache of `datasets`.
        for name in ("cold", "reference"):
            started = time.monotonic()
            assert self.run(name) == 0, (folder / f"{name}.log").read_text()
            self.seconds = time.monotonic() - started
        self.expected = outcome(folder / "reference")

    def start(self, name: str, *flags: str, before: Callable[[], None] = lambda: None) -> int:
        """Start or resume the run `name` in a child; the child's process id."""

        def prepare_child() -> None:
            prepare()
            before()

        flags = (*self.flags, *flags, "--resume", "--output-dir", str(self.folder / name))
        return start(list(flags), self.folder / f"{name}.log", prepare_child)

    def run(self, name: str, *flags: str, before: Callable[[], None] = lambda: None) -> int:
        """Start or resume the run `name` in a child; the child's exit code."""
        return exit_code(self.start(name, *flags, before=before))

    def check(self, name: str, *flags: str) -> list[int]:
        """Resume a run to its end, check its outcome, remove it; the steps of all resumptions."""
        log = self.folder / f"{name}.log"
        assert self.run(name, *flags) == 0, log.read_text()
        result = outcome(self.folder / name)
        assert result == self.expected, (name, result, self.expected)
        assert "Traceback" not in log.read_text(), log.read_text()
        steps = resumed_steps(log)
        for path in (self.folder / name, last_state(self.folder / name)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        return steps

    def check_whole(self, name: str) -> None:
        """Check that a killed run's checkpoint and model are complete if they exist."""
        folder = self.folder / name
        if (folder / "checkpoint.pt").exists():
            checkpoint.read_state(folder / "checkpoint.pt")
        if (folder / "model").exists():
            names = {path.name for path in (folder / "model").iterdir()}
            # The program writes these two files at the end of a run.
            last_names = {"README.md", "curves.png"}
            names = {name for name in names if not name.endswith(disk.PARTIAL)}
            assert names | last_names == set(self.expected["model"])
            safetensors.torch.load_file(folder / "model" / "model.safetensors")


# ---- Changes of a child before it runs the program ----


def prepare() -> None:
    """Keep a copy of the last checkpoint, and draw no plots."""
    copy_last_state()
    plots._save = save_at_once


def copy_last_state() -> None:
    """Copy the last checkpoint before the end of a run removes it."""
    finish = run_folder.finish

    def copy_then_finish(folder: Path, *arguments: object) -> None:
        shutil.copy(folder / "checkpoint.pt", last_state(folder))
        finish(folder, *arguments)

    run_folder.finish = copy_then_finish


def save_at_once(figure: matplotlib.figure.Figure, path: Path) -> None:
    """Replace plots._save: write the figure's numbers as text, because drawing takes a second."""
    values = [figure.get_suptitle(), *(axes.get_title() for axes in figure.axes)]
    values += [line.get_xydata().tolist() for axes in figure.axes for line in axes.lines]
    disk.write_whole(path, lambda file: file.write(repr(values).encode()))


def signal_at(event: str, count: int, number: int) -> Callable[[], None]:
    """Let the child send itself signal `number` at the `count`-th event, counted from 1."""

    def prepare() -> None:
        counter = itertools.count(1)

        def signal_then_call(real: Callable, *arguments: object, **options: object) -> object:
            if next(counter) == count:
                os.kill(os.getpid(), number)
            return real(*arguments, **options)

        if event == "a step":
            finetune.training_step = functools.partial(signal_then_call, finetune.training_step)
        elif event == "a batch of an evaluation":
            evaluate, forward = finetune.evaluate, finetune.forward

            def signal_in_forward(*arguments: object) -> object:
                finetune.forward = functools.partial(signal_then_call, forward)
                try:
                    return evaluate(*arguments)
                finally:
                    finetune.forward = forward

            finetune.evaluate = signal_in_forward
        elif event == "a part of a checkpoint":
            sha256 = hashlib.sha256
            save = checkpoint.save

            def save_with_signal(*arguments: object) -> None:
                def with_signal(start: bytes) -> SimpleNamespace:
                    digest = sha256(start)
                    update = functools.partial(signal_then_call, digest.update)
                    return SimpleNamespace(update=update, hexdigest=digest.hexdigest)

                hashlib.sha256 = with_signal
                save(*arguments)
                hashlib.sha256 = sha256

            checkpoint.save = save_with_signal

    return prepare


def set_weight_to_nan_at(call: int) -> Callable[[], None]:
    """Set a weight to NaN after step `call`, whose own loss is finite."""

    def prepare() -> None:
        counter, real = itertools.count(1), finetune.training_step

        def step_then_nan(model: torch.nn.Module, *arguments: object) -> object:
            result = real(model, *arguments)
            if next(counter) == call:
                next(model.parameters()).data[0, 0] = math.nan
            return result

        finetune.training_step = step_then_nan

    return prepare


def make_clock_random() -> None:
    """Make the time of day random."""
    random_numbers = random.Random(0)
    time.time = lambda: random_numbers.uniform(0, 4e9)
    time.strftime = lambda *_: str(random_numbers.random())


def log_checkpoints(log: Path) -> None:
    """Append the step of each checkpoint to a file."""
    real = checkpoint.save

    def save(path: Path, state: checkpoint.State, *arguments: object) -> None:
        real(path, state, *arguments)
        with log.open("a") as lines:
            lines.write(f"{state.step}\n")

    checkpoint.save = save
