"""A name in, a checked encoder and its tokenizer out."""

import re
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.models.auto import modeling_auto as known

from inputs.encoder_files import find_model
from system.console import InputError, is_out_of_memory, one_line, say
from system.disk import replace_folder

LONGEST_BY_DEFAULT = 512


def learning_rate(name: str) -> float:
    """A learning rate that suits the model, where nobody chose one.

    BERT and DistilBERT: 2e-5 to 5e-5 (Devlin et al. 2019, appendix A.3); smaller ones take more.
    """
    return 1e-4 if name == "builtin" else 3e-5


def choose_device(asked: str, processes: int = 1) -> str:
    """The device that was asked for, or with `auto` the best that there is.

    Args:
        processes: how many of the run there are on this machine; each takes a GPU of its own.
    """
    if asked in ("auto", "cuda") and 0 < torch.cuda.device_count() < processes:
        raise InputError(
            f"--device {asked}: {processes} processes on a machine of {torch.cuda.device_count()} "
            "GPUs; start one for each (torchrun --nproc-per-node)"
        )
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available() and processes == 1,
        "cpu": True,
    }
    if asked != "auto" and not available[asked]:
        raise InputError(f"--device {asked}: PyTorch finds no such device here; try --device auto")
    return next(name for name in available if available[name] and asked in ("auto", name))


def choose_precision(asked: str, device: str) -> str:
    """The precision that was asked for, or with `auto` bf16 on a GPU that has units for it."""
    if asked != "auto":
        return asked
    has_bf16 = device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if has_bf16 else "fp32"


def load_model(
    name: str, labels: Sequence[str] | None, max_length: int | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast, int]:
    """An encoder in float32 with a classification head for `labels`, and its fast tokenizer.

    A head that the checkpoint has is kept if it is for the same labels in the same order; the
    weights of a new one come from torch's global generator.

    Args:
        name: `builtin`, a folder, or the id of a model on the Hub.
        labels: the names of the classes, in the order of their ids; None for those of the head that
            the checkpoint then must have.
        max_length: the most tokens of a sentence; None for 512, or what the model takes if less.
    Returns:
        The model on the CPU in evaluation mode, the tokenizer, and the most tokens of a sentence.
    Raises:
        InputError: it is not a checkpoint of an encoder that can classify padded batches.
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
            ignore_mismatched_sizes=True,  # Of a head for other labels; others are refused below.
            output_loading_info=True,
            trust_remote_code=False,
        )
    except Exception as error:  # Damage can raise anything; the person needs to know whose.
        if is_out_of_memory(error):
            raise
        raise InputError(f"--model {name}: cannot be loaded ({one_line(error)[:300]})") from error
    new_head = _check_weights(model, report, name)
    if new_head and labels is None:
        raise InputError(
            f"--model {name}: it has no classification head, so it cannot answer; "
            "fine-tune it first"
        )
    if not new_head and not same_labels:
        # Its rows mean other classes, or these in another order.
        fresh = transformers.AutoModelForSequenceClassification.from_config(config).state_dict()
        prefix = model.base_model_prefix + "."
        head = {key: value for key, value in fresh.items() if not key.startswith(prefix)}
        model.load_state_dict(head, strict=False)
    if new_head or not same_labels:
        say(
            "the classification head is new: it starts from random weights, and training teaches it"
        )
    max_length = _check_lengths(model, tokenizer, name, max_length)
    return model.eval(), tokenizer, max_length


def _load_config(
    folder: Path, name: str, labels: Sequence[str] | None
) -> tuple[transformers.PreTrainedConfig, bool]:
    """The config for `labels`, and whether the checkpoint's own are the same in the same order."""
    try:
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # Any value of config.json can be wrong in its own way.
        raise InputError(f"--model {name}: config.json: {one_line(error)[:300]}") from error
    if config.model_type not in known.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES:
        raise InputError(
            f"--model {name}: a {config.model_type} model cannot classify text; "
            "name an encoder such as BERT, DistilBERT or RoBERTa"
        )
    only_decodes = (
        config.model_type in known.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        and config.model_type not in known.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    )
    if only_decodes or config.is_encoder_decoder or getattr(config, "is_decoder", False):
        raise InputError(
            f"--model {name}: {config.model_type} has a decoder, which cannot classify padded "
            "batches; name an encoder such as BERT, DistilBERT or RoBERTa"
        )
    if labels is None:
        kind, numbers = config.problem_type, sorted(config.id2label)
        if kind not in (None, "single_label_classification") or len(numbers) < 2:
            raise InputError(
                f"--model {name}: its head gives no probabilities of classes that rule out each "
                f"other ({len(numbers)} outputs, problem_type {kind})"
            )
        if numbers != list(range(len(numbers))):
            raise InputError(f"--model {name}: config.json: id2label does not count from 0")
        labels = [str(config.id2label[number]) for number in numbers]
    same_labels = config.id2label == dict(enumerate(labels))
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: number for number, label in enumerate(labels)}
    config.problem_type = "single_label_classification"
    # A file can ask for outputs of another shape, or for some that cannot be had or saved.
    config.return_dict, config.output_attentions, config.output_hidden_states = True, False, False
    return config, same_labels


def _load_tokenizer(folder: Path, name: str) -> PreTrainedTokenizerFast:
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            folder, use_fast=True, trust_remote_code=False
        )
    except Exception as error:  # As with the config.
        raise InputError(f"--model {name}: its tokenizer: {one_line(error)[:300]}") from error
    if not tokenizer.is_fast:
        raise InputError(f"--model {name}: it has no fast tokenizer (tokenizer.json)")
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise InputError(f"--model {name}: its tokenizer knows no word; its files are incomplete")
    if tokenizer.pad_token_id is None:
        raise InputError(
            f"--model {name}: its tokenizer has no padding token, so sentences cannot share a batch"
        )
    tokenizer.init_kwargs.pop("local_files_only", None)  # It would save how it was loaded.
    forget_padding(tokenizer)
    return tokenizer


def forget_padding(tokenizer: PreTrainedTokenizerFast) -> None:
    """Unset fixed padding and truncation, which a tokenizer's file can carry and each use leaves.

    What depends on a tokenizer's state (its file, a cache's key) is the same whatever was done.
    """
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.backend_tokenizer.no_truncation()


def _check_weights(model: PreTrainedModel, report: dict, name: str) -> bool:
    """Refuse weights that are not this encoder's; whether the head is new.

    transformers fills what is missing with random numbers and only mentions it.
    """
    prefix = model.base_model_prefix + "."
    missing = [*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])]
    lost = sorted(key for key in missing if key.startswith(prefix) and ".pooler." not in key)

    def shape(key: str) -> str:
        return re.sub(r"\d+", "#", key.removeprefix(prefix))

    # A weight like the model's own, of one more layer: config.json speaks of fewer than there are.
    own = {shape(key) for key in model.state_dict() if key.startswith(prefix) and "#" in shape(key)}
    extra = [
        key
        for key in sorted(report["unexpected_keys"])
        if shape(key) in own or (not own and key.startswith(prefix) and "#" in shape(key))
    ]
    if lost or extra:
        example = f"without {lost[0]}" if lost else f"with {extra[0]} left over"
        raise InputError(
            f"--model {name}: config.json and the weights do not belong together "
            f"({len(lost) + len(extra)} weights disagree: the file is {example})"
        )
    return len(missing) > len(lost)


def _check_lengths(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, name: str, asked: int | None
) -> int:
    """The most tokens of a sentence, tried out on a padded batch before anything relies on it."""
    positions = getattr(model.config, "max_position_embeddings", None) or sys.maxsize
    for module in model.modules():  # RoBERTa numbers its positions from behind the padding's on.
        if getattr(module, "num_embeddings", None) == positions and module.padding_idx is not None:
            positions -= module.padding_idx + 1
    try:
        limit = int(min(tokenizer.model_max_length, positions))
    except (TypeError, ValueError, OverflowError):
        limit = 0
    if limit < 3:  # The two special tokens, and one of the text.
        raise InputError(
            f"--model {name}: takes too few tokens (model_max_length "
            f"{tokenizer.model_max_length!r} in tokenizer_config.json, positions {positions})"
        )
    if asked is not None and asked > limit:
        raise InputError(f"--max-length: found {asked}; {name} takes at most {limit} tokens")
    length = asked or min(LONGEST_BY_DEFAULT, limit)
    if len(tokenizer) > model.config.vocab_size:
        raise InputError(
            f"--model {name}: its tokenizer has {len(tokenizer)} tokens, the model only "
            f"{model.config.vocab_size}; they do not belong together"
        )
    try:
        batch = tokenizer(["a", "a " * length], truncation=True, max_length=length, padding=True)
        with torch.inference_mode():
            logits = model.eval()(**batch.convert_to_tensors("pt")).logits
    except Exception as error:  # An index out of range, a missing argument: what it can't do.
        if is_out_of_memory(error):
            raise
        found = one_line(error)[:200]
        raise InputError(
            f"--model {name}: cannot classify a padded batch of {length} tokens ({found})"
        ) from error
    if not logits.isfinite().all():
        raise InputError(f"--model {name}: its weights give numbers that are not finite (nan, inf)")
    return length


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write model and tokenizer as `folder`, in place of what is there, whole or not at all."""

    def fill(aside: Path) -> None:
        model.save_pretrained(aside)
        for file in aside.glob("*.safetensors"):  # It makes them for their owner alone.
            file.chmod((aside / "config.json").stat().st_mode)
        forget_padding(tokenizer)
        tokenizer.save_pretrained(aside)

    replace_folder(folder, fill)
