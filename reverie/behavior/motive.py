"""What makes rewards in dreams, and learns beside the world model to do so."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Set
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from reverie.optim import Optimizer, OptimizerOptions, PolicyOptimizerOptions
from reverie.types import Batch, Dream, Explained, Metrics


class Motive(nn.Module, ABC):
    """Rewards for the levels of a behavior, and a loss by which they are learned.

    ``optimizer`` says how its parameters are trained, ``updates`` counts how often they were. The gradient of its loss
    reaches no other part of the agent.
    """

    updates: Tensor
    every: int = 1
    """It learns at one of so many updates of the agent."""

    def __init__(self, optimizer: OptimizerOptions | None = None):
        super().__init__()
        self.optimizer = optimizer or PolicyOptimizerOptions()
        self.calls, self.found = 0, dict[str, Tensor]()
        self.register_buffer("updates", torch.zeros(()))

    @abstractmethod
    def rewards(self, dream: Dream, wanted: Set[str]) -> dict[str, Float[Tensor, "N H"]]:
        """Of its streams those that are ``wanted``, by name, one number for each edge of a dream."""

    @abstractmethod
    def loss(
        self, explained: Explained, batch: Batch, dream: Dream, generator: torch.Generator
    ) -> tuple[Tensor, Metrics]:
        """One number for each state that it learned from, replayed or imagined, or their mean.

        Beside it what was seen on the way, always by the same names.
        """

    def learn(
        self, optimizer: Optimizer, explained: Explained, batch: Batch, dream: Dream, generator: torch.Generator
    ) -> Metrics:
        """Learns, if it is its turn, and returns what was found when it last did. Once per update of the agent."""
        if self.calls % self.every == 0:
            loss, seen = self.loss(explained, batch, dream, generator)
            moved = optimizer.step({optimizer.name: loss})
            self.adapt(seen, moved[f"{optimizer.name}/skipped"] == 0)
            self.found = moved | seen
        self.calls += 1
        return dict(self.found)

    def progress(self) -> dict[str, Any]:
        """What `learn` goes on from, beside tensors of the module, in plain numbers."""
        return {"calls": self.calls, "found": {name: float(number) for name, number in self.found.items()}}

    def load_progress(self, state: Mapping[str, Any]) -> None:
        """Takes over what `progress` returned."""
        self.calls = state["calls"]
        self.found = {name: self.updates.new_tensor(number) for name, number in state["found"].items()}

    def adapt(self, seen: Metrics, learned: Bool[Tensor, ""]) -> None:
        """Moves its controllers by what the loss saw, after every step of its optimizer.

        Nothing moves where nothing was ``learned``, because the gradient was not finite.
        """
        self.updates += learned
