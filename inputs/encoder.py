"""The name of a model → a checked encoder with its tokenizer; saving both to a folder."""

import inspect
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.models.auto import modeling_auto as known

from inputs.encoder_files import find_model
from system.console import InputError, Problem, is_out_of_memory, one_line
from system.disk import replace_folder

DEFAULT_MAX_LENGTH = 512
ENCODERS = "use an encoder such as BERT, DistilBERT or RoBERTa"


class Encoder(NamedTuple):
    """A model that classifies text, on the CPU in evaluation mode."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    max_length: int  # tokens
    has_new_head: bool  # random weights


def load(
    name: str, labels: Sequence[str] | None, max_length: int | None, dropout: float | None = None
) -> Encoder:
    """An encoder in float32 with a classification head for `labels`, and its fast tokenizer.

    The checkpoint's head is kept if it has the same labels in the same order. The weights of a new
    head come from torch's global generator. With labels None the checkpoint must have a head.
    `max_length` None is 512 tokens, or the model's limit if lower. `dropout` None is the model's
    own. InputError if `name` is not an encoder that can classify padded batches.
    """
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    folder = find_model(name)
    config, same_labels = _load_config(folder, name, labels)
    if dropout is not None:
        _set_dropout(config, dropout, name)
    tokenizer = _load_tokenizer(folder, name)
    try:
        model, report = transformers.AutoModelForSequenceClassification.from_pretrained(
            folder,
            config=config,
            dtype="float32",
            use_safetensors=True,
            # _check_weights allows mismatched sizes only in the head.
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            trust_remote_code=False,
        )
    # A damaged checkpoint can raise any error, here and below.
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise _error(name, f"cannot be loaded ({one_line(error)[:300]})") from error
    new_head = _check_weights(model, report, name)
    if new_head and labels is None:
        raise _error(name, "the model has no classification head", "fine-tune the model first")
    if not new_head and not same_labels:
        # The head's rows belong to different classes, or to a different order of them.
        fresh = transformers.AutoModelForSequenceClassification.from_config(config).state_dict()
        prefix = model.base_model_prefix + "."
        head = {key: value for key, value in fresh.items() if not key.startswith(prefix)}
        model.load_state_dict(head, strict=False)
    max_length = _check_lengths(model, tokenizer, name, max_length)
    # transformers' pipeline then cuts at the same length.
    tokenizer.model_max_length = max_length
    # Since transformers 5, DistilBERT has BERT's tokenizer, and ignores its `token_type_ids`.
    if "token_type_ids" not in inspect.signature(model.forward).parameters:
        names = ["input_ids", "attention_mask"]
        tokenizer.model_input_names = tokenizer.init_kwargs["model_input_names"] = names
    return Encoder(model.eval(), tokenizer, max_length, new_head or not same_labels)


def _load_config(
    folder: Path, name: str, labels: Sequence[str] | None
) -> tuple[transformers.PreTrainedConfig, bool]:
    """The config for `labels`; True if the checkpoint has the same labels in the same order."""
    try:
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:
        raise _error(
            name, f"invalid config.json ({one_line(error)[:300]})", "correct it"
        ) from error
    if config.model_type not in known.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES:
        raise _error(name, f"{config.model_type} models cannot classify text", ENCODERS)
    only_decodes = (
        config.model_type in known.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        and config.model_type not in known.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    )
    if only_decodes or config.is_encoder_decoder or getattr(config, "is_decoder", False):
        raise _error(name, f"expected an encoder, found a decoder ({config.model_type})", ENCODERS)
    if labels is None:
        kind, numbers = config.problem_type, sorted(config.id2label)
        if kind not in (None, "single_label_classification") or len(numbers) < 2:
            details = f"(found problem_type {kind}, number of labels {len(numbers)})"
            raise _error(name, f"expected a head that gives one label per text {details}")
        if numbers != list(range(len(numbers))):
            raise _error(name, f"id2label in config.json must count from 0 (found {numbers!s:.50})")
        labels = [str(config.id2label[number]) for number in numbers]
    same_labels = _has_labels(config, labels)
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: number for number, label in enumerate(labels)}
    config.problem_type = "single_label_classification"
    # config.json can ask for outputs that cannot be used, computed or saved here.
    config.return_dict, config.output_attentions, config.output_hidden_states = True, False, False
    return config, same_labels


def _set_dropout(config: transformers.PreTrainedConfig, probability: float, name: str) -> None:
    # Keys differ: attention_dropout in DistilBERT, attention_probs_dropout_prob in BERT. A key that
    # is None takes the value of another key in the model. A key that is True or False is no share.
    values = {key: value for key, value in config.to_dict().items() if "dropout" in key}
    keys = [key for key, value in values.items() if type(value) in (float, int)]
    if not keys:
        raise _error(name, "config.json has no dropout to change", "leave out --dropout")
    for key in keys:
        setattr(config, key, probability)


def _has_labels(config: transformers.PreTrainedConfig, labels: Sequence[str]) -> bool:
    """True if the checkpoint's head has these labels in this order."""
    # transformers names the labels of a head LABEL_0, LABEL_1, … if its author did not.
    unnamed = {number: f"LABEL_{number}" for number in range(len(labels))}
    are_ids = list(labels) == [str(number) for number in unnamed]
    return config.id2label == dict(enumerate(labels)) or (are_ids and config.id2label == unnamed)


def _load_tokenizer(folder: Path, name: str) -> PreTrainedTokenizerFast:
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            folder, use_fast=True, trust_remote_code=False
        )
    except Exception as error:
        raise _error(name, f"the tokenizer cannot be loaded ({one_line(error)[:300]})") from error
    if not tokenizer.is_fast:
        raise _error(name, "missing fast tokenizer (tokenizer.json)", "use another model")
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise _error(name, "the tokenizer's vocabulary is empty", "add the missing files")
    if tokenizer.pad_token_id is None:
        raise _error(name, "the tokenizer has no padding token", "use another model")
    # save_pretrained would write these arguments.
    for argument in ("local_files_only", "max_length", "stride", "truncation_strategy"):
        tokenizer.init_kwargs.pop(argument, None)
    forget_padding(tokenizer)
    return tokenizer


def forget_padding(tokenizer: PreTrainedTokenizerFast) -> None:
    """Unset padding and truncation, so that saved file and cache key depend on no earlier use."""
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.backend_tokenizer.no_truncation()


def encode(
    tokenizer: PreTrainedTokenizerFast,
    texts: Sequence[str],
    pairs: Sequence[str] | None,
    max_length: int,
) -> transformers.BatchEncoding:
    """Texts, or pairs of texts, as at most `max_length` token ids each, unpadded.

    Pairs also get `token_type_ids`, which tell their texts apart, if the model reads them.
    """
    return tokenizer(
        list(texts),
        list(pairs) if pairs is not None else None,
        truncation=True,
        max_length=max_length,
        padding=False,
        return_token_type_ids=pairs is not None and "token_type_ids" in tokenizer.model_input_names,
    )


def _check_weights(model: PreTrainedModel, report: dict, name: str) -> bool:
    """Refuse weights of a different encoder; True if the head is new.

    transformers fills missing weights with random numbers and only prints a warning.
    """
    prefix = model.base_model_prefix + "."
    missing = [*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])]
    lost = sorted(key for key in missing if key.startswith(prefix) and ".pooler." not in key)

    def shape(key: str) -> str:
        return re.sub(r"\d+", "#", key.removeprefix(prefix))

    # An unexpected weight with a known name belongs to a layer that config.json does not count.
    own = {shape(key) for key in model.state_dict() if key.startswith(prefix) and "#" in shape(key)}
    extra = [
        key
        for key in sorted(report["unexpected_keys"])
        if shape(key) in own or (not own and key.startswith(prefix) and "#" in shape(key))
    ]
    if lost or extra:
        example = f"missing {lost[0]}" if lost else f"unexpected {extra[0]}"
        message = f"weights do not match config.json ({len(lost + extra)} in all, first: {example})"
        raise _error(name, message, "use the files of one checkpoint")
    return len(missing) > len(lost)


def _check_lengths(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, name: str, max_length: int | None
) -> int:
    """The maximum number of tokens in a sentence, tried on a padded batch."""
    positions = getattr(model.config, "max_position_embeddings", None) or sys.maxsize
    # RoBERTa numbers its positions from after the padding index.
    for module in model.modules():
        if getattr(module, "num_embeddings", None) == positions and module.padding_idx is not None:
            positions -= module.padding_idx + 1
    try:
        limit = int(min(tokenizer.model_max_length, positions))
    except (TypeError, ValueError, OverflowError):
        limit = 0
    # A text needs two special tokens and one of its own.
    if limit < 3:
        details = f"model_max_length {tokenizer.model_max_length!r}, positions {positions}"
        raise _error(name, f"expected a limit of 3 tokens or more (found {details})")
    if max_length is not None and max_length > limit:
        source = "its positions" if limit == positions else "model_max_length of its tokenizer"
        message = f"{name} takes at most {limit} tokens, by {source}"
        raise InputError(Problem(str(max_length), message, "use a lower value", "--max-length"))
    length = max_length or min(DEFAULT_MAX_LENGTH, limit)
    vocabulary = model.config.vocab_size
    if len(tokenizer) > vocabulary:
        message = f"the tokenizer has {len(tokenizer)} tokens, the model only {vocabulary}"
        raise _error(name, message, "use the files of one checkpoint")
    try:
        batch = tokenizer(["a", "a " * length], truncation=True, max_length=length, padding=True)
        with torch.inference_mode():
            logits = model.eval()(**batch.convert_to_tensors("pt")).logits
    except Exception as error:
        if is_out_of_memory(error):
            raise
        message = f"cannot classify a padded batch of {length} tokens ({one_line(error)[:200]})"
        raise _error(name, message) from error
    if not logits.isfinite().all():
        raise _error(name, "the weights give outputs that are not finite (found nan or inf)")
    return length


def _error(name: str, message: str, remedy: str = "") -> InputError:
    return InputError(Problem(name, message, remedy, "--model"))


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Replace `folder` by the model and its tokenizer, whole or not at all."""

    def fill(new_folder: Path) -> None:
        model.save_pretrained(new_folder)
        # safetensors writes files that only their owner may read.
        for file in new_folder.glob("*.safetensors"):
            file.chmod((new_folder / "config.json").stat().st_mode)
        forget_padding(tokenizer)
        tokenizer.save_pretrained(new_folder)
        _add_old_names(new_folder)

    replace_folder(folder, fill)


def _add_old_names(folder: Path) -> None:
    """Add the names that transformers 4 reads: without them it fails, or takes other values."""
    config_file, tokenizer_file = folder / "config.json", folder / "tokenizer_config.json"
    config, tokenizer = (json.loads(f.read_text("utf-8")) for f in (config_file, tokenizer_file))
    # ModernBERT rotates positions by one base in global attention, by another in local attention.
    bases = config.get("rope_parameters") or {}
    for name, kind in (
        ("global_rope_theta", "full_attention"),
        ("local_rope_theta", "sliding_attention"),
    ):
        if kind in bases:
            config[name] = bases[kind]["rope_theta"]
    if tokenizer["tokenizer_class"] == "TokenizersBackend":
        tokenizer["tokenizer_class"] = "PreTrainedTokenizerFast"
    for file, content in ((config_file, config), (tokenizer_file, tokenizer)):
        file.write_text(json.dumps(content, indent=2) + "\n", "utf-8")
