"""How good a model comes out, by recipe: settings times seeds, on the real SST-2.

python benchmarks/accuracy.py tutorial default --seeds 1 2 3   what is missing of these runs
python benchmarks/accuracy.py --table                          all that there is, on held-out train
python benchmarks/accuracy.py --dev                            the last models of FINAL, on dev, once

A tenth of the training sentences is held out, with all their phrases (most of SST-2's rows are
phrases of 6,886 sentences), and everything is chosen on it. A run trains on the others and is
written to benchmarks/runs; given again, the same command goes on with it. What it comes to is in
benchmarks/results/accuracy, a file a run, from which the tables are made.
"""

import argparse
import contextlib
import hashlib
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from work import HERE, SST2

RESULTS, RUNS = HERE / "results" / "accuracy", HERE / "runs"
MARK = 320  # Sentences are held against the held-out ones each time so many batches have been seen.

# Settings of finetune.py, which are its defaults but for these; and `rows`, which say what of the
# training sentences is taken, `rate` "constant", `head` "mean".
TUTORIAL = {
    "learning_rate": 1e-5,
    "rate": "constant",
    "weight_decay": 0.0,
    "max_grad_norm": 0.0,
    "batch_size": 16,
    "epochs": 3,
}
ONE = {"epochs": 1, "learning_rate": 8e-5}
QUICK = ONE | {"rows": "some 20000"}
RECIPES = {
    "tutorial": TUTORIAL,
    "smoke": QUICK | {"rows": "some 10400"},
    "one pass": {"epochs": 1},
    "two passes": {"epochs": 2},
    "one pass, layers 0.9, head 10": {"epochs": 1, "layer_decay": 0.9, "head_rate": 10},
    "20k": QUICK,
    "20k rate 4e-5": QUICK | {"learning_rate": 4e-5},
    "20k rate 16e-5": QUICK | {"learning_rate": 16e-5},
    "20k batch 16": QUICK | {"batch_size": 16},
    "20k layers 0.9": QUICK | {"layer_decay": 0.9},
    "20k layers 0.8": QUICK | {"layer_decay": 0.8, "learning_rate": 16e-5},
    "20k mean": QUICK | {"head": "mean"},
    "20k smoothing": QUICK | {"label_smoothing": 0.1},
    "20k no dropout": QUICK | {"dropout": 0.0},
    "20k head 10": QUICK | {"head_rate": 10},
    "20k long last": QUICK | {"order": "long last"},
    "20k two": QUICK | {"epochs": 2},
    "20k r-drop": QUICK | {"r_drop": 1.0},
    "20k r-drop 4": QUICK | {"r_drop": 4.0},
    "20k longer": QUICK | {"rows": "longer 8 20000"},
}


# ---- The sentences ----


def spans(words: list[str]) -> Iterator[str]:
    """Each run of words of a sentence: what could be a phrase of it."""
    for start in range(len(words)):
        for end in range(start + 1, len(words) + 1):
            yield " ".join(words[start:end])


def split_by_sentence(rows: list[str], seed: int = 8) -> tuple[list[int], list[int], set[int]]:
    """A tenth of the sentences, held out, and what has no words in common with them.

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


def take(rows: str, texts: list[str], train: list[int], sentences: set[int]) -> list[int]:
    """What of the training rows a recipe takes."""
    kind, *numbers = rows.split()
    if kind == "longer":
        least = int(numbers.pop(0))
        train = [row for row in train if len(texts[row].split()) >= least]
    if kind == "sentences":
        train = [row for row in train if row in sentences]
    if numbers:  # A quick look at all kinds.
        chosen = np.random.default_rng(3).permutation(len(train))[: int(numbers[0])]
        train = [train[number] for number in sorted(chosen)]
    return train


def make_data(rows: str) -> Path:
    """A folder with what is trained on and what is held out, as finetune.py reads it."""
    folder = RUNS / f"data-{rows.replace(' ', '-')}"
    if (folder / "dev.tsv").exists():
        return folder
    header, *lines = (SST2 / "train.tsv").read_text("utf-8").splitlines()
    texts = [line.split("\t")[1] for line in lines]
    train, held_out, sentences = split_by_sentence(texts)
    folder.mkdir(parents=True, exist_ok=True)
    for name, chosen in (("train", take(rows, texts, train, sentences)), ("dev", held_out)):
        text = "".join(f"{line}\n" for line in [header, *(lines[row] for row in chosen)])
        (folder / f"{name}.tsv").write_text(text, "utf-8")
    return folder


# ---- A run ----


def train(name: str, seed: int) -> None:
    """One run of a recipe by finetune.py's own `finetune`, and its record."""
    import finetune

    settings = dict(RECIPES[name])
    rate, head = settings.pop("rate", None), settings.pop("head", None)
    rows = settings.pop("rows", "all")
    folder = RUNS / f"{name}-{seed}"
    if rate == "constant":
        finetune.learning_rate_at = lambda step, steps, settings: settings.learning_rate
    if factor := settings.pop("head_rate", None):
        make_optimizer = finetune.make_optimizer

        def with_head_rate(model, settings):
            optimizer = make_optimizer(model, settings)
            of_head = {id(p) for n, p in model.named_parameters() if n.startswith("classifier")}
            for group in list(optimizer.param_groups):
                own = [p for p in group["params"] if id(p) in of_head]
                if own:
                    group["params"] = [p for p in group["params"] if id(p) not in of_head]
                    scaled = {"params": own, "of_rate": factor * group["of_rate"]}
                    optimizer.add_param_group(
                        {k: v for k, v in group.items() if k != "params"} | scaled
                    )
            return optimizer

        finetune.make_optimizer = with_head_rate
    if settings.pop("order", None) == "long last":
        import data

        epoch_batches = data.epoch_batches

        def long_last(lengths, batch_size, seed, epoch):
            batches = epoch_batches(lengths, batch_size, seed, epoch)
            random = data.generator(seed, "long last", epoch).random(len(batches))
            means = np.array([lengths[batch].mean() for batch in batches])
            ranks = np.argsort(np.argsort(means)) / len(batches)
            return [batches[i] for i in np.argsort(ranks + random, kind="stable")]

        data.epoch_batches = long_last
    if head == "mean":
        pool_the_mean()
    averages = {}
    finetune.train_epoch = with_marks(finetune.train_epoch, make_data(rows), averages)
    result = finetune.finetune(
        **{"keep": "last", "model": "builtin", "data": str(make_data(rows)), "seed": seed}
        | settings,
        output_dir=str(folder),
        resume=True,
    )
    record = json.loads((folder / "run.json").read_text())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    marks = [line["held_out"] for line in lines if "held_out" in line]
    epochs = [line for line in lines if "eval_loss" in line]
    found = {
        "recipe": name,
        "settings": RECIPES[name],
        "seed": seed,
        "sentences": sum(record["by_process"]),
        "minutes": result.metrics["seconds"] / 60,
        "threads": record["environment"]["threads"] if "environment" in record else None,
        "accuracy": result.metrics["accuracy"],
        "loss": result.metrics["loss"],
        "calibration_error": result.metrics["calibration_error"],
        "averaged": averages.get("found"),
        "marks": marks,
        "epochs": epochs,
        "weights": hashlib.sha256(
            (folder / "model" / "model.safetensors").read_bytes()
        ).hexdigest(),
    }
    write(RESULTS / f"{name}-{seed}.json", found)
    print(f"{name}-{seed}: {found['accuracy']:.4f} loss {found['loss']:.4f}", file=sys.stderr)


def with_marks(train_epoch, folder: Path, averages: dict):
    """finetune.train_epoch, which looks at the held-out sentences each MARK steps as well."""
    import torch

    import data
    import finetune

    def evaluate(model, settings) -> dict:
        import transformers

        from model_files import find_model

        if "tokens" not in averages:
            text = data.load(str(folder))
            tokenizer = transformers.AutoTokenizer.from_pretrained(find_model("builtin"))
            rows, length = text.splits["validation"], settings.max_length
            averages["tokens"] = data.tokenize(rows, text.ids, tokenizer, length, "held out")
        tokens = averages["tokens"]
        batches = data.sorted_batches(tokens.lengths, 32)
        loader = data.make_loader(tokens, batches, 0, None, settings.max_length, settings.device)
        scores, loss, _ = finetune.evaluate(model, loader, settings)
        model.train()
        return {"accuracy": scores["accuracy"], "loss": loss}

    def marked(model, optimizer, loader, settings, state, steps, class_weights=None):
        mean, number = None, 0
        given = train_epoch(model, optimizer, loader, settings, state, steps, class_weights)
        for line in given:
            step = state["step"]
            if line and step % MARK == 0:
                line["held_out"] = evaluate(model, settings) | {
                    "step": step,
                    "sentences": state["sentences"],
                }
            if line and step > 0.75 * steps:
                number += 1
                own = {key: value.double() for key, value in model.state_dict().items()}
                mean = mean or own
                for key, value in own.items():
                    mean[key] += (value - mean[key]) / number
            if step == steps and mean:
                kept = {key: value.clone() for key, value in model.state_dict().items()}
                with torch.no_grad():
                    model.load_state_dict(
                        {key: value.to(kept[key].dtype) for key, value in mean.items()}
                    )
                    averages["found"] = evaluate(model, settings) | {"number": number}
                    model.load_state_dict(kept)
            yield line

    return marked


def pool_the_mean() -> None:
    """Let the head read the mean of all tokens, as this encoder was trained, and not the first."""
    import faster
    import model as models

    load = models.load_model

    def load_model(*arguments):
        model, *rest = load(*arguments)
        bert, masks = model.bert, {}
        bert.register_forward_pre_hook(
            lambda module, args, batch: masks.update(mask=batch["attention_mask"]),
            with_kwargs=True,
        )

        def pool(hidden):
            mask = masks["mask"].to(hidden.dtype)[..., None]
            return (hidden * mask).sum(1) / mask.sum(1)

        bert.pooler.forward = pool
        return model, *rest

    models.load_model = load_model
    faster.FEED_FORWARD.pop("bert")


# ---- What the final table needs beside them ----


def on_dev(names: list[str]) -> None:
    """What the last models of these recipes say of SST-2's dev sentences, each looked at once."""
    import classify
    import report

    lines = (SST2 / "dev.tsv").read_text("utf-8").splitlines()[1:]
    labels, texts = zip(*(line.split("\t") for line in lines), strict=True)
    right = np.array(labels, int)
    for file in sorted(RESULTS.glob("*-[0-9]*.json")):
        found = json.loads(file.read_text("utf-8"))
        if found["recipe"] not in names or "dev" in found:
            continue
        classes, probabilities = classify.answer(classify.load(str(RUNS / file.stem)), texts)
        answers = report.Answers(right, classes, probabilities)
        of_right = np.where(classes == right, probabilities, 1 - probabilities)  # Of two classes.
        found["dev"] = {
            "accuracy": float((classes == right).mean()),
            "loss": float(-np.log(of_right.clip(1e-7)).mean()),
            "calibration_error": report.calibration(answers)[0],
        }
        write(file, found)


def rates(rounds: int = 3) -> None:
    """Sentences a second of the tutorial's own loop and of the defaults, on the same encoder."""
    import measure
    import model as models
    from work import make_sentences

    rows, found = make_sentences(), []
    for number in range(rounds):
        found.append({})
        for name, size, steps in (("tutorial's loop", 16, 4), ("this project", 32, 20)):
            model, *_ = models.load_model("builtin", ["negative", "positive"], None)
            rate = measure.measure(name, model, rows, size, steps, 0.0)["sentences_per_second"]
            found[-1][name] = rate
        print(f"round {number + 1}: {found[-1]}", file=sys.stderr)
    write(RESULTS / "rates.json", {"rounds": found, "machine": measure.machine()})


def write(file: Path, found: dict) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_suffix(".aside")
    aside.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    aside.replace(file)


# ---- The tables ----


def read() -> list[dict]:
    return [json.loads(file.read_text("utf-8")) for file in sorted(RESULTS.glob("*-[0-9]*.json"))]


def table(runs: list[dict]) -> str:
    """A line a recipe: what was seen, how long it took, and how good it is over its seeds."""
    lines = [
        f"{'recipe':28}{'sentences':>10}{'min':>6}  {'accuracy':18}{'best':>7}{'worst':>7}{'nll':>7}{'ece':>7}{'avg':>8}"
    ]
    for name in dict.fromkeys(run["recipe"] for run in runs):
        own = [run for run in runs if run["recipe"] == name]
        accuracies = [100 * run["accuracy"] for run in own]
        deviation = statistics.stdev(accuracies) if len(own) > 1 else 0
        mean = statistics.mean
        averaged = [100 * run["averaged"]["accuracy"] for run in own if run["averaged"]]
        lines.append(
            f"{name:28}{mean(run['sentences'] for run in own):10,.0f}{mean(run['minutes'] for run in own):6.0f}  "
            f"{mean(accuracies):.2f} ± {deviation:.2f} ({len(own)})  {max(accuracies):7.2f}{min(accuracies):7.2f}"
            f"{mean(run['loss'] for run in own):7.3f}{mean(run['calibration_error'] for run in own):7.3f}"
            f"{mean(averaged) if averaged else 0:8.2f}"
        )
    return "\n".join(lines) + "\n"


def start(name: str, seed: int) -> None:
    """A run in a process of its own, as a recipe changes what it finds in finetune.py."""
    subprocess.run([sys.executable, __file__, "--run", name, str(seed)], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipes", nargs="*")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--dev", action="store_true", help="the models of these recipes, on dev")
    parser.add_argument("--rates", action="store_true", help="of the tutorial's loop, and of ours")
    parser.add_argument("--run", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.run:
        train(given.run[0], int(given.run[1]))
        return
    if given.rates:
        rates()
    for seed in given.seeds:
        for name in given.recipes:
            if not (RESULTS / f"{name}-{seed}.json").exists():
                start(name, seed)
    if given.dev:
        on_dev(given.recipes)
    print(table(read()), end="")


if __name__ == "__main__":
    main()
