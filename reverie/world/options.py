"""What may be chosen about the world model."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from pydantic import Field, model_validator

from reverie.errors import ConfigError
from reverie.options import Options
from reverie.world.modality.config import ModalityOptions
from reverie.world.sizes import PRESETS, Sizes


class WorldOptions(Options):
    """What the world model looks like and how its losses are weighed."""

    size: Literal["tiny", "1m", "12m", "25m", "50m", "100m", "200m", "400m"] = "1m"
    """One dial for all widths; the keys below that are not null replace single numbers of it."""
    deter: int | None = Field(default=None, ge=8, le=65536)
    """Width of the deterministic state."""
    hidden: int | None = Field(default=None, ge=1, le=65536)
    """Width of the layers inside the recurrent model."""
    stoch: int | None = Field(default=None, ge=1, le=1024)
    """Number of stochastic groups."""
    classes: int | None = Field(default=None, ge=2, le=255)
    """Classes of each stochastic group."""
    units: int | None = Field(default=None, ge=1, le=65536)
    """Width of encoders, decoders and heads."""
    depth: int | None = Field(default=None, ge=1, le=4096)
    """Channels of the image layers, in units of 2, 3, 4 and 4."""
    embed_dim: int | None = Field(default=None, ge=1, le=65536)
    """Width of a vector's tokens."""
    layers: int | None = Field(default=None, ge=1, le=64)
    """Layers of vector encoders and decoders."""
    blocks: int | None = Field(default=None, ge=1, le=1024)
    """Diagonal blocks of the recurrent core; must divide `deter`."""
    bins: int | None = Field(default=None, ge=3, le=4095)
    """Bins of two-hot heads (odd)."""
    unimix: float = Field(default=0.01, ge=0, lt=1)
    """Share of the uniform distribution in every latent."""
    horizon: float = Field(default=333, gt=1)
    """The continue head learns to predict (1 - terminal) * (1 - 1/horizon)."""
    free_nats: float = Field(default=1.0, ge=0)
    """KL below this is not trained."""
    kl_scale: float = Field(default=1.0, ge=0)
    """Multiplies both KL losses."""
    dynamics_scale: float = Field(default=1.0, ge=0)
    """Weight of the KL that trains the prior."""
    representation_scale: float = Field(default=0.1, ge=0)
    """Weight of the KL that trains the posterior."""
    reconstruction_scale: float = Field(default=1.0, ge=0)
    """Weight of every observation's prediction."""
    reconstruction_floor: float | None = Field(default=None, ge=0)
    """Nats that the best constant prediction of each observation costs at least: the losses of smaller ones are
    multiplied. 0: as published, none is; null: 10 where there are several modalities, else 0."""
    fusion: Literal["concat", "attention"] = "concat"
    """How tokens of several modalities become one: side by side, as published, or after attention among them."""
    modality_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of replayed sequences in which a modality is not seen, each by itself; it is predicted all the same."""
    modalities: dict[str, ModalityOptions] = {}
    """Choices about single modalities, by name: `embed_dim`, `loss_scale`, and the `options` of their networks."""
    reward_scale: float = Field(default=1.0, ge=0)
    """Weight of the reward prediction."""
    continue_scale: float = Field(default=1.0, ge=0)
    """Weight of the continue prediction."""
    gradient_checkpointing: bool = False
    """Forget inner values and compute them again for the gradient: a longer update in much less memory."""

    @model_validator(mode="after")
    def _fits_together(self) -> WorldOptions:
        sizes = self.sizes
        if sizes.deter % sizes.blocks:
            raise ConfigError(f"world.blocks = {sizes.blocks}: should divide world.deter = {sizes.deter}")
        if sizes.bins % 2 == 0:
            raise ConfigError(f"world.bins = {sizes.bins}: should be odd, so that one bin is zero")
        return self

    @property
    def sizes(self) -> Sizes:
        """The preset with the single choices put in."""
        chosen = {name: getattr(self, name) for name in Sizes.__dataclass_fields__ if name != "embed"}
        chosen["embed"] = self.embed_dim
        return replace(PRESETS[self.size], **{name: value for name, value in chosen.items() if value is not None})
