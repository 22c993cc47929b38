"""Scenarios that stop, kill or damage runs of one process, or fill their disk.

group.py or `python -m harness.scenarios NAME ARGUMENTS` runs a scenario; all values are JSON.
"""

import itertools
import json
import os
import random
import resource
import shutil
import signal
import sys
import time
from pathlib import Path

import finetune
from harness.trace import HALVED, trace, wait_for_tracer
from harness.warm import (
    Runs,
    exit_code,
    last_state,
    log_checkpoints,
    make_clock_random,
    outcome,
    set_weight_to_nan_at,
    signal_at,
    start,
)
from training import checkpoint

# ---- Stops ----


def stops(folder: Path, flags: list[str], plans: dict[str, list]) -> dict:
    """Stop a run at each [event, count, signal] of a plan in turn, then let the run end."""
    runs, results = Runs(folder, flags), {}
    for number, (plan, moments) in enumerate(plans.items()):
        codes, name = [], f"run{number}"
        for event, count, signal_number in moments:
            codes.append(runs.run(name, before=signal_at(event, count, signal_number)))
            runs.check_whole(name)
        results[plan] = {"codes": codes, "resumed from": runs.check(name)}
    return results


def stopped(folder: Path, commands: list[list[str]]) -> list[tuple[int, str]]:
    """Stop a run with each command's flags after some steps: exit codes and output."""
    os.chdir(folder)
    log, results = folder / "log", []
    for flags in commands:
        code = exit_code(start(flags, log, signal_at("a step", 5, signal.SIGTERM)))
        results.append((code, log.read_text()))
        log.unlink()
    return results


def weights_not_finite(folder: Path, flags: list[str]) -> dict:
    """Make a weight NaN in a step: exit code, output, and the step of the checkpoint."""
    runs = Runs(folder, flags)
    code = runs.run("run", "--checkpoint-minutes", "0", before=set_weight_to_nan_at(6))
    output = (folder / "run.log").read_text()
    kept = checkpoint.read_state(folder / "run" / "checkpoint.pt").step
    return {"code": code, "output": output, "kept": kept, "resumed from": runs.check("run")}


def random_clock(folder: Path, flags: list[str]) -> dict:
    """The steps at which a run writes checkpoints while the time of day is random."""
    runs, log = Runs(folder, flags), folder / "saves"

    def prepare() -> None:
        log_checkpoints(log)
        make_clock_random()

    code = runs.run("run", before=prepare)
    assert outcome(folder / "run") == runs.expected
    return {"code": code, "checkpoints": list(map(int, log.read_text().split()))}


def second_signal(folder: Path, flags: list[str]) -> dict:
    """Send SIGTERM twice while a step takes a minute."""
    runs, log = Runs(folder, flags), folder / "run.log"

    def make_slow() -> None:
        real, counter = finetune.training_step, itertools.count(1)

        def slow(*arguments: object) -> object:
            if next(counter) == 6:
                print("in the slow step", flush=True)
                time.sleep(60)
            return real(*arguments)

        finetune.training_step = slow

    pid = runs.start("run", "--checkpoint-minutes", "0", before=make_slow)
    log.touch()
    while "in the slow step" not in log.read_text():
        time.sleep(0.01)
    os.kill(pid, signal.SIGTERM)
    while "stopping after this step" not in log.read_text():
        time.sleep(0.01)
    sent = time.monotonic()
    os.kill(pid, signal.SIGTERM)
    code, seconds = exit_code(pid), time.monotonic() - sent
    runs.check_whole("run")
    return {"code": code, "seconds": seconds, "resumed from": runs.check("run")}


# ---- Kills ----


def fuzz(folder: Path, flags: list[str], kills: int, seed: int) -> dict:
    """Kill each run one to six times at random moments, then let it end."""
    random_numbers, runs = random.Random(seed), Runs(folder, flags)
    killed, steps, count = 0, [], 0
    while killed < kills:
        name, count = f"run{count}", count + 1
        interval = ["--checkpoint-minutes", random_numbers.choice(["0", "0", "10"])]
        for _ in range(random_numbers.randint(1, 6)):
            pid = runs.start(name, *interval)
            time.sleep(random_numbers.uniform(0, runs.seconds))
            os.kill(pid, signal.SIGKILL)
            code = exit_code(pid)
            assert code in (0, -signal.SIGKILL), (code, (folder / f"{name}.log").read_text())
            killed += code != 0
            if (folder / name).exists():
                runs.check_whole(name)
        steps += runs.check(name, *interval)
    return {"runs": count, "kills": killed, "resumed from": steps}


def each_operation(folder: Path, flags: list[str], part: int, parts: int) -> dict:
    """Kill a run at each operation on a file of its folder, and in the middle of each write.

    One traced run lists the operations. The scenario takes every `parts`-th operation from `part`.
    """
    runs = Runs(folder, flags)
    try:
        operations, _ = trace(runs.start("traced", before=wait_for_tracer), folder / "traced")
    except OSError as error:
        # A container can forbid ptrace.
        return {"untraceable": str(error)}
    runs.check("traced")
    moments = [(number, False) for number in range(len(operations))]
    moments += [(n, True) for n, operation in enumerate(operations) if operation.call in HALVED]
    steps = []
    for number, halfway in moments[part::parts]:
        name = f"{number}{'half' if halfway else ''}"
        pid = runs.start(name, before=wait_for_tracer)
        traced, code = trace(pid, folder / name, number, halfway)
        assert code == -signal.SIGKILL and traced == operations[: number + 1], (traced, operations)
        runs.check_whole(name)
        steps += runs.check(name)
    return {"operations": operations, "kills": len(moments[part::parts]), "resumed from": steps}


# ---- Full disks and damage ----


def full_disk(folder: Path, flags: list[str], moments: int, limit: str) -> dict:
    """Fill the disk at evenly spaced moments of a run, then free space and let the run end.

    Args:
        limit: "space" fills the disk of `folder`, which must be a small disk of its own.
            "file size" limits the size of each file instead.
    """
    runs = Runs(folder, flags)
    size = last_state(folder / "reference").stat().st_size
    if limit == "space":
        # The run needs space for two checkpoints and the files of a complete run.
        size = 2 * size + sum(path.stat().st_size for path in (folder / "reference").rglob("*"))
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    errors, steps = [], []
    for number in range(moments):
        room, name = size * number // moments + 2000, f"run{number}"
        log, filler = folder / f"{name}.log", folder / "filler"
        if limit == "space":
            # The output must still fit in the log.
            log.write_bytes(b" " * 4096 + b"\n")
            with filler.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(folder).free - room)

        def limit_files(room: int = room) -> None:
            if limit == "file size":
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))

        code = runs.run(name, before=limit_files)
        filler.unlink(missing_ok=True)
        lines = [line for line in log.read_text().splitlines() if line.startswith("error: ")]
        assert code in (0, 1) and len(lines) == code, log.read_text()
        errors += lines
        if (folder / name).exists():
            runs.check_whole(name)
            assert not [*(folder / name).glob("*.partial")], [*(folder / name).iterdir()]
        steps += runs.check(name)
    return {"errors": errors, "resumed from": steps}


def damage(folder: Path, flags: list[str], count: int, seed: int) -> dict:
    """Damage the checkpoint of a run at random, `count` times; each exit code and output."""
    runs, random_numbers = Runs(folder, flags), random.Random(seed)
    assert runs.run("run", before=signal_at("a step", 6, signal.SIGTERM)) == 143
    path, log = folder / "run" / "checkpoint.pt", folder / "run.log"
    whole, ends = path.read_bytes(), []
    for number in range(count):
        kind = ("flip", "cut", "zero", "move", "add")[number % 5]
        content = damaged(whole, random_numbers, kind)
        assert content != whole
        path.write_bytes(content)
        log.write_text("")
        code = runs.run("run")
        ends.append((code, log.read_text()))
        assert path.read_bytes() == content and not list((folder / "run").glob("*.partial"))
    path.write_bytes(whole)
    log.write_text("")
    return {"ends": ends, "resumed from": runs.check("run")}


def damaged(content: bytes, random_numbers: random.Random, kind: str) -> bytes:
    """The content with damage of one kind at a random position, often near the end."""
    size = len(content)
    near_end = size - random_numbers.randint(1, 300)
    start = random_numbers.choice([random_numbers.randrange(size), near_end])
    end = start + random_numbers.randint(1, 5000)
    if kind == "flip":
        byte = content[start] ^ (1 << random_numbers.randrange(8))
        return content[:start] + bytes([byte]) + content[start + 1 :]
    if kind == "cut":
        return content[:start]
    if kind == "zero" and content[start:end].strip(b"\0"):
        return content[:start] + bytes(len(content[start:end])) + content[end:]
    if kind == "move":
        return content[start:] + content[:start]
    return content + random_numbers.randbytes(random_numbers.randint(1, 500))


if __name__ == "__main__":
    name, arguments = sys.argv[1], json.loads(sys.argv[2])
    print(json.dumps(globals()[name](Path(arguments.pop("folder")), **arguments)))
