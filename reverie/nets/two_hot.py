"""Heads that predict a number as a distribution over bins (DreamerV3, eq. 10), on the fastest path there is."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from reverie import functional, native
from reverie.native import BLOCK
from reverie.native.layers import Dense, structure, supports_stack
from reverie.nets.layers import MLP


def predict(head: MLP, x: Float[Tensor, "*batch I"], bins: Float[Tensor, "K"]) -> Float[Tensor, "*batch Q"]:
    """The expected bin of each of the Q distributions that a head ends with."""
    layers = head.dense
    _, bias, scale = layers[-1]
    groups, rest = divmod(len(bias), len(bins))
    whole = scale is None and not rest and not torch.is_grad_enabled()
    if whole and supports_stack(x, layers) and native.supports(bins):
        return _expected(layers, x, bins, groups)
    return mean(head(x).unflatten(-1, (-1, len(bins))), bins)


def mean(logits: Float[Tensor, "*batch K"], bins: Float[Tensor, "K"]) -> Float[Tensor, "*batch"]:
    """The expected bin."""
    if not native.supports(logits, bins) or (torch.is_grad_enabled() and logits.requires_grad):
        return functional.two_hot_mean(logits, bins)
    return _expected([], logits, bins, 1).squeeze(-1)


def _expected(layers: Sequence[Dense], x: Tensor, bins: Tensor, groups: int) -> Float[Tensor, "*batch Q"]:
    """Of the logits that layers make of x, or without layers, of x."""
    x = x.contiguous()
    found = x.new_empty(*x.shape[:-1], groups)
    task = x, x.shape[-1], bins, len(bins), found, ctypes.c_int64(x.numel() // x.shape[-1])
    native.call("two_hot_mean", structure(layers), len(layers), *task, BLOCK)
    return found


def loss(
    logits: Float[Tensor, "*batch K"],
    targets: Sequence[Float[Tensor, "*batch"]],
    weights: Sequence[float],
    bins: Float[Tensor, "K"],
) -> Float[Tensor, "*batch"]:
    """Cross-entropies against several targets, which need no gradient, summed by weight."""
    if native.supports(logits, bins, *targets):
        return _Loss.apply(logits, torch.stack(tuple(targets)), weights, bins)  # type: ignore[no-any-return]
    return functional.two_hot_loss(logits, targets, weights, bins)


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, weights: Sequence[float], bins: Tensor) -> Tensor:
        logits = logits.contiguous()
        entropy, normaliser = logits.new_empty(2, *logits.shape[:-1])
        ctx.weights = weights
        ctx.save_for_backward(logits, targets, bins, normaliser)
        native.call("two_hot_loss", logits, *_task(targets, weights, bins), entropy, normaliser, *_size(logits))
        return entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        logits, targets, bins, normaliser = ctx.saved_tensors
        slope, task = torch.empty_like(logits), _task(targets, ctx.weights, bins)
        native.call("two_hot_loss_back", gradients[0].contiguous(), logits, *task, normaliser, slope, *_size(logits))
        return slope, None, None, None


def _task(targets: Tensor, weights: Sequence[float], bins: Tensor) -> tuple[Any, ...]:
    return targets, (ctypes.c_float * len(weights))(*weights), len(weights), bins


def _size(logits: Tensor) -> tuple[ctypes.c_int64, int]:
    return ctypes.c_int64(logits.numel() // logits.shape[-1]), logits.shape[-1]
