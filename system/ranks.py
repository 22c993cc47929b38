"""The place of this process among the processes of a run; without torchrun it is the only one.

This module reads only the environment, so that every module may use it at any time.
"""

import os


def is_launched() -> bool:
    """True if torchrun started this process; other launchers set RANK and WORLD_SIZE too."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def _from_torchrun(name: str, alone: int) -> int:
    return int(os.environ.get(name, alone)) if is_launched() else alone


def rank() -> int:
    """The number of this process in the run, from 0."""
    return _from_torchrun("RANK", 0)


def world_size() -> int:
    """The number of processes in the run, on all machines."""
    return _from_torchrun("WORLD_SIZE", 1)


def local_rank() -> int:
    """The number of this process on its machine, from 0."""
    return _from_torchrun("LOCAL_RANK", 0)


def local_world_size() -> int:
    """The number of the run's processes on this machine."""
    return _from_torchrun("LOCAL_WORLD_SIZE", 1)


def is_main() -> bool:
    """True in the process that writes files and prints."""
    return rank() == 0


def is_local_main() -> bool:
    """True in the process that fills the caches of its machine for the other processes."""
    return local_rank() == 0
