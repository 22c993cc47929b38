"""The processes of a run meet, compare code and data, report an error once, and part.

torch is imported inside functions, so that a wrong flag is answered before the slow import.
"""

import contextlib
import datetime
import functools
import hashlib
import importlib.metadata
import os
import re
import shlex
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from system import collectives, console, ranks
from system.console import InputError, Problem, RunError

if TYPE_CHECKING:
    from torch import distributed

PACKAGES = ("torch", "transformers", "tokenizers", "datasets", "evaluate", "numpy", "safetensors")
CODE_FOLDERS = (".", "inputs", "training", "outputs", "system")
# torchrun's own rendezvous has waited for all machines before this wait.
SECONDS_TO_MEET = 300


def join(argv: list[str]) -> None:
    """Meet the other processes; InputError if their code, versions or command lines differ."""
    if ranks.world_size() == 1:
        return
    # ERROR hides DistributedDataParallel's warnings; torch reads the variable at import.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    import torch
    from torch import distributed

    has_gpus = torch.cuda.is_available()
    if has_gpus and ranks.local_rank() < torch.cuda.device_count():
        torch.cuda.set_device(ranks.local_rank())
    backends = "cpu:gloo,cuda:nccl" if has_gpus else "gloo"
    numbers = {"rank": ranks.rank(), "world_size": ranks.world_size()}
    distributed.init_process_group(backends, store=_store(), **numbers)
    check_same({"the command line": shlex.join(argv)} | code() | versions())


@functools.cache
def _torchrun_store() -> "distributed.Store":
    """torchrun's own store, with a prefix for each run."""
    from torch import distributed

    store, *_ = next(distributed.rendezvous("env://"))
    return distributed.PrefixStore(os.environ["TORCHELASTIC_RUN_ID"], store)


@functools.cache
def _store() -> "distributed.TCPStore":
    """The store through which these processes meet; the store ends with them.

    torchrun's own store outlives the processes: a restarted group would get the old addresses
    (https://github.com/pytorch/pytorch/issues/135712).
    """
    from torch.distributed import TCPStore

    host, deadline = os.environ["MASTER_ADDR"], time.monotonic() + SECONDS_TO_MEET
    if ranks.is_main():
        store = TCPStore(host, 0, is_master=True, wait_for_workers=False)
        _torchrun_store().set("port", str(store.port))
        return store
    while True:
        # get() waits until the main process has set a port.
        port = int(_torchrun_store().get("port"))
        try:
            store = TCPStore(host, port, timeout=datetime.timedelta(seconds=2))
        except RuntimeError:
            # The port can be from before a restart.
            if time.monotonic() > deadline:
                raise
        else:
            store.set_timeout(datetime.timedelta(seconds=SECONDS_TO_MEET))
            return store


def leave() -> None:
    """Leave the other processes at the end of the run."""
    if ranks.world_size() > 1:
        from torch import distributed

        distributed.destroy_process_group()


def code() -> dict[str, bytes]:
    """The SHA-256 of each file of this program."""
    top = Path(__file__).resolve().parents[1]
    files = sorted(file for folder in CODE_FOLDERS for file in (top / folder).glob("*.py"))
    return {str(f.relative_to(top)): hashlib.sha256(f.read_bytes()).digest() for f in files}


def versions() -> dict[str, str]:
    """The versions of the libraries that a run's numbers depend on."""
    return {name: importlib.metadata.version(name) for name in PACKAGES}


def check_same(values: dict[str, object]) -> None:
    """Raise an InputError in all processes if one has different `values` from the main process."""
    (host, expected), *_ = collectives.all_gather((socket.gethostname(), values))
    differing = []
    for name, value in expected.items():
        if values.get(name) != value:
            both = f"{name} (found {values.get(name)}, expected {value})"
            differing.append(both if isinstance(value, str) else name)
    with collectives.together():
        if differing:
            message = f"differs from the main process on {host}: {', '.join(differing)}"
            remedy = "use the same command and the same files on each machine"
            raise InputError(Problem("", message, remedy))


def may_report() -> bool:
    """True for the first process that asks, once: only this process reports an error."""
    if ranks.world_size() == 1:
        return True
    # Without a store, the processes have not met yet.
    if not _store.cache_info().currsize:
        return ranks.is_main()
    try:
        return _torchrun_store().add(f"reported {_store().port}", 1) == 1
    except RuntimeError:
        # The machine with the store is gone.
        return ranks.is_local_main()


@contextlib.contextmanager
def lost_peers() -> Iterator[None]:
    """Raise a RunError if a process did not answer; only texts identify errors of gloo and NCCL."""
    try:
        yield
    except RuntimeError as error:
        text = "closed by peer|connection (reset|refused)|pair closure|broken pipe|gloo|nccl"
        is_distributed = any(kind.__name__ == "DistError" for kind in type(error).__mro__)
        is_lost = is_distributed or re.search(text, str(error), re.IGNORECASE)
        is_known = isinstance(error, RunError) or console.is_out_of_memory(error)
        if ranks.world_size() == 1 or is_known or not is_lost:
            raise
        reason = re.sub(r"^\[\S+:\d+\] ", "", console.one_line(error)).split(". ")[0]
        raise RunError(
            f"another process of this run has ended or cannot be reached ({reason[:200]})"
        ) from error
