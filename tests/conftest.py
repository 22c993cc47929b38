"""What the tests share: the real program as a process, tiny checkpoints, small tables."""

import functools
import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import IO

import hypothesis
import pytest

ROOT = Path(__file__).resolve().parent.parent
SST2 = Path(os.environ.get("SST2", ROOT.parent / "shared" / "sst2"))  # GLUE's SST-2, not committed.
sys.path.insert(0, str(ROOT))

# Tests run two at a time, on two cores: threads of several programs on one core wait for each
# other, which takes several times as long. For the programs that tests start, and, as torch looks
# here at its import, for the tests themselves.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# No test asks the real Hub; set before its library is imported by a test.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# What an example takes, beside other work on the machine, says nothing of the program.
hypothesis.settings.register_profile("beside others", deadline=None)
hypothesis.settings.load_profile("beside others")

README = (ROOT / "README.md").read_text("utf-8")
POSITIVE = ["a fine film", "warm and funny", "what a joy to see", "bright , brisk and moving"]
NEGATIVE = ["a dull film", "cold and tiresome", "what a bore to see", "dim , slow and clumsy"]
ROWS = [
    (text, label)
    for pair in zip(POSITIVE, NEGATIVE, strict=True)
    for text, label in zip(pair, ("positive", "negative"), strict=True)
] * 5
CSV = "sentence,label\n" + "".join(f'"{text}",{label}\n' for text, label in ROWS)


@pytest.fixture(scope="session", autouse=True)
def caches(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Caches of this test run's own, so that nothing on the machine is used or changed."""
    import datasets

    home = tmp_path_factory.mktemp("hf_home")
    os.environ["HF_HOME"] = str(home)
    datasets.config.HF_DATASETS_CACHE = home / "datasets"


def start(folder: Path, *flags: object, **environment: str) -> subprocess.Popen:
    """The real program, started in `folder`; what it prints is read from its pipes."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / "finetune.py"), *map(str, flags)],
        cwd=folder,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def finetune(tmp_path: Path):
    """Run the real program in `tmp_path`: `finetune(*flags, **environment)`.

    `seconds` of what it returns are those of a processor, which other work on the machine does not
    lengthen much.
    """

    def processor_seconds() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    def run(*flags: object, timeout: float = 300, **environment: str) -> SimpleNamespace:
        command = [sys.executable, str(ROOT / "finetune.py"), *map(str, flags)]
        before = processor_seconds()
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env=os.environ | environment,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        return SimpleNamespace(
            code=done.returncode,
            out=done.stdout,
            err=done.stderr,
            errors=errors,
            seconds=processor_seconds() - before,
        )

    return run


@pytest.fixture
def in_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture):
    """What `finetune` does, without seconds of imports: `in_process(*flags)`.

    A run that does not end, such as one that should have been refused, ends after five minutes.
    """
    import warm

    from outputs import plots as pictures
    from system import console

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pictures, "_save", warm.save_at_once)
    monkeypatch.setattr(console, "_ignore_signals", lambda: None)  # Of the tests themselves.

    def end(*_: object) -> None:
        raise AssertionError("still running after 300 s")

    def run(*flags: object) -> SimpleNamespace:
        code = 0
        capfd.readouterr()
        before = signal.signal(signal.SIGALRM, end)
        signal.alarm(300)
        try:
            warm.program([*map(str, flags)])
        except SystemExit as end_of_run:
            code = end_of_run.code or 0
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, before)
        out, err = capfd.readouterr()
        errors = [line for line in err.splitlines() if line.startswith("error: ")]
        return SimpleNamespace(code=code, out=out, err=err, errors=errors)

    return run


ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "0"}


@functools.cache
def scenarios() -> tuple[subprocess.Popen, IO[str]]:
    """group.py, in which all is imported, and what it says on stderr."""
    said = tempfile.TemporaryFile("w+")  # noqa: SIM115 (open as long as the program runs)
    program = subprocess.Popen(
        [sys.executable, str(ROOT / "tests" / "group.py")],
        env=os.environ | ONE_THREAD | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=said,
        text=True,
    )
    return program, said


def scenario(name: str, folder: Path, **arguments: object) -> dict:
    """What a scenario of warm.py or group.py has found."""
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


def builtin_folder() -> Path:
    from inputs import encoder_files as model_files

    return model_files.find_model("builtin")


def copy_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"):
        shutil.copy(builtin_folder() / name, folder)


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


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint that is shared by tests and changed by none."""
    return save_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def trained(tiny: Path, tmp_path_factory: pytest.TempPathFactory):
    """The result of a run on CSV, for tests of what is done with one; changed by none."""
    from finetune import finetune

    folder = tmp_path_factory.mktemp("trained")
    (folder / "train.csv").write_text(CSV)
    # Of these three it cannot get all right.
    odd = "a fine film,negative\na dull film,positive\nwarm and funny,negative\n"
    (folder / "dev.csv").write_text(CSV + odd)
    how = {"epochs": 8, "batch_size": 8, "learning_rate": 1e-2, "log_every": 2}
    return finetune(model=tiny, data=folder, output_dir=folder / "run", **how)


@pytest.fixture
def small_builtin(monkeypatch, tiny, tmp_path_factory) -> None:
    """In this process the stand-ins are small: a tiny model and few sentences."""
    from inputs import encoder_files as model_files
    from inputs import tables

    folder = tmp_path_factory.mktemp("builtin")
    for name in ("train", "dev"):
        (folder / f"{name}.csv").write_text(CSV)
    monkeypatch.setattr(model_files, "_find_builtin", lambda: tiny)
    monkeypatch.setattr(tables, "BUILTIN", folder)
