"""Fixtures of all tests, and the settings that must precede their imports."""

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

# Tests run two at a time, on two cores. Threads of several programs on one core wait for each
# other, which takes several times as long. torch reads this at its import, in the tests too.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# No test asks the real Hub; the Hub's library reads this at its import.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from harness.helpers import CSV, ROOT, save_tiny, scenario

# The time of an example depends on other work on the machine.
hypothesis.settings.register_profile("beside others", deadline=None)
hypothesis.settings.load_profile("beside others")


@pytest.fixture(scope="session", autouse=True)
def caches(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Caches of this test run's own, so that nothing on the machine is used or changed."""
    import datasets

    home = tmp_path_factory.mktemp("hf_home")
    os.environ["HF_HOME"] = str(home)
    datasets.config.HF_DATASETS_CACHE = home / "datasets"


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
    from harness import warm

    from outputs import plots
    from system import console

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plots, "_save", warm.save_at_once)
    for name in ("end_on_signals", "ignore_signals"):  # Signals of the tests themselves.
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
    """A tiny checkpoint that is shared by tests and changed by none."""
    return save_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def trained(tiny: Path, tmp_path_factory: pytest.TempPathFactory):
    """The result of a run on CSV, for tests of what is done with one; changed by none."""
    from finetune import finetune

    folder = tmp_path_factory.mktemp("trained")
    (folder / "train.csv").write_text(CSV)
    # It cannot get all of these three right.
    odd = "a fine film,negative\na dull film,positive\nwarm and funny,negative\n"
    (folder / "dev.csv").write_text(CSV + odd)
    how = {"epochs": 8, "batch_size": 8, "learning_rate": 1e-2, "log_every": 2}
    return finetune(model=tiny, data=folder, output_dir=folder / "run", **how)


@pytest.fixture(scope="session")
def classifier(trained):
    """The model of `trained`, ready for use; changed by none."""
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
    """Predict in `tmp_path` without seconds of imports: `predicted(*arguments, stdin=b"")`."""
    import predict
    from outputs import classifier as classifiers
    from system import console

    load, trained_run = classifiers.load, str(trained.folder)

    def load_once(name: str):
        return classifier if name == trained_run else load(name)

    monkeypatch.setattr(classifiers, "load", load_once)
    for name in ("stop_on_signals", "ignore_signals"):  # Signals of the tests themselves.
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
    """In this process the stand-ins are small: a tiny model and few sentences."""
    from inputs import encoder_files, files

    folder = tmp_path_factory.mktemp("builtin")
    for name in ("train", "dev"):
        (folder / f"{name}.csv").write_text(CSV)
    monkeypatch.setattr(encoder_files, "_find_builtin", lambda: tiny)
    monkeypatch.setattr(files, "BUILTIN", folder)


@pytest.fixture(scope="session")
def no_dropout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `tiny`, without dropout: for runs that are compared."""
    off = {"dropout": 0.0, "attention_dropout": 0.0, "seq_classif_dropout": 0.0}
    return save_tiny(tmp_path_factory.mktemp("no_dropout"), **off)


@pytest.fixture(scope="session")
def few_sentences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 64 sentences to train on and 24 to validate on: a run in two seconds."""
    folder = tmp_path_factory.mktemp("few")
    for name, rows in (("train", 64), ("dev", 24)):
        lines = (ROOT / "builtin" / f"{name}.csv").read_text("utf-8").splitlines(keepends=True)
        (folder / f"{name}.csv").write_text("".join(lines[: 1 + rows]), "utf-8")
    return folder


@pytest.fixture(scope="session")
def stopped_once(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    """A folder with data, a model, and two runs, `run` and `other`, that a signal has stopped."""
    from harness.stopped import LONG

    folder = tmp_path_factory.mktemp("stopped")
    shutil.copytree(tiny, folder / "tiny")
    (folder / "a.csv").write_text(CSV)
    each = [LONG, [*LONG[:-2], "other", "--resume", "--seed", "1"]]
    for flags, (code, output) in zip(each, scenario("stopped", folder, each=each), strict=True):
        assert code == 143 and "epoch 0" in output and "stopped by SIGTERM" in output
        assert f"the same command with --output-dir {flags[9]} --resume" in output
        assert "Traceback" not in output
    return folder


@pytest.fixture
def stopped(stopped_once: Path, tmp_path: Path) -> list[str]:
    """The flags of a run in `tmp_path`/run, which a signal has stopped."""
    from harness.stopped import LONG

    shutil.copytree(stopped_once, tmp_path, dirs_exist_ok=True)
    return LONG
