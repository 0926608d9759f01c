"""A trained agent in a loop of the user's own: observations in, actions out, one environment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from reverie.agent import Agent
from reverie.compatibility import describe
from reverie.config import Config
from reverie.env import Environment, adapt, make
from reverie.errors import ConfigError
from reverie.run.evaluate import restore_agent
from reverie.types import Step


class TrainedAgent:
    """The agent of a checkpoint, which remembers one episode. Call `reset` where an episode begins."""

    def __init__(self, agent: Agent, config: Config, seed: int = 0):
        self.agent, self.config = agent, config
        self.generator = torch.Generator(agent.device).manual_seed(seed)
        self.reset()

    @classmethod
    def load(
        cls,
        path: str | Path,
        device: str = "auto",
        seed: int = 0,
        overrides: Sequence[str] = (),
        *,
        trust: bool = False,
    ) -> TrainedAgent:
        """The agent that a run saved at ``path``; the same ``seed`` and observations give the same actions.

        ``overrides`` (section.key=value) change its configuration, such as that of its environment.

        An environment that the run knew from `ENVIRONMENTS` has to be there again. Raises what `restore_agent` does.
        """
        return cls(*restore_agent(Path(path), device, overrides=overrides, trust=trust), seed)

    def environment(self, env: Any = None) -> Environment:
        """One environment as the agent was trained in it, or ``env``, a `gymnasium.Env`, with the same around it.

        Its ``reset(seed)`` gives the observation, ``step(action)`` observation, reward, terminated and truncated.
        Raises ConfigError where ``env`` shows or takes something else than the agent knows.
        """
        if env is None:
            return make(self.config.env)
        adapted = adapt(env, self.config.env)
        if (found := describe(adapted.observation, adapted.action)) != self.agent.spaces:
            raise ConfigError(f"the environment has the spaces {found}, the agent knows {self.agent.spaces}; give it "
                              "one like that of its training")  # fmt: skip
        return adapted

    def reset(self) -> None:
        """Forgets what was seen: the next observation begins an episode."""
        self.carry, self.first = self.agent.initial(1), True

    def act(self, observation: Mapping[str, np.ndarray] | Any, deterministic: bool = False) -> Float[np.ndarray, "A"]:
        """The action for what the environment shows: drawn from the policy, or its likeliest.

        Raises ConfigError for anything but finite arrays of the keys and shapes that the agent knows.
        """
        known = {key: tuple(spec.shape) for key, spec in self.agent.world.observation.items()}
        named = isinstance(observation, Mapping)
        given = {key: np.shape(value) for key, value in observation.items()} if named else type(observation).__name__
        if given != known:
            raise ConfigError(f"the observation is {given}, the agent knows {known}; use an environment that "
                              "`TrainedAgent.environment` gave")  # fmt: skip
        no = np.zeros(1, bool)
        obs = {key: np.asarray(value)[None] for key, value in observation.items()}
        if unsound := [key for key, value in obs.items() if value.dtype.kind == "f" and not np.isfinite(value).all()]:
            raise ConfigError(f"the observation {unsound[0]!r} has numbers that are not finite: mend it")
        step = Step(obs, np.zeros(1, np.float32), first=np.array([self.first]), last=no, terminal=no)
        action, self.carry = self.agent.act(step, self.carry, self.generator, deterministic)
        self.first = False
        return action[0]
