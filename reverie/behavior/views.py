"""What each level of the behavior sees of a dream: pure functions from `Dream` to `Rollout`."""

from __future__ import annotations

import torch

from reverie.types import Dream, Rollout


def whole(dream: Dream, discount: float) -> Rollout:
    """The flat view: every edge of the dream, one decision each.

    As published, an edge weighs as much as it is likely and undiscounted to be reached, the start's own continuation
    included: ``weight_t = prod_{k<=t} discount * continue_k``.
    """
    onward = (discount * dream.continues).clamp(max=1.0)
    return Rollout(
        action=dream.action,
        inputs=dream.latent.features,
        policy=dream.policy,
        logprob=dream.logprob,
        reward=dream.reward["extrinsic"],
        discount=onward[:, 1:],
        weight=torch.cumprod(onward, 1)[:, :-1],
    )
