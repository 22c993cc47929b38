"""Settings from flags, constants and keywords: wrong values are refused within a second."""

import ast
import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
from harness.checks import check_refused
from harness.helpers import CSV, ROOT, drop_file_capabilities

import finetune as script
from system.console import InputError
from training import settings as rules
from training.program import read_settings

WHOLE_NUMBER = "must be a whole number from 1 to 2147483647"
RATE = "--learning-rate: must be a number above 0"
FLAGS = {
    "unknown flag": (["--no-such-flag", "3"], ["--no-such-flag: unknown flag; --help lists"]),
    "unknown flag with a negative value": (["--bogus", "-5"], ["--bogus: unknown flag"]),
    "two negative values": (["--bogus", "-5", "-6"], ["--bogus: unknown flag", "'-6': unexpected"]),
    "a flag that begins like -inf": (["-info"], ["-info: unknown flag"]),
    "abbreviated flag": (["--epoch", "3"], ["--epoch: unknown flag; did you mean --epochs?"]),
    "epochs 0": (["--epochs", "0"], [f"--epochs: {WHOLE_NUMBER} (found 0)"]),
    "epochs -1": (["--epochs", "-1"], [f"--epochs: {WHOLE_NUMBER} (found -1)"]),
    "epochs 1.5": (["--epochs", "1.5"], [f"--epochs: {WHOLE_NUMBER} (found '1.5')"]),
    "epochs abc": (["--epochs", "abc"], [f"--epochs: {WHOLE_NUMBER} (found 'abc')"]),
    "epochs without a value": (["--epochs"], [f"--epochs: {WHOLE_NUMBER} (found no value)"]),
    "learning rate 0": (["--learning-rate", "0"], [f"{RATE} (found 0.0)"]),
    "learning rate negative": (["--learning-rate", "-1e-5"], [f"{RATE} (found -1e-05)"]),
    "learning rate -inf": (["--learning-rate", "-inf"], [f"{RATE} (found -inf)"]),
    "learning rate nan": (["--learning-rate", "nan"], [f"{RATE} (found nan)"]),
    "warm-up of the whole run": (["--warmup", "1"], ["to below 1 (found 1.0)"]),
    "seed negative": (["--seed", "-1"], ["from 0 to 2**64 - 1 (found -1)"]),
    "unknown choice": (["--keep", "worst"], ["best, macro_f1 or last (found 'worst')"]),
    "text column without a name": (["--text-column", ""], ["must be column names (found [''])"]),
    "unknown encoding": (
        ["--encoding", "cp1525"],
        ["--encoding: must be the name of an encoding, such as utf-8 or cp1252 (found 'cp1525')"],
    ),
    "an encoding of bytes": (["--encoding", "base64"], ["of an encoding, such as"]),
    "a value without a flag": (["reviews.csv"], ["'reviews.csv': unexpected argument"]),
    "a name with a line break": (["--model", "a\nb"], ["--model a b: no such folder"]),
    "a name too long": (["--output-dir", "x" * 300], ["File name too long"]),
    "several at once": (
        [
            *("--epochs", "0", "--batch-size", "x", "--frobnicate=1", "word", "--data", "no.csv"),
            *("--seed=1.0", "--compile=yes", "--log-every", "3000000000"),
        ],
        [
            *("--epochs", "--batch-size", "--frobnicate", "'word': unexpected"),
            *("--data no.csv: no such", "--seed", "--compile=yes: takes no value"),
            "from 1 to 2147483647",
        ],
    ),
}


def test_the_flags_of_values_set_the_same_values():
    flags = ["--label-column=-x", "--text-column", "a b", "c", "--no-compile", "--epochs", "2"]
    flags += ["--learning-rate", "1e-05", "--resume", "--output-dir", "x y"]
    values, names = rules.from_flags(vars(script), flags, problems := [])
    written = rules.as_flags({name: values[name] for name in names})
    assert rules.from_flags(vars(script), written, problems) == (values, names) and not problems


def test_a_tilde_is_the_home_folder_in_paths_from_python_and_in_flags(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.csv").write_text(CSV)
    keywords = {"data": "~/a.csv", "output_dir": Path("~/run"), "model": "builtin"}
    by_keyword = read_settings(rules.from_keywords, vars(script), keywords)
    # A shell does not replace the ~ of --data=~/a.csv.
    flags = ["--data=~/a.csv", "--output-dir=~/run", "--model=builtin"]
    for chosen in (by_keyword, read_settings(rules.from_flags, vars(script), flags)):
        assert (chosen.data, chosen.output_dir) == (f"{tmp_path}/a.csv", f"{tmp_path}/run")
    with pytest.raises(InputError, match=r"~nobody-there/a\.csv: no such file"):
        read_settings(rules.from_keywords, vars(script), {"data": "~nobody-there/a.csv"})


@pytest.mark.parametrize("flags, messages", FLAGS.values(), ids=FLAGS)
def test_a_wrong_flag_is_refused_within_a_second(finetune, tmp_path, flags, messages):
    run = finetune(*flags)
    check_refused(run, tmp_path / "runs", *messages)
    # Importing the libraries takes ten seconds.
    assert run.seconds < 1


@pytest.mark.parametrize("flag", ["--help", "--epochs=0"])
def test_help_and_a_wrong_flag_are_answered_without_importing_the_libraries(flag):
    listing = subprocess.run(
        [sys.executable, "-X", "importtime", str(ROOT / "finetune.py"), flag],
        capture_output=True,
        text=True,
    ).stderr
    imported = {line.split("|")[-1].strip() for line in listing.splitlines()}
    assert "training.settings" in imported
    assert not imported & {"torch", "transformers", "datasets", "evaluate", "numpy", "pyarrow"}


def test_help_shows_every_setting_with_its_reason_within_a_second(finetune):
    run = finetune("--help")
    assert run.code == 0
    assert run.seconds < 1
    for name in rules.ROWS:
        assert rules.flag(name) in run.out
    assert "--no-compile" in run.out
    assert "Passes over the training data" in run.out


def from_flags(*argv: str, **constants: object) -> rules.Settings:
    return read_settings(rules.from_flags, vars(script) | constants, argv)


def from_keywords(**keywords: object) -> rules.Settings:
    return read_settings(rules.from_keywords, vars(script), keywords)


def test_the_constants_are_valid_and_count_as_defaults():
    chosen = from_flags()
    assert chosen.as_dict() == {name: vars(script)[name.upper()] for name in rules.ROWS}
    assert chosen.explicit == set() and chosen.outage is None


def test_an_edited_constant_passes_the_same_checks_as_a_flag():
    assert from_flags(LEARNING_RATE=1).learning_rate == 1.0
    assert from_flags(TEXT_COLUMN="a").text_column == ["a"]
    wrong = {"EPOCHS": 1.5, "BATCH_SIZE": "32", "COMPILE": 1, "WARMUP": None, "SEED": True}
    wrong |= {"LEARNING_RATE": 10**400}
    with pytest.raises(InputError) as caught:
        from_flags("--keep", "none", **wrong)
    assert len(caught.value.problems) == 7
    assert str(caught.value.problems[0]) == (
        "the constant EPOCHS: must be a whole number from 1 to 2147483647 (found 1.5)"
    )


def test_a_flag_replaces_its_constant_and_counts_as_explicit():
    chosen = from_flags("--epochs", "7", "--learning-rate=1e-4", "--compile", EPOCHS=2, SEED=3)
    assert (chosen.epochs, chosen.learning_rate, chosen.compile) == (7, 1e-4, True)
    assert chosen.seed == 3 and chosen.explicit == {"epochs", "learning_rate", "compile"}
    assert from_flags("--no-compile", COMPILE=True).compile is False
    assert from_flags("--text-column", *"abc").text_column == ["a", "b", "c"]


def test_flags_and_keywords_with_the_same_values_give_equal_settings():
    keywords = {"epochs": 7, "learning_rate": 1, "text_column": ("a", "b"), "resume": False}
    flags = ["--epochs=7", "--learning-rate", "1", "--text-column", "a", "b", "--no-resume"]
    assert from_keywords(**keywords) == from_flags(*flags)


def test_each_setting_has_its_effect_on_the_result():
    assert rules.affects("epochs") == rules.affects("precision") == rules.RESULT
    assert rules.affects("micro_batch_size") == rules.affects("device") == rules.ROUNDING
    assert rules.affects("log_every") == rules.affects("output_dir") == rules.NOTHING
    assert rules.affects("a setting of an earlier version") == rules.RESULT


# ---- The folder of the run, checked with the settings ----


def test_an_output_folder_that_holds_anything_is_refused_and_not_touched(in_process, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("years of work")
    builtin = ["--model", "builtin", "--data", "builtin"]
    run = in_process(*builtin, "--output-dir", "run")
    assert run.code == 2 and "the folder holds files" in run.errors[0]
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["thesis.txt"]
    run = in_process(*builtin, "--output-dir", "run/thesis.txt/run")
    assert run.code == 2 and "thesis.txt is not a folder" in run.errors[0]
    assert (tmp_path / "run" / "thesis.txt").read_text() == "years of work"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="capabilities are Linux's")
def test_an_output_folder_without_permission_is_refused(tmp_path):
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    done = subprocess.run(
        [sys.executable, str(ROOT / "finetune.py"), "--output-dir", str(locked / "run")],
        capture_output=True,
        text=True,
        preexec_fn=drop_file_capabilities,
    )
    assert done.returncode == 2, done.stderr
    assert "no permission to write in" in done.stderr and "Traceback" not in done.stderr


def test_the_page_has_one_constant_for_each_row_in_the_same_order():
    page = ast.parse((ROOT / "finetune.py").read_text())
    assigned = [
        target.id
        for statement in page.body
        if isinstance(statement, ast.Assign)
        for target in statement.targets
        if target.id.isupper()
    ]
    assert sorted(assigned) == sorted(name.upper() for name in rules.ROWS)
    assert set(assigned) == {name for name in vars(script) if name.isupper()} - {"F"}
    assert list(map(str.lower, assigned)) == list(rules.ROWS)


def test_no_setting_can_be_changed_or_deleted():
    settings = read_settings(rules.from_flags, vars(script), ["--model=builtin", "--data=builtin"])
    fields = [field.name for field in dataclasses.fields(rules.Settings)]
    assert set(rules.ROWS) < set(fields)
    for name in fields:
        before = getattr(settings, name)
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(settings, name, None)
        with pytest.raises(dataclasses.FrozenInstanceError):
            delattr(settings, name)
        assert getattr(settings, name) == before
