"""Groups of processes in torchrun's environment, and scenarios that run them.

The tests start this program once. It reads the name and the arguments of a scenario from each line
of stdin. A fork runs the scenario, and the program prints the result, or null after an error.
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

import finetune
from harness import exchanges, scenarios, warm
from system import console, rendezvous
from training import checkpoint

# ---- Groups ----


class Torchrun:
    """torchrun's environment for a group of processes, and a store that ends with this process."""

    def __init__(self, count: int, machines: int = 1):
        self.count, self.local_count = count, count // machines
        parent = os.getpid()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        if not os.fork():
            _store = torch.distributed.TCPStore(
                "127.0.0.1", self.port, is_master=True, wait_for_workers=False
            )
            while os.getppid() == parent:
                time.sleep(0.05)
            os._exit(0)

    def set_environment(self, rank: int) -> None:
        """Give the calling process this rank."""
        numbers = {
            "RANK": rank,
            "LOCAL_RANK": rank % self.local_count,
            "WORLD_SIZE": self.count,
            "LOCAL_WORLD_SIZE": self.local_count,
            "MASTER_PORT": self.port,
            "TORCHELASTIC_RESTART_COUNT": 0,
        }
        os.environ |= {name: str(number) for name, number in numbers.items()}
        os.environ |= {"TORCHELASTIC_RUN_ID": "test", "MASTER_ADDR": "127.0.0.1"}
        os.environ |= {"TORCHELASTIC_USE_AGENT_STORE": "True"}


def start(
    count: int,
    flags: list[str],
    log: Path,
    before: Callable[[int], None] = lambda rank: None,
    machines: int = 1,
) -> list[int]:
    """Start a group; its process ids. Each process first calls `before` with its rank."""
    torchrun = Torchrun(count, machines)

    def prepare(rank: int) -> Callable[[], None]:
        def set_up() -> None:
            torchrun.set_environment(rank)
            warm.prepare()
            before(rank)

        return set_up

    return [warm.start(flags, log, prepare(rank)) for rank in range(count)]


def exit_codes(pids: list[int], seconds: float = 60) -> list[int]:
    """Wait for the processes; their exit codes. A process that hangs is killed: −9."""
    codes: dict[int, int] = {}
    deadline = time.monotonic() + seconds
    while len(codes) < len(pids):
        for pid in set(pids) - codes.keys():
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                codes[pid] = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    return [codes[pid] for pid in pids]


class Runs:
    """Runs of the program in one folder, each with its own number of processes."""

    def __init__(self, folder: Path, flags: list[str]):
        self.folder, self.flags = folder, flags

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def run(self, name: str, count: int, *flags: str, **options: object) -> list[int]:
        """Start or resume the run `name`; the exit codes of its processes.

        Args:
            count: the number of processes; 0 means plain python.
            options: further arguments of `start`.
        """
        log = self.folder / f"{name}.log"
        flags = [*self.flags, *flags, "--resume", "--output-dir", str(self.folder / name)]
        if not count:
            return [warm.exit_code(warm.start(flags, log, warm.prepare))]
        return exit_codes(start(count, flags, log, **options))

    def mistakes(self, name: str) -> list[list[str]]:
        """The rows of mistakes.csv without the probabilities, which differ by rounding."""
        with (self.folder / name / "mistakes.csv").open(newline="") as file:
            return sorted(row[:-1] for row in csv.reader(file))

    def result(self, name: str) -> dict:
        """The log, the metrics and the files of a run, for comparisons."""
        record = json.loads((self.folder / name / "run.json").read_text())
        lines = [json.loads(line) for line in (self.folder / name / "metrics.jsonl").open()]
        return {
            "log": self.log(name),
            "replaced": record["replaced"],
            "processes": record["processes"],
            "accuracies": [line["eval_accuracy"] for line in lines if "eval_accuracy" in line],
            "losses": [line.get("loss", line.get("eval_loss")) for line in lines],
            "steps": [line["step"] for line in lines],
            "sentences": checkpoint.read_state(warm.last_state(self.folder / name)).sentences,
            "mistakes": self.mistakes(name),
            "result": record["result"],
            "bytes": warm.outcome(self.folder / name),
        }

    def difference(self, *names: str) -> float:
        """The largest difference between the weights of two runs."""
        files = [self.folder / name / "model" / "model.safetensors" for name in names]
        a, b = map(safetensors.torch.load_file, files)
        return max((a[name] - b[name]).abs().max().item() for name in a)


# ---- Scenarios ----


def process_counts(folder: Path, flags: list[str], counts: list[int]) -> dict:
    """The same run with each number of processes; 0 means plain python."""
    runs, results = Runs(folder, flags), {}
    for count in counts:
        name = f"n{count}"
        shares = [folder / f"{name}.{rank}.share" for rank in range(count)]
        options = {"before": lambda rank, files=shares: log_share(files[rank])} if count else {}
        codes = runs.run(name, count, **options)
        assert codes == [0] * max(1, count), runs.log(name)
        results[count] = runs.result(name) | {
            "difference": runs.difference(f"n{counts[0]}", name),
            "shares": [sum(map(int, file.read_text().split())) for file in shares],
        }
    return results


def log_share(log: Path) -> None:
    """Let each training step of this process append its number of sentences to a file."""
    real = finetune.training_step

    def step(model: torch.nn.Module, optimizer: object, batch, *arguments: object) -> object:
        with log.open("a") as lines:
            lines.write(f"{len(batch.rows)}\n")
        return real(model, optimizer, batch, *arguments)

    finetune.training_step = step


def changed_counts(folder: Path, flags: list[str], plans: dict[str, list[int]]) -> dict:
    """Stop a run and resume it with the next number of processes of a plan, until the last."""
    runs, results = Runs(folder, flags), {}
    assert runs.run("whole", 2) == [0, 0], runs.log("whole")
    for number, (plan, counts) in enumerate(plans.items()):
        name, codes = f"run{number}", []
        for call, count in enumerate(counts[:-1]):
            victim = count - 1 if call % 2 == 0 else 0
            stop = warm.signal_at("a step", 5, signal.SIGTERM)
            if "killed" in plan:
                # Step 13 is in the second epoch of eight steps.
                stop = warm.signal_at("a step", 13, signal.SIGKILL)

            def before(rank: int, victim: int = victim, stop: Callable = stop) -> None:
                if rank == victim:
                    stop()

            codes.append(runs.run(name, count, **({"before": before} if count else {})))
        assert set(runs.run(name, counts[-1])) == {0}, runs.log(name)
        whole = warm.outcome(folder / "whole") == warm.outcome(folder / name)
        results[plan] = runs.result(name) | {
            "codes": codes,
            "difference": runs.difference("whole", name),
            "is_whole": whole,
            "resumed": warm.resumed_steps(folder / f"{name}.log"),
        }
    return results


def failures(folder: Path, flags: list[str], cases: list[str]) -> dict:
    """Exit codes, output and seconds until all processes end if one of three processes fails."""
    runs, results = Runs(folder, flags), {}

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
            # torchrun ends all processes after a failure, perhaps in the middle of a message.
            for module, name in ((console, "one_line"), (rendezvous, "may_report")):
                setattr(module, name, first_terminated(getattr(module, name)))
            if "disk" in case and rank == 0:

                def save(*_: object) -> None:
                    moment.write_text(str(time.time()))
                    raise console.RunError("checkpoint.pt could not be written")

                checkpoint.save = save
            if "code" in case and rank == victim:
                real_code = rendezvous.code
                rendezvous.code = lambda: real_code() | {"data.py": "another"}
                moment.write_text(str(time.time()))

        return prepare

    for number, case in enumerate(cases):
        name, moment = f"run{number}", folder / f"moment{number}"
        codes = runs.run(name, 3, before=fail(case, moment), machines=3)
        results[case] = {"codes": codes, "log": runs.log(name)}
        results[case]["seconds"] = time.time() - float(moment.read_text())
    return results


def operations(folder: Path, flags: list[str]) -> list[str]:
    """The names of gloo's collective operations in a step of two processes."""
    runs, results = Runs(folder, flags), folder / "names"

    def profile(rank: int) -> None:
        real = finetune.training_step

        def step(*arguments: object) -> object:
            with torch.autograd.profiler.profile() as profile:
                result = real(*arguments)
            if rank == 0:
                names = {event.name for event in profile.function_events}
                gloo = sorted(name for name in names if name.startswith("gloo:"))
                results.write_text(json.dumps(gloo))
            return result

        finetune.training_step = step

    assert runs.run("run", 2, before=profile) == [0, 0], runs.log("run")
    return json.loads(results.read_text())


def different_machines(folder: Path, flags: list[str], data: str) -> dict:
    """The outcome if two machines have different data or different flags."""
    runs, results = Runs(folder, flags), {}

    def use_own_folder(rank: int) -> None:
        os.chdir(folder / f"machine{rank}")

    def add_a_flag(rank: int) -> None:
        real = rendezvous.join
        rendezvous.join = lambda argv: real([*argv, "--epochs", "9"] if rank else argv)

    for case, before in (("other data", use_own_folder), ("other flags", add_a_flag)):
        codes = runs.run(case, 2, "--data", data, before=before, machines=2)
        results[case] = {"codes": codes, "log": runs.log(case)}
        results[case]["is there"] = (folder / case).exists()
    return results


def exchange(folder: Path, count: int, machines: int) -> list[dict]:
    """The results of exchanges.py in each process of a group."""
    torchrun, pids = Torchrun(count, machines), []
    for rank in range(count):
        pid = os.fork()
        if not pid:
            code = 1
            try:
                torchrun.set_environment(rank)
                results = exchanges.run_exchanges(folder)
                (folder / f"{rank}.json").write_text(json.dumps(results))
                code = 0
            except BaseException:
                traceback.print_exc()
            os._exit(code)
        pids.append(pid)
    assert exit_codes(pids) == [0] * count
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(count)]


if __name__ == "__main__":
    for line in sys.stdin:
        name, arguments = json.loads(line)
        if pid := os.fork():
            if os.waitpid(pid, 0)[1]:
                print("null", flush=True)
            continue
        try:
            scenario = globals().get(name) or getattr(scenarios, name)
            result = scenario(Path(arguments.pop("folder")), **arguments)
            print(json.dumps(result), flush=True)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
