"""What intrinsic rewards see the world by: features of observations, and what they are in states of the world model.

Features are of the encoded observation alone, never of the recurrent state: that contains the action by construction,
so that an action would seem to change something where it changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from reverie.behavior.goals import Decision
from reverie.functional import masked_mean
from reverie.nets.layers import MLP
from reverie.types import ActionSpec, Batch, Explained, Latent, Metrics, action_width


@dataclass(frozen=True)
class Setting:
    """What the networks of an intrinsic reward are built for."""

    action: ActionSpec
    features: int
    """F, of the world model's states."""
    outcome: int
    """V, of what is seen of them."""
    units: int
    """Width of hidden layers."""
    bins: int
    """Of two-hot heads."""
    decision: Decision | None = None
    """What a manager decides, where there is one."""

    @property
    def width(self) -> int:
        """A, of the flat action vector."""
        return action_width(self.action)


@dataclass(frozen=True)
class Seen:
    """Replayed steps as intrinsic rewards learn from them; nothing but ``phi`` has a gradient."""

    phi: Float[Tensor, "B T V"]
    """Features of each observation."""
    action: Float[Tensor, "B T-1 A"]
    """What led from each step to the next, within [-1, 1]."""
    joined: Bool[Tensor, "B T-1"]
    """Whether it did: not where the next step begins an episode."""
    inverse: Float[Tensor, ""]
    """The loss of the inverse model, for whoever reports it with its own."""
    latent: Latent
    alive: Bool[Tensor, "B T"]
    """Whether the episode goes on from there."""
    expect: Callable[[Tensor], Tensor]
    """States [..., F] as features [..., V]."""
    walk: Callable[[Latent, Tensor, Tensor], Latent]
    continues: Callable[[Tensor], Tensor]
    pursue: Callable[[Latent, Tensor, Tensor], Latent]
    """As in `Explained`."""

    def pair_mean(self, errors: Float[Tensor, "B pairs"]) -> Float[Tensor, ""]:
        """The mean of what concerns two steps, over those that belong together."""
        return masked_mean(errors.flatten(), self.joined.flatten())


class Sight(nn.Module):
    """Features that tell which action led from one observation to the next (Pathak et al. 2017), and an outcome head.

    Features are normalised without scale or shift, so that they can neither shrink nor grow to please a loss. The
    outcome head learns to know them from states of the world model, where there is no observation.
    """

    def __init__(self, tokens: int, setting: Setting, outcome: bool = True):
        """Without ``outcome`` there is no such head, and what states look like has no width."""
        super().__init__()
        self.setting, units, width = setting, setting.units, setting.outcome
        self.encoder = MLP(tokens, units, 1, width)
        self.inverse = MLP(2 * width, units, 1, setting.width)
        self.outcome = MLP(setting.features, units, 1, width) if outcome else None

    def phi(self, tokens: Float[Tensor, "*batch X"]) -> Float[Tensor, "*batch V"]:
        """The features of encoded observations."""
        return F.layer_norm(self.encoder(tokens), (self.setting.outcome,))

    @torch.no_grad()
    def expect(self, features: Float[Tensor, "*batch F"]) -> Float[Tensor, "*batch V"]:
        """What states of the world model look like."""
        return features[..., :0] if self.outcome is None else self.outcome(features)

    def loss(
        self, explained: Explained, batch: Batch, inverse_scale: float, generator: torch.Generator
    ) -> tuple[Tensor, Seen, Metrics]:
        """That of features and outcome head, what intrinsic rewards may learn from, and what was seen on the way."""
        phi, taken = self.phi(explained.tokens), batch.previous_action[:, 1:]
        action, joined, latent = taken.clamp(-1.0, 1.0), ~batch.first[:, 1:], explained.latent
        guess = self.inverse(torch.cat([phi[:, :-1], phi[:, 1:]], -1))
        inverse = masked_mean(action_error(guess, action, self.setting.action).flatten(), joined.flatten())
        seen = Seen(
            *(phi, action, joined, inverse.detach(), latent),
            alive=~batch.terminal,
            expect=self.expect,
            walk=explained.walk,
            continues=explained.continues,
            pursue=explained.pursue,
        )
        loss, metrics = inverse_scale * inverse, {"inverse_loss": inverse.detach()}
        if any(part.discrete for part in self.setting.action):
            hits = action_hits(guess.detach(), action, self.setting.action)
            metrics["inverse_accuracy"] = seen.pair_mean(hits)
        if self.outcome is not None:
            outcome = self._outcome_loss(self.outcome, seen, taken, generator)
            loss, metrics["outcome_loss"] = loss + outcome, outcome.detach()
        return loss, seen, metrics

    def _outcome_loss(
        self, head: MLP, seen: Seen, action: Float[Tensor, "B pairs A"], generator: torch.Generator
    ) -> Float[Tensor, ""]:
        """Mean squared error of each feature, in states that saw their observation.

        With half the weight also in states that the world model expects one step after some of them, so that the head
        holds where it is asked: in dreams.
        """
        target, some = seen.phi.detach(), slice(None, -1, WALKED)
        before = Latent(*(field[:, some].flatten(0, 1) for field in seen.latent.fields))
        uniform = torch.rand(1, *before.stoch.shape[:-1], generator=generator, device=action.device)
        taken = action[:, ::WALKED].flatten(0, 1)[:, None]
        after = seen.walk(before, taken, uniform).features[:, 1]
        found = head(torch.cat([seen.latent.features.flatten(0, 1), after]))
        here, there = found.split([target.shape[:2].numel(), len(after)])
        error = (here - target.flatten(0, 1)).square().mean()
        later = (there - target[:, 1:][:, ::WALKED].flatten(0, 1)).square().mean(-1)
        return error + 0.5 * masked_mean(later, seen.joined[:, ::WALKED].flatten())


WALKED = 4
"""The world model walks on from one of so many replayed steps."""


def action_error(
    guess: Float[Tensor, "*batch A"], action: Float[Tensor, "*batch A"], spec: ActionSpec
) -> Float[Tensor, "*batch"]:
    """Cross-entropy of every choice and squared error of every number, summed over an action."""
    errors = []
    for part, mine, taken in _parts(guess, action, spec):
        errors.append(-(F.log_softmax(mine, -1) * taken).sum(-1) if part else (mine - taken).square().sum(-1))
    return torch.stack(errors).sum(0)


def action_hits(
    guess: Float[Tensor, "*batch A"], action: Float[Tensor, "*batch A"], spec: ActionSpec
) -> Float[Tensor, "*batch"]:
    """The share of an action's choices that are the likeliest of the guess."""
    hits = [
        (mine.argmax(-1) == taken.argmax(-1)).float()
        for discrete, mine, taken in _parts(guess, action, spec)
        if discrete
    ]
    return torch.stack(hits).mean(0)


def _parts(guess: Tensor, action: Tensor, spec: ActionSpec) -> list[tuple[bool, Tensor, Tensor]]:
    sizes = [part.size for part in spec]
    pieces = zip(spec, guess.split(sizes, -1), action.split(sizes, -1), strict=True)
    return [(part.discrete, mine, taken) for part, mine, taken in pieces]
