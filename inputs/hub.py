"""The Hugging Face Hub: is it reachable, downloads, and what stands in for the defaults."""

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
OFFLINE_AT_START = constants.HF_HUB_OFFLINE  # As the environment has it.
REFUSALS = (401, 429)  # The Hub's own: an expired token, too many questions.
SECONDS_IN_SILENCE = 2
SECONDS_FOR_AN_ANSWER = 8  # A Hub that accepts and never answers is given up after six.
MODEL_FILES = [
    *("config.json", "model.safetensors", "model-*-of-*.safetensors", "*.safetensors.index.json"),
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt"),
    *("spiece.model", "spm.model", "sentencepiece.bpe.model", "bpe.codes"),
]


class Outage(NamedTuple):
    """Why the Hub cannot be used."""

    reason: str
    is_refusal: bool = False  # The Hub is there and refuses, so nothing stands in for it.


def is_id(name: str) -> bool:
    """Whether `name` could be that of a repository on the Hub."""
    from huggingface_hub.utils import validate_repo_id  # Takes a third of a second to import.

    try:
        validate_repo_id(name)
    except errors.HFValidationError:
        return False
    return True


def is_needed(part: str, name: str) -> bool:
    """Whether only the Hub has `name`, as the `part` "model" or "data"."""
    if part == "data" and name in SHORT_NAMES:
        return True
    return name != "builtin" and not Path(name).exists()


def ask(model: str = "builtin", data: str = "builtin") -> Outage | None:
    """Ask the Hub once, if it is needed: None if it answers, else why it cannot be used."""
    set_offline(OFFLINE_AT_START)  # It may be back since another run in this process.
    names = {"model": model, "data": data}
    for part, name in names.items():
        if is_needed(part, name):
            return _find_outage(part, SHORT_NAMES.get(name, name).partition(":")[0])
    return None


def set_offline(is_offline: bool) -> None:
    """Let the Hub's libraries fail at once, not after minutes, if their cache lacks something."""
    constants.HF_HUB_OFFLINE = is_offline
    if datasets := sys.modules.get("datasets"):  # It has copied the constant.
        datasets.config.HF_HUB_OFFLINE = is_offline


def reach(model: str = "builtin", data: str = "builtin") -> None:
    """Ask the Hub for what is not here; go offline, with a message, if it cannot be reached."""
    if outage := ask(model, data):
        set_offline(True)
        say(_outage_line(outage))


def _find_outage(part: str, repository: str) -> Outage | None:
    # "No such repository" is an answer; a refusal, a server's error, a proxy's page and silence are
    # none. The thread bounds the whole question, unlike the timeout of one read: a name server may
    # hang, and a server may send a byte a second.
    outcome: list[Exception | None] = []

    def ask_once() -> None:
        api = huggingface_hub.HfApi()
        try:
            (api.model_info if part == "model" else api.dataset_info)(repository, timeout=3)
        except Exception as error:  # Proxies send anything, each with an error of its own.
            outcome.append(error)
        else:
            outcome.append(None)

    thread = threading.Thread(target=ask_once, daemon=True)
    thread.start()
    thread.join(SECONDS_IN_SILENCE)
    if not outcome:
        say(f"waiting for the Hub, {SECONDS_FOR_AN_ANSWER} s at most")
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
        return Outage(f"it refused to answer: {reason}", is_refusal=True)
    return Outage(reason)


def stand_ins(
    names: dict[str, str],
    explicit: Collection[str],
    outage: Outage | None,
    find_model: Callable[[str], Path],
) -> dict[str, str]:
    """The defaults among `names`, by "model" and "data", for which `builtin` must stand in.

    Only those that are not `explicit`, and only in an `outage` of the Hub. `find_model` refuses a
    cache that holds half a model. InputError if the Hub refuses and the cache is not whole.
    """
    find = {"model": find_model, "data": fetch_data}
    replaced = {}
    for part, default in DEFAULTS.items():
        if outage and part not in explicit and names[part] == default:
            with contextlib.suppress(InputError):
                find[part](default)
                continue
            if outage.is_refusal:
                what = f"{outage.reason}; its cache does not hold {default} whole"
                raise InputError(Problem("the Hub", what, "try again later, or `hf auth login`"))
            replaced[part] = default
    if outage:
        say(_outage_line(outage))
    if replaced:
        say(stand_in_line(replaced))
    return replaced


def _outage_line(outage: Outage) -> str:
    return f"the Hub cannot be reached ({outage.reason}); what its cache holds is used"


def stand_in_line(replaced: dict[str, str]) -> str:
    """One line that names what was replaced."""
    names = " and ".join(f"the {part} {name}" for part, name in replaced.items())
    return f"NOTE: what ships with this project (`builtin`) stands in for {names}"


def fetch_model(name: str) -> Path:
    """The folder of the Hub's model `name`, cached or downloaded whole; or an InputError."""
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=MODEL_FILES))
    except errors.GatedRepoError:
        what = "its authors want to be asked first"
        remedy = "ask on its page, then run `hf auth login`"
    except errors.RepositoryNotFoundError:
        what, remedy = "neither a folder here nor a model on the Hub", ""
    except errors.LocalEntryNotFoundError:
        what = "no folder here, the Hub cannot be reached, and the cache does not hold it whole"
        remedy = "name a folder"
    except Exception as error:  # A transfer that breaks off ends in any of a dozen errors.
        what = "the download broke off"
        remedy = f"run the command again ({one_line(error)[:200]})"
    raise InputError(Problem(name, what, remedy, "--model"))


def fetch_data(name: str) -> "DatasetDict":
    """The splits of the data set `name` (`id` or `id:config`) on the Hub; or an InputError."""
    import datasets  # Here, because it takes a second, and --help must not wait for it.

    repository, _, config = SHORT_NAMES.get(name, name).partition(":")
    if sys.stderr.isatty():  # A download can be gigabytes.
        datasets.enable_progress_bars()
    try:
        return datasets.load_dataset(repository, config or None)
    except datasets.exceptions.DatasetNotFoundError:
        what = "neither a file or folder here nor a data set on the Hub"
    except Exception as error:  # No network, a wrong config, a script, a damaged file: all differ.
        here = "" if name in SHORT_NAMES else "no such file or folder here, and from the Hub it "
        what = f"{here}cannot be fetched ({one_line(error)[:300]})"
    finally:
        datasets.disable_progress_bars()
    raise InputError(Problem(name, what, flag="--data"))
