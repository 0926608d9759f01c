"""Translates flat action vectors into whatever a Gymnasium space holds; prepared once, when the environment is made.

Numbers arrive in [-1, 1] and fill the box between its bounds. Without bounds they are passed on as they are, and with
one alone they fill the two units beside it: a span as wide as [-1, 1].
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from gymnasium import spaces

from reverie.errors import ConfigError
from reverie.types import ActionPart, ActionSpec

MOST = 100_000
"""Length of the longest flat action vector: one place for each class, one for each number."""

HUGE = 1e30
"""A bound as far out as this, or as the numbers of its dtype go, is none."""


def action_writer(
    space: spaces.Space, name: str = "", begin: int = 0
) -> tuple[ActionSpec, Callable[[np.ndarray], Any], list[str]]:
    """The parts of an action of ``space``, a function from the flat vector [A] to an action, and what a user must know.

    The parts of this space begin at entry ``begin`` of the vector. Raises `ConfigError` for an unsupported space, and
    where two parts have the same name.
    """
    label = name or "action"
    if (width := spaces.flatdim(space) if getattr(space, "is_np_flattenable", False) else 0) > MOST:
        raise ConfigError(f"the action space {label!r} = {space} has {width} choices or numbers, at most {MOST}")
    if isinstance(space, spaces.Discrete):
        end, first = begin + int(space.n), int(space.start)
        return (ActionPart(label, end - begin, discrete=True),), lambda flat: first + int(flat[begin:end].argmax()), []
    if isinstance(space, (spaces.MultiDiscrete, spaces.MultiBinary)):
        return _choices_writer(space, label, begin)
    if isinstance(space, spaces.Box) and space.dtype.kind == "f" and math.prod(space.shape):
        return _numbers_writer(space, label, begin)
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        return _group_writer(space, name, begin)
    raise ConfigError(
        f"the action space {label!r} = {space} is not supported; use Box (float), Discrete, Multi* or Dict"
    )


def _choices_writer(space: Any, label: str, begin: int) -> tuple[ActionSpec, Callable[[np.ndarray], Any], list[str]]:
    binary = isinstance(space, spaces.MultiBinary)
    sizes = [2] * math.prod(space.shape) if binary else [int(size) for size in space.nvec.ravel()]
    first = 0 if binary else space.start
    parts = tuple(ActionPart(f"{label}/{index}", size, discrete=True) for index, size in enumerate(sizes))
    bounds = np.cumsum([begin, *sizes])

    def write(flat: np.ndarray) -> np.ndarray:
        chosen = [flat[left:right].argmax() for left, right in itertools.pairwise(bounds)]
        return (np.array(chosen).reshape(space.shape) + first).astype(space.dtype)

    return parts, write, []


def _numbers_writer(
    space: spaces.Box, label: str, begin: int
) -> tuple[ActionSpec, Callable[[np.ndarray], Any], list[str]]:
    end = begin + math.prod(space.shape)
    low, high, notes = _range(space, label)
    centre, half = (high + low) / 2, (high - low) / 2

    def write(flat: np.ndarray) -> np.ndarray:
        numbers = centre + half * flat[begin:end].reshape(space.shape).clip(-1, 1)  # float64
        return numbers.astype(space.dtype).clip(space.low, space.high)

    return (ActionPart(label, end - begin, discrete=False),), write, notes


def _range(space: spaces.Box, label: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Lowest and highest numbers that are sent, float64 [*shape], and a line if they do not span the whole box."""
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    huge = min(HUGE, float(np.finfo(str(space.dtype)).max))
    below, above = low > -huge, high < huge  # where there are bounds
    narrowed = ~(below & above)
    least = np.where(below, low, np.where(above, high - 2, -1.0))
    most = np.where(above, high, np.where(below, low + 2, 1.0))
    if not narrowed.any():
        return least, most, []
    spans = sorted({(float(a), float(b)) for a, b in zip(least[narrowed], most[narrowed], strict=True)})
    sent = ", ".join(f"[{a:g}, {b:g}]" for a, b in spans[:3]) + ", ..." * (len(spans) > 3)
    note = f"action {label!r} is not bounded on both sides: numbers in {sent} are sent; for others, give its Box bounds"
    return least, most, [note]


def _group_writer(space: Any, name: str, begin: int) -> tuple[ActionSpec, Callable[[np.ndarray], Any], list[str]]:
    is_dict = isinstance(space, spaces.Dict)
    children = sorted(space.spaces.items()) if is_dict else list(enumerate(space.spaces))
    parts: ActionSpec = ()
    writers, notes = {}, []
    for key, child in children:
        added, writers[key], said = action_writer(child, f"{name}/{key}".lstrip("/"), begin)
        begin += sum(part.size for part in added)
        parts += added
        notes += said
    names = [part.name for part in parts]
    if twice := sorted({label for label in names if names.count(label) > 1}):
        raise ConfigError(f"the action space has two parts called {twice[0]!r}; rename one of its keys")
    if is_dict:
        return parts, lambda flat: {key: write(flat) for key, write in writers.items()}, notes
    return parts, lambda flat: tuple(write(flat) for write in writers.values()), notes
