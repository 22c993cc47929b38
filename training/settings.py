"""The table of settings, which turns constants, flags and keywords into checked `Settings`."""

import argparse
import dataclasses
import difflib
import math
import os
import re
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from inputs import encoder_files, encodings, files, hub
from system.console import InputError, Parser, Problem, flag_arguments
from training import board

# The largest whole number that every library accepts.
MAX_INTEGER = 2**31 - 1
# The effect of a setting on the trained model. ROUNDING includes the random numbers of dropout.
RESULT, ROUNDING, NOTHING = "the result", "rounding", "nothing"
AUTOMATIC = (None, "auto")
# In these settings, as in a shell, ~ is the home folder.
PATHS = ("model", "data", "output_dir")


def _row(
    description: str,
    allowed: Callable[[typing.Any], object] = lambda value: True,
    affects: str = RESULT,
    check: Callable[[typing.Any], object] = lambda value: None,
) -> typing.Any:
    """A row: the allowed values as text and as a test, the effect, and a check of names.

    A run can't be resumed with a different value of a setting that affects RESULT. A setting that
    an older run.json lacks counts as None.
    """
    rule = {"description": description, "allowed": allowed, "affects": affects, "check": check}
    return dataclasses.field(metadata=rule)


def _whole(minimum: int, affects: str = RESULT) -> typing.Any:
    description = f"a whole number from {minimum} to {MAX_INTEGER}"
    return _row(description, lambda number: minimum <= number <= MAX_INTEGER, affects)


def _one_of(*names: str, affects: str = RESULT) -> typing.Any:
    description = ", ".join(names[:-1]) + " or " * (len(names) > 1) + names[-1]
    return _row(description, lambda name: name in names, affects)


def _is_at_least_0(number: float) -> bool:
    return 0 <= number < math.inf


def _are_columns(names: list) -> bool:
    return len(names) > 0 and all(isinstance(name, str) and name for name in names)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of a run; each is a constant of finetune.py, a flag, and a row of this table.

    The type of a setting decides how its flag is read, and if None is allowed.
    """

    model: str = _row("a Hub id, a folder or `builtin`", bool, check=encoder_files.check_name)
    data: str = _row(
        "`sst2`, `builtin`, a Hub data set, a file or a folder", bool, check=files.find_files
    )
    text_column: list[str] | None = _row("column names", _are_columns)
    label_column: str | None = _row("a column name", bool)
    encoding: str | None = _row(encodings.DESCRIPTION, encodings.is_codec)
    epochs: int = _whole(1)
    batch_size: int = _whole(1)
    micro_batch_size: int | None = _whole(1, ROUNDING)
    max_length: int | None = _whole(3)
    max_train_samples: int | None = _whole(1)
    seed: int = _row("a whole number from 0 to 2**64 - 1", lambda seed: 0 <= seed < 2**64)
    learning_rate: float | None = _row("a number above 0", lambda x: 0 < x < math.inf)
    warmup: float = _row("a number from 0 to below 1", lambda x: 0 <= x < 1)
    weight_decay: float = _row("a number of 0 or more", _is_at_least_0)
    max_grad_norm: float = _row("a number of 0 or more", _is_at_least_0)
    dropout: float | None = _row("a number from 0 to below 1", lambda x: 0 <= x < 1)
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

    # Not settings: the names that a flag or keyword set, and the reason if the Hub is out of reach.
    explicit: frozenset[str] = frozenset()
    outage: hub.Outage | None = None

    def as_dict(self) -> dict[str, object]:
        """The settings by name, as run.json holds them."""
        return {name: getattr(self, name) for name in ROWS}


ROWS = {field.name: field for field in dataclasses.fields(Settings) if field.metadata}
Values = dict[str, object]


def affects(name: str) -> str:
    """The effect of the setting `name`; an unknown one, of an earlier version, affects RESULT."""
    return ROWS[name].metadata["affects"] if name in ROWS else RESULT


def flag(name: str) -> str:
    """The flag of a setting or constant: BATCH_SIZE is --batch-size."""
    return "--" + name.lower().replace("_", "-")


def as_flags(values: Values) -> list[str]:
    """The flags that set these values; a setting that is None needs none."""
    flags = []
    for name, value in values.items():
        if isinstance(value, bool):
            flags.append(flag(name) if value else flag(f"no_{name}"))
        elif value is not None:
            values_of_flag = value if isinstance(value, list) else [str(value)]
            flags += flag_arguments(flag(name), values_of_flag)
    return flags


def _kind(name: str) -> tuple[type, bool]:
    """The type of a setting, and True if it may be None."""
    types = typing.get_args(ROWS[name].type) or (ROWS[name].type,)
    return typing.get_origin(types[0]) or types[0], type(None) in types


def from_flags(
    constants: Mapping[str, object], argv: Sequence[str], problems: list[Problem]
) -> tuple[Values, set[str]]:
    """The valid values, and the names of the settings that `argv` sets.

    A flag in `argv` replaces its constant; `constants` are the globals of finetune.py. `problems`
    gets a Problem for each invalid flag or constant.
    """
    parser = _parser(constants, with_help=bool({"-h", "--help"} & set(argv)))
    # argparse would exit at `--compile=yes` before the other problems are reported.
    switches = tuple(f"{flag(name)}=" for name in ROWS if _kind(name)[0] is bool)
    valued = [item for item in argv if item.replace("--no-", "--").startswith(switches)]
    flags, unknown = parser.parse_known_args([item for item in argv if item not in valued])
    remedy = "use the flag alone, or --no-…"
    problems += [Problem("", "takes no value", remedy, item) for item in valued]
    # The item after an unknown flag may be the flag's value, which is no problem of its own.
    may_be_value = False
    for item in unknown:
        is_value, may_be_value = may_be_value, False
        if item.startswith("-") and not parser._negative_number_matcher.fullmatch(item):
            may_be_value = "=" not in item
            name = item.split("=")[0]
            remedy = _hint(name, parser._option_string_actions) or "--help lists the flags"
            problems.append(Problem("", "unknown flag", remedy, name))
        elif not is_value:
            problems.append(Problem(repr(item), "unexpected argument", "--help lists the flags"))
    return _checked(constants, vars(flags), _from_flag, flag, problems)


def from_keywords(
    constants: Mapping[str, object], keywords: Mapping[str, object], problems: list[Problem]
) -> tuple[Values, set[str]]:
    """The valid values, and the names of the settings among `keywords`; see `from_flags`."""
    known = {name: value for name, value in keywords.items() if name in ROWS}
    for name in [name for name in keywords if name not in known]:
        remedy = _hint(name, ROWS) or "use one of: " + ", ".join(ROWS)
        problems.append(Problem(name, "unknown setting", remedy))

    def convert(value: object, name: str) -> object:
        if type(value).__module__ == "numpy":
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
    """The valid values, and the names in `explicit_values`, which replace constants.

    `convert` turns an explicit value into its setting's type; `title` gives its name in messages.
    """
    values = {}
    for name, field in ROWS.items():
        is_explicit, rule = name in explicit_values, field.metadata
        value = explicit_values[name] if is_explicit else constants[name.upper()]
        try:
            value = convert(value, name) if is_explicit else _from_constant(value, name)
            if name in PATHS and value:
                # Path.expanduser fails if the user is unknown.
                value = os.path.expanduser(value)  # noqa: PTH111
            if value is not None and not rule["allowed"](value):
                raise ValueError(f"found {value!r:.99}")
            rule["check"](value)
        except InputError as error:
            problems += error.problems
        except OSError as error:
            problems.append(Problem(str(value), error.strerror, flag=flag(name)))
        except (ValueError, OverflowError) as error:
            where = title(name) if is_explicit else f"the constant {name.upper()}"
            problems.append(Problem(where, f"must be {rule['description']} ({error})"))
        else:
            values[name] = value
    return values, set(explicit_values)


def _from_flag(values: list[str] | bool, name: str) -> object:
    kind, _ = _kind(name)
    if kind in (bool, list):
        return values
    if len(values) != 1:
        raise ValueError(f"found {' '.join(map(repr, values)) or 'no value'}")
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


def comments(page: Path) -> dict[str, str]:
    """The comment above each constant of `page`: the help text of its flag, too."""
    blocks = re.findall(r"((?:^# .*\n)+)([A-Z_]+)\b.*=", page.read_text("utf-8"), re.MULTILINE)
    return {name: " ".join(re.findall(r"# (.*)", comment)) for comment, name in blocks}


def _parser(constants: Mapping[str, object], with_help: bool) -> argparse.ArgumentParser:
    parser = Parser(
        prog=Path(constants["__file__"]).name,
        description=constants["__doc__"],
        argument_default=argparse.SUPPRESS,
    )
    # argparse alone would take the values `-1e-5` and `-inf` for flags.
    parser._negative_number_matcher = re.compile(r"-(\d.*|\.\d.*|inf|nan)")
    helps = comments(Path(constants["__file__"])) if with_help else {}
    for name, field in ROWS.items():
        constant, (kind, _) = name.upper(), _kind(name)
        values = f"[{field.metadata['description']}; now {constants[constant]}]"
        text = f"{helps.get(constant, '')} {values}".replace("%", "%%")
        if kind is bool:
            parser.add_argument(flag(name), action=argparse.BooleanOptionalAction, help=text)
        else:
            # Any number of values is accepted here, so that _from_flag can report a wrong number.
            count = ("+" if kind is list else None) if with_help else "*"
            parser.add_argument(flag(name), nargs=count, metavar="X", help=text)
    return parser


def _hint(name: str, known: Iterable[str]) -> str:
    similar = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
    similar = [longer for longer in known if longer.startswith(name)][:1] or similar
    return f"did you mean {similar[0]}?" if similar else ""
