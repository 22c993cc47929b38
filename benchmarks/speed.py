"""Training speed at DistilBERT's size, compared with Trainer, accelerate and the tutorial's loop.

python benchmarks/speed.py                   five rounds, 15 to 45 minutes on two cores
python benchmarks/speed.py --quick           one short round, two minutes (three with bf16)
python benchmarks/speed.py --scaling         this project alone, fp32, more and longer sentences
python benchmarks/speed.py --processor zen5  the record is named speed-zen5.json

Weights and sentences are random; the sentences are as long as SST-2's. Contenders take turns, each
in its own process. A processor with units for bf16 is measured in bf16, too. Results are written to
benchmarks/results/.
"""

import argparse
import json
import operator
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measure import machine, precisions, turn
from work import HERE, make_sentences

from system.console import progress

# Contender, batch size, timed steps: 40 for all contenders whose peak memory is compared. The last
# three are measured in bf16, too.
TURNS = [
    ("tutorial's loop", 16, 6),
    ("Trainer, default", 8, 40),
    ("Trainer, grouped by length", 16, 40),
    ("this project", 16, 40),
    ("Trainer, grouped by length", 32, 40),
    ("accelerate's example", 32, 10),
    ("this project", 32, 40),
]
QUICK = [(name, size, max(steps // 4, 3)) for name, size, steps in (*TURNS[:2], *TURNS[-3:])]
# Number of sentences, and their length as a multiple of SST-2's.
SETS = [(1_000, 1.0), (10_000, 1.0), (67_349, 1.0), (67_349, 2.0), (67_349, 10.2)]


def in_a_process(name: str, batch_size: int, steps: int, precision: str, folder: str) -> dict:
    arguments = [name, str(batch_size), str(steps), precision, folder, str(time.time())]
    command = [sys.executable, __file__, "--turn", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"error: {name}, batch size {batch_size}: process failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def spread(values: list[float], digits: int = 1) -> str:
    """The median, followed by minimum and maximum in parentheses."""
    extremes = f" ({min(values):.{digits}f}–{max(values):.{digits}f})" if len(values) > 1 else ""
    return f"{statistics.median(values):.{digits}f}{extremes}"


def table(head: list[str], rows: list[list[str]]) -> str:
    """Columns of fixed width: the first is left-aligned, the others right-aligned."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])])
        for row in [head, *rows]
    ]
    return "\n".join(line.rstrip() for line in lines)


def comparison(rounds: list[dict]) -> str:
    """The table of all contenders, then the speed of this project relative to each."""

    def values(key: str, metric: str) -> list[float]:
        return [results[key][metric] for results in rounds]

    def share(key: str, metric: str) -> float:
        precision = rounds[0][key]["precision"]
        limits = [max(results["limit"][precision].values()) for results in rounds]
        return statistics.median(map(operator.truediv, values(key, metric), limits))

    keys = [key for key in rounds[0] if key != "limit"]
    lines = []
    for key in keys:
        name, size = key.rsplit(" @", 1)
        lines.append(
            [
                *(name, size, spread(values(key, "sentences_per_second"))),
                f"{statistics.median(values(key, 'useful_tokens_per_second')):.0f}",
                f"{statistics.median(values(key, 'useful_gflops')):.0f}",
                f"{share(key, 'useful_gflops'):.0%}",
                f"{statistics.median(values(key, 'padding')):.1%}",
                f"{statistics.median(values(key, 'peak_memory_mb')):.0f}",
                f"{statistics.median(values(key, 'first_step_seconds')):.1f}",
            ]
        )
    head = ["", "batch", "sentences/s", "tokens/s", "GFLOP/s", "of limit", "padding", "peak MB"]
    text = table([*head, "s to 1st step"], lines) + "\n\n"
    for precision, limit in rounds[0]["limit"].items():
        for library in limit:
            rates = [results["limit"][precision][library] for results in rounds]
            text += f"plain matrix products, {precision}, {library}: {spread(rates, 0)} GFLOP/s\n"
    own_keys = [key for key in keys if key.startswith("this project")]
    other_keys = [key for key in keys if key not in own_keys]
    rates = {key: values(key, "sentences_per_second") for key in keys}
    ratios = [[key, *(_ratio(rates[own], rates[key]) for own in own_keys)] for key in other_keys]
    text += "\n" + table(["times the sentences/s of", *own_keys], ratios) + "\n\n"
    for key in own_keys:
        in_fp32 = key.replace(", bf16", "")
        if key != in_fp32:
            text += f"{key}: {_ratio(rates[key], rates[in_fp32])} times its rate in fp32\n"
        ratio = _ratio(values(key, "evaluated_per_second"), rates[key])
        text += f"{key}: evaluation {ratio} times its training; "
        text += f"{share(key, 'computed_gflops'):.0%} of the limit without what it leaves out\n"
    return text


def _ratio(rates: list[float], other_rates: list[float]) -> str:
    return spread(list(map(operator.truediv, rates, other_rates)), 2)


def growth(rounds: list[dict]) -> str:
    """The table of this project alone, by number and length of sentences."""
    lines = []
    for key in rounds[0]:
        values = {metric: [each[key][metric] for each in rounds] for metric in rounds[0][key]}
        tokens = statistics.median(values["useful_tokens_per_second"])
        mean = tokens / statistics.median(values["sentences_per_second"])
        lines.append(
            [
                *(key, f"{mean:.1f}", spread(values["sentences_per_second"]), f"{tokens:.0f}"),
                spread(values["useful_gflops"], 0),
                f"{statistics.median(values['peak_memory_mb']):.0f}",
            ]
        )
    head = ["sentences in the set", "mean tokens", "sentences/s", "tokens/s", "useful GFLOP/s"]
    return table([*head, "peak MB"], lines) + "\n"


def turns_of(contenders: list[tuple], has_bf16: bool) -> dict[str, tuple]:
    """Each turn by its name in a record: contender, batch size, timed steps and precision."""
    turns = {f"{name} @{size}": (name, size, steps, "fp32") for name, size, steps in contenders}
    if has_bf16:
        for name, size, steps in contenders[-3:]:
            turns[f"{name}, bf16 @{size}"] = (name, size, steps, "bf16")
    return turns


def main(mode: str, processor: str | None) -> None:
    rounds_of = {"speed": (TURNS, 5), "quick": (QUICK, 1), "scaling": (SETS, 1)}
    turns, count = rounds_of[mode]
    measured = precisions()
    if mode != "scaling":
        turns = turns_of(turns, "bf16" in measured)
    rounds: list[dict] = [{} for _ in range(count)]
    with (
        tempfile.TemporaryDirectory() as temporary,
        progress(count * len(turns), "turns", "measuring") as bar,
    ):
        folders: dict[tuple, str] = {}
        for size, factor in SETS if mode == "scaling" else [(None, 1.0)]:
            folder = folders[size, factor] = str(Path(temporary) / f"{size} {factor}")
            make_sentences(size, factor).save_to_disk(folder)
        for results in rounds:
            if mode == "scaling":
                for size, factor in turns:
                    key = f"{size:,}" + (f", {factor:g} × as long" if factor != 1 else "")
                    folder = folders[size, factor]
                    results[key] = in_a_process("this project", 32, 60, "fp32", folder)
                    bar.update()
                continue
            results["limit"] = {each: in_a_process("limit", 0, 0, each, "") for each in measured}
            for key, turn_of_contender in turns.items():
                results[key] = in_a_process(*turn_of_contender, folders[None, 1.0])
                bar.update()
    text = growth(rounds) if mode == "scaling" else comparison(rounds)
    print(text, end="")
    result = {"machine": machine(), "rounds": rounds, "table": text.splitlines()}
    (HERE / "results").mkdir(exist_ok=True)
    file = HERE / "results" / f"{mode}{f'-{processor}' if processor else ''}.json"
    file.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", "utf-8")
    print(f"written to {file}", file=sys.stderr)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument("--quick", action="store_const", const="quick", dest="mode")
    modes.add_argument("--scaling", action="store_const", const="scaling", dest="mode")
    modes.add_argument("--turn", nargs=6, help=argparse.SUPPRESS)
    parser.add_argument("--processor", metavar="NAME", help="name a record to commit")
    arguments = parser.parse_args()
    if arguments.processor and arguments.mode == "quick":
        parser.error("--processor: not used with --quick, whose record is not committed")
    if arguments.turn:
        name, size, steps, precision, folder, started = arguments.turn
        result = turn(name, int(size), int(steps), precision, folder, float(started))
        print(json.dumps(result))
    else:
        main(arguments.mode or "speed", arguments.processor)
