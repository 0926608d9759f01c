"""Atari games: ``atari/pong`` by the standard protocol, ``atari100k/pong`` by that of the 100k benchmark.

This file plays single frames; that an action lasts four of them, and how the picture shrinks, stands in
`reverie.env.registry.PROTOCOLS`.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

from reverie.env.registry import make_registered

FRAMES_PER_SECOND = 60


def create(task: str, sticky: float = 0.25, noops: int = 30, all_actions: bool = True, **kwargs: Any) -> gymnasium.Env:
    """One game, ``ms_pacman`` or ``MsPacman``, with its sound if ``sound_obs``.

    With probability ``sticky`` a frame repeats the action before it, up to ``noops`` idle frames open each episode, and
    ``all_actions`` offers the full joystick even where the game needs less of it.
    """
    title = "".join(word[:1].upper() + word[1:] for word in task.split("_"))
    settings = {"frameskip": 1, "repeat_action_probability": sticky, "full_action_space": all_actions}
    game = make_registered(f"ALE/{title}-v5", **settings | kwargs)
    return Idle(Speaker(game) if kwargs.get("sound_obs") else game, noops)


class Speaker(gymnasium.Wrapper):
    """Says how fast samples come, and that there is silence before the first frame, where the emulator has zeros."""

    def __init__(self, env: gymnasium.Env):
        super().__init__(env)
        sound = env.observation_space["sound"]  # type: ignore[index]
        sound.rate = FRAMES_PER_SECOND * sound.shape[0]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        obs, info = self.env.reset(seed=seed, options=options)
        return obs | {"sound": np.full_like(obs["sound"], 128)}, info


class Idle(gymnasium.Wrapper):
    """Opens each episode with a random number of frames without input, so that no two begin alike."""

    def __init__(self, env: gymnasium.Env, most: int):
        super().__init__(env)
        self.most = most

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        obs, info = self.env.reset(seed=seed, options=options)
        for _ in range(np.random.Generator(np.random.PCG64(seed)).integers(self.most + 1)):
            obs, _, terminated, truncated, info = self.env.step(0)
            if terminated or truncated:
                obs, info = self.env.reset(options=options)
        return obs, info
