"""What can be put around one environment: action repeat, time limit, image size, one-hot observations, lost senses.

Wrappers speak the `Environment` protocol on both sides, so they compose in any order, and the outermost one still
says exactly which observations it shows.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Protocol, runtime_checkable

import numpy as np

from reverie.errors import ConfigError
from reverie.types import ActionSpec, ObservationSpec, presence_key

Observation = dict[str, np.ndarray]


@runtime_checkable
class Environment(Protocol):
    """One environment, adapted: named arrays out, a flat action vector in."""

    observation: dict[str, ObservationSpec]
    action: ActionSpec
    notes: list[str]
    """What a user must know of how its spaces were translated, a line each."""

    def reset(self, seed: int) -> Observation:
        """Begins the episode that ``seed`` determines and returns its first observation."""
        ...

    def step(self, action: np.ndarray) -> tuple[Observation, float, bool, bool]:
        """Takes the action [A]; returns observation, reward, terminated, truncated."""
        ...

    def report(self) -> dict[str, float]:
        """The numbers that were asked of it (`EnvOptions.info_metrics`), over the episode so far."""
        ...

    def render(self) -> np.ndarray | None:
        """A picture for videos, uint8 [height, width, 3], where the environment can draw one."""
        ...

    def close(self) -> None: ...


class Wrapper:
    """Passes everything on."""

    def __init__(self, inner: Environment):
        self.inner = inner
        self.observation = inner.observation
        self.action = inner.action
        self.notes = inner.notes

    def reset(self, seed: int) -> Observation:
        return self.inner.reset(seed)

    def step(self, action: np.ndarray) -> tuple[Observation, float, bool, bool]:
        return self.inner.step(action)

    def report(self) -> dict[str, float]:
        return self.inner.report()

    def render(self) -> np.ndarray | None:
        return self.inner.render()

    def close(self) -> None:
        self.inner.close()


class Repeat(Wrapper):
    """Takes every action ``times`` times and sums the rewards.

    With ``pool``, images are the brighter of the last two frames: some consoles draw an object only every other frame.
    Sounds are those of all frames, one after another, with silence before them where there were fewer.
    """

    def __init__(self, inner: Environment, times: int, pool: bool):
        super().__init__(inner)
        self.times = times
        self.pooled = image_keys(inner) if pool else []
        sounds = {key: spec for key, spec in inner.observation.items() if spec.silence is not None}
        joined = {key: (*spec.shape[:-1], times * spec.shape[-1]) for key, spec in sounds.items()}
        self.observation = inner.observation | {key: replace(spec, shape=joined[key]) for key, spec in sounds.items()}
        self.silence = {key: np.full(spec.shape, spec.silence, spec.dtype) for key, spec in sounds.items()}

    def reset(self, seed: int) -> Observation:
        return self._shown([self.inner.reset(seed)])

    def step(self, action: np.ndarray) -> tuple[Observation, float, bool, bool]:
        frames, total, terminated, truncated = [], 0.0, False, False
        while len(frames) < self.times and not (terminated or truncated):
            obs, reward, terminated, truncated = self.inner.step(action)
            frames.append(obs)
            total += reward
        return self._shown(frames), total, terminated, truncated

    def _shown(self, frames: list[Observation]) -> Observation:
        shown = dict(frames[-1])
        if len(frames) > 1:
            shown |= {key: np.maximum(frames[-1][key], frames[-2][key]) for key in self.pooled}
        for key, silence in self.silence.items():
            heard = [silence] * (self.times - len(frames)) + [frame[key] for frame in frames]
            shown[key] = np.concatenate(heard, -1)
            if (flag := presence_key(key)) in shown:
                shown[flag] = np.array(any(frame[flag] for frame in frames))
        return shown


class TimeLimit(Wrapper):
    """Truncates (never terminates) an episode after so many steps."""

    def __init__(self, inner: Environment, steps: int):
        super().__init__(inner)
        self.steps = steps
        self.taken = 0

    def reset(self, seed: int) -> Observation:
        self.taken = 0
        return self.inner.reset(seed)

    def step(self, action: np.ndarray) -> tuple[Observation, float, bool, bool]:
        self.taken += 1
        obs, reward, terminated, truncated = self.inner.step(action)
        return obs, reward, terminated, truncated or self.taken >= self.steps


class Map(Wrapper):
    """Replaces some observations by a function of them."""

    def __init__(
        self,
        inner: Environment,
        functions: dict[str, Callable[[np.ndarray], np.ndarray]],
        specs: dict[str, ObservationSpec],
    ):
        super().__init__(inner)
        self.functions = functions
        self.observation = inner.observation | specs

    def reset(self, seed: int) -> Observation:
        return self._map(self.inner.reset(seed))

    def step(self, action: np.ndarray) -> tuple[Observation, float, bool, bool]:
        obs, reward, terminated, truncated = self.inner.step(action)
        return self._map(obs), reward, terminated, truncated

    def _map(self, obs: Observation) -> Observation:
        return obs | {key: function(obs[key]) for key, function in self.functions.items()}


def image_keys(environment: Environment) -> list[str]:
    """The observations that are pictures: uint8 [height, width, channels] without classes, and of no other kind."""
    bytes_of_rank_three = {
        key: spec for key, spec in environment.observation.items() if spec.dtype == "uint8" and len(spec.shape) == 3
    }
    return [key for key, spec in bytes_of_rank_three.items() if not spec.classes and spec.kind in ("", "image")]


def resize(inner: Environment, size: int) -> Environment:
    """Scales every image to ``size`` x ``size`` with an antialiased bilinear filter."""
    from PIL import Image

    def scale(image: np.ndarray) -> np.ndarray:
        if image.shape[-1] not in (1, 3):  # others, alpha above all, are no colours
            return np.concatenate([scale(image[..., channel : channel + 1]) for channel in range(image.shape[-1])], -1)
        picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
        return np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR)).reshape(size, size, -1)

    changed = [key for key in image_keys(inner) if inner.observation[key].shape[:2] != (size, size)]
    known = {key: inner.observation[key] for key in changed}
    specs = {key: replace(spec, shape=(size, size, spec.shape[-1])) for key, spec in known.items()}
    return Map(inner, dict.fromkeys(changed, scale), specs) if changed else inner


def grayscale(inner: Environment) -> Environment:
    """Keeps the luma (ITU-R 601) of every RGB image: uint8 [height, width, 1]."""
    weights = np.array([299, 587, 114], np.uint32)

    def luma(image: np.ndarray) -> np.ndarray:
        return ((image * weights).sum(-1, keepdims=True) // 1000).astype(np.uint8)

    changed = [key for key in image_keys(inner) if inner.observation[key].shape[-1] == 3]
    known = {key: inner.observation[key] for key in changed}
    specs = {key: replace(spec, shape=(*spec.shape[:2], 1)) for key, spec in known.items()}
    return Map(inner, dict.fromkeys(changed, luma), specs) if changed else inner


def one_hot(inner: Environment, keys: bool | Collection[str]) -> Environment:
    """Turns integer observations (all of them, or those named) into flat float32 vectors of one-hots.

    Raises `ConfigError` if a named key is not an integer observation.
    """
    integers = {key: spec for key, spec in inner.observation.items() if spec.classes and spec.dtype != "bool"}
    known = [key for key, spec in integers.items() if not spec.tokenizer]
    changed = known if keys is True else list(keys or [])
    for key in changed:
        if key not in known:
            raise ConfigError(f"env.one_hot names {key!r}, but the integer observations are {known}; choose among them")

    def expand(classes: int) -> Callable[[np.ndarray], np.ndarray]:
        table = np.eye(classes, dtype=np.float32)
        return lambda value: table[value].reshape(-1)

    specs = {key: inner.observation[key] for key in changed}
    flat = {
        key: replace(spec, shape=(int(np.prod(spec.shape)) * spec.classes,), dtype="float32", classes=0)
        for key, spec in specs.items()
    }
    return Map(inner, {key: expand(spec.classes) for key, spec in specs.items()}, flat) if changed else inner


class Mute(Wrapper):
    """Makes observations fall silent: they are as if nothing was there, and missing where they are optional.

    What the environment says that it shows stays the same, so an agent that was trained with a sense can lose it.
    Raises `ConfigError` for an observation that there is not.
    """

    def __init__(self, inner: Environment, keys: Collection[str]):
        super().__init__(inner)
        known = {key for name in keys for key in (name, presence_key(name)) if key in inner.observation}
        self.silence = {key: inner.observation[key].silence or 0 for key in known}
        if unknown := sorted(set(keys) - known):
            raise ConfigError(f"env.mute names {unknown[0]!r}, but the observations are {sorted(inner.observation)}; "
                              "choose among them")  # fmt: skip

    def reset(self, seed: int) -> Observation:
        return self._mute(self.inner.reset(seed))

    def step(self, action: np.ndarray) -> tuple[Observation, float, bool, bool]:
        obs, reward, terminated, truncated = self.inner.step(action)
        return self._mute(obs), reward, terminated, truncated

    def _mute(self, obs: Observation) -> Observation:
        return obs | {key: np.full_like(obs[key], silence) for key, silence in self.silence.items()}
