"""Text: a transformer reads patches of symbols, and another one writes all of them at once.

A text is a line of symbols, which a zero ends: bytes of UTF-8, uint8 [*batch, L], or tokens of a tokenizer, uint16
[*batch, L]. The writer is told nothing of the right text, not even what stood before: so whatever it gets right is in
the latent. The end is one more symbol that it predicts.

On a CPU, equal texts are read once, and symbols after the end are not predicted at all. How many there are depends on
the data, so a compiled function and other devices do it for all, and count the same.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float, Int, UInt
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from reverie.errors import ConfigError
from reverie.nets.attention import Block, Norm
from reverie.nets.layers import MLP, Linear
from reverie.options import Options
from reverie.types import ObservationSpec
from reverie.world.modality.config import ModalityConfig
from reverie.world.modality.each import EachDecoder, EachEncoder
from reverie.world.sizes import Sizes

BYTES = 256

SHORT = 128
"""Bytes of a text whose patches may be small."""


class TextOptions(Options):
    """How text is read and written."""

    patch: int | None = Field(default=None, ge=1, le=64)
    """Symbols that make one token of the transformer; null: 4 bytes, 8 where a text may have more than `SHORT`, and
    one token of a tokenizer."""
    layers: int = Field(default=1, ge=1, le=16)
    """Blocks of each transformer."""
    width: int | None = Field(default=None, ge=1, le=65536)
    """Of the transformers' tokens; null: as the world model's layers."""
    heads: int = Field(default=4, ge=1, le=256)
    """Of each attention; they must divide the width."""


class Patches(nn.Module):
    """What reading and writing share: how a text of this length is cut, and a transformer over the pieces."""

    def __init__(self, spec: ObservationSpec, sizes: Sizes, config: ModalityConfig):
        super().__init__()
        options = config.read(TextOptions)
        if len(spec.shape) != 1 or (spec.dtype != "uint8" and not spec.tokenizer):
            raise ConfigError(f"text is uint8 of one axis, not {spec}; say with env.kinds what it is")
        self.length, self.dtype = spec.shape[0], getattr(torch, spec.dtype)
        self.symbols = spec.classes or BYTES
        self.size = options.patch or (1 if spec.tokenizer else 4 if self.length <= SHORT else 8)
        self.count = -(-self.length // self.size)
        self.channels = options.width or sizes.units
        if self.channels % options.heads:
            raise ConfigError(f"world.modalities.{config.name}.options.heads = {options.heads}: should divide the "
                              f"width {self.channels}")  # fmt: skip
        self.blocks = nn.ModuleList(Block(self.channels, options.heads) for _ in range(options.layers))

    def cut(self, text: UInt[Tensor, "N L"]) -> Int[Tensor, "N P p"]:
        """The symbols in patches; zeros fill the last one, and whatever stands after the end."""
        filled = F.pad(upto_end(text.long()), (0, self.count * self.size - self.length))
        return filled.unflatten(-1, (self.count, self.size))


class TextReader(Patches):
    """The token of a text: what a first, empty patch has become."""

    def __init__(self, spec: ObservationSpec, sizes: Sizes, config: ModalityConfig):
        super().__init__(spec, sizes, config)
        self.width = config.embed_dim
        self.bytes = nn.Embedding(self.size * self.symbols, self.channels)  # a symbol has one at each place of a patch
        nn.init.normal_(self.bytes.weight, std=self.size**-0.5)
        self.places = nn.Parameter(torch.zeros(1 + self.count, self.channels))
        nn.init.normal_(self.places)
        self.output = nn.Sequential(Norm(self.channels), MLP(self.channels, self.width, 1))

    def forward(self, text: UInt[Tensor, "*batch L"]) -> Float[Tensor, "*batch X"]:
        rows = text.flatten(0, -2)
        if depends_on_data(rows):
            rows, place = torch.unique(rows, dim=0, return_inverse=True)
            patches = self.cut(rows)
            longest = int(patches.any(-1).any(0).sum())
            tokens = F.embedding(place, self.read(patches[:, :longest]))  # its gradient is summed in order
        else:
            tokens = self.read(self.cut(rows))
        return tokens.unflatten(0, text.shape[:-1])

    def read(self, patches: Int[Tensor, "N P p"]) -> Float[Tensor, "N X"]:
        said = F.pad(patches.sum(-1), (1, 0), value=1) != 0  # padded as numbers: inductor fails at truth values
        place_in_patch = self.symbols * torch.arange(self.size, device=patches.device)
        x = F.pad(self.bytes(patches + place_in_patch).sum(-2), (0, 0, 1, 0))
        x = x + self.places[: x.shape[1]]
        seen = said[:, None].expand(-1, x.shape[1], -1)
        for block in self.blocks:
            x = block(x, seen)
        return self.output(x[:, 0])


class TextWriter(Patches):
    """All symbols of a text up to its end, from features [*batch, F]."""

    def __init__(self, spec: ObservationSpec, sizes: Sizes, config: ModalityConfig):
        super().__init__(spec, sizes, config)
        self.input = MLP(sizes.features, sizes.units, 1, self.count * self.channels)
        self.norm = Norm(self.channels)
        self.output = Linear(self.channels, self.size * self.symbols)

    def draft(self, features: Float[Tensor, "N F"], patches: int) -> Float[Tensor, "N P W"]:
        """The first patches of what will be written; as none sees a later one, the rest may be left out."""
        x = self.input(features).unflatten(-1, (self.count, self.channels))[:, :patches]
        seen = torch.ones(patches, patches, dtype=torch.bool, device=x.device).tril()
        for block in self.blocks:
            x = block(x, seen)
        return self.norm(x)

    def loss(self, features: Float[Tensor, "*batch F"], value: UInt[Tensor, "*batch L"]) -> Float[Tensor, "*batch"]:
        """Cross-entropy summed over the symbols of the text and its end."""
        target = self.cut(value.flatten(0, -2))
        counted = self.counted(target)
        if depends_on_data(value):
            used = counted.any(-1)
            longest = int(used.any(0).sum())
            used, target, counted = used[:, :longest], target[:, :longest], counted[:, :longest]
            chosen = used.flatten().nonzero().squeeze(-1)
            draft = self.draft(features.flatten(0, -2), longest).flatten(0, 1).index_select(0, chosen)
            nats = self.surprise(draft, target.flatten(0, 1)[chosen]) * counted.flatten(0, 1)[chosen]
            nats = nats.new_zeros(used.numel()).index_copy(0, chosen, nats.sum(-1)).view(used.shape).sum(-1)
        else:
            draft = self.draft(features.flatten(0, -2), self.count)
            nats = (self.surprise(draft, target) * counted).sum((-2, -1))
        return nats.unflatten(0, value.shape[:-1])

    def counted(self, target: Int[Tensor, "N P p"]) -> Bool[Tensor, "N P p"]:
        """Which symbols are to be predicted: those up to the first zero."""
        counted = F.pad(target.flatten(1)[:, :-1], (1, 0), value=1) != 0
        return (counted & (torch.arange(counted.shape[1], device=target.device) < self.length)).view(target.shape)

    def constant_loss(self, value: UInt[Tensor, "*batch L"], there: Bool[Tensor, "*batch"]) -> Float[Tensor, ""]:
        target = self.cut(value.flatten(0, -2))
        counted = (self.counted(target) & there.view(-1, 1, 1)).flatten(1).float()
        places = self.symbols * torch.arange(counted.shape[1], device=value.device)
        found = counted.new_zeros(counted.shape[1] * self.symbols)
        found.index_add_(0, (target.flatten(1) + places).flatten(), counted.flatten())  # whole numbers: in any order
        share = found.view(-1, self.symbols) / there.sum().clamp(min=1)
        return torch.special.entr(share).sum() - torch.special.entr(share.sum(-1)).sum()

    def surprise(self, draft: Float[Tensor, "*M W"], target: Int[Tensor, "*M p"]) -> Float[Tensor, "*M p"]:
        """The cross-entropy of each symbol."""
        logits = self.output(draft).float().view(-1, self.symbols)
        return F.cross_entropy(logits, target.flatten(), reduction="none").view(target.shape)

    def show(self, features: Float[Tensor, "*batch F"]) -> UInt[Tensor, "*batch L"]:
        """The likeliest symbol at each place, up to the end."""
        logits = self.output(self.draft(features.flatten(0, -2), self.count))
        text = logits.view(-1, self.count * self.size, self.symbols).argmax(-1)[:, : self.length]
        return upto_end(text).to(self.dtype).unflatten(0, features.shape[:-1])


def upto_end(text: Int[Tensor, "N L"]) -> Int[Tensor, "N L"]:
    """The symbols before the first zero, and zeros from there on."""
    return text * (text != 0).long().cumprod(-1)


def depends_on_data(tensor: Tensor) -> bool:
    """Whether shapes may: not where a compiler wants them fixed, nor where asking would wait for the device."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


class TextEncoder(EachEncoder):
    """Reads every text by itself."""

    def __init__(self, keys: Mapping[str, ObservationSpec], sizes: Sizes, config: ModalityConfig):
        super().__init__(keys, sizes, config, TextReader)


class TextDecoder(EachDecoder):
    """Writes every text by itself."""

    def __init__(self, keys: Mapping[str, ObservationSpec], sizes: Sizes, config: ModalityConfig):
        super().__init__(keys, sizes, config, TextWriter)
