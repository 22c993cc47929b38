"""The name of a model → a checked encoder with its tokenizer, in memory; and back to a folder."""

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
from system.console import InputError, Problem, is_out_of_memory, one_line, say
from system.disk import replace_folder

LONGEST_BY_DEFAULT = 512
ENCODERS = "name an encoder such as BERT, DistilBERT or RoBERTa"


class Encoder(NamedTuple):
    """A model that classifies text, on the CPU in evaluation mode."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    max_length: int  # Tokens of a sentence.


def learning_rate(name: str) -> float:
    """A learning rate that suits the model; smaller models take more than BERT.

    BERT and DistilBERT: 2e-5 to 5e-5 (Devlin et al. 2019, appendix A.3).
    """
    return 1e-4 if name == "builtin" else 3e-5


def load(name: str, labels: Sequence[str] | None, max_length: int | None) -> Encoder:
    """An encoder in float32 with a classification head for `labels`, and its fast tokenizer.

    The checkpoint's own head is kept if it has the same labels in the same order; the weights of a
    new head come from torch's global generator. With labels None the checkpoint must have a head.
    `max_length` None is 512 tokens, or the model's limit if lower. InputError if `name` is not an
    encoder that can classify padded batches.
    """
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    folder = find_model(name)
    config, same_labels = _load_config(folder, name, labels)
    tokenizer = _load_tokenizer(folder, name)
    try:
        model, report = transformers.AutoModelForSequenceClassification.from_pretrained(
            folder,
            config=config,
            dtype="float32",
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # A head for other labels; others are refused below.
            output_loading_info=True,
            trust_remote_code=False,
        )
    except Exception as error:  # Damage can raise anything.
        if is_out_of_memory(error):
            raise
        raise _error(name, f"cannot be loaded ({one_line(error)[:300]})") from error
    new_head = _check_weights(model, report, name)
    if new_head and labels is None:
        what = "it has no classification head, so it cannot answer"
        raise _error(name, what, "fine-tune it first")
    if not new_head and not same_labels:
        # The rows of its weights mean other classes, or these in another order.
        fresh = transformers.AutoModelForSequenceClassification.from_config(config).state_dict()
        prefix = model.base_model_prefix + "."
        head = {key: value for key, value in fresh.items() if not key.startswith(prefix)}
        model.load_state_dict(head, strict=False)
    if new_head or not same_labels:
        say(
            "the classification head is new: it starts from random weights, and training teaches it"
        )
    max_length = _check_lengths(model, tokenizer, name, max_length)
    return Encoder(model.eval(), tokenizer, max_length)


def _load_config(
    folder: Path, name: str, labels: Sequence[str] | None
) -> tuple[transformers.PreTrainedConfig, bool]:
    """The config for `labels`, and whether the checkpoint's own are the same in the same order."""
    try:
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # Any value of config.json can be wrong in its own way.
        raise _error(name, f"config.json: {one_line(error)[:300]}") from error
    if config.model_type not in known.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES:
        raise _error(name, f"a {config.model_type} model cannot classify text", ENCODERS)
    only_decodes = (
        config.model_type in known.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        and config.model_type not in known.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    )
    if only_decodes or config.is_encoder_decoder or getattr(config, "is_decoder", False):
        what = f"{config.model_type} has a decoder, which cannot classify padded batches"
        raise _error(name, what, ENCODERS)
    if labels is None:
        kind, numbers = config.problem_type, sorted(config.id2label)
        if kind not in (None, "single_label_classification") or len(numbers) < 2:
            what = "its head gives no probabilities of classes that rule out each other"
            raise _error(name, f"{what} ({len(numbers)} outputs, problem_type {kind})")
        if numbers != list(range(len(numbers))):
            raise _error(name, "config.json: id2label does not count from 0")
        labels = [str(config.id2label[number]) for number in numbers]
    same_labels = config.id2label == dict(enumerate(labels))
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: number for number, label in enumerate(labels)}
    config.problem_type = "single_label_classification"
    # A file can ask for outputs of another shape, or for some that cannot be computed or saved.
    config.return_dict, config.output_attentions, config.output_hidden_states = True, False, False
    return config, same_labels


def _load_tokenizer(folder: Path, name: str) -> PreTrainedTokenizerFast:
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            folder, use_fast=True, trust_remote_code=False
        )
    except Exception as error:  # As with the config.
        raise _error(name, f"its tokenizer: {one_line(error)[:300]}") from error
    if not tokenizer.is_fast:
        raise _error(name, "it has no fast tokenizer (tokenizer.json)")
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise _error(name, "its tokenizer knows no word", "its files are incomplete")
    if tokenizer.pad_token_id is None:
        what = "its tokenizer has no padding token, so sentences cannot share a batch"
        raise _error(name, what)
    tokenizer.init_kwargs.pop("local_files_only", None)  # save_pretrained would write it.
    forget_padding(tokenizer)
    return tokenizer


def forget_padding(tokenizer: PreTrainedTokenizerFast) -> None:
    """Unset fixed padding and truncation, which a tokenizer's file can carry and each use sets.

    Its file and the cache's key then do not depend on what was done with it before.
    """
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.backend_tokenizer.no_truncation()


def encode(
    tokenizer: PreTrainedTokenizerFast,
    texts: Sequence[str],
    pairs: Sequence[str] | None,
    max_length: int,
) -> transformers.BatchEncoding:
    """Texts, or pairs of them, as at most `max_length` token ids each, unpadded.

    `token_type_ids`, which tell the first text from the second, are only there for pairs, and if
    the model reads them.
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
    """Refuse weights that are not this encoder's; whether the head is new.

    transformers fills what is missing with random numbers and only mentions it.
    """
    prefix = model.base_model_prefix + "."
    missing = [*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])]
    lost = sorted(key for key in missing if key.startswith(prefix) and ".pooler." not in key)

    def shape(key: str) -> str:
        return re.sub(r"\d+", "#", key.removeprefix(prefix))

    # A weight like the model's own means one more layer: config.json names fewer than there are.
    own = {shape(key) for key in model.state_dict() if key.startswith(prefix) and "#" in shape(key)}
    extra = [
        key
        for key in sorted(report["unexpected_keys"])
        if shape(key) in own or (not own and key.startswith(prefix) and "#" in shape(key))
    ]
    if lost or extra:
        example = f"without {lost[0]}" if lost else f"with {extra[0]} left over"
        detail = f"{len(lost) + len(extra)} weights disagree: the file is {example}"
        raise _error(name, f"config.json and the weights do not belong together ({detail})")
    return len(missing) > len(lost)


def _check_lengths(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, name: str, max_length: int | None
) -> int:
    """The most tokens of a sentence, tried out on a padded batch."""
    positions = getattr(model.config, "max_position_embeddings", None) or sys.maxsize
    for module in model.modules():  # RoBERTa numbers its positions from after the padding's.
        if getattr(module, "num_embeddings", None) == positions and module.padding_idx is not None:
            positions -= module.padding_idx + 1
    try:
        limit = int(min(tokenizer.model_max_length, positions))
    except (TypeError, ValueError, OverflowError):
        limit = 0
    if limit < 3:  # The two special tokens, and one of the text.
        detail = f"model_max_length {tokenizer.model_max_length!r} in tokenizer_config.json"
        raise _error(name, f"takes too few tokens ({detail}, positions {positions})")
    if max_length is not None and max_length > limit:
        what = f"{name} takes at most {limit} tokens"
        raise InputError(Problem(str(max_length), what, "use a lower length", "--max-length"))
    length = max_length or min(LONGEST_BY_DEFAULT, limit)
    vocabulary = model.config.vocab_size
    if len(tokenizer) > vocabulary:
        what = f"its tokenizer has {len(tokenizer)} tokens, the model only {vocabulary}"
        raise _error(name, what, "they do not belong together")
    try:
        batch = tokenizer(["a", "a " * length], truncation=True, max_length=length, padding=True)
        with torch.inference_mode():
            logits = model.eval()(**batch.convert_to_tensors("pt")).logits
    except Exception as error:  # An index out of range, a missing argument.
        if is_out_of_memory(error):
            raise
        what = f"cannot classify a padded batch of {length} tokens ({one_line(error)[:200]})"
        raise _error(name, what) from error
    if not logits.isfinite().all():
        raise _error(name, "its weights give numbers that are not finite (nan, inf)")
    return length


def _error(name: str, what: str, remedy: str = "") -> InputError:
    return InputError(Problem(name, what, remedy, "--model"))


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write model and tokenizer as `folder`, in place of what is there, whole or not at all."""

    def fill(aside: Path) -> None:
        model.save_pretrained(aside)
        for file in aside.glob("*.safetensors"):  # Only their owner may read them otherwise.
            file.chmod((aside / "config.json").stat().st_mode)
        forget_padding(tokenizer)
        tokenizer.save_pretrained(aside)

    replace_folder(folder, fill)
