"""The sound of films: what was heard of an episode, step by step, as a track and as a picture."""

from __future__ import annotations

import math
import wave
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Shaped, UInt8

from reverie.types import ObservationSpec
from reverie.world.modality.audio import AudioOptions
from reverie.world.modality.sound import MelSpectrogram, from_waveform, to_waveform

BANDS, WINDOW = 64, 0.032
"""Of pictures: of pitch, and seconds."""

PLAYED, SHOWN = (100.0, 384_000.0), (1 / 60, 240.0)
"""The slowest and the fastest that players are given: samples, and steps, per second."""


@dataclass
class Track:
    """What was heard until now, in pieces [channels, samples], and what is known of it before."""

    rate: float
    """Samples per second."""
    samples: int
    """Of one step."""
    channels: int = 1
    heard: list[Float[np.ndarray, "channels samples"]] = field(default_factory=list)

    @property
    def steps_per_second(self) -> Fraction:
        """At which a film goes with it."""
        return Fraction(self.rate / self.samples).limit_denominator(1000)

    @property
    def whole(self) -> Float[np.ndarray, "channels all"]:
        return np.concatenate(self.heard, -1)

    def write(self, path: Path) -> None:
        """Writes it as a WAV file of 16 bits."""
        samples = from_waveform(torch.from_numpy(self.whole), "int16").numpy()
        with wave.open(str(path), "wb") as file:
            file.setnchannels(self.channels)
            file.setsampwidth(2)
            file.setframerate(round(self.rate))
            file.writeframes(samples.T.astype("<i2").tobytes())


def sound_key(observation: Mapping[str, ObservationSpec]) -> str | None:
    """The first observation that is a sound, if there is one."""
    return next((key for key, spec in sorted(observation.items()) if spec.silence is not None), None)


def rate_of(spec: ObservationSpec) -> float:
    """Samples per second of a sound."""
    return spec.rate or AudioOptions().rate


def empty_track(spec: ObservationSpec, channels: int = 1) -> Track | None:
    """One for a sound that is observed; None where no player can play it, or not beside a frame for each step."""
    track = Track(rate_of(spec), spec.shape[-1], channels)
    (slow, fast), (slowest, fastest) = PLAYED, SHOWN
    playable = slow <= track.rate <= fast and slowest <= track.rate / track.samples <= fastest
    return track if playable else None


def track_of(observation: Mapping[str, ObservationSpec], *films: Mapping[str, np.ndarray]) -> Track | None:
    """What is heard in films {key: [T, *shape]}, a channel each; None where nothing is."""
    key = sound_key(observation)
    track = None if key is None else empty_track(observation[key], len(films))
    if key is None or track is None:
        return None
    track.heard.append(np.stack([mono(film[key]) for film in films]))
    return track


def mono(sound: Shaped[np.ndarray, "..."]) -> Float[np.ndarray, "all"]:
    """Sounds [T, samples], or [T, channels, samples], one after another, as numbers between -1 and 1."""
    waveform = to_waveform(torch.from_numpy(np.ascontiguousarray(sound)), sound.dtype.name)
    return waveform.reshape(len(sound), -1, sound.shape[-1]).mean(1).flatten().clamp(-1.0, 1.0).numpy()


def picture(sound: Shaped[np.ndarray, "T ..."], spec: ObservationSpec) -> UInt8[np.ndarray, "bands columns"]:
    """The mel spectrogram of sounds, one after another: high pitch on top, and as bright as it is loud."""
    waveform, rate = mono(sound), rate_of(spec)
    window = 2 ** round(math.log2(max(4.0, min(len(waveform), WINDOW * rate))))
    drawn = MelSpectrogram(len(waveform), rate, BANDS, window)(torch.from_numpy(waveform)[None])[0]
    return (255.0 * drawn.flip(0).clamp(0.0, 1.0)).to(torch.uint8).numpy()
