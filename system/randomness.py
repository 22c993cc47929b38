"""All random numbers of a run: a generator for each use, derived from the seed."""

import numpy as np

from system import ranks


def generator(seed: int, use: str, *counts: int) -> np.random.Generator:
    """Random numbers for one use only, so that no use can shift the numbers of another use."""
    return np.random.default_rng([seed, *use.encode(), *counts])


def dropout_seed(seed: int, step: int) -> int:
    """The seed of dropout in a step; each process has its own seed."""
    use = "dropout" if ranks.is_main() else f"dropout of process {ranks.rank()}"
    return int(generator(seed, use, step).integers(2**63))
