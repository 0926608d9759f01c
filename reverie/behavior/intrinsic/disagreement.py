"""Disagreement (Sekar et al. 2020, Plan2Explore): several models of what comes next are paid for where they differ.

They learn to agree also on what chance decides, for all of them learn its mean. So noise is not paid for long.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from reverie.behavior.intrinsic.reward import IntrinsicReward
from reverie.behavior.intrinsic.sight import Seen, Setting
from reverie.nets.layers import MLP
from reverie.options import Options
from reverie.types import Dream, Metrics


class DisagreementOptions(Options):
    """Several models of what comes next."""

    members: int = Field(default=5, ge=2, le=100)
    """How many there are."""


def spread(answers: Float[Tensor, "members *batch V"]) -> Float[Tensor, "*batch"]:
    """The unbiased variance over members, its mean over features."""
    deviation = answers - answers.mean(0)  # torch's variance of a first axis takes forty times as long on a CPU
    return deviation.square().sum((0, -1)) / ((len(answers) - 1) * answers.shape[-1])


class Disagreement(IntrinsicReward):
    """Each member foresees the features of the next observation from the world model's state and an action.

    States are asked, never features that a head makes of them: while that head is poor, it invents novelty.
    """

    sees_outcome = pays_by_outcome = False

    def __init__(self, options: DisagreementOptions, setting: Setting):
        super().__init__()
        inputs = setting.features + setting.width
        self.members = nn.ModuleList(MLP(inputs, setting.units, 1, setting.outcome) for _ in range(options.members))

    def foresee(
        self, features: Float[Tensor, "*batch F"], action: Float[Tensor, "*batch A"]
    ) -> Float[Tensor, "members *batch V"]:
        """What every member expects to see after an action."""
        inputs = torch.cat([features, action], -1)
        return torch.stack([member(inputs) for member in self.members])

    def loss(self, seen: Seen, generator: torch.Generator) -> tuple[Float[Tensor, ""], Metrics]:
        target = seen.phi[:, 1:].detach()
        foreseen = self.foresee(seen.latent.features[:, :-1], seen.action)
        loss = seen.pair_mean((foreseen - target).square().mean(-1).sum(0))
        return loss, {"disagreement_loss": loss.detach() / len(self.members)}

    def reward(self, dream: Dream, outcome: Float[Tensor, "N points V"]) -> Float[Tensor, "N H"]:
        return spread(self.foresee(dream.latent.features[:, :-1], dream.action.clamp(-1.0, 1.0)))
