"""Environments that count in how many distinct states they have been, all of one process together.

A plugin of `coverage.py`: ``visited/doorkey`` and ``visited/pinpad`` tell the number in ``info`` as ``visited``.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import gymnasium

from reverie import ENVIRONMENTS
from reverie.env.registry import find

VISITED: set[Hashable] = set()
"""All states so far."""


def doorkey_state(env: Any) -> Hashable:
    """Where the agent stands and looks, what it carries, and what all doors are like."""
    carried = env.carrying and (env.carrying.type, env.carrying.color)
    doors = [(thing.is_open, thing.is_locked) for thing in env.grid.grid if thing is not None and thing.type == "door"]
    return (*map(int, env.agent_pos), int(env.agent_dir), carried, *doors)


def pinpad_state(env: Any) -> Hashable:
    """Where the player stands, and the pads before."""
    return env.cell, env.history


TASKS: dict[str, tuple[str, Callable[[Any], Hashable]]] = {
    "doorkey": ("minigrid/DoorKey-8x8", doorkey_state),
    "pinpad": ("pinpad/vec-4", pinpad_state),
}
"""The environment, and its state."""


class Visited(gymnasium.Wrapper):
    """Counts states; every episode begins in the same place, which ``layout`` determines."""

    def __init__(self, env: gymnasium.Env, state: Callable[[Any], Hashable], layout: int):
        super().__init__(env)
        self.state, self.layout = state, layout

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        obs, info = self.env.reset(seed=self.layout, options=options)
        VISITED.add(self.state(self.unwrapped))
        return obs, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        VISITED.add(self.state(self.unwrapped))
        return obs, reward, terminated, truncated, info | {"visited": len(VISITED)}


def create(task: str, layout: int = 0) -> gymnasium.Env:
    """The environment ``visited/<task>``."""
    name, state = TASKS[task]
    return Visited(find(name)(), state, layout)


ENVIRONMENTS["visited"] = create
