"""The dream: a behavior acts inside the world model, and nothing of it keeps a gradient.

Policy and dynamics take turns step by step; the heads that judge the dream are evaluated once over all of its points.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from reverie.nets.distributions import ActionDistribution
from reverie.types import Dream, Latent, stack
from reverie.world.model import MultimodalWorldModel


@runtime_checkable
class Actor(Protocol):
    """What a dream needs of a behavior."""

    distribution: ActionDistribution

    def policy(self, inputs: Float[Tensor, "*batch F"]) -> Float[Tensor, "*batch P"]: ...


@torch.no_grad()
def imagine(
    world: MultimodalWorldModel, actor: Actor, start: Latent, horizon: int, generator: torch.Generator
) -> Dream:
    """Rolls ``horizon`` steps from every start [N, ...] with sampled actions and sampled latents."""
    count, device = start.deter.shape[0], start.deter.device
    distribution, weights = actor.distribution, world.rssm.weights()
    noise = torch.rand(horizon, count, distribution.noise + world.sizes.stoch, generator=generator, device=device)
    choice, chance = noise.split([distribution.noise, world.sizes.stoch], -1)
    latents, policies, actions = [start], [], []
    for t in range(horizon):
        policies.append(actor.policy(latents[t].features))
        actions.append(distribution.sample(policies[t], choice[t]))
        latents.append(world.step(latents[t], actions[t], chance[t], weights))
    latent = stack(latents)
    features, policy, action = latent.features, torch.stack(policies, 1), torch.stack(actions, 1)
    return Dream(
        latent=latent,
        action=action,
        policy=policy,
        logprob=distribution.logprob(policy, action),
        continues=world.continues(features),
        reward={"extrinsic": world.reward(features[:, 1:])},
    )


@torch.no_grad()
def open_loop(
    world: MultimodalWorldModel,
    obs: Mapping[str, Tensor],
    previous_action: Float[Tensor, "B T A"],
    first: Bool[Tensor, "B T"],
    context: int,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """What the world model expects to see: ``context`` steps with open eyes, the rest from the actions alone.

    Returns every observation key [B, T, ...] in its own units and dtype.
    """
    batch, steps = first.shape
    chance = torch.rand(batch, steps, world.sizes.stoch, generator=generator, device=first.device)
    seen = {key: value[:, :context] for key, value in obs.items()}
    start, weights = world.initial(batch), world.rssm.weights()
    observed = world.rssm.observe(
        world.encode(seen),
        previous_action[:, :context],
        first[:, :context],
        start.deter,
        start.stoch,
        chance[:, :context],
    )
    latents = [observed.at(t) for t in range(context)]
    for t in range(context, steps):
        latents.append(world.step(latents[-1], previous_action[:, t], chance[:, t], weights))
    return world.show(stack(latents))
