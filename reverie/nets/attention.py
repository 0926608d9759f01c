"""A transformer's block over a few tokens: attention (Vaswani et al. 2017), normalised before as in later work."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from reverie.nets.layers import Linear


class Norm(nn.Module):
    """Scales the last axis to unit mean square, in single precision."""

    def __init__(self, width: int):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x: Float[Tensor, "*batch W"]) -> Float[Tensor, "*batch W"]:
        return F.rms_norm(x.float(), self.scale.shape, self.scale, eps=1e-4)


class Attention(nn.Module):
    """Every token asks those of its row that it may see."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.inputs = Linear(width, (width, width, width))  # queries, keys and values
        self.output = Linear(width, width)

    def forward(self, x: Float[Tensor, "N P W"], seen: Bool[Tensor, "*N P P"] | None = None) -> Float[Tensor, "N P W"]:
        """``seen`` says for each token (second to last axis) which ones it may see; left out, all."""
        query, key, value = self.inputs(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # [N, heads, P, w]
        mask = None if seen is None else seen.unsqueeze(-3)  # the same for all heads
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.output(mixed.transpose(1, 2).flatten(2)).float()


class Block(nn.Module):
    """Attention over tokens, then two layers at each token, both added to what was there."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.attention_norm, self.attention = Norm(width), Attention(width, heads)
        self.layers_norm = Norm(width)
        self.layers = nn.Sequential(Linear(width, 2 * width), nn.SiLU(), Linear(2 * width, width))

    def forward(self, x: Float[Tensor, "N P W"], seen: Bool[Tensor, "*N P P"] | None = None) -> Float[Tensor, "N P W"]:
        x = x + self.attention(self.attention_norm(x), seen)
        return x + self.layers(self.layers_norm(x)).float()
