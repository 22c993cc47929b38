"""A trained model in ONNX: exported, quantized, and compared with PyTorch."""

import contextlib
import errno
import inspect
import logging
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnxruntime
import tokenizers
import torch
from google.protobuf.message import DecodeError
from onnxruntime.quantization import quantize_dynamic

from outputs import classifier as classifiers
from outputs.classifier import Classifier
from outputs.validation import Validation
from system import speed
from system.console import InputError, Problem, RunError, is_out_of_memory, one_line, progress

PYTORCH, FLOAT32, INT8 = "PyTorch", "model.onnx", "model_int8.onnx"
CONFIGS = ("config.json", "tokenizer_config.json")
# Rounding changes a probability by a millionth; a wrong graph changes it by tenths.
MAX_DIFFERENCE = 1e-3
Forward = Callable[[dict[str, torch.Tensor]], torch.Tensor]


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    # The exporters write dozens of warnings about their own code.
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(disabled)


def export(classifier: Classifier, pairs: bool) -> torch.onnx.ONNXProgram:
    """The graph of a plain model, for any number of texts and tokens; InputError if it has none.

    Its inputs are those that the model gets here, all int64 of shape (batch, sequence).
    Its output is `logits`, float32 of shape (batch, classes).
    """
    names = ["input_ids", "attention_mask"]
    if pairs and "token_type_ids" in classifier.tokenizer.model_input_names:
        names.append("token_type_ids")
    # FNet ignores the mask, and DistilBERT the types that a BERT tokenizer gives.
    read = inspect.signature(classifier.model.forward).parameters
    names = [name for name in names if name in read]
    # Only the types of these values count.
    example = {name: torch.ones(2, 3, dtype=torch.int64) for name in names}
    shapes = {name: {0: "batch", 1: "sequence"} for name in names}
    try:
        with _without_warnings():
            return torch.onnx.export(
                classifier.model,
                kwargs=example,
                dynamic_shapes=shapes,
                output_names=["logits"],
                verbose=False,
            )
    # Each of the exporter's parts raises its own errors.
    except Exception as error:
        cause = error.__cause__ or error
        if is_out_of_memory(cause):
            raise cause from None
        kind = classifier.model.config.model_type
        message = f"this {kind} model cannot be exported ({one_line(cause)[:200]})"
        raise InputError(Problem(classifier.model.name_or_path, message)) from error


def write(
    folder: Path, program: torch.onnx.ONNXProgram, classifier: Classifier, int8: bool
) -> None:
    """Write the model, its configuration and its tokenizer, which pads and cuts as in training."""
    program.save(folder / FLOAT32)
    if int8:
        _quantize(folder / FLOAT32, folder / INT8)
    for name in CONFIGS:
        shutil.copy(Path(classifier.model.name_or_path) / name, folder)
    own = classifier.tokenizer
    # A copy, because the tokenizer of the comparison does not pad.
    tokenizer = tokenizers.Tokenizer.from_str(own.backend_tokenizer.to_str())
    tokenizer.enable_truncation(classifier.max_length, direction=own.truncation_side)
    tokenizer.enable_padding(pad_id=own.pad_token_id, pad_token=own.pad_token)
    tokenizer.save(str(folder / "tokenizer.json"))


def _quantize(source: Path, target: Path) -> None:
    try:
        with _without_warnings():
            # A CPU without VNNI adds two products of 8 bits in 16 bits; weights of 7 bits fit.
            quantize_dynamic(source, target, per_channel=True, reduce_range=True)
    except DecodeError as error:
        # On a full disk, onnx writes a part of a temporary file without an error, and reads it.
        raise OSError(errno.EIO, "a temporary file is truncated") from error


class Measured(NamedTuple):
    """A form of the model on the validation data."""

    name: str
    accuracy: float
    rate: float  # sentences per second, with tokenization
    megabytes: float
    changed: int  # labels that are not PyTorch's
    difference: float  # of a probability from PyTorch's, at most


@contextlib.contextmanager
def _runtime_errors() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        # The errors of onnxruntime have no base class of their own.
        if type(error).__module__.startswith("onnxruntime."):
            message = f"onnxruntime cannot run the exported model ({one_line(error)[:200]})"
            raise RunError(message) from error
        raise


@_runtime_errors()
def measure(classifier: Classifier, validation: Validation, folder: Path) -> list[Measured]:
    """PyTorch and the models in `folder`, in turns on the same batches, on the CPU.

    RunError if a model cannot run, or if the probabilities of model.onnx are not PyTorch's.
    """
    forwards: dict[str, Forward] = {
        PYTORCH: lambda inputs: speed.forward(classifier.model, inputs, classifier.precision)[0]
    }
    forwards |= {file.name: _forward(file) for file in sorted(folder.glob("*.onnx"))}
    sentences, classes = len(validation.labels), len(classifier.labels)
    probabilities = {name: np.empty((sentences, classes), np.float32) for name in forwards}
    seconds, start, began = dict.fromkeys(forwards, 0.0), 0, time.perf_counter()
    with torch.inference_mode(), progress(sentences, "sentences", "comparing") as bar:
        for texts, pairs in validation.parts():
            for numbers, micro_batches in classifiers.make_batches(classifier, texts, pairs):
                for name, forward in forwards.items():
                    called = time.perf_counter()
                    logits = torch.cat([forward(inputs) for inputs in micro_batches])
                    seconds[name] += time.perf_counter() - called
                    probabilities[name][start + numbers] = logits.softmax(dim=-1)
                bar.update(len(numbers))
            start += len(texts)
    tokenizing = time.perf_counter() - began - sum(seconds.values())
    results = []
    expected = probabilities[PYTORCH]
    for name, values in probabilities.items():
        predictions = values.argmax(axis=1)
        accuracy = float((predictions == validation.labels).mean())
        rate = sentences / (seconds[name] + tokenizing)
        changed = int((predictions != expected.argmax(axis=1)).sum())
        difference = float(np.abs(values - expected).max())
        # Written so that nan is refused, too.
        if name == FLOAT32 and not difference <= MAX_DIFFERENCE:
            message = f"the exported model is wrong: a probability differs by {difference:.2g}"
            raise RunError(message)
        weights = (Path(classifier.model.name_or_path), "*.safetensors")
        size = _megabytes(*weights) if name == PYTORCH else _megabytes(folder, f"{name}*")
        results.append(Measured(name, accuracy, rate, size, changed, difference))
    return results


def _megabytes(folder: Path, pattern: str) -> float:
    return sum(file.stat().st_size for file in folder.glob(pattern)) / 1e6


def _forward(file: Path) -> Forward:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    names = [tensor.name for tensor in session.get_inputs()]

    def forward(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        arrays = {name: inputs[name].numpy() for name in names}
        return torch.from_numpy(session.run(None, arrays)[0])

    return forward
