"""A bound on what choices tell of what is seen after them, over the best source of choices.

For any source w of choices c and any planner q that guesses them from the outcome,

    E[log q(c | s, outcome) - log w(c | s)]

is at most what the outcome tells of the choices (Agakov & Barber 2003), and so at most the capacity of the channel from
the ones to the other. Source and planner learn to raise it (Mohamed & Rezende 2015). A head learns its value in each
state, so that dreams are paid without walking on from all their states (Karl et al. 2017).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from reverie.behavior.intrinsic.reward import IntrinsicReward
from reverie.behavior.intrinsic.sight import Seen, Setting
from reverie.functional import masked_mean
from reverie.nets.distributions import ActionDistribution, OneHot
from reverie.nets.layers import MLP
from reverie.options import Options
from reverie.types import Dream, Latent, Metrics


class BoundOptions(Options):
    """How the bound is estimated."""

    starts: int = Field(default=128, ge=1, le=1_000_000)
    """Replayed states of an update from which choices are tried."""
    samples: int = Field(default=2, ge=1, le=1000)
    """How many are tried from each."""
    noise: float = Field(default=0.3, ge=0)
    """Deviation of the noise on outcomes, whose features have deviation one: what is closer is not told apart."""
    uniform: bool = False
    """Whether choices are drawn alike instead of by a source that learns: that is a lower bound, too, and a looser one
    where walls or obstacles make choices alike."""


EXPLORED = 0.01
"""Share of the uniform distribution in the source, so that no choice is forgotten."""

GUESSED = 0.001
"""The same in the planner, which bounds what one choice counts. It takes as much from the bound."""

OVER = 0.5
"""Where the episode goes on with less probability, it is over: no choice has an effect any more."""


class Autoregressive(nn.Module):
    """Logits of K choices one after the other: of each from ``given``, what is known before all, and those before it.

    The first layer is a sum, so that what is given is multiplied once for all K, and once for all sequences from it.
    """

    order: Tensor
    earlier: Tensor

    def __init__(self, given: int, steps: int, choices: int, units: int, layers: int):
        super().__init__()
        self.network = MLP(steps * (1 + choices) + given, units, layers, choices)
        self.register_buffer("order", torch.eye(steps), persistent=False)
        self.register_buffer("earlier", torch.ones(steps, steps).tril(-1), persistent=False)

    def before(self, code: Float[Tensor, "*rows K C"]) -> Float[Tensor, "*rows K J"]:
        """What each choice adds to what is given: which one it is, and those so far."""
        past = (self.earlier[:, :, None] * code[..., None, :, :]).flatten(-2)
        return torch.cat([self.order.expand(*code.shape[:-1], -1), past], -1)

    def forward(
        self,
        given: Sequence[Float[Tensor, "*#rows _"]],
        code: Float[Tensor, "*#rows K C"],
        asked: slice = slice(None),
    ) -> Float[Tensor, "*rows asked C"]:
        """``given`` may come in several parts, each with rows of its own. Of the K choices, those ``asked`` for."""
        modules: list[Any] = list(self.network)
        first, *others = modules
        known = self.before(code)[..., asked, :]
        weights = first.weight.split([known.shape[-1], *(part.shape[-1] for part in given)], 1)
        hidden = F.linear(known, weights[0], first.bias)
        for part, weight in zip(given, weights[1:], strict=True):
            hidden = hidden + F.linear(part, weight)[..., None, :]
        for layer in others:
            hidden = layer(hidden)
        return hidden.float()


class Bound(IntrinsicReward):
    """Source, planner and value. Outcomes are features of observations: the recurrent state remembers any action.

    The reward is the value of the state that an edge leads to, as a share of the most that there could be.
    """

    name: str
    """Begins the names of its metrics."""
    pays_by_outcome = False

    def __init__(self, options: BoundOptions, setting: Setting, count: int, sizes: Sequence[int]):
        """K = ``count`` choices one after the other, each of them one of so many for each of ``sizes``."""
        super().__init__()
        self.options, units = options, setting.units
        self.drawn, self.guessed = (ActionDistribution([OneHot(n, mix) for n in sizes]) for mix in (EXPLORED, GUESSED))
        self.count, self.most = count, count * sum(math.log(size) for size in sizes)
        shape = count, self.drawn.size, units
        self.source = None if options.uniform else Autoregressive(setting.features, *shape, layers=1)
        self.planner = Autoregressive(setting.features + setting.outcome, *shape, layers=2)
        self.value = MLP(setting.features, units, 1, 1)

    @abstractmethod
    def follow(self, start: Latent, code: Float[Tensor, "N K C"], seen: Seen, generator: torch.Generator) -> Latent:
        """The points [N, steps+1, ...] that choices lead to from states [N, ...]; without gradient."""

    def propose(
        self, features: Float[Tensor, "*#rows F"], uniform: Float[Tensor, "*rows K Z"]
    ) -> Float[Tensor, "*rows K C"]:
        """Choices drawn from the source."""
        code = features.new_zeros(*uniform.shape[:-1], self.drawn.size)
        for step in (slice(k, k + 1) for k in range(code.shape[-2])):
            logits = code[..., step, :] if self.source is None else self.source([features], code, step)
            code[..., step, :] = self.drawn.sample(logits, uniform[..., step, :])
        return code

    def source_logprob(
        self, features: Float[Tensor, "*#rows F"], code: Float[Tensor, "*#rows K C"]
    ) -> Float[Tensor, "*rows"]:
        """Of choices, before they are followed."""
        logits = torch.zeros_like(code) if self.source is None else self.source([features], code)
        return self.drawn.logprob(logits, code).sum(-1)

    def planner_logprob(
        self, features: Float[Tensor, "*#rows F"], outcome: Float[Tensor, "*#rows V"], code: Float[Tensor, "*#rows K C"]
    ) -> Float[Tensor, "*rows"]:
        """Of choices, from what came of them."""
        return self.guessed.logprob(self.planner([features, outcome], code), code).sum(-1)

    @torch.no_grad()
    def attempt(
        self, start: Latent, seen: Seen, generator: torch.Generator
    ) -> tuple[Float[Tensor, "n samples K C"], Float[Tensor, "n samples V"]]:
        """Choices in each state [n], and what is seen after them; an episode that ends stays where it ended."""
        options, device = self.options, start.deter.device
        shape = len(start.deter), options.samples
        uniform = torch.rand(*shape, self.count, self.drawn.noise, generator=generator, device=device)
        code = self.propose(start.features[:, None], uniform)
        begun = Latent(*(field.repeat_interleave(options.samples, 0) for field in start.fields))
        reached = self.follow(begun, code.flatten(0, 1), seen, generator).features[:, 1:]
        over = seen.continues(reached) < OVER
        over[:, -1].fill_(True)
        end = over.byte().argmax(1)  # the first
        outcome = seen.expect(reached[torch.arange(len(end), device=device), end]).unflatten(0, shape)
        noise = torch.randn(outcome.shape, generator=generator, device=device)
        return code, outcome + options.noise * noise

    def loss(self, seen: Seen, generator: torch.Generator) -> tuple[Float[Tensor, ""], Metrics]:
        """Source and planner raise the bound, the source by REINFORCE over the value, and the value learns it."""
        alive = seen.alive.flatten()
        rows = torch.randint(len(alive), (self.options.starts,), generator=generator, device=alive.device)
        start, alive = Latent(*(field.flatten(0, 1)[rows] for field in seen.latent.fields)), alive[rows]
        code, outcome = self.attempt(start, seen, generator)
        features = start.features[:, None]
        planned, drawn = self.planner_logprob(features, outcome, code), self.source_logprob(features, code)
        bound, value = (planned - drawn).detach(), self.value(features)
        gain = -planned - drawn * (bound - value.squeeze(-1).detach())
        # Where all is over, nothing is to be chosen.
        missed = (value.squeeze(-1) - torch.where(alive[:, None], bound, 0.0)).square().mean()
        loss = masked_mean(gain.mean(1), alive) + missed
        found, guessed = masked_mean(torch.stack([bound, -planned.detach()], -1).mean(1), alive).unbind()
        return loss, {
            f"{self.name}_loss": loss.detach(),
            self.name: found,
            f"{self.name}_share": found / self.most,
            f"{self.name}_planner_loss": guessed,
        }

    def reward(self, dream: Dream, outcome: Float[Tensor, "N points V"]) -> Float[Tensor, "N H"]:
        return self.value(dream.latent.features[:, 1:]).squeeze(-1).clamp(min=0.0) / self.most
