"""The Hugging Face Hub: reachability, downloads, and stand-ins for the defaults."""

import contextlib
import sys
import threading
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import huggingface_hub
from huggingface_hub import constants, errors

from system.console import InputError, Problem, one_line, say

if TYPE_CHECKING:
    from datasets import DatasetDict

# Only these may be replaced by `builtin`, and only if neither a flag nor an edit named them.
DEFAULTS = {"model": "distilbert/distilbert-base-uncased", "data": "sst2"}
SHORT_NAMES = {"sst2": "nyu-mll/glue:sst2"}
OFFLINE_AT_START = constants.HF_HUB_OFFLINE
REFUSALS = (401, 429)  # HTTP status: expired token, too many requests
SECONDS_IN_SILENCE = 2
# The library gives up a connection without an answer after six seconds.
SECONDS_FOR_AN_ANSWER = 8
MODEL_FILES = [
    *("config.json", "model.safetensors", "model-*-of-*.safetensors", "*.safetensors.index.json"),
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt"),
    *("spiece.model", "spm.model", "sentencepiece.bpe.model", "bpe.codes"),
]


class Outage(NamedTuple):
    """Why the Hub cannot be used; after a refusal by the Hub itself, there are no stand-ins."""

    reason: str
    is_refusal: bool = False


def is_id(name: str) -> bool:
    """True if `name` could be a repository on the Hub."""
    # Imported here, because it takes a third of a second.
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except errors.HFValidationError:
        return False
    return True


def is_needed(part: str, name: str) -> bool:
    """True if only the Hub can have `name`, as the `part` "model" or "data"."""
    if part == "data" and name in SHORT_NAMES:
        return True
    return name != "builtin" and not Path(name).exists()


def ask(model: str = "builtin", data: str = "builtin") -> Outage | None:
    """Ask the Hub once, if it is needed; None if it answers or is not needed."""
    # The Hub may be back since an earlier run in this process.
    set_offline(OFFLINE_AT_START)
    names = {"model": model, "data": data}
    for part, name in names.items():
        if is_needed(part, name):
            return _find_outage(part, SHORT_NAMES.get(name, name).partition(":")[0])
    return None


def set_offline(is_offline: bool) -> None:
    """Make the Hub's libraries fail at once, not after minutes, if a file is not cached."""
    constants.HF_HUB_OFFLINE = is_offline
    # datasets copies the constant when it is imported.
    if datasets := sys.modules.get("datasets"):
        datasets.config.HF_HUB_OFFLINE = is_offline


def reach(model: str = "builtin", data: str = "builtin") -> None:
    """Ask the Hub if a name is not local; go offline, with a message, if it cannot be reached."""
    if outage := ask(model, data):
        set_offline(True)
        say(_outage_line(outage))


def _find_outage(part: str, repository: str) -> Outage | None:
    # "No such repository" is an answer. A refusal, a server error and a proxy's page are outages.
    # `timeout` limits one read. The thread limits the whole request: a name server may hang, and a
    # server may send one byte per second.
    outcome: list[Exception | None] = []

    def ask_once() -> None:
        api = huggingface_hub.HfApi()
        try:
            (api.model_info if part == "model" else api.dataset_info)(repository, timeout=3)
        # A proxy can send anything, so any error can follow.
        except Exception as error:
            outcome.append(error)
        else:
            outcome.append(None)

    thread = threading.Thread(target=ask_once, daemon=True)
    thread.start()
    thread.join(SECONDS_IN_SILENCE)
    if not outcome:
        say(f"waiting for the Hub, at most {SECONDS_FOR_AN_ANSWER} s")
    thread.join(SECONDS_FOR_AN_ANSWER - SECONDS_IN_SILENCE)
    if not outcome:
        return Outage(f"no answer in {SECONDS_FOR_AN_ANSWER} s")
    error = outcome[0]
    if error is None or isinstance(error, errors.RepositoryNotFoundError):
        return None
    if isinstance(error, errors.OfflineModeIsEnabled):
        return Outage("HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set")
    response, reason = getattr(error, "response", None), one_line(error)[:200]
    if getattr(response, "status_code", None) in REFUSALS:
        return Outage(f"request refused: {reason}", is_refusal=True)
    return Outage(reason)


def stand_ins(
    names: dict[str, str],
    explicit: Collection[str],
    outage: Outage | None,
    find_model: Callable[[str], Path],
) -> dict[str, str]:
    """The defaults in `names`, by "model" and "data", that `builtin` replaces.

    Only a default that is not `explicit` is replaced, and only in an `outage`. `find_model` refuses
    an incomplete cache. InputError if the Hub refuses and the cache is incomplete.
    """
    find = {"model": find_model, "data": fetch_data}
    replaced = {}
    for part, default in DEFAULTS.items():
        if outage and part not in explicit and names[part] == default:
            with contextlib.suppress(InputError):
                find[part](default)
                continue
            if outage.is_refusal:
                message = f"{outage.reason}, and {default} is not complete in the cache"
                raise InputError(Problem("the Hub", message, "try later, or run `hf auth login`"))
            replaced[part] = default
    if outage:
        say(_outage_line(outage))
    if replaced:
        say(stand_in_line(replaced))
    return replaced


def _outage_line(outage: Outage) -> str:
    return f"the Hub cannot be reached ({outage.reason}); anything already in the Hub cache is used"


def stand_in_line(replaced: dict[str, str]) -> str:
    """One line that names every default that `builtin` replaces."""
    names = " and ".join(f"the {part} {name}" for part, name in replaced.items())
    return f"NOTE: `builtin` is used instead of {names}"


def fetch_model(name: str) -> Path:
    """The folder of the complete model `name`, cached or downloaded; or an InputError."""
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=MODEL_FILES))
    except errors.GatedRepoError:
        message, remedy = "access is restricted", "request it on the Hub, then run `hf auth login`"
    except errors.RepositoryNotFoundError:
        message, remedy = "no such folder, and no such model on the Hub", "check the name"
    except errors.LocalEntryNotFoundError:
        message = "no such folder, not complete in the cache, and the Hub cannot be reached"
        remedy = "use an existing folder, or try again with a network"
    except Exception as error:
        message, remedy = f"the download failed ({one_line(error)[:200]})", "run the command again"
    raise InputError(Problem(name, message, remedy, "--model"))


def fetch_data(name: str) -> "DatasetDict":
    """The splits of the data set `name` (`id` or `id:config`) on the Hub; or an InputError."""
    # Imported here, because it takes a second, and --help must not wait for it.
    import datasets

    repository, _, config = SHORT_NAMES.get(name, name).partition(":")
    if sys.stderr.isatty():
        datasets.enable_progress_bars()
    try:
        return datasets.load_dataset(repository, config or None)
    except datasets.exceptions.DatasetNotFoundError:
        message = "no such file or folder, and no such data set on the Hub"
    # No network, a wrong config, a script or a damaged file: each raises its own type of error.
    except Exception as error:
        start = "" if name in SHORT_NAMES else "no such file or folder, and "
        message = f"{start}the download from the Hub failed ({one_line(error)[:300]})"
    finally:
        datasets.disable_progress_bars()
    raise InputError(Problem(name, message, "check the name and the network", "--data"))
