"""What stands between encoders and the recurrent model: tokens of several modalities become one.

``Fusion(widths, embed)(tokens, present) -> [*batch, width]``. A token that is not present is one that was not seen:
``present`` says so for each modality, or is None where it always is. All fusions give the same width, the sum of all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from reverie.nets.attention import Attention, Norm
from reverie.nets.layers import Linear
from reverie.types import presence_key

Presence = Bool[Tensor, "*batch"] | None


def presence(keys: Sequence[str], obs: Mapping[str, Tensor]) -> Presence:
    """Whether any of these observations is there; None where one always is."""
    flags = [obs.get(presence_key(key)) for key in keys]
    known = [flag for flag in flags if flag is not None]
    return torch.stack(known).any(0) if len(known) == len(flags) else None


class Concat(nn.Module):
    """Side by side, as published; a token that is not present is zero."""

    def __init__(self, widths: Sequence[int], embed: int):
        super().__init__()
        self.width = sum(widths)

    def forward(self, tokens: Sequence[Tensor], present: Sequence[Presence]) -> Float[Tensor, "*batch X"]:
        pairs = zip(tokens, present, strict=True)
        return torch.cat([token if here is None else token * here[..., None] for token, here in pairs], -1)


class CrossModalAttention(nn.Module):
    """Side by side, after each token has asked all others (Vaswani et al. 2017) and added what it learned of them.

    What is added begins at zero: a fresh model is that of `Concat`, but for tokens that are not present, for which a
    learned one stands.
    """

    def __init__(self, widths: Sequence[int], embed: int):
        super().__init__()
        self.width = sum(widths)
        self.heads = next(heads for heads in (4, 2, 1) if embed % heads == 0)
        self.absent = nn.ParameterList(nn.Parameter(torch.zeros(width)) for width in widths)
        self.inputs = nn.ModuleList(Linear(width, embed) for width in widths)
        self.norm, self.attention = Norm(embed), Attention(embed, self.heads)
        self.outputs = nn.ModuleList(Linear(embed, width, scale=0.0) for width in widths)

    def forward(self, tokens: Sequence[Tensor], present: Sequence[Presence]) -> Float[Tensor, "*batch X"]:
        batch = tokens[0].shape[:-1]
        rows = [
            token.flatten(0, -2) if here is None else torch.where(here[..., None], token, absent).flatten(0, -2)
            for token, here, absent in zip(tokens, present, self.absent, strict=True)
        ]
        projected = torch.stack([layer(row) for layer, row in zip(self.inputs, rows, strict=True)], 1)
        learned = self.attention(self.norm(projected)).unbind(1)
        fused = [row + layer(mine).float() for row, layer, mine in zip(rows, self.outputs, learned, strict=True)]
        return torch.cat(fused, -1).unflatten(0, batch)


FUSIONS: dict[str, Callable[[Sequence[int], int], nn.Module]] = {"concat": Concat, "attention": CrossModalAttention}
"""How the tokens of modalities become one."""
