"""Collection: the agent plays all environments one step at a time, and every row goes to replay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from reverie.agent import Agent
from reverie.env import VectorEnv
from reverie.replay import SequenceReplayBuffer
from reverie.types import Carry, Goal, Latent


@dataclass(frozen=True)
class Episode:
    """One finished episode; its length is in steps of the agent."""

    total: float
    length: int


class Scores:
    """Adds up returns and lengths of E environments' open episodes."""

    def __init__(self, envs: int):
        self.total, self.length = np.zeros(envs), np.zeros(envs, np.int64)

    def add(self, reward: np.ndarray, first: np.ndarray, last: np.ndarray) -> list[tuple[int, Episode]]:
        """Counts one step; returns the environments whose episode it ended, with the episode."""
        self.total = np.where(first, 0.0, self.total + reward)
        self.length = np.where(first, 0, self.length + 1)
        return [(int(i), Episode(float(self.total[i]), int(self.length[i]))) for i in np.flatnonzero(last)]


class Collector:
    """What must be remembered between two steps of the real environments, and how to take one.

    Actions are given out as soon as they are chosen, so that environments in other processes step while the agent
    learns. The rows are the same as in lock-step: an action never waits for an update.
    """

    def __init__(self, envs: VectorEnv, agent: Agent, replay: SequenceReplayBuffer):
        self.envs, self.agent, self.replay = envs, agent, replay
        self.carry, self.scores = agent.initial(envs.size), Scores(envs.size)
        self.action = self.carry.action.cpu().numpy()
        self.stepping = False

    def step(self) -> list[Episode]:
        """Plays one step in every environment; returns the episodes that ended."""
        if not self.stepping:
            self.envs.send(self.action)
        step = self.envs.receive()
        self.action, self.carry = self.agent.act(step, self.carry)
        stored = self.agent.world.pack(self.carry.latent)
        self.envs.send(self.action)
        self.stepping = True
        self.replay.add(step, self.action, {name: value.cpu().numpy() for name, value in stored.items()})
        return [episode for _, episode in self.scores.add(step.reward, step.first, step.last)]

    def state_dict(self) -> dict[str, Any]:
        latent = self.carry.latent
        return {
            "envs": self.envs.state_dict(),
            "latent": [latent.deter, latent.stoch, latent.logits],
            "action": self.carry.action,
            "goal": list(self.carry.goal.fields),
            "age": self.carry.age,
            "total": torch.from_numpy(self.scores.total),
            "length": torch.from_numpy(self.scores.length),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where `state_dict` was made; open episodes are replayed from their seeds. Call it before `step`."""
        self.envs.load_state_dict(state["envs"])
        device = self.agent.device
        latent, goal = (tuple(field.to(device) for field in state[name]) for name in ("latent", "goal"))
        self.carry = Carry(Latent(*latent), state["action"].to(device), Goal(*goal), state["age"].to(device))
        self.action = state["action"].cpu().numpy()
        self.scores.total, self.scores.length = state["total"].numpy().copy(), state["length"].numpy().copy()
