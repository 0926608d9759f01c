"""Vectors: numbers in symlog space and integers as one-hots, through an MLP; predicted key by key."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from reverie.functional import constant_error, constant_surprise, one_hot, symexp, symlog
from reverie.nets.layers import MLP, Linear
from reverie.options import Options
from reverie.types import Latent, ObservationSpec
from reverie.world.modality.config import ModalityConfig
from reverie.world.sizes import Sizes


def width(spec: ObservationSpec) -> int:
    """How many numbers a key is for a network: integers count once per class."""
    return int(torch.Size(spec.shape).numel()) * (spec.classes or 1)


def flat(x: Tensor, spec: ObservationSpec) -> Float[Tensor, "*batch W"]:
    """One key [*batch, *shape] as the numbers that a network reads and predicts."""
    batch = x.shape[: x.ndim - len(spec.shape)]
    if spec.classes:
        return one_hot(x.long(), spec.classes).reshape(*batch, -1)
    return symlog(x.float()).reshape(*batch, -1)


class VectorEncoder(nn.Module):
    """All vector keys, flattened and concatenated in alphabetical order, through one MLP."""

    def __init__(self, keys: Mapping[str, ObservationSpec], sizes: Sizes, config: ModalityConfig):
        super().__init__()
        config.read(Options)
        self.keys = dict(sorted(keys.items()))
        self.width = config.embed_dim
        inputs = sum(width(spec) for spec in keys.values())
        self.mlp = MLP(inputs, sizes.units, sizes.layers - 1)
        self.mlp.extend(MLP(sizes.units if sizes.layers > 1 else inputs, config.embed_dim, 1))

    def forward(self, obs: Mapping[str, Tensor]) -> Float[Tensor, "*batch X"]:
        return self.mlp(torch.cat([flat(obs[key], spec) for key, spec in self.keys.items()], -1))


class VectorDecoder(nn.Module):
    """An MLP with one linear output per key: symlog numbers, or logits per class."""

    def __init__(self, keys: Mapping[str, ObservationSpec], sizes: Sizes, config: ModalityConfig):
        super().__init__()
        config.read(Options)
        self.keys = dict(sorted(keys.items()))
        self.mlp = MLP(sizes.features, sizes.units, sizes.layers)
        self.outputs = nn.ModuleList(Linear(sizes.units, width(spec)) for spec in self.keys.values())

    def forward(self, latent: Latent) -> dict[str, Tensor]:
        hidden = self.mlp(latent.features)
        return {key: output(hidden).float() for key, output in zip(self.keys, self.outputs, strict=True)}

    def loss(self, latent: Latent, obs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Squared error in symlog space, or cross-entropy, summed over the key's dimensions."""
        losses = {}
        for key, prediction in self(latent).items():
            spec = self.keys[key]
            target = flat(obs[key], spec)
            if spec.classes:
                logits = prediction.unflatten(-1, (-1, spec.classes))
                losses[key] = -(torch.log_softmax(logits, -1).flatten(-2) * target).sum(-1)
            else:
                losses[key] = (prediction - target).square().sum(-1)
        return losses

    def constant_loss(self, obs: Mapping[str, Tensor], there: Mapping[str, Tensor]) -> dict[str, Tensor]:
        losses = {}
        for key, spec in self.keys.items():
            cost = constant_surprise if spec.classes else constant_error
            losses[key] = cost(flat(obs[key], spec).flatten(0, -2), there[key].flatten())
        return losses

    def show(self, latent: Latent) -> dict[str, Tensor]:
        """Numbers and classes [*batch, *shape] in the observations' dtypes."""
        return {key: self._value(prediction, self.keys[key]) for key, prediction in self(latent).items()}

    @staticmethod
    def _value(prediction: Float[Tensor, "*batch W"], spec: ObservationSpec) -> Tensor:
        dtype = getattr(torch, spec.dtype)
        if spec.classes:
            value = prediction.unflatten(-1, (-1, spec.classes)).argmax(-1)
        elif dtype.is_floating_point:
            value = symexp(prediction)
        else:
            value = symexp(prediction).round().clamp(torch.iinfo(dtype).min, torch.iinfo(dtype).max)
        return value.reshape(*value.shape[:-1], *spec.shape).to(dtype)
