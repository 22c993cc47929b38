"""A process takes its rank from torchrun's variables, not from those of other launchers."""

import pytest

from system import ranks

NUMBERS = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}


@pytest.fixture
def environment(monkeypatch):
    """A function that sets variables in an environment without those of torchrun."""
    for name in (*NUMBERS, "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)

    def set_variables(**variables: str) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return set_variables


def place() -> tuple[int, int, int, int]:
    return ranks.rank(), ranks.world_size(), ranks.local_rank(), ranks.local_world_size()


def test_a_process_without_a_launcher_is_the_only_one(environment):
    assert place() == (0, 1, 0, 1)
    assert ranks.is_main() and ranks.is_local_main() and not ranks.is_launched()


def test_ranks_and_sizes_come_from_torchruns_variables(environment):
    environment(TORCHELASTIC_RUN_ID="none", **NUMBERS)
    assert place() == (5, 8, 1, 4)
    assert ranks.is_launched() and not ranks.is_main() and not ranks.is_local_main()


@pytest.mark.parametrize(
    "rank, local_rank, is_main, is_local_main",
    [("0", "0", True, True), ("4", "0", False, True), ("1", "1", False, False)],
)
def test_rank_0_is_main_and_local_rank_0_is_main_on_its_machine(
    environment, rank, local_rank, is_main, is_local_main
):
    environment(TORCHELASTIC_RUN_ID="7", **NUMBERS | {"RANK": rank, "LOCAL_RANK": local_rank})
    assert ranks.is_main() == is_main and ranks.is_local_main() == is_local_main


def test_variables_of_another_launcher_such_as_mpirun_are_ignored(environment):
    environment(**NUMBERS)
    assert place() == (0, 1, 0, 1)
    assert ranks.is_main() and ranks.is_local_main() and not ranks.is_launched()


def test_a_single_process_of_torchrun_is_launched_and_the_main_one(environment):
    environment(TORCHELASTIC_RUN_ID="none", RANK="0", WORLD_SIZE="1", LOCAL_RANK="0")
    assert place() == (0, 1, 0, 1) and ranks.is_launched() and ranks.is_main()
