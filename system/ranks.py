"""Which process of the run this is, as torchrun's environment says; without torchrun, the only one.

Nothing is imported and no process is asked, so that every module may use it at any time.
"""

import os


def is_launched() -> bool:
    """Whether torchrun started this process: other launchers set RANK and WORLD_SIZE too."""
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
    """Whether this process writes the files and prints."""
    return rank() == 0


def is_local_main() -> bool:
    """Whether this process prepares what the others on its machine then find in the caches."""
    return local_rank() == 0
