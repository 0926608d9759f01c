"""What every behavior answers: how it acts, what its levels experience in a dream, and which motives it brings."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from reverie.behavior.actor_critic import ActorCritic
from reverie.behavior.goals import Decision, GoalSpace
from reverie.behavior.motive import Motive
from reverie.errors import ConfigError
from reverie.types import Dream, Goal, Latent, Metrics, Rollout


class Behavior(nn.Module, ABC):
    """One level that acts, ``worker``, and whoever sets its goals.

    ``noise`` is how many uniform numbers a decision about a goal takes.
    """

    worker: ActorCritic
    goals: GoalSpace | None
    noise: int

    # --- who learns ---

    @property
    @abstractmethod
    def levels(self) -> list[ActorCritic]:
        """Who learns; the first one's critic knows no goal."""

    @property
    def motives(self) -> Mapping[str, Motive]:
        """The motives that the behavior brings, by name."""
        return {}

    @abstractmethod
    def ready(self) -> Bool[Tensor, ""]:
        """Whether levels learn now."""

    def frozen(self, level: ActorCritic) -> bool:
        """Whether a level's policy never learns; its critic does."""
        return False

    # --- goals, while acting and in dreams ---

    @property
    def decision(self) -> Decision | None:
        """What a manager decides, where there is one."""
        return None

    @abstractmethod
    def decode(self, code: Float[Tensor, "*batch G"]) -> Goal:
        """The goal that a code stands for."""

    @abstractmethod
    def decisions(self, horizon: int) -> int:
        """Goals per dream of this many steps."""

    @abstractmethod
    def assign(self, start: Latent, generator: torch.Generator) -> tuple[Bool[Tensor, "N"], Goal]:
        """Which dreams choose their goals themselves, and the goals that the others are given."""

    @abstractmethod
    def initial_goal(self, latent: Latent) -> Goal:
        """A goal before any was chosen."""

    @abstractmethod
    def decide(self, latent: Latent, uniform: Float[Tensor, "*batch Z"]) -> tuple[Goal, Float[Tensor, "*batch P"]]:
        """A goal, and the parameters of the distribution that it was drawn from."""

    @abstractmethod
    def goal_logprob(
        self, goal_policy: Float[Tensor, "*batch P"], code: Float[Tensor, "*batch G"]
    ) -> Float[Tensor, "*batch"]:
        """Of codes under the distributions that they were drawn from."""

    @abstractmethod
    def next_goal(
        self, latent: Latent, goal: Goal, age: Int[Tensor, "E"], first: Bool[Tensor, "E"], uniform: Float[Tensor, "E Z"]
    ) -> tuple[Goal, Int[Tensor, "E"]]:
        """The goal to act with now, and its age at the next step."""

    @abstractmethod
    def goal_outcomes(
        self,
        goal: Goal,
        age: Int[Tensor, "E"],
        latent: Latent,
        first: Bool[Tensor, "E"],
        start: Float[Tensor, "E D"],
    ) -> Float[Tensor, "finished 3"]:
        """How goals that have just had their time fit: at their end, those of others there, and their own at ``start``.

        ``start`` is where each goal was chosen. NaN where there is no other environment.
        """

    def shuffle(self) -> None:
        """From now on every environment is given the goal that was meant for another one.

        What is lost shows what goals are worth. Raises ConfigError without a manager.
        """
        raise ConfigError("this agent has no goals to shuffle: it was trained with hierarchy.enabled=false")

    # --- what a dream was ---

    @abstractmethod
    def views(self, dream: Dream) -> list[Rollout]:
        """What each of `levels` experienced."""

    def goal_metrics(self, dream: Dream) -> Metrics:
        """How well goals were reached in a dream."""
        return {}

    def joint_kl(self, metrics: Metrics) -> Metrics:
        """How far all levels together moved in an update, from how far each did."""
        return {}
