"""The start and the end of a run: command line, calls from Python, and exit codes.

Slow imports stand inside functions, so that --help and a wrong flag are answered at once.
"""

import contextlib
import dataclasses
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from system import collectives, console, rendezvous
from system.console import InputError, Problem, RunError, Stopped, collect_problems, raise_any, say

if TYPE_CHECKING:
    from training.settings import Settings

Constants = Mapping[str, object]
_running = threading.Lock()


def start(constants: Constants) -> "Settings":
    """Read the settings from the command line; exit if the run is complete already."""
    console.end_on_signals()
    with _exit_codes():
        from training import run_folder, settings

        rendezvous.join(sys.argv[1:])
        chosen = collectives.from_main(read_settings, settings.from_flags, constants, sys.argv[1:])
        if line := collectives.from_main(run_folder.result_of, chosen):
            say(f"this run is complete; {line}")
            sys.exit()
        return ask_hub(chosen)


def finish(main: Callable[["Settings"], object], settings: "Settings") -> None:
    """Call `main`; an error or a signal ends the program with its exit code."""
    with _exit_codes():
        main(settings)
        rendezvous.leave()


@contextlib.contextmanager
def _exit_codes() -> Iterator[None]:
    with console.exit_codes(rendezvous.may_report), rendezvous.lost_peers():
        try:
            yield
        except SystemExit:
            # --help, or a run that is complete. A process that ends inside the group can abort.
            rendezvous.leave()
            raise


def call(
    main: Callable[["Settings"], Path], constants: Constants, keywords: Mapping[str, object]
) -> Path:
    """Call `main` from Python with settings as keywords; return the folder of the run.

    Raises InputError if the input is wrong or another run is active. Raises RunError if the run
    could not continue, and KeyboardInterrupt after a signal.
    """
    from training import run_folder, settings

    if not _running.acquire(blocking=False):
        # Two runs would share torch's random numbers.
        problem = Problem(
            "finetune()", "another run is active in this process", "wait until it ends"
        )
        raise InputError(problem)
    try:
        chosen = read_settings(settings.from_keywords, constants, keywords)
        if line := run_folder.result_of(chosen):
            say(f"this run is complete; {line}")
            return Path(chosen.output_dir)
        return main(ask_hub(chosen))
    except Stopped as stop:
        raise KeyboardInterrupt(str(stop)) from None
    except (RuntimeError, MemoryError, OSError) as error:
        raise RunError(console.reason(error)) from error
    finally:
        _running.release()


def read_settings(read: Callable, constants: Constants, source: object) -> "Settings":
    """The settings that `read` (from_flags, from_keywords) gets from `source`; or an InputError."""
    from training import run_folder
    from training.settings import Settings

    problems: list[Problem] = []
    values, names = read(constants, source, problems)
    with collect_problems(problems):
        values, names = run_folder.take_up(values, names)
    raise_any(problems)
    return Settings(**values, explicit=frozenset(names))


def ask_hub(settings: "Settings") -> "Settings":
    """Ask the Hub once; if it cannot be reached, put the reason in the settings and go offline."""
    from inputs import hub

    outage = collectives.from_main(hub.ask, settings.model, settings.data)
    hub.set_offline(bool(outage) or hub.OFFLINE_AT_START)
    return dataclasses.replace(settings, outage=outage)
