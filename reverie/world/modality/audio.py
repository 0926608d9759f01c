"""Sound: a one-dimensional CNN over a mel spectrogram, or over the samples themselves, and one that draws it back.

What is predicted is what is read. The samples of a tone with a random phase cannot be predicted, but its spectrogram
can: so that is the default, and samples are for short sounds that are always the same.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float, Shaped
from pydantic import Field
from torch import Tensor, nn

from reverie.errors import ConfigError
from reverie.functional import constant_error
from reverie.nets.layers import MLP, NormSiLU, initialise
from reverie.options import Options
from reverie.types import FASTEST, SLOWEST, Latent, ObservationSpec
from reverie.world.modality.config import ModalityConfig, prepared_key
from reverie.world.modality.each import EachDecoder, EachEncoder
from reverie.world.modality.sound import MelSpectrogram, from_waveform, to_waveform
from reverie.world.sizes import Sizes

LONGEST_WAVEFORM = 1_600
"""Samples that are read one by one; more would cost seconds per update."""

SHORTEST = 8
"""Steps in time at which the CNN stops to halve."""


class AudioOptions(Options):
    """How sound is read and predicted."""

    representation: Literal["mel", "waveform"] = "mel"
    """A mel spectrogram, or up to 1,600 samples as they are."""
    rate: float = Field(default=16_000, ge=SLOWEST, le=FASTEST)
    """Samples per second, where the observation does not say."""
    bands: int = Field(default=40, ge=4, le=512)
    """Of the spectrogram."""
    window: float = Field(default=0.032, gt=0, le=10)
    """Seconds of each of its windows, about; half of one lies between two."""


class Sound(nn.Module):
    """What reading and drawing share: a sound as channels over time, and how often time is shortened."""

    def __init__(self, spec: ObservationSpec, sizes: Sizes, config: ModalityConfig):
        super().__init__()
        options = config.read(AudioOptions)
        if len(spec.shape) not in (1, 2) or spec.shape[-1] < spec.shape[0] or spec.classes:
            raise ConfigError(f"a sound is [samples] or [channels, samples], not {spec}; say with env.kinds what it is")
        self.shape, self.dtype, self.channels = spec.shape, spec.dtype, math.prod(spec.shape[:-1])
        samples, rate = spec.shape[-1], spec.rate or options.rate
        self.mel, self.rows, self.length, self.stride = None, self.channels, samples, 4
        if options.representation == "mel":
            window = 2 ** round(math.log2(max(4.0, min(samples, options.window * rate))))
            self.mel = MelSpectrogram(samples, rate, options.bands, window)
            self.rows, self.length, self.stride = self.channels * options.bands, self.mel.frames, 2
        elif samples > LONGEST_WAVEFORM:
            raise ConfigError(f"world.modalities.{config.name}.options.representation = waveform: for at most "
                              f"{LONGEST_WAVEFORM} samples, not {samples}; choose mel")  # fmt: skip
        self.stages = max(0, math.ceil(math.log(self.length / SHORTEST, self.stride)))
        self.start = math.ceil(self.length / self.stride**self.stages)

    def represent(self, sound: Shaped[Tensor, "..."]) -> Float[Tensor, "*batch rows T"]:
        """What the networks read and predict, of sounds [*batch, *shape] in the observation's dtype."""
        batch = sound.shape[: sound.ndim - len(self.shape)]
        waveform = to_waveform(sound, self.dtype).reshape(*batch, self.channels, self.shape[-1])
        if self.mel is None:
            return waveform
        with torch.autocast(sound.device.type, enabled=False):
            return self.mel(waveform.flatten(0, -2)).reshape(*batch, self.rows, self.length)


class TimeNormSiLU(NormSiLU):
    """`NormSiLU` over the channels of [N, C, T]."""

    def forward(self, x: Float[Tensor, "N C T"]) -> Float[Tensor, "N C T"]:
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class AudioReader(Sound):
    """Convolutions that shorten time, then one layer over what is left of it."""

    def __init__(self, spec: ObservationSpec, sizes: Sizes, config: ModalityConfig):
        super().__init__(spec, sizes, config)
        self.width, layers, inputs = config.embed_dim, [], self.rows
        for _ in range(self.stages):
            convolution = nn.Conv1d(inputs, sizes.units, 2 * self.stride, self.stride, padding=self.stride // 2)
            layers += [initialised(convolution, 2 * self.stride * inputs), TimeNormSiLU(sizes.units)]
            inputs = sizes.units
        self.convolutions = nn.Sequential(*layers)
        self.output = MLP(inputs * self.start, self.width, 1)

    def forward(self, represented: Float[Tensor, "*batch rows T"]) -> Float[Tensor, "*batch X"]:
        x = nn.functional.pad(represented, (0, self.start * self.stride**self.stages - self.length))
        x = self.convolutions(x.flatten(0, -3)).flatten(1)
        return self.output(x).unflatten(0, represented.shape[:-2])


class AudioWriter(Sound):
    """One layer that lays the latent out in time, then convolutions that lengthen it."""

    def __init__(self, spec: ObservationSpec, sizes: Sizes, config: ModalityConfig):
        super().__init__(spec, sizes, config)
        outputs = [sizes.units] * self.stages + [self.rows]
        self.input = MLP(sizes.features, sizes.units, 1, outputs[0] * self.start)
        layers: list[nn.Module] = []
        for rows, following in itertools.pairwise(outputs):
            convolution = nn.ConvTranspose1d(rows, following, 2 * self.stride, self.stride, padding=self.stride // 2)
            layers += [TimeNormSiLU(rows), initialised(convolution, 2 * rows)]
        self.convolutions = nn.Sequential(*layers)

    def predict(self, features: Float[Tensor, "*batch F"]) -> Float[Tensor, "N rows T"]:
        x = self.input(features.flatten(0, -2)).unflatten(-1, (-1, self.start))
        return self.convolutions(x)[..., : self.length].float()

    def loss(
        self, features: Float[Tensor, "*batch F"], represented: Float[Tensor, "*batch rows T"]
    ) -> Float[Tensor, "*batch"]:
        """Squared error summed over channels and time."""
        error = self.predict(features) - represented.flatten(0, -3)
        return error.square().sum((-2, -1)).unflatten(0, features.shape[:-1])

    def constant_loss(
        self, represented: Float[Tensor, "*batch rows T"], there: Bool[Tensor, "*batch"]
    ) -> Float[Tensor, ""]:
        return constant_error(represented.flatten(0, -3), there.flatten())

    def show(self, features: Float[Tensor, "*batch F"]) -> Shaped[Tensor, "..."]:
        """Samples in the observation's dtype; those of a spectrogram have phases of their own."""
        x = self.predict(features)
        if self.mel is not None:
            x = self.mel.inverse(x.unflatten(1, (self.channels, -1)).flatten(0, 1))
        return from_waveform(x, self.dtype).reshape(*features.shape[:-1], *self.shape)


def initialised(convolution: nn.Conv1d | nn.ConvTranspose1d, fan_in: int) -> nn.Module:
    """The layer with the published initialisation."""
    initialise(convolution.weight, fan_in)
    assert convolution.bias is not None
    nn.init.zeros_(convolution.bias)
    return convolution


def representations(
    obs: Mapping[str, Tensor], keys: Sequence[str], sounds: Iterable[nn.Module]
) -> dict[str, Float[Tensor, "*batch rows T"]]:
    """By key, what the networks read and predict: as it was prepared, or made of the sound."""
    found = {key: obs.get(prepared_key(key)) for key in keys}
    return {
        key: sound.represent(obs[key]) if made is None else made  # type: ignore[operator]
        for (key, made), sound in zip(found.items(), sounds, strict=True)
    }


class AudioEncoder(EachEncoder):
    """Hears every sound by itself."""

    def __init__(self, keys: Mapping[str, ObservationSpec], sizes: Sizes, config: ModalityConfig):
        super().__init__(keys, sizes, config, AudioReader)

    def prepare(self, obs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Every sound as it is read and predicted, beside the sound itself: a name tells the two apart, not a shape."""
        made = representations(obs, self.keys, self.readers)
        return {prepared_key(key): represented for key, represented in made.items()}

    def forward(self, obs: Mapping[str, Tensor]) -> Float[Tensor, "*batch X"]:
        return super().forward(representations(obs, self.keys, self.readers))


class AudioDecoder(EachDecoder):
    """Predicts every sound by itself."""

    def __init__(self, keys: Mapping[str, ObservationSpec], sizes: Sizes, config: ModalityConfig):
        super().__init__(keys, sizes, config, AudioWriter)

    def loss(self, latent: Latent, obs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return super().loss(latent, representations(obs, self.keys, self.writers))

    def constant_loss(self, obs: Mapping[str, Tensor], there: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return super().constant_loss(representations(obs, self.keys, self.writers), there)
