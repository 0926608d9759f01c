"""Heads that predict a number as a distribution over bins (DreamerV3, eq. 10), on the fastest path there is."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from reverie import functional, native
from reverie.native import two_hot
from reverie.native.layers import supports_stack
from reverie.nets.layers import MLP


def predict(head: MLP, x: Float[Tensor, "*batch I"], bins: Float[Tensor, "K"]) -> Float[Tensor, "*batch Q"]:
    """The expected bin of each of the Q distributions that a head ends with."""
    layers = head.dense
    _, bias, scale = layers[-1]
    groups, rest = divmod(len(bias), len(bins))
    whole = scale is None and not rest and not torch.is_grad_enabled()
    if whole and supports_stack(x, layers) and native.supports(bins, kernel="two_hot_mean"):
        return two_hot.mean(layers, x, bins, groups)
    return mean(head(x).unflatten(-1, (-1, len(bins))), bins)


def mean(logits: Float[Tensor, "*batch K"], bins: Float[Tensor, "K"]) -> Float[Tensor, "*batch"]:
    """The expected bin."""
    trained = torch.is_grad_enabled() and logits.requires_grad
    if trained or not native.supports(logits, bins, kernel="two_hot_mean"):
        return functional.two_hot_mean(logits, bins)
    return two_hot.mean([], logits, bins, groups=1).squeeze(-1)


def loss(
    logits: Float[Tensor, "*batch K"],
    targets: Sequence[Float[Tensor, "*batch"]],
    weights: Sequence[float],
    bins: Float[Tensor, "K"],
) -> Float[Tensor, "*batch"]:
    """Cross-entropies against several targets, which need no gradient, summed by weight."""
    if native.supports(logits, bins, *targets, kernel="two_hot_loss"):
        return two_hot.loss(logits, torch.stack(tuple(targets)), weights, bins)
    return functional.two_hot_loss(logits, targets, weights, bins)
