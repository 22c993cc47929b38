"""Fixtures of all tests, and environment variables that libraries read at import."""

import io
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import hypothesis
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

# Two tests run at a time on two cores, and more threads than cores slow both down several times.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# No test reaches the real Hub.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from harness.helpers import CSV, ROOT, save_tiny, scenario

# The time of an example depends on the load of the machine, so no example has a deadline.
hypothesis.settings.register_profile("beside others", deadline=None)
hypothesis.settings.load_profile("beside others")


@pytest.fixture(scope="session", autouse=True)
def caches(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Give this test run its own caches, so that no cache of the machine is used or changed."""
    import datasets

    home = tmp_path_factory.mktemp("hf_home")
    os.environ["HF_HOME"] = str(home)
    datasets.config.HF_DATASETS_CACHE = home / "datasets"


@pytest.fixture
def finetune(tmp_path: Path):
    """Run the real program in `tmp_path`: `finetune(*flags, **environment)`.

    `seconds` of the result is processor time, because the load of the machine hardly changes it.
    """

    def processor_seconds() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

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
    """Run finetune.py inside the test process, without seconds of imports: `in_process(*flags)`.

    The fixture stops a run after five minutes, for example if the program should have refused it.
    """
    from harness import warm

    from outputs import plots
    from system import console

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plots, "_save", warm.save_at_once)
    for name in ("end_on_signals", "ignore_signals"):
        monkeypatch.setattr(console, name, lambda: None)

    def end(*_: object) -> None:
        raise AssertionError("still running after 300 s")

    def run(*flags: object) -> SimpleNamespace:
        code = 0
        capfd.readouterr()
        before = signal.signal(signal.SIGALRM, end)
        signal.alarm(300)
        try:
            warm.run_program([*map(str, flags)])
        except SystemExit as end_of_run:
            code = end_of_run.code or 0
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, before)
        out, err = capfd.readouterr()
        errors = [line for line in err.splitlines() if line.startswith("error: ")]
        return SimpleNamespace(code=code, out=out, err=err, errors=errors)

    return run


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint that all tests share and no test changes."""
    return save_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def trained(tiny: Path, tmp_path_factory: pytest.TempPathFactory):
    """The result of a complete run on CSV; no test changes it."""
    from finetune import finetune

    folder = tmp_path_factory.mktemp("trained")
    (folder / "train.csv").write_text(CSV)
    # These labels contradict CSV, so the run makes mistakes.
    mislabelled = "a fine film,negative\na dull film,positive\nwarm and funny,negative\n"
    (folder / "dev.csv").write_text(CSV + mislabelled)
    settings = {"epochs": 8, "batch_size": 8, "learning_rate": 1e-2, "log_every": 2}
    # predict.py and export.py answer in float32 on a CPU.
    settings["precision"] = "fp32"
    return finetune(model=tiny, data=folder, output_dir=folder / "run", **settings)


@pytest.fixture(scope="session")
def classifier(trained):
    """The loaded model of `trained`; no test changes it."""
    from outputs import classifier as classifiers

    return classifiers.load(str(trained.folder))


@pytest.fixture
def predicted(
    trained,
    classifier,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture,
):
    """Run predict.py inside the test process, in `tmp_path`: `predicted(*arguments, stdin=b"")`."""
    import predict
    from outputs import classifier as classifiers
    from system import console

    load, trained_run = classifiers.load, str(trained.folder)

    def load_once(name: str):
        return classifier if name == trained_run else load(name)

    monkeypatch.setattr(classifiers, "load", load_once)
    for name in ("stop_on_signals", "ignore_signals"):
        monkeypatch.setattr(console, name, lambda: None)
    monkeypatch.setattr(predict.signal, "signal", lambda *_: None)
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object, stdin: bytes = b"", run: str = trained_run) -> SimpleNamespace:
        source = io.BufferedReader(io.BytesIO(stdin))
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=source, isatty=lambda: False))
        out = io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True)
        monkeypatch.setattr(sys, "stdout", out)
        code = 0
        try:
            with console.exit_codes():
                predict.main([run, *map(str, arguments)])
        except SystemExit as end_of_run:
            code = end_of_run.code
        answers, err = out.buffer.getvalue().decode(), capfd.readouterr().err
        errors = [line for line in err.splitlines() if line.startswith("error: ")]
        return SimpleNamespace(code=code, out=answers, err=err, errors=errors)

    return run


@pytest.fixture
def small_builtin(monkeypatch, tiny, tmp_path_factory) -> None:
    """Replace the stand-ins in this process by a tiny model and a few sentences."""
    from inputs import encoder_files, files

    folder = tmp_path_factory.mktemp("builtin")
    for name in ("train", "dev"):
        (folder / f"{name}.csv").write_text(CSV)
    monkeypatch.setattr(encoder_files, "_find_builtin", lambda: tiny)
    monkeypatch.setattr(files, "BUILTIN", folder)


@pytest.fixture(scope="session")
def no_dropout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint without dropout, for tests that compare the weights of runs."""
    rates = {"dropout": 0.0, "attention_dropout": 0.0, "seq_classif_dropout": 0.0}
    return save_tiny(tmp_path_factory.mktemp("no_dropout"), **rates)


@pytest.fixture(scope="session")
def few_sentences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 64 training and 24 validation sentences, for a run of two seconds."""
    folder = tmp_path_factory.mktemp("few")
    for name, rows in (("train", 64), ("dev", 24)):
        lines = (ROOT / "builtin" / f"{name}.csv").read_text("utf-8").splitlines(keepends=True)
        (folder / f"{name}.csv").write_text("".join(lines[: 1 + rows]), "utf-8")
    return folder


@pytest.fixture(scope="session")
def stopped_once(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    """A folder with data, a model, and the runs `run` and `other`, both stopped by a signal."""
    from harness.stopped import LONG

    folder = tmp_path_factory.mktemp("stopped")
    shutil.copytree(tiny, folder / "tiny")
    (folder / "a.csv").write_text(CSV)
    commands = [LONG, [*LONG[:-2], "other", "--resume", "--seed", "1"]]
    results = scenario("stopped", folder, commands=commands)
    for flags, (code, output) in zip(commands, results, strict=True):
        assert code == 143 and "epoch 0" in output and "stopped by SIGTERM" in output
        assert f"repeat the command with --output-dir {flags[9]} --resume" in output
        assert "Traceback" not in output
    return folder


@pytest.fixture
def stopped(stopped_once: Path, tmp_path: Path) -> list[str]:
    """The flags of a run in `tmp_path`/run that a signal has stopped."""
    from harness.stopped import LONG

    shutil.copytree(stopped_once, tmp_path, dirs_exist_ok=True)
    return LONG
