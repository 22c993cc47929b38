"""Exchange of values and tensors between the processes of a run; a single process keeps its own.

torch is imported inside functions, so that a wrong flag is answered before the slow import.
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
# All processes wait while one process reads and tokenizes the data.
MAX_WAIT = datetime.timedelta(days=7)


@functools.cache
def _objects_group() -> "distributed.ProcessGroup":
    """The gloo group for Python objects, with a timeout for long waits."""
    from torch import distributed

    return distributed.new_group(backend="gloo", timeout=MAX_WAIT)


def all_gather(value: T) -> list[T]:
    """The `value` of every process, in the order of ranks."""
    values = [value] * ranks.world_size()
    if len(values) > 1:
        from torch import distributed

        distributed.all_gather_object(values, value, _objects_group())
    return values


def from_main(function: Callable[..., T], *arguments: object) -> T:
    """Call `function` in the main process only; every process gets its value or InputError."""
    values = [None]
    with together():
        if ranks.is_main():
            values = [function(*arguments)]
    if ranks.world_size() > 1:
        from torch import distributed

        distributed.broadcast_object_list(values, 0, _objects_group())
    return values[0]


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Raise an InputError or SystemExit of one process in all processes."""
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
    if end:
        raise end
    console.raise_any([*dict.fromkeys(problems)])


@contextlib.contextmanager
def local_main_first() -> Iterator[None]:
    """Let the first process of a machine fill the caches; an InputError is raised in all."""
    # together() waits for the local main process, then for the other processes.
    if not ranks.is_local_main():
        with together():
            pass
    with together():
        yield
    if ranks.is_local_main():
        with together():
            pass


def highest(number: int) -> int:
    """The highest `number` of all processes, such as the number of a signal."""
    if ranks.world_size() == 1:
        return number
    import torch
    from torch import distributed

    tensor = torch.tensor(number)
    distributed.all_reduce(tensor, distributed.ReduceOp.MAX)
    return int(tensor)


def all_reduce_sum(tensor: "torch.Tensor") -> None:
    """Replace `tensor` by its sum over all processes."""
    if ranks.world_size() > 1:
        from torch import distributed

        distributed.all_reduce(tensor)


def broadcast_weights(model: "nn.Module") -> None:
    """Send the main process's weights to the other processes, one tensor at a time."""
    if ranks.world_size() > 1:
        from torch import distributed

        for tensor in model.state_dict().values():
            distributed.broadcast(tensor, 0)


def broadcast_averages(optimizer: "torch.optim.Optimizer") -> None:
    """Send the main process's AdamW state to the other processes, one tensor at a time."""
    if ranks.world_size() == 1:
        return
    import torch
    from torch import distributed

    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    names = from_main(lambda: [list(optimizer.state[p]) for p in parameters])
    for parameter, state_names in zip(parameters, names, strict=True):
        for name in state_names:
            if not ranks.is_main():
                like = torch.tensor(0.0, device=parameter.device) if name == "step" else parameter
                optimizer.state[parameter][name] = torch.zeros_like(like, requires_grad=False)
            distributed.broadcast(optimizer.state[parameter][name], 0)


def data_parallel(model: "nn.Module") -> "nn.Module":
    """Wrap the model, so that each backward pass averages gradients over all processes.

    `mean_of_rows` averages sparse gradients. All processes get the main process's weights.
    """
    if ranks.world_size() == 1:
        return model
    from torch import distributed
    from torch.nn.parallel import DistributedDataParallel

    # In torch 2.13 two threads of a sparse all-reduce write its name (_ALLREDUCE_SPARSE) into one
    # string. Once in some thousand steps they corrupt memory, and the process can crash.
    # So these gradients are left to mean_of_rows.
    paths = [path for path, part in model.named_modules() if getattr(part, "sparse", False)]
    sparse = [f"{path}.weight" for path in paths]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, sparse)
    for name in sparse:
        distributed.broadcast(model.get_parameter(name).data, 0)
    return DistributedDataParallel(
        model,
        # Training changes no buffers of an encoder. The bucket view avoids a copy of all gradients.
        forward_sync_buffers=False,
        gradient_as_bucket_view=True,
        # Some encoders have weights that no classifier reads. The search also keeps
        # the order of sums equal from the first step on, so that a resumed run has equal bits.
        find_unused_parameters=True,
    )


def no_sync(model: "nn.Module", enabled: bool) -> contextlib.AbstractContextManager:
    """If enabled, gradients computed inside are added up and not exchanged yet."""
    is_needed = enabled and ranks.world_size() > 1
    return model.no_sync() if is_needed else contextlib.nullcontext()


def mean_of_rows(rows: "torch.Tensor", mean: "torch.Tensor") -> None:
    """Write the mean of the sparse matrix `rows` over all processes into the dense `mean`."""
    import torch
    from torch import distributed
    from torch.nn.functional import pad

    rows = rows.coalesce()
    indices, values = rows.indices()[0], rows.values() / ranks.world_size()
    # Gathered tensors need equal sizes, so shorter ones are filled up with zeros for row 0.
    missing = highest(len(indices)) - len(indices)
    gathered = []
    for own in (pad(indices, (0, missing)), pad(values, (0, 0, 0, missing))):
        gathered.append([torch.empty_like(own) for _ in range(ranks.world_size())])
        distributed.all_gather(gathered[-1], own)
    mean.zero_()
    for indices_and_values in zip(*gathered, strict=True):
        mean.index_add_(0, *indices_and_values)
