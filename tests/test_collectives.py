"""Processes exchange values, tensors and problems, and a run of several equals that of one."""

import contextlib

import numpy as np
import pytest
import torch
from harness.helpers import CSV, scenario
from harness.stopped import read_settings

import data
import finetune
from system import collectives
from system.console import InputError, Problem

PROCESSES, MACHINES = 4, 2  # Ranks 0 and 1 are on machine0, 2 and 3 on machine1.


@pytest.fixture(scope="module")
def exchanged(tmp_path_factory) -> list[dict]:
    """The results of harness/exchanges.py in each of four processes on two machines."""
    folder = tmp_path_factory.mktemp("exchanged")
    return scenario("exchange", folder, count=PROCESSES, machines=MACHINES)


def the_same(exchanged: list[dict], name: str) -> object:
    """A result that must be the same in all processes."""
    first = exchanged[0][name]
    assert [process[name] for process in exchanged] == [first] * PROCESSES
    return first


# ---- Values ----


def test_every_process_gets_the_values_of_all_in_the_order_of_ranks(exchanged):
    objects = the_same(exchanged, "objects")
    assert objects["all_gather"] == [{"rank": rank} for rank in range(PROCESSES)]
    assert objects["highest"] == 10  # Rank 0 has 10, rank 3 has 7.


def test_a_function_of_the_main_process_is_called_there_and_its_value_is_everywhere(exchanged):
    assert the_same(exchanged, "objects")["from_main"] == 0


def test_alone_a_process_gets_its_own_values_back():
    tensor = torch.tensor([1.0, 2.0])
    collectives.all_reduce_sum(tensor)
    assert tensor.tolist() == [1.0, 2.0]
    assert collectives.all_gather(3) == [3] and collectives.highest(7) == 7
    assert collectives.from_main(max, 1, 2) == 2
    model = torch.nn.Linear(2, 2)
    collectives.broadcast_weights(model)
    collectives.broadcast_averages(torch.optim.AdamW(model.parameters()))
    assert collectives.data_parallel(model) is model
    for context in (collectives.together, collectives.local_main_first):
        with pytest.raises(InputError, match=r"^a: empty$"), context():
            raise InputError(Problem("a", "empty"))


# ---- Problems ----


COMMON = ["", "b.csv", "--data b.csv: missing"]


def test_problems_of_all_processes_come_in_all_of_them_once_and_with_the_host_of_another(exchanged):
    first, *others = the_same(exchanged, "problems")
    assert first == COMMON
    # The host stands before the flag and is not a part of the place.
    assert others == [
        ["machine0", "a1.csv", "machine0: --data a1.csv: empty; add a row"],
        ["machine1", "a2.csv", "machine1: --data a2.csv: empty; add a row"],
        ["machine1", "a3.csv", "machine1: --data a3.csv: empty; add a row"],
    ]


def test_an_exit_of_the_main_process_is_one_of_all(exchanged):
    assert the_same(exchanged, "exit") == 7


def test_the_first_process_of_each_machine_is_done_before_the_others_begin(exchanged):
    starts, ends = zip(*(process["order"] for process in exchanged), strict=True)
    assert max(ends[0], ends[2]) <= min(starts[1], starts[3])


def test_an_error_of_the_first_or_a_later_process_of_a_machine_is_raised_in_all(exchanged):
    assert the_same(exchanged, "first problem") == [["", "a.csv", "--data a.csv: empty"]]
    message = "machine1: --data a.csv: empty"
    assert the_same(exchanged, "later problem") == [["machine1", "a.csv", message]]


# ---- Tensors ----


def test_a_sum_is_over_all_processes(exchanged):
    assert the_same(exchanged, "tensors") == [4.0, 6.0]


def test_all_processes_have_the_main_ones_weights_after_a_broadcast(exchanged):
    weights = [process["weights"] for process in exchanged]
    before = weights[0]["before"]
    assert all(process["before"] != before for process in weights[1:])
    assert all(process["after"] == before for process in weights)


def test_weights_are_sent_one_tensor_at_a_time(monkeypatch):
    sent = []
    monkeypatch.setattr(collectives.ranks, "world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "broadcast", lambda *arguments: sent.append(arguments))
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    collectives.broadcast_weights(model)
    state = model.state_dict()
    assert len(sent) == len(state) and {source for _, source in sent} == {0}
    # The tensors themselves, and no copies: those would double the memory.
    assert {tensor.data_ptr() for tensor, _ in sent} == {t.data_ptr() for t in state.values()}


def test_all_processes_have_the_main_ones_averages_after_a_broadcast(exchanged):
    averages = [process["averages"] for process in exchanged]
    before = averages[0]["before"]
    assert all(state.keys() == {"step", "exp_avg", "exp_avg_sq"} for state in before)
    assert all(process["before"] == [{}] * len(before) for process in averages[1:])
    assert all(process["after"] == before for process in averages)


def test_the_mean_of_sparse_rows_is_that_of_the_dense_matrices(exchanged):
    own = np.array([process["rows"]["own"] for process in exchanged])
    assert len({(matrix != 0).any(axis=1).sum() for matrix in own}) == PROCESSES
    for process in exchanged:
        assert np.allclose(process["rows"]["mean"], own.mean(axis=0), rtol=1e-6)


# ---- Gradients ----


def test_gradients_are_sent_once_a_step_however_many_micro_batches_it_has(monkeypatch):
    events = []

    class Model(torch.nn.Linear):
        device = torch.device("cpu")

        def get_input_embeddings(self):
            return self

        def no_sync(self):
            events.append("stays")
            return contextlib.nullcontext()

    monkeypatch.setattr(collectives.ranks, "world_size", lambda: 2)
    monkeypatch.setattr(collectives, "all_reduce_sum", lambda loss: events.append("loss"))

    def forward(model, batch, precision):
        events.append("forward")
        return model(batch["x"]), batch["labels"]

    monkeypatch.setattr(finetune, "forward", forward)
    model = Model(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    settings = read_settings(["--model", "builtin", "--data", "builtin"])
    part = {"x": torch.ones(1, 2), "labels": torch.tensor([1])}
    batch = data.Batch([part, dict(part)], 5, np.arange(2))
    finetune.training_step(model, optimizer, batch, settings)
    assert events == ["stays", "forward", "forward", "loss"]


FLAGS = ["--data", "builtin", "--epochs", "2", "--max-train-samples", "61", "--batch-size", "8"]
FLAGS += ["--learning-rate", "3e-4", "--log-every", "3", "--keep", "last"]


def test_no_sparse_gradient_is_sent_in_the_way_that_crashes_torch(tmp_path, tiny, few_sentences):
    # The crash, which collectives.data_parallel describes, comes once in some thousand steps.
    flags = ["--model", str(tiny), *FLAGS[:3], "1", "--max-train-samples", "8"]
    flags += ["--data", str(few_sentences)]
    assert scenario("operations", tmp_path, flags=flags) == ["gloo:all_gather", "gloo:all_reduce"]


# ---- The same result ----


def check_as_one(plain: dict, several: dict, count: int, sentences: int) -> None:
    """Check that `count` processes did what one did, but for rounding, and shared the work."""
    print(f"{count} processes: weights differ by at most {several['difference']:.1e}")
    assert 0 < several["difference"] < 1e-5
    assert several["accuracies"] == plain["accuracies"] and several["steps"] == plain["steps"]
    assert several["losses"] == pytest.approx(plain["losses"], abs=1e-5)
    assert several["mistakes"] == plain["mistakes"]
    assert several["processes"] == len(several["shares"]) == count
    assert sum(several["shares"]) == several["sentences"] == plain["sentences"] == sentences
    assert min(several["shares"]) > sentences / 2 / count
    assert several["log"].count("epoch 0: ") == several["log"].count("kept: ") == 1


def test_two_processes_end_with_the_weights_of_one_but_for_rounding(
    tmp_path, no_dropout, few_sentences
):
    flags = ["--model", str(no_dropout), *FLAGS, "--data", str(few_sentences)]
    runs = scenario("sizes", tmp_path, flags=flags, counts=[0, 2])
    assert runs["0"]["processes"] == 1
    check_as_one(runs["0"], runs["2"], 2, 122)


@pytest.mark.long
def test_one_process_by_torchrun_writes_the_bytes_of_plain_python_and_2_and_4_the_same_but_rounding(
    tmp_path, no_dropout
):
    flags = ["--model", str(no_dropout), *FLAGS]
    runs = scenario("sizes", tmp_path, flags=flags, counts=[0, 1, 2, 4])
    plain = runs["0"]
    assert runs["1"]["bytes"] == plain["bytes"] and len(plain["mistakes"]) > 10
    assert plain["processes"] == 1 and plain["sentences"] == 122
    for count in (2, 4):
        check_as_one(plain, runs[str(count)], count, 122)


def test_processes_without_a_sentence_in_a_step_change_nothing(tmp_path, no_dropout, few_sentences):
    # Steps of two sentences and, at the end, of one, on three processes.
    flags = ["--model", str(no_dropout), *FLAGS[:4], "--max-train-samples", "17"]
    flags += ["--batch-size", "2", *FLAGS[8:], "--data", str(few_sentences)]
    runs = scenario("sizes", tmp_path, flags=flags, counts=[0, 3])
    assert 0 < runs["3"]["difference"] < 1e-5 and runs["3"]["steps"][-1] == 18
    assert runs["3"]["accuracies"] == runs["0"]["accuracies"]


def test_micro_batches_of_two_processes_change_nothing(tmp_path, no_dropout, few_sentences):
    flags = ["--model", str(no_dropout), *FLAGS, "--micro-batch-size", "1"]
    flags += ["--data", str(few_sentences)]
    runs = scenario("sizes", tmp_path, flags=flags, counts=[0, 2])
    assert 0 < runs["2"]["difference"] < 1e-5


def test_the_kept_model_is_tested_by_all_processes_alike(tmp_path, no_dropout):
    (tmp_path / "data").mkdir()
    for split in ("train", "dev", "test"):
        rows = CSV.splitlines(keepends=True)[: None if split == "train" else 15]
        (tmp_path / "data" / f"{split}.csv").write_text("".join(rows))
    flags = ["--model", str(no_dropout), "--data", str(tmp_path / "data"), "--epochs", "3"]
    flags += ["--learning-rate", "3e-3", "--batch-size", "8", "--freeze-embeddings"]
    runs = scenario("sizes", tmp_path / "runs", flags=flags, counts=[0, 2])
    plain, several = runs["0"]["result"], runs["2"]["result"]
    assert several["test_accuracy"] == plain["test_accuracy"] == several["accuracy"]
    assert several["epoch"] == plain["epoch"] and 0 < runs["2"]["difference"] < 1e-4
