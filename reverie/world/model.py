"""The world model: encoders, recurrent state-space model, decoders, and heads for reward and continuation.

`MultimodalWorldModel.loss` explains a batch of replayed sequences (DreamerV3, section "World model learning");
`RSSM.prior_step` dreams one step further. An agent learns inside it, but it also serves by itself, on any data that
comes in sequences::

    world = MultimodalWorldModel({"sound": MODALITY_CONFIGS["audio"], "text": MODALITY_CONFIGS["text"]})
    latent, _, losses = world.loss(world.batch({"sound": sound, "text": text}))     # each [B, T, ...]
    world.decode(latent)["text"], world.decode(world.imagine(latent.at(-1), actions))
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from contextvars import copy_context
from dataclasses import replace
from functools import reduce
from typing import Any

import torch
from jaxtyping import Bool, Float
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
    Metrics,
    ObservationSpec,
    action_width,
    join,
    presence_key,
)
from reverie.world.fusion import FUSIONS, presence
from reverie.world.modality import Prepares, modalities
from reverie.world.modality.config import ModalityConfig
from reverie.world.options import WorldOptions
from reverie.world.rssm import RSSM
from reverie.world.sequences import check, rows_and_steps
from reverie.world.weights import FLOOR, ObservationWeights

DEFAULTS = WorldOptions()


class MultimodalWorldModel(nn.Module):
    """Latents from observations, and predictions from latents.

    ``active_modalities`` says what is observed, by key: an `ObservationSpec` as an environment gives it, or an entry of
    `MODALITY_CONFIGS` for what is of its shape and dtype. Without ``action`` there is nothing to be done.
    """

    bins: Tensor

    def __init__(
        self,
        active_modalities: Mapping[str, ObservationSpec | ModalityConfig],
        action: ActionSpec = (),
        options: WorldOptions = DEFAULTS,
    ):
        super().__init__()
        self.options, self.sizes = options, options.sizes
        self.observation = {
            key: entry if isinstance(entry, ObservationSpec) else entry.observation
            for key, entry in active_modalities.items()
        }
        if not self.observation:
            raise ConfigError("a world model of no observations: give it at least one, such as of MODALITY_CONFIGS")
        sizes, self.discount = self.sizes, 1.0 - 1.0 / options.horizon
        groups = {modality.config.name: modality for modality in modalities(self.observation, options.modalities)}
        self.keys = {name: list(group.keys) for name, group in groups.items()}
        self.loss_scales = {key: group.config.loss_scale for group in groups.values() for key in group.keys}
        self.encoders = nn.ModuleDict({name: group.encoder(sizes) for name, group in groups.items()})
        self.decoders = nn.ModuleDict({name: group.decoder(sizes) for name, group in groups.items()})
        widths = [int(encoder.width) for encoder in self.encoders.values()]  # type: ignore[arg-type]
        floor = options.reconstruction_floor
        floor = (FLOOR if len(groups) > 1 else 0.0) if floor is None else floor
        self.weights = ObservationWeights(sorted(self.observation), floor) if floor else None
        self.fusion = FUSIONS[options.fusion](widths, sizes.embed)
        self.tokens, self.action_width = sum(widths), action_width(action)
        self.rssm = RSSM(self.tokens, self.action_width, sizes, options.unimix)
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

    def batch(
        self,
        obs: Mapping[str, Any],
        action: Float[Tensor, "B T A"] | None = None,
        reward: Float[Tensor, "B T"] | None = None,
        first: Bool[Tensor, "B T"] | None = None,
    ) -> Batch:
        """Sequences of a data set, as `loss` takes them: ``obs`` {key: [B, T, *shape]}, tensors or arrays.

        What is observed but not given is missing. Without ``action`` nothing was done, without ``reward`` nothing was
        gained, and without ``first`` each sequence begins an episode. Raises ConfigError for an unknown key or a shape.
        """
        given = {key: torch.as_tensor(value) for key, value in obs.items()}
        if not given.keys() & self.observation.keys() or given.keys() - self._known:
            raise ConfigError(f"a batch of {sorted(given)}: the world model observes {sorted(self.observation)}")
        rows, steps = rows_and_steps(given, self.observation)
        beside = {"action": (action, (self.action_width,)), "reward": (reward, ()), "first": (first, ())}
        for name, (value, shape) in beside.items():
            if value is not None:
                check(name, tuple(value.shape), (rows, steps, *shape))
        never = torch.zeros(rows, steps, dtype=torch.bool)
        flags = {presence_key(key): key for key in self.observation}
        for key in self.observation.keys() - given.keys() - flags.keys():
            spec = self.observation[key]
            given |= {key: torch.full((rows, steps, *spec.shape), spec.silence or 0, dtype=getattr(torch, spec.dtype))}
            given |= {presence_key(key): never}
        for flag in self.observation.keys() & flags.keys() - given.keys():
            given[flag] = ~never
        return Batch(
            obs=given,
            action=torch.zeros(rows, steps, self.action_width) if action is None else action,
            reward=torch.zeros(rows, steps) if reward is None else reward,
            first=(torch.arange(steps) == 0).expand(rows, -1) if first is None else first,
            last=never,
            terminal=never,
            slot=torch.arange(rows * steps).view(rows, steps),
            context_action=torch.zeros(rows, self.action_width),
            context_latent={name: value.cpu() for name, value in self.pack(self.initial(rows)).items()},
        )

    @property
    def _known(self) -> set[str]:
        return {name for key in self.observation for name in (key, presence_key(key))}

    @property
    def noise(self) -> int:
        """Uniform numbers that `loss` takes for each step: one for each group and, to hide some, each modality."""
        return self.sizes.stoch + (len(self.encoders) if self.options.modality_dropout else 0)

    def prepare(self, obs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Observations with what an encoder and its decoder would otherwise both make of them."""
        made = [encoder.prepare(obs) for encoder in self.encoders.values() if isinstance(encoder, Prepares)]
        return reduce(operator.or_, made, dict(obs))

    def encode(self, obs: Mapping[str, Tensor]) -> Float[Tensor, "*batch X"]:
        """What was observed as one token."""
        return self._read(obs)[0]

    @compiled
    def _read(
        self, obs: Mapping[str, Tensor], seen: Bool[Tensor, "*batch M"] | None = None
    ) -> tuple[Float[Tensor, "*batch X"], Float[Tensor, "*batch X"]]:
        """One token of the modalities that are ``seen``, in the order of ``encoders``, and one of all of them."""
        tokens = [encoder(obs) for encoder in self.encoders.values()]
        present = [presence(keys, obs) for keys in self.keys.values()]
        whole = self.fusion(tokens, present)
        if seen is None:
            return whole, whole
        pairs = zip(present, seen.unbind(-1), strict=True)
        return self.fusion(tokens, [shown if there is None else there & shown for there, shown in pairs]), whole

    def observe(
        self, batch: Batch, uniform: Float[Tensor, "B T noise"] | None = None
    ) -> tuple[Latent, Float[Tensor, "B T X"]]:
        """The posterior [B, T] of replayed sequences, continued from their stored context, and the tokens of all.

        Uniform numbers decide about latents and, where there are `noise` of them, about what is hidden from those. Left
        out, they are drawn for the latents alone.
        """
        if uniform is None:
            uniform = torch.rand(*batch.reward.shape, self.sizes.stoch, device=batch.reward.device)
        seen, noise = None, uniform[..., : self.sizes.stoch].contiguous()
        if uniform.shape[-1] > self.sizes.stoch:
            seen = uniform[..., self.sizes.stoch :] >= self.options.modality_dropout
            seen = seen[:, :1].expand(-1, seen.shape[1], -1)  # of a whole sequence
        deter, stoch = self.unpack(batch.context_latent)
        if not self.options.gradient_checkpointing:
            tokens, whole = self._read(batch.obs, seen)
            return self.rssm.observe(tokens, batch.previous_action, batch.first, deter, stoch, noise), whole
        shown = seen.split(1) if seen is not None else [None] * len(batch.reward)
        rows = [checkpointed(self._read, row.obs, part) for row, part in zip(batch.rows(), shown, strict=True)]
        tokens, whole = (torch.cat(parts) for parts in zip(*rows, strict=True))
        stretches, length = [], math.isqrt(noise.shape[1])
        pieces = (series.split(length, 1) for series in (tokens, batch.previous_action, batch.first, noise))
        for *given, latent_noise in zip(*pieces, strict=True):
            stretches.append(checkpointed(self.rssm.observe, *given, deter, stoch, latent_noise))
            end = stretches[-1].at(-1)
            deter, stoch = end.deter, end.stoch
        return join(stretches), whole

    def loss(
        self, batch: Batch, uniform: Float[Tensor, "B T noise"] | None = None
    ) -> tuple[Latent, Float[Tensor, "B T X"], Losses]:
        """Explains a batch: the posterior, the tokens without gradient, and one loss [B, T] per name in `scales`.

        The losses of small observations have their weights in them. ``uniform`` is as in `observe`, but drawn with all
        its `noise` where it is left out.
        """
        if uniform is None:
            uniform = torch.rand(*batch.reward.shape, self.noise, device=batch.reward.device)
        batch = replace(batch, obs=self.prepare(batch.obs))
        latent, tokens = self.observe(batch, uniform)
        if not self.options.gradient_checkpointing:
            losses = self.explain(latent, batch)
        else:
            rows = [checkpointed(self.explain, *row) for row in zip(latent.rows(), batch.rows(), strict=True)]
            losses = {name: torch.cat([loss[name] for loss in rows]) for name in self.scales}
        if self.weights is not None:
            self.weights.learn(self.decoders.values(), batch.obs)
            losses = self.weights.weigh(losses)
        return latent, tokens.detach(), losses

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

    def metrics(self, losses: Losses) -> Metrics:
        """The mean of every loss of `loss`, without weights, and the weights, under the names that users know."""
        weights = {} if self.weights is None else self.weights()
        means = {name: loss.detach().mean() for name, loss in losses.items()}
        means |= {name: means[name] / weight for name, weight in weights.items()}
        reconstruction = [mean for name, mean in means.items() if name.startswith("recon_")]
        named = {"recon_loss": torch.stack(reconstruction).sum(), "kl_loss": means["dynamics"]}
        named |= {name.replace("recon", "weight"): weight for name, weight in weights.items()}
        return {f"world/{name}": number for name, number in (means | named).items()}

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

    def prior_mode(self, deter: Float[Tensor, "*batch D"]) -> Latent:
        """The latent that a deterministic state most likely stands for."""
        logits = self.rssm.prior_logits(deter)
        return Latent(deter, one_hot(logits.argmax(-1), self.sizes.classes), logits)

    def imagine(
        self, latent: Latent, actions: Float[Tensor, "N H A"], uniform: Float[Tensor, "H N S"] | None = None
    ) -> Latent:
        """The points [N, H+1, ...] of a walk from states [N, ...], without gradient.

        Uniform numbers decide about latents. Left out, they are drawn.
        """
        if uniform is None:
            count, horizon = actions.shape[:2]
            uniform = torch.rand(horizon, count, self.sizes.stoch, device=actions.device)
        return self.rssm.walk(latent, actions, uniform)

    def decode(self, latent: Latent) -> dict[str, Tensor]:
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
