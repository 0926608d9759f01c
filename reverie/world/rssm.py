"""The recurrent state-space model: a block-diagonal GRU for what is certain, one-hot groups for what is not.

Products that need no recurrence (those of tokens, actions and the prior) are taken out of the loop over time and done
for all steps at once; inside it remain the recurrent ones. Acting, observing and imagining all run the same core; on a
CPU, `rssm_kernels` runs the loops with native kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from reverie.compilation import compiled
from reverie.functional import mixed_probs, straight_through
from reverie.nets.distributions import ActionDistribution
from reverie.nets.layers import MLP, BlockLinear, Linear, NormSiLU, block_product
from reverie.types import Latent, stack
from reverie.world import rssm_kernels
from reverie.world.sizes import Sizes


@dataclass(frozen=True)
class CoreWeights:
    """The first block-diagonal layer, cut by what it multiplies; prepared once for a whole loop over time."""

    recurrent: Float[Tensor, "G d d"]
    """Acts on the blocks of the deterministic state."""
    deter: Float[Tensor, "h D"]
    """These three act on inputs that all blocks share, so they are dense."""
    stoch: Float[Tensor, "h D"]
    action: Float[Tensor, "h D"]


class RSSM(nn.Module):
    """``core``: (deter, stoch, action) -> deter; ``prior``: deter -> logits; posterior: (deter, token) -> logits."""

    def __init__(self, tokens: int, action: int, sizes: Sizes, unimix: float):
        super().__init__()
        self.sizes, self.unimix = sizes, unimix
        deter, hidden, groups = sizes.deter, sizes.hidden, sizes.stoch * sizes.classes
        self.from_deter = MLP(deter, hidden, 1)
        self.from_stoch = MLP(groups, hidden, 1)
        self.from_action = MLP(action, hidden, 1)
        self.mix = BlockLinear(deter + 3 * hidden * sizes.blocks, deter, sizes.blocks)
        self.mix_norm = NormSiLU(deter)
        self.gates = BlockLinear(deter, 3 * deter, sizes.blocks)
        self.prior = MLP(deter, hidden, 2, groups)
        self.posterior_input = Linear(deter + tokens, hidden)
        self.posterior_output = nn.Sequential(NormSiLU(hidden), Linear(hidden, groups))

    # --- the pieces of one step ---

    def weights(self) -> CoreWeights:
        """Cuts the first block layer into its recurrent and its shared parts."""
        block, hidden = self.sizes.deter // self.sizes.blocks, self.sizes.hidden
        shared = self.mix.kernel[:, block:].transpose(0, 1).flatten(1)  # [3 hidden, D], columns block by block
        return CoreWeights(self.mix.kernel[:, :block], *shared.split(hidden))

    def drive(self, action: Float[Tensor, "*batch A"], weights: CoreWeights) -> Float[Tensor, "*batch D"]:
        """What an action adds to the first block layer; actions outside [-1, 1] are scaled onto the border."""
        bounded = action / action.detach().abs().clamp(min=1.0)
        return self.from_action(bounded) @ weights.action + self.mix.bias

    def core(
        self,
        deter: Float[Tensor, "batch D"],
        stoch: Float[Tensor, "batch S C"],
        drive: Float[Tensor, "batch D"],
        weights: CoreWeights,
    ) -> Float[Tensor, "batch D"]:
        """One step of the block GRU."""
        shared = torch.addmm(drive, self.from_deter(deter), weights.deter)
        shared = torch.addmm(shared, self.from_stoch(stoch.flatten(-2)), weights.stoch)
        hidden = self.mix_norm(block_product(deter, weights.recurrent) + shared)
        gates = self.gates(hidden).unflatten(-1, (self.sizes.blocks, 3, -1))  # thirds within each block
        reset, candidate, update = (gate.flatten(-2) for gate in gates.unbind(-2))
        update = torch.sigmoid(update - 1.0)
        return torch.lerp(deter, torch.tanh(torch.sigmoid(reset) * candidate), update)

    def groups(self, logits: Float[Tensor, "*batch SC"]) -> Float[Tensor, "*batch S C"]:
        """Logits as S groups of C classes."""
        return logits.unflatten(-1, (self.sizes.stoch, self.sizes.classes))

    def sample(
        self, logits: Float[Tensor, "*batch S C"], uniform: Float[Tensor, "*batch S"]
    ) -> Float[Tensor, "*batch S C"]:
        """Straight-through one-hots of the mixed distribution."""
        return straight_through(mixed_probs(logits, self.unimix), uniform)

    # --- the two loops ---

    def observe(
        self,
        tokens: Float[Tensor, "B T X"],
        previous_action: Float[Tensor, "B T A"],
        first: Bool[Tensor, "B T"],
        deter: Float[Tensor, "B D"],
        stoch: Float[Tensor, "B S C"],
        uniform: Float[Tensor, "B T S"],
    ) -> Latent:
        """The posterior of every step, starting from a carried state; state and action are zeroed where ``first``."""
        weights = self.weights()
        keep = (~first).float()[..., None]
        drives = self.drive(previous_action * keep, weights)
        from_deter, from_token = self.posterior_input.weight.split([self.sizes.deter, tokens.shape[-1]], 1)
        offsets = F.linear(tokens, from_token, self.posterior_input.bias).float()
        if rssm_kernels.supports(self.sizes, first.numel(), drives, offsets, deter, stoch, uniform, from_deter):
            posterior = rssm_kernels.Posterior(from_deter, *self.posterior_output.parameters())
            shape, start = (self.sizes, self.unimix), (deter, stoch)
            return rssm_kernels.observe(
                shape, self._core(weights), posterior, drives, offsets, keep[..., 0], start, uniform
            )
        latents: list[Latent] = []
        for t in range(tokens.shape[1]):
            kept, drive, offset, latent_noise = (whole[:, t] for whole in (keep, drives, offsets, uniform))
            latents.append(self._posterior_step(deter, stoch, kept, drive, offset, latent_noise, weights, from_deter))
            deter, stoch = latents[t].deter, latents[t].stoch
        return stack(latents)

    @compiled
    def _posterior_step(
        self,
        deter: Float[Tensor, "B D"],
        stoch: Float[Tensor, "B S C"],
        keep: Float[Tensor, "B 1"],
        drive: Float[Tensor, "B D"],
        offset: Float[Tensor, "B h"],
        uniform: Float[Tensor, "B S"],
        weights: CoreWeights,
        from_deter: Float[Tensor, "h D"],
    ) -> Latent:
        """One step of `observe`. The posterior's first layer is ``from_deter`` and, from the token, ``offset``."""
        deter = self.core(deter * keep, stoch * keep[..., None], drive, weights)
        logits = self.groups(self.posterior_output(offset + F.linear(deter, from_deter)).float())
        return Latent(deter, self.sample(logits, uniform), logits)

    def prior_logits(self, deter: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch S C"]:
        """The prior's logits: what the model expects before it sees."""
        return self.groups(self.prior(deter))

    def prior_step(self) -> Callable[[Latent, Tensor, Tensor], Latent]:
        """One step without an observation, with everything prepared that the steps of a dream share.

        The function takes a latent [N, ...], an action [N, A] and uniform numbers [N, S].
        """
        weights = self.weights()

        def step(latent: Latent, action: Tensor, uniform: Tensor) -> Latent:
            return self._prior_step(latent.deter.contiguous(), latent.stoch.contiguous(), action, uniform, weights)

        return step

    @compiled
    def _prior_step(
        self,
        deter: Float[Tensor, "N D"],
        stoch: Float[Tensor, "N S C"],
        action: Float[Tensor, "N A"],
        uniform: Float[Tensor, "N S"],
        weights: CoreWeights,
    ) -> Latent:
        """One step of `prior_step`."""
        deter = self.core(deter, stoch, self.drive(action, weights), weights)
        logits = self.prior_logits(deter)
        return Latent(deter, self.sample(logits, uniform), logits)

    def imagine(
        self,
        actor: MLP,
        distribution: ActionDistribution,
        start: Latent,
        target: Float[Tensor, "N W"],
        action_noise: Float[Tensor, "H N Z"],
        latent_noise: Float[Tensor, "H N S"],
    ) -> tuple[Latent, Float[Tensor, "N H P"], Float[Tensor, "N H A"]]:
        """Many steps of `prior_step` with the actions of a policy between them, as one native call.

        The policy sees ``target`` beside the features of every state.
        """
        weights = self.weights()
        return rssm_kernels.dream(
            (self.sizes, self.unimix),
            self._core(weights),
            self._prior(),
            self._drive(weights),
            (actor.dense, distribution),
            start,
            target,
            action_noise,
            latent_noise,
        )

    @torch.no_grad()
    def walk(self, start: Latent, action: Float[Tensor, "N H A"], latent_noise: Float[Tensor, "H N S"]) -> Latent:
        """Many steps of `prior_step` with actions that are given: the points [N, H+1, ...], the start among them."""
        tensors = *start.fields, action, latent_noise, self.gates.bias
        if rssm_kernels.supports_dream(self.sizes, latent_noise.shape[:2].numel(), [], *tensors):
            weights = self.weights()
            prior, drive = self._prior(), self._drive(weights)
            return rssm_kernels.walk(
                (self.sizes, self.unimix), self._core(weights), prior, drive, start, action, latent_noise
            )
        points, step = [start], self.prior_step()
        for taken, noise in zip(action.unbind(1), latent_noise, strict=True):
            points.append(step(points[-1], taken, noise))
        return stack(points)

    def _core(self, weights: CoreWeights) -> rssm_kernels.Core:
        """The parameters of `core` as the native kernels take them."""
        parameters = [*self.from_deter.parameters(), *self.from_stoch.parameters()]
        parameters += [weights.recurrent, weights.deter, weights.stoch, self.mix_norm.scale]
        return rssm_kernels.Core(*parameters, *self.gates.parameters())

    def _prior(self) -> rssm_kernels.Prior:
        return rssm_kernels.Prior(*self.prior.parameters())

    def _drive(self, weights: CoreWeights) -> rssm_kernels.Drive:
        return rssm_kernels.Drive(self.from_action.dense[0], weights.action, self.mix.bias)
