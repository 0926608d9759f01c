"""The world model: encoders, recurrent state-space model, decoders, and heads for reward and continuation.

`MultimodalWorldModel.loss` explains a batch of replayed sequences (DreamerV3, section "World model learning");
`RSSM.prior_step` dreams one step further.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextvars import copy_context
from dataclasses import replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from reverie.compilation import compiled
from reverie.errors import ConfigError
from reverie.functional import balanced_kl, mixed_log_probs, one_hot, two_hot_bins
from reverie.nets import two_hot
from reverie.nets.layers import MLP
from reverie.types import (
    ActionSpec,
    Batch,
    Latent,
    Losses,
    ObservationSpec,
    Options,
    action_width,
    join,
    presence_key,
)
from reverie.world.modality import modalities
from reverie.world.modality.config import ModalityOptions
from reverie.world.rssm import RSSM
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


class MultimodalWorldModel(nn.Module):
    """Latents from observations, and predictions from latents."""

    bins: Tensor

    def __init__(self, options: WorldOptions, observation: Mapping[str, ObservationSpec], action: ActionSpec):
        super().__init__()
        self.options, self.sizes, self.observation = options, options.sizes, dict(observation)
        sizes, self.discount = self.sizes, 1.0 - 1.0 / options.horizon
        groups = {modality.config.name: modality for modality in modalities(observation, options.modalities)}
        self.loss_scales = {key: group.config.loss_scale for group in groups.values() for key in group.keys}
        self.encoders = nn.ModuleDict({name: group.encoder(sizes) for name, group in groups.items()})
        self.decoders = nn.ModuleDict({name: group.decoder(sizes) for name, group in groups.items()})
        self.tokens = sum(int(encoder.width) for encoder in self.encoders.values())  # type: ignore[arg-type]
        self.rssm = RSSM(self.tokens, action_width(action), sizes, options.unimix)
        self.reward_head = MLP(sizes.features, sizes.units, 1, sizes.bins, scale=0.0)
        self.continue_head = MLP(sizes.features, sizes.units, 1, 1)
        self.register_buffer("bins", two_hot_bins(sizes.bins), persistent=False)

    @property
    def scales(self) -> dict[str, float]:
        """The weight of every loss that `loss` returns."""
        options = self.options
        predicted = {f"recon_{key}": self.loss_scales[key] for key in sorted(self.observation)}
        return {name: options.reconstruction_scale * scale for name, scale in predicted.items()} | {
            "reward": options.reward_scale,
            "continue": options.continue_scale,
            "dynamics": options.dynamics_scale * options.kl_scale,
            "representation": options.representation_scale * options.kl_scale,
        }

    # --- what is stored between steps ---

    def initial(self, batch: int) -> Latent:
        """The state before anything was seen: zeros."""
        sizes, like = self.sizes, next(self.parameters())
        stoch = like.new_zeros(batch, sizes.stoch, sizes.classes)
        return Latent(like.new_zeros(batch, sizes.deter), stoch, stoch.clone())

    @property
    def stored(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Names, shapes and dtypes of what `pack` makes."""
        return {"deter": ((self.sizes.deter,), "float32"), "stoch": ((self.sizes.stoch,), "uint8")}

    def pack(self, latent: Latent) -> dict[str, Tensor]:
        """A latent as replay stores it: the deterministic state, and the class of each group."""
        return {"deter": latent.deter.float(), "stoch": latent.stoch.argmax(-1).to(torch.uint8)}

    def unpack(self, stored: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Deterministic and stochastic state of what `pack` made; class 255 is a group of zeros."""
        return stored["deter"], one_hot(stored["stoch"].long(), self.sizes.classes)

    # --- from observations to latents ---

    @compiled
    def encode(self, obs: Mapping[str, Tensor]) -> Float[Tensor, "*batch E"]:
        """The tokens of all modalities, side by side."""
        return torch.cat([encoder(obs) for encoder in self.encoders.values()], -1)

    def observe(self, batch: Batch, uniform: Float[Tensor, "B T S"]) -> tuple[Latent, Float[Tensor, "B T E"]]:
        """The posterior [B, T] of replayed sequences, continued from their stored context, and the tokens it saw."""
        deter, stoch = self.unpack(batch.context_latent)
        if not self.options.gradient_checkpointing:
            tokens = self.encode(batch.obs)
            return self.rssm.observe(tokens, batch.previous_action, batch.first, deter, stoch, uniform), tokens
        tokens = torch.cat([checkpointed(self.encode, row.obs) for row in batch.rows()])
        stretches, length = [], math.isqrt(uniform.shape[1])
        pieces = (whole.split(length, 1) for whole in (tokens, batch.previous_action, batch.first, uniform))
        for *seen, latent_noise in zip(*pieces, strict=True):
            stretches.append(checkpointed(self.rssm.observe, *seen, deter, stoch, latent_noise))
            end = stretches[-1].at(-1)
            deter, stoch = end.deter, end.stoch
        return join(stretches), tokens

    def loss(self, batch: Batch, uniform: Float[Tensor, "B T S"]) -> tuple[Latent, Float[Tensor, "B T E"], Losses]:
        """Explains a batch: the posterior, the tokens without gradient, and one loss [B, T] per name in `scales`."""
        latent, tokens = self.observe(batch, uniform)
        if not self.options.gradient_checkpointing:
            return latent, tokens.detach(), self.explain(latent, batch)
        pieces = zip(latent.rows(), batch.rows(), strict=True)
        losses = [checkpointed(self.explain, *piece) for piece in pieces]
        return latent, tokens.detach(), {name: torch.cat([loss[name] for loss in losses]) for name in self.scales}

    @compiled
    def explain(self, latent: Latent, batch: Batch) -> Losses:
        """How well the posterior [B, T] of a batch predicts all that was seen, and how surprising it was."""
        mixed = mixed_log_probs(latent.logits, self.options.unimix)
        prior = mixed_log_probs(self.rssm.prior_logits(latent.deter), self.options.unimix)
        dynamics, representation = balanced_kl(mixed, prior, self.options.free_nats)
        features = latent.features
        alive = (~batch.terminal).float() * self.discount
        losses = {
            "reward": two_hot.loss(self.reward_head(features), [batch.reward], [1.0], self.bins),
            "continue": F.binary_cross_entropy_with_logits(
                self.continue_head(features).squeeze(-1), alive, reduction="none"
            ),
            "dynamics": dynamics,
            "representation": representation,
        }
        for decoder in self.decoders.values():
            for key, loss in decoder.loss(latent, batch.obs).items():  # type: ignore[operator]
                present = batch.obs.get(presence_key(key))
                losses[f"recon_{key}"] = loss if present is None else loss * present
        return losses

    # --- from latents to dreams ---

    @compiled
    def reward(self, features: Float[Tensor, "*batch F"]) -> Float[Tensor, "*batch"]:
        """The reward that arrives with a state."""
        return two_hot.predict(self.reward_head, features, self.bins).squeeze(-1)

    @compiled
    def continues(self, features: Float[Tensor, "*batch F"]) -> Float[Tensor, "*batch"]:
        """How likely the episode goes on from a state.

        The head's target carries the discount 1 - 1/horizon, which is divided out here, so that every consumer can
        apply its own; where the head overshoots its target the result exceeds one by at most 1/(horizon - 1).
        """
        return torch.sigmoid(self.continue_head(features).squeeze(-1)) / self.discount

    @torch.no_grad()
    def walk(
        self, latent: Latent, action: Float[Tensor, "N A"], uniform: Float[Tensor, "N S"]
    ) -> tuple[Latent, Float[Tensor, "N"]]:
        """One step from every state, and how likely the episode goes on from where it leads."""
        following = self.rssm.prior_step()(latent, action, uniform)
        return following, self.continues(following.features)

    def prior_mode(self, deter: Float[Tensor, "*batch D"]) -> Latent:
        """The latent that a deterministic state most likely stands for."""
        logits = self.rssm.prior_logits(deter)
        return Latent(deter, one_hot(logits.argmax(-1), self.sizes.classes), logits)

    def show(self, latent: Latent) -> dict[str, Tensor]:
        """What the model sees in a latent [*batch]: every observation key in its own units and dtype."""
        shown: dict[str, Tensor] = {}
        for decoder in self.decoders.values():
            shown |= decoder.show(latent)  # type: ignore[operator]
        return shown


def checkpointed(function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls a function whose inner values are not kept, but computed again on the way back.

    A GPU does that in a thread of its own, where what is compiled must be the same.
    """
    return checkpoint(copy_context().run, function, *arguments, use_reentrant=False, preserve_rng_state=False)
