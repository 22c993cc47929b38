"""Arrow files that are mapped into memory, and how little of them need lie there."""

import contextlib
import ctypes
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

MADV_DONTNEED = 4  # Of Linux.


def release() -> None:
    """Give the pages of mapped Arrow files back to the system, which may keep them for other uses.

    What is touched of a mapped file counts as this process's memory until the system needs it: all
    of a data set, by and by. What is needed once more is mapped again. Where there is no /proc
    this does nothing.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        advise = ctypes.CDLL(None).madvise
        for line in Path("/proc/self/maps").read_text("utf-8", "replace").splitlines():
            if line.endswith(".arrow"):
                start, end = (int(place, 16) for place in line.split()[0].split("-"))
                advise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), MADV_DONTNEED)


def in_parts(items: Iterable[T], size: int = 20) -> Iterator[T]:
    """The items, parts of a mapped file; after every `size` of them their pages are released."""
    for number, item in enumerate(items, 1):
        yield item
        if number % size == 0:
            release()
    release()
