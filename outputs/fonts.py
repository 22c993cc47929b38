"""Fonts for characters that matplotlib's font lacks, and escapes for characters in no font."""

import contextlib
import logging
from collections.abc import Iterable
from typing import NamedTuple

# No character has this code. A font that has it, such as Last Resort, has boxes for all codes.
NO_CHARACTER = 0x10FFFF


class Letters(NamedTuple):
    """The characters of a plot that matplotlib's font lacks: fonts that have them, and the rest."""

    families: list[str]
    missing: set[str]

    def escape(self, text: str) -> str:
        """The text with an escape, such as `\\u597d`, for each character in no font."""
        parts = (c.encode("unicode_escape").decode() if c in self.missing else c for c in text)
        return "".join(parts)


def find(texts: Iterable[str]) -> Letters:
    """Find the system's fonts for `texts`: as few as possible, and the first by name if two tie."""
    # Imported here: matplotlib takes time and 25 MB, and a run draws only at its end.
    from matplotlib import font_manager
    from matplotlib.ft2font import FT2Font

    def open_font(family: list[str] | None = None) -> FT2Font:
        path = font_manager.findfont(font_manager.FontProperties(family=family))
        return FT2Font(path, face_index=path.face_index)

    own, families = open_font(), []
    missing = {c for text in texts for c in text if not (c.isspace() or own.get_char_index(ord(c)))}
    if not missing:
        return Letters(families, missing)
    # findfont warns if a font has another weight.
    logging.getLogger(font_manager.__name__).setLevel(logging.ERROR)
    drawn = {}
    for name in sorted(font_manager.get_font_names()):
        # A font of the system may be damaged.
        with contextlib.suppress(RuntimeError, OSError, ValueError):
            font = open_font([name])
            known = {c for c in missing if font.get_char_index(ord(c))}
            # A font of coloured pictures may have an empty glyph.
            is_real = not font.get_char_index(NO_CHARACTER)
            drawn[name] = {c for c in known if is_real and font.load_char(ord(c)).width}
    while any(drawn.values()):
        best = max(drawn, key=lambda name: len(drawn[name]))
        families.append(best)
        missing = missing - drawn[best]
        drawn = {name: characters & missing for name, characters in drawn.items()}
    return Letters(families, missing)
