"""The layers of `reverie.nets` as native kernels: RMS norm with SiLU, and whole stacks of layers."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import Array, c_void_p
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from reverie import native
from reverie.native import BLOCK, LARGEST_MATRIX
from reverie.native.bindings import layers_of, pointer, require

MANY = 512
"""Rows that repay packing even a large matrix, where kernels are `native.faster_than_torch`."""
WORTH_A_THREAD = 128
"""Rows for which another thread is worth it."""
MOST_SUMMED = 2**26
"""Numbers that all threads together sum in memory of their own."""
LARGEST_SUMMED = 2**21
"""Numbers in a matrix that torch multiplies everywhere: many threads would have no room for such sums."""


class _NormSiLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor) -> Tensor:
        x = x.contiguous()
        if ctx is not None:
            ctx.save_for_backward(x, scale)
        y, width = torch.empty_like(x), x.shape[-1]
        require(scale=(scale, (width,)))
        native.call("norm_silu_forward", x, scale, y, x.numel() // width, width)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        x, scale = ctx.saved_tensors
        dy, dx, width, parts = gradients[0].contiguous(), torch.empty_like(x), x.shape[-1], torch.get_num_threads()
        dscale = x.new_zeros(parts, width)
        native.call("norm_silu_backward", dy, x, scale, dx, dscale, x.numel() // width, width, parts)
        return dx, dscale.sum(0)


def norm_silu(x: Float[Tensor, "*batch W"], scale: Float[Tensor, "W"]) -> Float[Tensor, "*batch W"]:
    """``silu(rms_norm(x) * scale)`` in one pass over memory; call it where `native.supports` says so."""
    if torch.is_grad_enabled() and (x.requires_grad or scale.requires_grad):
        return _NormSiLU.apply(x, scale)  # type: ignore[no-any-return]
    return _NormSiLU.forward(None, x, scale)


def _parts(rows: int, numbers: int) -> int:
    """How many threads share out the rows, each with sums of its own for so many numbers."""
    return max(1, min(torch.get_num_threads(), rows // WORTH_A_THREAD, MOST_SUMMED // numbers))


# --- Stacks of layers ---

Dense = tuple[Tensor, Tensor, Tensor | None]
"""Weight [O, I], bias [O] and, where norm and SiLU follow, their scale [O]."""


class _Stack(torch.autograd.Function):
    """Its inputs: the number of scales, x, weights and biases by turns, and the scales of the first layers."""

    @staticmethod
    def forward(ctx: Any, scales: int, x: Tensor, *parameters: Tensor) -> Tensor:
        layers, keep, bf16 = _layers(scales, parameters), ctx is not None, native.uses_bf16()
        x = x.contiguous()
        rows = x.numel() // x.shape[-1]
        require(weight=(parameters[0], (len(parameters[1]), x.shape[-1])))
        outputs = [len(bias) for _, bias, _ in layers]
        first = 0 if keep else len(layers) - 1  # without a gradient to come, nothing but the result is kept
        before = [x.new_empty(rows if i >= first else 0, width) for i, width in enumerate(outputs)]
        after = [x.new_empty(rows if i >= first else 0, width) for i, width in enumerate(outputs[:scales])]
        task = layers_of(layers, before, after), len(layers), x, rows, BLOCK, int(keep)
        native.call("mlp_forward", *task, bf16=bf16)
        if keep:
            ctx.scales, ctx.depth, ctx.bf16 = scales, len(layers), bf16
            ctx.save_for_backward(x, *before, *after, *parameters)
        return (before if len(before) > len(after) else after)[-1].view(*x.shape[:-1], outputs[-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        x, *rest = ctx.saved_tensors
        depth, scales = ctx.depth, ctx.scales
        before, after, parameters = rest[:depth], rest[depth : depth + scales], rest[depth + scales :]
        layers, rows = _layers(scales, parameters), len(before[0])
        dy = gradients[0].reshape(rows, -1).contiguous()
        dx = torch.empty_like(x) if ctx.needs_input_grad[1] else None
        needed = ctx.needs_input_grad[2:]
        pairs = [torch.empty_like(entry) if wanted else None for entry, wanted in zip(parameters, needed, strict=True)]
        d_scales, pairs = [torch.empty_like(scale) for scale in parameters[2 * depth :]], pairs[: 2 * depth]
        places = (_places(tensors) for tensors in (pairs[0::2], pairs[1::2], d_scales))
        parts = _parts(rows, sum(weight.numel() for weight, _, _ in layers))
        task = layers_of(layers, before, after), depth, x, dy, dx, *places, rows, parts
        native.call("mlp_backward", *task, bf16=ctx.bf16)
        return None, dx, *pairs, *d_scales


def _places(tensors: Sequence[Tensor | None]) -> Array[c_void_p]:
    """An array of pointers, NULL for None."""
    return (c_void_p * len(tensors))(*(None if tensor is None else pointer(tensor) for tensor in tensors))


def _layers(scales: int, parameters: Sequence[Tensor]) -> list[Dense]:
    depth = (len(parameters) - scales) // 2
    weights, biases = parameters[0 : 2 * depth : 2], parameters[1 : 2 * depth : 2]
    given = [*parameters[2 * depth :], *[None] * (depth - scales)]
    return list(zip(weights, biases, given, strict=True))


def supports_stack(x: Tensor, layers: Sequence[Dense]) -> bool:
    """Whether `stack` can take these layers, and is the faster way.

    In bf16 the number of rows does not matter: torch rounds in other places, and what acts in a dream must be what
    learns from it.
    """
    weights = [weight for weight, _, _ in layers]
    if not (native.supports(x, *weights, kernel="stack") and x.shape[-1] == weights[0].shape[1] and fits(layers)):
        return False
    if native.uses_bf16() or (native.faster_than_torch() and x.numel() >= MANY * x.shape[-1]):
        return True
    return max(weight.numel() for weight in weights) <= LARGEST_MATRIX


def fits(layers: Sequence[Dense]) -> bool:
    """Whether the matrices are small enough that threads can sum gradients of their own."""
    return all(weight.numel() <= LARGEST_SUMMED for weight, _, _ in layers)


def stack(x: Float[Tensor, "*batch I"], layers: Sequence[Dense]) -> Float[Tensor, "*batch O"]:
    """All layers in one pass; call it where `supports_stack`. Only the last layer may lack a scale."""
    pairs = [tensor for weight, bias, _ in layers for tensor in (weight, bias)]
    scales = [scale for _, _, scale in layers if scale is not None]
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, *pairs, *scales)):
        return _Stack.apply(len(scales), x, *pairs, *scales)  # type: ignore[no-any-return]
    return _Stack.forward(None, len(scales), x, *pairs, *scales)
