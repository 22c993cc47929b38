"""How fast predict.py answers lines, against training on such lines, and in how much memory.

python benchmarks/predicting.py            a million lines; half an hour on two cores
python benchmarks/predicting.py --quick    twenty thousand, two minutes

With the built-in model. Lines are SST-2's training sentences, or the built-in ones where the
environment variable SST2 names no folder of it, again and again in random order. Training is
measured before and after. Results go to benchmarks/results/.
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
from measure import machine
from work import HERE, SST2

FEW = 10_000  # Lines, with which many are compared.


def train(folder: Path, name: str) -> float:
    """Sentences a second in training, the median of what is logged."""
    data = SST2 if SST2.exists() else "builtin"
    command = [sys.executable, HERE.parent / "finetune.py", "--model", "builtin", "--data", data]
    command += ["--epochs", "1", "--max-train-samples", "3200", "--output-dir", folder / name]
    subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL)
    lines = [json.loads(line) for line in (folder / name / "metrics.jsonl").open()]
    return statistics.median(x["samples_per_second"] for x in lines if "loss" in x)


def sentences() -> list[str]:
    if SST2.exists():
        lines = (SST2 / "train.tsv").read_text("utf-8").splitlines()[1:]
        return [line.split("\t")[1] for line in lines]
    import data

    return data.load("builtin").splits["train"]["text"][:]


def predict(folder: Path, known: list[str], count: int) -> dict:
    """Answer `count` lines from a file by the real program."""
    order = np.random.default_rng(0).integers(len(known), size=count)
    (folder / "lines").write_text("".join(f"{known[number]}\n" for number in order), "utf-8")
    command = [sys.executable, str(HERE.parent / "predict.py"), str(folder / "before")]
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
        "lines_per_second": count / seconds,
        "peak_megabytes": used.ru_maxrss / 1024,
        "out_of_order": others,
    }


def table(few: dict, many: dict, training: list[float]) -> str:
    lines = [f"{'lines':>10}{'seconds':>10}{'lines/s':>10}{'peak MB':>10}{'out of order':>14}"]
    for found in (few, many):
        lines.append(
            f"{found['lines']:>10,}{found['seconds']:>10.0f}{found['lines_per_second']:>10.0f}"
            f"{found['peak_megabytes']:>10.0f}{found['out_of_order']:>14}"
        )
    rate = statistics.mean(training)
    lines.append(
        f"training: {rate:.0f} sentences/s ({', '.join(f'{one:.0f}' for one in training)}); "
        f"answering is {many['lines_per_second'] / rate:.1f} times as fast"
    )
    return "\n".join(lines) + "\n"


def main(quick: bool) -> None:
    known = sentences()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        before = train(folder, "before")
        few, many = (predict(folder, known, n) for n in (FEW, 20_000 if quick else 1_000_000))
        training = [before, train(folder, "after")]
    print(table(few, many, training), end="")
    result = {"machine": machine(), "few": few, "many": many, "training": training}
    result["table"] = table(few, many, training).splitlines()
    file = HERE / "results" / f"predicting{'-quick' * quick}.json"
    file.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", "utf-8")
    print(f"written to {file}", file=sys.stderr)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    main(parser.parse_args().quick)
