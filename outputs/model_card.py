"""Make the model card of a run: text and metadata for the Hub's page and search."""

import re
from collections.abc import Iterator

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from inputs import hub
from system.console import plural
from training import settings as rules
from training.scores import accuracy_line

# The setting `model` → its Hub id, for models with LICENSE.
MODELS = {
    "builtin": "sentence-transformers/all-MiniLM-L6-v2",
    hub.DEFAULTS["model"]: hub.DEFAULTS["model"],
}
LICENSE = "apache-2.0"
TEXT = """
# {title}

A text classifier with {classes}: {base}, fine-tuned on {train:,} sentences of {data}.

## Evaluation

{scores}

![Loss, accuracy and learning rate over the steps](curves.png)

## Training

{recipe}

## Limitations

{limits}

## Usage

```python
from transformers import pipeline

classify = pipeline("text-classification", model="path/to/this/folder", truncation=True)
print(classify("your own text"))
```
"""


def make(record: dict) -> str:
    """The model card of a complete run, with the Hub's metadata, without times or paths."""
    settings, result, sentences = record["settings"], record["result"], record["sentences"]
    base = MODELS.get(settings["model"]) or _id_of(settings["model"], "model")
    data = _id_of(hub.SHORT_NAMES.get(settings["data"], settings["data"]), "data")
    base_name, data_name = base or _last(settings["model"]), data or _last(settings["data"])
    title = f"{_last(base_name)} on {_last(data_name)}"
    repository, _, config = data_name.partition(":")

    def score(name: str, metric: str, label: str, split: str = "validation") -> EvalResult:
        options = {"dataset_config": config or None, "dataset_split": split, "metric_name": label}
        task = "text-classification"
        return EvalResult(task, repository, data_name, metric, result[name], **options)

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
        scores="\n".join(f"- {line}" for line in _scores(result, sentences)),
        recipe="\n".join(f"- {line}" for line in _recipe(settings, record["versions"])),
        limits="\n".join(f"- {line}" for line in _limits(settings, data_name)),
    )
    return str(ModelCard(f"---\n{metadata.to_yaml()}\n---\n{text}"))


def _scores(result: dict, sentences: dict) -> Iterator[str]:
    yield f"Validation split: {accuracy_line(result, sentences['validation'])}."
    if "macro_f1" in result:
        yield f"Validation split: macro-F1 {result['macro_f1']:.4f}, the mean F1 of all classes."
    points = 100 * result["calibration_error"]
    yield f"Expected calibration error: {points:.1f} points between probability and accuracy."
    if "test_accuracy" in result:
        size = f"{sentences['test']:,} {plural('sentence', sentences['test'])}"
        yield f"Test split ({size}, used once, at the end): accuracy {result['test_accuracy']:.4f}."


def _recipe(settings: dict, versions: dict) -> Iterator[str]:
    for name, value in settings.items():
        is_named = name in ("model", "data")
        if rules.affects(name) == rules.RESULT and not is_named and value is not None:
            yield f"`{name}`: {', '.join(value) if isinstance(value, list) else value}"
    for name in ("torch", "transformers"):
        yield f"{name} {versions[name]}"


def _limits(settings: dict, data_name: str) -> Iterator[str]:
    if settings["keep"] != "last" and settings["epochs"] > 1:
        yield (
            f"The best of {settings['epochs']} epochs was chosen by its validation score. "
            "Scores on new text may be slightly lower."
        )
    yield (
        f"The model was evaluated on {data_name} only. Text of another kind, language or class "
        "still gets one of these labels."
    )
    yield f"The model reads the first {settings['max_length']} tokens of a text."
    yield "The model repeats the errors and omissions of its training data."


def _id_of(name: str, part: str) -> str | None:
    """`name` if it is an id on the Hub, else None."""
    repository = name.partition(":")[0]
    is_on_hub = hub.is_needed(part, name) and "/" in name and hub.is_id(repository)
    return name if is_on_hub else None


def _last(name: str) -> str:
    """The last part of a path or an id, because a card must not hold a machine's path."""
    return re.split(r"[/\\]", name.rstrip("/\\"))[-1] or name


def _classes(names: list[str]) -> str:
    listed = ", ".join(f"`{name}`" for name in names[:10])
    return f"{len(names)} classes ({listed}{', …' * (len(names) > 10)})"
