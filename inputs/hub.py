"""The Hugging Face Hub: is it there, what is fetched from it, and what stands in where it isn't."""

import contextlib
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import huggingface_hub
from huggingface_hub import constants, errors

from system.console import InputError, one_line, say

if TYPE_CHECKING:
    from datasets import DatasetDict

# Only these may be replaced by `builtin`, and only where neither a flag nor an edit named them.
DEFAULTS = {"model": "distilbert/distilbert-base-uncased", "data": "sst2"}
SHORT_NAMES = {"sst2": "nyu-mll/glue:sst2"}
SECONDS_IN_SILENCE = 2
OFFLINE_AT_START = constants.HF_HUB_OFFLINE  # As whoever started the process wants it.
REFUSED = "it refused to answer"  # So it is there, and nothing stands in for it.
SECONDS_FOR_AN_ANSWER = 8  # One that accepts and never answers is given up after six.
MODEL_FILES = [
    *("config.json", "model.safetensors", "model-*-of-*.safetensors", "*.safetensors.index.json"),
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt"),
    *("spiece.model", "spm.model", "sentencepiece.bpe.model", "bpe.codes"),
]


def is_id(name: str) -> bool:
    """Whether `name` could be that of a repository on the Hub."""
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except errors.HFValidationError:
        return False
    return True


def is_needed(part: str, name: str) -> bool:
    """Whether `name`, as the `part` "model" or "data", is to be had from the Hub alone."""
    if part == "data" and name in SHORT_NAMES:
        return True
    return name != "builtin" and not Path(name).exists()


def ask(settings: SimpleNamespace) -> str | None:
    """Ask the Hub once, if the run needs it: None where it answers, else why it is out of reach."""
    _set_offline(OFFLINE_AT_START)  # It may be back since another run in this process.
    parts = [part for part in ("model", "data") if is_needed(part, getattr(settings, part))]
    if not parts:
        return None
    name = getattr(settings, parts[0])
    return _why_out_of_reach(parts[0], SHORT_NAMES.get(name, name).partition(":")[0])


def go_offline() -> None:
    """Put the Hub's libraries offline for the whole run: what they have cached still works.

    The rest fails at once; left to themselves they would try for minutes.
    """
    _set_offline(True)


def reach(model: str = "builtin", data: str = "builtin") -> None:
    """Ask the Hub for what is not here, and go offline where it is out of reach, which is said."""
    if problem := ask(SimpleNamespace(model=model, data=data)):
        go_offline()
        say(_out_of_reach_line(problem))


def _set_offline(is_offline: bool) -> None:
    constants.HF_HUB_OFFLINE = is_offline
    if datasets := sys.modules.get("datasets"):  # It has copied the constant.
        datasets.config.HF_HUB_OFFLINE = is_offline


def _why_out_of_reach(part: str, repository: str) -> str | None:
    # "No such repository" is an answer; a refusal, a server's error, a proxy's page, silence are
    # none. The thread bounds the whole question, which the timeout of a single read does not: a
    # name server may hang, and a server may send a byte a second.
    outcome: list[Exception | None] = []

    def ask_once() -> None:
        api = huggingface_hub.HfApi()
        try:
            (api.model_info if part == "model" else api.dataset_info)(repository, timeout=3)
        except Exception as error:  # Proxies send anything, and each kind of it has its own error.
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
        return f"no answer in {SECONDS_FOR_AN_ANSWER} s"
    status = getattr(getattr(outcome[0], "response", None), "status_code", None)
    if outcome[0] is None or isinstance(outcome[0], errors.RepositoryNotFoundError):
        return None
    if status in (401, 429):  # The Hub's own: a token that has expired, too many questions.
        return f"{REFUSED}: {one_line(outcome[0])[:200]}"
    if isinstance(outcome[0], errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set"
    return one_line(outcome[0])[:200]


def put_stand_ins(
    settings: SimpleNamespace, reason: str | None, find_model: Callable[[str], Path]
) -> dict[str, str]:
    """Replace in `settings` what is default, out of reach and not whole in the cache by `builtin`.

    Args:
        reason: why the Hub is out of reach; None where it isn't.
        find_model: model.find_model, which refuses a cache that holds a model in part.
    Raises:
        InputError: the Hub is there and refuses, and its cache does not hold a default whole.
    Returns:
        The names that were replaced, by "model" and "data".
    """
    find = {"model": find_model, "data": fetch_data}
    replaced = {}
    for part, default in DEFAULTS.items():
        if reason and part not in settings.given and getattr(settings, part) == default:
            with contextlib.suppress(InputError):
                find[part](default)
                continue
            if reason.startswith(REFUSED):
                raise InputError(
                    f"the Hub: {reason}; its cache does not hold {default} whole; try again later, "
                    "or `hf auth login`"
                )
            replaced[part] = default
            setattr(settings, part, "builtin")
    if reason:
        say(_out_of_reach_line(reason))
    if replaced:
        say(stand_in_line(replaced))
    return replaced


def _out_of_reach_line(reason: str) -> str:
    return f"the Hub cannot be reached ({reason}); what its cache holds is used"


def stand_in_line(replaced: dict[str, str]) -> str:
    """What was replaced, in one line."""
    what = " and ".join(f"the {part} {name}" for part, name in replaced.items())
    return f"NOTE: what ships with this project (`builtin`) stands in for {what}"


def fetch_model(name: str) -> Path:
    """The folder of the Hub's model `name`, from the cache or downloaded.

    Raises:
        InputError: there is no such model, or it could not be fetched whole.
    """
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=MODEL_FILES))
    except errors.GatedRepoError:
        problem = "its authors want to be asked first; ask on its page, then run `hf auth login`"
    except errors.RepositoryNotFoundError:
        problem = "neither a folder here nor a model on the Hub"
    except errors.LocalEntryNotFoundError:
        problem = (
            "no folder here, the Hub cannot be reached, and the cache does not hold it whole; name "
            "a folder"
        )
    except Exception as error:  # A transfer that breaks off ends in any of a dozen errors.
        problem = f"the download broke off; run the command again ({one_line(error)[:200]})"
    raise InputError(f"--model {name}: {problem}")


def fetch_data(name: str) -> "DatasetDict":
    """The splits of the Hub's data set `name` (`id` or `id:config`), from the cache or downloaded.

    Raises:
        InputError: there is no such data set, or it could not be fetched whole.
    """
    import datasets  # Here, because it takes a second: see the top of finetune.py.

    repository, _, config = SHORT_NAMES.get(name, name).partition(":")
    if sys.stderr.isatty():  # What is fetched can be gigabytes.
        datasets.enable_progress_bars()
    try:
        return datasets.load_dataset(repository, config or None)
    except datasets.exceptions.DatasetNotFoundError:
        problem = "neither a file or folder here nor a data set on the Hub"
    except Exception as error:  # No network, a wrong config, a script, a damaged file: all differ.
        here = "" if name in SHORT_NAMES else "no such file or folder here, and from the Hub it "
        problem = f"{here}cannot be fetched ({one_line(error)[:300]})"
    finally:
        datasets.disable_progress_bars()
    raise InputError(f"--data {name}: {problem}")
