"""Distributions over actions as pure functions of a flat parameter vector.

A policy network emits P numbers; here they become samples, log-probabilities, entropies and divergences. An action
with several parts is the concatenation of one distribution per part. Samples come from uniform numbers, by the
inverse of the cumulative distribution.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from reverie.functional import categorical_kl, mixed_log_probs, mixed_probs, sample_one_hot
from reverie.types import ActionSpec


@runtime_checkable
class Distribution(Protocol):
    """One part of an action. ``parameters``, ``noise`` and ``size`` are widths of the three vectors."""

    outputs: tuple[int, ...]
    """Widths of the layers that give the parameters, side by side."""
    parameters: int
    noise: int
    size: int
    entropy_range: tuple[float, float]
    """No parameters have less or more."""

    def sample(self, params: Tensor, uniform: Tensor) -> Tensor: ...

    def mode(self, params: Tensor) -> Tensor: ...

    def logprob(self, params: Tensor, action: Tensor) -> Tensor: ...

    def entropy(self, params: Tensor) -> Tensor: ...

    def divergence(self, old: Tensor, new: Tensor) -> Tensor: ...


class OneHot:
    """``groups`` independent choices among ``classes``, each mixed with ``unimix`` of the uniform distribution."""

    def __init__(self, classes: int, unimix: float, groups: int = 1):
        self.classes, self.unimix, self.noise = classes, unimix, groups
        self.parameters = self.size = groups * classes
        self.outputs = (self.parameters,)
        self.entropy_range = 0.0, groups * math.log(classes)

    def split(self, params: Tensor) -> Tensor:
        """[..., groups * classes] as [..., groups, classes]."""
        return params.unflatten(-1, (self.noise, self.classes))

    def sample(self, params: Tensor, uniform: Tensor) -> Tensor:
        return sample_one_hot(mixed_probs(self.split(params), self.unimix), uniform).flatten(-2)

    def mode(self, params: Tensor) -> Tensor:
        likeliest = self.split(params).argmax(-1)
        return F.one_hot(likeliest, self.classes).to(params.dtype).flatten(-2)

    def logprob(self, params: Tensor, action: Tensor) -> Tensor:
        return (mixed_log_probs(self.split(params), self.unimix).flatten(-2) * action).sum(-1)

    def entropy(self, params: Tensor) -> Tensor:
        log_p = mixed_log_probs(self.split(params), self.unimix)
        return -(log_p.exp() * log_p).sum((-2, -1))

    def divergence(self, old: Tensor, new: Tensor) -> Tensor:
        mixed = (mixed_log_probs(self.split(params), self.unimix) for params in (old, new))
        return categorical_kl(*mixed).sum(-1)


class BoundedNormal:
    """``size`` independent normals with mean ``tanh`` and deviation in [low, high]; samples are not squashed.

    Log-probabilities are of the raw sample: whoever clips an action to its box does so after storing it.
    """

    def __init__(self, size: int, low: float = 0.1, high: float = 1.0):
        self.size = self.noise = size
        self.parameters, self.outputs = 2 * size, (size, size)
        self.low, self.high = low, high
        least, most = (size * (math.log(bound) + 0.5 * math.log(2 * math.pi * math.e)) for bound in (low, high))
        self.entropy_range = least, most

    def moments(self, params: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation, each [..., size]."""
        mean, spread = params.chunk(2, -1)
        return torch.tanh(mean), (self.high - self.low) * torch.sigmoid(spread + 2.0) + self.low

    def sample(self, params: Tensor, uniform: Tensor) -> Tensor:
        mean, deviation = self.moments(params)
        return mean + deviation * normal(uniform)

    def mode(self, params: Tensor) -> Tensor:
        return self.moments(params)[0]

    def logprob(self, params: Tensor, action: Tensor) -> Tensor:
        mean, deviation = self.moments(params)
        return (-0.5 * ((action - mean) / deviation).square() - deviation.log() - 0.5 * math.log(2 * math.pi)).sum(-1)

    def entropy(self, params: Tensor) -> Tensor:
        return (self.moments(params)[1].log() + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)

    def divergence(self, old: Tensor, new: Tensor) -> Tensor:
        (mean, deviation), (new_mean, new_deviation) = self.moments(old), self.moments(new)
        ratio = deviation / new_deviation
        return (0.5 * (ratio.square() + ((mean - new_mean) / new_deviation).square() - 1.0) - ratio.log()).sum(-1)


def normal(uniform: Tensor) -> Tensor:
    """Standard normals by inversion. Zero, which torch.rand can draw, counts as less than all else that it draws."""
    return torch.special.ndtri(uniform.clamp(min=2.0**-25))


class ActionDistribution:
    """The joint distribution of all parts of an action: parts are independent, so their numbers add up.

    ``outputs`` are the widths of a policy's last layers: as published, every part has its own, and so have the mean and
    the deviation of a continuous one.
    """

    def __init__(self, parts: Sequence[Distribution]):
        self.parts = list(parts)
        self.outputs = [width for part in self.parts for width in part.outputs]
        self._params = [part.parameters for part in self.parts]
        self._noise = [part.noise for part in self.parts]
        self._sizes = [part.size for part in self.parts]
        self.parameters, self.noise = sum(self._params), sum(self._noise)
        self.size = sum(self._sizes)

    @classmethod
    def of(cls, action: ActionSpec, unimix: float) -> ActionDistribution:
        """One-hots and bounded normals, as the environment's action has it."""
        return cls([OneHot(part.size, unimix) if part.discrete else BoundedNormal(part.size) for part in action])

    def sample(
        self, params: Float[Tensor, "*batch P"], uniform: Float[Tensor, "*batch Z"]
    ) -> Float[Tensor, "*batch A"]:
        """Draws the flat action vector; one uniform number per discrete part and per continuous dimension."""
        pieces = zip(self.parts, params.split(self._params, -1), uniform.split(self._noise, -1), strict=True)
        return torch.cat([part.sample(p, u) for part, p, u in pieces], -1)

    def mode(self, params: Float[Tensor, "*batch P"]) -> Float[Tensor, "*batch A"]:
        """The likeliest flat action vector."""
        pieces = zip(self.parts, params.split(self._params, -1), strict=True)
        return torch.cat([part.mode(p) for part, p in pieces], -1)

    def logprob(self, params: Float[Tensor, "*batch P"], action: Float[Tensor, "*batch A"]) -> Float[Tensor, "*batch"]:
        pieces = zip(self.parts, params.split(self._params, -1), action.split(self._sizes, -1), strict=True)
        return torch.stack([part.logprob(p, a) for part, p, a in pieces]).sum(0)

    @property
    def standard(self) -> bool:
        """Whether all parts are distributions that the native kernels know."""
        return all(
            isinstance(part, BoundedNormal) or (isinstance(part, OneHot) and part.noise == 1) for part in self.parts
        )

    def noise_of(self, uniform: Float[Tensor, "*batch Z"]) -> Float[Tensor, "*batch Z"]:
        """The numbers that decide a sample: uniform for choices, standard normal for continuous parts."""
        pieces = zip(self.parts, uniform.split(self._noise, -1), strict=True)
        return torch.cat([u if isinstance(part, OneHot) else normal(u) for part, u in pieces], -1)

    def entropy(self, params: Float[Tensor, "*batch P"]) -> Float[Tensor, "*batch"]:
        pieces = zip(self.parts, params.split(self._params, -1), strict=True)
        return torch.stack([part.entropy(p) for part, p in pieces]).sum(0)

    def entropy_share(self, params: Float[Tensor, "*batch P"]) -> Float[Tensor, "*batch"]:
        """Where the entropy is between the least, 0, and the most, 1, that any parameters have."""
        least, most = (sum(bounds) for bounds in zip(*(part.entropy_range for part in self.parts), strict=True))
        return ((self.entropy(params) - least) / (most - least)).clamp(0.0, 1.0)

    def divergence(self, old: Float[Tensor, "*batch P"], new: Float[Tensor, "*batch P"]) -> Float[Tensor, "*batch"]:
        """The exact KL(old || new)."""
        pieces = zip(self.parts, old.split(self._params, -1), new.split(self._params, -1), strict=True)
        return torch.stack([part.divergence(p, q) for part, p, q in pieces]).sum(0)
