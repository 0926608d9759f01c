"""What each level of the behavior sees of a dream: pure functions from `Dream` to `Rollout`.

As published, an edge weighs the product of discounts and continue probabilities up to the state where it begins, that
state included: ``weight_t = prod_{k<=t} discount * continue_k``. All levels share this one weight; it is never
restarted where a goal changes, so that nobody learns from what follows an imagined death.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from reverie.behavior.streams import Stream
from reverie.types import Dream, Rollout


def continue_discount(dream: Dream, discount: float) -> Float[Tensor, "N points"]:
    """The discount times the probability to go on, at every point."""
    return (discount * dream.continues).clamp(max=1.0)


def reach_weight(dream: Dream, discount: float) -> Float[Tensor, "N H"]:
    """The weight of every edge."""
    return torch.cumprod(continue_discount(dream, discount), 1)[:, :-1]


def end_discount(dream: Dream, discount: float) -> Float[Tensor, "N points"]:
    """The discount times the probability to end, at every point."""
    return (discount - continue_discount(dream, discount)).clamp(min=0.0)


def all_end(streams: Mapping[str, Stream]) -> bool:
    """Whether no stream goes on after an episode's end."""
    return all(stream.episodic for stream in streams.values())


def worker(dream: Dream, streams: Mapping[str, Stream], discount: float) -> Rollout:
    """The level that acts: one decision per edge, one rollout per goal. ``discount`` is that of the weights.

    Each rollout sees its own goal at every point, the last included, where the next goal is already in force. Without a
    manager the only rollout is the whole dream.
    """
    features, pieces = dream.latent.features, dream.goal.target.shape[1] - 1
    length = dream.action.shape[1] // pieces

    def cut(edges: Tensor) -> Tensor:
        return edges.unflatten(1, (pieces, length)).flatten(0, 1)

    # Points 0..K of each piece: [N, M, F, K+1] -> [N M, K+1, F].
    points = features.unfold(1, length + 1, length).movedim(2, -1).flatten(0, 1) if pieces > 1 else features
    target = dream.goal.target[:, :-1].flatten(0, 1)[:, None].expand(-1, length + 1, -1)
    edges = [cut(continue_discount(dream, stream.discount)[:, 1:]) for stream in streams.values()]
    ends = [cut(end_discount(dream, stream.discount)[:, 1:]) for stream in streams.values() if not all_end(streams)]
    return Rollout(
        action=cut(dream.action),
        inputs=torch.cat([points, target], -1) if target.shape[-1] else points,
        policy=cut(dream.policy),
        logprob=cut(dream.logprob),
        reward=torch.stack([cut(dream.reward[name]) for name in streams], -1),
        discount=torch.stack(edges, -1),
        weight=cut(reach_weight(dream, discount)),
        sure_discount=[stream.discount for stream in streams.values()],
        ended=torch.stack(ends, -1) if ends else None,
        after=torch.cat([features[:, -1], dream.goal.target[:, -1]], -1) if target.shape[-1] else None,
    )


def manager(dream: Dream, streams: Mapping[str, Stream], discount: float) -> Rollout:
    """The level that sets goals: one decision per K steps, with the exact credit of a semi-Markov process.

    ``R_i = sum_j (prod_{l<=j} discount * continue_{iK+l}) r_{iK+j}``, and the discount of the whole edge is that of its
    K steps together. An end within them counts by the time until then. Dreams whose goals were given do not count.
    """
    count = dream.goal_policy.shape[1]
    length = dream.action.shape[1] // count
    rewards, discounts, ends = [], [], []
    for name, stream in streams.items():
        steps = continue_discount(dream, stream.discount)[:, 1:].unflatten(1, (count, length))
        before = torch.cat([torch.ones_like(steps[..., :1]), steps[..., :-1].cumprod(-1)], -1)
        rewards.append((before * dream.reward[name].unflatten(1, (count, length))).sum(-1))
        discounts.append(steps.prod(-1))
        if not all_end(streams):
            ending = end_discount(dream, stream.discount)[:, 1:].unflatten(1, (count, length))
            ends.append((before * ending).sum(-1))
    sure = [stream.discount**length for stream in streams.values()]
    return _decisions(dream, (rewards, discounts, ends), sure, discount)


def director(dream: Dream, streams: Mapping[str, Stream], discount: float) -> Rollout:
    """The manager of Director (Hafner et al. 2022): the mean reward of each goal's steps, discounted per goal."""
    count = dream.goal_policy.shape[1]
    length = dream.action.shape[1] // count
    alive = dream.continues[:, :-1].unflatten(1, (count, length)).cumprod(-1)
    through = dream.continues[:, 1:].unflatten(1, (count, length)).prod(-1)
    rewards = [(alive * dream.reward[name].unflatten(1, (count, length))).mean(-1) for name in streams]
    discounts = [DIRECTOR_DISCOUNT * through for _ in streams]
    ends = [DIRECTOR_DISCOUNT * (1.0 - through) for _ in streams if not all_end(streams)]
    sure = [DIRECTOR_DISCOUNT] * len(streams)
    return _decisions(dream, (rewards, discounts, ends), sure, discount)


DIRECTOR_DISCOUNT = 0.99
"""Per goal."""


def _decisions(
    dream: Dream, edges: tuple[list[Tensor], ...], sure_discount: Sequence[float], discount: float
) -> Rollout:
    """``edges`` are rewards, discounts and, where a stream goes on after them, ends; each by stream."""
    rewards, discounts, ends = edges
    code, length = dream.goal.code[:, :-1], dream.action.shape[1] // dream.goal_policy.shape[1]
    return Rollout(
        action=code,
        inputs=dream.latent.features[:, ::length],
        policy=dream.goal_policy,
        logprob=dream.goal_logprob,
        reward=torch.stack(rewards, -1),
        discount=torch.stack(discounts, -1),
        weight=reach_weight(dream, discount)[:, ::length] * dream.own[:, None],
        own=dream.own,
        sure_discount=sure_discount,
        ended=torch.stack(ends, -1) if ends else None,
    )
