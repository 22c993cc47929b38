"""Groups of warm processes, as torchrun would start them: see warm.py.

Started by tests once: it reads a scenario, of those here or in warm.py, and its arguments from each
line, runs it in a fork of itself, and answers with what that has found, or null.
"""

import csv
import json
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import safetensors.torch
import torch
import warm

import finetune
from system import collectives as processes
from system import console
from training import checkpoint


def start(
    count: int,
    flags: list[str],
    log: Path,
    before: Callable[[int], None] = lambda rank: None,
    machines: int = 1,
) -> list[int]:
    """The process ids of a group; `before` is called in each with its number."""
    parent = os.getpid()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    of_each = count // machines
    launcher = os.fork()  # torchrun's own process keeps what the others tell each other.
    if not launcher:
        _store = torch.distributed.TCPStore(
            "127.0.0.1", port, is_master=True, wait_for_workers=False
        )
        while os.getppid() == parent:
            time.sleep(0.05)
        os._exit(0)

    def prepare(rank: int) -> Callable[[], None]:
        def set_up() -> None:
            numbers = {"RANK": rank, "LOCAL_RANK": rank % of_each, "WORLD_SIZE": count}
            numbers |= {"LOCAL_WORLD_SIZE": of_each, "MASTER_PORT": port}
            os.environ.update({name: str(number) for name, number in numbers.items()})
            os.environ |= {"TORCHELASTIC_RUN_ID": "test", "MASTER_ADDR": "127.0.0.1"}
            os.environ |= {"TORCHELASTIC_USE_AGENT_STORE": "True"}
            os.environ |= {"TORCHELASTIC_RESTART_COUNT": "0"}
            warm.prepare()
            before(rank)

        return set_up

    return [warm.start(flags, log, prepare(rank)) for rank in range(count)]


def end_of(pids: list[int], seconds: float = 60) -> list[int]:
    """Their exit codes; a group that hangs is killed, and that is -9."""
    codes: dict[int, int] = {}
    until = time.monotonic() + seconds
    while len(codes) < len(pids):
        for pid in set(pids) - codes.keys():
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                codes[pid] = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > until:
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    return [codes[pid] for pid in pids]


class Runs:
    """Runs of the program in a folder, each of some number of processes."""

    def __init__(self, folder: Path, flags: list[str]):
        self.folder, self.flags = folder, flags

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def run(self, name: str, count: int, *flags: str, **how: object) -> list[int]:
        """Start or go on with the run `name`; 0 processes: without torchrun. Their exit codes."""
        log = self.folder / f"{name}.log"
        flags = [*self.flags, *flags, "--resume", "--output-dir", str(self.folder / name)]
        if not count:
            return [warm.end_of(warm.start(flags, log, warm.prepare))]
        return end_of(start(count, flags, log, **how))

    def mistakes(self, name: str) -> list[list[str]]:
        """The wrong answers without their probabilities, which differ by rounding."""
        with (self.folder / name / "mistakes.csv").open(newline="") as file:
            return sorted(row[:-1] for row in csv.reader(file))

    def found(self, name: str) -> dict:
        """What the run has come to."""
        record = json.loads((self.folder / name / "run.json").read_text())
        lines = [json.loads(line) for line in (self.folder / name / "metrics.jsonl").open()]
        return {
            "log": self.log(name),
            "by_process": record["by_process"],
            "replaced": record["replaced"],
            "processes": record["processes"],
            "accuracies": [x["eval_accuracy"] for x in lines if "eval_accuracy" in x],
            "losses": [x.get("loss", x.get("eval_loss")) for x in lines],
            "steps": [x["step"] for x in lines],
            "mistakes": self.mistakes(name),
            "result": record["result"],
            "bytes": warm.outcome(self.folder / name),
        }

    def difference(self, one: str, other: str) -> float:
        """The largest between any two of their weights."""
        files = [self.folder / name / "model" / "model.safetensors" for name in (one, other)]
        a, b = map(safetensors.torch.load_file, files)
        return max((a[name] - b[name]).abs().max().item() for name in a)


# ---- Scenarios ----


def sizes(folder: Path, flags: list[str], counts: list[int]) -> dict:
    """The same run by each number of processes; 0: without torchrun."""
    runs, found = Runs(folder, flags), {}
    for count in counts:
        codes = runs.run(f"n{count}", count)
        assert codes == [0] * max(1, count), runs.log(f"n{count}")
        found[count] = runs.found(f"n{count}") | {
            "difference": runs.difference(f"n{counts[0]}", f"n{count}")
        }
    return found


def changes(folder: Path, flags: list[str], plans: dict[str, list[int]]) -> dict:
    """A run that is stopped, and goes on with each next number of processes of a plan."""
    runs, found = Runs(folder, flags), {}
    assert runs.run("whole", 2) == [0, 0], runs.log("whole")
    for number, (plan, counts) in enumerate(plans.items()):
        name, codes = f"run{number}", []
        for call, count in enumerate(counts[:-1]):
            # Only one of them is told.
            told = count - 1 if call % 2 == 0 else 0
            stop = warm.signal_at("a step", 5, signal.SIGTERM)
            if "killed" in plan:  # In the second epoch of eight steps.
                stop = warm.signal_at("a step", 13, signal.SIGKILL)
            how = {"before": lambda rank, told=told, stop=stop: stop() if rank == told else None}
            codes.append(runs.run(name, count, **(how if count else {})))
        assert set(runs.run(name, counts[-1])) == {0}, runs.log(name)
        whole = warm.outcome(folder / "whole") == warm.outcome(folder / name)
        found[plan] = runs.found(name) | {
            "codes": codes,
            "difference": runs.difference("whole", name),
            "is_whole": whole,
            "resumed": warm.resumed_steps(folder / f"{name}.log"),
        }
    return found


def losses(folder: Path, flags: list[str], cases: list[str]) -> dict:
    """What is said, and how soon all have ended, where one process of three fails."""
    runs, found = Runs(folder, flags), {}

    def first_terminated(function: Callable) -> Callable:
        def terminated(*arguments: object) -> object:
            os.kill(os.getpid(), signal.SIGTERM)
            return function(*arguments)

        return terminated

    def fail(case: str, moment: Path) -> Callable[[int], None]:
        victim = 0 if "first" in case else 1

        def prepare(rank: int) -> None:
            real, calls = finetune.training_step, []

            def step(*arguments: object) -> object:
                calls.append(1)
                if len(calls) == 6 and rank == victim:
                    moment.write_text(str(time.time()))
                    if "killed" in case:
                        os.kill(os.getpid(), signal.SIGKILL)
                    elif "memory" in case:
                        raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
                return real(*arguments)

            finetune.training_step = step
            # torchrun ends the others as soon as one has ended, which can be in the midst of words.
            for module, name in ((console, "one_line"), (processes, "may_tell")):
                setattr(module, name, first_terminated(getattr(module, name)))
            if "disk" in case and rank == 0:

                def save(*_: object) -> None:
                    moment.write_text(str(time.time()))
                    raise checkpoint.RunError("checkpoint.pt could not be written")

                checkpoint.save = save
            if "code" in case and rank == victim:
                real_code = processes.code
                processes.code = lambda: real_code() | {"data.py": "another"}
                moment.write_text(str(time.time()))

        return prepare

    for number, case in enumerate(cases):
        name, moment = f"run{number}", folder / f"moment{number}"
        how = {"before": fail(case, moment), "machines": 3}
        codes = runs.run(name, 3, **how)
        found[case] = {"codes": codes, "log": runs.log(name)}
        found[case]["seconds"] = time.time() - float(moment.read_text())
    return found


def operations(folder: Path, flags: list[str]) -> list[str]:
    """The names of what two processes do together in a step."""
    runs, found = Runs(folder, flags), folder / "found"

    def watch(rank: int) -> None:
        real = finetune.training_step

        def step(*arguments: object) -> object:
            with torch.autograd.profiler.profile() as profile:
                done = real(*arguments)
            if rank == 0:
                names = {event.name for event in profile.function_events}
                found.write_text(json.dumps(sorted(x for x in names if x.startswith("gloo:"))))
            return done

        finetune.training_step = step

    assert runs.run("run", 2, before=watch) == [0, 0], runs.log("run")
    return json.loads(found.read_text())


def machines(folder: Path, flags: list[str], data: str) -> dict:
    """Two machines: the same but for the data or the command, or all the same."""
    runs, found = Runs(folder, flags), {}

    def elsewhere(rank: int) -> None:
        os.chdir(folder / f"machine{rank}")

    def with_another_flag(rank: int) -> None:
        real = processes.join
        processes.join = lambda argv: real([*argv, "--epochs", "9"] if rank else argv)

    for case, before in (("other data", elsewhere), ("other flags", with_another_flag)):
        codes = runs.run(case, 2, "--data", data, before=before, machines=2)
        found[case] = {"codes": codes, "log": runs.log(case)}
        found[case]["is there"] = (folder / case).exists()
    return found


if __name__ == "__main__":
    for line in sys.stdin:
        scenario, arguments = json.loads(line)
        if pid := os.fork():
            if os.waitpid(pid, 0)[1]:
                print("null", flush=True)
            continue
        try:
            run = globals().get(scenario) or getattr(warm, scenario)
            found = run(Path(arguments.pop("folder")), **arguments)
            print(json.dumps(found), flush=True)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
