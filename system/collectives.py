"""The processes of one run, as torchrun starts them: who is who, and what they tell each other.

Without torchrun there is one process, and each of these functions does what it says for that one.
The first process of a machine leads it: it prepares what the others of the machine then only map.
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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from system import console
from system.console import InputError, RunError

if TYPE_CHECKING:
    import torch
    from torch import distributed, nn

T = TypeVar("T")

# What must be of one version wherever a part of the run is computed.
PACKAGES = ("torch", "transformers", "tokenizers", "datasets", "evaluate", "numpy", "safetensors")
ROOMS = ("inputs", "training", "outputs", "system")  # The folders of this program's code.
# Leaders read and tokenize for as long as it takes, while all others wait.
LONGEST_WAIT = datetime.timedelta(days=7)

SECONDS_TO_MEET = 300  # After rendezvous, in which torchrun has waited for all machines.

_group = None  # For what is said and not computed: on the CPU, and it can wait.
_told = None  # Counts, where torchrun keeps it, who would tell what has gone wrong.


# ---- Who is who ----


def is_launched() -> bool:
    """Whether torchrun has started this process: others set RANK and WORLD_SIZE too."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def _of_torchrun(name: str, alone: int) -> int:
    return int(os.environ[name]) if is_launched() else alone


def rank() -> int:
    """The number of this process in the run, from 0."""
    return _of_torchrun("RANK", 0)


def count() -> int:
    """How many processes the run has, on all machines."""
    return _of_torchrun("WORLD_SIZE", 1)


def is_first() -> bool:
    """Whether this is the process that writes and prints."""
    return rank() == 0


def on_this_machine() -> int:
    """How many processes of the run this machine has."""
    return _of_torchrun("LOCAL_WORLD_SIZE", 1)


def leads() -> bool:
    """Whether this is the first process of its machine."""
    return _of_torchrun("LOCAL_RANK", 0) == 0


# ---- Meeting ----


def join(argv: list[str]) -> None:
    """Meet the other processes of the run, if there are any.

    Raises:
        InputError: one of them runs other code or another command, or has no device of its own.
    """
    global _group, _told
    if count() == 1:
        return
    console.is_quiet, console.of_several = not is_first(), True
    # Else DistributedDataParallel warns of what is meant: see `distribute`. torch looks here at its
    # import.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    import torch
    from torch import distributed

    has_gpus, number = torch.cuda.is_available(), _of_torchrun("LOCAL_RANK", 0)
    if has_gpus and number < torch.cuda.device_count():
        torch.cuda.set_device(number)
    # gloo carries what lies in the machine's memory, and NCCL what lies in a GPU's.
    kinds = "cpu:gloo,cuda:nccl" if has_gpus else "gloo"
    of_torchrun, *_ = next(distributed.rendezvous("env://"))
    # Other runs may have theirs in the same place.
    of_torchrun = distributed.PrefixStore(os.environ["TORCHELASTIC_RUN_ID"], of_torchrun)
    store = _meet(of_torchrun)
    _told = functools.partial(of_torchrun.add, f"told {store.port}", 1)
    distributed.init_process_group(kinds, store=store, rank=rank(), world_size=count())
    _group = distributed.new_group(backend="gloo", timeout=LONGEST_WAIT)
    refuse_differences({"the command line": shlex.join(argv)} | code() | versions())


def _meet(of_torchrun: "distributed.Store") -> "distributed.TCPStore":
    """Where these processes find each other, which goes with them.

    torchrun's own store is there before and after: in it a group that is started again would find
    the addresses of the one before (https://github.com/pytorch/pytorch/issues/135712).
    """
    from torch.distributed import TCPStore

    host, until = os.environ["MASTER_ADDR"], time.monotonic() + SECONDS_TO_MEET
    if is_first():
        store = TCPStore(host, 0, is_master=True, wait_for_workers=False)
        of_torchrun.set("port", str(store.port))
        return store
    while True:
        port = int(of_torchrun.get("port"))  # Waits until there is one.
        try:
            store = TCPStore(host, port, timeout=datetime.timedelta(seconds=2))
        except RuntimeError:  # Of the group before, or nobody is there.
            if time.monotonic() > until:
                raise
        else:
            store.set_timeout(datetime.timedelta(seconds=SECONDS_TO_MEET))
            return store


def leave() -> None:
    """Part from the others, at the end of the run."""
    if count() > 1:
        from torch import distributed

        distributed.destroy_process_group()


def code() -> dict[str, bytes]:
    """SHA-256 of each file of this program."""
    top = Path(__file__).resolve().parents[1]
    files = sorted([*top.glob("*.py"), *(f for room in ROOMS for f in (top / room).glob("*.py"))])
    return {
        str(file.relative_to(top)): hashlib.sha256(file.read_bytes()).digest() for file in files
    }


def versions() -> dict[str, str]:
    """The versions of the libraries that numbers depend on."""
    return {name: importlib.metadata.version(name) for name in PACKAGES}


# ---- Telling each other ----


def gather(value: T) -> list[T]:
    """The `value` of each process, in all of them, in the order of their numbers."""
    if count() == 1:
        return [value]
    from torch import distributed

    values = [None] * count()
    distributed.all_gather_object(values, value, _group)
    return values


def from_first(value: T) -> T:
    """The first process's `value`, in all of them."""
    if count() == 1:
        return value
    from torch import distributed

    box = [value if is_first() else None]
    distributed.broadcast_object_list(box, 0, _group)
    return box[0]


def from_leader(value: T) -> T:
    """The `value` of the first process of this machine."""
    return gather(value if leads() else None)[rank() - _of_torchrun("LOCAL_RANK", 0)]


def by_first(function: Callable[..., T], *arguments: object) -> T:
    """What the first process gets of `function`, in all of them; an InputError of it, too."""
    value = None
    with together():
        if is_first():
            value = function(*arguments)
    return from_first(value)


@contextlib.contextmanager
def together() -> Iterator[None]:
    """An InputError, or an exit, that comes inside in one process comes in all of them."""
    if count() == 1:
        yield
        return
    problems: list[str] = []
    exits: SystemExit | None = None
    with console.gather(problems):
        try:
            yield
        except SystemExit as error:
            exits = error
    (_, told, exits), *others = gather((socket.gethostname(), problems, exits))
    for host, of_other, _ in others:
        told = told + [f"{host}: {problem}" for problem in of_other if problem not in told]
    if exits:  # After --help, by the first process.
        raise exits
    if told:
        raise InputError(*dict.fromkeys(told))


def refuse_differences(what: dict[str, object] | None) -> None:
    """Raise an InputError in all processes where one has another value of `what` than the first.

    Args:
        what: values by their names for people, of which those that are text are shown; None: this
            process has none to compare.
    """
    found = gather((socket.gethostname(), what))
    (first_host, first), *others = found
    problems = {}  # One for each host, and not for each of its processes.
    for host, other in others:
        if names := [name for name in first if other and other.get(name) != first[name]]:
            differing = ", ".join(
                f"{name} ({other.get(name)}; there: {first[name]})"
                if isinstance(first[name], str)
                else name
                for name in names
            )
            problems[host] = (
                f"{host}: not as on {first_host}, where the first process is: {differing}; "
                "give the same command, with the same files, on each machine"
            )
    if problems:
        raise InputError(*problems.values())


def may_tell() -> bool:
    """Whether this process is the one to tell what has gone wrong: the first that asks, once."""
    if not _told:
        return is_first()
    try:
        return _told() == 1
    except RuntimeError:  # The machine that had it is gone.
        return leads()


def sum_up(tensor: "torch.Tensor") -> None:
    """Put the sum of all processes' `tensor` in its place."""
    if count() > 1:
        from torch import distributed

        distributed.all_reduce(tensor)


def stop_if_told() -> None:
    """Raise Stopped in all processes where a signal inside `stop_between_steps` told one to."""
    number = console.told_to_stop()
    if count() > 1:
        import torch
        from torch import distributed

        highest = torch.tensor(number)
        distributed.all_reduce(highest, distributed.ReduceOp.MAX)
        number = int(highest)
    if number:
        raise console.Stopped(number)


@contextlib.contextmanager
def losses_told() -> Iterator[None]:
    """Raise a RunError where another process did not answer: each library has its own words."""
    try:
        yield
    except RuntimeError as error:
        words = "closed by peer|connection (reset|refused)|pair closure|broken pipe|gloo|nccl"
        is_of_group = any(kind.__name__ == "DistError" for kind in type(error).__mro__)
        is_lost = is_of_group or re.search(words, str(error), re.IGNORECASE)
        is_known = isinstance(error, RunError) or console.is_out_of_memory(error)
        if count() == 1 or is_known or not is_lost:
            raise
        reason = re.sub(r"^\[\S+:\d+\] ", "", console.one_line(error)).split(". ")[0]
        raise RunError(
            f"another process of this run has ended or cannot be reached ({reason[:200]})"
        ) from error


# ---- Training together ----


def distribute(model: "nn.Module") -> "nn.Module":
    """The model with gradients that are the mean of all processes' after each backward pass.

    Those that have rows only are left to `mean_of_rows`. The weights of the first process are sent
    to all others.
    """
    if count() == 1:
        return model
    from torch import distributed
    from torch.nn.parallel import DistributedDataParallel

    # Sent by DistributedDataParallel, two threads of torch 2.13 would write the long name of such a
    # step (_ALLREDUCE_SPARSE) into one string at once, and once in some thousand steps into memory
    # that is free by then: the process crashes, or worse.
    parts = [path for path, part in model.named_modules() if getattr(part, "sparse", False)]
    with_rows = [f"{path}.weight" for path in parts]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, with_rows)
    for name in with_rows:
        distributed.broadcast(model.get_parameter(name).data, 0)
    return DistributedDataParallel(
        model,
        forward_sync_buffers=False,  # None of an encoder's is changed by training.
        gradient_as_bucket_view=True,  # Not a copy of each gradient beside it.
        # Some encoders have weights that no classifier reads. And only then the order in which
        # gradients are summed stays the same from the first step on: a run that goes on would come
        # to other bits.
        find_unused_parameters=True,
    )


def send_averages(optimizer: "torch.optim.Optimizer") -> None:
    """Put the state of the first process's AdamW in place of all others', one by one."""
    if count() == 1:
        return
    import torch
    from torch import distributed

    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    names = from_first([list(optimizer.state[p]) for p in parameters])
    for parameter, of_parameter in zip(parameters, names, strict=True):
        for name in of_parameter:
            if not is_first():
                like = torch.tensor(0.0, device=parameter.device) if name == "step" else parameter
                optimizer.state[parameter][name] = torch.zeros_like(like, requires_grad=False)
            distributed.broadcast(optimizer.state[parameter][name], 0)


def mean_of_rows(rows: "torch.Tensor", mean: "torch.Tensor") -> None:
    """Put the mean of all processes' `rows`, a sparse matrix, into the dense matrix `mean`."""
    import torch
    from torch import distributed
    from torch.nn.functional import pad

    rows = rows.coalesce()
    numbers, values = rows.indices()[0], rows.values() / count()
    most = torch.tensor(len(numbers))
    distributed.all_reduce(most, distributed.ReduceOp.MAX)
    missing = int(most) - len(numbers)  # Zeros are added to the first row in their place.
    of_all = []
    for own in (pad(numbers, (0, missing)), pad(values, (0, 0, 0, missing))):
        of_all.append([torch.empty_like(own) for _ in range(count())])
        distributed.all_gather(of_all[-1], own)
    mean.zero_()
    for of_one in zip(*of_all, strict=True):
        mean.index_add_(0, *of_one)


def only_added_up(model: "nn.Module", is_last: bool) -> contextlib.AbstractContextManager:
    """Inside, gradients of a step's micro-batches stay here; those of the last one are sent."""
    if count() == 1 or is_last:
        return contextlib.nullcontext()
    return model.no_sync()
