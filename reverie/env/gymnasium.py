"""Adapts any Gymnasium environment. This is the only border: whatever passes it has been checked.

Environments of the older interface (``reset`` returns only an observation, ``step`` four values) are adapted too.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np

from reverie.env.actions import action_writer
from reverie.env.info import Aggregate, InfoReader
from reverie.env.picture import read_picture
from reverie.env.spaces import BadTransition, ObservationReader, read_flag, read_reward
from reverie.env.wrappers import Observation
from reverie.errors import ConfigError


class GymnasiumEnvironment:
    """A `reverie.env.Environment` around a `gymnasium.Env`; what is read of it is as `EnvOptions` has it.

    Raises `ConfigError` if a space is not supported. `reset` and `step` raise `BadTransition` if what the environment
    returns does not fit its spaces.
    """

    def __init__(
        self,
        env: Any,
        kinds: Mapping[str, str | None] = {},
        text_length: int = 64,
        tokenizer: str = "",
        info_metrics: Mapping[str, Aggregate] = {},
    ):
        self.env = env
        if isinstance(env, gymnasium.vector.VectorEnv):
            raise ConfigError(
                f"{type(env).__name__} is {env.num_envs} environments side by side; make one, and set env.envs"
            )
        if not hasattr(env, "observation_space") or not hasattr(env, "action_space"):
            raise ConfigError(
                f"{type(env).__name__} has no observation_space or action_space; add it, or set obs_dim and action_dim"
            )
        self._read = ObservationReader(env.observation_space, kinds, text_length, tokenizer)
        self.observation = self._read.specs
        self.action, self._write, notes = action_writer(env.action_space)
        self._info = InfoReader(info_metrics)
        self.notes = [*self._read.notes, *notes]
        parameters = inspect.signature(env.reset).parameters.values()
        self._takes_seed = any(p.name == "seed" or p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)

    def reset(self, seed: int) -> Observation:
        self._info.begin()
        if self._takes_seed:
            result = self.env.reset(seed=seed)
        else:
            if hasattr(self.env, "seed"):
                self.env.seed(seed)
            result = self.env.reset()
        return self._read(result[0] if _has_info(result) else result)

    def step(self, action: np.ndarray) -> tuple[Observation, float, bool, bool]:
        result = self.env.step(self._write(action))
        obs, reward, terminated, truncated, info = result if len(result) == 5 else _five_values(result)
        self._info.add(info)
        return (
            self._read(obs),
            read_reward(reward),
            read_flag("terminated", terminated),
            read_flag("truncated", truncated),
        )

    def report(self) -> dict[str, float]:
        return self._info.report()

    def render(self) -> np.ndarray | None:
        drawing = getattr(self.env, "render_mode", None) in ("rgb_array", "rgb_array_list")
        return read_picture(self.env.render()) if drawing else None

    def close(self) -> None:
        self.env.close()


def _has_info(result: Any) -> bool:
    return isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], dict)


def _five_values(result: Any) -> tuple[Any, Any, Any, Any, Any]:
    """The four values of the older interface, which tells a time limit from an end in ``info``, as five."""
    if len(result) != 4:
        raise BadTransition(f"step returned {len(result)} values, expected (obs, reward, terminated, truncated, info)")
    obs, reward, done, info = result
    limited = isinstance(info, dict) and bool(info.get("TimeLimit.truncated", False))
    return (obs, reward, False, done, info) if limited else (obs, reward, done, False, info)
