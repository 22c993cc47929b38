"""Output on the terminal (problems, messages, progress), exit codes and signals."""

import argparse
import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple

from tqdm import tqdm

from system import ranks

SECONDS_BETWEEN_LOG_LINES = 30
WITH_TOTAL = "{desc}: {n_fmt} of {total_fmt}, {rate_fmt}, {remaining} left{postfix}"
WITHOUT_TOTAL = "{desc}: {n_fmt}, {rate_fmt}{postfix}"
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
OUT_OF_MEMORY = "out of memory; use a smaller --micro-batch-size or --max-length"


class Problem(NamedTuple):
    """One problem; its text is `host: flag where: what; remedy`, without the empty parts.

    `where` is a name, a flag, or a file and its line. `flag` is the flag with the value `where`.
    `host` is the machine, if it is not the main process's machine.
    """

    where: str
    what: str
    remedy: str = ""
    flag: str = ""
    host: str = ""

    def __str__(self) -> str:
        place = " ".join(filter(None, (self.flag, self.where)))
        message = ": ".join(filter(None, (self.host, place, self.what)))
        return "; ".join(filter(None, (message, self.remedy)))


class InputError(ValueError):
    """The input is wrong; `problems` holds each `Problem` to correct."""

    def __init__(self, *problems: Problem):
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems


class RunError(RuntimeError):
    """The run could not continue: out of memory, a full disk, a loss that is not finite."""


class Stopped(Exception):
    """A signal stopped the program at a safe point."""

    def __init__(self, signal_number: int):
        super().__init__(f"stopped by {signal.Signals(signal_number).name}")
        self.exit_code = 128 + signal_number


@contextlib.contextmanager
def collect_problems(problems: list[Problem]) -> Iterator[None]:
    """Add the problems of an InputError to a list, so that all problems are reported at once."""
    try:
        yield
    except InputError as error:
        problems += error.problems


def raise_any(problems: Sequence[Problem]) -> None:
    """Raise an InputError with `problems`, if there are any."""
    if problems:
        raise InputError(*problems)


class Parser(argparse.ArgumentParser):
    """A command-line parser that raises InputError instead of exiting."""

    def __init__(self, **options: object):
        form = argparse.RawDescriptionHelpFormatter
        super().__init__(formatter_class=form, allow_abbrev=False, **options)

    def error(self, message: str):
        raise InputError(Problem("command line", message, "--help lists the flags"))


def say(message: str) -> None:
    """Print a message on stderr, above any progress bar, in the main process."""
    if ranks.is_main():
        _print_error(message)


def _print_error(message: str) -> None:
    # A failure of stderr itself cannot be reported.
    with contextlib.suppress(OSError):
        tqdm.write(message, file=sys.stderr)
        sys.stderr.flush()


def result(line: str) -> None:
    """Print a line of the program's result on stdout, in the main process."""
    if not ranks.is_main():
        return
    try:
        tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise RunError(f"standard output could not be written ({error.strerror})") from error


def plural(noun: str, number: int) -> str:
    """The noun as it stands after `number`: 1 epoch, 2 epochs."""
    return noun if number == 1 else f"{noun}s"


def one_line(error: BaseException) -> str:
    """The text of an error on one line, or the name of its type if the text is empty."""
    return " ".join(str(error).split()) or type(error).__name__


def quoted(*arguments: str) -> str:
    """The arguments, quoted for this system's shell; Windows' cmd knows no single quotes."""
    return subprocess.list2cmdline(arguments) if os.name == "nt" else shlex.join(arguments)


def flag_arguments(flag: str, values: Sequence[str]) -> list[str]:
    """The arguments that give `values` to a flag."""
    # A single value such as -x would be a flag of its own.
    is_plain = len(values) > 1 or values[0][:1] != "-"
    return [flag, *values] if is_plain else [f"{flag}={values[0]}"]


class LogProgress(tqdm):
    """Progress as plain lines, for a log file."""

    # This set is separate, because tqdm.write redraws the bars in tqdm's set.
    _instances: ClassVar = weakref.WeakSet()
    # 0: no thread redraws the bar.
    monitor_interval: ClassVar = 0

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        # tqdm clears a bar by an empty message.
        if msg is None:
            with contextlib.suppress(OSError):
                print(str(self), file=sys.stderr, flush=True)
        return False


def progress(total: int | None, unit: str, desc: str, done: int = 0, show: bool = True) -> tqdm:
    """A bar on a terminal or in a notebook, and plain lines in a log file.

    `total` is the number of `unit`s, or None if it is unknown; `done` is the number from an earlier
    process. `show` is False if the caller shows its own progress.
    """
    options = {"unit_scale": (total or 0) >= 10_000, "delay": 2, "initial": done}
    options["disable"] = not (show and ranks.is_main())
    ipython = sys.modules.get("IPython")
    shell = ipython and ipython.get_ipython()
    kind = tqdm
    if show and shell and "IPKernelApp" in shell.config:
        from tqdm.auto import tqdm as kind
    elif sys.stderr.isatty():
        options["dynamic_ncols"] = True
    else:
        kind = LogProgress
        options |= {"mininterval": SECONDS_BETWEEN_LOG_LINES, "miniters": 1, "smoothing": 0}
        options |= {"bar_format": WITH_TOTAL if total else WITHOUT_TOTAL, "leave": False}
    return kind(total=total, unit=f" {unit}", desc=desc, **options)


def _set_signals(handler: Callable | signal.Handlers) -> None:
    for number in STOP_SIGNALS:
        signal.signal(number, handler)


def _write_now(text: str) -> None:
    # print() would fail in a signal handler if the signal interrupts another print().
    with contextlib.suppress(OSError):
        os.write(2, text.encode())


def end_on_signals() -> None:
    """Let Ctrl-C and SIGTERM end the program at once, with one line and exit code 130 or 143."""

    def end(signal_number: int, _: object) -> None:
        if ranks.is_main():
            hint = ", perhaps because another process ended" if ranks.world_size() > 1 else ""
            _write_now(f"\nstopped by {signal.Signals(signal_number).name}{hint}\n")
        # Libraries would swallow an exception during their import.
        os._exit(128 + signal_number)

    _set_signals(end)


def stop_on_signals() -> None:
    """Let Ctrl-C and SIGTERM raise Stopped, so that open files can be removed."""

    def stop(signal_number: int, _: object) -> None:
        raise Stopped(signal_number)

    _set_signals(stop)


def ignore_signals() -> None:
    """Ignore signals, so that a failed process can report its error before torchrun ends it."""
    _set_signals(signal.SIG_IGN)


class DeferredSignals:
    """Inside, `number` stores a Ctrl-C or SIGTERM; without torchrun a second one acts at once."""

    def __init__(self) -> None:
        self.number = 0

    def __enter__(self) -> "DeferredSignals":
        # Only the main thread may set signal handlers.
        is_main_thread = threading.current_thread() is threading.main_thread()
        numbers = STOP_SIGNALS if is_main_thread else ()
        self._before = {number: signal.getsignal(number) for number in numbers}
        for number in numbers:
            signal.signal(number, self._note)
        return self

    def _note(self, signal_number: int, _: object) -> None:
        self.number = self.number or signal_number
        hint = "" if ranks.is_launched() else "; a second signal stops the run at once"
        if not ranks.is_launched():
            self._restore()
        if ranks.is_main():
            _write_now(f"\nstopping after this step{hint}\n")

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __exit__(self, kind: type | None, *_: object) -> None:
        if kind and ranks.is_launched() and self._before:
            ignore_signals()
        else:
            self._restore()
        self.number = 0


def is_out_of_memory(error: BaseException) -> bool:
    """True if device or machine ran out of memory; only its text identifies torch's error."""
    match = re.search("out of memory|allocate|alloc_failed", str(error), re.IGNORECASE)
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and bool(match))


@contextlib.contextmanager
def exit_codes(may_report: Callable[[], bool] = ranks.is_main) -> Iterator[None]:
    """Turn errors into `error: …` lines on stderr and an exit code.

    2: the input is wrong; 1: the run could not continue; 130: Ctrl-C; 143: SIGTERM. A process
    prints lines only if its `may_report()` is true.
    """
    for name in ("stdout", "stderr"):
        # The caller may have closed a stream (`>&-`).
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115
    try:
        yield
        return
    except InputError as error:
        messages, code = error.problems, 2
    except Stopped as stop:
        say(str(stop))
        raise SystemExit(stop.exit_code) from None
    except BrokenPipeError:
        # The reader of stdout has ended (`| head`), so Python's buffer goes to /dev/null.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        messages, code = ["stdout was closed before the run was over"], 1
    except (RuntimeError, MemoryError, OSError) as error:
        messages, code = [reason(error)], 1
    ignore_signals()
    if may_report():
        for message in messages:
            _print_error("error: " + " ".join(str(message).splitlines()))
    raise SystemExit(code)


def reason(error: Exception) -> str:
    """The reason why the run could not continue; a defect of the program is raised again."""
    if is_out_of_memory(error):
        return OUT_OF_MEMORY
    if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        return f"--compile: {one_line(error)[:300]}; use --no-compile"
    if isinstance(error, OSError):
        return f"{one_line(error)}; check the free space, and if HF_HOME is writable"
    if isinstance(error, RunError):
        return one_line(error)
    raise error
