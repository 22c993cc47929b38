"""console.py prints problems and progress, chooses exit codes, and handles signals."""

import itertools
import os
import signal
import subprocess
import sys
import time

import pytest
from harness.helpers import ROOT

from system import console
from system.console import DeferredSignals, InputError, Problem, RunError, Stopped

# ---- Problems ----


@pytest.mark.parametrize(
    "host, flag, where, remedy",
    [*itertools.product(("h", ""), ("--f", ""), ("a.csv", ""), ("r", ""))],
)
def test_a_problem_line_has_host_flag_place_problem_remedy_and_skips_empty_parts(
    host, flag, where, remedy
):
    texts = {
        ("h", "--f", "a.csv", "r"): "h: --f a.csv: wrong; r",
        ("h", "--f", "a.csv", ""): "h: --f a.csv: wrong",
        ("h", "--f", "", "r"): "h: --f: wrong; r",
        ("h", "--f", "", ""): "h: --f: wrong",
        ("h", "", "a.csv", "r"): "h: a.csv: wrong; r",
        ("h", "", "a.csv", ""): "h: a.csv: wrong",
        ("h", "", "", "r"): "h: wrong; r",
        ("h", "", "", ""): "h: wrong",
        ("", "--f", "a.csv", "r"): "--f a.csv: wrong; r",
        ("", "--f", "a.csv", ""): "--f a.csv: wrong",
        ("", "--f", "", "r"): "--f: wrong; r",
        ("", "--f", "", ""): "--f: wrong",
        ("", "", "a.csv", "r"): "a.csv: wrong; r",
        ("", "", "a.csv", ""): "a.csv: wrong",
        ("", "", "", "r"): "wrong; r",
        ("", "", "", ""): "wrong",
    }
    problem = Problem(where, "wrong", remedy, flag, host)
    assert str(problem) == texts[host, flag, where, remedy]


def test_an_input_error_has_one_line_for_each_problem():
    problems = Problem("a.csv", "empty"), Problem("", "found 0", "use 1", "--epochs")
    error = InputError(*problems)
    assert error.problems == problems
    assert str(error) == "a.csv: empty\n--epochs: found 0; use 1"


def test_a_printed_command_can_be_pasted_into_the_shell_of_each_system(monkeypatch):
    assert console.quoted("my run", "$x") == "'my run' '$x'"
    with monkeypatch.context() as windows:
        windows.setattr(os, "name", "nt")
        assert console.quoted(r"C:\runs\a", "my run") == r'C:\runs\a "my run"'


def test_problems_are_collected_and_other_errors_are_raised():
    problems = [Problem("a", "wrong")]
    with console.collect_problems(problems):
        raise InputError(Problem("b", "wrong"), Problem("c", "wrong"))
    assert [problem.where for problem in problems] == ["a", "b", "c"]
    with pytest.raises(ZeroDivisionError), console.collect_problems(problems):
        raise ZeroDivisionError
    assert len(problems) == 3


# ---- Progress ----


@pytest.fixture
def at_once(monkeypatch) -> None:
    """Print a progress line at every update instead of every 30 s."""
    monkeypatch.setattr(console, "SECONDS_BETWEEN_LOG_LINES", 0)


def test_a_progress_line_in_a_log_file_has_rate_loss_and_time_left(at_once, capsys):
    with console.progress(total=200, unit="sentences", desc="training") as bar:
        bar.start_t -= 10
        bar.set_postfix_str("loss 0.321", False)
        bar.update(50)
    line = capsys.readouterr().err
    assert line == "training: 50 of 200,  5.00 sentences/s, 00:30 left, loss 0.321\n"


def test_a_message_neither_repeats_nor_breaks_a_progress_line(at_once, capsys):
    with console.progress(total=200, unit="sentences", desc="training") as bar:
        bar.start_t -= 10
        bar.update(50)
        console.say("a note")
        console.result("epoch 0")
        bar.start_t -= 10
        bar.update(50)
    out, err = capsys.readouterr()
    assert out == "epoch 0\n"
    assert err.splitlines() == [
        "training: 50 of 200,  5.00 sentences/s, 00:30 left",
        "a note",
        "training: 100 of 200,  5.00 sentences/s, 00:20 left",
    ]


def test_a_log_file_gets_a_line_every_30_seconds_and_none_for_short_work(monkeypatch, capsys):
    assert console.SECONDS_BETWEEN_LOG_LINES == 30
    with console.progress(total=1000, unit="sentences", desc="reading") as bar:
        for _ in range(500):
            bar.update(1)
        assert capsys.readouterr().err == ""
        bar.start_t, bar.last_print_t = bar.start_t - 31, bar.last_print_t - 31
        for _ in range(499):
            bar.update(1)
    assert capsys.readouterr().err.startswith("reading: 501 of 1000, 16.1")


def test_the_rate_of_a_resumed_run_does_not_count_earlier_work(at_once, capsys):
    with console.progress(total=40_000, unit="sentences", desc="training", done=20_000) as bar:
        bar.start_t -= 10
        bar.update(10_000)
    assert capsys.readouterr().err == "training: 30.0k of 40.0k, 1.00k sentences/s, 00:10 left\n"


def test_progress_without_a_total_has_no_time_left(at_once, capsys):
    with console.progress(total=None, unit="texts", desc="predicting") as bar:
        bar.start_t -= 10
        bar.update(50)
    assert capsys.readouterr().err == "predicting: 50,  5.00 texts/s\n"


def test_only_the_main_process_prints_messages_results_and_progress(at_once, monkeypatch, capsys):
    # Launchers except for torchrun set RANK for processes of separate runs, too.
    for launched, rank, is_main in ((True, "0", True), (True, "1", False), (False, "1", True)):
        monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
        if launched:
            monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a run")
        monkeypatch.setenv("RANK", rank)
        console.say("a note")
        console.result("epoch 0")
        for show in (False, True):
            with console.progress(total=200, unit="texts", desc="reading", show=show) as bar:
                bar.start_t = bar.start_t - 10 if is_main and show else 0
                bar.update(50)
        out, err = capsys.readouterr()
        assert out == "epoch 0\n" * is_main
        assert err == "a note\nreading: 50 of 200,  5.00 texts/s, 00:30 left\n" * is_main


# ---- Exit codes ----


@pytest.mark.parametrize(
    "text",
    [
        "CUDA out of memory. Tried to allocate 2.00 GiB",
        "[enforce fail at alloc_cpu.cpp:120] DefaultCPUAllocator: can't allocate memory",
        "MPS backend out of memory",
        "CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate",
    ],
)
def test_an_out_of_memory_error_of_each_device_is_recognized(text):
    assert console.is_out_of_memory(RuntimeError(text)) and console.is_out_of_memory(MemoryError())
    assert not console.is_out_of_memory(RuntimeError("shapes do not match"))
    assert not console.is_out_of_memory(ValueError(text))


class CompilerError(RuntimeError):
    """An error like torch's, which the program recognizes by the name of the module."""

    __module__ = "torch._inductor.exc"


ERRORS = {
    "wrong input": (
        InputError(Problem("a\nb.csv", "empty"), Problem("", "found 0", "use 1", "--epochs")),
        2,
        ["a b.csv: empty", "--epochs: found 0; use 1"],
    ),
    "cannot continue": (RunError("the loss\nis not finite"), 1, ["the loss is not finite"]),
    "no memory": (MemoryError(), 1, [console.OUT_OF_MEMORY]),
    "no memory on a GPU": (RuntimeError("CUDA out of memory"), 1, [console.OUT_OF_MEMORY]),
    "a full disk": (
        OSError(28, "No space left on device"),
        1,
        ["[Errno 28] No space left on device; check the free space, and if HF_HOME is writable"],
    ),
    "no compiler": (
        CompilerError("no C++ compiler"),
        1,
        ["--compile: no C++ compiler; use --no-compile"],
    ),
    "Ctrl-C": (Stopped(signal.SIGINT), 130, ["stopped by SIGINT"]),
    "SIGTERM": (Stopped(signal.SIGTERM), 143, ["stopped by SIGTERM"]),
}


@pytest.mark.parametrize("error, code, lines", ERRORS.values(), ids=ERRORS)
def test_each_kind_of_error_has_its_exit_code_and_lines(monkeypatch, capsys, error, code, lines):
    monkeypatch.setattr(console, "ignore_signals", lambda: None)
    with pytest.raises(SystemExit) as end, console.exit_codes():
        raise error
    assert end.value.code == code
    mark = "" if isinstance(error, Stopped) else "error: "
    out, err = capsys.readouterr()
    assert out == "" and err.splitlines() == [mark + line for line in lines]


@pytest.mark.parametrize("error", [ValueError("a defect"), RuntimeError("a defect"), KeyError(1)])
def test_a_defect_of_the_program_keeps_its_traceback(capsys, error):
    with pytest.raises(type(error)) as caught, console.exit_codes():
        raise error
    assert caught.value is error and capsys.readouterr().err == ""


def test_a_program_without_an_error_keeps_its_own_exit_code():
    with console.exit_codes():
        pass
    with pytest.raises(SystemExit) as end, console.exit_codes():
        sys.exit(0)
    assert end.value.code == 0


@pytest.mark.parametrize("rank", ["0", "1"])
@pytest.mark.parametrize("may_report", [False, True])
def test_only_the_process_that_may_report_prints_at_any_rank(monkeypatch, capsys, rank, may_report):
    monkeypatch.setattr(console, "ignore_signals", lambda: None)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a run")
    monkeypatch.setenv("RANK", rank)
    with pytest.raises(SystemExit) as end, console.exit_codes(lambda: may_report):
        raise RunError("a reason")
    assert end.value.code == 1
    assert capsys.readouterr().err == "error: a reason\n" * may_report


PRINTS = """
import sys
from system import console
with console.exit_codes():
    while True:
        console.result("a line")
"""


def test_a_closed_stdout_ends_the_program_with_code_1_and_one_line():
    program = subprocess.Popen(
        [sys.executable, "-c", PRINTS],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert program.stdout.readline() == "a line\n"
    program.stdout.close()
    assert program.stderr.read() == "error: stdout was closed before the run was over\n"
    assert program.wait(60) == 1
    program.stderr.close()


def test_a_stdout_that_cannot_be_written_ends_the_program_with_code_1_and_one_line():
    with open("/dev/full", "w") as full:  # noqa: PTH123
        done = subprocess.run(
            [sys.executable, "-c", PRINTS], cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: standard output could not be written (No space left")


@pytest.mark.parametrize("streams", ["2> /dev/full", "2>&-", ">&- 2>&-"])
def test_a_stderr_that_cannot_be_written_does_not_change_the_exit_code(streams):
    command = f"{sys.executable} {ROOT / 'finetune.py'} --epochs 0 {streams}"
    assert subprocess.run(command, shell=True).returncode == 2


# ---- Signals ----


def test_a_first_signal_waits_for_the_step_and_a_second_signal_acts_at_once(monkeypatch, capfd):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    with pytest.raises(KeyboardInterrupt), DeferredSignals() as signals:
        assert signals.number == 0
        signal.raise_signal(signal.SIGINT)
        assert signals.number == signal.SIGINT
        assert "stopping after this step; a second signal" in capfd.readouterr().err
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_under_torchrun_a_second_signal_waits_for_the_step_too(monkeypatch, capfd):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a run")
    with DeferredSignals() as signals:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.raise_signal(number)
            assert signals.number == signal.SIGTERM
    assert capfd.readouterr().err.splitlines().count("stopping after this step") == 2
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("launched", [False, True])
def test_under_torchrun_a_failed_process_reports_before_a_signal_ends_it(monkeypatch, launched):
    handlers = []
    monkeypatch.setattr(console, "ignore_signals", lambda: handlers.append("ignored"))
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    if launched:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a run")
    signals = DeferredSignals()
    with pytest.raises(RunError), signals:
        raise RunError("a reason")
    assert handlers == ["ignored"] * launched
    signals._restore()


def test_after_the_steps_signals_act_as_before_and_no_signal_is_pending():
    before = [signal.getsignal(number) for number in console.STOP_SIGNALS]
    signals = DeferredSignals()
    with signals:
        signal.raise_signal(signal.SIGTERM)
        assert signals.number == signal.SIGTERM
        assert signal.getsignal(signal.SIGTERM) == before[1]
    assert signals.number == 0
    assert [signal.getsignal(number) for number in console.STOP_SIGNALS] == before


# The default tests also stop a run during training, in a process without slow imports.
MOMENTS = [0, 0.05, 0.2, 0.4, 0.8, 1.6, 3.2, pytest.param("training", marks=pytest.mark.long)]


@pytest.mark.parametrize("number", console.STOP_SIGNALS)
@pytest.mark.parametrize("seconds", MOMENTS)
def test_a_signal_at_any_moment_leaves_no_traceback(tmp_path, tiny, seconds, number):
    flags = ["--model", tiny, "--data", "builtin", "--output-dir", tmp_path / "run"]
    flags += ["--max-train-samples", 64]
    command = [sys.executable, "-X", "importtime", str(ROOT / "finetune.py"), *map(str, flags)]
    err = tmp_path / "err"
    with err.open("w") as file:
        process = subprocess.Popen(
            [*command, "--epochs", "500"], stderr=file, stdout=subprocess.PIPE, text=True
        )
    if seconds == "training":
        assert process.stdout.readline().startswith("epoch 0")
    else:
        # training.settings is one of the first imports of the program.
        while "training.settings\n" not in err.read_text():
            assert process.poll() is None, err.read_text()
            time.sleep(0.005)
        time.sleep(seconds)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == 128 + number, err.read_text()
    assert "Traceback" not in err.read_text() and "Error" not in err.read_text()
    assert f"stopped by {signal.Signals(number).name}" in err.read_text()
