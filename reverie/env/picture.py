"""What environments draw, in the one form that films are made of."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import UInt8

Picture = UInt8[np.ndarray, "_ _ 3"]

CHANNELS = 1, 3, 4
"""Gray, colours, and colours with alpha."""


def read_picture(drawn: Any) -> Picture | None:
    """A picture as uint8 [height, width, 3], or None where nothing was drawn.

    Takes gray [H, W] and [H, W, 1], alpha [H, W, 4] (which is dropped), channels first, the last of several pictures,
    booleans, numbers in [0, 1] or [0, 255], and lists of all these. Raises ValueError for what is no picture.
    """
    if drawn is None or isinstance(drawn, str):  # as text is drawn by the mode "ansi"
        return None
    picture = np.asarray(drawn)
    if picture.size == 0:
        return None
    if picture.ndim == 4:
        picture = picture[-1]
    if picture.ndim == 2:
        picture = picture[..., None]
    if picture.ndim == 3 and picture.shape[0] in CHANNELS and picture.shape[-1] not in CHANNELS:
        picture = np.moveaxis(picture, 0, -1)
    if picture.ndim != 3 or picture.shape[-1] not in CHANNELS or picture.dtype.kind not in "buif":
        raise ValueError(f"render returned {picture.dtype}{list(picture.shape)}, expected uint8 [height, width, 3]")
    if picture.dtype.kind == "f":
        picture = np.nan_to_num(picture)
    if picture.dtype.kind == "b" or (picture.dtype.kind == "f" and picture.min() >= 0 and picture.max() <= 1):
        picture = picture * 255.0
    return np.broadcast_to(picture[..., :3].clip(0, 255).astype(np.uint8), (*picture.shape[:2], 3))
