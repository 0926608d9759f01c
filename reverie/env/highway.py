"""Highway driving on an occupancy grid: which of 19 x 41 cells around the car hold a vehicle (779 numbers), 5 actions.

``highway`` is the fast version of the task; ``highway/merge-v0`` and its siblings work too.
"""

from __future__ import annotations

from typing import Any

import gymnasium
from gymnasium.wrappers import FlattenObservation

from reverie.env.registry import make_registered

OCCUPANCY_GRID = {
    "type": "OccupancyGrid",
    "features": ["presence"],
    "grid_size": [[-47.5, 47.5], [-102.5, 102.5]],
    "grid_step": [5, 5],
}
"""Metres across and along the road, and metres per cell."""


def create(task: str = "highway-fast-v0", config: dict[str, Any] | None = None) -> gymnasium.Env:
    """The driving task with this Gymnasium id; ``config`` is passed on and may replace the observation."""
    import highway_env

    gymnasium.register_envs(highway_env)
    return FlattenObservation(make_registered(task, config={"observation": OCCUPANCY_GRID} | (config or {})))
