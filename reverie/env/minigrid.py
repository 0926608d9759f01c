"""MiniGrid and BabyAI: ``minigrid/DoorKey-5x5``, ``minigrid/BabyAI-GoToLocal-v0`` or the Gymnasium id itself.

The 7 x 7 cells in view come as the key ``grid`` (object, colour and state of each cell as classes); with
``pixels=True`` the same view is drawn as ``image`` instead, ``tile`` pixels a cell.
"""

from __future__ import annotations

import contextlib
import io
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from reverie.env.registry import make_registered
from reverie.errors import ConfigError


def create(task: str, pixels: bool = False, tile: int = 8, **kwargs: Any) -> gymnasium.Env:
    """The environment with this short name or Gymnasium id. Raises `ConfigError` for a tile too small to draw on."""
    if tile < 3:
        raise ConfigError(f"env.kwargs.tile = {tile}: should be at least 3 pixels")
    name = task if task.startswith(("MiniGrid-", "BabyAI-")) else f"MiniGrid-{task}"
    env = make_registered(name if "-v" in name else f"{name}-v0", **kwargs)
    if pixels:
        from minigrid.wrappers import RGBImgPartialObsWrapper

        return Quiet(RGBImgPartialObsWrapper(env, tile_size=tile))
    return Quiet(Grid(env))


class Quiet(gymnasium.Wrapper):
    """Level generators print their failed attempts."""

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        with contextlib.redirect_stdout(io.StringIO()):
            return self.env.reset(**kwargs)


class Grid(gymnasium.ObservationWrapper):
    """Says that the cells hold classes, not brightness, and calls them ``grid``."""

    def __init__(self, env: gymnasium.Env):
        from minigrid.core.constants import OBJECT_TO_IDX

        super().__init__(env)
        shown: dict[str, spaces.Space] = dict(env.observation_space.spaces)  # type: ignore[attr-defined]
        # Objects are the largest of the three sets of classes: colours and states are fewer.
        shown["grid"] = spaces.MultiDiscrete(np.full(shown.pop("image").shape or (), len(OBJECT_TO_IDX)))
        self.observation_space = spaces.Dict(shown)

    def observation(self, observation: dict[str, Any]) -> dict[str, Any]:
        return {("grid" if key == "image" else key): value for key, value in observation.items()}
