"""The clock of the benchmark, the same for all contenders, and the limit that it compares with."""

import importlib.metadata
import os
import platform
import resource
import statistics
import time
from pathlib import Path

import numpy as np
from contenders import CONTENDERS, project_loader, project_settings
from work import WARM_UP, new_model, pick, useful_flops


class Done(Exception):
    """The last timed step is over."""


def measure(name: str, model, rows, batch_size: int, steps: int, started: float) -> dict:
    """Let a contender train for WARM_UP + `steps` steps.

    Args:
        rows: of `make_sentences`.
        started: when its process was started, in seconds of time.time().
    """
    import torch
    from torch.optim.optimizer import register_optimizer_step_post_hook

    on_gpu, bf16 = torch.cuda.is_available(), project_settings(8).precision == "bf16"
    lengths: list[torch.Tensor] = []  # Tokens of each sentence of each batch of the timed steps.
    computed: list[int] = []  # Tokens of each batch with its padding.
    ticks: list[float] = []
    found: dict[str, float] = {}

    def count(model, args, batch) -> None:
        lengths.append(batch["attention_mask"].sum(1))
        computed.append(batch["attention_mask"].numel())

    def tick(optimizer, args, options) -> None:
        if on_gpu and len(ticks) in (0, WARM_UP - 1, WARM_UP + steps - 1):
            torch.cuda.synchronize()
        ticks.append(time.perf_counter())
        if len(ticks) == 1:
            found["first_step_seconds"] = time.time() - started
        if len(ticks) == WARM_UP:
            lengths.clear(), computed.clear()
        if len(ticks) == WARM_UP + steps:
            raise Done

    hooks = [
        model.register_forward_pre_hook(count, with_kwargs=True),
        register_optimizer_step_post_hook(tick),
    ]
    try:
        CONTENDERS[name](model, rows, batch_size, steps, bf16)
    except Done:
        seconds = ticks[-1] - ticks[WARM_UP - 1]
    finally:
        for hook in hooks:
            hook.remove()
    tokens = torch.cat(lengths).cpu().numpy()
    peak = torch.cuda.max_memory_allocated() if on_gpu else 1024 * _peak_kilobytes()
    return found | {
        "sentences_per_second": len(tokens) / seconds,
        "useful_tokens_per_second": int(tokens.sum()) / seconds,
        "useful_gflops": useful_flops(model.config, tokens) / seconds / 1e9,
        "padding": 1 - int(tokens.sum()) / sum(computed),
        "peak_memory_mb": peak / 2**20,
    }


def _peak_kilobytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def measure_evaluation(model, rows, batch_size: int) -> dict[str, float]:
    """This project's evaluation, on sentences of the lengths that it was trained on."""
    import data
    import finetune

    settings = project_settings(batch_size)
    tokens = data.TokenizedText(rows.remove_columns("attention_mask"))
    order = np.concatenate(data.sorted_batches(tokens.lengths, batch_size))
    batches = pick(order, tokens.lengths, batch_size, 40)
    finetune.evaluate(model, project_loader(tokens, batches[:WARM_UP], settings), settings)
    started = time.perf_counter()
    finetune.evaluate(model, project_loader(tokens, batches[WARM_UP:], settings), settings)
    return {"evaluated_per_second": 40 * batch_size / (time.perf_counter() - started)}


def measure_limit() -> dict[str, float]:
    """GFLOP/s of plain matrix products: one layer's, forward and backward, 32 sentences long.

    By each library that torch has for them; the faster is the limit. In bf16 where training is.
    """
    import torch
    from transformers import DistilBertConfig

    settings, config = project_settings(32), DistilBertConfig()
    kind = torch.bfloat16 if settings.precision == "bf16" else torch.float32
    tokens = 32 * 13
    products = {"torch": torch.mm}
    if settings.device == "cpu" and torch.backends.mkldnn.is_available():
        onednn = torch.ops.mkldnn._linear_pointwise
        products["oneDNN"] = lambda a, b: onednn(a, b.t(), None, "none", [], "")
    shapes = [(config.dim, config.dim)] * 4
    shapes += [(config.dim, config.hidden_dim), (config.hidden_dim, config.dim)]
    work = []
    for before, after in shapes:
        make = {"dtype": kind, "device": settings.device}
        x, weight = torch.randn(tokens, before, **make), torch.randn(after, before, **make)
        gradient = torch.randn(tokens, after, **make)
        work += [(x, weight.t()), (gradient, weight), (gradient.t(), x)]
    flops = sum(2 * a.shape[0] * a.shape[1] * b.shape[1] for a, b in work)
    rates = {}
    for name, product in products.items():
        layers, seconds = 0, []
        while layers < 60:
            started = time.perf_counter()
            for a, b in work:
                product(a, b)
            if settings.device == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - started)
            layers += 1
        rates[name] = flops / statistics.median(seconds) / 1e9
    return rates


def machine() -> dict:
    """What was measured on, and with what."""
    import torch

    named = [line for line in _read("/proc/cpuinfo").splitlines() if line.startswith("model name")]
    processor = named[0].split(": ")[1] if named else platform.processor() or platform.machine()
    packages = ("torch", "transformers", "accelerate", "datasets", "numpy")
    return {
        "processor": processor,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "precision": project_settings(8).precision,
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in packages},
        "date": time.strftime("%Y-%m-%d"),
    }


def _read(file: str) -> str:
    return Path(file).read_text() if Path(file).exists() else ""


def turn(name: str, batch_size: int, steps: int, folder: str, started: float) -> dict:
    """What one process measures."""
    if name == "limit":
        return measure_limit()
    import datasets
    import transformers

    transformers.logging.set_verbosity_error()
    rows, model = datasets.load_from_disk(folder), new_model()
    found = measure(name, model, rows, batch_size, steps, started)
    if name == "this project":
        found |= measure_evaluation(model, rows, batch_size)
    return found
