"""The Hub can read the model card, which has scores and names and no local paths."""

import dataclasses

import huggingface_hub

from outputs import model_card
from training import record as records


def test_huggingface_hub_reads_a_model_card_without_local_paths(trained):
    card = huggingface_hub.ModelCard.load(trained.model_folder / "README.md")
    accuracy, macro_f1 = card.data.eval_results
    assert accuracy.metric_type == "accuracy" and accuracy.dataset_split == "validation"
    assert accuracy.metric_value == trained.metrics["accuracy"]
    assert macro_f1.metric_type == "f1" and macro_f1.dataset_split == "validation"
    assert macro_f1.metric_value == trained.metrics["macro_f1"]
    assert card.data.library_name == "transformers" and card.data.metrics == ["accuracy", "f1"]
    assert card.data.pipeline_tag == "text-classification"
    assert str(trained.folder.parent) not in str(card)
    for excerpt in ("`learning_rate`: 0.01", "`negative`, `positive`", "](curves.png)"):
        assert excerpt in card.text
    assert (trained.model_folder / "curves.png").exists()


def test_the_card_of_the_defaults_names_base_model_license_and_data_set(trained):
    record = records.read(trained.folder)
    record["settings"] |= {"model": "distilbert/distilbert-base-uncased", "data": "sst2"}
    record["result"] |= {"test_accuracy": 0.75, "macro_f1": 0.5}
    record["sentences"]["test"] = 4
    card = huggingface_hub.ModelCard(model_card.make(record))
    assert card.data.base_model == "distilbert/distilbert-base-uncased"
    assert card.data.license == "apache-2.0" and card.data.datasets == ["nyu-mll/glue"]
    scores = [
        (result.dataset_type, result.dataset_config, result.dataset_split, result.metric_type)
        for result in card.data.eval_results
    ]
    glue = ("nyu-mll/glue", "sst2")
    assert scores == [
        (*glue, "validation", "accuracy"), (*glue, "validation", "f1"), (*glue, "test", "accuracy")
    ]  # fmt: skip
    record["settings"]["model"] = "builtin"
    card = huggingface_hub.ModelCard(model_card.make(record))
    assert card.data.base_model == "sentence-transformers/all-MiniLM-L6-v2"
    assert dataclasses.asdict(card.data.eval_results[0])["metric_value"] == 40 / 43


def test_the_recipe_lists_exactly_the_settings_that_affect_the_result(trained):
    card = model_card.make(records.read(trained.folder))
    for name in ("epochs", "batch_size", "seed", "precision", "keep", "max_length"):
        assert f"- `{name}`: " in card, name
    for name in ("output_dir", "resume", "log_every", "device", "micro_batch_size", "tensorboard"):
        assert f"`{name}`" not in card, name


def test_a_run_of_an_earlier_version_without_macro_f1_has_a_card(trained):
    record = records.read(trained.folder)
    del record["result"]["macro_f1"]
    card = huggingface_hub.ModelCard(model_card.make(record))
    assert card.data.metrics == ["accuracy"] and "macro-F1" not in card.text
    (result,) = card.data.eval_results
    assert result.metric_type == "accuracy"
