"""A run's record in, its model card out: what the Hub shows of a model, and searches for."""

import re
from collections.abc import Iterator

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from inputs import hub

# What is known by another name on the Hub than here, and under which license it is there.
MODELS = {
    "builtin": "sentence-transformers/all-MiniLM-L6-v2",
    hub.DEFAULTS["model"]: hub.DEFAULTS["model"],
}
LICENSE = "apache-2.0"  # Of both.
NOT_RECIPE = {  # Settings that have no part in what a model is.
    *("model", "data", "output_dir", "resume", "log_every", "checkpoint_minutes", "tensorboard"),
    *("device", "compile", "micro_batch_size"),
}


TEXT = """
# {title}

{base}, fine-tuned to tell {classes} apart, on {train:,} sentences of {data}.

## How good it is

On {validation:,} validation sentences: {accuracy}.
{more}
![Loss, accuracy and learning rate over the steps](curves.png)

## How it was trained

{recipe}

## What it is not for

{limits}

## How to use it

```python
from transformers import pipeline

classify = pipeline("text-classification", model="the folder of this file")
print(classify("a text of your own"))
```
"""


def make(record: dict) -> str:
    """The model card of a complete run, with the Hub's metadata at its top; no times, no paths.

    Args:
        record: as in run.json.
    """
    settings, result, sentences = record["settings"], record["result"], record["sentences"]
    base = MODELS.get(settings["model"]) or _id_of(settings["model"], "model")
    data = _id_of(hub.SHORT_NAMES.get(settings["data"], settings["data"]), "data")
    base_name, data_name = base or _last(settings["model"]), data or _last(settings["data"])
    title = f"{_last(base_name)} on {_last(data_name)}"
    scores = [("validation", "accuracy", "Accuracy", result["accuracy"])]
    if "macro_f1" in result:
        scores.append(("validation", "f1", "Macro-F1", result["macro_f1"]))
    if "test_accuracy" in result:
        scores.append(("test", "accuracy", "Accuracy", result["test_accuracy"]))
    repository, _, config = data_name.partition(":")
    metadata = ModelCardData(
        license=LICENSE if settings["model"] in MODELS else "unknown",
        base_model=base,
        datasets=[repository] if data else None,
        metrics=list(dict.fromkeys(kind for _, kind, *_ in scores)),
        library_name="transformers",
        pipeline_tag="text-classification",
        model_name=title,
        eval_results=[
            EvalResult(
                task_type="text-classification",
                dataset_type=repository,
                dataset_name=data_name,
                dataset_config=config or None,
                dataset_split=split,
                metric_type=kind,
                metric_name=name,
                metric_value=value,
            )
            for split, kind, name, value in scores
        ],
    )
    text = TEXT.format(
        title=title,
        base=base_name,
        data=data_name,
        classes=_classes(record["labels"]),
        train=sentences["train"],
        validation=sentences["validation"],
        accuracy=in_words(result, sentences["validation"]),
        more="".join(f"{line}\n" for line in _more(result, sentences)),
        recipe="\n".join(f"- {line}" for line in _recipe(settings, record["versions"])),
        limits="\n".join(f"- {line}" for line in _limits(settings, data_name)),
    )
    return str(ModelCard(f"---\n{metadata.to_yaml()}\n---\n{text}"))


def in_words(result: dict, sentences: int) -> str:
    """The accuracy of a result and how sure it is, in one line."""
    accuracy, (low, high) = result["accuracy"], result["accuracy_interval"]
    half = (high - low) / 2
    # Near 0 and 1 the interval lies on one side.
    about = f" ± {100 * half:.1f} points" if half < accuracy < 1 - half else ""
    ends = f"{low:.4f} to {high:.4f}, the 95 % interval of {sentences:,} sentences"
    return f"accuracy {accuracy:.4f}{about} ({ends})"


def _more(result: dict, sentences: dict) -> Iterator[str]:
    if "macro_f1" in result:
        yield f"Macro-F1 {result['macro_f1']:.4f}: the mean of F1 over classes, rare or not."
    points = 100 * result["calibration_error"]
    yield f"Its probabilities are {points:.1f} points off (expected calibration error)."
    if "test_accuracy" in result:
        yield (
            f"On {sentences['test']:,} test sentences, by which nothing was chosen: accuracy "
            f"{result['test_accuracy']:.4f}."
        )


def _recipe(settings: dict, versions: dict) -> Iterator[str]:
    for name, value in settings.items():
        if name not in NOT_RECIPE and value is not None:
            yield f"`{name}`: {', '.join(value) if isinstance(value, list) else value}"
    for name in ("torch", "transformers"):
        yield f"{name} {versions[name]}"


def _limits(settings: dict, data_name: str) -> Iterator[str]:
    if settings["keep"] != "last" and settings["epochs"] > 1:
        yield (
            f"Of {settings['epochs']} epochs the best on these validation sentences was kept: on "
            "others it may do a little worse."
        )
    yield (
        f"It was tried on {data_name} alone. Sentences of another kind or language, or of none of "
        "these classes, get one of these labels all the same."
    )
    yield f"Of a text it reads {settings['max_length']} tokens at most."
    yield "What the texts that it learned from get wrong or leave out, it has learned too."


def _id_of(name: str, part: str) -> str | None:
    """The name where it is one on the Hub, else None."""
    repository = name.partition(":")[0]
    is_there = hub.is_needed(part, name) and "/" in name and hub.is_id(repository)
    return name if is_there else None


def _last(name: str) -> str:
    """The last part of a path or an id: a card says nothing of where things lie on a machine."""
    return re.split(r"[/\\]", name.rstrip("/\\"))[-1] or name


def _classes(names: list[str]) -> str:
    few = ", ".join(f"`{name}`" for name in names[:10])
    return few if len(names) <= 10 else f"{len(names)} classes ({few}, …)"
