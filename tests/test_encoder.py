"""A wrong or damaged checkpoint is refused, so that no encoder trains on random weights."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from harness.checks import check_done, check_refused, load_text
from harness.helpers import block, copy_tokenizer, save_tiny
from safetensors.torch import load_file, save_file

import data
from inputs import encoder
from system.console import InputError


def edit_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


# ---- Refused checkpoints ----


def bert_config_on_distilbert_weights(folder: Path) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    edit_config(save_tiny(folder), model_type="bert", num_attention_heads=2, **sizes)


def config_with_fewer_layers(folder: Path) -> None:
    edit_config(save_tiny(folder), n_layers=1)


def config_without_layers(folder: Path) -> None:
    edit_config(save_tiny(folder), n_layers=0)


def non_finite_weights(folder: Path) -> None:
    weights = load_file(save_tiny(folder) / "model.safetensors")
    weights["distilbert.transformer.layer.0.ffn.lin1.bias"][3] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def set_max_length(folder: Path, max_length: object) -> None:
    settings = save_tiny(folder) / "tokenizer_config.json"
    changed = json.loads(settings.read_text()) | {"model_max_length": max_length}
    settings.write_text(json.dumps(changed))


def max_length_of_two(folder: Path) -> None:
    set_max_length(folder, 2)


def max_length_as_text(folder: Path) -> None:
    set_max_length(folder, "64")


def config_with_wrong_width(folder: Path) -> None:
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


def small_vocabulary(folder: Path) -> None:
    save_tiny(folder, vocab_size=1000)


MODELS = {
    "config of a different model": (bert_config_on_distilbert_weights, "do not match config.json"),
    "config with fewer layers": (config_with_fewer_layers, "do not match config.json"),
    "config without layers": (config_without_layers, "do not match config.json"),
    "non-finite weights": (non_finite_weights, "outputs that are not finite"),
    "model_max_length of two": (max_length_of_two, "expected a limit of 3 tokens or more"),
    "model_max_length as text": (max_length_as_text, "model_max_length '64'"),
    "config with a wrong width": (config_with_wrong_width, "do not match config.json"),
    "decoder only": (gpt2, "expected an encoder, found"),
    "encoder-decoder": (t5, "expected an encoder, found"),
    "tokenizer of a different model": (small_vocabulary, "the model only 1000"),
}


@pytest.mark.parametrize("make, message", MODELS.values(), ids=MODELS)
def test_a_damaged_or_unsuitable_model_is_refused(in_process, tmp_path, make, message):
    make(tmp_path / "model")
    run = in_process("--model", tmp_path / "model", "--data", "builtin", "--output-dir", "run")
    check_refused(run, tmp_path / "run", message)


def test_max_length_may_reach_but_not_exceed_the_limit_of_the_model(in_process, tmp_path, tiny):
    common = ["--model", tiny, "--data", "builtin", "--output-dir", "run", "--epochs", "1"]
    common += ["--max-train-samples", "64"]
    run = in_process(*common, "--max-length", "65")
    check_refused(run, tmp_path / "run", "--max-length 65: ")
    assert "at most 64 tokens" in run.err
    check_done(in_process(*common, "--max-length", "64"), tmp_path / "run")


def test_a_memory_error_while_a_model_loads_is_not_reported_as_wrong_input(monkeypatch, tiny):
    def raise_memory_error(*_: object, **__: object) -> None:
        raise MemoryError

    auto_class = transformers.AutoModelForSequenceClassification
    monkeypatch.setattr(auto_class, "from_pretrained", raise_memory_error)
    with pytest.raises(MemoryError):
        encoder.load(str(tiny), ["a", "b"], None)


def test_without_label_names_a_checkpoint_needs_a_classification_head(tmp_path, tiny):
    with pytest.raises(InputError, match="the model has no classification head"):
        encoder.load(str(tiny), None, None)
    trained = encoder.load(str(tiny), ["bad", "good"], None)
    encoder.save(trained.model, trained.tokenizer, tmp_path / "trained")
    reloaded = encoder.load(str(tmp_path / "trained"), None, None)
    assert reloaded.model.config.id2label == {0: "bad", 1: "good"}
    for name, value in reloaded.model.state_dict().items():
        assert torch.equal(value, trained.model.state_dict()[name])
    edit_config(tmp_path / "trained", problem_type="multi_label_classification")
    with pytest.raises(InputError, match="a head that gives one label per text"):
        encoder.load(str(tmp_path / "trained"), None, None)


# ---- Loaded checkpoints ----


def test_an_fp16_checkpoint_loads_in_float32_with_the_label_names(tmp_path, tiny):
    auto_class = transformers.AutoModelForSequenceClassification
    fp16_model = auto_class.from_pretrained(tiny, dtype=torch.float16)
    fp16_model.save_pretrained(tmp_path / "fp16")
    copy_tokenizer(tmp_path / "fp16")
    model, _, length, _ = encoder.load(str(tmp_path / "fp16"), ["bad", "good"], None)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.config.id2label == {0: "bad", 1: "good"} and length == 64


def test_the_conversion_on_the_page_keeps_every_weight_of_a_pickle_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = save_tiny(tmp_path / "ettin-68m")
    weights = load_file(folder / "model.safetensors")
    # A pickle file can hold the same tensor under two names.
    embeddings = weights["distilbert.embeddings.word_embeddings.weight"]
    torch.save(weights | {"vocab_projector.weight": embeddings}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    _, code, _ = block("convert").split("'")
    exec(code)
    converted = load_file(folder / "model.safetensors")
    assert converted.keys() == {*weights, "vocab_projector.weight"}
    assert all(torch.equal(converted[key], value) for key, value in weights.items())
    assert encoder.load("ettin-68m", ["bad", "good"], None).has_new_head


def test_a_head_is_kept_only_if_its_labels_have_the_same_order(tmp_path, tiny):
    labels = ["negative", "positive"]
    swapped = transformers.AutoModelForSequenceClassification.from_pretrained(tiny)
    swapped.config.id2label = {0: "positive", 1: "negative"}
    swapped.config.label2id = {"positive": 0, "negative": 1}
    swapped.classifier.bias.data.copy_(torch.tensor([5.0, -5.0]))
    swapped.save_pretrained(tmp_path / "swapped")
    copy_tokenizer(tmp_path / "swapped")
    loaded, *_, has_new_head = encoder.load(str(tmp_path / "swapped"), labels, None)
    assert has_new_head
    assert loaded.classifier.bias.tolist() == [0, 0]
    assert not torch.equal(loaded.pre_classifier.weight, swapped.pre_classifier.weight)
    expected, body = swapped.distilbert.state_dict(), loaded.distilbert.state_dict()
    assert all(torch.equal(value, body[key]) for key, value in expected.items())

    kept, *_, has_new_head = encoder.load(str(tmp_path / "swapped"), labels[::-1], None)
    assert not has_new_head
    assert kept.classifier.bias.tolist() == [5, -5]


def test_a_head_without_label_names_is_kept_for_ids_and_not_for_names(tmp_path, tiny):
    unnamed = transformers.AutoModelForSequenceClassification.from_pretrained(tiny, num_labels=3)
    unnamed.classifier.bias.data.copy_(torch.tensor([5.0, 0.0, -5.0]))
    unnamed.save_pretrained(tmp_path / "unnamed")
    copy_tokenizer(tmp_path / "unnamed")
    kept, *_, has_new_head = encoder.load(str(tmp_path / "unnamed"), ["0", "1", "2"], None)
    assert not has_new_head and kept.classifier.bias.tolist() == [5, 0, -5]
    assert kept.config.id2label == {0: "0", 1: "1", 2: "2"}
    for labels in (["bad", "fair", "good"], ["1", "2", "3"], ["0", "1"], ["0", "1", "2", "3"]):
        model, *_, has_new_head = encoder.load(str(tmp_path / "unnamed"), labels, None)
        assert has_new_head and model.classifier.bias.tolist() == [0] * len(labels)


def test_a_config_that_requests_extra_outputs_trains(in_process, tmp_path):
    outputs = {"return_dict": False, "output_attentions": True, "output_hidden_states": True}
    edit_config(save_tiny(tmp_path / "model"), **outputs)
    flags = ["--data", "builtin", "--max-train-samples", "32", "--epochs", "1"]
    run = in_process("--model", "model", *flags, "--output-dir", "run")
    check_done(run, tmp_path / "run")


def test_the_fixed_padding_to_128_of_the_builtin_tokenizer_is_switched_off(tmp_path):
    content = "text,label\n" + "a good film,1\na bad film that is far too long,0\n" * 5
    text = load_text(tmp_path, "a.csv", content)
    tokenizer = encoder.load("builtin", text.labels, None).tokenizer
    tokens = data.tokenize_split(text, "train", tokenizer, 8)
    assert set(tokens.lengths) == {5, 8}
    tokenizer.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "tokenizer.json").read_text())["padding"] is None


# ---- Saved models ----


def test_a_saved_model_has_the_names_that_transformers_4_reads(tmp_path):
    """Transformers 4.57 reads these; without them it fails, or rotates by its own defaults."""
    ids = {"pad_token_id": 0, "cls_token_id": 101, "sep_token_id": 102}
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    config = transformers.ModernBertConfig(num_hidden_layers=2, **sizes, **ids, vocab_size=30522)
    config.rope_parameters["sliding_attention"]["rope_theta"] = 12345.0
    transformers.ModernBertForMaskedLM(config).save_pretrained(tmp_path / "first")
    copy_tokenizer(tmp_path / "first")
    tokenizer_config = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]"}
    (tmp_path / "first" / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    loaded = encoder.load(str(tmp_path / "first"), ["bad", "good"], 48)
    encoder.save(loaded.model, loaded.tokenizer, tmp_path / "second")
    saved, tokenizer = (
        json.loads((tmp_path / "second" / name).read_text())
        for name in ("config.json", "tokenizer_config.json")
    )
    assert (saved["global_rope_theta"], saved["local_rope_theta"]) == (160_000, 12_345)
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert tokenizer["model_max_length"] == 48 and "max_length" not in tokenizer
    again = encoder.load(str(tmp_path / "second"), None, None)
    assert again.max_length == 48 and again.model.config.rope_parameters == config.rope_parameters
    # This saved file is what a second save writes.
    encoder.save(again.model, again.tokenizer, tmp_path / "third")
    for file in (tmp_path / "second").iterdir():
        assert (tmp_path / "third" / file.name).read_bytes() == file.read_bytes(), file.name


@pytest.mark.parametrize(
    "kind", ["albert", "bert", "deberta-v2", "distilbert", "electra", "modernbert", "roberta"]
)
def test_the_dropout_setting_reaches_every_part_of_an_encoder_and_changes_no_weight(tmp_path, kind):
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 64, "vocab_size": 30522, "pad_token_id": 0}
    config = transformers.AutoConfig.for_model(kind, **sizes)
    # Some encoders have no dropout by default.
    dropouts = [key for key, value in config.to_dict().items() if "dropout" in key]
    for key in dropouts:
        setattr(config, key, 0.3)
    transformers.AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    copy_tokenizer(tmp_path)
    ids = torch.arange(5, 205).reshape(20, 10)

    def trained(dropout: float | None) -> tuple[dict[str, torch.Tensor], bool]:
        """The weights, and True if two forward passes of training are alike."""
        torch.manual_seed(0)
        model = encoder.load(str(tmp_path), ["a", "b"], None, dropout).model.train()
        assert {getattr(model.config, key) for key in dropouts} == {
            0.3 if dropout is None else dropout
        }
        first, second = (model(input_ids=ids).logits for _ in range(2))
        return model.state_dict(), torch.equal(first, second)

    (weights, is_alike), (others, repeats) = trained(0.0), trained(None)
    assert is_alike and not repeats
    assert all(torch.equal(weights[name], others[name]) for name in weights)


def test_a_dropout_that_an_encoder_does_not_have_is_refused(tiny):
    config = transformers.AutoConfig.from_pretrained(tiny)
    for key in [key for key in vars(config) if "dropout" in key]:
        delattr(config, key)
    # A key that is no share stays.
    config.token_dropout = True
    with pytest.raises(InputError, match=r"tiny: config\.json has no dropout to change; leave out"):
        encoder._set_dropout(config, 0.1, "tiny")
    assert config.token_dropout is True


def test_the_tokenizer_of_a_model_without_segments_does_not_return_them(tmp_path, tiny):
    loaded = encoder.load(str(tiny), ["bad", "good"], None)
    encoder.save(loaded.model, loaded.tokenizer, tmp_path / "saved")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert set(tokenizer("a", "b")) == {"input_ids", "attention_mask"}
