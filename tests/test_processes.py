"""Several processes come to what one does, and none of them is left alone when another fails."""

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CSV, ONE_THREAD, ROOT, block, free_port, save_tiny, scenario
from hypothesis import given
from hypothesis import strategies as st

import data
from system import collectives as processes
from system import mapped
from system.console import RunError
from training import checkpoint

TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
FLAGS = ["--data", "builtin", "--epochs", "2", "--max-train-samples", "61", "--batch-size", "8"]
FLAGS += ["--learning-rate", "3e-4", "--log-every", "3", "--keep", "last"]


@pytest.fixture(scope="session")
def no_dropout(tmp_path_factory) -> Path:
    off = {"dropout": 0.0, "attention_dropout": 0.0, "seq_classif_dropout": 0.0}
    return save_tiny(tmp_path_factory.mktemp("no_dropout"), **off)


# ---- Shares of a batch ----


@given(st.lists(st.integers(1, 512), min_size=1, max_size=200).map(np.array), st.integers(1, 16))
def test_each_sentence_of_a_batch_goes_to_one_process_and_tokens_are_shared_evenly(lengths, count):
    shares = data.share_out(lengths, count)
    assert len(shares) == count
    assert sorted(np.concatenate(shares)) == list(range(len(lengths)))
    tokens = [int(lengths[share].sum()) for share in shares]
    assert max(tokens) - min(tokens) <= 2 * lengths.max()
    # And sentences of like length, so that little is padded.
    ends = [(lengths[share].min(), lengths[share].max()) for share in shares if len(share)]
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(ends))


def test_alone_a_process_takes_a_batch_in_the_order_in_which_it_was_drawn():
    (share,) = data.share_out(np.array([9, 3, 5, 3]), 1)
    assert share.tolist() == [0, 1, 2, 3]


# ---- The same result ----


def test_one_process_by_torchrun_writes_the_bytes_of_plain_python_and_2_and_4_the_same_but_rounding(
    tmp_path, no_dropout
):
    found = scenario(
        "sizes", tmp_path, flags=["--model", str(no_dropout), *FLAGS], counts=[0, 1, 2, 4]
    )
    plain, alone = found["0"], found["1"]
    assert alone["bytes"] == plain["bytes"]
    for count in ("2", "4"):
        several = found[count]
        print(f"{count} processes: weights differ by {several['difference']:.1e} at most")
        assert 0 < several["difference"] < 1e-5
        assert several["accuracies"] == plain["accuracies"] and several["steps"] == plain["steps"]
        assert several["losses"] == pytest.approx(plain["losses"], abs=1e-5)
        assert several["mistakes"] == plain["mistakes"] and len(plain["mistakes"]) > 10
        assert len(several["by_process"]) == several["processes"] == int(count)
        assert sum(several["by_process"]) == 2 * 61 and min(several["by_process"]) > 61 / int(count)
        assert several["log"].count("epoch 0: ") == several["log"].count("kept: ") == 1
    assert plain["by_process"] == [122] and plain["processes"] == 1


def test_processes_without_a_sentence_in_a_step_and_micro_batches_change_nothing(
    tmp_path, no_dropout
):
    # Steps of two sentences and, at the end, of one, on three processes.
    flags = ["--model", str(no_dropout), *FLAGS[:4], "--max-train-samples", "17"]
    flags += ["--batch-size", "2", *FLAGS[8:]]
    found = scenario("sizes", tmp_path / "empty", flags=flags, counts=[0, 3])
    assert 0 < found["3"]["difference"] < 1e-5 and found["3"]["steps"][-1] == 18
    assert found["3"]["accuracies"] == found["0"]["accuracies"]
    flags = ["--model", str(no_dropout), *FLAGS, "--micro-batch-size", "1"]
    found = scenario("sizes", tmp_path / "micro", flags=flags, counts=[0, 2])
    assert 0 < found["2"]["difference"] < 1e-5


def test_the_kept_model_is_tested_by_all_processes_alike(tmp_path, no_dropout):
    (tmp_path / "data").mkdir()
    for split in ("train", "dev", "test"):
        rows = CSV.splitlines(keepends=True)[: None if split == "train" else 15]
        (tmp_path / "data" / f"{split}.csv").write_text("".join(rows))
    flags = ["--model", str(no_dropout), "--data", str(tmp_path / "data"), "--epochs", "3"]
    flags += ["--learning-rate", "3e-3", "--batch-size", "8", "--freeze-embeddings"]
    found = scenario("sizes", tmp_path / "runs", flags=flags, counts=[0, 2])
    plain, several = found["0"]["result"], found["2"]["result"]
    assert several["test_accuracy"] == plain["test_accuracy"] == several["accuracy"]
    assert several["epoch"] == plain["epoch"] and 0 < found["2"]["difference"] < 1e-4


def test_gradients_are_sent_once_a_step_however_many_micro_batches_it_has(monkeypatch):
    import contextlib

    import finetune
    from training.settings import read_settings

    events = []

    class Model(torch.nn.Linear):
        device = torch.device("cpu")

        def get_input_embeddings(self):
            return self

        def no_sync(self):
            events.append("stays")
            return contextlib.nullcontext()

    monkeypatch.setattr(processes, "count", lambda: 2)
    monkeypatch.setattr(processes, "sum_up", lambda loss: events.append("loss"))

    def forward(model, batch, settings):
        events.append("forward")
        return model(batch["x"]), batch["labels"]

    monkeypatch.setattr(finetune, "forward", forward)
    model = Model(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    settings = read_settings(vars(finetune), ["--model", "builtin", "--data", "builtin"])
    part = {"x": torch.ones(1, 2), "labels": torch.tensor([1])}
    finetune.training_step(model, optimizer, data.Batch([part, dict(part)], [2, 3], None), settings)
    assert events == ["stays", "forward", "forward", "loss"]


def test_rows_of_gradients_are_not_sent_as_what_crashes_torch(tmp_path, tiny):
    # See `processes.distribute`: seen once in some thousand steps, and so not to be waited for.
    flags = ["--model", str(tiny), *FLAGS[:3], "1", "--max-train-samples", "8"]
    assert scenario("operations", tmp_path, flags=flags) == ["gloo:all_gather", "gloo:all_reduce"]


PLANS = {
    "2, then 2": [2, 2],
    "2, then 1": [2, 0],
    "2, 3, 1, 2": [2, 3, 1, 2],
    "2, killed, 2": [2, 2],
}


def test_a_stopped_run_goes_on_with_as_many_processes_bit_by_bit_and_with_others_but_for_rounding(
    tmp_path, no_dropout
):
    # Told after step 5 of 16, and, where it goes on three times, after each fifth.
    found = scenario("changes", tmp_path, flags=["--model", str(no_dropout), *FLAGS], plans=PLANS)
    killed = found["2, killed, 2"]
    assert killed["codes"] == [[1, -signal.SIGKILL]] and killed["is_whole"]
    assert killed["resumed"] == [8]  # The end of the first epoch.
    for plan, counts in PLANS.items():
        if plan != "2, killed, 2":
            assert all(set(codes) == {143} for codes in found[plan]["codes"]), found[plan]["log"]
            assert found[plan]["resumed"] == [5 * n for n in range(1, len(counts))]
        assert found[plan]["difference"] < 1e-5 and sum(found[plan]["by_process"]) == 122
        assert "Traceback" not in found[plan]["log"]
    assert found["2, then 2"]["is_whole"] and found["2, then 2"]["difference"] == 0
    assert "processes 2, now 1" in found["2, then 1"]["log"]
    assert len(found["2, 3, 1, 2"]["by_process"]) == 3


def test_dropout_differs_between_processes_and_is_repeated_by_a_run_that_goes_on(tmp_path, tiny):
    plans = {"2, then 2": [2, 2]}
    found = scenario("changes", tmp_path, flags=["--model", str(tiny), *FLAGS], plans=plans)
    assert found["2, then 2"]["is_whole"] and found["2, then 2"]["resumed"] == [5]
    assert found["2, then 2"]["codes"] == [[143, 143]]


# ---- What goes wrong ----


CASES = {
    "killed": "another process of this run has ended",
    "first killed": "another process of this run has ended",
    "first out of memory": "out of memory; put fewer sentences",
    "out of memory": "out of memory; put fewer sentences",
    "disk": "checkpoint.pt could not be written",
    "code": "not as on",
}


def test_where_one_process_fails_all_end_within_seconds_and_one_of_them_says_why(tmp_path, tiny):
    flags = ["--model", str(tiny), *FLAGS, "--checkpoint-minutes", "0"]
    found = scenario("losses", tmp_path, flags=flags, cases=list(CASES))
    for case, said in CASES.items():
        errors = [x for x in found[case]["log"].splitlines() if x.startswith("error: ")]
        assert len(errors) == 1 and said in errors[0], (case, found[case]["log"])
        assert "Traceback" not in found[case]["log"] and found[case]["seconds"] < 10
        codes = found[case]["codes"]
        assert "/pytorch/" not in errors[0] and "stopped by" not in found[case]["log"]
        if "killed" in case:
            assert codes.count(-signal.SIGKILL) == 1 and codes.count(1) == 2, case
        else:
            assert set(codes) == {2 if case == "code" else 1}, (case, codes)
    assert "data.py" in found["code"]["log"]


def test_machines_with_other_data_or_another_command_are_refused_before_anything_is_written(
    tmp_path, tiny
):
    for rank, text in enumerate((CSV, CSV.replace("a dull film", "a dill film"))):
        (tmp_path / f"machine{rank}" / "data").mkdir(parents=True)
        (tmp_path / f"machine{rank}" / "data" / "train.csv").write_text(text)
    flags = ["--model", str(tiny), *FLAGS[2:]]
    found = scenario("machines", tmp_path, flags=flags, data="data")
    for case, what in (("other data", "the data"), ("other flags", "the command line")):
        assert found[case]["codes"] == [2, 2] and not found[case]["is there"], found[case]["log"]
        errors = [x for x in found[case]["log"].splitlines() if x.startswith("error: ")]
        assert len(errors) == 1 and f"is: {what}" in errors[0] and "; give the same" in errors[0]
    assert " --epochs 9; there: --" in errors[0]  # And so which it is.


# ---- The real launcher ----


def launch(folder: Path, how: list[str], *flags: object, script: Path = ROOT / "finetune.py"):
    command = [*TORCHRUN, *how, str(script), *map(str, flags)]
    return subprocess.Popen(
        command,
        cwd=folder,
        env=os.environ | ONE_THREAD,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


LONG = ["--data", "a.csv", "--epochs", "2000", "--learning-rate", "1e-3", "--batch-size", "8"]
LONG += ["--output-dir", "run", "--resume"]


def test_sigterm_to_the_launcher_leaves_a_checkpoint_and_a_killed_worker_is_started_again(
    tmp_path, tiny
):
    (tmp_path / "a.csv").write_text(CSV)
    flags = ["--model", tiny, *LONG]
    how = ["--standalone", "--nproc-per-node", "2", "--max-restarts", "1"]
    run = launch(tmp_path, how, *flags)
    assert run.stdout.readline().startswith("epoch 0: ")
    workers = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    assert len(workers) == 2
    os.kill(int(workers[1]), signal.SIGKILL)
    while "resumed from step" not in (line := run.stderr.readline()):
        assert line or run.poll() is None
    assert "Traceback" not in line
    step = int(line.split()[-1])
    assert step >= 5 and step % 5 == 0  # Each epoch of five steps leaves a checkpoint.
    assert run.stdout.readline().startswith("epoch ")
    run.send_signal(signal.SIGTERM)
    _, err = run.communicate(timeout=60)
    state = checkpoint.load(tmp_path / "run" / "checkpoint.pt")
    assert f"to go on from step {state['step']}, give the same command" in err
    assert state["step"] > step and len(state["by_process"]) == 2
    assert err.count("stopping after this step") == 1


def test_two_launchers_on_two_addresses_complete_one_run_together(tmp_path, tiny):
    (tmp_path / "a.csv").write_text(CSV)
    port = free_port()
    flags = ["--model", tiny, "--data", "a.csv", "--epochs", "2"]
    runs = []
    for address in ("127.0.0.1", "127.0.0.2"):
        how = ["--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d"]
        how += ["--rdzv-endpoint", f"127.0.0.1:{port}", "--local-addr", address]
        runs.append(launch(tmp_path, how, *flags))
    ends = [run.communicate(timeout=120) for run in runs]
    assert [run.returncode for run in runs] == [0, 0], ends
    said = "".join(out for out, _ in ends).splitlines()
    assert [line.split(":")[0] for line in said] == ["epoch 0", "epoch 1"]
    (folder,) = (tmp_path / "runs").iterdir()  # The default one, chosen by the first alone.
    record = json.loads((folder / "run.json").read_text())
    assert sum(record["by_process"]) == 72 and len(record["by_process"]) == 2


def test_another_code_on_another_node_is_refused_with_its_name(tmp_path, tiny):
    (tmp_path / "a.csv").write_text(CSV)
    (tmp_path / "other").mkdir()
    for file in ROOT.glob("*.py"):
        shutil.copy(file, tmp_path / "other")
    with (tmp_path / "other" / "labels.py").open("a") as source:
        source.write("# Another.\n")
    port = free_port()
    flags = ["--model", tiny, "--data", "a.csv", "--output-dir", "run"]
    runs = []
    for address, script in (
        ("127.0.0.1", ROOT / "finetune.py"),
        ("127.0.0.2", tmp_path / "other" / "finetune.py"),
    ):
        how = ["--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d"]
        how += ["--rdzv-endpoint", f"127.0.0.1:{port}", "--local-addr", address]
        runs.append(launch(tmp_path, how, *flags, script=script))
    said = "".join(run.communicate(timeout=120)[1] for run in runs)
    errors = re.findall("^error: .*", said, re.MULTILINE)
    assert len(errors) == 1 and "labels.py" in errors[0] and "data.py" not in errors[0], said
    assert all(run.returncode for run in runs) and not (tmp_path / "run").exists()


def test_the_slurm_script_stops_its_run_is_queued_again_and_goes_on(tmp_path, tiny):
    (tmp_path / "a.csv").write_text(CSV)
    (tmp_path / "bin").mkdir()
    # Slurm's own srun kills the program when it is told to end; scancel tells the program itself,
    # and all processes of it.
    told = "pid=$(cat pid); kill -TERM $(cat /proc/$pid/task/$pid/children) $pid"
    for name, lines in {
        "srun": """shift; trap 'kill -9 $(cat pid)' TERM; "$@" & echo $! > pid; wait $!""",
        "scancel": f'[ "$*" = "--signal=TERM 7" ] && {told}',
        "scontrol": "if [ $1 = show ]; then echo 127.0.0.1; else echo $* >> queue; fi",
    }.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{lines}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    script = block("slurm")
    assert script.count("\n") < 20
    flags = f"--model {tiny} --data a.csv --batch-size 8 --epochs 50"
    for old, new in {
        ".venv/bin/torchrun": " ".join(TORCHRUN),
        "--nproc-per-node 8": "--nproc-per-node 2",
        ":29500": f":{free_port()}",
        "finetune.py --epochs 3": f"{ROOT}/finetune.py {flags}",
    }.items():
        assert script.count(old) == 1
        script = script.replace(old, new)
    (tmp_path / "job").write_text(script)
    environment = {"SLURM_JOB_ID": "7", "SLURM_NNODES": "1", "SLURM_JOB_NODELIST": "a"}
    environment |= {"SLURM_CPUS_PER_TASK": "2", "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    out = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    how = {"cwd": tmp_path, "env": os.environ | ONE_THREAD | environment, **out}
    job = subprocess.Popen(["bash", "job"], **how)
    assert job.stdout.readline().startswith("epoch 0: ")
    job.send_signal(signal.SIGUSR1)
    _, err = job.communicate(timeout=60)
    assert job.returncode == 0 and (tmp_path / "queue").read_text() == "requeue 7\n", err
    step = checkpoint.load(tmp_path / "runs" / "first" / "checkpoint.pt")["step"]
    assert f"to go on from step {step}" in err
    job = subprocess.run(["bash", "job"], timeout=120, check=False, **how)
    assert job.returncode == 0 and f"resumed from step {step}\n" in job.stderr, job.stderr
    assert "kept: " in job.stderr and (tmp_path / "queue").read_text() == "requeue 7\n"


def test_where_the_hub_is_out_of_reach_all_processes_take_the_same_stand_ins(tmp_path):
    flags = ["--epochs", "1", "--max-train-samples", "8", "--max-length", "8"]
    found = scenario("sizes", tmp_path, flags=flags, counts=[2])["2"]
    assert found["log"].count("\nepoch 0: ") == 1 and found["accuracies"]
    assert found["log"].count("NOTE: what ships with this project") == 2
    assert found["replaced"].keys() == {"model", "data"} and len(found["by_process"]) == 2


def test_wrong_flags_are_told_once_and_help_is_printed_once(tmp_path):
    how = ["--standalone", "--nproc-per-node", "2"]
    wrong = launch(tmp_path, how, "--epochs", "0", "--batch-sise", "3")
    _, err = wrong.communicate(timeout=60)
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 2 and 'finetune.py", line' not in err, err
    shown = launch(tmp_path, how, "--help")
    out, err = shown.communicate(timeout=60)
    assert shown.returncode == 0 and out.count("usage:") == 1 and "error" not in err, err


@pytest.mark.parametrize(
    "error, is_lost",
    [
        (torch.distributed.DistNetworkError("Failed to recv, got 0 bytes"), True),
        (torch.distributed.DistStoreError("wait timeout after 300000ms"), True),
        (RuntimeError("Application timeout caused pair closure"), True),
        (RunError("runs/nccl/checkpoint.pt could not be written (No space left)"), False),
        (RuntimeError("CUDA error: the launch timed out"), False),
    ],
    ids=str,
)
def test_only_what_tells_of_a_lost_process_is_said_to_be_one(monkeypatch, error, is_lost):
    for count in (1, 2):
        monkeypatch.setattr(processes, "count", lambda count=count: count)
        with pytest.raises(RuntimeError) as raised, processes.losses_told():
            raise error
        assert ("another process" in str(raised.value)) == (is_lost and count == 2)


# ---- Much data ----


@pytest.mark.skipif(sys.platform != "linux", reason="by Linux's /proc")
def test_pages_of_mapped_files_do_not_stay_in_a_process(tmp_path):
    import datasets

    rows = datasets.Dataset.from_dict({"x": ["word " * 200] * 50_000})
    rows.save_to_disk(tmp_path / "rows")
    rows = datasets.load_from_disk(tmp_path / "rows")

    def mapped_megabytes() -> float:
        found = re.search(r"RssFile:\s*(\d+)", Path("/proc/self/status").read_text())
        return int(found[1]) / 1024

    before = mapped_megabytes()
    for part in rows.data["x"].chunks:
        part.to_pylist()
    touched = mapped_megabytes()
    assert touched > before + 30
    mapped.release()
    assert mapped_megabytes() < before + 10
    assert rows[49_999]["x"] == "word " * 200
    for part in mapped.in_parts(rows.data["x"].chunks, size=1):
        part.to_pylist()
    assert mapped_megabytes() < before + 10


def test_a_process_alone_tells_itself_everything():
    assert processes.gather(3) == [3] and processes.from_first("x") == "x"
    assert processes.by_first(max, 1, 2) == 2
    processes.stop_if_told()
    assert processes.is_first() and processes.leads() and processes.count() == 1
    seconds = []
    for _ in range(5):  # The machine may be busy with others in one of them.
        started = time.monotonic()
        processes.refuse_differences({"the data": 1})
        assert processes.code().keys() == {file.name for file in ROOT.glob("*.py")}
        processes.join([])
        seconds.append(time.monotonic() - started)
    assert min(seconds) < 0.1
