"""One level that acts alone; what a behavior answers, whether it has a manager or not.

Its goals are vectors of width zero, so that everything else treats it like a `reverie.behavior.hierarchy.Hierarchy`.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from reverie.behavior import views
from reverie.behavior.actor_critic import ActorCritic
from reverie.behavior.goals import GoalSpace
from reverie.types import ConfigError, Dream, Goal, Latent, Metrics, Rollout


class Flat(nn.Module):
    """One level that acts, on its own account."""

    noise = 0
    """Uniform numbers that a decision takes."""

    def __init__(self, worker: ActorCritic, goals: GoalSpace | None = None):
        super().__init__()
        self.worker, self.goals = worker, goals

    @property
    def levels(self) -> list[ActorCritic]:
        """Who learns; the first one's critic knows no goal."""
        return [self.worker]

    def ready(self) -> Tensor:
        """Whether levels learn now."""
        return self.worker.bins.new_ones((), dtype=torch.bool)

    def frozen(self, level: ActorCritic) -> bool:
        """Whether a level's policy never learns; its critic does."""
        return False

    def practised(self) -> None:
        """Takes note that goals were learned once more."""

    def shuffle(self) -> None:
        """From now on every environment is given the goal that was meant for another one.

        What is lost shows what goals are worth. Raises ConfigError without a manager.
        """
        raise ConfigError("this agent has no goals to shuffle: it was trained with hierarchy.enabled=false")

    def decisions(self, horizon: int) -> int:
        """Goals per dream of this many steps."""
        return 1

    def assign(self, start: Latent, generator: torch.Generator) -> tuple[Bool[Tensor, "N"], Goal]:
        """Which dreams choose their goals themselves, and the goals that the others are given."""
        return start.deter.new_ones(len(start.deter), dtype=torch.bool), self.nothing(start)

    def nothing(self, latent: Latent) -> Goal:
        """A goal before any was chosen."""
        none = latent.deter.new_zeros(*latent.deter.shape[:-1], 0)
        return Goal(none, none)

    def decide(self, latent: Latent, uniform: Float[Tensor, "*batch Z"]) -> tuple[Goal, Float[Tensor, "*batch P"]]:
        """A goal, and the parameters of the distribution that it was drawn from."""
        goal = self.nothing(latent)
        return goal, goal.code

    def logprob(self, choice: Float[Tensor, "*batch P"], code: Float[Tensor, "*batch G"]) -> Float[Tensor, "*batch"]:
        """Of codes under the distributions that they were drawn from."""
        return choice.sum(-1)

    def pursue(
        self, latent: Latent, goal: Goal, age: Int[Tensor, "E"], first: Bool[Tensor, "E"], uniform: Float[Tensor, "E Z"]
    ) -> tuple[Goal, Int[Tensor, "E"]]:
        """The goal to act with now, and its age at the next step."""
        return goal, age

    def arrivals(
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
        return latent.deter.new_zeros(0, 3)

    def rewards(self, dream: Dream) -> dict[str, Float[Tensor, "N H"]]:
        """The streams that are the behavior's own."""
        return {}

    def views(self, dream: Dream) -> list[Rollout]:
        """What each of `levels` experienced."""
        return [views.worker(dream, self.worker.streams, self.worker.discount)]

    def reach(self, dream: Dream) -> Metrics:
        """How well goals were reached in a dream."""
        return {}

    def moved(self, metrics: Metrics) -> Metrics:
        """How far all levels together moved in an update, from how far each did."""
        return {}
