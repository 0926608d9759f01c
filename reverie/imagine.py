"""The dream: a behavior acts inside the world model, and nothing of it keeps a gradient.

Policy and dynamics take turns step by step; the heads that judge the dream are evaluated once over all of its points.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from reverie.nets.distributions import ActionDistribution
from reverie.nets.layers import MLP
from reverie.types import Dream, Latent, stack
from reverie.world import scan
from reverie.world.model import MultimodalWorldModel


@runtime_checkable
class Actor(Protocol):
    """What a dream needs of a behavior."""

    distribution: ActionDistribution

    @property
    def actor(self) -> nn.Module: ...


@torch.no_grad()
def imagine(
    world: MultimodalWorldModel, actor: Actor, start: Latent, horizon: int, generator: torch.Generator
) -> Dream:
    """Rolls ``horizon`` steps from every start [N, ...] with sampled actions and sampled latents."""
    count, device = start.deter.shape[0], start.deter.device
    distribution = actor.distribution
    noise = torch.rand(horizon, count, distribution.noise + world.sizes.stoch, generator=generator, device=device)
    choice, chance = noise.split([distribution.noise, world.sizes.stoch], -1)
    latent, policy, action = roll(world, actor, start, choice, chance)
    features = latent.features
    return Dream(
        latent=latent,
        action=action,
        policy=policy,
        logprob=distribution.logprob(policy, action),
        continues=world.continues(features),
        reward={"extrinsic": world.reward(features[:, 1:])},
    )


@torch.no_grad()
def roll(
    world: MultimodalWorldModel,
    actor: Actor,
    start: Latent,
    choice: Float[Tensor, "H N Z"],
    chance: Float[Tensor, "H N S"],
) -> tuple[Latent, Float[Tensor, "N H P"], Float[Tensor, "N H A"]]:
    """Policy and dynamics by turns: the points [N, H+1, ...], the policy's parameters and the actions of the edges.

    Uniform numbers decide: ``choice`` about actions, ``chance`` about latents.
    """
    policy, distribution = actor.actor, actor.distribution
    tensors, states = (*start.fields, choice, chance, world.rssm.gates.bias), chance.shape[:2].numel()
    if isinstance(policy, MLP) and distribution.standard and scan.serves(world.sizes, states, *tensors):
        return world.rssm.dream(policy, distribution, start, choice, chance)
    step = world.rssm.dreamer()
    latents, policies, actions = [start], [], []
    for t in range(len(chance)):
        policies.append(policy(latents[t].features))
        actions.append(distribution.sample(policies[t], choice[t]))
        latents.append(step(latents[t], actions[t], chance[t]))
    return stack(latents), torch.stack(policies, 1), torch.stack(actions, 1)


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
    start, step = world.initial(batch), world.rssm.dreamer()
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
        latents.append(step(latents[-1], previous_action[:, t], chance[:, t]))
    return world.show(stack(latents))
