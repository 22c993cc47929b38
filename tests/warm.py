"""The program in processes that start warm: forked from one that has imported everything.

Started by tests as `python tests/warm.py SCENARIO ARGUMENTS`, with arguments and results in JSON.
A child runs `finetune.main` as finetune.py itself does, only without seconds of imports, so that it
can be killed hundreds of times. The parent has started no thread: forking would break those.
"""

import contextlib
import ctypes
import functools
import hashlib
import itertools
import json
import math
import os
import random
import re
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import matplotlib.figure
import safetensors.torch
import scipy.stats  # noqa: F401
import torch
import transformers.models.distilbert.modeling_distilbert
import transformers.trainer_utils  # noqa: F401

import finetune
import training.scores  # noqa: F401
from inputs import hub
from outputs import plots as pictures
from system import collectives as processes
from system import console
from training import checkpoint, run_folder
from training.settings import read_settings


def program(flags: list[str]) -> None:
    """What finetune.py does where it is the program, all but for what ends it on signals."""
    with console.exit_codes(processes.may_tell), processes.losses_told():
        processes.join(flags)
        settings = processes.by_first(read_settings, vars(finetune), flags)
        if finished := processes.by_first(run_folder.result_of, settings):
            console.say(f"this run is complete; {finished}")
            sys.exit()
        if problem := processes.by_first(hub.ask, settings):
            hub.go_offline()
        finetune.main(settings, problem)
        processes.leave()


def start(flags: list[str], log: Path, before: Callable[[], None] = lambda: None) -> int:
    """The process id of a child that runs the program; its output is added to the file `log`."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(out, 1), os.dup2(out, 2)
        console.end_on_signals()
        before()
        program(flags)
        code = 0
    except SystemExit as stop:
        code = stop.code or 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)


def end_of(pid: int) -> int:
    """The exit code of a child, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


# ---- What a run has come to ----


def outcome(folder: Path) -> dict:
    """All that must be the same however often a run was interrupted: no times, no such numbers."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
    record = json.loads((folder / "run.json").read_text())
    return {
        "names": sorted(path.name for path in folder.iterdir()),
        "model": {path.name: digest(path.read_bytes()) for path in (folder / "model").iterdir()},
        "metrics": [without_times(line) for line in lines],
        "result": without_times(record["result"]),
        "last state": digest(repr(flat(checkpoint.load(last_state(folder)))).encode()),
    }


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def without_times(record: dict) -> dict:
    return {k: v for k, v in record.items() if k not in ("samples_per_second", "seconds")}


def flat(value: object) -> object:
    """A state without its times, each tensor as the digest of its bytes."""
    if isinstance(value, dict):
        names = sorted(without_times(value).keys() - {"run"}, key=str)
        return [(name, flat(value[name])) for name in names]
    if isinstance(value, list):
        return list(map(flat, value))
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), digest(value.numpy().tobytes())
    return value


def last_state(folder: Path) -> Path:
    return folder.with_name(folder.name + ".last.pt")


def save_at_once(figure: matplotlib.figure.Figure, path: Path) -> None:
    """In place of pictures._save: a file where the picture, a second of drawing, would be."""
    shown = [figure.get_suptitle(), *(axes.get_title() for axes in figure.axes)]
    shown += [line.get_xydata().tolist() for axes in figure.axes for line in axes.lines]
    pictures.files.write_whole(path, lambda file: file.write(repr(shown).encode()))


def copy_the_last_state() -> None:
    """In a child: keep the last checkpoint, which a complete run removes."""
    finish = run_folder.finish

    def copy_then_finish(folder: Path, *arguments: object) -> None:
        shutil.copy(folder / "checkpoint.pt", last_state(folder))
        finish(folder, *arguments)

    run_folder.finish = copy_then_finish


def resumed_steps(log: Path) -> list[int]:
    return [int(step) for step in re.findall(r"^resumed from step (\d+)$", log.read_text(), re.M)]


def prepare() -> None:
    """In a child, before it runs the program."""
    copy_the_last_state()
    pictures._save = save_at_once


class Runs:
    """Runs of the program with the same flags, each compared with the first, uninterrupted one."""

    def __init__(self, folder: Path, flags: list[str]):
        self.folder, self.flags = folder, flags
        for name in ("cold", "reference"):  # The first finds nothing in datasets' cache.
            started = time.monotonic()
            assert self.end(name) == 0, (folder / f"{name}.log").read_text()
            self.seconds = time.monotonic() - started
        self.expected = outcome(folder / "reference")

    def start(self, name: str, *flags: str, before: Callable[[], None] = lambda: None) -> int:
        def prepare_and() -> None:
            prepare()
            before()

        where = ["--resume", "--output-dir", str(self.folder / name)]
        return start([*self.flags, *flags, *where], self.folder / f"{name}.log", prepare_and)

    def end(self, name: str, *flags: str, before: Callable[[], None] = lambda: None) -> int:
        return end_of(self.start(name, *flags, before=before))

    def check(self, name: str, *flags: str) -> list[int]:
        """Give the same command until the end: it must come to the same. The steps resumed from."""
        log = self.folder / f"{name}.log"
        assert self.end(name, *flags) == 0, log.read_text()
        found = outcome(self.folder / name)
        assert found == self.expected, (name, found, self.expected)
        assert "Traceback" not in log.read_text(), log.read_text()
        steps = resumed_steps(log)
        for path in (self.folder / name, last_state(self.folder / name)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        return steps

    def check_whole(self, name: str) -> None:
        """Whatever was killed: a checkpoint that is there can be read, and so can a model."""
        folder = self.folder / name
        if (folder / "checkpoint.pt").exists():
            checkpoint.load(folder / "checkpoint.pt")
        if (folder / "model").exists():
            names = {path.name for path in (folder / "model").iterdir()}
            reported = {"README.md", "curves.png"}  # These come at the end.
            names -= {f"{name}.partial" for name in reported}
            assert names | reported == set(self.expected["model"])
            safetensors.torch.load_file(folder / "model" / "model.safetensors")


# ---- In a child, before it runs the program ----


def signal_at(what: str, call: int, number: int) -> Callable[[], None]:
    """Send `number` to the child itself at a call of something, counted from 1."""

    def prepare() -> None:
        left = itertools.count(1)

        def and_signal(real: Callable, *arguments: object, **options: object) -> object:
            if next(left) == call:
                os.kill(os.getpid(), number)
            return real(*arguments, **options)

        if what == "a step":
            finetune.training_step = functools.partial(and_signal, finetune.training_step)
        elif what == "a batch of an evaluation":
            evaluate, forward = finetune.evaluate, finetune.forward

            def signal_in_forward(*arguments: object) -> object:
                finetune.forward = functools.partial(and_signal, forward)
                try:
                    return evaluate(*arguments)
                finally:
                    finetune.forward = forward

            finetune.evaluate = signal_in_forward
        elif what == "a part of a checkpoint":
            sha256 = hashlib.sha256
            save = checkpoint.save

            def save_with_signal(*arguments: object) -> None:
                def with_signal(start: bytes) -> SimpleNamespace:
                    digest = sha256(start)
                    update = functools.partial(and_signal, digest.update)
                    return SimpleNamespace(update=update, hexdigest=digest.hexdigest)

                hashlib.sha256 = with_signal
                save(*arguments)
                hashlib.sha256 = sha256

            checkpoint.save = save_with_signal

    return prepare


def ruin_weights_at(call: int) -> Callable[[], None]:
    """Make the weights not finite in a step, whose own loss is."""

    def prepare() -> None:
        left, real = itertools.count(1), finetune.training_step

        def step_then_ruin(model: torch.nn.Module, *arguments: object) -> object:
            found = real(model, *arguments)
            if next(left) == call:
                next(model.parameters()).data[0, 0] = math.nan
            return found

        finetune.training_step = step_then_ruin

    return prepare


def let_the_clock_jump() -> None:
    choose = random.Random(0)
    time.time = lambda: choose.uniform(0, 4e9)
    time.strftime = lambda *_: str(choose.random())


def count_checkpoints(log: Path) -> None:
    real = checkpoint.save

    def save(path: Path, state: dict, *arguments: object) -> None:
        real(path, state, *arguments)
        with log.open("a") as lines:
            lines.write(f"{state['step']}\n")

    checkpoint.save = save


# ---- Scenarios ----


def stops(folder: Path, flags: list[str], plans: dict[str, list]) -> dict:
    """Stop a run at each [what, call, signal] of a plan, one after the other, then let it end."""
    runs, found = Runs(folder, flags), {}
    for number, (plan, moments) in enumerate(plans.items()):
        codes, name = [], f"run{number}"
        for what, call, signal_number in moments:
            codes.append(runs.end(name, before=signal_at(what, call, signal_number)))
            runs.check_whole(name)
        found[plan] = {"codes": codes, "resumed from": runs.check(name)}
    return found


def stopped(folder: Path, each: list[list[str]]) -> list[tuple[int, str]]:
    """Stop runs in `folder`, one with each of these flags, after some steps; what do they say?"""
    os.chdir(folder)
    log, found = folder / "log", []
    for flags in each:
        code = end_of(start(flags, log, signal_at("a step", 5, signal.SIGTERM)))
        found.append((code, log.read_text()))
        log.unlink()
    return found


def ruin(folder: Path, flags: list[str]) -> dict:
    """A step ruins the weights; what does the next checkpoint hold, and where does a run end?"""
    runs = Runs(folder, flags)
    code = runs.end("run", "--checkpoint-minutes", "0", before=ruin_weights_at(6))
    said = (folder / "run.log").read_text()
    kept = checkpoint.load(folder / "run" / "checkpoint.pt")["step"]
    return {"code": code, "said": said, "kept": kept, "resumed from": runs.check("run")}


def clock(folder: Path, flags: list[str]) -> dict:
    """The steps at which checkpoints were written while the clock jumped about."""
    runs, log = Runs(folder, flags), folder / "saves"

    def prepare() -> None:
        count_checkpoints(log)
        let_the_clock_jump()

    code = runs.end("run", before=prepare)
    assert outcome(folder / "run") == runs.expected
    return {"code": code, "checkpoints": list(map(int, log.read_text().split()))}


def second_signal(folder: Path, flags: list[str]) -> dict:
    """SIGTERM comes twice while a step takes a minute."""
    runs, log = Runs(folder, flags), folder / "run.log"

    def make_slow() -> None:
        real, left = finetune.training_step, itertools.count(1)

        def slow(*arguments: object) -> object:
            if next(left) == 6:
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
    code, seconds = end_of(pid), time.monotonic() - sent
    runs.check_whole("run")
    return {"code": code, "seconds": seconds, "resumed from": runs.check("run")}


def damage(folder: Path, flags: list[str], count: int, seed: int) -> dict:
    """Damage the checkpoint of a run at random, `count` times; what does the program say?"""
    runs, choose = Runs(folder, flags), random.Random(seed)
    assert runs.end("run", before=signal_at("a step", 6, signal.SIGTERM)) == 143
    path, log = folder / "run" / "checkpoint.pt", folder / "run.log"
    whole, said = path.read_bytes(), []
    for number in range(count):
        found = damaged(whole, choose, ("flip", "cut", "zero", "move", "add")[number % 5])
        assert found != whole
        path.write_bytes(found)
        log.write_text("")
        code = runs.end("run")
        said.append((code, log.read_text()))
        assert path.read_bytes() == found and not list((folder / "run").glob("*.partial"))
    path.write_bytes(whole)
    log.write_text("")
    return {"said": said, "resumed from": runs.check("run")}


def damaged(content: bytes, choose: random.Random, kind: str) -> bytes:
    start = choose.choice([choose.randrange(len(content)), len(content) - choose.randint(1, 300)])
    end = start + choose.randint(1, 5000)
    if kind == "flip":
        byte = content[start] ^ (1 << choose.randrange(8))
        return content[:start] + bytes([byte]) + content[start + 1 :]
    if kind == "cut":
        return content[:start]
    if kind == "zero" and content[start:end].strip(b"\0"):
        return content[:start] + bytes(len(content[start:end])) + content[end:]
    if kind == "move":
        return content[start:] + content[:start]
    return content + choose.randbytes(choose.randint(1, 500))


def fuzz(folder: Path, flags: list[str], kills: int, seed: int) -> dict:
    """Kill runs at random moments, one to six times each, then let them end."""
    choose, runs = random.Random(seed), Runs(folder, flags)
    killed, steps, count = 0, [], 0
    while killed < kills:
        name, count = f"run{count}", count + 1
        often = ["--checkpoint-minutes", choose.choice(["0", "0", "10"])]
        for _ in range(choose.randint(1, 6)):
            pid = runs.start(name, *often)
            time.sleep(choose.uniform(0, runs.seconds))
            os.kill(pid, signal.SIGKILL)
            code = end_of(pid)
            assert code in (0, -signal.SIGKILL), (code, (folder / f"{name}.log").read_text())
            killed += code != 0
            if (folder / name).exists():
                runs.check_whole(name)
        steps += runs.check(name, *often)
    return {"runs": count, "kills": killed, "resumed from": steps}


def each_operation(folder: Path, flags: list[str], part: int, parts: int) -> dict:
    """Kill a run at each operation on a file of its folder; at a write also in the middle of it.

    Which operations there are is found by tracing one run; each `parts`-th is taken, from `part`.
    """
    runs = Runs(folder, flags)
    try:
        found, _ = trace(runs.start("traced", before=traceable), folder / "traced")
    except OSError as error:  # Containers can forbid it.
        return {"untraceable": str(error)}
    runs.check("traced")
    moments = [(number, False) for number in range(len(found))]
    moments += [(number, True) for number, (call, _) in enumerate(found) if call in HALVED]
    steps = []
    for number, halfway in moments[part::parts]:
        name = f"{number}{'half' if halfway else ''}"
        pid = runs.start(name, before=traceable)
        seen, code = trace(pid, folder / name, number, halfway)
        assert code == -signal.SIGKILL and seen == found[: number + 1], (seen, found)
        runs.check_whole(name)
        steps += runs.check(name)
    return {"operations": found, "kills": len(moments[part::parts]), "resumed from": steps}


def full_disk(folder: Path, flags: list[str], moments: int, limit: str) -> dict:
    """Fill the disk up at evenly spaced moments of a run, then make space, and let it end.

    Args:
        limit: "space" where `folder` is a disk of its own, small enough to be filled; "file size"
            where it isn't, and no file may grow larger.
    """
    runs = Runs(folder, flags)
    size = last_state(folder / "reference").stat().st_size
    if limit == "space":  # Two checkpoints, a model and half of another, and what is small.
        size = 2 * size + sum(path.stat().st_size for path in (folder / "reference").rglob("*"))
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    errors, steps = [], []
    for number in range(moments):
        most, name = size * number // moments + 2000, f"run{number}"
        log = folder / f"{name}.log"
        if limit == "space":
            log.write_bytes(b" " * 4096 + b"\n")  # Room for what it says.
        filler = folder / "filler"

        def limit_files(most: int = most) -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))

        if limit == "space":
            with filler.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(folder).free - most)
        code = runs.end(name, before=(lambda: None) if limit == "space" else limit_files)
        filler.unlink(missing_ok=True)
        said = [line for line in log.read_text().splitlines() if line.startswith("error: ")]
        assert code in (0, 1) and len(said) == code, log.read_text()
        errors += said
        if (folder / name).exists():
            runs.check_whole(name)
            assert not [*(folder / name).glob("*.partial")], [*(folder / name).iterdir()]
        steps += runs.check(name)
    return {"errors": errors, "resumed from": steps}


# ---- Tracing, by Linux's ptrace, as strace does ----

# Number, name, and which argument is the path or the open file (of x86-64).
CALLS = {
    1: ("write", 0, "file"),
    18: ("pwrite", 0, "file"),
    20: ("writev", 0, "file"),
    74: ("fsync", 0, "file"),
    75: ("fdatasync", 0, "file"),
    77: ("ftruncate", 0, "file"),
    82: ("rename", 0, "path"),
    83: ("mkdir", 0, "path"),
    84: ("rmdir", 0, "path"),
    87: ("unlink", 0, "path"),
    90: ("chmod", 0, "path"),
    257: ("open", 1, "path"),
    263: ("unlinkat", 1, "path"),
    264: ("rename", 1, "path"),
    268: ("chmod", 1, "path"),
    316: ("rename", 1, "path"),
}
HALVED = ("write", "pwrite")  # The number of bytes is their third argument.
PTRACE_TRACEME, PTRACE_GETREGS, PTRACE_SETREGS, PTRACE_SYSCALL = 0, 12, 13, 24
PTRACE_SETOPTIONS, TRACE_SYSGOOD, EXIT_KILL = 0x4200, 1, 0x100000
RAX, RDX, RSI, RDI, ORIG_RAX = 10, 12, 13, 14, 15
libc = ctypes.CDLL(None, use_errno=True)


def ptrace(request: int, pid: int, address: int = 0, content: object = 0) -> None:
    arguments = [ctypes.c_long(request), ctypes.c_long(pid), ctypes.c_void_p(address)]
    if libc.ptrace(*arguments, content if content else ctypes.c_void_p(0)) == -1:
        raise OSError(ctypes.get_errno(), "ptrace")


def traceable() -> None:
    """In a child: wait for `trace`."""
    ptrace(PTRACE_TRACEME, 0)
    os.kill(os.getpid(), signal.SIGSTOP)


def trace(
    pid: int, folder: Path, until: int | None = None, halfway: bool = False
) -> tuple[list[tuple[str, str]], int]:
    """The operations of a child's main thread that change files of `folder`, and how it ended.

    Args:
        until: kill it where operation number `until` is about to be done.
        halfway: let half of that, which is a write, be done before.
    """
    seen: list[tuple[str, str]] = []
    entering, registers = True, (ctypes.c_ulonglong * 27)()
    _, status = os.waitpid(pid, 0)
    ptrace(PTRACE_SETOPTIONS, pid, 0, ctypes.c_void_p(TRACE_SYSGOOD | EXIT_KILL))
    passed_on = 0
    while not (os.WIFEXITED(status) or os.WIFSIGNALED(status)):
        stop = os.WSTOPSIG(status)
        passed_on = 0 if stop in (signal.SIGTRAP | 0x80, signal.SIGSTOP) else stop
        if stop == signal.SIGTRAP | 0x80:
            if entering:
                ptrace(PTRACE_GETREGS, pid, 0, registers)
                if operation := changes(pid, registers, folder):
                    seen.append(operation)
                    if until == len(seen) - 1 and halfway:
                        registers[RDX] //= 2
                        ptrace(PTRACE_SETREGS, pid, 0, registers)
                    elif until == len(seen) - 1:
                        os.kill(pid, signal.SIGKILL)
            elif halfway and until == len(seen) - 1:
                os.kill(pid, signal.SIGKILL)
            entering = not entering
        with contextlib.suppress(ProcessLookupError):  # Killed above.
            ptrace(PTRACE_SYSCALL, pid, 0, ctypes.c_void_p(passed_on))
        _, status = os.waitpid(pid, 0)
    return seen, os.waitstatus_to_exitcode(status)


def changes(pid: int, registers: ctypes.Array, folder: Path) -> tuple[str, str] | None:
    """The call that is about to be made and its file, if it changes one in `folder`."""
    if registers[ORIG_RAX] not in CALLS:
        return None
    call, place, kind = CALLS[registers[ORIG_RAX]]
    arguments = [registers[RDI], registers[RSI], registers[RDX]]
    if call == "open" and not arguments[2] & (os.O_CREAT | os.O_TRUNC):
        return None
    if kind == "file":
        path = Path(f"/proc/{pid}/fd/{arguments[place]}").readlink()
    else:
        with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
            memory.seek(arguments[place])
            path = Path(os.fsdecode(memory.read(256).split(b"\0")[0]))
        # Relative to an open folder; AT_FDCWD is −100.
        if not path.is_absolute() and ctypes.c_int(arguments[0]).value >= 0 and place:
            path = Path(f"/proc/{pid}/fd/{arguments[0]}").readlink() / path
    if not path.is_relative_to(folder):
        return None
    return call, re.sub(r"\.tmp\w+", ".tmp", str(path.relative_to(folder)))  # Named at random.


if __name__ == "__main__":
    scenario, arguments = sys.argv[1], json.loads(sys.argv[2])
    print(json.dumps(globals()[scenario](Path(arguments.pop("folder")), **arguments)))
