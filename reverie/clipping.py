"""Adaptive gradient clipping: each layer's gradient by the norm of its weights (Brock et al. 2021)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

FLOOR = 1e-3
"""Norm below which a tensor of weights counts as this, so that zeros can grow."""


def agc_ratio(gradients: list[Tensor], weights: list[Tensor], limit: float) -> Float[Tensor, "tensors"]:
    """How many times each gradient's norm is what it may be, ``limit`` times its tensor's norm (Brock et al. 2021).

    One where it is less.
    """
    allowed = torch.stack(torch._foreach_norm(weights)).clamp(min=FLOOR) * limit
    return (torch.stack(torch._foreach_norm(gradients)) / allowed).clamp(min=1.0)


def layer_sizes(parameters: Iterable[nn.Parameter], rows: Mapping[nn.Parameter, Sequence[int]]) -> list[int]:
    """How many numbers each layer's tensors have, in order: a parameter with ``rows`` belongs to several layers."""
    return [
        count * parameter.numel() // len(parameter)
        for parameter in parameters
        for count in rows.get(parameter, [len(parameter)])
    ]
