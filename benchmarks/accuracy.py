"""How good a model comes out: recipes times seeds, on the real SST-2, with the built-in encoder.

python benchmarks/accuracy.py "one pass" tutorial --seeds 7 8    what is missing of these runs
python benchmarks/accuracy.py "one pass" --seeds 7 8 --dev       their models on dev, too, each once
python benchmarks/accuracy.py --rates                            sentences a second, both loops
python benchmarks/accuracy.py                                    the tables of all that there is

A tenth of the training sentences is held out with all their phrases, as most of SST-2's rows are
phrases of 6,886 sentences; recipes are chosen on it. A run trains on the rest, or on the built-in
sentences, by finetune.py's own `finetune`, in benchmarks/runs, where the same command goes on with
it. Its record is a file of its own in benchmarks/results/accuracy, whether the recipe wins or not.
SST-2 is where the environment variable SST2 says, or beside the clone.
"""

import argparse
import collections
import hashlib
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from speed import spread, table
from work import HERE, SST2

from system.disk import replace_folder, write_json
from training import settings as rules

RESULTS, RUNS = HERE / "results" / "accuracy", HERE / "runs"
RATES = HERE / "results" / "accuracy-rates.json"
MARK = 320  # Steps between two looks at the held-out sentences; a multiple of LOG_EVERY.

# Settings of finetune.py, where not its defaults: of all recipes (BASE and the data), and of each.
# It has no `constant_rate`: see `prepare`.
BASE = {"model": "builtin", "keep": "last"}
RECIPES = {
    "tutorial": {
        "epochs": 3,
        "batch_size": 16,
        "learning_rate": 1e-5,
        "constant_rate": True,
        "weight_decay": 0.0,
        "max_grad_norm": 0.0,
    },
    "one pass": {"epochs": 1},
    "two passes": {"epochs": 2},
    "built-in defaults": {"data": "builtin", "keep": "best"},
}


# ---- The sentences ----


def spans(words: list[str]) -> Iterator[str]:
    """Each run of words of a sentence: all that can be a phrase of it."""
    for start in range(len(words)):
        for end in range(start + 1, len(words) + 1):
            yield " ".join(words[start:end])


def split_by_sentence(rows: list[str], seed: int = 8) -> tuple[list[int], list[int], set[int]]:
    """A tenth of the sentences, and the rows that are no phrase of them.

    Args:
        rows: texts, of which many are phrases of others.
    Returns:
        The numbers of the rows to train on, in their order, none of which is a held-out sentence
        or a phrase of one; of the held-out sentences; and of all that are no phrase of another.
    """
    words = [row.split() for row in rows]
    known: set[str] = set()
    sentences = []
    for row in sorted(range(len(rows)), key=lambda row: -len(words[row])):
        if " ".join(words[row]) not in known:
            sentences.append(row)
            known.update(spans(words[row]))
    sentences.sort()
    chosen = np.random.default_rng(seed).permutation(len(sentences))[: len(sentences) // 10]
    held_out = sorted(sentences[number] for number in chosen)
    phrases = {span for row in held_out for span in spans(words[row])}
    train = [row for row in range(len(rows)) if " ".join(words[row]) not in phrases]
    return train, held_out, set(sentences)


def read_rows(file: Path) -> tuple[list[str], list[str]]:
    """The labels and the texts of one of SST-2's files, or of one that `make_data` wrote."""
    rows = [line.split("\t") for line in file.read_text("utf-8").splitlines()[1:]]
    return [row[0] for row in rows], [row[1] for row in rows]


def make_data() -> Path:
    """A folder with what is trained on and what is held out, as finetune.py reads it."""
    folder = RUNS / "data-all"
    if not folder.exists():
        labels, texts = read_rows(SST2 / "train.tsv")
        train, held_out, _ = split_by_sentence(texts)

        def fill(aside: Path) -> None:
            for name, chosen in (("train", train), ("dev", held_out)):
                lines = ["label\tsentence", *(f"{labels[row]}\t{texts[row]}" for row in chosen)]
                (aside / f"{name}.tsv").write_text("\n".join(lines) + "\n", "utf-8")

        RUNS.mkdir(exist_ok=True)
        replace_folder(folder, fill)
    return folder


# ---- A run ----


def start(name: str, seed: int) -> None:
    """`train` in a process of its own, in which a recipe may change modules."""
    subprocess.run([sys.executable, __file__, "--train", name, str(seed)], check=True)


def prepare(name: str) -> dict:
    """The settings of a recipe, after what is no setting has been put into this process."""
    import finetune

    settings = BASE | {"data": str(make_data())} | RECIPES[name]
    if settings.pop("constant_rate", False):
        finetune.learning_rate_at = lambda step, steps, settings: settings.learning_rate
    finetune.train = with_marks(finetune.train)
    return settings


def train(name: str, seed: int) -> None:
    """One run of a recipe, and its record."""
    import finetune
    from training import record as records

    settings = prepare(name)
    folder = RUNS / f"{name}-{seed}"
    finetune.finetune(**settings, seed=seed, output_dir=str(folder), resume=True)
    record, lines = records.read(folder), records.read_history(folder)
    # At the usual rate: without evaluations, and whatever else this machine did meanwhile.
    rate = statistics.median(line["samples_per_second"] for line in lines if "loss" in line)
    sentences = record["settings"]["epochs"] * record["sentences"]["train"]
    taken = {
        key: value
        for key, value in record["settings"].items()
        if rules.affects(key) != rules.NOTHING and key != "seed"
    }
    if taken["data"] == str(make_data()):
        taken["data"] = "SST-2"
    found = {
        "recipe": name,
        "settings": RECIPES[name] | taken,  # All of them, as run.json has them: defaults change.
        "seed": seed,
        "code": record["code"],
        "sentences": sentences,
        "minutes": sentences / rate / 60,
        "validation": [line["eval_accuracy"] for line in lines if "eval_accuracy" in line],
        "held_out": judge(folder, make_data() / "dev.tsv"),
        "marks": [line["held_out"] for line in lines if "held_out" in line],
        "weights": hash_of_weights(folder),
    }
    write_json(RESULTS / f"{name}-{seed}.json", found)


def hash_of_weights(folder: Path) -> str | None:
    """The SHA-256 of the model that a run has kept; None where it is gone."""
    file = folder / "model" / "model.safetensors"
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.exists() else None


def with_marks(train: Callable) -> Callable:
    """finetune.train, which also evaluates the held-out sentences each MARK steps."""
    import transformers

    import data
    import finetune
    from inputs.encoder_files import find_model

    def train_with_marks(run, model, optimizer, splits, settings) -> None:
        text, folder, log = data.load(str(make_data())), find_model(settings.model), run._log
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        tokens = data.tokenize_split(text, "validation", tokenizer, settings.max_length)
        held_out = data.evaluation_loader(tokens, settings)

        def log_with_mark(line: dict) -> None:
            if "loss" in line and run.step % MARK == 0:
                scores, answers = finetune.evaluate(model, held_out, settings)
                model.train()
                mark = {"step": run.step, "sentences": run.state.sentences}
                mark |= {"accuracy": scores["accuracy"]}
                line["held_out"] = mark | {"loss": float(answers.losses.mean(dtype=float))}
            log(line)

        run._log = log_with_mark
        train(run, model, optimizer, splits, settings)

    return train_with_marks


def judge(folder: Path, file: Path) -> dict[str, float]:
    """What the model of a run says of the sentences of one of SST-2's files."""
    from outputs import classifier as classify
    from training.scores import Answers, calibration

    labels, texts = read_rows(file)
    right = np.array(labels, int)  # A file's 0 and 1 come in the order of the built-in's names.
    classes, probabilities = classify.answer(classify.load(str(folder)), texts)
    # SST-2 has two classes.
    of_right = np.where(classes == right, probabilities, 1 - probabilities)
    losses = -np.log(of_right.clip(1e-7))
    return {
        "accuracy": float((classes == right).mean()),
        "loss": float(losses.mean()),
        "calibration_error": calibration(Answers(right, classes, probabilities, losses))[0],
    }


def judge_on_dev(name: str, seed: int) -> None:
    """Put what the model of a run says of SST-2's dev sentences into its record."""
    file, folder = RESULTS / f"{name}-{seed}.json", RUNS / f"{name}-{seed}"
    record = json.loads(file.read_text("utf-8"))
    if hash_of_weights(folder) != record["weights"]:
        how = "give other --seeds, or remove the record to train it again"
        print(f"error: {folder} does not hold the model of {file}; {how}", file=sys.stderr)
        sys.exit(2)
    write_json(file, record | {"dev": judge(folder, SST2 / "dev.tsv")})


def measure_rates(rounds: int) -> None:
    """Sentences a second of the tutorial's own loop, and of this project's at its defaults."""
    import measure
    from work import make_sentences

    from inputs import encoder

    rows, found = make_sentences(), []
    for number in range(rounds):
        found.append({})
        for name, size, steps in (("tutorial's loop", 16, 6), ("this project", 32, 30)):
            model = encoder.load("builtin", ["negative", "positive"], None).model
            rate = measure.measure(name, model, rows, size, steps, 0.0)["sentences_per_second"]
            found[-1][name] = rate
        print(f"round {number + 1}: {found[-1]}", file=sys.stderr)
    write_json(RATES, {"machine": measure.machine(), "rounds": found})


# ---- The records and the tables ----


def read() -> list[dict]:
    """The records of all runs.

    Raises:
        ValueError: two seeds of a recipe had other settings or saw more, so that there is no mean.
    """
    files = sorted(RESULTS.glob("*-[0-9]*.json"))
    runs = [json.loads(file.read_text("utf-8")) for file in files]
    first: dict[str, dict] = {}
    for run in runs:
        one = first.setdefault(run["recipe"], run)
        if any(one[what] != run[what] for what in ("settings", "sentences")):
            raise ValueError(f"the runs of {run['recipe']} in {RESULTS} differ in their settings")
    return runs


def tables() -> dict[str, str]:
    """What there is to be shown, by the words above it: recipes of three seeds, and the others."""

    def of_three(runs: list[dict]) -> list[dict]:
        counts = collections.Counter(run["recipe"] for run in runs)
        return [run for run in runs if counts[run["recipe"]] >= 3]

    runs = read()
    confirmed = of_three(runs)
    names = {run["recipe"] for run in confirmed}
    found = {
        "held out": results(confirmed, "held_out"),
        "quick looks": results([run for run in runs if run["recipe"] not in names], "held_out"),
        "dev": results(of_three([run for run in runs if "dev" in run]), "dev"),
    }
    if RATES.exists() and {"tutorial", "one pass"} <= names:
        found["times"] = times(confirmed, json.loads(RATES.read_text("utf-8"))["rounds"])
    return found


def results(runs: list[dict], on: str) -> str:
    """A line a recipe: what was seen, how long it took at least, how good it is over its seeds.

    Args:
        on: `held_out` or `dev`.
    """
    lines = []
    for name in dict.fromkeys(run["recipe"] for run in runs):
        own = [run for run in runs if run["recipe"] == name]
        accuracies = [100 * run[on]["accuracy"] for run in own]
        deviation = f" ± {statistics.stdev(accuracies):.2f}" if len(own) > 1 else ""
        loss, error = (
            statistics.mean(run[on][what] for run in own) for what in ("loss", "calibration_error")
        )
        lines.append(
            [
                name,
                str(own[0]["settings"]["epochs"]),
                str(len(own)),
                f"{own[0]['sentences']:,}",
                f"{min(run['minutes'] for run in own):.0f}",  # Machines differ, and their load.
                f"{statistics.mean(accuracies):.2f}{deviation}",
                *(f"{max(accuracies):.2f}", f"{min(accuracies):.2f}"),
                *(f"{loss:.3f}", f"{error:.3f}"),
            ]
        )
    head = ["recipe", "passes", "seeds", "sentences seen", "minutes", "accuracy", "best", "worst"]
    return table([*head, "neg. log-l.", "calib. error"], lines) + "\n"


def first_reached(runs: list[dict], target: float) -> int | None:
    """Sentences seen when the mean of the runs' accuracies on held-out ones first is `target`."""
    points = [[*run["marks"], run["held_out"] | {"sentences": run["sentences"]}] for run in runs]
    for point in zip(*points, strict=True):
        if statistics.mean(mark["accuracy"] for mark in point) >= target:
            return point[0]["sentences"]
    return None


def times(runs: list[dict], rounds: list[dict]) -> str:
    """Minutes until recipes have the accuracy on held-out sentences that the tutorial's ends with.

    Args:
        runs: one pass by the defaults, and the tutorial's recipe.
        rounds: of `measure_rates`. For the tutorial's recipe its own loop is taken.
    """
    tutorial, fast = (
        [run for run in runs if run["recipe"] == name] for name in ("tutorial", "one pass")
    )
    target = statistics.mean(run["held_out"]["accuracy"] for run in tutorial)
    first = f"first at {100 * target:.2f}"
    points = [
        ("tutorial, to its end", "tutorial's loop", tutorial[0]["sentences"]),
        (f"tutorial, {first}", "tutorial's loop", first_reached(tutorial, target)),
        ("one pass, to its end", "this project", fast[0]["sentences"]),
        (f"one pass, {first}", "this project", first_reached(fast, target)),
    ]
    to_end = [tutorial[0]["sentences"] / one["tutorial's loop"] / 60 for one in rounds]
    lines = []
    for name, loop, sentences in points:
        if sentences:
            rates = [one[loop] for one in rounds]
            minutes = [sentences / rate / 60 for rate in rates]
            less = [slow / one for slow, one in zip(to_end, minutes, strict=True)]
            found = f"{statistics.median(minutes):.1f}", spread(less)
            lines.append([name, f"{sentences:,}", spread(rates), *found])
    head = ["", "sentences", "sentences/s", "minutes", "times less"]
    return table(head, lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipes", nargs="*", metavar="RECIPE", help=", ".join(RECIPES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--dev", action="store_true", help="ask their models about dev, too")
    parser.add_argument("--rates", action="store_true", help="of the tutorial's loop, and of ours")
    parser.add_argument("--train", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.train:
        name, seed = given.train
        return train(name, int(seed))
    if unknown := [name for name in given.recipes if name not in RECIPES]:
        parser.error(f"no such recipe: {', '.join(unknown)}; there are {', '.join(RECIPES)}")
    if given.recipes and not (SST2 / "train.tsv").exists():
        parser.error(f"{SST2 / 'train.tsv'} is not there; let SST2 name GLUE's folder of SST-2")
    RESULTS.mkdir(exist_ok=True)
    for seed in given.seeds:
        for name in given.recipes:
            file = RESULTS / f"{name}-{seed}.json"
            if not file.exists():
                start(name, seed)
            if given.dev and "dev" not in json.loads(file.read_text("utf-8")):  # Asked once.
                judge_on_dev(name, seed)
    if given.rates:
        measure_rates(rounds=5)
    for words, lines in tables().items():
        print(f"{words}:\n{lines}")


if __name__ == "__main__":
    main()
