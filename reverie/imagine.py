"""The dream: a behavior acts inside the world model, and nothing of it keeps a gradient.

Policy and dynamics take turns step by step; reward and continue head are evaluated once over all points.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from reverie.behavior.behavior import Behavior
from reverie.behavior.streams import TASK
from reverie.compilation import compiled
from reverie.nets.distributions import ActionDistribution
from reverie.nets.layers import MLP
from reverie.types import Dream, Goal, Latent, join, stack
from reverie.world import rssm_kernels
from reverie.world.model import MultimodalWorldModel


@runtime_checkable
class Actor(Protocol):
    """The level that acts: a network, and what its outputs are the parameters of."""

    distribution: ActionDistribution

    @property
    def actor(self) -> nn.Module: ...


@torch.no_grad()
def imagine(
    world: MultimodalWorldModel, behavior: Behavior, start: Latent, horizon: int, generator: torch.Generator
) -> Dream:
    """Rolls ``horizon`` steps from every start [N, ...] with sampled goals, actions and latents.

    Every dream begins with a decision of the manager, if there is one; the last decision is never acted upon.
    """
    count, device, worker = start.deter.shape[0], start.deter.device, behavior.worker
    decisions, distribution = behavior.decisions(horizon), worker.distribution
    noise = torch.rand(horizon, count, distribution.noise + world.sizes.stoch, generator=generator, device=device)
    goal_noise = torch.rand(decisions + 1, count, behavior.noise, generator=generator, device=device)
    own, given = behavior.assign(start, generator)
    latents, policies, actions, goals, goal_policies, here = [], [], [], [], [], start
    for uniform, steps in zip(goal_noise, [*noise.split(horizon // decisions), None], strict=True):
        goal, goal_policy = behavior.decide(here, uniform)
        goals.append(goal.where(own, given))
        if steps is None:
            break
        action_noise, latent_noise = steps.split([distribution.noise, world.sizes.stoch], -1)
        latent, policy, action = roll(world, worker, here, goals[-1].target, action_noise, latent_noise)
        here = latent.at(-1)
        latents.append(latent.since(1) if latents else latent)
        policies.append(policy)
        actions.append(action)
        goal_policies.append(goal_policy)
    latent, policy, action = join(latents), torch.cat(policies, 1), torch.cat(actions, 1)
    del latents, here  # their memory is needed below
    goal = Goal(*(torch.stack(fields, 1) for fields in zip(*(goal.fields for goal in goals), strict=True)))
    features, goal_policy = latent.features, torch.stack(goal_policies, 1)
    return Dream(
        latent=latent,
        action=action,
        policy=policy,
        logprob=distribution.logprob(policy, action),
        continues=world.continues(features),
        reward={TASK: world.reward(features)[:, 1:]},
        goal=goal,
        goal_policy=goal_policy,
        goal_logprob=behavior.goal_logprob(goal_policy, goal.code[:, :-1]),
        own=own,
    )


@torch.no_grad()
def roll(
    world: MultimodalWorldModel,
    worker: Actor,
    start: Latent,
    target: Float[Tensor, "N W"],
    action_noise: Float[Tensor, "H N Z"],
    latent_noise: Float[Tensor, "H N S"],
) -> tuple[Latent, Float[Tensor, "N H P"], Float[Tensor, "N H A"]]:
    """Policy and dynamics by turns: the points [N, H+1, ...], the policy's parameters and the actions of the edges.

    The policy sees ``target`` beside every state. Uniform numbers decide about actions and latents.
    """
    policy, distribution = worker.actor, worker.distribution
    tensors = *start.fields, action_noise, latent_noise, world.rssm.gates.bias
    states = latent_noise.shape[:2].numel()
    if (
        isinstance(policy, MLP)
        and distribution.standard
        and rssm_kernels.supports_dream(world.sizes, states, policy.dense, *tensors)
    ):
        return world.rssm.imagine(policy, distribution, start, target, action_noise, latent_noise)
    step = world.rssm.prior_step()
    latents, policies, actions = [start], [], []
    for t in range(len(latent_noise)):
        parameters, action = draw(policy, distribution, latents[t], target, action_noise[t])
        policies.append(parameters)
        actions.append(action)
        latents.append(step(latents[t], actions[t], latent_noise[t]))
    return stack(latents).once(), torch.stack(policies, 1), torch.stack(actions, 1)


@compiled
def draw(
    policy: nn.Module,
    distribution: ActionDistribution,
    latent: Latent,
    target: Float[Tensor, "N W"],
    uniform: Float[Tensor, "N Z"],
) -> tuple[Float[Tensor, "N P"], Float[Tensor, "N A"]]:
    """The policy's parameters in a state, and the action that uniform numbers draw from them."""
    parameters = policy(torch.cat([latent.features, target], -1))
    return parameters, distribution.sample(parameters, uniform)


@torch.no_grad()
def pursue(
    world: MultimodalWorldModel,
    behavior: Behavior,
    start: Latent,
    code: Float[Tensor, "N G"],
    uniform: Float[Tensor, "K N noise"],
) -> Latent:
    """The points [N, K+1, ...] to which the worker comes from ``start`` while it acts for the goals of these codes."""
    noise = uniform.split([behavior.worker.distribution.noise, world.sizes.stoch], -1)
    return roll(world, behavior.worker, start, behavior.decode(code).target, *noise)[0]


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
    latent_noise = torch.rand(batch, steps, world.sizes.stoch, generator=generator, device=first.device)
    seen = {key: value[:, :context] for key, value in obs.items()}
    start, step = world.initial(batch), world.rssm.prior_step()
    observed = world.rssm.observe(
        world.encode(seen),
        previous_action[:, :context],
        first[:, :context],
        start.deter,
        start.stoch,
        latent_noise[:, :context],
    )
    latents = [observed.at(t) for t in range(context)]
    for t in range(context, steps):
        latents.append(step(latents[-1], previous_action[:, t], latent_noise[:, t]))
    return world.decode(stack(latents))
