"""One level that acts alone. Its goals are vectors of width zero, so that acting and dreaming are the same for both."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from reverie.behavior import views
from reverie.behavior.actor_critic import ActorCritic
from reverie.behavior.behavior import Behavior
from reverie.types import Dream, Goal, Latent, Rollout


class Flat(Behavior):
    """One level that acts, on its own account."""

    noise = 0
    goals = None

    def __init__(self, worker: ActorCritic):
        super().__init__()
        self.worker = worker

    @property
    def levels(self) -> list[ActorCritic]:
        return [self.worker]

    def ready(self) -> Bool[Tensor, ""]:
        return self.worker.bins.new_ones((), dtype=torch.bool)

    def decode(self, code: Float[Tensor, "*batch G"]) -> Goal:
        return Goal(code, code)

    def decisions(self, horizon: int) -> int:
        return 1

    def assign(self, start: Latent, generator: torch.Generator) -> tuple[Bool[Tensor, "N"], Goal]:
        return start.deter.new_ones(len(start.deter), dtype=torch.bool), self.initial_goal(start)

    def initial_goal(self, latent: Latent) -> Goal:
        return self.decode(latent.deter.new_zeros(*latent.deter.shape[:-1], 0))

    def decide(self, latent: Latent, uniform: Float[Tensor, "*batch Z"]) -> tuple[Goal, Float[Tensor, "*batch P"]]:
        goal = self.initial_goal(latent)
        return goal, goal.code

    def goal_logprob(
        self, goal_policy: Float[Tensor, "*batch P"], code: Float[Tensor, "*batch G"]
    ) -> Float[Tensor, "*batch"]:
        return goal_policy.sum(-1)

    def next_goal(
        self, latent: Latent, goal: Goal, age: Int[Tensor, "E"], first: Bool[Tensor, "E"], uniform: Float[Tensor, "E Z"]
    ) -> tuple[Goal, Int[Tensor, "E"]]:
        return goal, age

    def goal_outcomes(
        self,
        goal: Goal,
        age: Int[Tensor, "E"],
        latent: Latent,
        first: Bool[Tensor, "E"],
        start: Float[Tensor, "E D"],
    ) -> Float[Tensor, "finished 3"]:
        return latent.deter.new_zeros(0, 3)

    def views(self, dream: Dream) -> list[Rollout]:
        return [views.worker(dream, self.worker.streams, self.worker.discount)]
