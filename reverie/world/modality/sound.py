"""Sound as numbers: samples between -1 and 1, and what a mel spectrogram makes of them, with the way back."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

FLOOR = 1e-6
"""Power that is hardly heard: 60 dB below a sine of full scale."""

PASSES = 32
"""Of each search on the way back from a spectrogram."""

SCALES = {"uint8": (128.0, 128.0), "int16": (0.0, 32768.0), "uint16": (32768.0, 32768.0)}
"""Where silence is, and how far from it the loudest sample, in each dtype of integers."""


def to_waveform(samples: Tensor, dtype: str) -> Tensor:
    """Samples of any dtype as numbers between -1 and 1; floats beyond are cut off."""
    if dtype not in SCALES:
        return samples.float().clamp(-1.0, 1.0)
    silence, loudest = SCALES[dtype]
    return (samples.float() - silence) / loudest


def from_waveform(waveform: Tensor, dtype: str) -> Tensor:
    """The inverse of `to_waveform`; what is too loud is cut off."""
    silence, loudest = SCALES.get(dtype, (0.0, 1.0))
    kind = getattr(torch, dtype)
    scaled = waveform * loudest + silence
    if kind.is_floating_point:
        return scaled.clamp(-1.0, 1.0).to(kind)
    return scaled.round().clamp(torch.iinfo(kind).min, torch.iinfo(kind).max).to(kind)


def mel(frequency: float) -> float:
    """Pitch on the mel scale, of Hz (O'Shaughnessy 1987)."""
    return 2595.0 * math.log10(1.0 + frequency / 700.0)


def mel_filters(bands: int, bins: int, rate: float) -> Float[Tensor, "bands bins"]:
    """Triangles over the bins of a spectrum up to ``rate / 2``, at equal distances of pitch, each with a peak of one.

    A low band is never narrower than a bin, so that each one hears something.
    """
    frequency = torch.linspace(0.0, rate / 2, bins)
    pitch = torch.linspace(0.0, mel(rate / 2), bands + 2)
    edge = 700.0 * (10.0 ** (pitch / 2595.0) - 1.0)
    low, centre, high = edge[:-2, None], edge[1:-1, None], edge[2:, None]
    narrowest = rate / 2 / (bins - 1)
    rising = 1.0 - (centre - frequency) / (centre - low).clamp(min=narrowest)
    falling = 1.0 - (frequency - centre) / (high - centre).clamp(min=narrowest)
    return torch.minimum(rising, falling).clamp(min=0.0)


class MelSpectrogram(nn.Module):
    """Power in ``bands`` of pitch, on a logarithmic scale from 0 (silence) to about 1 (a sine of full scale).

    Windows of ``window`` samples overlap by half.
    """

    hann: Tensor
    filters: Tensor

    def __init__(self, samples: int, rate: float, bands: int, window: int):
        super().__init__()
        self.samples, self.window, self.hop = samples, window, window // 2
        self.frames = 1 + samples // self.hop
        self.register_buffer("hann", torch.hann_window(window) * (4 / window), persistent=False)
        self.register_buffer("filters", mel_filters(bands, window // 2 + 1, rate), persistent=False)

    def spectrum(self, waveform: Float[Tensor, "N S"]) -> Tensor:
        """Complex [N, bins, frames]; a sine of full scale has a magnitude of one."""
        hann, edge = self.hann, "constant"
        return torch.stft(waveform, self.window, self.hop, window=hann, pad_mode=edge, return_complex=True)

    def forward(self, waveform: Float[Tensor, "N S"]) -> Float[Tensor, "N bands frames"]:
        power = self.filters @ torch.view_as_real(self.spectrum(waveform)).square().sum(-1)
        return torch.log1p(power / FLOOR) / math.log1p(1.0 / FLOOR)

    def inverse(self, spectrogram: Float[Tensor, "N bands frames"]) -> Float[Tensor, "N S"]:
        """A sound with this spectrogram: the phases, which it does not know, are searched (Griffin and Lim 1984)."""
        power = torch.expm1(spectrogram.clamp(0.0, 1.5) * math.log1p(1.0 / FLOOR)) * FLOOR
        magnitude = self._spread(power).sqrt()
        generator = torch.Generator().manual_seed(0)
        angle = 2.0 * math.pi * torch.rand(magnitude.shape, generator=generator).to(magnitude.device)
        for _ in range(PASSES):
            angle = self.spectrum(self._waveform(torch.polar(magnitude, angle))).angle()
        return self._waveform(torch.polar(magnitude, angle))

    def _spread(self, power: Float[Tensor, "N bands frames"]) -> Float[Tensor, "N bins frames"]:
        """Power over the bins whose bands have this power, none of it negative (Lee and Seung 2001)."""
        wanted = self.filters.T @ power
        found = torch.ones_like(wanted)
        for _ in range(PASSES):
            found = found * wanted / (self.filters.T @ (self.filters @ found)).clamp(min=1e-12)
        return found

    def _waveform(self, spectrum: Tensor) -> Float[Tensor, "N S"]:
        scale = self.window / 4  # to a window of height one: torch gives up on one that is very small at the end
        return torch.istft(spectrum * scale, self.window, self.hop, window=self.hann * scale, length=self.samples)
