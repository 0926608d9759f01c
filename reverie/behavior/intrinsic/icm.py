"""The intrinsic curiosity module (Pathak et al. 2017): what a forward model of features cannot foresee is paid."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from reverie.behavior.intrinsic.reward import IntrinsicReward
from reverie.behavior.intrinsic.sight import Seen, Setting
from reverie.functional import two_hot_bins
from reverie.nets import two_hot
from reverie.nets.layers import MLP
from reverie.options import Options
from reverie.types import Dream, Metrics


class IcmOptions(Options):
    """The intrinsic curiosity module."""

    beta: float = Field(default=0.2, ge=0, le=1)
    """Weight of the forward model's loss; the inverse model's is what is left of 1."""
    detach_target: bool = True
    """Whether features are not drawn to what the forward model foresees. In the paper they are."""
    context: bool = True
    """Whether the forward model also sees the world model's state: two rooms that look alike are no surprise then."""
    mode: Literal["model", "head"] = "model"
    """How dreams are paid: `model` compares the forward model with the world model's own next state; `head` recalls
    how surprising replayed steps were."""


def surprise(foreseen: Float[Tensor, "*batch V"], found: Float[Tensor, "*batch V"]) -> Float[Tensor, "*batch"]:
    """Half the squared distance; the paper pays ``eta`` times this."""
    return 0.5 * (foreseen - found).square().sum(-1)


class Icm(IntrinsicReward):
    """Loss ``(1 - beta) L_inverse + beta L_forward``, of which the first part is that of `Sight`."""

    bins: Tensor

    def __init__(self, options: IcmOptions, setting: Setting):
        super().__init__()
        self.options, units, self.inverse_scale = options, setting.units, 1.0 - options.beta
        state = setting.features if options.context else 0
        self.forward_model = MLP(setting.outcome + setting.width + state, units, 1, setting.outcome)
        asked = setting.features + setting.width
        self.recall = MLP(asked, units, 1, setting.bins, scale=0.0) if options.mode == "head" else None
        self.sees_outcome = self.pays_by_outcome = self.recall is None
        self.register_buffer("bins", two_hot_bins(setting.bins), persistent=False)

    def foresee(
        self, phi: Float[Tensor, "*batch V"], action: Float[Tensor, "*batch A"], features: Float[Tensor, "*batch F"]
    ) -> Float[Tensor, "*batch V"]:
        """Features after an action, from those before it."""
        state = [features] if self.options.context else []
        return phi + self.forward_model(torch.cat([phi, action, *state], -1))

    def loss(self, seen: Seen, generator: torch.Generator) -> tuple[Float[Tensor, ""], Metrics]:
        options, target = self.options, seen.phi[:, 1:]
        state = seen.latent.features[:, :-1]
        foreseen = self.foresee(seen.phi[:, :-1], seen.action, state)
        found = surprise(foreseen, target.detach() if options.detach_target else target)
        missed = seen.pair_mean(found)
        loss = options.beta * missed
        metrics = {
            "icm_loss": (1.0 - options.beta) * seen.inverse + loss.detach(),
            "forward_loss": missed.detach(),
        }
        if self.recall is not None:
            logits = self.recall(torch.cat([state, seen.action], -1))
            recalled = seen.pair_mean(two_hot.loss(logits, [found.detach()], [1.0], self.bins))
            loss = loss + recalled
            metrics["recall_loss"] = recalled.detach()
        return loss, metrics

    def reward(self, dream: Dream, outcome: Float[Tensor, "N points V"]) -> Float[Tensor, "N H"]:
        state, action = dream.latent.features[:, :-1], dream.action.clamp(-1.0, 1.0)
        if self.recall is not None:
            return two_hot.predict(self.recall, torch.cat([state, action], -1), self.bins).squeeze(-1).clamp(min=0.0)
        return surprise(self.foresee(outcome[:, :-1], action, state), outcome[:, 1:])
