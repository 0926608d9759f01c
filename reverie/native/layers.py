"""The layers of `reverie.nets` as native kernels: RMS norm with SiLU, and whole stacks of layers."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from reverie import native
from reverie.native import BLOCK

# --- RMS norm, then SiLU ---


class _NormSiLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor) -> Tensor:
        x = x.contiguous()
        ctx.save_for_backward(x, scale)
        y, width = torch.empty_like(x), x.shape[-1]
        native.call("norm_silu_forward", x, scale, y, ctypes.c_int64(x.numel() // width), width)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        x, scale = ctx.saved_tensors
        dy, dx, width, parts = gradients[0].contiguous(), torch.empty_like(x), x.shape[-1], torch.get_num_threads()
        dscale = x.new_zeros(parts, width)
        rows = ctypes.c_int64(x.numel() // width)
        native.call("norm_silu_backward", dy, x, scale, dx, dscale, rows, width, parts)
        return dx, dscale.sum(0)


def norm_silu(x: Float[Tensor, "*batch W"], scale: Float[Tensor, "W"]) -> Float[Tensor, "*batch W"]:
    """``silu(rms_norm(x) * scale)`` in one pass over memory where the kernels serve."""
    if native.serves(x, scale):
        return _NormSiLU.apply(x, scale)  # type: ignore[no-any-return]
    return F.silu(F.rms_norm(x, scale.shape, scale, eps=1e-4))


# --- Stacks of layers ---


class _Layer(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("weight", "bias", "scale", "before", "after")),
        *((name, ctypes.c_int) for name in ("inputs", "outputs")),
    ]


Dense = tuple[Tensor, Tensor, Tensor | None]
"""Weight [O, I], bias [O] and, where norm and SiLU follow, their scale [O]."""


class _MLP(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, keep: bool, scales: int, x: Tensor, *parameters: Tensor) -> Tensor:
        layers = _layers(scales, parameters)
        x = x.contiguous()
        rows = x.numel() // x.shape[-1]
        before = [x.new_empty(rows, len(bias)) for _, bias, _ in layers]
        after = [x.new_empty(rows, len(bias)) for _, bias, scale in layers if scale is not None]
        places, count = structure(layers, before, after), ctypes.c_int64(rows)
        native.call("mlp_forward", places, len(layers), x, count, BLOCK, int(keep))
        if keep:
            ctx.scales, ctx.depth = scales, len(layers)
            ctx.save_for_backward(x, *before, *after, *parameters)
        return (before if len(before) > len(after) else after)[-1].view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        x, *rest = ctx.saved_tensors
        depth, scales = ctx.depth, ctx.scales
        before, after, parameters = rest[:depth], rest[depth : depth + scales], rest[depth + scales :]
        layers, rows = _layers(scales, parameters), len(before[0])
        dy = gradients[0].contiguous()
        d = [torch.empty_like(entry) for entry in before[:scales]] + [dy.view(rows, -1)] * (depth - scales)
        dx = torch.empty_like(x) if ctx.needs_input_grad[2] else None
        widths = [len(scale) for _, _, scale in layers if scale is not None]
        dscale = x.new_zeros(-(-rows // BLOCK), sum(widths))
        places, outputs = (
            structure(layers, before, after),
            (ctypes.c_void_p * depth)(*(entry.data_ptr() for entry in d)),
        )
        native.call("mlp_backward", places, depth, dy, outputs, dx, dscale, ctypes.c_int64(rows), BLOCK)
        inputs = [x.view(rows, -1), *after][:depth]
        pairs = [part for out, into in zip(d, inputs, strict=True) for part in (out.t() @ into, out.sum(0))]
        return None, None, dx, *pairs, *dscale.sum(0).split(widths)


def _layers(scales: int, parameters: Sequence[Tensor]) -> list[Dense]:
    """Weights and biases by turns, then the scales of the first layers."""
    depth = (len(parameters) - scales) // 2
    weights, biases = parameters[0 : 2 * depth : 2], parameters[1 : 2 * depth : 2]
    given = [*parameters[2 * depth :], *[None] * (depth - scales)]
    return list(zip(weights, biases, given, strict=True))


def structure(
    layers: Sequence[Dense], before: Sequence[Tensor] = (), after: Sequence[Tensor] = ()
) -> ctypes.Array[_Layer]:
    """The layers as the kernels take them, with the places for what comes before and after norm and SiLU."""

    def address(tensor: Tensor | None) -> int | None:
        return None if tensor is None else tensor.data_ptr()

    rows = [
        _Layer(*map(address, (weight, bias, scale, pre, post)), weight.shape[1], weight.shape[0])
        for (weight, bias, scale), pre, post in zip_longest(layers, before, after)
    ]
    return (_Layer * len(layers))(*rows)


def mlp(x: Float[Tensor, "*batch I"], layers: Sequence[Dense]) -> Float[Tensor, "*batch O"]:
    """All layers in one pass; call it where `serves` says so. Only the last layer may lack a scale."""
    pairs = [tensor for weight, bias, _ in layers for tensor in (weight, bias)]
    scales = [scale for _, _, scale in layers if scale is not None]
    keep = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, *pairs))
    if not keep:
        return _MLP.forward(None, False, len(scales), x, *pairs, *scales)
    return _MLP.apply(True, len(scales), x, *pairs, *scales)  # type: ignore[no-any-return]
