"""An environment that counts, and can be told to misbehave: it proves the way of the data without a simulator."""

from __future__ import annotations

import os
import time
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces


class CountingEnv(gymnasium.Env):
    """Shows ``count`` (steps of this episode), ``episode`` (a number that the reset seed determines) and ``action``.

    Episodes last 3 to ``longest`` steps; half of them terminate, the others are truncated. The reward is the count.
    ``info`` says which step is the second and, one level below, the count.
    ``fault`` names what goes wrong at step ``when`` of every episode, or only once if the file ``once`` does not exist.
    """

    def __init__(self, longest: int = 12, fault: str = "", when: int = 2, once: str = ""):
        self.observation_space = spaces.Dict(
            {
                "count": spaces.Box(0, np.inf, (1,), np.float32),
                "episode": spaces.Box(0, np.inf, (1,), np.float32),
                "action": spaces.Box(-1, 8, (1,), np.float32),
            }
        )
        self.action_space = spaces.Discrete(3)
        self.longest, self.fault, self.when, self.once = longest, fault, when, once
        self.count, self.action = 0, -1
        self._fail_if("init")

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self._fail_if("reset")
        self.count, self.action = 0, -1
        self.episode = int(self.np_random.integers(1_000_000))
        self.length = int(self.np_random.integers(3, self.longest + 1))
        return self._observe(), {}

    def step(self, action: int):
        self.count, self.action = self.count + 1, action
        obs, reward = self._observe(), float(self.count)
        if self.fault and self.count == self.when and self._due():
            obs, reward = self._misbehave(obs, reward)
        over = self.count >= self.length
        info = {"middle": self.count == 2, "inner": {"count": np.float32(self.count)}, "text": "none"}
        return obs, reward, over and self.episode % 2 == 0, over and self.episode % 2 == 1, info

    def _observe(self) -> dict[str, np.ndarray]:
        shown = {"count": self.count, "episode": self.episode, "action": self.action}
        return {key: np.array([value], np.float32) for key, value in shown.items()}

    def _due(self) -> bool:
        if not self.once:
            return True
        try:
            os.close(os.open(self.once, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True

    def _fail_if(self, fault: str) -> None:
        if self.fault == fault and self._due():
            raise RuntimeError(f"{fault} went wrong")

    def _misbehave(self, obs: dict, reward: Any) -> tuple[Any, Any]:
        match self.fault:
            case "step":
                raise RuntimeError("step went wrong")
            case "die":
                os._exit(3)
            case "quit":
                raise SystemExit(0)
            case "interrupt":
                raise KeyboardInterrupt
            case "hang":
                time.sleep(1e6)
            case "nan":
                return obs | {"count": np.array([np.nan], np.float32)}, reward
            case "shape":
                return obs | {"count": np.zeros((2,), np.float32)}, reward
            case "dtype":
                return obs | {"count": np.array(["three"])}, reward
            case "none":
                return obs | {"count": None}, reward
            case "missing":
                return {"count": obs["count"]}, reward
            case "extra":
                return obs | {"more": obs["count"]}, reward
            case "text reward":
                return obs, "a lot"
            case "huge reward":
                return obs, 1e300
        return obs, reward


def create_counting(**kwargs: Any) -> CountingEnv:
    """A factory that other processes can import."""
    return CountingEnv(**kwargs)
