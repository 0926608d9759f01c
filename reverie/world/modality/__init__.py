"""What an observation can be made of, and which networks read and draw each kind.

A *modality* is one encoder and one decoder over a group of observation keys. Keys are grouped by inspection:
``uint8`` keys of rank 3 are images, everything else is a vector; a key that `MODALITY_CONFIGS` names has a modality
of its own. A new modality is two classes and three dict entries, in any file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from reverie.errors import ConfigError
from reverie.types import Latent, ObservationSpec
from reverie.world.modality.image import ImageDecoder, ImageEncoder
from reverie.world.modality.vector import VectorDecoder, VectorEncoder
from reverie.world.sizes import Sizes


@runtime_checkable
class Encoder(Protocol):
    """Reads its keys from ``obs`` (each [B, T, *shape], as the environment drew them) into tokens [B, T, width]."""

    width: int

    def __init__(self, keys: Mapping[str, ObservationSpec], sizes: Sizes, embed_dim: int) -> None: ...

    def __call__(self, obs: Mapping[str, Tensor]) -> Tensor: ...


@runtime_checkable
class Decoder(Protocol):
    """Predicts its keys from a latent."""

    def __init__(self, keys: Mapping[str, ObservationSpec], sizes: Sizes) -> None: ...

    def __call__(self, latent: Latent) -> dict[str, Tensor]: ...

    def loss(self, prediction: Mapping[str, Tensor], obs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """One loss per key, each [B, T]."""
        ...

    def show(self, prediction: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The predictions in the units and dtype of the observations."""
        ...


@dataclass(frozen=True)
class ModalityConfig:
    """Which networks serve one modality."""

    name: str
    """For a modality of one key: that key."""
    input_shape: tuple[int, ...]
    """Checked against the environment where it is not empty."""
    embed_dim: int
    """Width of the tokens; 0 means the width of the world model's layers. The image encoder's width is its map's."""
    encoder_type: str
    decoder_type: str


ENCODERS: dict[str, type] = {"image": ImageEncoder, "vector": VectorEncoder}
DECODERS: dict[str, type] = {"image": ImageDecoder, "vector": VectorDecoder}
MODALITY_CONFIGS: dict[str, ModalityConfig] = {
    "image": ModalityConfig("image", (), 0, "image", "image"),
    "vector": ModalityConfig("vector", (), 0, "vector", "vector"),
}


@dataclass(frozen=True)
class Modality:
    """A group of observation keys with one encoder and one decoder."""

    config: ModalityConfig
    keys: dict[str, ObservationSpec]

    def encoder(self, sizes: Sizes) -> nn.Module:
        return self._network("encoder", ENCODERS)(self.keys, sizes, self.config.embed_dim or sizes.embed)

    def decoder(self, sizes: Sizes) -> nn.Module:
        return self._network("decoder", DECODERS)(self.keys, sizes)

    def _network(self, kind: str, networks: Mapping[str, type]) -> type:
        name = getattr(self.config, f"{kind}_type")
        if name not in networks:
            raise ConfigError(f"modality '{self.config.name}' has {kind}_type = {name!r}; choose from "
                              f"{', '.join(networks)}, or add it to {kind.upper()}S")  # fmt: skip
        return networks[name]


def modalities(observation: Mapping[str, ObservationSpec]) -> list[Modality]:
    """Groups the keys of an observation, in the order in which their tokens are concatenated.

    Raises ConfigError where a key has another shape than its entry in `MODALITY_CONFIGS`.
    """
    groups: dict[str, dict[str, ObservationSpec]] = {"vector": {}, "image": {}}
    for key in sorted(observation):
        spec = observation[key]
        if key in MODALITY_CONFIGS and key not in groups:
            expected = MODALITY_CONFIGS[key].input_shape
            if expected and expected != spec.shape:
                raise ConfigError(f"modality '{key}' is configured for shape {expected}, but the environment shows "
                                  f"{spec.shape}; change MODALITY_CONFIGS['{key}'].input_shape")  # fmt: skip
            groups[key] = {key: spec}
        else:
            groups["image" if spec.dtype == "uint8" and len(spec.shape) == 3 else "vector"][key] = spec
    return [Modality(MODALITY_CONFIGS[name], keys) for name, keys in groups.items() if keys]
