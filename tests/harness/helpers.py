"""Helpers of all tests: the program as a process, scenarios, tiny checkpoints, small tables."""

import concurrent.futures
import functools
import json
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np

from inputs import encoder_files
from training.scores import Answers

ROOT = Path(__file__).resolve().parents[2]
# GLUE's SST-2 is not part of the repository.
SST2 = Path(os.environ.get("SST2", ROOT.parent / "shared" / "sst2"))
README = (ROOT / "README.md").read_text("utf-8")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"(?:<!-- ([^>\n]+) -->\n)?^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
POSITIVE = ["a fine film", "warm and funny", "what a joy to see", "bright , brisk and moving"]
NEGATIVE = ["a dull film", "cold and tiresome", "what a bore to see", "dim , slow and clumsy"]
ROWS = [
    (text, label)
    for pair in zip(POSITIVE, NEGATIVE, strict=True)
    for text, label in zip(pair, ("positive", "negative"), strict=True)
] * 5
CSV = "sentence,label\n" + "".join(f'"{text}",{label}\n' for text, label in ROWS)


def start(folder: Path, *flags: object, **environment: str) -> subprocess.Popen:
    """Start the real program in `folder`, with pipes for its output."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / "finetune.py"), *map(str, flags)],
        cwd=folder,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def make_answers(
    labels: Sequence[int], predictions: Sequence[int], confidences: Sequence[float]
) -> Answers:
    """Answers of a model of two classes with these probabilities of its predictions."""
    probabilities = np.array(confidences, np.float32)[:, None].repeat(2, axis=1)
    other = np.arange(2) != np.array(predictions)[:, None]
    probabilities[other] = 1 - probabilities[other]
    losses = np.full(len(labels), np.nan, np.float32)
    return Answers(np.array(labels), np.array(predictions), probabilities, losses)


PYTHON_PATH = {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "0"}


@functools.cache
def scenario_program() -> tuple[subprocess.Popen, IO[str]]:
    """The program group.py, whose imports take seconds, and the file that holds its stderr."""
    errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
    program = subprocess.Popen(
        [sys.executable, "-m", "harness.group"],
        env=os.environ | ONE_THREAD | PYTHON_PATH,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
    )
    return program, errors


def scenario(name: str, folder: Path, **arguments: object) -> dict:
    """The result of a scenario in scenarios.py or group.py."""
    folder.mkdir(exist_ok=True)
    program, errors = scenario_program()
    print(json.dumps([name, {"folder": str(folder)} | arguments]), file=program.stdin, flush=True)
    limit = threading.Timer(1200, program.kill)
    limit.start()
    result = json.loads(program.stdout.readline() or "null")
    limit.cancel()
    errors.seek(0)
    assert result is not None, errors.read()[-5000:]
    return result


def own_process(scenario: str, folder: Path, *prefix: str, **arguments: object) -> dict:
    """The result of a scenario in its own process, whose command starts with `prefix`."""
    folder.mkdir(exist_ok=True)
    arguments = json.dumps({"folder": str(folder)} | arguments)
    done = subprocess.run(
        [*prefix, sys.executable, "-m", "harness.scenarios", scenario, arguments],
        env=os.environ | ONE_THREAD | PYTHON_PATH,
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    return json.loads(done.stdout)


def in_parts(name: str, folder: Path, parts: list[dict], **arguments: object) -> list[dict]:
    """The result of a scenario for the arguments of each part, two parts at a time."""
    if len(parts) == 1:
        return [scenario(name, folder, **parts[0], **arguments)]
    folders = [folder / f"part{number}" for number in range(len(parts))]
    run = functools.partial(own_process, name, **arguments)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda folder, part: run(folder, **part), folders, parts))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def fences() -> list[tuple[Path, str, str, str]]:
    """The fenced blocks of all pages: page, mark or "", language, content."""
    return [
        (page, match[1] or "", match[2], match[3])
        for page in PAGES
        for match in FENCE.finditer(page.read_text("utf-8"))
    ]


def block(mark: str) -> str:
    """The code after `<!-- mark -->` in the README or in the first page of docs/ that has it."""
    return next(code for _, name, _, code in fences() if name == mark)


def readme_row(title: str) -> list[str]:
    """The cells of the first row of a README table whose first cell begins with `title`."""
    row = next(line for line in README.splitlines() if line.startswith(f"| {title}"))
    return [cell.strip() for cell in row.strip("|").split("|")]


def limited(folder: Path, resource: str, size: int) -> dict[str, str]:
    """The environment that limits a program's `resource`, such as RLIMIT_FSIZE, to `size` bytes."""
    lines = [
        "import resource, signal",
        # The program must get an error, not the signal.
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)",
        f"resource.setrlimit(resource.{resource}, ({size}, {size}))",
    ]
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text("\n".join(lines))
    return {"PYTHONPATH": str(folder / "site")}


def drop_file_capabilities() -> None:
    """Make file permissions apply to the next program of this process, even for root."""
    import ctypes

    pr_capbset_drop, cap_dac_override, cap_dac_read_search = 24, 1, 2
    for capability in (cap_dac_override, cap_dac_read_search):
        ctypes.CDLL(None).prctl(pr_capbset_drop, capability, 0, 0, 0)


def copy_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"):
        shutil.copy(encoder_files.find_model("builtin") / name, folder)


def save_tiny(folder: Path, tokenizer: bool = True, **changes: object) -> Path:
    """Save a DistilBERT of two narrow layers with random weights in the Hub's layout."""
    import torch
    from transformers import DistilBertConfig, DistilBertForMaskedLM

    sizes = {
        "dim": 32,
        "hidden_dim": 64,
        "n_layers": 2,
        "n_heads": 2,
        "max_position_embeddings": 64,
    }
    torch.manual_seed(0)
    DistilBertForMaskedLM(DistilBertConfig(**sizes | changes)).save_pretrained(folder)
    if tokenizer:
        copy_tokenizer(folder)
    return folder


def png_size(path: Path) -> tuple[int, int]:
    """The width and height of a PNG file, in pixels."""
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", content[16:24])


def make_history(steps: int, epochs: int, **scores: float) -> list[dict]:
    """Lines of metrics.jsonl: a line every 20 steps, and a line with `scores` per evaluation."""
    random, lines = np.random.default_rng(0), []
    for step in range(20, steps + 1, 20):
        rate = 3e-5 * (1 - step / steps)
        loss = 0.7 * np.exp(-step / steps) + random.normal() / 20
        lines.append({"step": step, "loss": loss, "learning_rate": rate})
        if step % (steps // epochs) == 0:
            accuracy = 0.9 - 0.2 / (len(lines) + 1)
            lines.append({"step": step, "eval_loss": loss, "eval_accuracy": accuracy} | scores)
    return lines
