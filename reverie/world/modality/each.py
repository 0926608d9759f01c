"""Modalities whose keys have a network each: what reads or draws one key, made into an encoder or a decoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from reverie.errors import ConfigError
from reverie.types import Latent, ObservationSpec
from reverie.world.modality.config import ModalityConfig
from reverie.world.sizes import Sizes


@runtime_checkable
class Draws(Protocol):
    """What predicts one key from features [*batch, F]."""

    def loss(self, features: Tensor, value: Tensor) -> Tensor:
        """How wrong it is about the observed value [*batch, *shape]: [*batch]."""
        ...

    def constant_loss(self, value: Tensor, there: Tensor) -> Tensor:
        """The mean loss of the best constant prediction of the values that are ``there`` [*batch]: one number."""
        ...

    def show(self, features: Tensor) -> Tensor:
        """The prediction [*batch, *shape], as the environment would draw it."""
        ...


def made(
    network: Callable[..., nn.Module], key: str, spec: ObservationSpec, sizes: Sizes, config: ModalityConfig
) -> nn.Module:
    """The network of one key. Raises ConfigError, which names the key, where it cannot be of this modality."""
    try:
        return network(spec, sizes, config)
    except ConfigError as error:
        raise ConfigError(f"observation '{key}': {error}") from None


class EachEncoder(nn.Module):
    """Tokens of all keys side by side. ``reader`` makes what reads an observation [*batch, *shape] into a token."""

    def __init__(
        self,
        keys: Mapping[str, ObservationSpec],
        sizes: Sizes,
        config: ModalityConfig,
        reader: Callable[..., nn.Module],
    ):
        super().__init__()
        self.keys = sorted(keys)
        self.readers = nn.ModuleList(made(reader, key, keys[key], sizes, config) for key in self.keys)
        self.width = sum(int(reader.width) for reader in self.readers)  # type: ignore[arg-type]

    def forward(self, obs: Mapping[str, Tensor]) -> Float[Tensor, "*batch X"]:
        return torch.cat([reader(obs[key]) for key, reader in zip(self.keys, self.readers, strict=True)], -1)


class EachDecoder(nn.Module):
    """Predicts each key by itself, by what ``writer`` makes, which is a `Draws`."""

    def __init__(
        self,
        keys: Mapping[str, ObservationSpec],
        sizes: Sizes,
        config: ModalityConfig,
        writer: Callable[..., nn.Module],
    ):
        super().__init__()
        self.keys = sorted(keys)
        self.writers = nn.ModuleList(made(writer, key, keys[key], sizes, config) for key in self.keys)

    @property
    def _named(self) -> dict[str, Draws]:
        return dict(zip(self.keys, self.writers, strict=True))  # type: ignore[arg-type]

    def loss(self, latent: Latent, obs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {key: writer.loss(latent.features, obs[key]) for key, writer in self._named.items()}

    def constant_loss(self, obs: Mapping[str, Tensor], there: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {key: writer.constant_loss(obs[key], there[key]) for key, writer in self._named.items()}

    def show(self, latent: Latent) -> dict[str, Tensor]:
        return {key: writer.show(latent.features) for key, writer in self._named.items()}
