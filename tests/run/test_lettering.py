"""Texts of any script in films: drawn with a font that has their letters, and spelled where there is none."""

from __future__ import annotations

import io
import logging
from pathlib import Path

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen

from reverie.env.text import to_bytes
from reverie.run import lettering, video
from reverie.run.lettering import font_for, has, name_of, plain_font, spelled
from reverie.types import ObservationSpec

TEXT = ObservationSpec((40,), "uint8", kind="text")


def glyph(width: int):
    """A bar, as wide as is said."""
    pen = TTGlyphPen(None)
    for number, point in enumerate([(0, 0), (0, 700), (width, 700), (width, 0)]):
        (pen.lineTo if number else pen.moveTo)(point)
    pen.closePath()
    return pen.glyph()


def write_font(path: Path, letters: dict[str, int]) -> None:
    """A font whose letters are bars of these widths."""
    names = {letter: f"bar{number}" for number, letter in enumerate(letters)}
    widths = {".notdef": 500} | {names[letter]: width for letter, width in letters.items()}
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(list(widths))
    builder.setupCharacterMap({ord(letter): name for letter, name in names.items()})
    builder.setupGlyf({name: glyph(width) for name, width in widths.items()})
    builder.setupHorizontalMetrics({name: (width + 50, 0) for name, width in widths.items()})
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": path.stem, "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    content = io.BytesIO()
    builder.save(content)
    path.write_bytes(content.getvalue())


@pytest.fixture
def fonts(tmp_path, monkeypatch) -> Path:
    """The folder that has all fonts of the machine; none at first."""
    monkeypatch.setattr(lettering, "FOLDERS", (tmp_path, tmp_path / "missing"))
    monkeypatch.setattr(lettering, "find_spec", lambda name: None)
    for remembered in (lettering._font_for, lettering._say_so, has):
        remembered.cache_clear()
    return tmp_path


@pytest.mark.parametrize(
    ("letter", "name"),
    [("한", "han"), ("글", "geul"), ("é", "e"), ("Ж", "Zhe"), ("あ", "a"), ("😀", "[1F600]"), ("中", "[4E2D]"),
     ("\N{REPLACEMENT CHARACTER}", "?"), ("\x07", "[7]")],
)  # fmt: skip
def test_a_letter_is_called_by_its_sound_or_its_number(letter, name):
    assert name_of(letter) == name


def test_without_a_font_letters_are_spelled_and_that_is_said_once(fonts, caplog):
    with caplog.at_level(logging.WARNING):
        for text in ("빨간 공", "gib 공"):
            assert font_for(text, 15) is plain_font(15)
    assert spelled("빨간 공, go", plain_font(15)) == "bbalgan gong, go"
    assert len(caplog.records) == 1 and "install one" in caplog.text


def test_english_needs_no_other_font(fonts, caplog):
    write_font(fonts / "a.ttf", dict.fromkeys("go", 100))
    assert font_for("go (left), 3!", 15) is plain_font(15) and not caplog.records


def test_the_font_that_has_most_letters_is_taken(fonts, caplog):
    write_font(fonts / "few.ttf", {"한": 100, "국": 200})
    write_font(fonts / "many.ttf", {"한": 100, "국": 200, "글": 300})
    (fonts / "bad.ttf").write_bytes(b"no font")
    found = font_for("한국 한글", 15)
    assert found.getname()[0] == "many" and spelled("한국 한글", found) == "한국 한글" and not caplog.records
    assert font_for("한국", 15).getname()[0] == "few"
    assert spelled("한국 공", font_for("한국 공", 15)) == "한국 gong" and "spell" in caplog.text


def test_a_font_of_stand_ins_has_no_letter(fonts):
    write_font(fonts / "boxes.ttf", {chr(code): 300 for code in range(0xAC00, 0xAD00)})
    assert font_for("가나", 15) is plain_font(15)


def test_films_show_letters_and_no_boxes(fonts):
    def film(text: str) -> np.ndarray:
        said = to_bytes(text, 40)[None]
        return video.side_by_side(said, said, spec=TEXT)

    assert (film("빨간 공") == film("bbalgan gong")).all()
    for remembered in (lettering._font_for, has):
        remembered.cache_clear()
    write_font(fonts / "bars.ttf", {"빨": 100, "간": 300, "공": 500})
    drawn, other = film("빨간 공"), film("공 빨간")
    assert (drawn != film("bbalgan gong")).any() and (drawn != other).any()
