"""Images: a convolutional encoder that halves by max-pooling, and a decoder that grows them back.

Images arrive as uint8 [*, H, W, C], or with their channels first, and become numbers here, nowhere else. Several image
keys are stacked on channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import gcd

import torch
from jaxtyping import Float
from torch import Tensor, nn

from reverie.errors import ConfigError
from reverie.functional import constant_error
from reverie.nets.layers import (
    BlockLinear,
    ChannelNormSiLU,
    Convolution,
    Linear,
    MaxPool,
    NormSiLU,
    UpsampledConvolution,
)
from reverie.options import Options
from reverie.types import Latent, ObservationSpec
from reverie.world.modality.config import ModalityConfig
from reverie.world.sizes import Sizes

MULTIPLIERS = (2, 3, 4, 4)
"""Channels of each stage, in units of ``Sizes.depth``; a small image uses the first ones only."""

SMALLEST, LARGEST = 3, 16
"""Bounds on the side of the innermost map."""


def plan(keys: Mapping[str, ObservationSpec], depth: int) -> tuple[list[int], int, int]:
    """Channels per stage, and height and width of the innermost map, for images of this size.

    Raises ConfigError where one is none, and where images differ in size or cannot be halved into the bounds.
    """
    for key, spec in keys.items():
        if len(spec.shape) != 3:
            raise ConfigError(f"observation '{key}': an image is [height, width, channels], not {spec}; say with "
                              "env.kinds what it is")  # fmt: skip
    shapes = {spec.shape[:2] for spec in keys.values()}
    if len(shapes) > 1:
        raise ConfigError(f"images {sorted(keys)} differ in size: {sorted(shapes)}; set env.size to resize them alike")
    height, width = shapes.pop()
    if min(height, width) < 2 * SMALLEST:
        raise ConfigError(f"images {sorted(keys)} of {height} x {width} pixels are too small: a side has at least "
                          f"{2 * SMALLEST}; enlarge them with env.size=64, or show them as a float32 Box")  # fmt: skip
    channels: list[int] = []
    for multiplier in MULTIPLIERS:
        if height % 2 or width % 2 or min(height, width) // 2 < SMALLEST:
            break
        height, width = height // 2, width // 2
        channels.append(multiplier * depth)
    if not channels or max(height, width) > LARGEST:
        raise ConfigError(f"images {sorted(keys)} of {next(iter(keys.values())).shape} cannot be halved to at most "
                          f"{LARGEST} pixels a side; set env.size to 64")  # fmt: skip
    return channels, height, width


def channels_last(spec: ObservationSpec) -> ObservationSpec:
    """The spec of images [H, W, C], also where it has its channels first: no side is as short as those are few."""
    first = len(spec.shape) == 3 and spec.shape[0] < 2 * SMALLEST
    return replace(spec, shape=(*spec.shape[1:], spec.shape[0])) if first else spec


def brightness(images: Tensor, spec: ObservationSpec) -> Float[Tensor, "*batch H W C"]:
    """Bytes, or floats between 0 and 1, as numbers between 0 and 1, whichever axis has the channels."""
    if images.shape[-3:] != spec.shape:
        images = images.movedim(-3, -1)
    return images if images.is_floating_point() else images.float() / 255.0


def stack(obs: Mapping[str, Tensor], keys: Mapping[str, ObservationSpec]) -> Float[Tensor, "*batch C H W"]:
    """All images in [0, 1], channels first (and last in memory)."""
    images = [brightness(obs[key], spec) for key, spec in keys.items()]
    return (torch.cat(images, -1) if len(images) > 1 else images[0]).movedim(-1, -3)


class ImageEncoder(nn.Module):
    """Stages of 5x5 convolution -> 2x2 max-pool -> RMSNorm over channels -> SiLU; the last map is the token."""

    def __init__(self, keys: Mapping[str, ObservationSpec], sizes: Sizes, config: ModalityConfig):
        super().__init__()
        config.read(Options)
        self.keys = {key: channels_last(spec) for key, spec in sorted(keys.items())}
        channels, height, width = plan(self.keys, sizes.depth)
        self.width = height * width * channels[-1]
        previous, stages = sum(spec.shape[2] for spec in self.keys.values()), []
        for outputs in channels:
            stages += [Convolution(previous, outputs), MaxPool(), ChannelNormSiLU(outputs)]
            previous = outputs
        self.stages = nn.Sequential(*stages)

    def forward(self, obs: Mapping[str, Tensor]) -> Float[Tensor, "*batch X"]:
        images = stack(obs, self.keys) - 0.5
        batch = images.shape[:-3]
        maps = self.stages(images.flatten(0, -4))
        return maps.permute(0, 2, 3, 1).flatten(1).unflatten(0, batch)


class ImageDecoder(nn.Module):
    """Paints the recurrent state block by block and the stochastic state whole onto a small map, and grows it.

    ``blocks`` of the deterministic state each paint their share of the channels over the full map.
    """

    def __init__(self, keys: Mapping[str, ObservationSpec], sizes: Sizes, config: ModalityConfig):
        super().__init__()
        config.read(Options)
        self.shapes = {key: spec.shape for key, spec in keys.items()}
        self.keys = {key: channels_last(spec) for key, spec in sorted(keys.items())}
        self.channels = [spec.shape[2] for spec in self.keys.values()]
        channels, self.height, self.side = plan(self.keys, sizes.depth)
        area, self.top = self.height * self.side, channels[-1]
        self.blocks = gcd(sizes.blocks, self.top)  # each paints equally many channels
        self.from_deter = BlockLinear(sizes.deter, area * self.top, self.blocks)
        self.from_stoch = nn.Sequential(
            Linear(sizes.stoch * sizes.classes, 2 * sizes.units),
            NormSiLU(2 * sizes.units),
            Linear(2 * sizes.units, area * self.top),
        )
        self.join = ChannelNormSiLU(self.top)
        stages: list[nn.Module] = []
        for inputs, outputs in zip(channels[:0:-1], channels[-2::-1], strict=True):
            stages += [UpsampledConvolution(inputs, outputs), ChannelNormSiLU(outputs)]
        self.stages = nn.Sequential(*stages, UpsampledConvolution(channels[0], sum(self.channels)))

    def forward(self, latent: Latent) -> dict[str, Tensor]:
        batch = latent.deter.shape[:-1]
        deter, stoch = latent.deter.flatten(0, -2), latent.stoch.flatten(-2).flatten(0, -2)
        # Block g of the deterministic path holds [height, width, top / blocks].
        painted = self.from_deter(deter).unflatten(-1, (self.blocks, self.height, self.side, -1))
        painted = painted.permute(0, 1, 4, 2, 3).flatten(1, 2)
        whole = self.from_stoch(stoch).unflatten(-1, (self.height, self.side, self.top)).permute(0, 3, 1, 2)
        images = torch.sigmoid(self.stages(self.join(painted + whole)).float()).movedim(1, -1).unflatten(0, batch)
        return dict(zip(self.keys, images.split(self.channels, -1), strict=True))

    def loss(self, latent: Latent, obs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Squared error summed over height, width and channels."""
        errors = {key: image - brightness(obs[key], self.keys[key]) for key, image in self(latent).items()}
        return {key: error.square().sum((-3, -2, -1)) for key, error in errors.items()}

    def constant_loss(self, obs: Mapping[str, Tensor], there: Mapping[str, Tensor]) -> dict[str, Tensor]:
        images = {key: brightness(obs[key], spec).flatten(0, -4) for key, spec in self.keys.items()}
        return {key: constant_error(image, there[key].flatten()) for key, image in images.items()}

    def show(self, latent: Latent) -> dict[str, Tensor]:
        """Pictures uint8 [*batch, *shape]."""
        shown = {key: (image * 255.0).round().to(torch.uint8) for key, image in self(latent).items()}
        first = {key for key, spec in self.keys.items() if spec.shape != self.shapes[key]}
        return {key: image.movedim(-1, -3) if key in first else image for key, image in shown.items()}
