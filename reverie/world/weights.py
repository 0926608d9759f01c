"""What small observations count: so much that it pays to hold what they tell.

A latent pays KL for all that it holds, 0.69 nats for a bit. In an observation of a few numbers a bit returns less than
that, and what costs more than it returns is not held. So the loss of each observation is multiplied until its best
constant prediction, which is all that one could make of it without a latent, costs at least ``floor`` nats. Large
observations, such as images, are above that by themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from reverie.types import Losses, presence_key

FLOOR = 10.0
"""Nats, where several modalities share a latent."""

MOST = 100.0
"""The largest weight: what varies less than it could make up for is rare, or noise."""

RATE = 0.01
"""Share of each batch in the running means."""


class ObservationWeights(nn.Module):
    """The weight of each observation, from the running mean of what its best constant prediction costs."""

    moments: Tensor

    def __init__(self, keys: Sequence[str], floor: float):
        super().__init__()
        self.keys, self.floor = list(keys), floor
        self.register_buffer("moments", torch.zeros(2, len(keys)))  # of cost times presence, and of presence

    def forward(self) -> dict[str, Float[Tensor, ""]]:
        """The weights by the names of losses; one for what was not seen yet."""
        cost, present = self.moments
        weights = (self.floor * present / cost.clamp(min=1e-9)).clamp(1.0, MOST)
        return dict(zip((f"recon_{key}" for key in self.keys), weights.unbind(), strict=True))

    @torch.no_grad()
    def learn(self, decoders: Iterable[nn.Module], obs: Mapping[str, Tensor]) -> None:
        """Looks at a batch, {key: [B, T, *shape]}; what is missing, or costs no finite number, does not count."""
        flags = {key: obs.get(presence_key(key)) for key in self.keys}
        there = {key: _always(obs[key]) if flag is None else flag for key, flag in flags.items()}
        costs: dict[str, Tensor] = {}
        for decoder in decoders:
            costs |= decoder.constant_loss(obs, there)  # type: ignore[operator]
        present = torch.stack([there[key].float().mean() for key in self.keys])
        fresh = torch.stack([torch.stack([costs[key] for key in self.keys]) * present, present])
        self.moments.lerp_(torch.where(fresh.isfinite().all(0), fresh, self.moments), RATE)

    def weigh(self, losses: Losses) -> Losses:
        """The losses, those of observations times their weights."""
        weights = self()
        return {name: loss * weights[name] if name in weights else loss for name, loss in losses.items()}


def _always(value: Tensor) -> Tensor:
    return torch.ones(value.shape[:2], dtype=torch.bool, device=value.device)
