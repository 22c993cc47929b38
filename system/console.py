"""What a person sees: a line for each problem, messages, progress with rate and time left."""

import argparse
import contextlib
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tqdm import tqdm

SECONDS_BETWEEN_LOG_LINES = 30
WITH_TOTAL = "{desc}: {n_fmt} of {total_fmt}, {rate_fmt}, {remaining} left{postfix}"
WITHOUT_TOTAL = "{desc}: {n_fmt}, {rate_fmt}{postfix}"
OUT_OF_MEMORY = (
    "out of memory; put fewer sentences on the device at a time with --micro-batch-size, or fewer "
    "tokens with --max-length"
)

# Whether another process of the run is the one that prints.
is_quiet = False
# Whether the run has others, which torchrun ends with one that fails.
of_several = False


class InputError(ValueError):
    """The input is wrong. `problems` holds one line for each thing to mend."""

    def __init__(self, *problems: str):
        super().__init__("\n".join(problems))
        self.problems = problems


class RunError(RuntimeError):
    """The run could not go on: no memory, a full disk, a loss that is not finite."""


class Stopped(Exception):
    """A signal has told the run to stop, and it has come to a place from which it can go on."""

    def __init__(self, signal_number: int):
        super().__init__(f"stopped by {signal.Signals(signal_number).name}")
        self.exit_code = 128 + signal_number


class Parser(argparse.ArgumentParser):
    """A command line whose errors are told as all others are."""

    def error(self, message: str):
        raise InputError(f"{message}; --help says what is meant")


class LogProgress:
    """The few methods of tqdm that are used here, as a plain line every 30 s for a log file."""

    def __init__(self, total: int | None, unit: str, unit_scale: bool, desc: str, initial: int):
        self.total, self.unit, self.unit_scale = total, unit, unit_scale
        self.n = self.initial = initial
        self.desc, self.postfix = desc, ""
        self.start = self.shown = time.monotonic()

    def __enter__(self) -> "LogProgress":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def set_postfix_str(self, text: str, refresh: bool = False) -> None:
        self.postfix = text

    def update(self, n: int = 1) -> None:
        self.n += n
        now = time.monotonic()
        if now - self.shown >= SECONDS_BETWEEN_LOG_LINES:
            self.shown = now
            line = tqdm.format_meter(
                self.n,
                self.total,
                now - self.start,
                initial=self.initial,
                prefix=self.desc,
                unit=self.unit,
                unit_scale=self.unit_scale,
                postfix=self.postfix,
                bar_format=WITH_TOTAL if self.total else WITHOUT_TOTAL,
            )
            say(line)


Progress = tqdm | LogProgress


def progress(total: int | None, unit: str, desc: str, done: int = 0, show: bool = True) -> Progress:
    """A bar on a terminal or in a notebook, for work that takes longer than two seconds.

    Elsewhere plain lines.

    Args:
        total: how many `unit`s, such as "sentences", there are to do; None: nobody knows.
        done: how many of them were done before.
        show: False for work that is a part of other work, which shows its progress.
    """
    how = {"total": total, "unit": f" {unit}", "unit_scale": (total or 0) >= 10_000, "desc": desc}
    how["initial"] = done
    how_shown = {"delay": 2, "dynamic_ncols": True, "disable": is_quiet or not show}
    if show and _is_notebook():
        from tqdm.auto import tqdm as bar_for_here

        return bar_for_here(**how, **how_shown)
    if show and not sys.stderr.isatty():
        return LogProgress(**how)
    return tqdm(**how, **how_shown)


def _is_notebook() -> bool:
    ipython = sys.modules.get("IPython")
    shell = ipython and ipython.get_ipython()
    return bool(shell) and "IPKernelApp" in shell.config


def say(message: str) -> None:
    """A message for the person, on stderr, above any bar."""
    if is_quiet:
        return
    with contextlib.suppress(OSError):  # Nobody can be told that nobody can be told.
        tqdm.write(message, file=sys.stderr)
        sys.stderr.flush()


def result(line: str) -> None:
    """A line of the program's result, on stdout."""
    if is_quiet:
        return
    try:
        tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise RunError(f"standard output could not be written ({error.strerror})") from error


def one_line(error: BaseException) -> str:
    """The text of an error on a single line, or its type's name where it has no text."""
    return " ".join(str(error).split()) or type(error).__name__


def end_on_signals() -> None:
    """From now on Ctrl-C and SIGTERM end the program at once, with 130 and 143, in one line."""
    signal.signal(signal.SIGINT, _end)
    signal.signal(signal.SIGTERM, _end)


def _end(signal_number: int, frame: object) -> None:
    # No exception: libraries swallow those that come while they are imported, and go on by halves.
    # No print: it fails where the signal comes in the middle of another print.
    if not is_quiet:
        with contextlib.suppress(OSError):
            why = ", perhaps as another process has ended" if of_several else ""
            os.write(2, f"\nstopped by {signal.Signals(signal_number).name}{why}\n".encode())
    os._exit(128 + signal_number)


def stop_on_signals() -> None:
    """From now on Ctrl-C and SIGTERM raise Stopped, so that what was begun can be put away."""

    def stop(signal_number: int, frame: object) -> None:
        raise Stopped(signal_number)

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)


_told_to_stop: list[int] = []  # The signal that came inside `stop_between_steps`.


@contextlib.contextmanager
def stop_between_steps(once_more: bool) -> Iterator[None]:
    """Inside, Ctrl-C or SIGTERM is kept for `told_to_stop`.

    Args:
        once_more: whether a second one acts at once.
    """

    def keep(signal_number: int, frame: object) -> None:
        if once_more:
            put_back()
        _told_to_stop.append(signal_number)
        if not is_quiet:
            hint = "; once more, and it stops at once" if once_more else ""
            with contextlib.suppress(OSError):
                os.write(2, f"\nstopping after this step{hint}\n".encode())

    def put_back() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    numbers = (signal.SIGINT, signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread():
        numbers = ()  # Signals come to the main thread alone, which is another program's.
    before = {number: signal.getsignal(number) for number in numbers}
    for number in before:
        signal.signal(number, keep)
    try:
        yield
        put_back()
    except BaseException:
        put_back() if once_more else _ignore_signals()
        raise
    finally:
        _told_to_stop.clear()


def _ignore_signals() -> None:
    # torchrun ends a process where another has ended, and this one still has to say why.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def told_to_stop() -> int:
    """The signal that has come inside `stop_between_steps`; 0: none."""
    return _told_to_stop[0] if _told_to_stop else 0


@contextlib.contextmanager
def gather(problems: list[str]) -> Iterator[None]:
    """Keep the problems of an InputError for later, so that all are told at once."""
    try:
        yield
    except InputError as error:
        problems += error.problems


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device or the machine had too little memory; each says it in words of its own."""
    said = re.search("out of memory|allocate|alloc_failed", str(error), re.IGNORECASE)
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and bool(said))


@contextlib.contextmanager
def exit_codes(may_tell: Callable[[], bool] = lambda: True) -> Iterator[None]:
    """Turn what can go wrong into `error: …` lines on stderr and an exit code.

    2: the input is wrong; 1: the run could not go on; 130 and 143: Ctrl-C and SIGTERM.

    Args:
        may_tell: whether this is the process, of several, that prints the lines.
    """
    global is_quiet
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # Closed by whoever started the program (`>&-`).
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115
    try:
        yield
    except InputError as error:
        problems, code = error.problems, 2
    except Stopped as stop:
        say(str(stop))
        raise SystemExit(stop.exit_code) from None
    except BrokenPipeError:
        # Nobody reads stdout any more (`| head`); what Python still holds for it goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        problems, code = ["stdout was closed before the run was over"], 1
    except (RuntimeError, MemoryError, OSError) as error:
        if is_out_of_memory(error):
            error = RunError(OUT_OF_MEMORY)
        elif type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            error = RunError(f"--compile: {one_line(error)[:300]}; run without it")
        elif isinstance(error, OSError):
            error = RunError(
                f"{one_line(error)}; is the disk full, or HF_HOME (caches) not writable?"
            )
        elif not isinstance(error, RunError):
            raise
        problems, code = [one_line(error)], 1
    else:
        return
    _ignore_signals()
    is_quiet = not may_tell()
    for problem in problems:
        say("error: " + " ".join(problem.splitlines()))  # One line, whatever a name holds.
    raise SystemExit(code)
