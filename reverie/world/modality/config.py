"""What is known of a modality before its networks are built: the registry's entry, and what a configuration changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from pydantic import Field, ValidationError

from reverie.errors import ConfigError
from reverie.options import Options, mistake
from reverie.types import ObservationSpec

Choices = TypeVar("Choices", bound=Options)


class ModalityOptions(Options):
    """What a configuration chooses about one modality; the rest is as its entry in MODALITY_CONFIGS says."""

    embed_dim: int | None = Field(default=None, ge=1, le=65536)
    """Width of its tokens."""
    loss_scale: float | None = Field(default=None, ge=0, le=1e9)
    """Weight of its predictions, beside `world.reconstruction_scale`."""
    options: dict[str, Any] = {}
    """What its networks let one choose, by name."""


def prepared_key(key: str) -> str:
    """What an encoder made of the observation of this name once, for itself and its decoder, stands under."""
    return f"{key}/prepared"


@dataclass(frozen=True)
class ModalityConfig:
    """Which networks serve one modality, and which observations are of it."""

    name: str
    input_shape: tuple[int, ...]
    """Of an observation where no environment says it. Where ``claims`` is left out, environments have to agree."""
    embed_dim: int
    """Width of the tokens; 0 means the width of the world model's layers. The image encoder's width is its map's."""
    encoder_type: str
    decoder_type: str
    dtype: str = "float32"
    """Of an observation where no environment says it."""
    claims: Callable[[ObservationSpec], bool] | None = None
    """Which observations without a kind are of it; left out, the one that is called like it."""
    loss_scale: float = 1.0
    """Weight of its predictions, beside `world.reconstruction_scale`."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """What the networks let one choose, by name."""

    @property
    def observation(self) -> ObservationSpec:
        """What is observed where no environment says it."""
        return ObservationSpec(self.input_shape, self.dtype, kind=self.name)

    def changed(self, choices: ModalityOptions) -> ModalityConfig:
        """The entry with what a configuration chooses put in."""
        chosen = {name: getattr(choices, name) for name in ("embed_dim", "loss_scale")}
        chosen = {name: value for name, value in chosen.items() if value is not None}
        return replace(self, **chosen, options={**self.options, **choices.options})

    def read(self, options: type[Choices]) -> Choices:
        """``options`` as a network states them. Raises ConfigError for what it does not know or allow."""
        try:
            return options.model_validate(self.options)
        except ValidationError as error:
            key, value, message = mistake(error)
            if key not in options.model_fields:
                known = ", ".join(options.model_fields)
                message = f"unknown; choose from {known}" if known else "unknown; there is nothing to choose"
            raise ConfigError(f"world.modalities.{self.name}.options.{key} = {value}: {message}") from None
