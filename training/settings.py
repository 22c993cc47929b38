"""One table of settings: the constants of finetune.py, flags and keywords → checked `Settings`."""

import argparse
import dataclasses
import difflib
import math
import re
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from inputs import encoder_files, files, hub
from system.console import InputError, Parser, Problem
from training import board

MOST = 2**31 - 1  # The highest whole number that every library takes.
# A setting affects the model that a run ends with, only its rounding (and, with dropout,
# which random numbers a device draws), or nothing in it.
RESULT, ROUNDING, NOTHING = "the result", "rounding", "nothing"
AUTOMATIC = (None, "auto")  # The values for which the run itself chooses one.


def _row(
    description: str,
    allowed: Callable[[typing.Any], object] = lambda value: True,
    affects: str = RESULT,
    check: Callable[[typing.Any], object] = lambda value: None,
) -> typing.Any:
    """One setting: its values in words and as a test, what it affects, and a check of names.

    A run is not resumed with another value of what affects RESULT; one from before a setting
    existed has None for it.
    """
    rule = {"description": description, "allowed": allowed, "affects": affects, "check": check}
    return dataclasses.field(metadata=rule)


def _whole(least: int, affects: str = RESULT) -> typing.Any:
    description = f"a whole number from {least} to {MOST}"
    return _row(description, lambda number: least <= number <= MOST, affects)


def _one_of(*names: str, affects: str = RESULT) -> typing.Any:
    description = ", ".join(names[:-1]) + " or " * (len(names) > 1) + names[-1]
    return _row(description, lambda name: name in names, affects)


def _is_at_least_0(number: float) -> bool:
    return 0 <= number < math.inf


def _is_one_or_two_columns(names: list) -> bool:
    return len(names) in (1, 2) and all(isinstance(name, str) and name for name in names)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of a run; each is a constant of finetune.py, a flag, and a row of this table.

    The type of a setting that may be None says so.
    """

    model: str = _row("a Hub id, a folder or `builtin`", bool, check=encoder_files.check_name)
    data: str = _row(
        "`sst2`, `builtin`, a Hub data set, a file or a folder", bool, check=files.find_files
    )
    text_column: list[str] | None = _row("one or two columns", _is_one_or_two_columns)
    label_column: str | None = _row("the name of a column", bool)
    epochs: int = _whole(1)
    batch_size: int = _whole(1)
    micro_batch_size: int | None = _whole(1, ROUNDING)
    max_length: int | None = _whole(3)
    max_train_samples: int | None = _whole(1)
    seed: int = _row("a whole number from 0 to 2**64 - 1", lambda seed: 0 <= seed < 2**64)
    learning_rate: float | None = _row("a number above 0", lambda x: 0 < x < math.inf)
    warmup: float = _row("a number from 0 up to, not including, 1", lambda x: 0 <= x < 1)
    weight_decay: float = _row("a number of 0 or more", _is_at_least_0)
    max_grad_norm: float = _row("a number of 0 or more", _is_at_least_0)
    freeze_embeddings: bool = _row("True or False")
    class_weights: str | None = _one_of("balanced")
    keep: str = _one_of("best", "macro_f1", "last")
    device: str = _one_of("auto", "cuda", "mps", "cpu", affects=ROUNDING)
    precision: str = _one_of("auto", "fp32", "bf16")
    compile: bool = _row("True or False", affects=ROUNDING)
    log_every: int = _whole(1, NOTHING)
    tensorboard: bool = _row("True or False", affects=NOTHING, check=board.check)
    checkpoint_minutes: float = _row("a number of 0 or more", _is_at_least_0, NOTHING)
    output_dir: str | None = _row("a folder", bool, NOTHING)
    resume: bool = _row("True or False", affects=NOTHING)

    # Not settings: the names that a flag or keyword gave, and why the Hub cannot be used.
    explicit: frozenset[str] = frozenset()
    outage: hub.Outage | None = None

    def as_dict(self) -> dict[str, object]:
        """The settings by name, as run.json holds them."""
        return {name: getattr(self, name) for name in ROWS}


ROWS = {field.name: field for field in dataclasses.fields(Settings) if field.metadata}
Values = dict[str, object]


def affects(name: str) -> str:
    """The effect of the setting `name`; one of an earlier version affects the result."""
    return ROWS[name].metadata["affects"] if name in ROWS else RESULT


def flag(name: str) -> str:
    """The flag of a setting or constant: BATCH_SIZE is --batch-size."""
    return "--" + name.lower().replace("_", "-")


def _kind(name: str) -> tuple[type, bool]:
    """The type of a setting, and whether it may be None."""
    types = typing.get_args(ROWS[name].type) or (ROWS[name].type,)
    return typing.get_origin(types[0]) or types[0], type(None) in types


def from_flags(
    constants: Mapping[str, object], argv: Sequence[str], problems: list[Problem]
) -> tuple[Values, set[str]]:
    """The value of each setting that is right, and the names of those that `argv` gives.

    The value is that of the constant, or of its flag if argv has it. `constants` are the globals of
    finetune.py. A problem is added for each flag or constant that is wrong.
    """
    parser = _parser(constants, with_help=bool({"-h", "--help"} & set(argv)))
    # argparse exits at `--compile=yes`; here it is reported with all other problems.
    switches = tuple(f"{flag(name)}=" for name in ROWS if _kind(name)[0] is bool)
    valued = [word for word in argv if word.replace("--no-", "--").startswith(switches)]
    flags, unknown = parser.parse_known_args([word for word in argv if word not in valued])
    remedy = "write it alone, or --no-…"
    problems += [Problem("", "takes no value", remedy, word) for word in valued]
    is_flag = False  # Whether the word before is an unknown flag, without its value.
    for word in unknown:
        is_value, is_flag = is_flag, False
        if word.startswith("-") and not parser._negative_number_matcher.fullmatch(word):
            is_flag = "=" not in word
            name = word.split("=")[0]
            remedy = _hint(name, parser._option_string_actions) or "--help lists the flags"
            problems.append(Problem("", "unknown flag", remedy, name))
        elif not is_value:
            what = "unexpected on the command line"
            problems.append(Problem(repr(word), what, "every setting is a flag"))
    return _checked(constants, vars(flags), _from_flag, flag, problems)


def from_keywords(
    constants: Mapping[str, object], keywords: Mapping[str, object], problems: list[Problem]
) -> tuple[Values, set[str]]:
    """As `from_flags`, of keyword arguments."""
    known = {word: value for word, value in keywords.items() if word in ROWS}
    for word in [word for word in keywords if word not in known]:
        remedy = _hint(word, ROWS) or "the settings are: " + ", ".join(ROWS)
        problems.append(Problem(word, "unknown setting", remedy))

    def convert(value: object, name: str) -> object:
        if type(value).__module__ == "numpy":  # Its numbers and arrays become Python's own.
            value = value.tolist()
        return _from_constant(str(value) if isinstance(value, Path) else value, name)

    return _checked(constants, known, convert, str, problems)


def _checked(
    constants: Mapping[str, object],
    explicit_values: Mapping[str, object],
    convert: Callable[[object, str], object],
    title: Callable[[str], str],
    problems: list[Problem],
) -> tuple[Values, set[str]]:
    """The values that are right, and the names in `explicit_values`.

    `convert` turns an explicit value into its setting's type; `title` is its name in messages.
    """
    values = {}
    for name, field in ROWS.items():
        is_explicit, rule = name in explicit_values, field.metadata
        value = explicit_values[name] if is_explicit else constants[name.upper()]
        try:
            value = convert(value, name) if is_explicit else _from_constant(value, name)
            if value is not None and not rule["allowed"](value):
                raise ValueError(f"found {value!r:.99}")
            rule["check"](value)
        except InputError as error:
            problems += error.problems
        except OSError as error:  # A name too long, a folder that may not be read.
            problems.append(Problem(str(value), error.strerror, flag=flag(name)))
        except (ValueError, OverflowError) as error:
            where = title(name) if is_explicit else f"the constant {name.upper()}"
            problems.append(Problem(where, str(error), f"it must be {rule['description']}"))
        else:
            values[name] = value
    return values, set(explicit_values)


def _from_flag(values: list[str] | bool, name: str) -> object:
    kind, _ = _kind(name)
    if kind in (bool, list):
        return values
    if len(values) != 1:
        listed = " ".join([str(len(values)), *map(repr, values)])
        raise ValueError(f"takes one value, found {listed}")
    try:
        return kind(values[0])
    except ValueError:
        raise ValueError(f"found {values[0]!r}") from None


def _from_constant(value: object, name: str) -> object:
    kind, may_be_none = _kind(name)
    if value is None and may_be_none:
        return None
    if kind is list and isinstance(value, (str, tuple)):
        return [value] if isinstance(value, str) else list(value)
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise ValueError(f"found {value!r:.99}")
    return value


def _parser(constants: Mapping[str, object], with_help: bool) -> argparse.ArgumentParser:
    parser = Parser(
        prog=Path(constants["__file__"]).name,
        description=constants["__doc__"],
        argument_default=argparse.SUPPRESS,
    )
    # Otherwise argparse takes `-1e-5` and `-inf` for flags, and not for values.
    parser._negative_number_matcher = re.compile(r"-(\d.*|\.\d.*|inf|nan)")
    # The comment above a constant is its help, so that the two can't differ.
    source = Path(constants["__file__"]).read_text("utf-8") if with_help else ""
    comments = re.findall(r"((?:^# .*\n)+)([A-Z_]+)\b.*=", source, re.MULTILINE)
    helps = {name: " ".join(re.findall(r"# (.*)", comment)) for comment, name in comments}
    for name, field in ROWS.items():
        constant, (kind, _) = name.upper(), _kind(name)
        values = f"[{field.metadata['description']}; now {constants[constant]}]"
        text = f"{helps.get(constant, '')} {values}".replace("%", "%%")
        if kind is bool:
            parser.add_argument(flag(name), action=argparse.BooleanOptionalAction, help=text)
        else:
            # Any number of words is taken, and counted later with all other problems.
            count = ("+" if kind is list else None) if with_help else "*"
            parser.add_argument(flag(name), nargs=count, metavar="X", help=text)
    return parser


def _hint(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.75)
    near = [other for other in known if other.startswith(word)][:1] or near
    return f"did you mean {near[0]}?" if near else ""
