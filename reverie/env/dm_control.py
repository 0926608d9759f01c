"""The DeepMind control suite: ``dmc/walker_walk`` by its sensors, ``dmc_pixels/walker_walk`` by sight."""

from __future__ import annotations

import os
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from reverie.env.registry import suggest
from reverie.errors import ConfigError, ReverieError


def create(task: str) -> gymnasium.Env:
    """The task with its sensors as separate observations. It needs no graphics, and draws only if MUJOCO_GL is set."""
    os.environ.setdefault("MUJOCO_GL", "disable")
    return Control(task)


def create_pixels(task: str, size: int = 64, camera: int | None = None) -> gymnasium.Env:
    """The task seen through a camera: ``image`` uint8 [size, size, 3]. The default is the task's usual camera.

    Raises `ConfigError` where nothing can be drawn.
    """
    if os.environ.setdefault("MUJOCO_GL", "egl") == "disable":
        raise ConfigError("dmc_pixels needs graphics, but MUJOCO_GL is 'disable'; set it to egl, osmesa or glfw")
    try:
        control = Control(task, size, camera)
        control.render()
    except (ReverieError, ModuleNotFoundError):
        raise
    except Exception as error:  # OpenGL's libraries have many ways to be missing
        raise ConfigError(
            f"dmc_pixels cannot draw with MUJOCO_GL={os.environ['MUJOCO_GL']} ({type(error).__name__}: {error}); "
            "set MUJOCO_GL to egl (a GPU), osmesa (a CPU) or glfw (a screen), whichever is installed"
        ) from error
    return control


class Control(gymnasium.Env):
    """A task of the suite in Gymnasium's words. ``size`` 0 shows its sensors, else an image of that size."""

    metadata = {"render_modes": ["rgb_array"]}

    def __init__(self, task: str, size: int = 0, camera: int | None = None):
        from dm_control import suite

        names = {f"{domain}_{name}": (domain, name) for domain, name in suite.ALL_TASKS}
        if task not in names:
            raise ConfigError(f"unknown control task {task!r}; {suggest(task, names)}")
        self.control = suite.load(*names[task])
        self.size = size
        self.camera = 2 if camera is None and task.startswith("quadruped") else camera or 0
        self.render_mode = None if os.environ.get("MUJOCO_GL") == "disable" else "rgb_array"
        shown: dict[str, spaces.Space] = {"image": spaces.Box(0, 255, (size, size, 3), np.uint8)}
        if not size:
            sensors = self.control.observation_spec().items()
            shown = {key: spaces.Box(-np.inf, np.inf, sensor.shape, np.float32) for key, sensor in sensors}
        self.observation_space = spaces.Dict(shown)
        bounds = self.control.action_spec()
        low, high = bounds.minimum.astype(np.float32), bounds.maximum.astype(np.float32)
        self.action_space = spaces.Box(low, high, bounds.shape, np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.control.task.random.seed(seed)
        return self._observe(self.control.reset()), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        moment = self.control.step(action)
        terminated = moment.last() and moment.discount == 0
        return self._observe(moment), float(moment.reward), terminated, moment.last() and not terminated, {}

    def render(self) -> np.ndarray:
        side = self.size or 240
        return self.control.physics.render(side, side, camera_id=self.camera)

    def _observe(self, moment: Any) -> dict[str, Any]:
        return {"image": self.render()} if self.size else dict(moment.observation)
