"""Fine-tuning at DistilBERT's size: sentences a second, beside what people would use instead.

python benchmarks/speed.py             five rounds, 15 minutes on two cores
python benchmarks/speed.py --quick     one short round, two minutes
python benchmarks/speed.py --scaling   this project alone, on more sentences and on longer ones

Random weights; SST-2's sentences where the environment variable SST2 names their folder, or it lies
beside the clone, else random ones of the same lengths. The contenders take turns, each in a process
of its own. Results go to benchmarks/results/.
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

from measure import machine, turn
from work import HERE, make_sentences

from system.console import progress

# Contender, sentences a step, timed steps; as many for those whose peak memory is compared.
TURNS = [
    ("tutorial's loop", 16, 6),
    ("Trainer, default", 8, 40),
    ("Trainer, grouped by length", 16, 40),
    ("this project", 16, 40),
    ("Trainer, grouped by length", 32, 40),
    ("accelerate's example", 32, 10),
    ("this project", 32, 40),
]
QUICK = [(name, size, max(steps // 4, 3)) for name, size, steps in (*TURNS[:2], *TURNS[4:])]
# Sentences in the set, and how many times as long as SST-2's they are.
SETS = [(1_000, 1.0), (10_000, 1.0), (67_349, 1.0), (67_349, 2.0), (67_349, 10.2)]


def in_a_process(name: str, batch_size: int, steps: int, folder: str) -> dict:
    what = [name, str(batch_size), str(steps), folder, str(time.time())]
    command = [sys.executable, __file__, "--turn", *what]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"error: {name} at {batch_size} sentences a step failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def spread(values: list[float], digits: int = 1) -> str:
    """The median, and in brackets the least and the most."""
    median, least, most = statistics.median(values), min(values), max(values)
    brackets = f" ({least:.{digits}f}–{most:.{digits}f})" if len(values) > 1 else ""
    return f"{median:.{digits}f}{brackets}"


def table(head: list[str], rows: list[list[str]]) -> str:
    """Columns of fixed width, the first to the left."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])])
        for row in [head, *rows]
    ]
    return "\n".join(line.rstrip() for line in lines)


def comparison(rounds: list[dict]) -> str:
    """The table of all contenders, then by how much this project is faster than each."""

    def of(key: str, what: str) -> list[float]:
        return [one[key][what] for one in rounds]

    limits = [max(one["limit"].values()) for one in rounds]
    keys = [key for key in rounds[0] if key != "limit"]
    lines = []
    for key in keys:
        name, size = key.rsplit(" @", 1)
        gflops = of(key, "useful_gflops")
        share = statistics.median(map(operator.truediv, gflops, limits))
        lines.append(
            [
                *(name, size, spread(of(key, "sentences_per_second"))),
                f"{statistics.median(of(key, 'useful_tokens_per_second')):.0f}",
                f"{statistics.median(gflops):.0f}",
                f"{share:.0%}",
                f"{statistics.median(of(key, 'padding')):.1%}",
                f"{statistics.median(of(key, 'peak_memory_mb')):.0f}",
                f"{statistics.median(of(key, 'first_step_seconds')):.1f}",
            ]
        )
    head = ["", "batch", "sentences/s", "tokens/s", "GFLOP/s", "of limit", "padding", "peak MB"]
    text = table([*head, "s to 1st step"], lines) + "\n\n"
    for library in rounds[0]["limit"]:
        rates = [one["limit"][library] for one in rounds]
        text += f"plain matrix products by {library}: {spread(rates, 0)} GFLOP/s\n"
    ours = [key for key in keys if key.startswith("this project")]
    others = [key for key in keys if key not in ours]
    rates = {key: of(key, "sentences_per_second") for key in keys}
    ratios = [[key, *(_times(rates[mine], rates[key]) for mine in ours)] for key in others]
    text += "\n" + table(["times the sentences/s of", *ours], ratios) + "\n\n"
    for mine in ours:
        ratio = _times(of(mine, "evaluated_per_second"), rates[mine])
        share = statistics.median(map(operator.truediv, of(mine, "computed_gflops"), limits))
        text += f"{mine}: evaluation {ratio} times its training; "
        text += f"{share:.0%} of the limit without what it leaves out\n"
    return text


def _times(rates: list[float], others: list[float]) -> str:
    return spread(list(map(operator.truediv, rates, others)), 2)


def growth(rounds: list[dict]) -> str:
    """This project alone, by the size of the set and the length of its sentences."""
    lines = []
    for key in rounds[0]:
        rates = {what: [one[key][what] for one in rounds] for what in rounds[0][key]}
        tokens = statistics.median(rates["useful_tokens_per_second"])
        mean = tokens / statistics.median(rates["sentences_per_second"])
        lines.append(
            [
                *(key, f"{mean:.1f}", spread(rates["sentences_per_second"]), f"{tokens:.0f}"),
                spread(rates["useful_gflops"], 0),
                f"{statistics.median(rates['peak_memory_mb']):.0f}",
            ]
        )
    head = ["sentences in the set", "mean tokens", "sentences/s", "tokens/s", "useful GFLOP/s"]
    return table([*head, "peak MB"], lines) + "\n"


def main(mode: str) -> None:
    rounds_of = {"speed": (TURNS, 5), "quick": (QUICK, 1), "scaling": (SETS, 1)}
    turns, count = rounds_of[mode]
    rounds: list[dict] = [{} for _ in range(count)]
    with (
        tempfile.TemporaryDirectory() as temporary,
        progress(count * len(turns), "turns", "measuring") as bar,
    ):
        folders: dict[tuple, str] = {}
        for size, longer in SETS if mode == "scaling" else [(None, 1.0)]:
            folder = folders[size, longer] = str(Path(temporary) / f"{size} {longer}")
            make_sentences(size, longer).save_to_disk(folder)
        for one in rounds:
            if mode == "scaling":
                for size, longer in turns:
                    how = f"{size:,}" + (f", {longer:g} × as long" if longer != 1 else "")
                    one[how] = in_a_process("this project", 32, 60, folders[size, longer])
                    bar.update()
                continue
            one["limit"] = in_a_process("limit", 0, 0, "")
            for name, size, steps in turns:
                one[f"{name} @{size}"] = in_a_process(name, size, steps, folders[None, 1.0])
                bar.update()
    text = growth(rounds) if mode == "scaling" else comparison(rounds)
    print(text, end="")
    result = {"machine": machine(), "rounds": rounds, "table": text.splitlines()}
    (HERE / "results").mkdir(exist_ok=True)
    file = HERE / "results" / f"{mode}.json"
    file.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", "utf-8")
    print(f"written to {file}", file=sys.stderr)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    either = parser.add_mutually_exclusive_group()
    either.add_argument("--quick", action="store_const", const="quick", dest="mode")
    either.add_argument("--scaling", action="store_const", const="scaling", dest="mode")
    either.add_argument("--turn", nargs=5, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.turn:
        name, size, steps, folder, started = asked.turn
        print(json.dumps(turn(name, int(size), int(steps), folder, float(started))))
    else:
        main(asked.mode or "speed")
