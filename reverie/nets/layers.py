"""Layers exactly as the published DreamerV3 has them: its initialisation, its RMS norm, its block-diagonal linear.

Every hidden layer is Linear -> NormSiLU, and every linear has a bias. Under autocast the products are done in half
precision (by the native kernels only in bf16, and where the processor multiplies it); norms, and whatever leaves a
network, are in single precision.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from reverie import native
from reverie.native.layers import Dense, norm_silu, stack, supports_stack

TRUNCATION = 1.1368
"""A standard normal cut at two standard deviations has variance 1 / TRUNCATION**2."""


def initialise(weight: Tensor, fan_in: int, scale: float = 1.0) -> None:
    """Fills ``weight`` with a normal of variance ``scale**2 / fan_in``, cut at two of its deviations."""
    if scale == 0.0 or not fan_in:
        nn.init.zeros_(weight)
        return
    deviation = TRUNCATION * scale / math.sqrt(fan_in)
    nn.init.trunc_normal_(weight, std=deviation, a=-2 * deviation, b=2 * deviation)


class Linear(nn.Linear):
    """``y = x W + b`` with the published initialisation; ``scale`` 0 starts a head at exactly zero.

    Several ``outputs`` are layers of their own, computed as one: `output_rows` says which rows are whose.
    """

    def __init__(self, inputs: int, outputs: int | Sequence[int], scale: float = 1.0):
        self.outputs = [outputs] if isinstance(outputs, int) else list(outputs)
        super().__init__(inputs, sum(self.outputs))
        initialise(self.weight, inputs, scale)
        nn.init.zeros_(self.bias)

    def reset_parameters(self) -> None:
        """Leaves out what torch would do, and warn of, where there is no input."""
        if self.in_features:
            super().reset_parameters()


def output_rows(network: nn.Module) -> dict[nn.Parameter, list[int]]:
    """Rows of the layers that share a parameter, of every `Linear` with several outputs."""
    shared = [layer for layer in network.modules() if isinstance(layer, Linear) and len(layer.outputs) > 1]
    return {parameter: layer.outputs for layer in shared for parameter in layer.parameters()}


class BlockLinear(nn.Module):
    """A block-diagonal linear layer: each of ``blocks`` contiguous chunks of the input has its own matrix.

    The kernel is ``[blocks, inputs / blocks, outputs / blocks]``; its fan-in is the full ``inputs``.
    """

    def __init__(self, inputs: int, outputs: int, blocks: int):
        super().__init__()
        self.blocks = blocks
        self.kernel = nn.Parameter(torch.empty(blocks, inputs // blocks, outputs // blocks))
        self.bias = nn.Parameter(torch.zeros(outputs))
        initialise(self.kernel, inputs)

    def forward(self, x: Float[Tensor, "batch I"]) -> Float[Tensor, "batch O"]:
        return block_product(x, self.kernel) + self.bias


def block_product(x: Float[Tensor, "batch I"], kernel: Float[Tensor, "G i o"]) -> Float[Tensor, "batch O"]:
    """Multiplies chunk g of ``x`` by ``kernel[g]`` and lays the results side by side."""
    chunks = x.unflatten(-1, (kernel.shape[0], -1)).transpose(0, 1)
    return torch.bmm(chunks, kernel).transpose(0, 1).flatten(1)


class NormSiLU(nn.Module):
    """Scales the last axis to unit mean square (eps inside the root, no shift), then SiLU."""

    def __init__(self, width: int):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        x = x.float()
        if x.shape[-1:] == self.scale.shape and native.supports(x, self.scale, kernel="norm_silu"):
            return norm_silu(x, self.scale)
        return F.silu(F.rms_norm(x, self.scale.shape, self.scale, eps=1e-4))


class MLP(nn.Sequential):
    """``layers`` hidden layers of ``units``, then one or several linear outputs where ``outputs`` is given.

    Where the native kernels can, one call computes all layers from the parameters: hooks of layers are not called.
    """

    def __init__(
        self, inputs: int, units: int, layers: int, outputs: int | Sequence[int] | None = None, scale: float = 1.0
    ):
        modules: list[nn.Module] = []
        for index in range(layers):
            modules += [Linear(units if index else inputs, units), NormSiLU(units)]
        if outputs is not None:
            modules.append(Linear(units if layers else inputs, outputs, scale))
        super().__init__(*modules)

    def forward(self, input: Float[Tensor, "*batch I"]) -> Float[Tensor, "*batch O"]:
        layers = self.dense
        return stack(input, layers) if supports_stack(input, layers) else super().forward(input).float()

    @property
    def dense(self) -> list[Dense]:
        """The parameters of every layer."""
        modules: list[Any] = list(self)
        pairs = zip_longest(modules[0::2], modules[1::2])
        return [(linear.weight, linear.bias, None if norm is None else norm.scale) for linear, norm in pairs]


class ChannelNormSiLU(NormSiLU):
    """`NormSiLU` over the channels of images [N, C, H, W]."""

    def forward(self, x: Float[Tensor, "N C H W"]) -> Float[Tensor, "N C H W"]:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class MaxPool(nn.Module):
    """The largest of every 2x2 pixels. For the way back only its place is kept, not the image as torch does."""

    def forward(self, input: Float[Tensor, "N C H W"]) -> Float[Tensor, "N C H//2 W//2"]:
        return _MaxPool.apply(input)  # type: ignore[no-any-return]


class _MaxPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        largest, place = F.max_pool2d(x, 2, return_indices=True)
        ctx.save_for_backward(place)
        ctx.size = x.shape[-2:]
        return largest

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (place,) = ctx.saved_tensors
        return F.max_unpool2d(gradients[0], place, [2, 2], output_size=ctx.size)


class Convolution(nn.Conv2d):
    """A 5x5 convolution that keeps height and width."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, outputs, kernel_size=5, padding=2)
        initialise(self.weight, 25 * inputs)
        assert self.bias is not None
        nn.init.zeros_(self.bias)


class UpsampledConvolution(Convolution):
    """`Convolution` of an image whose height and width are doubled first, by repeating pixels.

    A 5x5 window over repeated pixels sees 3x3 different ones. Each of the four pixels that one becomes is therefore a
    3x3 convolution of the small image, with sums of weights: the same result for 36 products instead of 100.
    """

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, outputs)
        # Along one axis, tap t of the window of pixel 2 s + phase lies in small pixel s + (phase + t) // 2.
        phase, source, tap = torch.arange(2), torch.arange(-1, 2), torch.arange(-2, 3)
        shares = (phase[:, None, None] + tap) // 2 == source[:, None]
        self.register_buffer("shares", shares.float(), persistent=False)  # [phase, source, tap]

    def forward(self, input: Float[Tensor, "N C H W"]) -> Float[Tensor, "N O 2*H 2*W"]:
        with torch.autocast(input.device.type, enabled=False):
            weight = torch.einsum("oiyx,pay,qbx->opqiab", self.weight, self.shares, self.shares).flatten(0, 2)
        assert self.bias is not None
        return F.pixel_shuffle(F.conv2d(input, weight, self.bias.repeat_interleave(4), padding=1), 2)
