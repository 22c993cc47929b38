"""Processes exchange values, tensors and problems, and train the same model as one process."""

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

# Ranks 0 and 1 are on machine0, ranks 2 and 3 on machine1.
PROCESSES, MACHINES = 4, 2


@pytest.fixture(scope="module")
def exchanged(tmp_path_factory) -> list[dict]:
    """The results of harness/exchanges.py in each of four processes on two machines."""
    folder = tmp_path_factory.mktemp("exchanged")
    return scenario("exchange", folder, count=PROCESSES, machines=MACHINES)


def common_result(exchanged: list[dict], name: str) -> object:
    """A result that must be equal in all processes."""
    first = exchanged[0][name]
    assert [process[name] for process in exchanged] == [first] * PROCESSES
    return first


# ---- Values ----


def test_every_process_gathers_the_values_of_all_in_the_order_of_ranks(exchanged):
    objects = common_result(exchanged, "objects")
    assert objects["all_gather"] == [{"rank": rank} for rank in range(PROCESSES)]
    assert objects["highest"] == 10


def test_every_process_gets_the_value_that_the_main_process_computes(exchanged):
    assert common_result(exchanged, "objects")["from_main"] == 0


def test_a_single_process_gets_its_own_values_back():
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


def test_every_process_raises_each_problem_once_with_the_host_of_a_different_process(exchanged):
    first, *others = common_result(exchanged, "problems")
    assert first == COMMON
    assert others == [
        ["machine0", "a1.csv", "machine0: --data a1.csv: empty; add a row"],
        ["machine1", "a2.csv", "machine1: --data a2.csv: empty; add a row"],
        ["machine1", "a3.csv", "machine1: --data a3.csv: empty; add a row"],
    ]


def test_an_exit_of_the_main_process_ends_all_processes(exchanged):
    assert common_result(exchanged, "exit") == 7


def test_the_first_process_of_each_machine_ends_its_work_before_the_others_begin(exchanged):
    starts, ends = zip(*(process["order"] for process in exchanged), strict=True)
    assert max(ends[0], ends[2]) <= min(starts[1], starts[3])


def test_an_error_of_any_process_of_a_machine_is_raised_in_all_processes(exchanged):
    assert common_result(exchanged, "first problem") == [["", "a.csv", "--data a.csv: empty"]]
    message = "machine1: --data a.csv: empty"
    assert common_result(exchanged, "later problem") == [["machine1", "a.csv", message]]


# ---- Tensors ----


def test_a_tensor_is_summed_over_all_processes(exchanged):
    assert common_result(exchanged, "tensors") == [4.0, 6.0]


def test_all_processes_have_the_weights_of_the_main_process_after_a_broadcast(exchanged):
    weights = [process["weights"] for process in exchanged]
    before = weights[0]["before"]
    assert all(process["before"] != before for process in weights[1:])
    assert all(process["after"] == before for process in weights)


def test_weights_are_sent_one_tensor_at_a_time_and_not_copied(monkeypatch):
    sent = []
    monkeypatch.setattr(collectives.ranks, "world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "broadcast", lambda *arguments: sent.append(arguments))
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    collectives.broadcast_weights(model)
    state = model.state_dict()
    assert len(sent) == len(state) and {source for _, source in sent} == {0}
    # Copies of the tensors would double the memory.
    assert {tensor.data_ptr() for tensor, _ in sent} == {t.data_ptr() for t in state.values()}


def test_all_processes_have_the_optimizer_state_of_the_main_process_after_a_broadcast(exchanged):
    averages = [process["averages"] for process in exchanged]
    before = averages[0]["before"]
    assert all(state.keys() == {"step", "exp_avg", "exp_avg_sq"} for state in before)
    assert all(process["before"] == [{}] * len(before) for process in averages[1:])
    assert all(process["after"] == before for process in averages)


def test_the_mean_of_sparse_rows_equals_the_mean_of_the_dense_matrices(exchanged):
    own = np.array([process["rows"]["own"] for process in exchanged])
    assert len({(matrix != 0).any(axis=1).sum() for matrix in own}) == PROCESSES
    for process in exchanged:
        assert np.allclose(process["rows"]["mean"], own.mean(axis=0), rtol=1e-6)


# ---- Gradients ----


def test_gradients_are_exchanged_once_a_step_with_several_micro_batches(monkeypatch):
    events = []

    class Model(torch.nn.Linear):
        device = torch.device("cpu")

        def get_input_embeddings(self):
            return self

        def no_sync(self):
            events.append("no sync")
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
    micro_batch = {"x": torch.ones(1, 2), "labels": torch.tensor([1])}
    batch = data.Batch([micro_batch, dict(micro_batch)], 5, np.arange(2))
    finetune.training_step(model, optimizer, batch, settings)
    assert events == ["no sync", "forward", "forward", "loss"]


FLAGS = ["--data", "builtin", "--epochs", "2", "--max-train-samples", "61", "--batch-size", "8"]
FLAGS += ["--learning-rate", "3e-4", "--log-every", "3", "--keep", "last"]
# In bf16, sums in another order differ by more.
FLAGS += ["--precision", "fp32"]


def test_no_sparse_all_reduce_can_crash_a_step(tmp_path, tiny, few_sentences):
    # collectives.data_parallel describes this crash, which is too rare for a test.
    flags = ["--model", str(tiny), *FLAGS[:3], "1", "--max-train-samples", "8"]
    flags += ["--data", str(few_sentences)]
    assert scenario("operations", tmp_path, flags=flags) == ["gloo:all_gather", "gloo:all_reduce"]


# ---- The same result ----


def check_equal_runs(plain: dict, several: dict, count: int, sentences: int) -> None:
    """Check that `count` processes equal one process except for rounding, and share the work."""
    print(f"{count} processes: weights differ by at most {several['difference']:.1e}")
    assert 0 < several["difference"] < 1e-5
    assert several["accuracies"] == plain["accuracies"] and several["steps"] == plain["steps"]
    assert several["losses"] == pytest.approx(plain["losses"], abs=1e-5)
    assert several["mistakes"] == plain["mistakes"]
    assert several["processes"] == len(several["shares"]) == count
    assert sum(several["shares"]) == several["sentences"] == plain["sentences"] == sentences
    assert min(several["shares"]) > sentences / 2 / count
    assert several["log"].count("epoch 0: ") == several["log"].count("kept: ") == 1


def test_two_processes_train_the_weights_of_one_process_except_for_rounding(
    tmp_path, no_dropout, few_sentences
):
    flags = ["--model", str(no_dropout), *FLAGS, "--data", str(few_sentences)]
    runs = scenario("process_counts", tmp_path, flags=flags, counts=[0, 2])
    assert runs["0"]["processes"] == 1
    check_equal_runs(runs["0"], runs["2"], 2, 122)


@pytest.mark.long
def test_torchrun_with_1_process_writes_the_bytes_of_python_and_2_or_4_differ_only_by_rounding(
    tmp_path, no_dropout
):
    flags = ["--model", str(no_dropout), *FLAGS]
    runs = scenario("process_counts", tmp_path, flags=flags, counts=[0, 1, 2, 4])
    plain = runs["0"]
    assert runs["1"]["bytes"] == plain["bytes"] and len(plain["mistakes"]) > 10
    assert plain["processes"] == 1 and plain["sentences"] == 122
    for count in (2, 4):
        check_equal_runs(plain, runs[str(count)], count, 122)


def test_a_process_without_sentences_changes_no_weights(tmp_path, no_dropout, few_sentences):
    # Each step has at most two sentences for three processes.
    flags = ["--model", str(no_dropout), *FLAGS[:4], "--max-train-samples", "17"]
    flags += ["--batch-size", "2", *FLAGS[8:], "--data", str(few_sentences)]
    runs = scenario("process_counts", tmp_path, flags=flags, counts=[0, 3])
    assert 0 < runs["3"]["difference"] < 1e-5 and runs["3"]["steps"][-1] == 18
    assert runs["3"]["accuracies"] == runs["0"]["accuracies"]


def test_micro_batches_of_two_processes_change_no_weights(tmp_path, no_dropout, few_sentences):
    flags = ["--model", str(no_dropout), *FLAGS, "--micro-batch-size", "1"]
    flags += ["--data", str(few_sentences)]
    runs = scenario("process_counts", tmp_path, flags=flags, counts=[0, 2])
    assert 0 < runs["2"]["difference"] < 1e-5


def test_two_processes_keep_and_test_the_same_model_as_one_process(tmp_path, no_dropout):
    (tmp_path / "data").mkdir()
    for split in ("train", "dev", "test"):
        rows = CSV.splitlines(keepends=True)[: None if split == "train" else 15]
        (tmp_path / "data" / f"{split}.csv").write_text("".join(rows))
    flags = ["--model", str(no_dropout), "--data", str(tmp_path / "data"), "--epochs", "3"]
    flags += ["--learning-rate", "3e-3", "--batch-size", "8", "--freeze-embeddings"]
    flags += ["--precision", "fp32"]
    runs = scenario("process_counts", tmp_path / "runs", flags=flags, counts=[0, 2])
    plain, several = runs["0"]["result"], runs["2"]["result"]
    assert several["test_accuracy"] == plain["test_accuracy"] == several["accuracy"]
    assert several["epoch"] == plain["epoch"] and 0 < runs["2"]["difference"] < 1e-4
