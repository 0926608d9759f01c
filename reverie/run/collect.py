"""Collection: a player plays all environments one step at a time, and a collector brings every row to replay."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reverie.agent import Agent
from reverie.env import VectorEnv
from reverie.replay import SequenceReplayBuffer
from reverie.types import Carry, Goal, Latent, Step, cpu_copy


@dataclass(frozen=True)
class Episode:
    """One finished episode; its length is in steps."""

    total: float
    length: int
    info: dict[str, float] = field(default_factory=dict)
    """What the environment told of it, by name."""


class Scores:
    """Adds up returns and lengths of E environments' open episodes."""

    def __init__(self, envs: int):
        self.total, self.length = np.zeros(envs), np.zeros(envs, np.int64)

    def add(self, step: Step) -> list[tuple[int, Episode]]:
        """Counts one step; returns the environments whose episode it ended, with the episode."""
        self.total = np.where(step.first, 0.0, self.total + step.reward)
        self.length = np.where(step.first, 0, self.length + 1)
        return [(int(i), self._episode(step, int(i))) for i in np.flatnonzero(step.last)]

    def _episode(self, step: Step, i: int) -> Episode:
        told = {name: float(numbers[i, 0]) for name, numbers in step.info.items() if numbers[i, 1]}
        return Episode(float(self.total[i]), int(self.length[i]), told)


@dataclass(frozen=True)
class Played:
    """One step of E environments: what they showed, what the agent did, and the latent [E, ...] that it was in."""

    step: Step
    action: np.ndarray
    latent: dict[str, np.ndarray]


class Player:
    """E environments and the agent that plays in them: what must be remembered between two steps, and how to take one.

    ``generator`` is the agent's own if it is left out; whoever evaluates brings another, and leaves no trace. With
    ``deterministic``, the agent takes its likeliest actions instead of drawing them.
    """

    def __init__(
        self, envs: VectorEnv, agent: Agent, generator: torch.Generator | None = None, deterministic: bool = False
    ):
        self.envs, self.agent, self.generator, self.deterministic = envs, agent, generator, deterministic
        self.carry = agent.initial(envs.size)
        self.action = self.carry.action.cpu().numpy()
        self.stepping = False
        self.ahead: deque[Played] = deque()
        """What was played and not taken yet: only a player in the background leaves something here."""

    def observe(self) -> Step:
        """What the environments show in answer to `action`."""
        if not self.stepping:
            self.envs.send(self.action)
        self.stepping = False
        return self.envs.receive()

    def act(self, step: Step) -> None:
        """Chooses the next `action`."""
        self.action, self.carry = self.agent.act(step, self.carry, self.generator, self.deterministic)

    def play(self, acting: AbstractContextManager | None = None) -> Played:
        """Takes one step in every environment, inside ``acting`` while the agent acts.

        Actions are given out as soon as they are chosen, so that environments in other processes step while the agent
        learns. The rows are the same as in lock-step: an action never waits for an update.
        """
        step = self.observe()
        with acting or nullcontext():
            self.act(step)
        stored = self.agent.world.pack(self.carry.latent)
        self.envs.send(self.action)
        self.stepping = True
        return Played(step, self.action, {name: value.cpu().numpy() for name, value in stored.items()})

    def take(self) -> Played:
        """The oldest step that nobody took."""
        return self.ahead.popleft() if self.ahead else self.play()

    def refresh(self) -> None:
        """Call it after an update: whoever plays with a copy of the weights copies them anew."""

    def settle(self) -> None:
        """Waits until nobody plays; agent and `state_dict` belong together until the next `take`."""

    def close(self) -> None:
        """Ends what plays in the background."""

    def state_dict(self) -> dict[str, Any]:
        latent = self.carry.latent
        return {
            "envs": self.envs.state_dict(),
            "latent": [cpu_copy(field) for field in latent.fields],
            "action": cpu_copy(self.carry.action),
            "goal": [cpu_copy(field) for field in self.carry.goal.fields],
            "age": cpu_copy(self.carry.age),
            "ahead": [_each(torch.from_numpy, asdict(played)) for played in self.ahead],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where `state_dict` was made; open episodes are replayed from their seeds. Call it before `take`."""
        self.envs.load_state_dict(state["envs"])
        device = self.agent.device
        latent, goal = (tuple(field.to(device) for field in state[name]) for name in ("latent", "goal"))
        self.carry = Carry(Latent(*latent), state["action"].to(device), Goal(*goal), state["age"].to(device))
        self.action = state["action"].cpu().numpy()
        ahead = [_each(Tensor.numpy, played) for played in state["ahead"]]
        self.ahead = deque(Played(Step(**played["step"]), played["action"], played["latent"]) for played in ahead)


class Collector:
    """Keeps what a player plays: rows in replay, returns and lengths in scores."""

    def __init__(self, player: Player, replay: SequenceReplayBuffer):
        self.player, self.replay, self.scores = player, replay, Scores(player.envs.size)

    def step(self) -> list[Episode]:
        """Brings one step of every environment to replay; returns the episodes that ended."""
        played = self.player.take()
        self.replay.add(played.step, played.action, played.latent)
        ended = self.scores.add(played.step)
        return [episode for _, episode in ended]

    def state_dict(self) -> dict[str, Any]:
        """Of player and scores; replay has its own."""
        scores = {"total": torch.from_numpy(self.scores.total), "length": torch.from_numpy(self.scores.length)}
        return {"player": self.player.state_dict(), "scores": scores}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where `state_dict` was made. Call it before `step`."""
        self.player.load_state_dict(state["player"])
        total, length = state["scores"]["total"], state["scores"]["length"]
        self.scores.total, self.scores.length = total.numpy().copy(), length.numpy().copy()


def _each(function: Callable[[Any], Any], tree: Any) -> Any:
    """The function of every value in nested dicts."""
    return {key: _each(function, value) for key, value in tree.items()} if isinstance(tree, dict) else function(tree)
