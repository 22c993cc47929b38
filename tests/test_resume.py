"""A run that is stopped, killed, starved of disk or damaged ends as if nothing had been."""

import concurrent.futures
import errno
import hashlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import pytest
import torch
from conftest import (
    CSV,
    ONE_THREAD,
    ROOT,
    block,
    drop_roots_power_over_files,
    save_tiny,
    scenario,
    start,
)
from hypothesis import given, settings, strategies

import finetune as script
from system import disk as files
from training import checkpoint, run_folder
from training import record as records
from training.settings import read_settings

# Two epochs of eight steps, with dropout, and lines of metrics.jsonl that straddle a stop.
FLAGS = ["--data", "builtin", "--epochs", "2", "--max-train-samples", "64", "--batch-size", "8"]
FLAGS += ["--learning-rate", "1e-3", "--log-every", "3", "--micro-batch-size", "3"]
SHORT = [*FLAGS[:2], "--epochs", "2", "--max-train-samples", "24", *FLAGS[6:10]]
SHORTER = [*FLAGS[:2], "--epochs", "1", "--max-train-samples", "24", *FLAGS[6:10]]


def warm(scenario: str, folder: Path, *before: str, **arguments: object) -> dict:
    """What a scenario of warm.py has found in a process of its own, begun by `before`."""
    folder.mkdir(exist_ok=True)
    arguments = json.dumps({"folder": str(folder)} | arguments)
    done = subprocess.run(
        [*before, sys.executable, str(ROOT / "tests" / "warm.py"), scenario, arguments],
        env=os.environ | ONE_THREAD | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    return json.loads(done.stdout)


def in_parts(name: str, folder: Path, each: list[dict], **arguments: object) -> list[dict]:
    """What a scenario of warm.py has found, for the arguments of each part; two at a time."""
    if len(each) == 1:
        return [scenario(name, folder, **each[0], **arguments)]
    folders = [folder / f"part{number}" for number in range(len(each))]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        pairs = zip(folders, each, strict=True)
        return list(pool.map(lambda pair: warm(name, pair[0], **pair[1], **arguments), pairs))


STEP, EVALUATION, WRITING = "a step", "a batch of an evaluation", "a part of a checkpoint"
TERM, INT, KILL = signal.SIGTERM, signal.SIGINT, signal.SIGKILL
PLANS = {
    # What happens at which call, counted in each process anew.
    "in the middle of an epoch": [[STEP, 5, TERM]],
    "in the first step": [[STEP, 1, INT]],
    "at the end of an epoch": [[STEP, 8, TERM]],
    "in the last step": [[STEP, 16, TERM]],
    # The first look has two batches, each evaluation 38, and a batch three micro-batches.
    "in the middle of an evaluation": [[EVALUATION, 60, TERM]],
    "in the middle of the last evaluation": [[EVALUATION, 170, INT]],
    "killed in the middle of an epoch": [[STEP, 13, KILL]],
    "killed in the middle of an evaluation": [[EVALUATION, 170, KILL]],
    "told to stop while a checkpoint is written": [[WRITING, 40, TERM]],
    "killed while a checkpoint is written": [[WRITING, 40, KILL]],
    "killed while a second checkpoint is written": [[STEP, 10, TERM], [WRITING, 40, KILL]],
    "often": [
        *([STEP, 2, TERM], [STEP, 3, TERM], [EVALUATION, 30, INT], [WRITING, 9, TERM]),
        *([STEP, 1, KILL], [STEP, 1, TERM], [STEP, 1, TERM], [WRITING, 3, KILL]),
        *([STEP, 6, INT], [EVALUATION, 90, TERM]),
    ],
}


@pytest.mark.parametrize("how", ["--keep best", "--keep last --freeze-embeddings --precision bf16"])
def test_a_run_that_was_stopped_ends_with_the_same_bytes_as_one_that_was_not(tmp_path, tiny, how):
    flags = ["--model", str(tiny), *FLAGS, *how.split(), "--seed", str(2**64 - 1)]
    found = scenario("stops", tmp_path, flags=flags, plans=PLANS)
    assert found.keys() == PLANS.keys()
    for plan, moments in PLANS.items():
        codes = {TERM: 143, INT: 130, KILL: -KILL}
        assert found[plan]["codes"] == [codes[number] for *_, number in moments], plan
    print({plan: stops["resumed from"] for plan, stops in found.items()})
    steps = {plan: stops["resumed from"] for plan, stops in found.items() if plan != "often"}
    # Told to stop, a run loses nothing; killed, what came after its last checkpoint.
    assert list(steps.values()) == [[5], [1], [8], [16], [8], [16], [8], [8], [8], [0], [10, 10]]
    assert found["often"]["resumed from"] == [2, 5, 8, 8, 8, 9, 10, 10, 16, 16]


@pytest.mark.parametrize("kills", [20, pytest.param(240, marks=pytest.mark.slow)])
def test_a_run_that_is_killed_at_random_moments_ends_with_the_same_bytes(tmp_path, tiny, kills):
    flags = ["--model", str(tiny), *FLAGS]
    parts = [{"seed": kills + part} for part in range(2 if kills > 100 else 1)]
    found = in_parts("fuzz", tmp_path, parts, flags=flags, kills=kills // len(parts))
    steps = [step for part in found for step in part["resumed from"]]
    print(f"{sum(part['kills'] for part in found)} kills of {sum(p['runs'] for p in found)} runs;")
    print(f"resumed from steps {steps}")
    assert sum(part["kills"] for part in found) >= kills
    assert len(set(steps) - {0}) >= (10 if kills > 100 else 2)


@pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"), reason="by x86-64 Linux's calls"
)
@pytest.mark.parametrize("share", [16, pytest.param(1, marks=pytest.mark.slow)])
def test_a_run_that_is_killed_at_any_operation_on_its_files_ends_the_same(tmp_path, tiny, share):
    flags = ["--model", str(tiny), *(SHORT if share == 1 else SHORTER)]
    count = 2 if share == 1 else 1
    parts = [{"part": part, "parts": count * share} for part in range(count)]
    found = in_parts("each_operation", tmp_path, parts, flags=flags)
    if "untraceable" in found[0]:
        pytest.skip(found[0]["untraceable"])
    operations = found[0]["operations"]
    kinds = {f"{call} {name.removeprefix('model.partial/')}" for call, name in operations}
    print(f"{len(operations)} operations, {sum(part['kills'] for part in found)} kills")
    assert len(operations) > 150 and sum(part["kills"] for part in found) >= 300 / (2 * share)
    assert kinds >= {
        *("mkdir .", "open run.json.partial", "rename run.json.partial", "fsync ."),
        *("write metrics.jsonl", "open checkpoint.pt.partial", "write checkpoint.pt.partial"),
        *("fsync checkpoint.pt.partial", "rename checkpoint.pt.partial", "unlink checkpoint.pt"),
        *("write config.json", "write .tmp", "fsync model.safetensors", "fsync model.partial"),
        *("rename model.partial", "unlink run.lock"),
    }


@pytest.mark.parametrize("limit", ["space", "file size"])
@pytest.mark.parametrize("moments", [8, pytest.param(60, marks=pytest.mark.slow)])
def test_a_run_whose_disk_was_full_goes_on_when_there_is_space(tmp_path, tiny, limit, moments):
    before = []
    if limit == "space":  # A disk of 80 MB that only this process sees.
        mount = 'mount -t tmpfs -o size=80m none "$0" && exec "$@"'
        before = ["unshare", "--mount", "--map-root-user", "sh", "-c", mount, str(tmp_path)]
        if not shutil.which("unshare") or subprocess.run([*before, "true"]).returncode:
            pytest.skip("no disk can be mounted here")
    flags = ["--model", str(tiny), *SHORT]
    arguments = {"flags": flags, "moments": moments, "limit": limit}
    if before:
        found = warm("full_disk", tmp_path, *before, **arguments)
    else:
        found = scenario("full_disk", tmp_path, **arguments)
    print(found)
    assert len(found["errors"]) >= moments // 4
    for error in found["errors"]:
        assert "could not be written" in error and "--resume" in error
        said = ("No space left on device", "File too large", "os error 27", "os error 28")
        assert any(reason in error for reason in said)
    assert any("checkpoint.pt could not" in error for error in found["errors"])
    if limit == "space":  # The second checkpoint has failed, then, and the first was whole.
        assert 3 in found["resumed from"]


@pytest.mark.parametrize("count", [15, pytest.param(100, marks=pytest.mark.slow)])
def test_a_damaged_checkpoint_is_refused_with_one_line_and_left_alone(tmp_path, tiny, count):
    flags = ["--model", str(tiny), *FLAGS]
    found = scenario("damage", tmp_path, flags=flags, count=count, seed=0)
    assert len(found["said"]) == count and found["resumed from"] == [6]
    for code, said in found["said"]:
        errors = [line for line in said.splitlines() if line.startswith("error: ")]
        assert code == 2 and len(errors) == 1 and "Traceback" not in said, said
        assert "checkpoint.pt: " in errors[0] and "damaged" in errors[0], said


def test_weights_that_a_step_has_ruined_never_replace_a_good_checkpoint(tmp_path, tiny):
    found = scenario("ruin", tmp_path, flags=["--model", str(tiny), *FLAGS])
    assert found["code"] == 1 and "step 6: the weights are not finite" in found["said"]
    assert found["kept"] == 5 and found["resumed from"] == [5]


def test_a_clock_that_jumps_changes_nothing(tmp_path, tiny):
    found = scenario("clock", tmp_path, flags=["--model", str(tiny), *FLAGS])
    assert found == {"code": 0, "checkpoints": [8, 16]}


def test_a_second_signal_stops_at_once_and_leaves_the_last_checkpoint(tmp_path, tiny):
    found = scenario("second_signal", tmp_path, flags=["--model", str(tiny), *FLAGS])
    assert found["code"] == 143 and found["seconds"] < 5 and found["resumed from"] == [5]


# ---- The real program ----


LONG = ["--model", "tiny", "--data", "a.csv", "--epochs", "2000", "--learning-rate", "1e-3"]
LONG += ["--output-dir", "run", "--resume"]


@pytest.fixture(scope="session")
def stopped_once(tmp_path_factory, tiny):
    """A folder with data, a model, and a run and another that a signal has stopped."""
    folder = tmp_path_factory.mktemp("stopped")
    shutil.copytree(tiny, folder / "tiny")
    (folder / "a.csv").write_text(CSV)
    each = [LONG, [*LONG[:-2], "other", "--resume", "--seed", "1"]]
    for flags, (code, said) in zip(each, scenario("stopped", folder, each=each), strict=True):
        assert code == 143 and "epoch 0" in said and "stopped by SIGTERM" in said
        assert f"the same command with --output-dir {flags[9]} --resume" in said
        assert "Traceback" not in said
    return folder


@pytest.fixture
def stopped(stopped_once, tmp_path) -> list[str]:
    """The flags of a run in `tmp_path`/run, which a signal has stopped."""
    shutil.copytree(stopped_once, tmp_path, dirs_exist_ok=True)
    return LONG


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def check_refused(run, folder: Path, before: dict[str, bytes], *messages: str) -> None:
    assert run.code == 2 and len(run.errors) == len(messages), run.err
    assert "Traceback" not in run.err and run.out == ""
    for error, message in zip(run.errors, messages, strict=True):
        assert message in error, run.err
    assert contents(folder) == before


def test_a_second_process_in_the_folder_of_a_run_is_refused_and_the_first_is_untouched(
    finetune, tmp_path, stopped, monkeypatch
):
    first = start(tmp_path, *stopped)
    assert first.stdout.readline().startswith("epoch ")
    second = finetune(*stopped)
    assert second.seconds < 2  # Before the libraries, which take ten.
    assert second.code == 2 and len(second.errors) == 1, second.err
    assert "another process is writing this run" in second.errors[0]
    # Nor does it wait for the first one's end.
    monkeypatch.chdir(tmp_path)
    began = time.monotonic()
    with pytest.raises(ValueError, match="another process is writing this run"):
        read_settings(vars(script), stopped)
    assert time.monotonic() - began < 5
    assert first.poll() is None
    first.kill()
    first.communicate()
    # A dead process holds nothing.
    third = start(tmp_path, *stopped)
    assert third.stdout.readline().startswith("epoch ")
    third.send_signal(signal.SIGINT)
    _, err = third.communicate(timeout=60)
    assert third.returncode == 130 and "resumed from step " in err, err


def test_of_two_processes_that_start_a_run_together_one_is_refused(tmp_path, tiny):
    # Long enough that one is there while the other, on a busy machine, still loads.
    flags = ["--model", tiny, *SHORTER, "--epochs", "30", "--output-dir", "run", "--resume"]
    both = [start(tmp_path, *flags) for _ in range(2)]
    said = [process.communicate(timeout=100)[1] for process in both]
    codes = [process.returncode for process in both]
    assert sorted(codes) == [0, 2], said
    refused = said[codes.index(2)]
    assert "another process" in refused and "Traceback" not in refused
    assert json.loads((tmp_path / "run" / "run.json").read_text())["result"]


@pytest.mark.parametrize(
    "change, messages",
    [
        (["--seed", 1, "--epochs", 3], ["--epochs 3: the run in", "--seed 1: the run in"]),
        (["--model", "builtin"], ["--model builtin: the run in"]),
        (["--data", "builtin"], ["--data builtin: the run in"]),
        (["--max-train-samples", 7], ["--max-train-samples 7: the run in"]),
        (["--max-length", 8], ["--max-length 8: the run in"]),
        (["--precision", "bf16"], ["--precision bf16: the run in"]),
        (["--freeze-embeddings"], ["--freeze-embeddings True: the run in"]),
    ],
    ids=str,
)
def test_each_setting_that_is_not_what_it_was_is_told_and_nothing_is_touched(
    in_process, tmp_path, stopped, change, messages
):
    before = contents(tmp_path / "run")
    check_refused(in_process(*stopped, *change), tmp_path / "run", before, *messages)


def test_a_setting_that_was_given_and_now_is_not_is_told(in_process, tmp_path, stopped):
    at = stopped.index("--learning-rate")
    before = contents(tmp_path / "run")
    flags = stopped[:at] + stopped[at + 2 :]
    message = "--learning-rate None: the run in"
    check_refused(in_process(*flags), tmp_path / "run", before, message)
    # The other way round it is the same: what the run found by itself, and now is given.
    assert (
        in_process(*stopped, "--max-length", 64, "--text-column", "no")
        .errors[0]
        .startswith("error: --text-column no: the run in")
    )


def test_settings_that_change_rounding_or_nothing_may_be_others_and_are_recorded(
    finetune, in_process, tmp_path, tiny
):
    flags = ["--model", tiny, *SHORTER, "--output-dir", "run", "--resume"]
    changes = ["--micro-batch-size", "2", "--device", "cpu", "--log-every", "1"]
    first = start(tmp_path, *flags)
    while first.poll() is None and not (tmp_path / "run" / "run.json").exists():
        time.sleep(0.01)
    first.kill()
    first.communicate()
    run = in_process(*flags, *changes, "--checkpoint-minutes", "0")
    assert run.code == 0 and "resumed from step 0" in run.err, run.err
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    (resumed,) = record["resumed"]
    model = tmp_path / "run" / "model"
    assert len({path.stat().st_mode for path in model.iterdir()}) == 1
    assert "local_files_only" not in (model / "tokenizer_config.json").read_text()
    assert resumed["changed_settings"] == {
        "micro_batch_size": 2,
        "log_every": 1,
        "checkpoint_minutes": 0.0,
    }
    assert record["settings"]["micro_batch_size"] is None
    # And where it is complete the same command says so, at once.
    (tmp_path / "run" / "checkpoint.pt").write_bytes(b"left by a kill")
    before = contents(tmp_path / "run")
    again = finetune(*flags)
    assert again.seconds < 2  # Before the libraries, which take ten.
    assert again.code == 0 and again.out == "" and "is complete; kept: epoch 0" in again.err
    assert before.pop("checkpoint.pt") and contents(tmp_path / "run") == before


def test_the_precision_that_a_run_found_for_its_device_stays_on_another(
    stopped, tmp_path, monkeypatch
):
    path = tmp_path / "run" / "run.json"
    found = json.loads(path.read_text())
    path.write_text(json.dumps(found | {"settings": found["settings"] | {"precision": "bf16"}}))
    monkeypatch.chdir(tmp_path)
    assert read_settings(vars(script), stopped).precision == "bf16"
    with pytest.raises(ValueError, match="--precision fp32: the run in"):
        read_settings(vars(script), [*stopped, "--precision", "fp32"])


def test_a_change_of_versions_threads_or_processor_is_said_and_noted(finetune, tmp_path, stopped):
    path = tmp_path / "run" / "run.json"
    found = json.loads(path.read_text())
    found["versions"]["torch"], found["cpu_capability"] = "2.0.0", "an abacus"
    path.write_text(json.dumps(found))
    process = start(tmp_path, *stopped)
    assert process.stdout.readline().startswith("epoch ")
    process.terminate()
    _, err = process.communicate(timeout=60)
    assert "torch 2.0.0, now 2." in err and "cpu_capability an abacus, now " in err
    (note,) = json.loads(path.read_text())["resumed"]
    assert note["conditions"]["torch"] == torch.__version__ and note["step"] > 0


def change_data(folder: Path) -> None:
    (folder / "a.csv").write_text(CSV.replace("a dull film", "a dim film", 1))


def change_weights(folder: Path) -> None:
    save_tiny(folder / "tiny", initializer_range=0.03)


def change_config(folder: Path) -> None:
    config = json.loads((folder / "tiny" / "config.json").read_text())
    (folder / "tiny" / "config.json").write_text(json.dumps(config | {"dropout": 0.2}))


def change_tokenizer(folder: Path) -> None:
    path = folder / "tiny" / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["normalizer"]["lowercase"] = False
    path.write_text(json.dumps(tokenizer))


@pytest.mark.parametrize(
    "change, message",
    [
        (change_data, "--data a.csv: it has changed"),
        (change_weights, "--model tiny: it has changed"),
        (change_config, "--model tiny: it has changed"),
        (change_tokenizer, "--model tiny: it has changed"),
    ],
)
def test_data_or_a_model_that_has_changed_since_is_refused(
    in_process, tmp_path, stopped, change, message
):
    before = contents(tmp_path / "run")
    change(tmp_path)
    check_refused(in_process(*stopped), tmp_path / "run", before, message)


@pytest.mark.parametrize("change", [change_data, change_weights])
def test_a_complete_run_is_not_called_that_of_data_or_a_model_that_has_changed(
    in_process, tmp_path, stopped, change
):
    path = tmp_path / "run" / "run.json"
    result = {"result": {"epoch": 1, "accuracy": 0.5}}
    path.write_text(json.dumps(json.loads(path.read_text()) | result))
    assert in_process(*stopped).code == 0
    change(tmp_path)
    message = "--data a.csv: it has" if change is change_data else "--model tiny: it has"
    check_refused(in_process(*stopped), tmp_path / "run", contents(tmp_path / "run"), message)


def test_a_kept_model_that_is_gone_ends_the_run_with_a_line_and_its_checkpoint(
    in_process, tmp_path, stopped
):
    # The last epoch's would be written again, and is not lost: let it be that of another.
    path = tmp_path / "run" / "checkpoint.pt"
    state = checkpoint.load(path)
    torch.save(state | {"kept": state["kept"] | {"epoch": -9}}, path)
    path.write_bytes(path.read_bytes() + seal(path.read_bytes(), checkpoint.FORMAT))
    shutil.rmtree(tmp_path / "run" / "model")
    run = in_process(*stopped)
    assert run.code == 1 and len(run.errors) == 1 and "the kept model is gone" in run.errors[0]
    assert (tmp_path / "run" / "checkpoint.pt").exists() and "Traceback" not in run.err
    path = tmp_path / "run" / "run.json"
    result = {"result": {"epoch": 1, "accuracy": 0.5}}
    path.write_text(json.dumps(json.loads(path.read_text()) | result))
    run = in_process(*stopped)
    assert run.code == 2 and "complete, and its model/ is gone" in run.errors[0]


def test_another_spelling_of_the_same_files_goes_on(tmp_path, stopped, monkeypatch):
    monkeypatch.chdir(tmp_path)
    here = ["--model", tmp_path / "tiny", "--data", "./a.csv"]
    read_settings(vars(script), [*stopped, *map(str, here)])
    change_data(tmp_path)
    with pytest.raises(ValueError, match=r"--data \./a\.csv: the run in"):
        read_settings(vars(script), [*stopped, *map(str, here)])


def test_an_epoch_whose_line_cannot_be_printed_is_not_lost(tmp_path, tiny):
    command = [sys.executable, ROOT / "finetune.py", "--model", tiny, *SHORT, "--resume"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*command, "--output-dir", "run"],
            cwd=tmp_path,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 1, done.stderr
    assert "error: standard output could not be written (No space left" in done.stderr
    assert checkpoint.load(tmp_path / "run" / "checkpoint.pt")["epoch"] == 1


@pytest.mark.parametrize("name", ["y" * 256, "b\udcffd"])
def test_a_folder_whose_name_cannot_be_is_refused(tmp_path, in_process, name):
    run = in_process("--model", "builtin", "--data", "builtin", "--output-dir", name, "--resume")
    assert run.code == 2 and len(run.errors) == 1 and "name another" in run.errors[0], run.err


def test_the_fingerprint_of_data_is_that_of_its_content_however_it_lies_in_memory():
    texts = [f"text {number} é" * (number % 7) for number in range(25_000)]
    columns = {"text": texts, "text_pair": [None] * len(texts), "label": ["a"] * len(texts)}
    rows = datasets.Dataset.from_dict(columns | {"line": range(len(texts))})
    shifted = datasets.concatenate_datasets([rows.select(range(3)), rows]).select(
        range(3, 3 + len(rows))
    )
    chosen = datasets.concatenate_datasets([rows, rows]).select([*range(len(rows))])
    reversed_twice = rows.select(range(len(rows))[::-1]).select(range(len(rows))[::-1])
    prints = {records.fingerprint(r) for r in (rows, shifted, chosen, reversed_twice)}
    assert len(prints) == 1
    others = [
        dict(columns, label=["a"] * (len(texts) - 1) + ["b"]),
        dict(columns, text=texts[::-1]),
    ]
    assert not prints & {records.fingerprint(datasets.Dataset.from_dict(o)) for o in others}


def another_format(path: Path, others: Path) -> None:
    content = path.read_bytes()[: -len(checkpoint.SEAL.format(1, "0" * 64))]
    path.write_bytes(content + seal(content, 27))


def seal(content: bytes, number: int) -> bytes:
    found = hashlib.sha256(str(number).encode() + content).hexdigest()
    return checkpoint.SEAL.format(number, found).encode()


def of_another_run(path: Path, others: Path) -> None:
    path.write_bytes(others.read_bytes())


def of_another_model(path: Path, others: Path) -> None:
    """One that is whole, and says that it is of this run."""
    state, run = checkpoint.load(path), checkpoint.load(path)["run"]
    model = torch.nn.Linear(2, 2)
    state = {k: v for k, v in state.items() if k not in ("model", "optimizer")} | {"run": run}
    checkpoint.save(path, state, model, torch.optim.AdamW(model.parameters()))


def no_checkpoint(path: Path, others: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize(
    "change, code, message",
    [
        (another_format, 2, "written in format 27, and this program reads 2"),
        (of_another_run, 2, "of another run than its folder"),
        (of_another_model, 1, "does not fit this model"),
        (no_checkpoint, 2, "cut short or damaged"),
    ],
)
def test_a_checkpoint_that_is_not_this_runs_is_refused(
    in_process, tmp_path, stopped, change, code, message
):
    change(tmp_path / "run" / "checkpoint.pt", tmp_path / "other" / "checkpoint.pt")
    before = contents(tmp_path / "run")
    run = in_process(*stopped)
    assert run.code == code and len(run.errors) == 1 and message in run.errors[0], run.err
    assert "checkpoint.pt" in run.errors[0] and "Traceback" not in run.err
    assert code == 1 or contents(tmp_path / "run") == before


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="capabilities are Linux's")
@pytest.mark.parametrize("closed", [".", "run.json", "checkpoint.pt"])
def test_a_run_that_may_not_be_read_or_written_is_refused(tmp_path, stopped, closed):
    (tmp_path / "run" / closed).chmod(0o555 if closed == "." else 0)
    done = subprocess.run(
        [sys.executable, str(ROOT / "finetune.py"), *stopped],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        preexec_fn=drop_roots_power_over_files,
    )
    (tmp_path / "run" / closed).chmod(0o755)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert (len(errors) == 1 and str(tmp_path / "run") in errors[0]) or "run/" in errors[0]
    assert "permission" in errors[0].lower()


EMPTY = {name: {} for name in ("settings", "replaced", "fingerprints", "versions")}
EMPTY |= {"automatic": [], "resumed": [], "result": None}
WRONG_KINDS, WRONG_RESULT = (
    json.dumps(EMPTY | change) for change in ({"settings": 1}, {"result": {"epoch": 1}})
)


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '{"settings": {}}', "[" * 100_000, WRONG_KINDS, WRONG_RESULT],
    ids=lambda text: text[:20],
)
def test_a_record_that_is_damaged_is_refused(in_process, tmp_path, content):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text(content)
    run = in_process("--data", "builtin", "--model", "builtin", "--output-dir", "run", "--resume")
    assert run.code == 2 and len(run.errors) == 1 and "run.json cannot be read" in run.errors[0]


def test_resuming_wants_the_folder_of_a_run_or_an_empty_one(in_process, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("years of work")
    flags = ["--model", "builtin", "--data", "builtin", "--resume"]
    run = in_process(*flags)
    assert run.code == 2 and "--resume: name the folder of the run" in run.errors[0]
    run = in_process(*flags, "--output-dir", "run")
    assert run.code == 2 and "it holds files already, and no run.json" in run.errors[0]
    assert contents(tmp_path / "run") == {"thesis.txt": b"years of work"}


def test_the_readmes_command_starts_a_run_and_says_when_it_is_complete(
    in_process, small_builtin, tmp_path
):
    _, script, *flags = block("resume").split()
    assert script == "finetune.py" and "--resume" in flags
    for said in ("kept: epoch", "this run is complete; kept: epoch"):
        run = in_process(*flags)
        assert run.code == 0 and said in run.err, run.err
    assert (tmp_path / "runs" / "first" / "model" / "model.safetensors").exists()


def test_without_resume_a_run_that_was_stopped_is_not_touched(in_process, tmp_path, stopped):
    before = contents(tmp_path / "run")
    run = in_process(*stopped[:-1])
    check_refused(run, tmp_path / "run", before, "it holds a run already; go on with it by")


# ---- Files ----


@settings(max_examples=50, deadline=None)
@given(old=strategies.binary(max_size=300), new=strategies.lists(strategies.binary(max_size=99)))
def test_a_file_is_written_whole_or_stays_as_it_was(tmp_path_factory, old, new):
    path = tmp_path_factory.mktemp("files") / "a"
    path.write_bytes(old)

    def fail_at_the_end(file):
        for part in new:
            file.write(part)
        raise OSError(28, "No space left on device")

    with pytest.raises(files.RunError, match="a could not be written \\(No space left"):
        files.write_whole(path, fail_at_the_end)
    assert contents(path.parent) == {"a": old}
    files.write_whole(path, lambda file: [file.write(part) for part in new])
    assert contents(path.parent) == {"a": b"".join(new)}


def test_a_model_is_replaced_by_a_whole_one_or_not_at_all(tmp_path):
    def fill(content: str, error: Exception | None = None):
        def write(folder: Path) -> None:
            (folder / "config.json").write_text(content)
            if error:
                raise error

        return write

    files.replace_folder(tmp_path / "model", fill("first"))
    with pytest.raises(files.RunError):
        files.replace_folder(tmp_path / "model", fill("second", OSError(28, "No space left")))
    assert contents(tmp_path) == {"config.json": b"first"}
    files.replace_folder(tmp_path / "model", fill("third"))
    assert contents(tmp_path) == {"config.json": b"third"}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_checkpoint_can_be_read_by_torch_alone_and_runs_no_code(tmp_path):
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, checkpoint.new_state({}) | {"step": 7}, model, optimizer)
    for state in (torch.load(path, weights_only=True), checkpoint.load(path)):
        assert state["step"] == 7 and torch.equal(state["model"]["weight"], model.weight)
    # Whole and sealed, but with a pickle that names code: it is not run.
    torch.save({"a": Evil(tmp_path / "ran")}, path)
    path.write_bytes(path.read_bytes() + seal(path.read_bytes(), checkpoint.FORMAT))
    with pytest.raises(ValueError, match="what no checkpoint holds"):
        checkpoint.load(path)
    torch.save({"a": 1}, path)
    path.write_bytes(path.read_bytes() + seal(path.read_bytes(), checkpoint.FORMAT))
    with pytest.raises(ValueError, match="lacks what a checkpoint holds"):
        checkpoint.load(path)
    assert not (tmp_path / "ran").exists()


class Evil:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_the_lock_of_a_run_lets_one_process_in(tmp_path):
    with (
        run_folder._lock(tmp_path),
        pytest.raises(ValueError, match="another process"),
        run_folder._lock(tmp_path),
    ):
        pass
    assert contents(tmp_path) == {}


def test_a_disk_without_locks_is_told_and_used(tmp_path, monkeypatch, capsys):
    def refuse(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(run_folder.filelock.FileLock, "acquire", refuse)
    with run_folder._lock(tmp_path):
        assert "this disk has no locks (No locks available)" in capsys.readouterr().err
