"""How fast predict.py answers lines, against training on such lines, and in how much memory.

python benchmarks/predicting.py            ten minutes on two cores
python benchmarks/predicting.py --quick    two minutes

Rates are of the built-in model, which trains and answers in turns. Memory is that of a million
lines against ten thousand, with a model of two narrow layers, which is faster: a window of lines
takes as much whatever the model is. Lines are SST-2's training sentences, or the built-in ones
where the environment variable SST2 names no folder of it, again and again in random order. Results
go to benchmarks/results/.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from measure import write
from much_data import make_model
from speed import spread
from work import HERE, SST2

FEW = 10_000  # Lines, with which many are compared.


def run(*command: object) -> None:
    subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL)


def train(folder: Path, model: object, sentences: int) -> float:
    """Sentences a second in training, the median of what is logged."""
    data = SST2 if SST2.exists() else "builtin"
    flags = ["--model", model, "--data", data, "--epochs", 1, "--max-train-samples", sentences]
    run(sys.executable, HERE.parent / "finetune.py", *flags, "--output-dir", folder)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
    return statistics.median(x["samples_per_second"] for x in lines if "loss" in x)


def sentences() -> list[str]:
    if SST2.exists():
        lines = (SST2 / "train.tsv").read_text("utf-8").splitlines()[1:]
        return [line.split("\t")[1] for line in lines]
    import data

    return data.load("builtin").splits["train"]["text"][:]


def predict(folder: Path, model: Path, known: list[str], count: int) -> dict:
    """Answer `count` lines from a file by the real program."""
    order = np.random.default_rng(0).integers(len(known), size=count)
    (folder / "lines").write_text("".join(f"{known[number]}\n" for number in order), "utf-8")
    command = [sys.executable, str(HERE.parent / "predict.py"), str(model)]
    started = time.monotonic()
    with (folder / "lines").open() as lines, (folder / "answers").open("w") as answers:
        process = subprocess.Popen(command, stdin=lines, stdout=answers)
        _, status, used = os.wait4(process.pid, 0)
    seconds = time.monotonic() - started
    if status:
        sys.exit("error: predict.py failed")
    found = [line.split("\t") for line in (folder / "answers").read_text("utf-8").splitlines()]
    # In order: a sentence has the same answer wherever it stands, but for rounding.
    first, others = {}, 0
    for number, (_, probability) in zip(order.tolist(), found, strict=True):
        others += abs(float(probability) - first.setdefault(number, float(probability))) > 0.001
    return {
        "lines": count,
        "seconds": seconds,
        "peak_megabytes": used.ru_maxrss / 1024,
        "out_of_order": others,
    }


def table(measured: dict) -> str:
    """A line for each number of lines, and the rates."""
    few, many, rounds = (measured[name] for name in ("few", "many", "rounds"))
    lines = [f"{'lines':>10}{'seconds':>10}{'peak MB':>10}{'out of order':>14}"]
    for found in (few, many):
        lines.append(
            f"{found['lines']:>10,}{found['seconds']:>10.0f}{found['peak_megabytes']:>10.0f}"
            f"{found['out_of_order']:>14}"
        )
    trained, answered = ([one[what] for one in rounds] for what in ("trained", "answered"))
    ratios = [one["answered"] / one["trained"] for one in rounds]
    lines.append(f"built-in model: training {spread(trained)} sentences/s, answering")
    lines.append(f"{spread(answered)}: {spread(ratios)} times as fast")
    return "\n".join(lines) + "\n"


def main(quick: bool) -> None:
    known, rounds = sentences(), []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(folder / "small")
        train(folder / "of-small", folder / "small", 320)
        counts = FEW, 20_000 if quick else 1_000_000
        few, many = (predict(folder, folder / "of-small", known, count) for count in counts)
        for number in range(1 if quick else 3):
            model = folder / f"of-builtin{number}"
            rate = train(model, "builtin", 1_600)
            # Without the start: what 8,000 more lines take.
            less, more = (predict(folder, model, known, count) for count in (2_000, 10_000))
            answered = 8_000 / (more["seconds"] - less["seconds"])
            rounds.append({"trained": rate, "answered": answered})
            print(f"round {number + 1}: {rounds[-1]}", file=sys.stderr)
    found = {"few": few, "many": many, "rounds": rounds}
    print(table(found), end="")
    write("predicting", quick, found, table(found))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    main(parser.parse_args().quick)
