"""Which observations are pictures, and how they become uint8 [height, width, channels], as the networks read them.

Height and width are the two neighbouring axes of which the shorter one is longest (squares first); all others are
channels. So (3, 64, 64) and a stack of four gray frames (4, 84, 84) are channels first, and four coloured frames
(4, 64, 64, 3) are one picture with twelve channels. Nothing is ever scaled along an axis of channels.

Bytes of rank three are always pictures. Bytes of another rank, and numbers of another dtype, are where they look like
one: both sides are long, channels are few, and the bounds say what is black and what is white.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
from gymnasium import spaces

SHORTEST_SIDE, MOST_CHANNELS = 16, 32
"""What looks like a picture is no smaller, and has no more."""

SLACK = 0.1
"""How far beyond their bounds numbers may lie, as a share of the range: filters overshoot."""


@dataclass(frozen=True)
class Layout:
    """How one space holds its pictures."""

    order: tuple[int, ...]
    """The axes of the space: height, width, and those of the channels."""
    shape: tuple[int, int, int]
    white: float
    """The brightest number; black is zero."""

    def fits(self, array: np.ndarray) -> bool:
        """Whether all numbers [*space] lie between black and white, or hardly beyond."""
        if array.dtype == np.uint8 and self.white == 255:
            return True
        least, most = float(array.min()), float(array.max())
        return -SLACK * self.white <= least and most <= (1 + SLACK) * self.white

    def __call__(self, array: np.ndarray) -> np.ndarray:
        """The picture uint8 [height, width, channels] that an array [*space] holds."""
        if array.dtype != np.uint8 or self.white != 255:
            array = np.rint(array * np.float32(255 / self.white)).clip(0, 255).astype(np.uint8)
        return np.ascontiguousarray(array.transpose(self.order).reshape(self.shape))


def find_layout(space: spaces.Box) -> tuple[Layout | None, str]:
    """How the space holds pictures, or None; and in words what became of it, where that may surprise."""
    rank = len(space.shape)
    if rank not in (2, 3, 4) or not math.prod(space.shape):
        return None, ""
    order, shape = _axes(space.shape)
    height, width, channels = shape
    looks_like_one = min(height, width) >= SHORTEST_SIDE and channels <= MOST_CHANNELS
    is_bytes, white = space.dtype == np.uint8, _white(space)
    if is_bytes and rank == 3:
        said = "" if order == (0, 1, 2) else f"is read as pictures of {height} x {width} with {channels} channels first"
        return Layout(order, shape, white or 255.0), said
    if looks_like_one and (white == 255 if rank == 2 else white) and (is_bytes or rank > 2):
        return Layout(order, shape, white), f"is read as pictures of {height} x {width} with {channels} channel(s)"
    if looks_like_one and rank > 2:
        return None, (
            "looks like a picture, but is read as a vector, for its bounds do not say what is black and what is white; "
            "if it is one, make it a Box from 0 to 255 (or to 1)"
        )
    return None, ""


def _axes(shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, int, int]]:
    """Height, width and the channels' axes; and the three sizes."""
    pairs = itertools.pairwise(range(len(shape)))
    height, width = max(pairs, key=lambda pair: (min(shape[i] for i in pair), shape[pair[0]] == shape[pair[1]]))
    channels = [axis for axis in range(len(shape)) if axis not in (height, width)]
    return (height, width, *channels), (shape[height], shape[width], math.prod(shape[i] for i in channels))


def _white(space: spaces.Box) -> float:
    """The upper bound where bounds are 0 and 1, or 0 and 255, everywhere; else 0."""
    white = float(space.high.flat[0])
    return white if white in (1, 255) and not space.low.any() and (space.high == white).all() else 0.0
