"""Heads that predict a distribution over bins, as native kernels: its mean, and its cross-entropies."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import Array, c_float
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from reverie import native
from reverie.native import BLOCK
from reverie.native.bindings import layers_of, require
from reverie.native.layers import Dense


def mean(
    layers: Sequence[Dense], x: Float[Tensor, "*batch I"], bins: Float[Tensor, "K"], groups: int
) -> Float[Tensor, "*batch Q"]:
    """The expected bin of each of ``groups`` distributions that layers make of x, or that x is, without layers."""
    x, outputs = x.contiguous(), len(layers[-1][0]) if layers else x.shape[-1]
    require(bins=(bins, (outputs // groups,)))
    if layers:
        require(weight=(layers[0][0], (len(layers[0][0]), x.shape[-1])))
    found = x.new_empty(*x.shape[:-1], groups)
    task = x, x.shape[-1], bins, len(bins), found, x.numel() // x.shape[-1]
    native.call("two_hot_mean", layers_of(layers), len(layers), *task, BLOCK)
    return found


def loss(
    logits: Float[Tensor, "*batch K"],
    targets: Float[Tensor, "n *batch"],
    weights: Sequence[float],
    bins: Float[Tensor, "K"],
) -> Float[Tensor, "*batch"]:
    """Cross-entropies against several targets, which need no gradient, summed by weight."""
    return _Loss.apply(logits, targets, weights, bins)  # type: ignore[no-any-return]


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, weights: Sequence[float], bins: Tensor) -> Tensor:
        logits = logits.contiguous()
        require(targets=(targets, (len(weights), *logits.shape[:-1])), bins=(bins, (logits.shape[-1],)))
        entropy, normaliser = logits.new_empty(2, *logits.shape[:-1])
        ctx.weights = _numbers(weights)
        ctx.save_for_backward(logits, targets, bins, normaliser)
        task = targets, ctx.weights, len(weights), bins
        native.call("two_hot_loss", logits, *task, entropy, normaliser, *_size(logits))
        return entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        logits, targets, bins, normaliser = ctx.saved_tensors
        slope, task = torch.empty_like(logits), (targets, ctx.weights, len(ctx.weights), bins)
        native.call("two_hot_loss_back", gradients[0].contiguous(), logits, *task, normaliser, slope, *_size(logits))
        return slope, None, None, None


def _numbers(weights: Sequence[float]) -> Array[c_float]:
    return (c_float * len(weights))(*weights)


def _size(logits: Tensor) -> tuple[int, int]:
    """Rows and columns."""
    return logits.numel() // logits.shape[-1], logits.shape[-1]
