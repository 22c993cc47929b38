"""The real launchers: torchrun on one machine and on several, and Slurm."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from harness.helpers import CSV, ONE_THREAD, ROOT, block, free_port, scenario

from system import rendezvous
from training import checkpoint

long = pytest.mark.long
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
LONG = ["--data", "a.csv", "--epochs", "2000", "--learning-rate", "1e-3", "--batch-size", "8"]
LONG += ["--output-dir", "run", "--resume"]


def launch(
    folder: Path, options: list[str], *flags: object, script: Path = ROOT / "finetune.py"
) -> subprocess.Popen:
    """Start torchrun with these options in `folder`; its output is read from pipes."""
    command = [*TORCHRUN, *options, str(script), *map(str, flags)]
    return subprocess.Popen(
        command,
        cwd=folder,
        env=os.environ | ONE_THREAD,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


# ---- One machine ----


TWO_PROCESSES = ["--standalone", "--nproc-per-node", "2"]


def test_wrong_flags_are_reported_once(tmp_path):
    run = launch(tmp_path, TWO_PROCESSES, "--epochs", "0", "--batch-sise", "3")
    _, err = run.communicate(timeout=60)
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 2 and 'finetune.py", line' not in err, err


@long
def test_help_is_printed_once_and_no_process_ends_inside_the_group(tmp_path, monkeypatch):
    # A process that ends inside the group can abort with SIGABRT, after its work is done.
    check = """import atexit, sys
def check():
    distributed = sys.modules.get("torch.distributed")
    if distributed and distributed.is_initialized():
        print("error: still in the group", file=sys.stderr)
atexit.register(check)
"""
    (tmp_path / "sitecustomize.py").write_text(check)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    run = launch(tmp_path, TWO_PROCESSES, "--help")
    out, err = run.communicate(timeout=60)
    assert run.returncode == 0 and out.count("usage:") == 1 and "error" not in err, err


@long
def test_a_killed_worker_is_restarted_and_sigterm_to_the_launcher_leaves_a_checkpoint(
    tmp_path, tiny
):
    (tmp_path / "a.csv").write_text(CSV)
    flags = ["--model", tiny, *LONG]
    run = launch(tmp_path, [*TWO_PROCESSES, "--max-restarts", "1"], *flags)
    assert run.stdout.readline().startswith("epoch 0: ")
    workers = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    assert len(workers) == 2
    os.kill(int(workers[1]), signal.SIGKILL)
    while "resumed from step" not in (line := run.stderr.readline()):
        assert line or run.poll() is None
    assert "Traceback" not in line
    step = int(line.split()[-1])
    # Each epoch of five steps leaves a checkpoint.
    assert step >= 5 and step % 5 == 0
    assert run.stdout.readline().startswith("epoch ")
    run.send_signal(signal.SIGTERM)
    _, err = run.communicate(timeout=60)
    state = checkpoint.read_state(tmp_path / "run" / "checkpoint.pt")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert f"to continue from step {state.step}, repeat the command" in err
    assert state.step > step and record["processes"] == 2
    assert err.count("stopping after this step") == 1


@long
def test_if_the_hub_is_out_of_reach_all_processes_take_the_same_stand_ins(tmp_path):
    flags = ["--epochs", "1", "--max-train-samples", "8", "--max-length", "8"]
    run = scenario("process_counts", tmp_path, flags=flags, counts=[2])["2"]
    assert run["log"].count("\nepoch 0: ") == 1 and run["accuracies"]
    assert run["log"].count("NOTE: `builtin` is used instead of") == 2
    assert run["replaced"].keys() == {"model", "data"} and len(run["shares"]) == 2


# ---- Several machines ----


def launch_on_two(folder: Path, *flags: object, scripts: list[Path]) -> list[subprocess.Popen]:
    """Start a launcher on each of two addresses, which stand for machines, with its script."""
    port = free_port()
    runs = []
    for address, script in zip(("127.0.0.1", "127.0.0.2"), scripts, strict=True):
        options = ["--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d"]
        options += ["--rdzv-endpoint", f"127.0.0.1:{port}", "--local-addr", address]
        runs.append(launch(folder, options, *flags, script=script))
    return runs


@long
def test_two_launchers_on_two_addresses_complete_one_run_together(tmp_path, tiny):
    (tmp_path / "a.csv").write_text(CSV)
    flags = ["--model", tiny, "--data", "a.csv", "--epochs", "2"]
    runs = launch_on_two(tmp_path, *flags, scripts=[ROOT / "finetune.py"] * 2)
    ends = [run.communicate(timeout=120) for run in runs]
    assert [run.returncode for run in runs] == [0, 0], ends
    lines = "".join(out for out, _ in ends).splitlines()
    assert [line.split(":")[0] for line in lines] == ["epoch 0", "epoch 1"]
    # The main process alone chooses the default folder.
    (folder,) = (tmp_path / "runs").iterdir()
    record = json.loads((folder / "run.json").read_text())
    assert record["processes"] == 2 and record["sentences"]["train"] == 35
    assert "35 train, 5 validation" in "".join(err for _, err in ends)
    history = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
    assert history[-1]["step"] == 4 and record["result"]


@long
def test_different_code_on_another_machine_is_refused_with_its_file_name(tmp_path, tiny):
    (tmp_path / "a.csv").write_text(CSV)
    other = tmp_path / "other"
    for name in rendezvous.code():
        (other / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, other / name)
    with (other / "inputs" / "labels.py").open("a") as source:
        source.write("# Different.\n")
    flags = ["--model", tiny, "--data", "a.csv", "--output-dir", "run"]
    scripts = [ROOT / "finetune.py", other / "finetune.py"]
    runs = launch_on_two(tmp_path, *flags, scripts=scripts)
    err = "".join(run.communicate(timeout=120)[1] for run in runs)
    errors = re.findall("^error: .*", err, re.MULTILINE)
    assert len(errors) == 1 and "inputs/labels.py" in errors[0] and "data.py" not in errors[0], err
    assert all(run.returncode for run in runs) and not (tmp_path / "run").exists()


# ---- Slurm ----


@long
def test_the_slurm_script_stops_its_run_queues_itself_again_and_resumes(tmp_path, tiny):
    (tmp_path / "a.csv").write_text(CSV)
    (tmp_path / "bin").mkdir()
    # As in Slurm, srun kills the program on a signal, and scancel signals each of its processes.
    terminate = "pid=$(cat pid); kill -TERM $(cat /proc/$pid/task/$pid/children) $pid"
    for name, lines in {
        "srun": """shift; trap 'kill -9 $(cat pid)' TERM; "$@" & echo $! > pid; wait $!""",
        "scancel": f'[ "$*" = "--signal=TERM 7" ] && {terminate}',
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
    options = {"cwd": tmp_path, "env": os.environ | ONE_THREAD | environment}
    options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    job = subprocess.Popen(["bash", "job"], **options)
    assert job.stdout.readline().startswith("epoch 0: ")
    job.send_signal(signal.SIGUSR1)
    _, err = job.communicate(timeout=60)
    assert job.returncode == 0 and (tmp_path / "queue").read_text() == "requeue 7\n", err
    step = checkpoint.read_state(tmp_path / "runs" / "first" / "checkpoint.pt").step
    assert f"to continue from step {step}" in err
    job = subprocess.run(["bash", "job"], timeout=120, check=False, **options)
    assert job.returncode == 0 and f"resumed from step {step}\n" in job.stderr, job.stderr
    assert "kept: " in job.stderr and (tmp_path / "queue").read_text() == "requeue 7\n"
