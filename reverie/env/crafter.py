"""Crafter: survival in a generated world, 64 x 64 images and 17 actions."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces


def create(**kwargs: Any) -> gymnasium.Env:
    """The game; keyword arguments go to ``crafter.Env`` (``area``, ``size``, ``length``, ``reward``)."""
    return Crafter(**kwargs)


class Crafter(gymnasium.Env):
    """The game's own older interface, in Gymnasium's words. Dying terminates; its length limit truncates."""

    metadata = {"render_modes": ["rgb_array"]}
    render_mode = "rgb_array"

    def __init__(self, **kwargs: Any):
        import crafter

        self.game = crafter.Env(**kwargs)
        self.observation_space = spaces.Box(0, 255, self.game.observation_space.shape, np.uint8)
        self.action_space = spaces.Discrete(self.game.action_space.n)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        # A world follows from these two numbers, which the game takes only when it is made.
        self.game._seed, self.game._episode = seed, 0
        return self.game.reset(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        obs, reward, done, info = self.game.step(action)
        died = bool(info["discount"] == 0)
        return obs, reward, died, bool(done) and not died, info

    def render(self) -> np.ndarray:
        return self.game.render()
