"""A run's record → its model card: what the Hub shows of a model, and searches for."""

import re
from collections.abc import Iterator

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from inputs import hub
from training import settings as rules
from training.scores import accuracy_line

# The names on the Hub of models with another name here, and their license there.
MODELS = {
    "builtin": "sentence-transformers/all-MiniLM-L6-v2",
    hub.DEFAULTS["model"]: hub.DEFAULTS["model"],
}
LICENSE = "apache-2.0"
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
    """The model card of a complete run, with Hub metadata on top; no times, no paths."""
    settings, result, sentences = record["settings"], record["result"], record["sentences"]
    base = MODELS.get(settings["model"]) or _id_of(settings["model"], "model")
    data = _id_of(hub.SHORT_NAMES.get(settings["data"], settings["data"]), "data")
    base_name, data_name = base or _last(settings["model"]), data or _last(settings["data"])
    title = f"{_last(base_name)} on {_last(data_name)}"
    repository, _, config = data_name.partition(":")

    def score(name: str, kind: str, shown: str, split: str = "validation") -> EvalResult:
        place = {"dataset_config": config or None, "dataset_split": split, "metric_name": shown}
        task = "text-classification"
        return EvalResult(task, repository, data_name, kind, result[name], **place)

    scores = [score("accuracy", "accuracy", "Accuracy")]
    if "macro_f1" in result:
        scores.append(score("macro_f1", "f1", "Macro-F1"))
    if "test_accuracy" in result:
        scores.append(score("test_accuracy", "accuracy", "Accuracy", "test"))
    metadata = ModelCardData(
        license=LICENSE if settings["model"] in MODELS else "unknown",
        base_model=base,
        datasets=[repository] if data else None,
        metrics=list(dict.fromkeys(entry.metric_type for entry in scores)),
        library_name="transformers",
        pipeline_tag="text-classification",
        model_name=title,
        eval_results=scores,
    )
    text = TEXT.format(
        title=title,
        base=base_name,
        data=data_name,
        classes=_classes(record["labels"]),
        train=sentences["train"],
        validation=sentences["validation"],
        accuracy=accuracy_line(result, sentences["validation"]),
        more="".join(f"{line}\n" for line in _more(result, sentences)),
        recipe="\n".join(f"- {line}" for line in _recipe(settings, record["versions"])),
        limits="\n".join(f"- {line}" for line in _limits(settings, data_name)),
    )
    return str(ModelCard(f"---\n{metadata.to_yaml()}\n---\n{text}"))


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
        is_named = name in ("model", "data")  # In the card's first sentence.
        if rules.affects(name) == rules.RESULT and not is_named and value is not None:
            yield f"`{name}`: {', '.join(value) if isinstance(value, list) else value}"
    for name in ("torch", "transformers"):
        yield f"{name} {versions[name]}"


def _limits(settings: dict, data_name: str) -> Iterator[str]:
    if settings["keep"] != "last" and settings["epochs"] > 1:
        yield (
            f"The best of {settings['epochs']} epochs on these validation sentences was kept: on "
            "others it may do a little worse."
        )
    yield (
        f"It was tried on {data_name} only. Sentences of another kind or language, or of none of "
        "these classes, get one of these labels all the same."
    )
    yield f"It reads at most {settings['max_length']} tokens of a text."
    yield "It repeats the errors and omissions of the texts that it learned from."


def _id_of(name: str, part: str) -> str | None:
    """The name where it is one on the Hub, else None."""
    repository = name.partition(":")[0]
    is_there = hub.is_needed(part, name) and "/" in name and hub.is_id(repository)
    return name if is_there else None


def _last(name: str) -> str:
    """The last part of a path or an id, because a card holds no path of a machine."""
    return re.split(r"[/\\]", name.rstrip("/\\"))[-1] or name


def _classes(names: list[str]) -> str:
    few = ", ".join(f"`{name}`" for name in names[:10])
    return few if len(names) <= 10 else f"{len(names)} classes ({few}, …)"
