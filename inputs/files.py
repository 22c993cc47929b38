"""The names of files: the file or folder of each split, and the form that an ending promises."""

import contextlib
import gzip
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from inputs import hub
from system.console import InputError, Problem, raise_any

MAX_PROBLEMS = 20
BUILTIN = Path(__file__).resolve().parents[1] / "builtin"
# The known endings of tables, each perhaps followed by .gz; the last one is no ending.
ENDINGS = (".csv", ".tsv", ".txt", ".data", ".label", ".json", ".jsonl", ".parquet", ".arrow")
ENDINGS += (".xlsx", "")
SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "dev", "valid", "val", "validation_matched", "dev_matched"),
    "test": ("test",),
}
SPLIT_WORDS = {name for names in SPLIT_NAMES.values() for name in names}
# IMDB's folder of texts without labels.
UNLABELLED = ("unsup", "unlabeled", "unlabelled")
BLOCK = 2**20  # Bytes.


def at(name: Path | str, number: int, unit: str = "line") -> str:
    """A place in a file, for messages."""
    return f"{name}, {unit} {number}"


def ending(path: Path) -> str:
    """The ending that tells the form: .csv for reviews.csv and reviews.csv.gz."""
    return (path.with_suffix("") if is_gzip(path) else path).suffix.lower()


def is_gzip(path: Path) -> bool:
    """True if the name promises a file compressed by gzip."""
    return path.suffix.lower() == ".gz"


def blocks(path: Path) -> Iterator[bytes]:
    """The content of a file, decompressed, or of all texts in a folder of classes, in blocks."""
    if path.is_dir():
        for _, text in class_texts(path):
            yield text.read_bytes() + b"\n"
        return
    try:
        with path.open("rb") as raw, decompressed(path, raw) as file:
            while block := file.read(BLOCK):
                yield block
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        message = f"cannot be decompressed ({error})"
        raise InputError(Problem(str(path), message, "compress the file again")) from None


def decompressed(path: Path, raw: BinaryIO) -> contextlib.AbstractContextManager[BinaryIO]:
    """The content of the file that `raw` reads."""
    return gzip.open(raw) if is_gzip(path) else contextlib.nullcontext(raw)


def class_texts(folder: Path) -> list[tuple[str, Path]]:
    """The class and the file of each text in a folder with a folder of texts for each class."""
    return [
        (text.parent.name, text)
        for part in sorted(folder.iterdir())
        if part.is_dir() and part.name not in UNLABELLED and not part.name.startswith(".")
        for text in sorted(part.iterdir())
        if _is_text(text)
    ]


def _is_text(path: Path) -> bool:
    # 20 Newsgroups numbers its files and gives them no ending.
    is_usual = path.suffix.lower() in ("", ".txt") or path.suffix[1:].isdigit()
    return is_usual and not path.name.startswith(".") and path.is_file()


def has_classes(folder: Path) -> bool:
    """True if a folder has a folder of texts for each class, as `pos/1.txt`."""
    parts = [part for part in folder.iterdir() if part.is_dir() and not part.name.startswith(".")]
    return not SPLIT_WORDS.issuperset(part.name for part in parts) and any(
        any(map(_is_text, part.iterdir())) for part in parts
    )


def find_files(name: str) -> dict[str, Path] | None:
    """The file of each split; None for a data set on the Hub; InputError for any other name."""
    path = BUILTIN if name == "builtin" else Path(name)
    if name in hub.SHORT_NAMES:
        return None
    if path.is_file():
        if ending(path) not in ENDINGS:
            remedy = f"use one of {', '.join(filter(None, ENDINGS))}"
            raise InputError(Problem(name, f"unknown ending {ending(path)!r}", remedy, "--data"))
        return {"train": path}
    if path.is_dir():
        return _split_files(path, name)
    repository = name.partition(":")[0]
    is_table = ending(path) in filter(None, ENDINGS)
    if "/" in name and hub.is_id(repository) and not is_table:
        return None
    remedy = "" if set("/.") & set(name) else "write a data set on the Hub as owner/name"
    raise InputError(Problem(name, "no such file or folder", remedy, "--data"))


def _split_files(folder: Path, name: str) -> dict[str, Path]:
    """The file or the folder of classes of each split.

    A whole name such as `train` decides. Without a train file, a part of a name such as
    `reviews_train` decides. Without that, the folder itself may be a folder of classes.
    """
    entries = [
        path
        for path in sorted(folder.iterdir())
        if not path.name.startswith(".")
        and ((path.is_file() and ending(path) in ENDINGS) or (path.is_dir() and has_classes(path)))
    ]
    for split_of in (_split_of_name, _split_of_part):
        files, problems = {}, []
        for split in SPLIT_NAMES:
            matches = [path for path in entries if split_of(path) == split]
            if len(matches) > 1:
                message = f"more than one {split} file: {' and '.join(f.name for f in matches)}"
                problems.append(Problem(name, message, "keep one, or join them", "--data"))
            if matches:
                files[split] = matches[0]
        if "train" in files:
            raise_any(problems)
            return files
    if has_classes(folder):
        return {"train": folder}
    names = [path.name for path in entries]
    message = f"no train file in the folder (found {', '.join(names[:5]) or 'none'})"
    remedy = "add train.csv, or a folder for each class"
    if len(names) == 1:
        remedy = f"name the file, as in --data {folder / names[0]}"
    raise InputError(Problem(name, message, remedy, "--data"))


def _stem(path: Path) -> str:
    """The name without its known endings: snli_1.0_train of snli_1.0_train.jsonl.gz."""
    while path.suffix and path.suffix.lower() in (*ENDINGS, ".gz", ".ft"):
        path = path.with_suffix("")
    # The Hub names the only part of a split train-00000-of-00001.parquet.
    return path.name.removesuffix("-00000-of-00001")


def _split_of_name(path: Path) -> str | None:
    name = _stem(path).lower()
    return next((split for split, names in SPLIT_NAMES.items() if name in names), None)


def _split_of_part(path: Path) -> str | None:
    parts = name_parts(_stem(path))
    splits = [split for split, names in SPLIT_NAMES.items() if parts & set(names)]
    return splits[0] if len(splits) == 1 else None


def name_parts(name: str) -> set[str]:
    """The parts of a name, in lower case: airline and sentiment of airline_sentiment."""
    parts = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)
    return {part.lower() for part in parts} | {part.lower().removesuffix("s") for part in parts}
