"""Calls of system/collectives.py in each process of a group, with results as JSON."""

import socket
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from system import collectives, ranks, rendezvous
from system.console import InputError, Problem


def run_exchanges(folder: Path) -> dict[str, object]:
    machine = ranks.rank() // ranks.local_world_size()
    socket.gethostname = lambda: f"machine{machine}"
    rendezvous.join(["--epochs", "2"])
    results = {
        "objects": objects(),
        "tensors": tensors(),
        "weights": weights(),
        "averages": averages(),
        "rows": rows(),
        "problems": problems(),
        "exit": exit_code_of_main(),
        "order": order(folder),
        "first problem": raised_by_local_main_first(is_wrong=ranks.is_local_main()),
        "later problem": raised_by_local_main_first(is_wrong=ranks.rank() == 3),
        "may report": rendezvous.may_report(),
    }
    rendezvous.leave()
    return results


def objects() -> dict[str, object]:
    return {
        "all_gather": collectives.all_gather({"rank": ranks.rank()}),
        "from_main": collectives.from_main(ranks.rank),
        "highest": collectives.highest(10 - ranks.rank()),
    }


def tensors() -> list[float]:
    tensor = torch.tensor([1.0, float(ranks.rank())])
    collectives.all_reduce_sum(tensor)
    return tensor.tolist()


def network() -> nn.Module:
    """A small model with different weights and a different counter in each process."""
    torch.manual_seed(ranks.rank())
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    model[1].num_batches_tracked += ranks.rank()
    return model


def weights_as_lists(model: nn.Module) -> list:
    return [tensor.tolist() for tensor in model.state_dict().values()]


def weights() -> dict[str, list]:
    """The weights of a model before and after the broadcast."""
    model = network()
    before = weights_as_lists(model)
    collectives.broadcast_weights(model)
    return {"before": before, "after": weights_as_lists(model)}


def averages() -> dict[str, list]:
    """AdamW's state before and after the broadcast; only the main process has one before."""
    model = network()
    optimizer = torch.optim.AdamW(model.parameters())

    def state() -> list:
        values = [optimizer.state[parameter] for parameter in model.parameters()]
        return [{name: v.tolist() for name, v in state.items()} for state in values]

    if ranks.is_main():
        for _ in range(3):
            model(torch.ones(4, 3)).square().sum().backward()
            optimizer.step()
    before = state()
    collectives.broadcast_averages(optimizer)
    return {"before": before, "after": state()}


def rows() -> dict[str, list]:
    """The mean of sparse rows over all processes, with a different number of rows in each."""
    indices = torch.arange(ranks.rank() + 1)
    values = torch.full((len(indices), 2), float(ranks.rank() + 1))
    sparse = torch.sparse_coo_tensor(indices[None], values, (5, 2))
    mean = torch.full((5, 2), 9.0)
    collectives.mean_of_rows(sparse, mean)
    return {"own": sparse.to_dense().tolist(), "mean": mean.tolist()}


def problems_of(function: Callable[[], object]) -> list[list[str]] | None:
    """Host, place and text of each problem that a function raises; None without an error."""
    try:
        function()
    except InputError as error:
        return [[problem.host, problem.where, str(problem)] for problem in error.problems]
    return None


def problems() -> list[list[str]] | None:
    """The problems after all processes raise a common problem, and all but the main their own."""

    def fail() -> None:
        with collectives.together():
            common = Problem("b.csv", "missing", flag="--data")
            if ranks.is_main():
                raise InputError(common)
            own = Problem(f"a{ranks.rank()}.csv", "empty", "add a row", "--data")
            raise InputError(common, own)

    return problems_of(fail)


def exit_code_of_main() -> int | None:
    """The exit code that this process gets from an exit of the main process, as after --help."""
    try:
        with collectives.together():
            if ranks.is_main():
                raise SystemExit(7)
    except SystemExit as exit_error:
        return exit_error.code
    return None


def order(folder: Path) -> list[float]:
    """The start and the end of this process's work inside local_main_first, in seconds."""
    with collectives.local_main_first():
        start = time.monotonic()
        time.sleep(0.2)
        (folder / f"cache{ranks.rank()}").touch()
        return [start, time.monotonic()]


def raised_by_local_main_first(is_wrong: bool) -> list[list[str]] | None:
    """The problems in this process if every process with `is_wrong` raises a problem."""

    def fail() -> None:
        with collectives.local_main_first():
            if is_wrong:
                raise InputError(Problem("a.csv", "empty", flag="--data"))

    return problems_of(fail)
