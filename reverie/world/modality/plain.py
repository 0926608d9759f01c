"""Networks that know nothing of this package: modules of tensors, made without arguments, as encoder or decoder."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

from reverie.errors import ConfigError
from reverie.functional import constant_error
from reverie.types import ObservationSpec
from reverie.world.modality.config import ModalityConfig
from reverie.world.sizes import Sizes


def is_plain(network: Callable[..., nn.Module]) -> bool:
    """Whether it can be made without arguments; the networks of `reverie.world.modality` have three."""
    try:
        inspect.signature(network).bind()
    except TypeError:
        return False
    return True


class PlainReader(nn.Module):
    """An encoder out of a module that makes of observations [N, *shape], as floats, tokens [N, width]."""

    def __init__(self, network: Callable[..., nn.Module], spec: ObservationSpec, sizes: Sizes, config: ModalityConfig):
        super().__init__()
        self.network, self.shape = network(), spec.shape
        found = tried(self.network, config, self.shape)
        if len(found) != 1:
            raise ConfigError(f"modality '{config.name}': {type(self.network).__name__} makes {list(found)} of an "
                              f"observation {list(self.shape)}, not one axis of numbers")  # fmt: skip
        self.width = found[0]

    def forward(self, value: Shaped[Tensor, "..."]) -> Float[Tensor, "*batch X"]:
        batch = value.shape[: value.ndim - len(self.shape)]
        return self.network(value.reshape(-1, *self.shape).float()).float().unflatten(0, batch)


class PlainWriter(nn.Module):
    """A decoder out of a module that makes of features [N, F] predictions [N, *shape]."""

    def __init__(self, network: Callable[..., nn.Module], spec: ObservationSpec, sizes: Sizes, config: ModalityConfig):
        super().__init__()
        self.network, self.spec = network(), spec
        found = tried(self.network, config, (sizes.features,))
        if found != spec.shape:
            raise ConfigError(f"modality '{config.name}': {type(self.network).__name__} predicts {list(found)}, but an "
                              f"observation is {list(spec.shape)}")  # fmt: skip

    def forward(self, features: Float[Tensor, "*batch F"]) -> Float[Tensor, "..."]:
        return self.network(features.flatten(0, -2)).float().unflatten(0, features.shape[:-1])

    def loss(self, features: Float[Tensor, "*batch F"], value: Shaped[Tensor, "..."]) -> Float[Tensor, "*batch"]:
        """Squared error summed over the observation."""
        error = (self(features) - value.float()).square()
        return error.reshape(*features.shape[:-1], -1).sum(-1)

    def constant_loss(self, value: Shaped[Tensor, "..."], there: Bool[Tensor, "*batch"]) -> Float[Tensor, ""]:
        return constant_error(value.float().flatten(0, there.ndim - 1), there.flatten())

    def show(self, features: Float[Tensor, "*batch F"]) -> Shaped[Tensor, "..."]:
        dtype = getattr(torch, self.spec.dtype)
        shown = self(features)
        if dtype.is_floating_point:
            return shown.to(dtype)
        limits = (0, 1) if dtype is torch.bool else (torch.iinfo(dtype).min, torch.iinfo(dtype).max)
        return shown.round().clamp(*limits).to(dtype)


def tried(network: nn.Module, config: ModalityConfig, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of what a module makes of two inputs of zeros. Raises ConfigError where it cannot."""
    try:
        with torch.no_grad():
            result: Any = network(torch.zeros(2, *shape))
        return tuple(result.shape[1:])
    except Exception as error:  # a foreign module may raise anything
        raise ConfigError(f"modality '{config.name}': {type(network).__name__} fails with [2, "
                          f"{', '.join(map(str, shape))}]: {type(error).__name__}: {error}") from error  # fmt: skip
