"""The constants at the top of finetune.py as flags: read, checked, every problem told at once."""

import argparse
import difflib
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

from inputs import encoder_files as model_files
from inputs import tables
from system.console import InputError, Parser, gather
from training import boards, record, run_folder

Settings = SimpleNamespace  # Each setting under its constant's name in small letters.


MOST = 2**31 - 1  # Of a whole number: what every library takes.


def _at_least(least: int):
    return lambda number: least <= number <= MOST


def _one_of(*names: str):
    return lambda name: name in names


def _one_or_two_words(words: list):
    return len(words) in (1, 2) and all(isinstance(word, str) and word for word in words)


# For each constant: its type, what it may be, and the same in words.
RULES = {
    "MODEL": (str, bool, "a Hub id, a folder or `builtin`"),
    "DATA": (str, bool, "`sst2`, `builtin`, a Hub data set, a file or a folder"),
    "TEXT_COLUMN": (list, _one_or_two_words, "one or two columns"),
    "LABEL_COLUMN": (str, bool, "the name of a column"),
    "EPOCHS": (int, _at_least(1), f"a whole number from 1 to {MOST}"),
    "BATCH_SIZE": (int, _at_least(1), f"a whole number from 1 to {MOST}"),
    "MICRO_BATCH_SIZE": (int, _at_least(1), f"a whole number from 1 to {MOST}"),
    "MAX_LENGTH": (int, _at_least(3), f"a whole number from 3 to {MOST}"),
    "MAX_TRAIN_SAMPLES": (int, _at_least(1), f"a whole number from 1 to {MOST}"),
    "SEED": (int, lambda seed: 0 <= seed < 2**64, "a whole number from 0 to 2**64 - 1"),
    "LEARNING_RATE": (float, lambda x: 0 < x < math.inf, "a number above 0"),
    "WARMUP": (float, lambda x: 0 <= x < 1, "a number from 0 up to, not including, 1"),
    "WEIGHT_DECAY": (float, lambda x: 0 <= x < math.inf, "a number of 0 or more"),
    "MAX_GRAD_NORM": (float, lambda x: 0 <= x < math.inf, "a number of 0 or more"),
    "FREEZE_EMBEDDINGS": (bool, lambda value: True, "True or False"),
    "CLASS_WEIGHTS": (str, _one_of("balanced"), "balanced"),
    "KEEP": (str, _one_of("best", "macro_f1", "last"), "best, macro_f1 or last"),
    "DEVICE": (str, _one_of("auto", "cuda", "mps", "cpu"), "auto, cuda, mps or cpu"),
    "PRECISION": (str, _one_of("auto", "fp32", "bf16"), "auto, fp32 or bf16"),
    "COMPILE": (bool, lambda value: True, "True or False"),
    "LOG_EVERY": (int, _at_least(1), f"a whole number from 1 to {MOST}"),
    "TENSORBOARD": (bool, lambda value: True, "True or False"),
    "CHECKPOINT_MINUTES": (float, lambda x: 0 <= x < math.inf, "a number of 0 or more"),
    "OUTPUT_DIR": (str, bool, "a folder"),
    "RESUME": (bool, lambda value: True, "True or False"),
}
# What a look at names and files shows, before anything is loaded.
CHECKS = {"MODEL": model_files.check_name, "DATA": tables.find_files, "TENSORBOARD": boards.check}
MAY_BE_NONE = {
    *("TEXT_COLUMN", "LABEL_COLUMN", "MICRO_BATCH_SIZE", "MAX_LENGTH"),
    *("MAX_TRAIN_SAMPLES", "LEARNING_RATE", "CLASS_WEIGHTS", "OUTPUT_DIR"),
}


def read_settings(
    constants: Mapping[str, object],
    argv: Sequence[str],
) -> Settings:
    """The settings of one run: the constants, each replaced by its flag where argv has it.

    Args:
        constants: the globals of the module that holds the constants.
        argv: the command line without the program's name.
    Returns:
        A namespace with each constant under its name in small letters; `given`, the set of those
        names that came as flags; and `automatic`, those that the run finds out by itself.
    Raises:
        InputError: with one problem for each flag or constant that is wrong.
    """
    parser = _parser(constants, with_help=bool({"-h", "--help"} & set(argv)))
    # argparse stops at `--compile=yes`; it is told with all other problems.
    switches = tuple(f"{_flag(name)}=" for name, (kind, *_) in RULES.items() if kind is bool)
    valued = [word for word in argv if word.replace("--no-", "--").startswith(switches)]
    words = [word for word in argv if word not in valued]
    flags, unknown = parser.parse_known_args(_join_negative_numbers(words))
    problems = [f"{word}: takes no value; write it alone, or --no-…" for word in valued]
    problems += [
        _unknown(word, parser)
        for before, word in zip(["", *unknown], unknown, strict=False)
        # Not the value of an unknown flag.
        if word.startswith("-") or not before.startswith("-") or "=" in before
    ]
    return _checked(constants, vars(flags), _from_words, _flag, problems)


def from_keywords(constants: Mapping[str, object], keywords: Mapping[str, object]) -> Settings:
    """As `read_settings`, of keyword arguments: the constants' names in small letters."""
    names = {name.lower(): name for name in RULES}
    problems = [
        f"unknown setting {word}; {_hint(word, names) or 'the settings are: ' + ', '.join(names)}"
        for word in keywords
        if word not in names
    ]
    known = {word: value for word, value in keywords.items() if word in names}

    def from_value(value: object, kind: type, name: str) -> object:
        if type(value).__module__ == "numpy":  # Of its numbers and arrays, Python's own.
            value = value.tolist()
        return _from_constant(str(value) if isinstance(value, Path) else value, kind, name)

    return _checked(constants, known, from_value, str.lower, problems)


def _checked(
    constants: Mapping[str, object],
    given: Mapping[str, object],
    convert: Callable[[object, type, str], object],
    called: Callable[[str], str],
    problems: list[str],
) -> Settings:
    """The constants, each replaced by what is given for it, unless there is any problem.

    Args:
        convert: a value that is given to one of its constant's type.
        called: a constant's name to what it is called where it is given.
    """
    settings = Settings(given=frozenset(given))
    for name, (kind, allowed, wanted) in RULES.items():
        is_given = name.lower() in given
        try:
            if is_given:
                value = convert(given[name.lower()], kind, name)
            else:
                value = _from_constant(constants[name], kind, name)
            if value is not None and not allowed(value):
                raise ValueError(f"found {value!r:.99}")
            if name in CHECKS:
                CHECKS[name](value)
        except InputError as error:
            problems += error.problems
        except OSError as error:  # A name too long, a folder closed to us.
            problems.append(f"{_flag(name)} {value}: {error.strerror}")
        except (ValueError, OverflowError) as error:
            shown = called(name) if is_given else f"the constant {name}"
            problems.append(f"{shown}: {error}; it must be {wanted}")
        else:
            setattr(settings, name.lower(), value)
    settings.automatic = [k for k, v in vars(settings).items() if v in record.AUTOMATIC]
    with gather(problems):
        run_folder.check(settings)
    if problems:
        raise InputError(*problems)
    return settings


def _flag(name: str) -> str:
    return "--" + name.lower().replace("_", "-")


def _parser(constants: Mapping[str, object], with_help: bool) -> argparse.ArgumentParser:
    parser = Parser(
        prog=Path(constants["__file__"]).name,
        description=constants["__doc__"],
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    comments = _comments(Path(constants["__file__"])) if with_help else {}
    for name, (kind, _, wanted) in RULES.items():
        text = f"{comments.get(name, '')} [{wanted}; now {constants[name]}]".replace("%", "%%")
        if kind is bool:
            parser.add_argument(_flag(name), action=argparse.BooleanOptionalAction, help=text)
        else:
            # Any number of words is taken here and counted later: all problems come at once.
            count = ("+" if kind is list else None) if with_help else "*"
            parser.add_argument(_flag(name), nargs=count, metavar="X", help=text)
    return parser


def _comments(source: Path) -> dict[str, str]:
    # The comment above a constant is its help, so that the two can't say different things.
    blocks = re.findall(r"((?:^# .*\n)+)([A-Z_]+)\b.*=", source.read_text("utf-8"), re.MULTILINE)
    return {name: " ".join(re.findall(r"# (.*)", comment)) for comment, name in blocks}


def _join_negative_numbers(argv: Sequence[str]) -> list[str]:
    # argparse takes `-1e-5` for a flag; written as `--flag=-1e-5` it is a value.
    words: list[str] = []
    for word in argv:
        if re.fullmatch(r"-(\d|\.\d|inf|nan).*", word) and words and words[-1].startswith("--"):
            words[-1] += "=" + word
        else:
            words.append(word)
    return words


def _unknown(word: str, parser: argparse.ArgumentParser) -> str:
    if not word.startswith("-"):
        return f"unexpected word {word!r} on the command line; every setting is a flag"
    known = [option for action in parser._actions for option in action.option_strings]
    flag = word.split("=")[0]
    return f"unknown flag {flag}; {_hint(flag, known) or '--help lists the flags'}"


def _hint(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.75)
    near = [other for other in known if other.startswith(word)][:1] or near
    return f"did you mean {near[0]}?" if near else ""


def _from_words(words: list[str] | bool, kind: type, _: str) -> object:
    if kind is bool or kind is list:
        return words
    if len(words) != 1:
        raise ValueError(f"takes one value, found {len(words)}" + "".join(f" {w!r}" for w in words))
    try:
        return kind(words[0])
    except ValueError:
        raise ValueError(f"found {words[0]!r}") from None


def _from_constant(value: object, kind: type, name: str) -> object:
    if value is None and name in MAY_BE_NONE:
        return None
    if kind is list and isinstance(value, (str, tuple)):
        return [value] if isinstance(value, str) else list(value)
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise ValueError(f"found {value!r:.99}")
    return value
