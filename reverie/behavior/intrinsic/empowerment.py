"""Variational empowerment (Mohamed & Rezende 2015): states are paid for how much an agent can decide from there.

The empowerment of a state is the most that K actions can tell of what is seen afterwards, the capacity of the channel
from the ones to the other. For any source w of actions and any planner q that guesses them from the outcome,

    E[log q(a_1..K | s, outcome) - log w(a_1..K | s)]

is at most that (Agakov & Barber 2003); source and planner learn to raise it. A head learns its value in each state, so
that dreams are paid without walking on from all their states (Karl et al. 2017).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from reverie.behavior.intrinsic.pay import PayOptions
from reverie.behavior.intrinsic.reward import IntrinsicReward
from reverie.behavior.intrinsic.sight import Seen, Setting
from reverie.errors import ConfigError
from reverie.functional import masked_mean
from reverie.nets.distributions import ActionDistribution, OneHot
from reverie.nets.layers import MLP
from reverie.types import ActionSpec, Dream, Latent, Metrics, Walk


class EmpowermentOptions(PayOptions):
    """What the agent is paid for where it can decide a lot, and how that is estimated."""

    weight: float = Field(default=0.05, ge=0)
    """Weight of its advantages, which are over the spread of its returns. With 0 the reward is learned
    and shown, its critic is not."""
    episodic: bool = True
    """Whether nothing is expected after an episode's end, where nothing can be decided."""
    warmup: int = Field(default=1000, ge=1)
    """Updates in which it learns, one of `intrinsic.every`, before it pays anything."""
    steps: int = Field(default=3, ge=1, le=100)
    """Actions that are chosen before the outcome is looked at."""
    starts: int = Field(default=128, ge=1, le=1_000_000)
    """Replayed states of an update from which actions are tried."""
    samples: int = Field(default=2, ge=1, le=1000)
    """Sequences of actions from each."""
    noise: float = Field(default=0.3, ge=0)
    """Deviation of the noise on outcomes, whose features have deviation one: what is closer is not told apart."""
    uniform: bool = False
    """Whether actions are drawn alike instead of by a source that learns: that is a lower bound, too, and a looser one
    where walls or obstacles make actions alike."""


class Choices:
    """Actions as choices alone: a number in [-1, 1] is one of `LEVELS`."""

    def __init__(self, action: ActionSpec):
        tables, counts = [], []
        for part in action:
            levels = torch.linspace(-1.0, 1.0, LEVELS)[:, None]
            tables += [torch.eye(part.size)] if part.discrete else [levels] * part.size
            counts += [part.size] if part.discrete else [LEVELS] * part.size
        self.table = torch.block_diag(*tables)
        self.drawn = ActionDistribution([OneHot(count, EXPLORED) for count in counts])
        self.guessed = ActionDistribution([OneHot(count, GUESSED) for count in counts])
        self.most = sum(math.log(count) for count in counts)
        if not self.most:
            raise ConfigError(
                "intrinsic.empowerment: there is one action alone, and so nothing to choose; leave it out"
            )


LEVELS = 8
"""Of a number in an action."""

EXPLORED = 0.01
"""Share of the uniform distribution in the source, so that no action is forgotten."""

GUESSED = 0.001
"""The same in the planner, which bounds what one action counts. It takes as much from the bound."""

OVER = 0.5
"""Where the episode goes on with less probability, it is over: no action has an effect any more."""


class Empowerment(IntrinsicReward):
    """Source, planner and value. Outcomes are features of observations: the recurrent state remembers any action.

    The reward is the value of the state that an edge leads to, as a share of the most that there could be.
    """

    table: Tensor
    steps: Tensor
    earlier: Tensor

    def __init__(self, options: EmpowermentOptions, setting: Setting):
        super().__init__()
        choices, units = Choices(setting.action), setting.units
        self.options, self.drawn, self.guessed = options, choices.drawn, choices.guessed
        self.most, size = options.steps * choices.most, choices.drawn.size
        state = setting.features + options.steps * (1 + size)
        self.source = None if options.uniform else MLP(state, units, 1, size)
        self.planner = MLP(state + setting.outcome, units, 2, size)
        self.value = MLP(setting.features, units, 1, 1)
        self.register_buffer("table", choices.table, persistent=False)
        self.register_buffer("steps", torch.eye(options.steps), persistent=False)
        self.register_buffer("earlier", torch.ones(options.steps, options.steps).tril(-1), persistent=False)

    def before(self, features: Float[Tensor, "n F"], code: Float[Tensor, "n K C"]) -> Float[Tensor, "n K I"]:
        """What is known before each of the actions: the state, the step, and the actions so far."""
        past = (self.earlier[:, :, None] * code[:, None]).flatten(2)
        state = features[:, None].expand(-1, len(self.steps), -1)
        return torch.cat([state, self.steps.expand(len(code), -1, -1), past], -1)

    def propose(self, features: Float[Tensor, "n F"], generator: torch.Generator) -> Float[Tensor, "n K C"]:
        """Actions drawn from the source, as choices."""
        count, steps = len(features), len(self.steps)
        draws = torch.rand(count, steps, self.drawn.noise, generator=generator, device=features.device)
        code = features.new_zeros(count, steps, self.drawn.size)
        for step in range(steps):
            known = self.before(features, code)[:, step]
            logits = torch.zeros_like(code[:, 0]) if self.source is None else self.source(known)
            code[:, step] = self.drawn.sample(logits, draws[:, step])
        return code

    def source_logprob(self, features: Float[Tensor, "n F"], code: Float[Tensor, "n K C"]) -> Float[Tensor, "n"]:
        """Of actions, before they are taken."""
        logits = torch.zeros_like(code) if self.source is None else self.source(self.before(features, code))
        return self.drawn.logprob(logits, code).sum(-1)

    def planner_logprob(
        self, features: Float[Tensor, "n F"], outcome: Float[Tensor, "n V"], code: Float[Tensor, "n K C"]
    ) -> Float[Tensor, "n"]:
        """Of actions, from what came of them."""
        seen = outcome[:, None].expand(-1, len(self.steps), -1)
        logits = self.planner(torch.cat([self.before(features, code), seen], -1))
        return self.guessed.logprob(logits, code).sum(-1)

    @torch.no_grad()
    def attempt(
        self, start: Latent, walk: Walk, expect: Callable[[Tensor], Tensor], generator: torch.Generator
    ) -> tuple[Float[Tensor, "n K C"], Float[Tensor, "n V"]]:
        """Actions from each state, and what is seen after them; an episode that ends stays where it ended."""
        code, latent = self.propose(start.features, generator), start
        over = torch.zeros(len(code), dtype=torch.bool, device=code.device)
        for step in range(len(self.steps)):
            draws = torch.rand(latent.stoch.shape[:-1], generator=generator, device=code.device)
            following, alive = walk(latent, code[:, step] @ self.table, draws)
            latent, over = _where(over, latent, following), over | (alive < OVER)
        outcome = expect(latent.features)
        noise = torch.randn(outcome.shape, generator=generator, device=code.device)
        return code, outcome + self.options.noise * noise

    def loss(self, seen: Seen, generator: torch.Generator) -> tuple[Float[Tensor, ""], Metrics]:
        """Source and planner raise the bound, the source by REINFORCE over the value, and the value learns it."""
        options, alive = self.options, seen.alive.flatten()
        rows = torch.randint(len(alive), (options.starts,), generator=generator, device=alive.device)
        rows = rows.repeat_interleave(options.samples)
        start, alive = Latent(*(field.flatten(0, 1)[rows] for field in seen.latent.fields)), alive[rows]
        code, outcome = self.attempt(start, seen.walk, seen.expect, generator)
        planned, drawn = (
            self.planner_logprob(start.features, outcome, code),
            self.source_logprob(start.features, code),
        )
        bound, value = (planned - drawn).detach(), self.value(start.features).squeeze(-1)
        missed = (value - torch.where(alive, bound, 0.0)).square().mean()  # where all is over, nothing is to be chosen
        loss = masked_mean(-planned, alive) + missed + masked_mean(-drawn * (bound - value.detach()), alive)
        found = masked_mean(bound, alive)
        return loss, {
            "empowerment_loss": loss.detach(),
            "empowerment": found,
            "empowerment_share": found / self.most,
            "planner_loss": masked_mean(-planned.detach(), alive),
        }

    def reward(self, dream: Dream, outcome: Float[Tensor, "N points V"]) -> Float[Tensor, "N H"]:
        return self.value(dream.latent.features[:, 1:]).squeeze(-1).clamp(min=0.0) / self.most


def _where(mask: Bool[Tensor, "n"], mine: Latent, other: Latent) -> Latent:
    pairs = zip(mine.fields, other.fields, strict=True)
    return Latent(*(torch.where(mask.view(-1, *[1] * (a.ndim - 1)), a, b) for a, b in pairs))
