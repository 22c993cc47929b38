"""What the tests share: the real program as a process, tiny checkpoints, small tables."""

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
from pathlib import Path
from typing import IO

import numpy as np

from inputs import encoder_files

ROOT = Path(__file__).resolve().parents[2]
SST2 = Path(os.environ.get("SST2", ROOT.parent / "shared" / "sst2"))  # GLUE's SST-2, not committed.
README = (ROOT / "README.md").read_text("utf-8")
POSITIVE = ["a fine film", "warm and funny", "what a joy to see", "bright , brisk and moving"]
NEGATIVE = ["a dull film", "cold and tiresome", "what a bore to see", "dim , slow and clumsy"]
ROWS = [
    (text, label)
    for pair in zip(POSITIVE, NEGATIVE, strict=True)
    for text, label in zip(pair, ("positive", "negative"), strict=True)
] * 5
CSV = "sentence,label\n" + "".join(f'"{text}",{label}\n' for text, label in ROWS)


def start(folder: Path, *flags: object, **environment: str) -> subprocess.Popen:
    """The real program, started in `folder`; its output is read from pipes."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / "finetune.py"), *map(str, flags)],
        cwd=folder,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


PYTHON_PATH = {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "0"}


@functools.cache
def scenarios() -> tuple[subprocess.Popen, IO[str]]:
    """The program group.py, in which everything is imported, and its stderr."""
    said = tempfile.TemporaryFile("w+")  # noqa: SIM115 (open as long as the program runs)
    program = subprocess.Popen(
        [sys.executable, "-m", "harness.group"],
        env=os.environ | ONE_THREAD | PYTHON_PATH,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=said,
        text=True,
    )
    return program, said


def scenario(name: str, folder: Path, **arguments: object) -> dict:
    """The result of a scenario in scenarios.py or group.py."""
    folder.mkdir(exist_ok=True)
    program, said = scenarios()
    print(json.dumps([name, {"folder": str(folder)} | arguments]), file=program.stdin, flush=True)
    limit = threading.Timer(1200, program.kill)
    limit.start()
    found = json.loads(program.stdout.readline() or "null")
    limit.cancel()
    said.seek(0)
    assert found is not None, said.read()[-5000:]
    return found


def warm(scenario: str, folder: Path, *before: str, **arguments: object) -> dict:
    """The result of a scenario of scenarios.py in a process of its own, started by `before`."""
    folder.mkdir(exist_ok=True)
    arguments = json.dumps({"folder": str(folder)} | arguments)
    done = subprocess.run(
        [*before, sys.executable, "-m", "harness.scenarios", scenario, arguments],
        env=os.environ | ONE_THREAD | PYTHON_PATH,
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    return json.loads(done.stdout)


def in_parts(name: str, folder: Path, each: list[dict], **arguments: object) -> list[dict]:
    """The results of a scenario of scenarios.py for the arguments of each part; two at a time."""
    if len(each) == 1:
        return [scenario(name, folder, **each[0], **arguments)]
    folders = [folder / f"part{number}" for number in range(len(each))]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        pairs = zip(folders, each, strict=True)
        return list(pool.map(lambda pair: warm(name, pair[0], **pair[1], **arguments), pairs))


def free_port() -> int:
    """A port that nobody on this machine has."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def block(mark: str) -> str:
    """The code in the README after `<!-- mark -->`."""
    return re.search(rf"<!-- {mark} -->\n```\w*\n(.*?)```", README, re.DOTALL)[1]


def limited(folder: Path, resource: str, size: int) -> dict[str, str]:
    """The environment of a program for which `resource`, such as RLIMIT_FSIZE, is `size` bytes."""
    lines = [
        "import resource, signal",
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)",  # An error of writing, not a signal.
        f"resource.setrlimit(resource.{resource}, ({size}, {size}))",
    ]
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text("\n".join(lines))
    return {"PYTHONPATH": str(folder / "site")}


def drop_roots_power_over_files() -> None:
    """Root may write anywhere; a process without this capability may not, even as root."""
    import ctypes

    for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP


def copy_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"):
        shutil.copy(encoder_files.find_model("builtin") / name, folder)


def save_tiny(folder: Path, tokenizer: bool = True, **changes: object) -> Path:
    """A DistilBERT of two narrow layers with random weights, laid out as the Hub's checkpoint."""
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
    """Width and height of a PNG file, in pixels."""
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", content[16:24])


def make_history(steps: int, epochs: int, **scores: float) -> list[dict]:
    """Lines of a metrics.jsonl: one every 20 steps, and one with `scores` for each evaluation."""
    random, lines = np.random.default_rng(0), []
    for step in range(20, steps + 1, 20):
        rate = 3e-5 * (1 - step / steps)
        loss = 0.7 * np.exp(-step / steps) + random.normal() / 20
        lines.append({"step": step, "loss": loss, "learning_rate": rate})
        if step % (steps // epochs) == 0:
            accuracy = 0.9 - 0.2 / (len(lines) + 1)
            lines.append({"step": step, "eval_loss": loss, "eval_accuracy": accuracy} | scores)
    return lines
