"""Characters that matplotlib's font lacks are drawn in other fonts, or else escaped."""

from pathlib import Path

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager

from outputs import fonts, plots


def write_font(path: Path, name: str, characters: str, is_empty: bool = False) -> None:
    """Write a font in which each of these characters is a rectangle, or empty."""
    pen = TTGlyphPen(None)
    if not is_empty:
        pen.moveTo((0, 0))
        for point in ((0, 700), (500, 700), (500, 0)):
            pen.lineTo(point)
        pen.closePath()
    glyph, glyph_names = pen.glyph(), [".notdef", *map("u{:x}".format, map(ord, characters))]
    builder = FontBuilder(1000)
    builder.setupGlyphOrder(glyph_names)
    builder.setupCharacterMap(dict(zip(map(ord, characters), glyph_names[1:], strict=True)))
    builder.setupGlyf(dict.fromkeys(glyph_names, glyph))
    builder.setupHorizontalMetrics(dict.fromkeys(glyph_names, (600, 0)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": name, "styleName": "Regular"})
    # findfont warns of this weight.
    builder.setupOS2(usWeightClass=500)
    builder.setupPost()
    builder.save(path)


@pytest.fixture
def system_fonts(tmp_path, monkeypatch) -> None:
    """Give the system four fonts, and matplotlib's font of boxes."""
    manager = font_manager.fontManager
    monkeypatch.setattr(manager, "ttflist", [*manager.ttflist])
    boxes = "Last Resort High-Efficiency"
    names = {"A one": "好", "C both": "好坏", "B both": "好坏", "A empty": "好坏差"}
    for name, characters in names.items():
        write_font(tmp_path / f"{name}.ttf", name, characters, name == "A empty")
        manager.addfont(tmp_path / f"{name}.ttf")
    monkeypatch.setattr(font_manager, "get_font_names", lambda: [*names, boxes])


def test_the_font_with_the_most_characters_is_used_and_of_two_the_first_by_name(system_fonts):
    assert fonts.find(["好 good", "坏差"]) == (["B both"], {"差"})
    assert fonts.find(["好 good", "坏差"]).escape("好差") == "好\\u5dee"


@pytest.mark.filterwarnings("error")
def test_labels_are_drawn_in_a_font_of_the_system(system_fonts, tmp_path, caplog):
    # matplotlib warns of each character that it draws as a box.
    assert plots.confusion(tmp_path / "a.png", np.eye(2), ["好", "坏"], "all right") == set()
    assert caplog.messages == []
    first = (tmp_path / "a.png").read_bytes()
    plots.confusion(tmp_path / "a.png", np.eye(2), ["好", "坏"], "all right")
    assert (tmp_path / "a.png").read_bytes() == first


def test_fonts_are_not_searched_if_matplotlib_has_every_character(monkeypatch):
    monkeypatch.delattr(font_manager, "get_font_names")
    assert fonts.find(["très ¿ £ я α א ع 😀", "a\nb"]) == ([], set())
