"""Random network distillation (Burda et al. 2019): what was seldom seen is paid, wherever it leads."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from reverie.behavior.intrinsic.reward import IntrinsicReward
from reverie.behavior.intrinsic.sight import Seen, Setting
from reverie.nets.layers import MLP
from reverie.types import Dream, Metrics


class Rnd(IntrinsicReward):
    """A network learns what a random one, which never changes, answers to the features of observations."""

    first: Tensor
    second: Tensor

    def __init__(self, setting: Setting):
        super().__init__()
        width, units = setting.outcome, setting.units
        self.predictor = MLP(width, units, 2, width)
        self.register_buffer("first", torch.randn(units, width) / math.sqrt(width))
        self.register_buffer("second", torch.randn(width, units) / math.sqrt(units))

    def error(self, features: Float[Tensor, "*batch V"]) -> Float[Tensor, "*batch"]:
        """The mean squared error of the answer."""
        wanted = F.linear(F.silu(F.linear(features, self.first)), self.second).float()
        return (self.predictor(features) - wanted).square().mean(-1)

    def loss(self, seen: Seen, generator: torch.Generator) -> tuple[Float[Tensor, ""], Metrics]:
        loss = self.error(seen.phi.detach()).mean()
        return loss, {"rnd_loss": loss.detach()}

    def reward(self, dream: Dream, outcome: Float[Tensor, "N points V"]) -> Float[Tensor, "N H"]:
        return self.error(outcome[:, 1:])
