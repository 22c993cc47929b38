"""How good a model comes out: recipes times seeds, on the real SST-2, with the built-in encoder.

python benchmarks/accuracy.py "one pass" tutorial --seeds 1 2 3    what is missing of these runs
python benchmarks/accuracy.py "one pass" tutorial --dev            their models on dev, each once
python benchmarks/accuracy.py --rates                              sentences a second, both loops
python benchmarks/accuracy.py                                      the tables of all that there is

A tenth of the training sentences is held out with all their phrases, as most of SST-2's rows are
phrases of 6,886 sentences; recipes are chosen on it. A run trains on the rest, by finetune.py's own
`finetune`, in benchmarks/runs, where the same command goes on with it. Its record is a file of its
own in benchmarks/results/accuracy, whether the recipe wins or not. SST-2 is where the environment
variable SST2 says, or beside the clone.
"""

import argparse
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

from files import replace_folder, write_json

RESULTS, RUNS = HERE / "results" / "accuracy", HERE / "runs"
RATES = HERE / "results" / "accuracy-rates.json"
MARK = 320  # Steps between two looks at the held-out sentences; a multiple of LOG_EVERY.

# Settings of finetune.py, where not its defaults. It has no `constant_rate` and `head`: see below.
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
    "one pass, mean of all tokens": {"epochs": 1, "head": "mean"},
    "built-in sentences": {"data": "builtin"},
}


# ---- The sentences ----


def spans(words: list[str]) -> Iterator[str]:
    """Each run of words of a sentence: all that can be a phrase of it."""
    for start in range(len(words)):
        for end in range(start + 1, len(words) + 1):
            yield " ".join(words[start:end])


def split_by_sentence(rows: list[str], seed: int = 8) -> tuple[list[int], list[int], set[int]]:
    """A tenth of the sentences, and what has no phrase in common with them.

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


def start(do: str, name: str, seed: int) -> None:
    """`train` or `judge_on_dev` in a process of its own, in which a recipe may change modules."""
    subprocess.run([sys.executable, __file__, "--do", do, name, str(seed)], check=True)


def prepare(name: str) -> dict:
    """The settings of a recipe, after what is no setting has been changed in this process."""
    import finetune

    settings = {"model": "builtin", "data": str(make_data()), "keep": "last"} | RECIPES[name]
    if settings.pop("constant_rate", False):
        finetune.learning_rate_at = lambda step, steps, settings: settings.learning_rate
    if settings.pop("head", None) == "mean":
        pool_the_mean()
    finetune.train_epoch = with_marks(finetune.train_epoch)
    return settings


def train(name: str, seed: int) -> None:
    """One run of a recipe, and its record."""
    import finetune

    settings = prepare(name)
    folder = RUNS / f"{name}-{seed}"
    result = finetune.finetune(**settings, seed=seed, output_dir=str(folder), resume=True)
    weights = result.folder / "model" / "model.safetensors"
    record = json.loads((folder / "run.json").read_text("utf-8"))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    # At the usual rate: without evaluations, and whatever else this machine did meanwhile.
    rate = statistics.median(line["samples_per_second"] for line in lines if "loss" in line)
    sentences = sum(record["by_process"])
    found = {
        "recipe": name,
        "settings": RECIPES[name],
        "seed": seed,
        "code": record["code"],
        "passes": record["settings"]["epochs"],
        "sentences": sentences,
        "minutes": sentences / rate / 60,
        "held_out": judge(folder, make_data() / "dev.tsv"),
        "marks": [line["held_out"] for line in lines if "held_out" in line],
        "weights": hashlib.sha256(weights.read_bytes()).hexdigest(),
    }
    write_json(RESULTS / f"{name}-{seed}.json", found)


def with_marks(train_epoch: Callable) -> Callable:
    """finetune.train_epoch, which looks at the held-out sentences each MARK steps as well."""
    import transformers

    import data
    import finetune
    from model_files import find_model

    loader = None

    def look(model, settings) -> dict[str, float]:
        nonlocal loader
        if loader is None:
            text, length = data.load(str(make_data())), settings.max_length
            tokenizer = transformers.AutoTokenizer.from_pretrained(find_model(settings.model))
            rows = text.splits["validation"]
            tokens = data.tokenize(rows, text.ids, tokenizer, length, "held out")
            batches = data.sorted_batches(tokens.lengths, settings.batch_size)
            widths = tokenizer.pad_token_id, None, length
            loader = data.make_loader(tokens, batches, *widths, settings.device)
        scores, loss, _ = finetune.evaluate(model, loader, settings)
        model.train()
        return {"accuracy": scores["accuracy"], "loss": loss}

    def marked(model, optimizer, loader, settings, state, *rest) -> Iterator[dict | None]:
        for line in train_epoch(model, optimizer, loader, settings, state, *rest):
            if line and state["step"] % MARK == 0:
                place = {"step": state["step"], "sentences": state["sentences"]}
                line["held_out"] = place | look(model, settings)
            yield line

    return marked


def pool_the_mean() -> None:
    """Let the head read the mean of all tokens, as this encoder was trained to, not the first.

    What is saved is not this model any more: transformers' own class reads the first token.
    """
    import faster
    import model as models

    load = models.load_model

    def load_model(*arguments):
        model, *rest = load(*arguments)
        masks = {}

        def pool(hidden):
            mask = masks["of the batch"].to(hidden.dtype)[..., None]
            return (hidden * mask).sum(1) / mask.sum(1)

        model.bert.register_forward_pre_hook(
            lambda _, args, batch: masks.update({"of the batch": batch["attention_mask"]}),
            with_kwargs=True,
        )
        model.bert.pooler.forward = pool
        return model, *rest

    models.load_model = load_model
    faster.FEED_FORWARD.pop("bert")  # It would leave out what no other head reads.


def judge(folder: Path, file: Path) -> dict[str, float]:
    """What the model of a run says of the sentences of one of SST-2's files."""
    import classify
    import report

    labels, texts = read_rows(file)
    right = np.array(labels, int)  # A file's 0 and 1 come in the order of the built-in's names.
    classes, probabilities = classify.answer(classify.load(str(folder)), texts)
    of_right = np.where(classes == right, probabilities, 1 - probabilities)  # Of two classes.
    return {
        "accuracy": float((classes == right).mean()),
        "loss": float(-np.log(of_right.clip(1e-7)).mean()),
        "calibration_error": report.calibration(report.Answers(right, classes, probabilities))[0],
    }


def judge_on_dev(name: str, seed: int) -> None:
    """Put what the model of a run says of SST-2's dev sentences into its record."""
    prepare(name)
    file = RESULTS / f"{name}-{seed}.json"
    found = judge(RUNS / file.stem, SST2 / "dev.tsv")
    write_json(file, json.loads(file.read_text("utf-8")) | {"dev": found})


def measure_rates(rounds: int) -> None:
    """Sentences a second of the tutorial's own loop, and of this project's at its defaults."""
    import measure
    from work import make_sentences

    import model as models

    rows, found = make_sentences(), []
    for number in range(rounds):
        found.append({})
        for name, size, steps in (("tutorial's loop", 16, 6), ("this project", 32, 30)):
            model, *_ = models.load_model("builtin", ["negative", "positive"], None)
            rate = measure.measure(name, model, rows, size, steps, 0.0)["sentences_per_second"]
            found[-1][name] = rate
        print(f"round {number + 1}: {found[-1]}", file=sys.stderr)
    write_json(RATES, {"machine": measure.machine(), "rounds": found})


# ---- The records and the tables ----


def read() -> list[dict]:
    """The records of all runs."""
    files = sorted(RESULTS.glob("*-[0-9]*.json"))
    return [json.loads(file.read_text("utf-8")) for file in files]


def results(runs: list[dict], on: str) -> str:
    """A line a recipe: what was seen, how long it took, and how good it is over its seeds.

    Args:
        on: `held_out` or `dev`; recipes without it are left out.
    """
    lines = []
    for name in dict.fromkeys(run["recipe"] for run in runs if on in run):
        own = [run for run in runs if run["recipe"] == name and on in run]
        accuracies = [100 * run[on]["accuracy"] for run in own]
        deviation = f" ± {statistics.stdev(accuracies):.2f}" if len(own) > 1 else ""
        means = [statistics.mean(run[on][what] for run in own) for what in own[0][on]]
        lines.append(
            [
                name,
                str(own[0]["passes"]),
                str(len(own)),
                f"{statistics.mean(run['sentences'] for run in own):,.0f}",
                f"{statistics.mean(run['minutes'] for run in own):.0f}",
                f"{100 * means[0]:.2f}{deviation}",
                *(f"{max(accuracies):.2f}", f"{min(accuracies):.2f}"),
                *(f"{means[1]:.3f}", f"{means[2]:.3f}"),
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
    """Minutes until recipes first have the held-out accuracy that the tutorial's ends with.

    Args:
        rounds: of `measure_rates`. For the tutorial's recipe its own loop is taken.
    """
    by_name: dict[str, list[dict]] = {}
    for run in runs:
        if run["settings"].get("data") != "builtin":
            by_name.setdefault(run["recipe"], []).append(run)
    tutorial = by_name["tutorial"]
    target = statistics.mean(run["held_out"]["accuracy"] for run in tutorial)
    slow, fast = ([one[name] for one in rounds] for name in ("tutorial's loop", "this project"))
    lines = []
    for name, own in {"tutorial, to its end": tutorial, "tutorial": tutorial, **by_name}.items():
        to_end = name == "tutorial, to its end"
        sentences = tutorial[0]["sentences"] if to_end else first_reached(own, target)
        if sentences:
            rates = slow if own is tutorial else fast
            less = [
                tutorial[0]["sentences"] / of_slow * rate / sentences
                for of_slow, rate in zip(slow, rates, strict=True)
            ]
            minutes = sentences / statistics.median(rates) / 60
            lines.append([name, f"{sentences:,}", spread(rates), f"{minutes:.0f}", spread(less)])
    head = [f"until {100 * target:.2f}", "sentences", "sentences/s", "minutes", "times less"]
    return table(head, lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipes", nargs="*", metavar="RECIPE", help=", ".join(RECIPES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--dev", action="store_true", help="ask their models about dev, too")
    parser.add_argument("--rates", action="store_true", help="of the tutorial's loop, and of ours")
    parser.add_argument("--do", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.do:
        do, name, seed = given.do
        return {"train": train, "judge_on_dev": judge_on_dev}[do](name, int(seed))
    if unknown := [name for name in given.recipes if name not in RECIPES]:
        parser.error(f"no such recipe: {', '.join(unknown)}; there are {', '.join(RECIPES)}")
    RESULTS.mkdir(exist_ok=True)
    for seed in given.seeds:
        for name in given.recipes:
            file = RESULTS / f"{name}-{seed}.json"
            if not file.exists():
                start("train", name, seed)
            if given.dev and "dev" not in json.loads(file.read_text("utf-8")):  # Asked once.
                start("judge_on_dev", name, seed)
    if given.rates:
        measure_rates(rounds=5)
    for on in ("held_out", "dev"):
        print(f"{on.replace('_', ' ')}:\n{results(read(), on)}")
    if RATES.exists():
        print(times(read(), json.loads(RATES.read_text("utf-8"))["rounds"]))


if __name__ == "__main__":
    main()
