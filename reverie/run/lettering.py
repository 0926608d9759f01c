"""Letters of any script in pictures: a font of this machine that has them, or else what they are called."""

from __future__ import annotations

import functools
import itertools
import logging
import os
import re
import unicodedata
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from PIL import ImageFont
from PIL.ImageFont import FreeTypeFont

FOLDERS = (
    *(Path.home() / folder for folder in (".fonts", ".local/share/fonts", "Library/Fonts")),
    *map(Path, ("/usr/share/fonts", "/usr/local/share/fonts", "/Library/Fonts", "/System/Library/Fonts")),
    Path(os.environ.get("WINDIR", "C:/Windows")) / "Fonts",
)
"""Where systems keep their fonts; matplotlib, where it is installed, brings some more."""

MOST_FONTS = 1000
"""Files that are looked at; it takes a millisecond each."""

NOBODYS = "\U0010ffff"
"""No letter: fonts draw it as whatever they do not have."""

SOUND = re.compile(r"(?:LETTER|SYLLABLE) (\w+)")
"""What a letter sounds like, in its name."""

log = logging.getLogger(__name__)


@functools.cache
def plain_font(size: int) -> FreeTypeFont:
    """The font that comes with Pillow; it has the letters of English."""
    return ImageFont.load_default(size)  # type: ignore[return-value]


def font_for(text: str, size: int) -> FreeTypeFont:
    """The first font that has most of a text's letters, beginning with the one that comes with Pillow."""
    return _font_for(frozenset(text), size)


def spelled(text: str, font: FreeTypeFont) -> str:
    """The text, with letters that the font does not have written by their sound, or else by their number."""
    return "".join(letter if letter.isspace() or has(font, letter) else name_of(letter) for letter in text)


def name_of(letter: str) -> str:
    """Such as ``han`` for a syllable of Korean, ``e`` whatever its accent, and a number for what has no sound."""
    name = unicodedata.name(letter, "")
    if letter == "\N{REPLACEMENT CHARACTER}":
        return "?"
    if sound := SOUND.search(name):
        return sound[1].capitalize() if "CAPITAL" in name else sound[1].lower()
    return f"[{ord(letter):X}]"


@functools.lru_cache(10_000)
def has(font: FreeTypeFont, letter: str) -> bool:
    """Whether a font draws a letter as itself: a stand-in looks like no letter, or like its neighbour."""
    return _drawn(font, letter) not in (_drawn(font, NOBODYS), _drawn(font, chr(ord(letter) ^ 1)))


def _drawn(font: FreeTypeFont, letter: str) -> tuple[tuple[int, int], bytes]:
    mask = font.getmask(letter)
    return mask.size, bytes(mask)  # type: ignore[arg-type]


@functools.lru_cache(100)
def _font_for(letters: frozenset[str], size: int) -> FreeTypeFont:
    plain = plain_font(size)
    lacking = [letter for letter in sorted(letters) if not letter.isspace() and not has(plain, letter)]
    if not lacking:
        return plain
    best = max(itertools.chain([plain], _installed(size)), key=lambda font: sum(has(font, one) for one in lacking))
    if spelled("".join(lacking), best) != "".join(lacking):
        _say_so()
    return best


def _installed(size: int) -> Iterator[FreeTypeFont]:
    """The fonts of this machine, beginning with the shortest names, which are of the plainest faces."""
    package = find_spec("matplotlib")
    bundled = [Path(place) / "mpl-data" for place in (package and package.submodule_search_locations) or ()]
    found = [path for folder in (*FOLDERS, *bundled) for path in folder.rglob("*.[to]t[fc]")]
    for path in sorted(found, key=lambda path: (len(path.name), path))[:MOST_FONTS]:
        try:
            yield ImageFont.truetype(str(path), size)
        except OSError:  # bitmaps of other sizes, and damaged ones
            continue


@functools.cache
def _say_so() -> None:
    log.warning("no font of this machine has all letters of a text, which films spell by their sounds: install one, "
                "such as Noto Sans of that script")  # fmt: skip
