"""What an observation can be made of, and which networks read and draw each kind.

A *modality* is one encoder and one decoder over a group of observation keys. A key is of the modality that its ``kind``
names. Without a kind it is of the one that is called like the key, if that claims nothing by looks, or else of the last
one in `MODALITY_CONFIGS` that claims it. A new modality is two modules and three dict entries, in any file.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from reverie.errors import ConfigError
from reverie.options import Options
from reverie.types import Latent, ObservationSpec
from reverie.world.modality.audio import AudioDecoder, AudioEncoder
from reverie.world.modality.config import ModalityConfig, ModalityOptions, prepared_key
from reverie.world.modality.each import EachDecoder, EachEncoder
from reverie.world.modality.image import ImageDecoder, ImageEncoder
from reverie.world.modality.plain import PlainReader, PlainWriter, is_plain
from reverie.world.modality.text import TextDecoder, TextEncoder
from reverie.world.modality.vector import VectorDecoder, VectorEncoder
from reverie.world.sizes import Sizes


@runtime_checkable
class Encoder(Protocol):
    """Reads its keys from ``obs`` (each [*batch, *shape], as the environment drew them) into tokens."""

    width: int

    def __init__(self, keys: Mapping[str, ObservationSpec], sizes: Sizes, config: ModalityConfig) -> None: ...

    def __call__(self, obs: Mapping[str, Tensor]) -> Tensor:
        """Tokens [*batch, width]."""
        ...


@runtime_checkable
class Prepares(Protocol):
    """An encoder that does some of its work once for itself and its decoder."""

    def prepare(self, obs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """By `prepared_key`, what both read in an update instead of what was observed."""
        ...


@runtime_checkable
class Decoder(Protocol):
    """Predicts its keys from a latent [*batch]."""

    def __init__(self, keys: Mapping[str, ObservationSpec], sizes: Sizes, config: ModalityConfig) -> None: ...

    def loss(self, latent: Latent, obs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """One loss per key, each [*batch]."""
        ...

    def constant_loss(self, obs: Mapping[str, Tensor], there: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """By key, one number: the mean loss of its best constant prediction, where ``there`` [*batch] says so."""
        ...

    def show(self, latent: Latent) -> dict[str, Tensor]:
        """The predictions [*batch, *shape] in the units and dtype of the observations."""
        ...


def is_image(spec: ObservationSpec) -> bool:
    """Whether it is uint8 of rank three."""
    return spec.dtype == "uint8" and len(spec.shape) == 3


def is_sound(spec: ObservationSpec) -> bool:
    """Whether it has samples per second."""
    return spec.rate > 0


def is_anything(spec: ObservationSpec) -> bool:
    """Of anything a vector can be made."""
    return True


def says_so(spec: ObservationSpec) -> bool:
    """Only its kind tells: bytes may be anything."""
    return False


Network = Callable[..., nn.Module]

ENCODERS: dict[str, Network] = {
    "image": ImageEncoder,
    "text": TextEncoder,
    "audio": AudioEncoder,
    "vector": VectorEncoder,
}
"""An `Encoder`, or a module that is made without arguments (`PlainReader` says what it does)."""
DECODERS: dict[str, Network] = {
    "image": ImageDecoder,
    "text": TextDecoder,
    "audio": AudioDecoder,
    "vector": VectorDecoder,
}
"""A `Decoder`, or a module that is made without arguments (`PlainWriter` says what it does)."""
MODALITY_CONFIGS: dict[str, ModalityConfig] = {
    "vector": ModalityConfig("vector", (779,), 0, "vector", "vector", claims=is_anything),
    "image": ModalityConfig("image", (3, 64, 64), 0, "image", "image", "uint8", claims=is_image),
    "audio": ModalityConfig("audio", (1, 16_000), 0, "audio", "audio", claims=is_sound),
    "text": ModalityConfig("text", (512,), 0, "text", "text", "uint8", claims=says_so),
}


@dataclass(frozen=True)
class Modality:
    """A group of observation keys with one encoder and one decoder."""

    config: ModalityConfig
    keys: dict[str, ObservationSpec]

    def encoder(self, sizes: Sizes) -> nn.Module:
        """What reads the keys. Raises ConfigError where it is not registered, or cannot."""
        network, config = self._registered("encoder", ENCODERS), self._with_width(sizes)
        if is_plain(network):
            config.read(Options)
            return EachEncoder(self.keys, sizes, config, functools.partial(PlainReader, network))
        return network(self.keys, sizes, config)

    def decoder(self, sizes: Sizes) -> nn.Module:
        """What predicts the keys. Raises ConfigError where it is not registered, or cannot."""
        network, config = self._registered("decoder", DECODERS), self._with_width(sizes)
        if is_plain(network):
            config.read(Options)
            return EachDecoder(self.keys, sizes, config, functools.partial(PlainWriter, network))
        made = network(self.keys, sizes, config)
        if missing := [name for name in ("loss", "constant_loss", "show") if not hasattr(made, name)]:
            raise ConfigError(f"modality '{config.name}': {type(made).__name__} is no decoder, it lacks "
                              f"{', '.join(missing)}; reverie.world.modality says what these do")  # fmt: skip
        return made

    def _registered(self, part: str, networks: Mapping[str, Network]) -> Network:
        name = getattr(self.config, f"{part}_type")
        if name not in networks:
            raise ConfigError(f"modality '{self.config.name}' has {part}_type = {name!r}; choose from "
                              f"{', '.join(networks)}, or add it to {part.upper()}S")  # fmt: skip
        return networks[name]

    def _with_width(self, sizes: Sizes) -> ModalityConfig:
        return replace(self.config, embed_dim=self.config.embed_dim or sizes.embed)


def modalities(
    observation: Mapping[str, ObservationSpec], choices: Mapping[str, ModalityOptions] | None = None
) -> list[Modality]:
    """Groups the keys of an observation, in the order in which their tokens are concatenated.

    ``choices`` change entries of `MODALITY_CONFIGS`. Raises ConfigError for a kind or a choice without an entry, where
    a key that is called like its modality has another shape than the entry, and for one that is a `prepared_key`.
    """
    choices = choices or {}
    for name in choices:
        if name not in MODALITY_CONFIGS:
            raise ConfigError(f"world.modalities.{name}: no such modality; choose from {', '.join(MODALITY_CONFIGS)}, "
                              "or add it to MODALITY_CONFIGS")  # fmt: skip
    if taken := [name for name in map(prepared_key, observation) if name in observation]:
        raise ConfigError(
            f"an observation may not be called {taken[0]!r}, as what is made of another one is; rename it"
        )
    groups: dict[str, dict[str, ObservationSpec]] = {}
    for key in sorted(observation):
        groups.setdefault(_modality_of(key, observation[key]), {})[key] = observation[key]
    order = sorted(groups, key=lambda name: (name != "vector", name != "image", name))  # as published, then by name
    return [
        Modality(MODALITY_CONFIGS[name].changed(choices.get(name, ModalityOptions())), groups[name]) for name in order
    ]


def _modality_of(key: str, spec: ObservationSpec) -> str:
    """The name of the modality that an observation is of. Raises ConfigError as `modalities` does."""
    name = spec.kind or _claiming(key, spec)
    if name not in MODALITY_CONFIGS:
        raise ConfigError(f"observation '{key}' is of the kind '{name}'; choose from {', '.join(MODALITY_CONFIGS)}, "
                          "or add it to MODALITY_CONFIGS")  # fmt: skip
    config = MODALITY_CONFIGS[name]
    if config.claims is None and config.input_shape not in ((), spec.shape):
        raise ConfigError(f"modality '{name}' is configured for shape {config.input_shape}, but the environment shows "
                          f"{spec.shape}; change MODALITY_CONFIGS['{name}'].input_shape")  # fmt: skip
    return name


def _claiming(key: str, spec: ObservationSpec) -> str:
    if key in MODALITY_CONFIGS and MODALITY_CONFIGS[key].claims is None:
        return key
    claiming = [name for name, config in MODALITY_CONFIGS.items() if config.claims and config.claims(spec)]
    if not claiming:
        raise ConfigError(f"no modality claims the observation '{key}' ({spec}); say with env.kinds what it is")
    return claiming[-1]
