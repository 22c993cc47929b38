"""A checkpoint loads as the encoder that it is, or is refused: none trains on random weights."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from harness.checks import check_done, check_refused, load_text
from harness.helpers import copy_tokenizer, save_tiny

import data
from inputs import encoder
from system.console import InputError


def edit_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


# ---- Refused ----


def bert_config_on_distilbert_weights(folder: Path) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    edit_config(save_tiny(folder), model_type="bert", num_attention_heads=2, **sizes)


def config_of_fewer_layers(folder: Path) -> None:
    edit_config(save_tiny(folder), n_layers=1)


def config_of_no_layers(folder: Path) -> None:
    edit_config(save_tiny(folder), n_layers=0)


def weights_not_finite(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(save_tiny(folder) / "model.safetensors")
    weights["distilbert.transformer.layer.0.ffn.lin1.bias"][3] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def limit(folder: Path, most: object) -> None:
    settings = save_tiny(folder) / "tokenizer_config.json"
    changed = json.loads(settings.read_text()) | {"model_max_length": most}
    settings.write_text(json.dumps(changed))


def limit_of_two(folder: Path) -> None:
    limit(folder, 2)


def limit_in_words(folder: Path) -> None:
    limit(folder, "64")


def config_of_another_width(folder: Path) -> None:
    edit_config(save_tiny(folder), hidden_dim=128)


def gpt2(folder: Path) -> None:
    sizes = {"n_embd": 32, "n_layer": 1, "n_head": 2}
    config = transformers.GPT2Config(vocab_size=30522, **sizes)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    copy_tokenizer(folder)


def t5(folder: Path) -> None:
    sizes = {"d_model": 32, "d_ff": 32, "d_kv": 16, "num_layers": 1, "num_heads": 2}
    config = transformers.T5Config(vocab_size=30522, **sizes)
    transformers.T5ForConditionalGeneration(config).save_pretrained(folder)
    copy_tokenizer(folder)


def too_small_a_vocabulary(folder: Path) -> None:
    save_tiny(folder, vocab_size=1000)


MODELS = {
    "config of another model": (bert_config_on_distilbert_weights, "do not belong together"),
    "config of fewer layers": (config_of_fewer_layers, "do not belong together"),
    "config of no layers": (config_of_no_layers, "do not belong together"),
    "weights that are not finite": (weights_not_finite, "numbers that are not finite"),
    "a limit of two tokens": (limit_of_two, "takes too few tokens"),
    "a limit that is a word": (limit_in_words, "model_max_length '64'"),
    "config of another width": (config_of_another_width, "do not belong together"),
    "decoder only": (gpt2, "cannot classify padded batches"),
    "encoder and decoder": (t5, "cannot classify padded batches"),
    "tokenizer of another model": (too_small_a_vocabulary, "do not belong together"),
}


@pytest.mark.parametrize("make, message", MODELS.values(), ids=MODELS)
def test_a_model_that_would_be_wrong_is_refused(in_process, tmp_path, make, message):
    make(tmp_path / "model")
    run = in_process("--model", tmp_path / "model", "--data", "builtin", "--output-dir", "run")
    check_refused(run, tmp_path / "run", message)


def test_a_maximal_length_above_the_models_is_refused_and_its_limit_runs(
    in_process, tmp_path, tiny
):
    common = ["--model", tiny, "--data", "builtin", "--output-dir", "run", "--epochs", "1"]
    common += ["--max-train-samples", "64"]
    run = in_process(*common, "--max-length", "65")
    check_refused(run, tmp_path / "run", "--max-length 65: ")
    assert "at most 64 tokens" in run.err
    check_done(in_process(*common, "--max-length", "64"), tmp_path / "run")


def test_a_lack_of_memory_while_a_model_is_loaded_is_no_wrong_input(monkeypatch, tiny):
    def no_memory(*_: object, **__: object) -> None:
        raise MemoryError

    auto = transformers.AutoModelForSequenceClassification
    monkeypatch.setattr(auto, "from_pretrained", no_memory)
    with pytest.raises(MemoryError):
        encoder.load(str(tiny), ["a", "b"], None)


def test_without_labels_only_a_checkpoint_with_a_head_of_its_own_is_loaded(tmp_path, tiny):
    with pytest.raises(InputError, match="it has no classification head, so it cannot answer"):
        encoder.load(str(tiny), None, None)
    trained = encoder.load(str(tiny), ["bad", "good"], None)
    encoder.save(trained.model, trained.tokenizer, tmp_path / "trained")
    again = encoder.load(str(tmp_path / "trained"), None, None)
    assert again.model.config.id2label == {0: "bad", 1: "good"}
    for name, value in again.model.state_dict().items():
        assert torch.equal(value, trained.model.state_dict()[name])
    edit_config(tmp_path / "trained", problem_type="multi_label_classification")
    with pytest.raises(InputError, match="no probabilities of classes that rule out each other"):
        encoder.load(str(tmp_path / "trained"), None, None)


# ---- Loaded as it should be ----


def test_a_checkpoint_in_fp16_trains_in_float32_and_keeps_label_names(tmp_path, tiny):
    auto = transformers.AutoModelForSequenceClassification
    half = auto.from_pretrained(tiny, dtype=torch.float16)
    half.save_pretrained(tmp_path / "half")
    copy_tokenizer(tmp_path / "half")
    model, _, length = encoder.load(str(tmp_path / "half"), ["bad", "good"], None)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.config.id2label == {0: "bad", 1: "good"} and length == 64


def test_a_head_for_the_same_labels_is_kept_and_one_for_others_is_not(tmp_path, tiny, capsys):
    labels = ["negative", "positive"]
    other = transformers.AutoModelForSequenceClassification.from_pretrained(tiny)
    other.config.id2label = {0: "positive", 1: "negative"}
    other.config.label2id = {"positive": 0, "negative": 1}
    other.classifier.bias.data.copy_(torch.tensor([5.0, -5.0]))
    other.save_pretrained(tmp_path / "other")
    copy_tokenizer(tmp_path / "other")
    loaded = encoder.load(str(tmp_path / "other"), labels, None).model
    assert "the classification head is new" in capsys.readouterr().err
    assert loaded.classifier.bias.tolist() == [0, 0]
    assert not torch.equal(loaded.pre_classifier.weight, other.pre_classifier.weight)
    expected, body = other.distilbert.state_dict(), loaded.distilbert.state_dict()
    assert all(torch.equal(value, body[key]) for key, value in expected.items())

    kept = encoder.load(str(tmp_path / "other"), labels[::-1], None).model
    assert "the classification head is new" not in capsys.readouterr().err
    assert kept.classifier.bias.tolist() == [5, -5]


def test_a_config_that_asks_for_other_outputs_trains(in_process, tmp_path):
    asks = {"return_dict": False, "output_attentions": True, "output_hidden_states": True}
    edit_config(save_tiny(tmp_path / "model"), **asks)
    flags = ["--data", "builtin", "--max-train-samples", "32", "--epochs", "1"]
    run = in_process("--model", "model", *flags, "--output-dir", "run")
    check_done(run, tmp_path / "run")


def test_a_tokenizer_with_fixed_padding_does_not_pad(tmp_path):
    content = "text,label\n" + "a good film,1\na bad film that is far too long,0\n" * 5
    text = load_text(tmp_path, "a.csv", content)
    tokenizer = encoder.load("builtin", text.labels, None).tokenizer  # Its file says: always 128.
    tokens = data.tokenize_split(text, "train", tokenizer, 8)
    assert set(tokens.lengths) == {5, 8}
    tokenizer.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "tokenizer.json").read_text())["padding"] is None


def test_the_builtin_model_gets_the_learning_rate_of_a_small_one():
    assert encoder.learning_rate("builtin") == 1e-4
    assert encoder.learning_rate("distilbert/distilbert-base-uncased") == 3e-5
