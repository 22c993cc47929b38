"""Accuracy of recipes over seeds, on the real SST-2, with the built-in encoder.

python benchmarks/accuracy.py "one pass" tutorial --seeds 7 8    train the missing runs
python benchmarks/accuracy.py "one pass" --seeds 7 8 --dev       and evaluate each model once on dev
python benchmarks/accuracy.py --rates zen5                       speed of these loops on a Zen 5
python benchmarks/accuracy.py                                    print the tables of all records

Most of SST-2's rows are phrases of 6,886 sentences. A tenth of these sentences is held out with all
their phrases, and recipes are chosen by it. finetune.py's own `finetune` trains on the rest, or on
the built-in sentences, in benchmarks/runs. The same command resumes a run. Every run gets a record
in benchmarks/results/accuracy, even if its recipe is not chosen.
The environment variable SST2 names GLUE's folder; its default is shared/sst2 beside the clone.
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
from changes import CHANGES
from recipes import BASE, MANY_HELD_OUT, RECIPES
from rows import ROWS
from speed import spread, table
from work import HERE, SST2

from system.disk import replace_folder, write_json
from training import settings as rules
from training.scores import mean_difference

RESULTS, RUNS = HERE / "results" / "accuracy", HERE / "runs"
# Steps between evaluations on the held-out sentences: a multiple of LOG_EVERY.
MARK = 320
# The recipes whose minutes are computed, and the loop whose speed counts.
TIMED = {
    "tutorial": "tutorial's loop",
    "one pass": "this project",
    "one pass bf16": "this project, bf16",
    "short no dropout": "no dropout",
}
# The contender of contenders.py, batch size, timed steps, precision, and dropout.
LOOPS = {
    "tutorial's loop": ("tutorial's loop", 16, 6, "fp32", None),
    "this project": ("this project", 32, 30, "fp32", None),
    "this project, bf16": ("this project", 32, 30, "bf16", None),
    "no dropout": ("this project", 32, 30, "fp32", 0.0),
}
# Recipes over the same number of sentences are compared with these.
REFERENCES = ("10k", "43k")


# ---- The sentences ----


def spans(tokens: list[str]) -> Iterator[str]:
    """Every contiguous phrase of a sentence."""
    for start in range(len(tokens)):
        for end in range(start + 1, len(tokens) + 1):
            yield " ".join(tokens[start:end])


def split_by_sentence(rows: list[str], parts: int = 10) -> tuple[list[int], list[int], set[int]]:
    """Hold out random sentences, one in `parts`, with all rows that are phrases of them.

    Args:
        rows: texts, many of which are phrases of longer rows.
    Returns:
        Row numbers: of the training rows, of the held-out sentences, and of all sentences. A
        sentence is a row that is no phrase of another row.
    """
    tokens = [row.split() for row in rows]
    phrases: set[str] = set()
    sentences = []
    for row in sorted(range(len(rows)), key=lambda row: -len(tokens[row])):
        if " ".join(tokens[row]) not in phrases:
            sentences.append(row)
            phrases.update(spans(tokens[row]))
    sentences.sort()
    sample = np.random.default_rng(8).permutation(len(sentences))[: len(sentences) // parts]
    held_out = sorted(sentences[number] for number in sample)
    phrases = {span for row in held_out for span in spans(tokens[row])}
    train = [row for row in range(len(rows)) if " ".join(tokens[row]) not in phrases]
    return train, held_out, set(sentences)


def read_rows(file: Path) -> tuple[list[str], list[str]]:
    """Labels and texts of a file in SST-2's format."""
    rows = [line.split("\t") for line in file.read_text("utf-8").splitlines()[1:]]
    return [row[0] for row in rows], [row[1] for row in rows]


def make_data(parts: int = 10, rows: str | None = None) -> Path:
    """A folder with train.tsv and dev.tsv: the training rows and the held-out sentences.

    Args:
        rows: a key of ROWS, which changes the training rows and not the held-out sentences.
    """
    folder = RUNS / "-".join(["data", str(parts), *(rows.split() if rows else ())])
    if not folder.exists():
        labels, texts = read_rows(SST2 / "train.tsv")
        train, held_out, sentences = split_by_sentence(texts, parts)
        if rows:
            train = ROWS[rows](train, labels, texts, sentences)
        print(f"{folder.name}: {len(train):,} training rows", file=sys.stderr)

        def fill(aside: Path) -> None:
            for name, numbers in (("train", train), ("dev", held_out)):
                lines = ["label\tsentence", *(f"{labels[row]}\t{texts[row]}" for row in numbers)]
                (aside / f"{name}.tsv").write_text("\n".join(lines) + "\n", "utf-8")

        RUNS.mkdir(exist_ok=True)
        replace_folder(folder, fill)
    return folder


# ---- A run ----


def start(name: str, seed: int) -> None:
    """Call `train` in a new process, as a recipe may change modules."""
    subprocess.run([sys.executable, __file__, "--train", name, str(seed)], check=True)


def prepare(name: str) -> tuple[dict, Path]:
    """The settings of a recipe, and the folder with its held-out sentences as validation data.

    The recipe's changes are made in this process's modules.
    """
    import finetune

    settings = BASE | RECIPES[name]
    folder = make_data(settings.pop("held_out"), settings.pop("rows", None))
    finetune.train = with_marks(finetune.train, folder)
    for key, change in CHANGES.items():
        if key in settings:
            change(finetune, settings.pop(key))
    return {"data": str(folder)} | settings, folder


def train(name: str, seed: int) -> None:
    """Train one run of a recipe and write its record."""
    import finetune
    from training import record as records

    folder = RUNS / f"{name}-{seed}"
    chosen, data = prepare(name)
    finetune.finetune(**chosen, seed=seed, output_dir=str(folder), resume=True)
    run, lines = records.read(folder), records.read_history(folder)
    # The median rate ignores evaluations and the load of other programs.
    rate = statistics.median(line["samples_per_second"] for line in lines if "loss" in line)
    sentences = run["settings"]["epochs"] * run["sentences"]["train"]
    settings = {
        key: value
        for key, value in run["settings"].items()
        if rules.affects(key) != rules.NOTHING and key != "seed"
    }
    if settings["data"] == str(data):
        # The held-out sentences were the run's own validation data.
        settings["data"], scores = "SST-2", run["result"]
    else:
        scores = evaluate(folder, data / "dev.tsv")
    record = {
        "recipe": name,
        # Defaults are recorded too, as a later version may change them.
        "settings": RECIPES[name] | settings,
        "seed": seed,
        "code": run["code"],
        "sentences": sentences,
        "minutes": sentences / rate / 60,
        "validation": [line["eval_accuracy"] for line in lines if "eval_accuracy" in line],
        "held_out": {key: scores[key] for key in ("accuracy", "loss", "calibration_error")},
        "marks": [line["held_out"] for line in lines if "held_out" in line],
        "weights": hash_of_weights(folder),
    }
    write_json(RESULTS / f"{name}-{seed}.json", record)


def hash_of_weights(folder: Path) -> str | None:
    """The SHA-256 of a run's kept model; None if the file is missing."""
    file = folder / "model" / "model.safetensors"
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.exists() else None


def with_marks(train: Callable, data_folder: Path) -> Callable:
    """`train` with an evaluation of the held-out sentences every MARK steps."""
    import transformers

    import data
    import finetune
    from inputs.encoder_files import find_model

    def train_with_marks(run, model, optimizer, splits, settings) -> None:
        log, tokens = run._log, splits["validation"]
        if settings.data != str(data_folder):
            text, folder = data.load(str(data_folder)), find_model(settings.model)
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


def evaluate(folder: Path, file: Path) -> dict[str, float]:
    """Accuracy, loss and calibration error of a run's model on a file in SST-2's format."""
    from outputs import classifier as classify
    from training.scores import Answers, calibration

    texts = read_rows(file)[1]
    # SST-2's 0 and 1 are the ids of `negative` and `positive` in every recipe.
    labels = np.array(read_rows(file)[0], int)
    classes, probabilities = classify.answer(classify.load(str(folder)), texts)
    losses = -np.log(probabilities[np.arange(len(labels)), labels].clip(1e-7))
    return {
        "accuracy": float((classes == labels).mean()),
        "loss": float(losses.mean()),
        "calibration_error": calibration(Answers(labels, classes, probabilities, losses))[0],
    }


def evaluate_on_dev(name: str, seed: int) -> None:
    """Add the scores of a run's model on SST-2's dev sentences to its record."""
    file, folder = RESULTS / f"{name}-{seed}.json", RUNS / f"{name}-{seed}"
    record = json.loads(file.read_text("utf-8"))
    if hash_of_weights(folder) != record["weights"]:
        remedy = "choose other --seeds, or remove the record to train again"
        print(f"error: {folder}: model does not match the record {file}; {remedy}", file=sys.stderr)
        sys.exit(2)
    write_json(file, record | {"dev": evaluate(folder, SST2 / "dev.tsv")})


def measure_rates(processor: str) -> None:
    """Measure sentences a second of each of LOOPS that the processor has units for."""
    import measure
    from work import make_sentences

    from inputs import encoder

    rows, results = make_sentences(), []
    precisions = measure.precisions()
    for number in range(5):
        results.append({})
        for name, (contender, size, steps, precision, dropout) in LOOPS.items():
            if precision in precisions:
                model = encoder.load("builtin", ["negative", "positive"], None, dropout).model
                result = measure.measure(contender, model, rows, size, steps, precision, 0.0)
                results[-1][name] = result["sentences_per_second"]
        print(f"round {number + 1}: {results[-1]}", file=sys.stderr)
    file = RESULTS.parent / f"accuracy-rates-{processor}.json"
    write_json(file, {"machine": measure.machine(), "rounds": results})


# ---- The records and the tables ----


def read() -> list[dict]:
    """The records of all runs: a file for each, and a line for each of many runs on a GPU.

    Raises:
        ValueError: the runs of a recipe differ in their settings or number of sentences.
    """
    files = sorted(RESULTS.glob("*-[0-9]*.json"))
    runs = [json.loads(file.read_text("utf-8")) for file in files]
    for file in sorted(RESULTS.glob("*.jsonl")):
        runs += map(json.loads, file.read_text("utf-8").splitlines())
    first: dict[str, dict] = {}
    for run in runs:
        reference = first.setdefault(run["recipe"], run)
        if _effects(reference) != _effects(run):
            problem = f"settings or sentences differ between the runs of {run['recipe']}"
            raise ValueError(f"{RESULTS}: {problem}; remove the records of one kind")
    return runs


def _effects(run: dict) -> dict[str, object]:
    """The number of sentences, and the settings that affect more than rounding."""
    # A setting that an older record lacks counts as None.
    return {"sentences": run["sentences"]} | {
        name: value
        for name, value in run["settings"].items()
        if value is not None and rules.affects(name) == rules.RESULT
    }


def tables() -> dict[str, str]:
    """The tables of all records, by title: recipes of three seeds or more, and quick looks."""

    def with_three_seeds(runs: list[dict]) -> list[dict]:
        counts = collections.Counter(run["recipe"] for run in runs)
        return [run for run in runs if counts[run["recipe"]] >= 3]

    runs, paired = [], []
    for run in read():
        has_many = run["settings"].get("held_out") == MANY_HELD_OUT
        (paired if has_many else runs).append(run)
    confirmed = with_three_seeds(runs)
    names = {run["recipe"] for run in confirmed}
    by_title = {
        "held out": results(confirmed, "held_out"),
        "quick looks": results([run for run in runs if run["recipe"] not in names], "held_out"),
        "dev": results(with_three_seeds([run for run in runs if "dev" in run]), "dev"),
    }
    for reference in REFERENCES:
        if own := [run for run in paired if run["recipe"].split()[0] == reference]:
            by_title[f"paired, {reference}"] = differences(own, reference)
    if "tutorial" in names:
        for file in sorted(RESULTS.parent.glob("accuracy-rates-*.json")):
            rounds = json.loads(file.read_text("utf-8"))["rounds"]
            processor = file.stem.removeprefix("accuracy-rates-")
            by_title[f"times, {processor}"] = times(confirmed, rounds)
    return by_title


def results(runs: list[dict], split: str) -> str:
    """One line for each recipe: sentences, minutes of the fastest seed on a CPU, and scores.

    Args:
        split: `held_out` or `dev`.
    """
    lines = []
    for name in dict.fromkeys(run["recipe"] for run in runs):
        seeds = [run for run in runs if run["recipe"] == name]
        accuracies = [100 * run[split]["accuracy"] for run in seeds]
        # A GPU's minutes are of many runs at the same time.
        minutes = [run["minutes"] for run in seeds if run["settings"].get("device") != "cuda"]
        deviation = f" ± {statistics.stdev(accuracies):.2f}" if len(seeds) > 1 else ""
        loss, error = (
            statistics.mean(run[split][key] for run in seeds)
            for key in ("loss", "calibration_error")
        )
        lines.append(
            [
                name,
                str(seeds[0]["settings"]["epochs"]),
                str(len(seeds)),
                f"{seeds[0]['sentences']:,}",
                f"{min(minutes):.0f}" if minutes else "–",
                f"{statistics.mean(accuracies):.2f}{deviation}",
                *(f"{max(accuracies):.2f}", f"{min(accuracies):.2f}"),
                *(f"{loss:.3f}", f"{error:.3f}"),
            ]
        )
    head = ["recipe", "passes", "seeds", "sentences seen", "minutes", "accuracy", "best", "worst"]
    return table([*head, "neg. log-l.", "calib. error"], lines) + "\n"


def differences(runs: list[dict], reference: str) -> str:
    """One line for each recipe: its mean scores and those of the same seeds of `reference`.

    A difference has the 95 % interval of a paired t-test.
    """
    scores: dict[str, dict[int, dict]] = {reference: {}}
    for run in runs:
        scores.setdefault(run["recipe"], {})[run["seed"]] = run["held_out"]
    references = scores.pop(reference)
    lines = []
    for name, by_seed in scores.items():
        seeds = sorted(by_seed.keys() & references.keys())
        if not seeds:
            continue
        cells = [name, str(len(seeds))]
        for key, factor, digits in (("accuracy", 100, 2), ("loss", 1, 4)):
            own = [factor * by_seed[seed][key] for seed in seeds]
            others = [factor * references[seed][key] for seed in seeds]
            means = statistics.mean(own), statistics.mean(others)
            difference = f"{means[0] - means[1]:+.{digits}f}"
            if len(seeds) > 1:
                _, low, high = mean_difference(own, others, is_paired=True, level=0.95)
                difference += f" ({low:+.{digits}f} to {high:+.{digits}f})"
            cells += [*(f"{mean:.{digits}f}" for mean in means), difference]
        lines.append(cells)
    head = ["recipe", "seeds", "accuracy", reference, "difference"]
    return table([*head, "neg. log-l.", reference, "difference"], lines) + "\n"


def points(runs: list[dict]) -> Iterator[tuple[int, list[float]]]:
    """Sentences seen and the held-out accuracy of each run, at each evaluation; the end is last."""
    evaluations = [
        [*run["marks"], run["held_out"] | {"sentences": run["sentences"]}] for run in runs
    ]
    for point in zip(*evaluations, strict=True):
        yield point[0]["sentences"], [mark["accuracy"] for mark in point]


def times(runs: list[dict], rounds: list[dict]) -> str:
    """Minutes until each recipe reaches the final held-out accuracy of the tutorial's recipe.

    Args:
        runs: of the recipe `tutorial`, and of any others of TIMED.
        rounds: of `measure_rates`. The tutorial's recipe counts at the rate of its own loop.
    """
    by_name = {name: [run for run in runs if run["recipe"] == name] for name in TIMED}
    tutorial = by_name["tutorial"]
    target = statistics.mean([*points(tutorial)][-1][1])
    to_end = [tutorial[0]["sentences"] / rates["tutorial's loop"] / 60 for rates in rounds]
    lines = []
    for name, seeds in by_name.items():
        # A record lacks loops that are newer, and those in bf16 if the processor has no units.
        if not seeds or TIMED[name] not in rounds[0]:
            continue
        loop_rates = [rates[TIMED[name]] for rates in rounds]
        *_, end = evaluations = [*points(seeds)]
        reached = [point for point in evaluations if statistics.mean(point[1]) >= target]
        ends = {"to its end": end} | {f"first at {100 * target:.2f}": x for x in reached[:1]}
        for title, (sentences, accuracies) in ends.items():
            minutes = [sentences / rate / 60 for rate in loop_rates]
            ratios = [slow / fast for slow, fast in zip(to_end, minutes, strict=True)]
            cells = [f"{name}, {title}", f"{sentences:,}", spread(loop_rates)]
            cells += [f"{statistics.median(minutes):.1f}", spread(ratios)]
            cells += [f"{100 * statistics.mean(accuracies):.2f}"]
            count = sum(accuracy >= target for accuracy in accuracies)
            lines.append([*cells, f"{count} of {len(accuracies)}"])
    head = ["", "sentences", "sentences/s", "minutes", "times less", "accuracy"]
    return table([*head, f"seeds ≥ {100 * target:.2f}"], lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipes", nargs="*", metavar="RECIPE", help=", ".join(RECIPES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--dev", action="store_true", help="evaluate each model once on dev")
    parser.add_argument(
        "--rates", metavar="PROCESSOR", help="measure the speed of these loops; name the record so"
    )
    parser.add_argument("--train", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.train:
        name, seed = arguments.train
        return train(name, int(seed))
    if unknown := [name for name in arguments.recipes if name not in RECIPES]:
        parser.error(f"RECIPE: unknown (found {', '.join(unknown)}); use {', '.join(RECIPES)}")
    if arguments.recipes and not (SST2 / "train.tsv").exists():
        parser.error(f"{SST2 / 'train.tsv'}: file is missing; set SST2 to GLUE's SST-2 folder")
    RESULTS.mkdir(exist_ok=True)
    for seed in arguments.seeds:
        for name in arguments.recipes:
            file = RESULTS / f"{name}-{seed}.json"
            if not file.exists():
                start(name, seed)
            if arguments.dev and "dev" not in json.loads(file.read_text("utf-8")):
                evaluate_on_dev(name, seed)
    if arguments.rates:
        measure_rates(arguments.rates)
    for title, lines in tables().items():
        print(f"{title}:\n{lines}")


if __name__ == "__main__":
    main()
