"""Profile of a training step, compared with the rate of plain matrix products.

python benchmarks/profile_step.py      a minute on two cores, two with bf16

DistilBERT's size, 32 sentences a step, as long as SST-2's, in fp32 and, on a processor with units
for it, in bf16. "Before" is this project's loop on transformers' unchanged model. "After" adds the
changes of system/speed.py and the micro-batches of data.py.
"""

import contextlib
import sys
import time
from unittest import mock

import torch
from contenders import project_batches, project_settings, project_tokens
from measure import measure_limit, precisions
from speed import table
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from work import WARM_UP, make_sentences, new_model, useful_flops

import data
import finetune
from inputs import batches as batching
from system.speed import allocate_averages
from system.speed import prepare as prepare_model

STEPS, BATCH_SIZE = 20, 32
# torch's operators, grouped by the part of a step that calls them.
PARTS = {
    "linear layers": ("mm", "addmm", "_linear_pointwise"),
    "attention": (
        *("bmm", "baddbmm", "_softmax", "_softmax_backward_data"),
        *("_efficient_attention_forward", "_efficient_attention_backward"),
        *("_flash_attention_forward", "_flash_attention_backward"),
    ),
    "optimizer": ("_fused_adamw_", "_foreach_add_"),
    "gradient clipping": ("linalg_vector_norm", "mul_", "_foreach_norm", "_foreach_mul_"),
    "dropout": ("bernoulli_", "div_", "native_dropout", "native_dropout_backward"),
    "GELU and layer norms": (
        *("gelu", "gelu_backward", "native_layer_norm", "native_layer_norm_backward"),
    ),
    "word embeddings": ("embedding_dense_backward", "index_select", "embedding"),
    "copies, zeros, sums": ("copy_", "fill_", "add", "add_", "mul", "sum", "cat", "zero_"),
}


def prepare(variant: str, precision: str, rows):
    """Model, optimizer, settings and batches of the variant `before` or `after`."""
    settings, model = project_settings(BATCH_SIZE, precision), new_model()
    tokens = project_tokens(rows, settings)
    if variant == "after":
        prepare_model(model, settings.device, settings.precision)
    else:
        model.to(settings.device)
    picked = project_batches(tokens, STEPS, settings)
    with contextlib.ExitStack() as stack:
        if variant == "before":
            stack.enter_context(mock.patch.object(batching, "MAX_TOKENS_ON_CPU", sys.maxsize))
        batches = list(data.make_loader(tokens, picked, settings))
    optimizer = finetune.make_optimizer(model, settings)
    if variant == "after":
        allocate_averages(optimizer)
    return model.train(), optimizer, settings, batches


def run(model, optimizer, settings, batches) -> float:
    """Milliseconds a step."""
    started = time.perf_counter()
    for batch in batches:
        finetune.training_step(model, optimizer, batch, settings)
    if settings.device == "cuda":
        torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - started) / len(batches)


def shares(model, optimizer, settings, batches) -> dict[str, float]:
    """The share of each part in the time of all operators."""
    on_gpu = settings.device == "cuda"
    kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu
    part_of = {operator: part for part, operators in PARTS.items() for operator in operators}
    times = dict.fromkeys([*PARTS, "the rest"], 0.0)
    # One profile for each step, as the records of many steps fragment memory and slow it down.
    for batch in batches:
        with profile(activities=kinds) as profiler:
            run(model, optimizer, settings, [batch])
        for event in profiler.key_averages():
            # A GPU's time is listed with the CPU's operator and again with the GPU's kernel.
            if event.device_type == DeviceType.CPU:
                spent = event.self_device_time_total if on_gpu else event.self_cpu_time_total
                times[part_of.get(event.key.split("::")[-1], "the rest")] += spent
    return {part: spent / sum(times.values()) for part, spent in times.items()}


def compare(precision: str, rows) -> str:
    """The table of a step before and after, and the limit."""
    profiles = {}
    for variant in ("before", "after"):
        *parts, batches = prepare(variant, precision, rows)
        run(*parts, batches[:WARM_UP])
        timed = batches[WARM_UP:]
        profiles[variant] = run(*parts, timed), shares(*parts, timed)
    limit = max(measure_limit(precision).values())
    masks = [part["attention_mask"] for batch in timed for part in batch.micro_batches]
    lengths = torch.cat([mask.sum(1) for mask in masks])
    limit_ms = useful_flops(parts[0].config, lengths.numpy()) / len(timed) / limit / 1e6
    lines = []
    for part in profiles["after"][1]:
        cells = []
        for total, share in profiles.values():
            cells += [f"{total * share[part]:.0f}", f"{share[part]:.1%}"]
        lines.append([part, *cells])
    before, after = (total for total, _ in profiles.values())
    lines.append(["a step", f"{before:.0f}", "100.0%", f"{after:.0f}", "100.0%"])
    at_limit = [f"{limit_ms:.0f}", f"{limit_ms / before:.1%}"]
    at_limit += [f"{limit_ms:.0f}", f"{limit_ms / after:.1%}"]
    lines.append(["at the limit", *at_limit])
    text = table([f"milliseconds, {precision}", "before", "", "after", ""], lines)
    rate = f"{limit:.0f} GFLOP/s of plain matrix products"
    return f"{text}\n\nlimit: {rate}; useful operations only\n"


if __name__ == "__main__":
    sentences = make_sentences()
    for each in precisions():
        print(compare(each, sentences))
