"""Numbers that an environment tells in ``info``, such as success, each brought to one number per episode."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from reverie.errors import ConfigError

Aggregate = Literal["last", "max", "sum", "mean"]

AGGREGATES: dict[str, Callable[[Sequence[float]], float]] = {
    "last": lambda numbers: numbers[-1],
    "max": max,
    "sum": sum,
    "mean": lambda numbers: sum(numbers) / len(numbers),
}

RESERVED = {"return", "length", "deviation", "goal_reach", "goal_reach_shuffled", "goal_reach_at_start"}
"""What metrics of episodes and evaluations are called already."""


class InfoReader:
    """The numbers in ``wanted``, by name, of one environment's episodes. ``outer/inner`` is a key of a nested dict."""

    def __init__(self, wanted: Mapping[str, Aggregate]):
        self.wanted = wanted
        self.told: dict[str, list[float]] = {}

    def begin(self) -> None:
        """Forgets the episode before."""
        self.told = {}

    def add(self, info: Any) -> None:
        """Reads the ``info`` of one frame. Raises ConfigError where what was asked for is not a number."""
        for name in self.wanted:
            value = _find(info, name)
            if value is None:
                continue
            array = np.asarray(value)
            if array.size != 1 or array.dtype.kind not in "bfiu":
                raise ConfigError(
                    f"env.info_metrics names {name!r}, but info has {array.dtype}{list(array.shape)} there, "
                    "not a number; leave it out, or name a number in it as outer/inner"
                )
            if np.isfinite(array).all():
                self.told.setdefault(name, []).append(float(array.item()))

    def report(self) -> dict[str, float]:
        """One number each of what the episode has told so far; what it has not told is left out."""
        return {name: AGGREGATES[self.wanted[name]](numbers) for name, numbers in self.told.items()}


def _find(info: Any, name: str) -> Any:
    """What ``info`` has under a name, or None."""
    if not isinstance(info, Mapping):
        return None
    if name in info:
        return info[name]
    outer, _, inner = name.partition("/")
    return _find(info.get(outer), inner) if inner else None
