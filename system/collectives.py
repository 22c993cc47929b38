"""Values and tensors that the processes of a run exchange; alone, a process gets its own back.

torch is imported inside functions, because a wrong flag is answered before its import.
"""

import contextlib
import datetime
import functools
import socket
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

from system import console, ranks
from system.console import Problem

if TYPE_CHECKING:
    import torch
    from torch import distributed, nn

T = TypeVar("T")
LONGEST_WAIT = datetime.timedelta(days=7)  # All wait while one reads and tokenizes the data.


@functools.cache
def _objects_group() -> "distributed.ProcessGroup":
    """The gloo group for Python objects, in which one process may wait long for another."""
    from torch import distributed

    return distributed.new_group(backend="gloo", timeout=LONGEST_WAIT)


def all_gather(value: T) -> list[T]:
    """The `value` of every process, in the order of their ranks."""
    values = [value] * ranks.world_size()
    if len(values) > 1:
        from torch import distributed

        distributed.all_gather_object(values, value, _objects_group())
    return values


def from_main(function: Callable[..., T], *arguments: object) -> T:
    """Call `function` in the main process only; every process gets its value or InputError."""
    box = [None]
    with together():
        if ranks.is_main():
            box = [function(*arguments)]
    if ranks.world_size() > 1:
        from torch import distributed

        distributed.broadcast_object_list(box, 0, _objects_group())
    return box[0]


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Raise an InputError, or an exit, of one process in all of them."""
    if ranks.world_size() == 1:
        yield
        return
    problems: list[Problem] = []
    end: SystemExit | None = None
    with console.collect_problems(problems):
        try:
            yield
        except SystemExit as error:
            end = error
    (_, problems, end), *others = all_gather((socket.gethostname(), problems, end))
    for host, other_problems, _ in others:
        new = (problem for problem in other_problems if problem not in problems)
        problems = problems + [problem._replace(host=host) for problem in new]
    if end:  # After --help, in the main process.
        raise end
    console.raise_any([*dict.fromkeys(problems)])


@contextlib.contextmanager
def local_main_first() -> Iterator[None]:
    """Let the first process of a machine fill the caches before the others use them.

    An InputError of one process is raised in all.
    """
    if not ranks.is_local_main():
        with together():  # Waits for the first process.
            pass
    with together():
        yield
    if ranks.is_local_main():
        with together():  # Waits for the others.
            pass


def highest(number: int) -> int:
    """The highest `number` of all processes, such as that of a signal which one of them got."""
    if ranks.world_size() == 1:
        return number
    import torch
    from torch import distributed

    tensor = torch.tensor(number)
    distributed.all_reduce(tensor, distributed.ReduceOp.MAX)
    return int(tensor)


def all_reduce_sum(tensor: "torch.Tensor") -> None:
    """Put the sum over all processes in place of `tensor`."""
    if ranks.world_size() > 1:
        from torch import distributed

        distributed.all_reduce(tensor)


def broadcast_weights(model: "nn.Module") -> None:
    """Put the main process's weights in place of those of the others, one tensor at a time."""
    if ranks.world_size() > 1:
        from torch import distributed

        for tensor in model.state_dict().values():
            distributed.broadcast(tensor, 0)


def broadcast_averages(optimizer: "torch.optim.Optimizer") -> None:
    """Put the main process's state of AdamW in place of that of the others, tensor by tensor."""
    if ranks.world_size() == 1:
        return
    import torch
    from torch import distributed

    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    names = from_main(lambda: [list(optimizer.state[p]) for p in parameters])
    for parameter, of_parameter in zip(parameters, names, strict=True):
        for name in of_parameter:
            if not ranks.is_main():
                like = torch.tensor(0.0, device=parameter.device) if name == "step" else parameter
                optimizer.state[parameter][name] = torch.zeros_like(like, requires_grad=False)
            distributed.broadcast(optimizer.state[parameter][name], 0)


def data_parallel(model: "nn.Module") -> "nn.Module":
    """The model with gradients that are the mean over all processes after each backward pass.

    Sparse gradients are left to `mean_of_rows`. The main process's weights are sent to the others.
    """
    if ranks.world_size() == 1:
        return model
    from torch import distributed
    from torch.nn.parallel import DistributedDataParallel

    # In torch 2.13 two threads of a sparse all-reduce (_ALLREDUCE_SPARSE) write its long name into
    # one string, and once in some thousand steps into freed memory: the process crashes, or worse.
    parts = [path for path, part in model.named_modules() if getattr(part, "sparse", False)]
    sparse = [f"{path}.weight" for path in parts]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, sparse)
    for name in sparse:
        distributed.broadcast(model.get_parameter(name).data, 0)
    return DistributedDataParallel(
        model,
        forward_sync_buffers=False,  # Training changes none of an encoder's buffers.
        gradient_as_bucket_view=True,  # Saves a copy of all gradients.
        # Some encoders have weights that no classifier reads. Also, only then the order of the sum
        # is the same from the first step on, so that a resumed run repeats it bit for bit.
        find_unused_parameters=True,
    )


def no_sync(model: "nn.Module", enabled: bool) -> contextlib.AbstractContextManager:
    """If enabled, gradients computed inside are not exchanged yet, only added up."""
    is_needed = enabled and ranks.world_size() > 1
    return model.no_sync() if is_needed else contextlib.nullcontext()


def mean_of_rows(rows: "torch.Tensor", mean: "torch.Tensor") -> None:
    """Put the mean over all processes of `rows`, a sparse matrix, into the dense matrix `mean`."""
    import torch
    from torch import distributed
    from torch.nn.functional import pad

    rows = rows.coalesce()
    numbers, values = rows.indices()[0], rows.values() / ranks.world_size()
    missing = highest(len(numbers)) - len(numbers)  # Zeros are added to the first row instead.
    gathered = []
    for own in (pad(numbers, (0, missing)), pad(values, (0, 0, 0, missing))):
        gathered.append([torch.empty_like(own) for _ in range(ranks.world_size())])
        distributed.all_gather(gathered[-1], own)
    mean.zero_()
    for numbers_and_values in zip(*gathered, strict=True):
        mean.index_add_(0, *numbers_and_values)
