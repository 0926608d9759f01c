"""What makes rewards in dreams, and learns beside the world model to do so."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Set

import torch
from jaxtyping import Float
from torch import Tensor, nn

from reverie.optim import OptimizerOptions, PolicyOptimizerOptions
from reverie.types import Batch, Dream, Explained, Metrics


class Motive(nn.Module, ABC):
    """Rewards for the levels of a behavior, and a loss by which they are learned.

    ``optimizer`` says how its parameters are trained, ``updates`` counts how often they were. The gradient of its loss
    reaches no other part of the agent.
    """

    updates: Tensor

    def __init__(self, optimizer: OptimizerOptions | None = None):
        super().__init__()
        self.optimizer = optimizer or PolicyOptimizerOptions()
        self.register_buffer("updates", torch.zeros(()))

    @abstractmethod
    def rewards(self, dream: Dream, wanted: Set[str]) -> dict[str, Float[Tensor, "N H"]]:
        """Of its streams those that are ``wanted``, by name, one number for each edge of a dream."""

    @abstractmethod
    def loss(
        self, explained: Explained, batch: Batch, dream: Dream, generator: torch.Generator
    ) -> tuple[Tensor, Metrics]:
        """One number for each state that it learned from, replayed or imagined; and what was seen on the way."""

    def adapt(self, seen: Metrics) -> None:
        """Moves its controllers by what the loss saw; once after every step of its optimizer."""
        self.updates += 1
