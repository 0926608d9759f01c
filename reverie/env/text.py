"""Text as an observation: UTF-8 bytes of one length, so that it is stored, stacked and sent like any other array.

Zeros fill what is left. A text that is too long is cut where a character ends.
"""

from __future__ import annotations

import functools
import logging

import numpy as np
from gymnasium import spaces
from jaxtyping import UInt8

from reverie.types import ObservationSpec

logger = logging.getLogger(__name__)

KIND = "text"
"""What `ObservationSpec.kind` calls text."""


def is_text(space: spaces.Space) -> bool:
    """Whether a space holds strings: `gymnasium.spaces.Text`, or one that only says so by its dtype, as MiniGrid's."""
    return space.dtype is not None and np.dtype(space.dtype).kind == "U"


def text_spec(space: spaces.Space, longest: int) -> ObservationSpec:
    """A text of at most ``longest`` bytes; of fewer where the space allows no longer one."""
    if isinstance(space, spaces.Text):
        widest = max((len(character.encode(errors="replace")) for character in space.character_set), default=1)
        longest = min(longest, space.max_length * widest)
    return ObservationSpec((longest,), "uint8", kind=KIND)


def to_bytes(text: str, length: int, name: str = "text") -> UInt8[np.ndarray, "L"]:
    """UTF-8, filled with zeros up to ``length``; a longer text is cut after a whole character.

    The first text that is cut is pointed out, once for each ``name``. A zero character, which would end the text, is
    left out, and half of a surrogate pair becomes a question mark.
    """
    encoded = text.replace("\0", "").encode(errors="replace")
    if len(encoded) > length:
        _warn(name, length)
        encoded = encoded[:length].decode(errors="ignore").encode()
    return np.frombuffer(encoded.ljust(length, b"\0"), np.uint8).copy()


def to_text(array: UInt8[np.ndarray, "L"]) -> str:
    """The text that `to_bytes` encoded: all before the first zero. Bytes that are no UTF-8 become U+FFFD."""
    return bytes(array.astype(np.uint8)).partition(b"\0")[0].decode(errors="replace")


@functools.cache
def _warn(name: str, length: int) -> None:
    logger.warning("a text of the observation %r is longer than %d bytes and is cut; raise env.text_length", name,
                   length)  # fmt: skip
