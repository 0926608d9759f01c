"""Text as an observation: bytes or tokens of one length, so that it is stored, stacked and sent like any other array.

Zeros fill what is left. A text that is too long is cut where a character ends, or a token.
"""

from __future__ import annotations

import functools
import itertools
import logging
import sys

import numpy as np
from gymnasium import spaces
from jaxtyping import UInt, UInt8

from reverie.env import tokens
from reverie.types import ObservationSpec

logger = logging.getLogger(__name__)

KIND = "text"
"""What `ObservationSpec.kind` calls text."""


def is_text(space: spaces.Space) -> bool:
    """Whether a space holds strings: `gymnasium.spaces.Text`, or one that only says so by its dtype, as MiniGrid's."""
    return space.dtype is not None and np.dtype(space.dtype).kind == "U"


def text_spec(space: spaces.Space, longest: int, tokenizer: str = "") -> ObservationSpec:
    """A text of at most ``longest`` tokens, or bytes; of fewer bytes where the space allows no longer one.

    Raises ConfigError where the ``tokenizer``, as `reverie.env.tokens` has it, cannot be used.
    """
    if tokenizer:
        return ObservationSpec((longest,), "uint16", tokens.classes(tokenizer), KIND, tokenizer=tokenizer)
    return ObservationSpec((min(longest, _bytes_of(space)),), "uint8", kind=KIND)


def limit_of(space: spaces.Space, longest: int, tokenizer: str = "") -> str:
    """What makes the texts of `text_spec` as short as they are, and how they become longer."""
    if tokenizer or longest < _bytes_of(space):
        return f"env.text_length = {longest}; train with a larger one to keep more"
    assert isinstance(space, spaces.Text)
    return f"its space, with max_length = {space.max_length} and the bytes of its charset; mend the space"


def _bytes_of(space: spaces.Space) -> int:
    """Of the longest text that a space allows."""
    if not isinstance(space, spaces.Text):
        return sys.maxsize
    return space.max_length * max((len(letter.encode(errors="replace")) for letter in space.character_set), default=1)


def encode(text: str, spec: ObservationSpec, name: str, limit: str) -> UInt[np.ndarray, "L"]:
    """The text as its ``spec`` has it: as `to_bytes`, or classes of tokens, cut and filled in the same way."""
    if not spec.tokenizer:
        return to_bytes(text, spec.shape[0], name, limit)
    classes, array = tokens.to_classes(_speakable(text), spec.tokenizer), np.zeros(spec.shape, spec.dtype)
    if len(classes) > len(array):
        _warn(name, f"{len(array)} tokens", limit)
    array[: len(classes)] = classes[: len(array)]
    return array


def decode(array: UInt[np.ndarray, "L"], spec: ObservationSpec) -> str:
    """The text that `encode` was given, as far as it was not cut and the tokenizer knew it."""
    if not spec.tokenizer:
        return to_text(array)
    return tokens.from_classes(itertools.takewhile(bool, array.tolist()), spec.tokenizer)


def to_bytes(
    text: str, length: int, name: str = "text", limit: str = "the length that was asked for"
) -> UInt8[np.ndarray, "L"]:
    """UTF-8, filled with zeros up to ``length``; a longer text is cut after a whole character.

    The first text that is cut is pointed out, once for each ``name``, with what the ``limit`` is. A zero character,
    which would end the text, is left out, and half of a surrogate pair becomes a question mark.
    """
    encoded = _speakable(text).replace("\0", "").encode()
    if len(encoded) > length:
        _warn(name, f"{length} bytes", limit)
        encoded = encoded[:length].decode(errors="ignore").encode()
    return np.frombuffer(encoded.ljust(length, b"\0"), np.uint8).copy()


def to_text(array: UInt[np.ndarray, "L"]) -> str:
    """The text that `to_bytes` encoded: all before the first zero. Bytes that are no UTF-8 become U+FFFD."""
    return bytes(array.astype(np.uint8)).partition(b"\0")[0].decode(errors="replace")


def _speakable(text: str) -> str:
    """With question marks for halves of surrogate pairs, which no encoding has."""
    return text.encode(errors="replace").decode()


@functools.cache
def _warn(name: str, length: str, limit: str) -> None:
    logger.warning("a text of the observation %r is longer than %s and is cut; the limit is %s", name, length, limit)
