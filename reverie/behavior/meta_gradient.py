"""Meta-gradients of a policy's objective: a step on some dreams, judged on others (Xu et al. 2018, arXiv 1805.09801).

Of the policy's parameters theta and the numbers eta of its objective L:

    theta' = theta - rate * u(g)    with g = grad L(theta, eta)
    d J(theta') / d eta = -rate * v . dg / d eta    with v = (du / dg) grad J(theta')

J is the objective with the numbers as they are configured, without entropy, on dreams that the step has not seen. The
step is not taken. ``du / dg`` is a diagonal, so that no second derivative of a network is needed: an objective is a sum
over edges of advantage times log-probability, and its derivative by a number, ``dg / d eta``, is the gradient of the
same sum with the derivative of the advantages.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import functional_call

from reverie.behavior.objective import CONFIGURED
from reverie.optim import Optimizer
from reverie.types import Metrics, Rollout

if TYPE_CHECKING:
    from reverie.behavior.actor_critic import ActorCritic
    from reverie.behavior.objective import LearnedObjective


def meta_gradient(
    optimizer: Optimizer,
    loss: Float[Tensor, ""],
    slopes: Sequence[Float[Tensor, ""]],
    judge: Callable[[list[Tensor]], Float[Tensor, ""]],
) -> Float[Tensor, "P"]:
    """Of ``judge``, a loss of the parameters after a step on ``loss``, by each number that the loss depends on.

    ``slopes`` are the derivatives of the loss by these numbers, with gradients for the parameters of ``optimizer``.
    """
    parameters = optimizer.parameters

    def flat(of: Tensor) -> Tensor:
        return torch.cat([g.flatten() for g in torch.autograd.grad(of, parameters, retain_graph=True)])

    after, pull = optimizer.look_ahead(flat(loss))
    after.requires_grad_()
    pieces = after.split([parameter.numel() for parameter in parameters])
    outer = judge([piece.view_as(parameter) for piece, parameter in zip(pieces, parameters, strict=True)])
    pulled = pull(torch.autograd.grad(outer, after)[0])
    return -optimizer.rate * torch.stack([pulled @ flat(slope) for slope in slopes])


def learn_objective(
    level: ActorCritic,
    objective: LearnedObjective,
    rollout: Rollout,
    optimizer: Optimizer,
    generator: torch.Generator,
    allowed: Bool[Tensor, ""],
) -> Metrics:
    """Moves the learned numbers of a level, where ``allowed``, by what one step of its policy would come to.

    Returns where they are. A single dream has no other to be judged on, and moves nothing.
    """
    if dream_count(rollout) > 1:
        with torch.autocast(rollout.weight.device.type, enabled=False):
            objective.move(objective_slope(level, objective, rollout, optimizer, generator), allowed)
    numbers = objective.numbers()
    level.entropy_weight.copy_(numbers.get("entropy", level.entropy_weight))
    return {f"meta/{name}_{level.name}": number for name, number in numbers.items()}


def objective_slope(
    level: ActorCritic, objective: LearnedObjective, rollout: Rollout, optimizer: Optimizer, generator: torch.Generator
) -> Float[Tensor, "P"]:
    """The derivative of the judge's loss by the position of every learned number."""
    inner, outer = halves(rollout, objective.options.dreams, generator)
    position, actor = objective.position, level.actor
    with torch.no_grad():
        values = level.point_values(inner)
        advantage, advantage_slopes = tangents(
            lambda at: level.advantage(inner, values, objective.numbers(at)), position
        )
        share, share_slopes = tangents(lambda at: objective.numbers(at).get("entropy", level.entropy_weight), position)
        judged = level.advantage(outer, level.point_values(outer), CONFIGURED)

    policy = level.policy(inner.inputs[:, :-1])
    logprob = level.distribution.logprob(policy, inner.action)
    entropy = level.distribution.entropy(policy)

    def weighed(advantage: Tensor, share: Tensor) -> Tensor:
        return -(inner.weight * (advantage * logprob + share * entropy)).mean()

    def judge(parameters: list[Tensor]) -> Tensor:
        named = dict(zip((name for name, _ in actor.named_parameters()), parameters, strict=True))
        policy = functional_call(actor, named, outer.inputs[:, :-1])
        ratio = torch.exp(level.distribution.logprob(policy, outer.action) - outer.logprob)
        return -(outer.weight * ratio * judged).mean()

    slopes = [weighed(*slope) for slope in zip(advantage_slopes, share_slopes, strict=True)]
    return meta_gradient(optimizer, weighed(advantage, share), slopes, judge)


def tangents(function: Callable[[Tensor], Tensor], point: Float[Tensor, "P"]) -> tuple[Tensor, list[Tensor]]:
    """The value of a function, and its derivative by every coordinate of the point."""
    found = []
    for direction in torch.eye(len(point), device=point.device):
        with forward_ad.dual_level():
            value, slope = forward_ad.unpack_dual(function(forward_ad.make_dual(point, direction)))
            found.append(torch.zeros_like(value) if slope is None else slope)
    return function(point), found


def dream_count(rollout: Rollout) -> int:
    """How many dreams the rollouts are pieces of."""
    return len(rollout.weight) if rollout.after is None else len(rollout.after)


def halves(rollout: Rollout, dreams: int, generator: torch.Generator) -> tuple[Rollout, Rollout]:
    """The rollouts of so many dreams, and those of as many others; fewer where there are not enough."""
    count = dream_count(rollout)
    pieces = torch.arange(len(rollout.weight), device=rollout.weight.device).view(count, -1)
    drawn = torch.randperm(count, generator=generator, device=pieces.device)
    dreams = min(dreams, count // 2)
    inner, outer = (part(rollout, pieces, drawn[begin : begin + dreams]) for begin in (0, dreams))
    return inner, outer


def part(rollout: Rollout, pieces: Int[Tensor, "N pieces"], dreams: Int[Tensor, "n"]) -> Rollout:
    """The rollouts of some dreams. ``pieces`` says which rollouts are those of each dream."""
    rows = pieces[dreams].flatten()
    tensors = {
        name: value[rows] for name, value in vars(rollout).items() if isinstance(value, Tensor) and name != "after"
    }
    return replace(rollout, **tensors, after=None if rollout.after is None else rollout.after[dreams])
