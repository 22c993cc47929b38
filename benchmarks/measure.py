"""One clock for all contenders, and the limit: the rate of plain matrix products."""

import contextlib
import importlib.metadata
import json
import os
import platform
import resource
import sys
import time
from pathlib import Path
from unittest import mock

import numpy as np
from contenders import CONTENDERS, project_settings, project_tokens
from work import HERE, WARM_UP, left_out_flops, new_model, pick, useful_flops


class Done(Exception):
    """Raised after the last timed step to leave a contender's loop."""


def measure(
    name: str, model, rows, batch_size: int, steps: int, precision: str, started: float
) -> dict:
    """Rates, padding and memory of a contender that trains for WARM_UP + `steps` steps.

    Args:
        rows: of `make_sentences`.
        precision: `fp32` or `bf16`.
        started: start of the process, in seconds of time.time().
    """
    import torch
    from torch.optim.optimizer import register_optimizer_step_post_hook

    on_gpu = torch.cuda.is_available()
    lengths: list[torch.Tensor] = []  # tokens of each sentence, shape (sentences,)
    padded: list[int] = []  # tokens
    ticks: list[float] = []  # seconds
    result: dict[str, float] = {}

    def count(model, args, batch) -> None:
        lengths.append(batch["attention_mask"].sum(1))
        padded.append(batch["attention_mask"].numel())

    def tick(optimizer, args, options) -> None:
        if on_gpu and len(ticks) in (0, WARM_UP - 1, WARM_UP + steps - 1):
            torch.cuda.synchronize()
        ticks.append(time.perf_counter())
        if len(ticks) == 1:
            result["first_step_seconds"] = time.time() - started
        if len(ticks) == WARM_UP:
            lengths.clear(), padded.clear()
        if len(ticks) == WARM_UP + steps:
            raise Done

    hooks = [register_optimizer_step_post_hook(tick)]
    if name == "this project":
        import finetune

        # A graph that is replayed on a GPU calls no hook.
        plain_forward = finetune.forward

        def counted_forward(model, inputs, precision):
            count(model, (), inputs)
            return plain_forward(model, inputs, precision)

        counting = mock.patch.object(finetune, "forward", counted_forward)
    else:
        counting = contextlib.nullcontext()
        hooks.append(model.register_forward_pre_hook(count, with_kwargs=True))
    try:
        with counting:
            CONTENDERS[name](model, rows, batch_size, steps, precision)
    except Done:
        seconds = ticks[-1] - ticks[WARM_UP - 1]
    finally:
        for hook in hooks:
            hook.remove()
    tokens = torch.cat(lengths).cpu().numpy()
    process_kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak = torch.cuda.max_memory_allocated() if on_gpu else 1024 * process_kilobytes
    useful = useful_flops(model.config, tokens)
    leaves_out = name == "this project" and not on_gpu
    left_out = left_out_flops(model.config, tokens) if leaves_out else 0
    return result | {
        "precision": precision,
        "sentences_per_second": len(tokens) / seconds,
        "useful_tokens_per_second": int(tokens.sum()) / seconds,
        "useful_gflops": useful / seconds / 1e9,
        "computed_gflops": (useful - left_out) / seconds / 1e9,
        "padding": 1 - int(tokens.sum()) / sum(padded),
        "peak_memory_mb": peak / 2**20,
    }


def precisions() -> list[str]:
    """The precisions to measure: fp32 and, on a CPU or GPU with units for it, bf16."""
    import torch

    from system.speed import has_bf16_units

    has_units = has_bf16_units("cuda" if torch.cuda.is_available() else "cpu")
    return ["fp32", "bf16"] if has_units else ["fp32"]


def measure_evaluation(model, rows, batch_size: int, precision: str) -> dict[str, float]:
    """The rate of this project's evaluation, on sentences as long as those of its training."""
    import data
    import finetune
    from inputs.batches import sorted_batches

    settings = project_settings(batch_size, precision)
    tokens = project_tokens(rows, settings)
    order = np.concatenate(sorted_batches(tokens.lengths, batch_size))
    batches = pick(order, tokens.lengths, batch_size, 40)
    finetune.evaluate(model, data.make_loader(tokens, batches[:WARM_UP], settings), settings)
    started = time.perf_counter()
    finetune.evaluate(model, data.make_loader(tokens, batches[WARM_UP:], settings), settings)
    return {"evaluated_per_second": 40 * batch_size / (time.perf_counter() - started)}


def measure_limit(precision: str) -> dict[str, float]:
    """GFLOP/s of one layer's plain matrix products, forward and backward, by each library of torch.

    The faster library is the limit. A CPU multiplies the tokens of 32 sentences; a GPU multiplies
    more, as these would leave it idle.
    """
    import torch
    from torch.utils.benchmark import Timer
    from transformers import DistilBertConfig

    device = "cuda" if torch.cuda.is_available() else "cpu"
    config, tokens = DistilBertConfig(), 32 * 13 if device == "cpu" else 2**14
    make = {"dtype": torch.bfloat16 if precision == "bf16" else torch.float32, "device": device}
    products = {"torch": torch.mm}
    if device == "cpu" and torch.backends.mkldnn.is_available():
        onednn = torch.ops.mkldnn._linear_pointwise
        products["oneDNN"] = lambda a, b: onednn(a, b.t(), None, "none", [], "")
    shapes = [(config.dim, config.dim)] * 4
    shapes += [(config.dim, config.hidden_dim), (config.hidden_dim, config.dim)]
    operands = []
    for before, after in shapes:
        x, weight = torch.randn(tokens, before, **make), torch.randn(after, before, **make)
        gradient = torch.randn(tokens, after, **make)
        operands += [(x, weight.t()), (gradient, weight), (gradient.t(), x)]
    flops = sum(2 * a.shape[0] * a.shape[1] * b.shape[1] for a, b in operands)
    rates = {}
    for name, product in products.items():
        layer = Timer(
            "for a, b in operands: product(a, b)",
            globals={"operands": operands, "product": product},
            num_threads=torch.get_num_threads(),
        )
        rates[name] = flops / layer.blocked_autorange(min_run_time=2).median / 1e9
    return rates


def machine() -> dict:
    """The processor, its precisions, the versions of the libraries and the date."""
    import torch

    packages = ("torch", "transformers", "accelerate", "datasets", "numpy")
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in packages},
        "precisions": precisions(),
        "date": time.strftime("%Y-%m-%d"),
    }


def _processor() -> str:
    """Name, family and model, because virtual machines hide the rest of the name."""
    if not Path("/proc/cpuinfo").exists():
        return platform.processor() or platform.machine()
    first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    lines = {key.strip(): value.strip() for key, _, value in pairs}
    facts = (f"{key} {lines[key]}" for key in ("cpu family", "model") if key in lines)
    return ", ".join([lines.get("model name", platform.machine()), *facts])


def write(name: str, quick: bool, measurements: object, table: str) -> None:
    """Write measurements, their table and the machine to a file in benchmarks/results."""
    result = {"machine": machine(), "found": measurements, "table": table.splitlines()}
    file = HERE / "results" / f"{name}{'-quick' * quick}.json"
    file.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", "utf-8")
    print(f"written to {file}", file=sys.stderr)


def turn(
    name: str, batch_size: int, steps: int, precision: str, folder: str, started: float
) -> dict:
    """The measurements of one process."""
    if name == "limit":
        return measure_limit(precision)
    import datasets
    import transformers

    transformers.logging.set_verbosity_error()
    rows, model = datasets.load_from_disk(folder), new_model()
    result = measure(name, model, rows, batch_size, steps, precision, started)
    if name == "this project":
        result |= measure_evaluation(model, rows, batch_size, precision)
    return result
