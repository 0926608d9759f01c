"""What every intrinsic reward answers. Its weight, horizon, clip and warm-up are none of its business."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor, nn

from reverie.behavior.intrinsic.sight import Seen
from reverie.types import Dream, Metrics


class IntrinsicReward(nn.Module, ABC):
    """A reward that an agent makes for itself, raw and finite, and a loss by which it is learned.

    The gradient of the loss reaches its own parameters, and those of `Sight` where it uses ``seen.phi`` as it is.
    """

    inverse_scale: float = 1.0
    """How much the loss of the inverse model, which makes the features, counts beside this one."""
    sees_outcome: bool = True
    """Whether it learns or pays by what states look like; where nobody does, `Sight` has no head for it."""
    pays_by_outcome: bool = True
    """Whether it pays by what the states of a dream look like; where nobody does, they are not looked at."""

    @abstractmethod
    def loss(self, seen: Seen, generator: torch.Generator) -> tuple[Float[Tensor, ""], Metrics]:
        """To be descended, and what was seen on the way: always the same names."""

    @abstractmethod
    def reward(self, dream: Dream, outcome: Float[Tensor, "N points V"]) -> Float[Tensor, "N H"]:
        """For every edge of a dream, whose states look like ``outcome``; without gradient.

        The width of ``outcome`` is zero where nobody pays by it.
        """
