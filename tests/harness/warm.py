"""The program in processes that start warm: forked from one that has imported everything.

A child runs `finetune.main` as finetune.py itself does, only without seconds of imports, so that it
can be killed hundreds of times. The parent has started no thread: forking would break those.
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

scores.load_accuracy()  # Imports `evaluate`.
conversion_mapping.get_checkpoint_conversion_mapping("distilbert")  # Compiles hundreds of patterns.


def run_program(flags: list[str]) -> None:
    """Do what finetune.py does as a program."""
    before, sys.argv = sys.argv, ["finetune.py", *flags]
    try:
        program.finish(finetune.main, program.start(vars(finetune)))
    finally:
        sys.argv = before


def nothing() -> None:
    """The `before` of a child that needs no preparation."""


def start(flags: list[str], log: Path, before: Callable[[], None] = nothing) -> int:
    """The process id of a child that runs the program; its output is added to the file `log`."""
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


def end_of(pid: int) -> int:
    """The exit code of a child, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


# ---- The outcome of a run ----


def outcome(folder: Path) -> dict:
    """Everything that is the same however often a run was interrupted: no times, no speeds."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
    record = json.loads((folder / "run.json").read_text())
    return {
        "names": sorted(path.name for path in folder.iterdir()),
        "model": {path.name: digest(path.read_bytes()) for path in (folder / "model").iterdir()},
        "metrics": [without_times(line) for line in lines],
        "result": without_times(record["result"]),
        "last state": digest(repr(flat(content(last_state(folder)))).encode()),
    }


def content(path: Path) -> dict:
    """Everything that a checkpoint holds; its seal is checked."""
    checkpoint.read_state(path)
    return torch.load(path, weights_only=True)


def digest(part: bytes) -> str:
    return hashlib.sha256(part).hexdigest()


def without_times(record: dict) -> dict:
    return {k: v for k, v in record.items() if k not in ("samples_per_second", "seconds")}


def flat(value: object) -> object:
    """A state without its times, each tensor as the digest of its bytes."""
    if isinstance(value, dict):
        names = sorted(without_times(value).keys() - {"run"}, key=str)
        return [(name, flat(value[name])) for name in names]
    if isinstance(value, list):
        return list(map(flat, value))
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), digest(value.numpy().tobytes())
    return value


def last_state(folder: Path) -> Path:
    """The copy of a run's last checkpoint, which `prepare` lets a child make."""
    return folder.with_name(folder.name + ".last.pt")


def resumed_steps(log: Path) -> list[int]:
    """The steps from which the run with this log was resumed."""
    return [int(step) for step in re.findall(r"^resumed from step (\d+)$", log.read_text(), re.M)]


class Runs:
    """Runs of the program with the same flags, each compared with the first, uninterrupted one."""

    def __init__(self, folder: Path, flags: list[str]):
        self.folder, self.flags = folder, flags
        for name in ("cold", "reference"):  # The first one fills datasets' cache.
            started = time.monotonic()
            assert self.end(name) == 0, (folder / f"{name}.log").read_text()
            self.seconds = time.monotonic() - started
        self.expected = outcome(folder / "reference")

    def start(self, name: str, *flags: str, before: Callable[[], None] = nothing) -> int:
        """The process id of a child that starts or resumes the run `name`."""

        def prepare_and() -> None:
            prepare()
            before()

        flags = (*self.flags, *flags, "--resume", "--output-dir", str(self.folder / name))
        return start(list(flags), self.folder / f"{name}.log", prepare_and)

    def end(self, name: str, *flags: str, before: Callable[[], None] = nothing) -> int:
        """The exit code of a child that starts or resumes the run `name`."""
        return end_of(self.start(name, *flags, before=before))

    def check(self, name: str, *flags: str) -> list[int]:
        """Resume a run to its end, check its outcome, remove it; the steps it was resumed from."""
        log = self.folder / f"{name}.log"
        assert self.end(name, *flags) == 0, log.read_text()
        result = outcome(self.folder / name)
        assert result == self.expected, (name, result, self.expected)
        assert "Traceback" not in log.read_text(), log.read_text()
        steps = resumed_steps(log)
        for path in (self.folder / name, last_state(self.folder / name)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        return steps

    def check_whole(self, name: str) -> None:
        """Check that a killed run's checkpoint and its model, if they are there, can be read."""
        folder = self.folder / name
        if (folder / "checkpoint.pt").exists():
            checkpoint.read_state(folder / "checkpoint.pt")
        if (folder / "model").exists():
            names = {path.name for path in (folder / "model").iterdir()}
            reported = {"README.md", "curves.png"}  # These come at the end.
            names = {name for name in names if not name.endswith(disk.PARTIAL)}
            assert names | reported == set(self.expected["model"])
            safetensors.torch.load_file(folder / "model" / "model.safetensors")


# ---- In a child, before it runs the program ----


def prepare() -> None:
    """Keep the last checkpoint and draw no plots."""
    copy_last_state()
    plots._save = save_at_once


def copy_last_state() -> None:
    """Keep the last checkpoint, which a complete run removes."""
    finish = run_folder.finish

    def copy_then_finish(folder: Path, *arguments: object) -> None:
        shutil.copy(folder / "checkpoint.pt", last_state(folder))
        finish(folder, *arguments)

    run_folder.finish = copy_then_finish


def save_at_once(figure: matplotlib.figure.Figure, path: Path) -> None:
    """Instead of plots._save: the figure's numbers as text, because drawing takes a second."""
    shown = [figure.get_suptitle(), *(axes.get_title() for axes in figure.axes)]
    shown += [line.get_xydata().tolist() for axes in figure.axes for line in axes.lines]
    disk.write_whole(path, lambda file: file.write(repr(shown).encode()))


def signal_at(place: str, call: int, number: int) -> Callable[[], None]:
    """Send signal `number` to the child itself at a call of a place, counted from 1."""

    def prepare() -> None:
        counter = itertools.count(1)

        def and_signal(real: Callable, *arguments: object, **options: object) -> object:
            if next(counter) == call:
                os.kill(os.getpid(), number)
            return real(*arguments, **options)

        if place == "a step":
            finetune.training_step = functools.partial(and_signal, finetune.training_step)
        elif place == "a batch of an evaluation":
            evaluate, forward = finetune.evaluate, finetune.forward

            def signal_in_forward(*arguments: object) -> object:
                finetune.forward = functools.partial(and_signal, forward)
                try:
                    return evaluate(*arguments)
                finally:
                    finetune.forward = forward

            finetune.evaluate = signal_in_forward
        elif place == "a part of a checkpoint":
            sha256 = hashlib.sha256
            save = checkpoint.save

            def save_with_signal(*arguments: object) -> None:
                def with_signal(start: bytes) -> SimpleNamespace:
                    digest = sha256(start)
                    update = functools.partial(and_signal, digest.update)
                    return SimpleNamespace(update=update, hexdigest=digest.hexdigest)

                hashlib.sha256 = with_signal
                save(*arguments)
                hashlib.sha256 = sha256

            checkpoint.save = save_with_signal

    return prepare


def ruin_weights_at(call: int) -> Callable[[], None]:
    """Make the weights not finite in a step, whose own loss is finite."""

    def prepare() -> None:
        counter, real = itertools.count(1), finetune.training_step

        def step_then_ruin(model: torch.nn.Module, *arguments: object) -> object:
            result = real(model, *arguments)
            if next(counter) == call:
                next(model.parameters()).data[0, 0] = math.nan
            return result

        finetune.training_step = step_then_ruin

    return prepare


def let_clock_jump() -> None:
    """Make the time of day random."""
    random_numbers = random.Random(0)
    time.time = lambda: random_numbers.uniform(0, 4e9)
    time.strftime = lambda *_: str(random_numbers.random())


def log_checkpoints(log: Path) -> None:
    """Write the step of each checkpoint to a file."""
    real = checkpoint.save

    def save(path: Path, state: checkpoint.State, *arguments: object) -> None:
        real(path, state, *arguments)
        with log.open("a") as lines:
            lines.write(f"{state.step}\n")

    checkpoint.save = save
