"""Goal spaces: what a manager can ask of its worker, and how well the worker did it.

A *code* is what the manager chooses, groups of one-hots in a line; a *target* is what the worker is told. Goals are
learned from replayed and imagined states, and their gradient never reaches the world model.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Set
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from reverie.behavior.motive import Motive
from reverie.functional import adapt, max_cosine, mixed_log_probs, mixed_probs, one_hot, straight_through
from reverie.nets.distributions import OneHot
from reverie.nets.layers import MLP
from reverie.optim import OptimizerOptions
from reverie.types import Batch, Dream, Explained, Goal, Metrics

LAYERS = 2
"""Hidden layers of the networks here."""

GROUPS, CLASSES = 8, 8
"""Of the codes that states are compressed to."""


@dataclass(frozen=True)
class Decision:
    """What a manager decides: the code of a goal, for which its worker then acts."""

    code: OneHot
    """The distribution of codes, without its parameters."""
    steps: int
    """K, for which a goal holds."""
    noise: int
    """Z, the uniform numbers that the worker takes for an action."""


class GoalSpace(Motive):
    """The motive to reach goals: streams ``goal``, for the worker, and ``novelty``, for the manager.

    ``distribution`` is that of codes, without its parameters; ``target`` the width of targets.
    """

    distribution: OneHot
    target: int
    paints: bool = False
    """Whether targets are states, which the world model can show."""

    @abstractmethod
    def decode(self, code: Float[Tensor, "*batch G"]) -> Goal:
        """The goal that a code stands for."""

    @abstractmethod
    def propose(self, deter: Float[Tensor, "N D"], uniform: Float[Tensor, "N Z"]) -> Goal:
        """The goal to be in these states."""

    @abstractmethod
    def reward(self, target: Float[Tensor, "*batch W"], deter: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch"]:
        """How well states that were arrived at fit the target that was in force on the way."""

    @abstractmethod
    def fit(self, target: Float[Tensor, "*batch W"], deter: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch"]:
        """How well states fit a target, at most 1 and comparable between rewards: what is looked at, never paid."""

    @abstractmethod
    def novelty(self, deter: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch"]:
        """How unlike anything known these states are."""

    @torch.no_grad()
    def rewards(self, dream: Dream, wanted: Set[str]) -> dict[str, Float[Tensor, "N H"]]:
        arrived, rewards = dream.latent.deter[:, 1:], {}
        if "goal" in wanted:
            rewards["goal"] = self.reward(dream.target[:, :-1], arrived)
        if "novelty" in wanted:
            rewards["novelty"] = self.novelty(arrived)
        return rewards


class AutoencoderGoals(GoalSpace):
    """Goals are states, compressed to groups of one-hots and painted from them (Director, Hafner et al. 2022).

    The loss of a state x is ``sum_d (decode(encode(x)) - x)_d^2 + beta KL(encode(x) || uniform)``; beta is adapted
    until the KL is at its target.
    """

    beta: Tensor
    paints = True

    def __init__(self, deter: int, units: int, reward: str, nats: float, optimizer: OptimizerOptions | None = None):
        super().__init__(optimizer)
        self.distribution, self.target, self.nats = OneHot(CLASSES, 0.01, GROUPS), deter, nats
        self.encoder = MLP(deter, units, LAYERS, self.distribution.size)
        self.decoder = MLP(self.distribution.size, units, LAYERS, deter)
        self.register_buffer("beta", torch.ones(()))
        self.match = GOAL_REWARDS[reward]

    def decode(self, code: Float[Tensor, "*batch G"]) -> Goal:
        return Goal(code, self.decoder(code))

    def propose(self, deter: Float[Tensor, "N D"], uniform: Float[Tensor, "N Z"]) -> Goal:
        return self.decode(self.distribution.sample(self.encoder(deter), uniform))

    def reward(self, target: Float[Tensor, "*batch W"], deter: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch"]:
        return self.match(target, deter)

    def fit(self, target: Float[Tensor, "*batch W"], deter: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch"]:
        """The cosine of the angle between the two, times the ratio of their lengths."""
        return max_cosine(target, deter)

    def novelty(self, deter: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch"]:
        """The mean squared error of painting a state from its most likely code."""
        code = one_hot(self.distribution.split(self.encoder(deter)).argmax(-1), self.distribution.classes).flatten(-2)
        return (self.decoder(code) - deter).square().mean(-1)

    def loss(
        self, explained: Explained, batch: Batch, dream: Dream, generator: torch.Generator
    ) -> tuple[Tensor, Metrics]:
        deter = explained.latent.deter
        logits = self.distribution.split(self.encoder(deter))
        uniform = torch.rand(logits.shape[:-1], generator=generator, device=deter.device)
        code = straight_through(mixed_probs(logits, self.distribution.unimix), uniform)
        error = (self.decoder(code.flatten(-2)) - deter).square().sum(-1)
        log_p = mixed_log_probs(logits, self.distribution.unimix)
        nats = (log_p.exp() * (log_p + math.log(self.distribution.classes))).sum((-2, -1))
        usage = code.detach().flatten(0, -3).mean(0)
        return error + self.beta * nats, {
            "goals/reconstruction": error.detach().mean(),
            "goals/kl": nats.detach().mean(),
            "goals/beta": self.beta.clone(),
            "goals/perplexity": perplexity(usage),
        }

    def adapt(self, seen: Metrics, learned: Bool[Tensor, ""]) -> None:
        super().adapt(seen, learned)
        adapted = adapt(self.beta, seen["goals/kl"] / self.nats, *BETA)
        self.beta.copy_(torch.where(learned, adapted, self.beta))


BETA = 1e-5, 1.0
"""Bounds on the weight of the autoencoder's KL."""


class SkillGoals(GoalSpace):
    """Goals are numbered skills; a worker does well where its skill can be told from the states that it reaches.

    The reward is ``log q(skill | state) - log(1 / skills)`` (Eysenbach et al. 2019); q learns from dreams.
    """

    def __init__(self, deter: int, units: int, skills: int, optimizer: OptimizerOptions | None = None):
        super().__init__(optimizer)
        self.distribution, self.target = OneHot(skills, 0.01), skills
        self.discriminator = MLP(deter, units, LAYERS, skills)

    def decode(self, code: Float[Tensor, "*batch G"]) -> Goal:
        return Goal(code, code)

    def propose(self, deter: Float[Tensor, "N D"], uniform: Float[Tensor, "N Z"]) -> Goal:
        return self.decode(self.distribution.sample(self.discriminator(deter), uniform))

    def reward(self, target: Float[Tensor, "*batch W"], deter: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch"]:
        return (torch.log_softmax(self.discriminator(deter), -1) * target).sum(-1) + math.log(self.target)

    def fit(self, target: Float[Tensor, "*batch W"], deter: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch"]:
        """The probability that the skill is guessed."""
        return (torch.softmax(self.discriminator(deter), -1) * target).sum(-1)

    def novelty(self, deter: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch"]:
        """The entropy of the discriminator: states that no skill is known to reach."""
        log_p = torch.log_softmax(self.discriminator(deter), -1)
        return -(log_p.exp() * log_p).sum(-1)

    def loss(
        self, explained: Explained, batch: Batch, dream: Dream, generator: torch.Generator
    ) -> tuple[Tensor, Metrics]:
        log_q = torch.log_softmax(self.discriminator(dream.latent.deter[:, 1:]), -1)
        skill = dream.target[:, :-1]
        accuracy = (log_q.argmax(-1) == skill.argmax(-1)).float().mean()
        return -(log_q * skill).sum(-1), {"goals/accuracy": accuracy}


def perplexity(usage: Float[Tensor, "*groups C"]) -> Float[Tensor, ""]:
    """How many classes are in use, as if all were used alike; the mean over groups."""
    return torch.exp(-(usage * usage.clamp(min=1e-8).log()).sum(-1)).mean()


def cosine(target: Tensor, state: Tensor) -> Tensor:
    """The cosine of the angle between the two, whatever their lengths."""
    return torch.cosine_similarity(target, state, -1)


def distance(target: Tensor, state: Tensor) -> Tensor:
    """Minus the root of the mean squared difference."""
    return -(target - state).square().mean(-1).sqrt()


GOAL_REWARDS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "max_cosine": max_cosine,
    "cosine": cosine,
    "distance": distance,
}
"""How a state is compared with the one that was asked for."""
