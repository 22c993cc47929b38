"""A data set larger than memory: seconds until its first step, and the memory that a run needs.

python benchmarks/much_data.py            100 thousand sentences and 10 million, 15 to 25 minutes
python benchmarks/much_data.py --quick    100 thousand and a million, three minutes

A csv file of random sentences of 8 to 33 words, a tiny model, two processes of one thread each.
A run is stopped after 200 steps and started again, with the data prepared. The benchmark needs 6 GB
of disk, in a new folder in the current one. Results are written to benchmarks/results/.
"""

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from measure import write
from work import HERE

STEPS = 200
PROCESSES = 2


def make_model(folder: Path) -> None:
    """A DistilBERT of two narrow layers with random weights."""
    import transformers

    from inputs.encoder_files import find_model

    sizes = {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 2}
    config = transformers.DistilBertConfig(**sizes)
    transformers.DistilBertForSequenceClassification(config).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(find_model("builtin")).save_pretrained(folder)


def make_data(file: Path, count: int, seed: int) -> None:
    """A csv file of `count` sentences, in which some words are more frequent than others."""
    import transformers

    from inputs.encoder_files import find_model

    vocabulary = transformers.AutoTokenizer.from_pretrained(find_model("builtin")).get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.get)
    tokens = np.array([token for token in tokens if token.isalpha() and token.isascii()][:8000])
    shares = 1 / np.arange(10, len(tokens) + 10)
    random = np.random.default_rng(seed)
    with file.open("w") as lines:
        lines.write("sentence,label\n")
        for start in range(0, count, 100_000):
            lengths = random.integers(8, 34, min(100_000, count - start))
            drawn = tokens[random.choice(len(tokens), lengths.sum(), p=shares / shares.sum())]
            for sentence in np.split(drawn, np.cumsum(lengths)[:-1]):
                lines.write(" ".join(sentence) + f",{random.integers(0, 2)}\n")


def memory_of(pid: str) -> dict[str, int]:
    """The peak of all memory, and the present memory without mapped files, in MB."""
    status = Path(f"/proc/{pid}/status").read_text()
    matches = {name: re.search(rf"{name}:\s*(\d+) kB", status) for name in ("VmHWM", "RssAnon")}
    return {name: int(match[1]) // 1024 for name, match in matches.items() if match}


def start(folder: Path, flags: list[str]) -> dict:
    """Start or resume the run, and stop it after STEPS more steps."""
    metrics, started = folder / "run" / "metrics.jsonl", time.monotonic()
    steps_before = len(metrics.read_text().splitlines()) if metrics.exists() else 0
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(PROCESSES), str(HERE.parent / "finetune.py"), *flags]
    with (folder / "log").open("w") as log:
        run = subprocess.Popen(
            command,
            env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HOME": str(folder / "cache")},
            stdout=log,
            stderr=log,
        )
        result: dict = {}
        peaks = [{"VmHWM": 0, "RssAnon": 0} for _ in range(PROCESSES)]
        while run.poll() is None:
            messages = (folder / "log").read_text()
            steps = len(metrics.read_text().splitlines()) if metrics.exists() else 0
            if "writing to" in messages:
                result.setdefault("seconds_to_read", time.monotonic() - started)
            if "seconds_to_read" in result and steps > steps_before:
                result.setdefault("seconds_to_step", time.monotonic() - started)
            children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
            for peak, pid in zip(peaks, children, strict=False):
                for name, megabytes in memory_of(pid).items():
                    peak[name] = max(peak[name], megabytes)
            if steps >= steps_before + STEPS and "seconds_to_step" in result:
                run.send_signal(signal.SIGTERM)
                run.wait()
            time.sleep(0.1)
    log = (folder / "log").read_text().replace(f"{folder}/", "")
    if "to continue from step" not in log:
        sys.exit(f"error: finetune.py: training failed:\n{log[-3000:]}")
    # torchrun prints a traceback after the signal.
    log = log.partition("Traceback")[0]
    return result | {"peak_mb": peaks, "log": log.splitlines()}


def measure(folder: Path, count: int) -> dict:
    """The first and the second start of a run on `count` sentences."""
    folder.mkdir()
    make_model(folder / "tiny")
    (folder / "data").mkdir()
    make_data(folder / "data" / "train.csv", count, seed=0)
    make_data(folder / "data" / "dev.csv", 1000, seed=1)
    flags = ["--model", str(folder / "tiny"), "--data", str(folder / "data"), "--epochs", "1"]
    flags += ["--batch-size", "128", "--log-every", "1", "--output-dir", str(folder / "run")]
    size = (folder / "data" / "train.csv").stat().st_size / 1e6
    flags += ["--resume", "--device", "cpu"]
    starts = [start(folder, flags) for _ in range(2)]
    return {"sentences": count, "mb": size, "first": starts[0], "second": starts[1]}


def table(results: list[dict]) -> str:
    """One line for each number of sentences."""
    head = f"{'sentences':>10}{'MB':>7}{'read':>7}{'tokenized':>11}{'first step':>12}"
    lines = [head + f"{'again':>7}{'peak MB of each':>17}{'its own':>15}"]
    for result in results:
        first, second = result["first"], result["second"]
        tokenized = first["seconds_to_step"] - first["seconds_to_read"]
        peaks = [max(x["VmHWM"], y["VmHWM"]) for x, y in memory_of_starts(result)]
        own = [max(x["RssAnon"], y["RssAnon"]) for x, y in memory_of_starts(result)]
        lines.append(
            f"{result['sentences']:>10,}{result['mb']:>7,.0f}{first['seconds_to_read']:>6.0f}s"
            f"{tokenized:>10.0f}s{first['seconds_to_step']:>11.0f}s{second['seconds_to_step']:>6.0f}s"
            f"{' and '.join(map(str, peaks)):>17}{' and '.join(map(str, own)):>15}"
        )
    return "\n".join(lines) + "\n"


def memory_of_starts(result: dict) -> list[tuple[dict, dict]]:
    """For each process, its memory in the first and in the second start."""
    return list(zip(result["first"]["peak_mb"], result["second"]["peak_mb"], strict=True))


def main(quick: bool) -> None:
    results = []
    with tempfile.TemporaryDirectory(dir=".") as temporary:
        for count in (100_000, 1_000_000 if quick else 10_000_000):
            results.append(measure(Path(temporary).resolve() / str(count), count))
            print(table(results), file=sys.stderr)
    print(table(results), end="")
    write("much_data", quick, results, table(results))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    main(parser.parse_args().quick)
