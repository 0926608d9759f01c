"""Deep Sea: one way in 2^N leads to the treasure, and each step of it costs. ``deep_sea/10`` is ten cells deep.

A diver sinks one row a step from the top left corner of N x N cells and moves a column to the left or to the right.
Which action is which differs from cell to cell, always alike for one ``mapping_seed``. Moving right costs 0.01 / N;
right in the last cell of the last row, which only N moves to the right reach, pays 1. The best return is 0.99.

Osband et al., "Behaviour Suite for Reinforcement Learning" (2020); this is its deterministic version, with the same
mapping for the same seed.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from reverie.errors import ConfigError

COST = 0.01
"""Of all moves to the right of the best episode together."""


def create(task: str, mapping_seed: int = 42) -> gymnasium.Env:
    """The sea of this depth. Raises `ConfigError` if ``task`` is not a whole number above zero."""
    if not task.isdecimal() or not int(task):
        raise ConfigError(f"deep_sea/{task} has no depth; write a whole number of rows, as in deep_sea/10")
    return DeepSea(int(task), mapping_seed)


class DeepSea(gymnasium.Env):
    """Shows the diver as a one in N x N zeros, and zeros alone at the bottom, where the episode terminates."""

    def __init__(self, depth: int, mapping_seed: int):
        self.depth = depth
        # The suite's own generator and call: published results are of these mappings.
        self.right = np.random.RandomState(mapping_seed).binomial(1, 0.5, (depth, depth)).tolist()
        self.observation_space = spaces.Box(0, 1, (depth, depth), np.float32)
        self.action_space = spaces.Discrete(2)
        self.row = self.column = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.row = self.column = 0
        return self._observe(), {}

    def step(self, action: int | np.integer) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        reward = 0.0
        if action == self.right[self.row][self.column]:
            treasure = self.column == self.depth - 1
            reward = treasure - COST / self.depth
            self.column = min(self.column + 1, self.depth - 1)
        else:
            self.column = max(self.column - 1, 0)
        self.row += 1
        return self._observe(), reward, self.row == self.depth, False, {}

    def _observe(self) -> np.ndarray:
        sea = np.zeros((self.depth, self.depth), np.float32)
        if self.row < self.depth:
            sea[self.row, self.column] = 1
        return sea
