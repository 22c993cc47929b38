"""The speed of predict.py compared with training, and the memory that it needs.

python benchmarks/predicting.py            ten minutes on two cores
python benchmarks/predicting.py --quick    two minutes

The built-in model trains and predicts in turns. Memory is compared between ten thousand lines and a
million, with a fast model of two narrow layers. predict.py holds a window of lines, whose memory is
the same with any model. Lines are drawn at random from SST-2's training sentences, or from the
built-in ones if SST-2 is missing. Results are written to benchmarks/results/.
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

FEW = 10_000  # lines


def run(*command: object) -> None:
    subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL)


def train(folder: Path, model: object, sentences: int) -> float:
    """The median of the logged sentences a second in training."""
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


def predict(folder: Path, model: Path, texts: list[str], count: int) -> dict:
    """Time, memory and order of predict.py on `count` lines from a file."""
    order = np.random.default_rng(0).integers(len(texts), size=count)
    (folder / "lines").write_text("".join(f"{texts[number]}\n" for number in order), "utf-8")
    command = [sys.executable, str(HERE.parent / "predict.py"), str(model)]
    started = time.monotonic()
    with (folder / "lines").open() as lines, (folder / "answers").open("w") as output:
        process = subprocess.Popen(command, stdin=lines, stdout=output)
        _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - started
    if status:
        code = os.waitstatus_to_exitcode(status)
        sys.exit(f"error: predict.py: prediction failed (exit code {code})")
    answers = [line.split("\t") for line in (folder / "answers").read_text("utf-8").splitlines()]
    # If all lines are in order, a sentence has the same answer each time, except for rounding.
    first, out_of_order = {}, 0
    for number, (_, probability) in zip(order.tolist(), answers, strict=True):
        difference = float(probability) - first.setdefault(number, float(probability))
        out_of_order += abs(difference) > 0.001
    return {
        "lines": count,
        "seconds": seconds,
        "peak_megabytes": usage.ru_maxrss / 1024,
        "out_of_order": out_of_order,
    }


def table(result: dict) -> str:
    """One line for each number of lines, then the rates."""
    few, many, rounds = (result[name] for name in ("few", "many", "rounds"))
    lines = [f"{'lines':>10}{'seconds':>10}{'peak MB':>10}{'out of order':>14}"]
    for measurement in (few, many):
        lines.append(
            f"{measurement['lines']:>10,}{measurement['seconds']:>10.0f}"
            f"{measurement['peak_megabytes']:>10.0f}{measurement['out_of_order']:>14}"
        )
    trained, answered = ([rates[key] for rates in rounds] for key in ("trained", "answered"))
    ratios = [rates["answered"] / rates["trained"] for rates in rounds]
    lines.append(f"built-in model: training {spread(trained)} sentences/s, answering")
    lines.append(f"{spread(answered)}: {spread(ratios)} times as fast")
    return "\n".join(lines) + "\n"


def main(quick: bool) -> None:
    texts, rounds = sentences(), []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(folder / "small")
        train(folder / "of-small", folder / "small", 320)
        counts = FEW, 20_000 if quick else 1_000_000
        few, many = (predict(folder, folder / "of-small", texts, count) for count in counts)
        for number in range(1 if quick else 3):
            model = folder / f"of-builtin{number}"
            rate = train(model, "builtin", 1_600)
            # The difference of two runs excludes the start of the program.
            less, more = (predict(folder, model, texts, count) for count in (2_000, 10_000))
            answered = 8_000 / (more["seconds"] - less["seconds"])
            rounds.append({"trained": rate, "answered": answered})
            print(f"round {number + 1}: {rounds[-1]}", file=sys.stderr)
    result = {"few": few, "many": many, "rounds": rounds}
    print(table(result), end="")
    write("predicting", quick, result, table(result))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    main(parser.parse_args().quick)
