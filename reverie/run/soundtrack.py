"""The sound of films: what was heard of an episode, step by step, as a track and as a picture."""

from __future__ import annotations

import functools
import logging
import math
import wave
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Shaped, UInt8
from torch.nn import functional

from reverie.types import ObservationSpec
from reverie.world.modality import MODALITY_CONFIGS
from reverie.world.modality.audio import AudioOptions
from reverie.world.modality.config import ModalityOptions
from reverie.world.modality.sound import MelSpectrogram, from_waveform, to_waveform

BANDS, WINDOW = 64, 0.032
"""Of pictures: of pitch, and seconds."""

PLAYED, SHOWN = (100.0, 384_000.0), (1 / 60, 240.0)
"""The slowest and the fastest that players are given: samples, and steps, per second."""

log = logging.getLogger(__name__)


@dataclass
class Track:
    """What was heard until now, in pieces [channels, samples], and what is known of it before."""

    rate: float
    """Samples per second."""
    samples: int
    """Of one step."""
    channels: int = 1
    heard: list[Float[np.ndarray, "channels samples"]] = field(default_factory=list)
    sounds: tuple[str, ...] = ()
    """The keys of what is heard, all at once."""

    @property
    def steps_per_second(self) -> Fraction:
        """At which a film goes with it."""
        return Fraction(self.rate / self.samples).limit_denominator(1000)

    @property
    def whole(self) -> Float[np.ndarray, "channels all"]:
        return np.concatenate(self.heard, -1)

    def hear(self, *films: Mapping[str, Shaped[np.ndarray, "T ..."]]) -> None:
        """Adds the sounds of films {key: [T, *shape]}, a channel each: their mean, each over the whole of its step."""
        self.heard.append(np.stack([np.mean([self._fit(film[key]) for key in self.sounds], 0) for film in films]))

    def _fit(self, sound: Shaped[np.ndarray, "T ..."]) -> Float[np.ndarray, "all"]:
        """A sound with as many samples in a step as the track has."""
        if sound.shape[-1] == self.samples:
            return mono(sound)
        steps = torch.from_numpy(mono(sound)).reshape(len(sound), 1, -1)
        return functional.interpolate(steps, self.samples, mode="linear").flatten().numpy()

    def write(self, path: Path) -> None:
        """Writes it as a WAV file of 16 bits."""
        samples = from_waveform(torch.from_numpy(self.whole), "int16").numpy()
        with wave.open(str(path), "wb") as file:
            file.setnchannels(self.channels)
            file.setsampwidth(2)
            file.setframerate(round(self.rate))
            file.writeframes(samples.T.astype("<i2").tobytes())


def with_rates(
    observation: Mapping[str, ObservationSpec], choices: Mapping[str, ModalityOptions]
) -> dict[str, ObservationSpec]:
    """What is observed, every sound with a rate: that which the agent reads it at where the environment says none.

    ``choices`` are those about modalities. Sounds whose rate is not known are pointed out, once.
    """
    entry, found = MODALITY_CONFIGS["audio"].changed(choices.get("audio", ModalityOptions())), dict(observation)
    rate = float(entry.options.get("rate", AudioOptions().rate))
    for key, spec in observation.items():
        if spec.silence is not None and not spec.rate:
            _say_assumed(key, rate)
            found[key] = replace(spec, rate=rate)
    return found


@functools.cache
def _say_assumed(key: str, rate: float) -> None:
    log.warning("the sound %r is played at %g samples per second, for the environment does not say its rate; set it as "
                "`rate` of its space, or as world.modalities.audio.options.rate", key, rate)  # fmt: skip


def empty_track(observation: Mapping[str, ObservationSpec], channels: int = 1) -> Track | None:
    """One for all sounds that are observed, with the rate of whichever has most samples in a step.

    Sounds are left out that no player can play, or not beside a frame for each step; None where nothing is left.
    """
    sounds = {key: spec for key, spec in sorted(observation.items()) if spec.silence is not None and _plays(spec)}
    if not sounds:
        return None
    finest = max(sounds.values(), key=lambda spec: spec.shape[-1])
    return Track(finest.rate, finest.shape[-1], channels, sounds=tuple(sounds))


def _plays(spec: ObservationSpec) -> bool:
    (slow, fast), (slowest, fastest) = PLAYED, SHOWN
    return slow <= spec.rate <= fast and slowest <= spec.rate / spec.shape[-1] <= fastest


def track_of(observation: Mapping[str, ObservationSpec], *films: Mapping[str, np.ndarray]) -> Track | None:
    """What is heard in films {key: [T, *shape]}, a channel each; None where nothing is."""
    track = empty_track(observation, len(films))
    if track is not None:
        track.hear(*films)
    return track


def mono(sound: Shaped[np.ndarray, "..."]) -> Float[np.ndarray, "all"]:
    """Sounds [T, samples], or [T, channels, samples], one after another, as numbers between -1 and 1."""
    waveform = to_waveform(torch.from_numpy(np.ascontiguousarray(sound)), sound.dtype.name)
    return waveform.reshape(len(sound), -1, sound.shape[-1]).mean(1).flatten().clamp(-1.0, 1.0).numpy()


def picture(sound: Shaped[np.ndarray, "T ..."], spec: ObservationSpec) -> UInt8[np.ndarray, "bands columns"]:
    """The mel spectrogram of sounds, one after another: high pitch on top, and as bright as it is loud."""
    waveform, rate = mono(sound), spec.rate
    window = 2 ** round(math.log2(max(4.0, min(len(waveform), WINDOW * rate))))
    drawn = MelSpectrogram(len(waveform), rate, BANDS, window)(torch.from_numpy(waveform)[None])[0]
    return (255.0 * drawn.flip(0).clamp(0.0, 1.0)).to(torch.uint8).numpy()
