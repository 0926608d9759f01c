"""Translates observations of Gymnasium spaces into named arrays.

The translation is prepared once, when the environment is made; an unsupported space is an error then, never later.
Reading an observation also checks and copies it, so what has passed here is finite, of the promised shape, and ours.

What Gymnasium has no words for, a space may say in attributes: ``kind``, ``rate`` and ``optional``, as in
`ObservationSpec`. An optional observation may be None or left out of its dict.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from numbers import Real
from typing import Any

import numpy as np
from gymnasium import spaces

from reverie.env.layout import Layout, find_layout
from reverie.env.text import encode, is_text, limit_of, text_spec
from reverie.errors import ConfigError
from reverie.types import FASTEST, SLOWEST, ObservationSpec, presence_key

logger = logging.getLogger(__name__)

LARGEST = float(np.finfo(np.float32).max)

SAFE_CASTS = {"uint8": "b", "int64": "biu", "float16": "biuf", "float32": "biuf"}
SAFE_CASTS |= dict.fromkeys(("bool", "uint16", "int16"), "biu")
"""The numpy dtype kinds that may be cast to each dtype of an observation, where no integer is lost."""

KEPT = {"bool", "uint8", "uint16", "int16", "float16"}
"""Dtypes of a Box that stay as they are; all others are read as float32."""


class BadTransition(Exception):
    """An environment returned something that does not fit its own space."""


class ObservationReader:
    """Reads an observation of ``space`` as ``{key: array}``; nested keys are joined with ``/``.

    A space that is not a Dict or Tuple gets the key ``image`` (`reverie.env.layout` says when), ``text`` or ``vector``.
    ``kinds`` says by key what an observation is, whatever it looks like; None leaves it out. A text has ``text_length``
    bytes, or tokens of the ``tokenizer``. ``notes`` says what a user must know of the space.

    Raises `ConfigError` for an unsupported space, where two observations have the same name, and where ``kinds`` speaks
    of one that there is not. Calling it raises `BadTransition` on a missing or extra key, a wrong shape or dtype, or a
    number that is not finite.
    """

    def __init__(
        self, space: spaces.Space, kinds: Mapping[str, str | None] = {}, text_length: int = 64, tokenizer: str = ""
    ):
        self.specs: dict[str, ObservationSpec] = {}
        self.notes: list[str] = []
        self._kinds, self._text, self._seen = kinds, (text_length, tokenizer), set[str]()
        self._leaves: list[tuple[str, Callable[[Any], np.ndarray]]] = []
        self._groups: list[tuple[tuple, set, set, bool]] = []
        self._walk(space, ())
        unknown = sorted(kinds.keys() - self._seen)
        if named := [key for key in unknown if kinds[key] is not None]:
            raise ConfigError(f"env.kinds names {named[0]!r}, but the observations are {sorted(self._seen)}")
        # A preset may leave out what another environment does not have.
        self.notes += [f"there is no observation {key!r} for env.kinds to leave out" for key in unknown]
        if not self.specs:
            raise ConfigError(
                f"the observation space {space} holds nothing that can be used; add a Box or Discrete space"
            )

    def __call__(self, value: Any) -> dict[str, np.ndarray]:
        for path, keys, optional, missable in self._groups:
            if not missable or _find(value, path) is not None:
                self._check_keys(path, keys, optional, _follow(value, path))
        return {key: read(value) for key, read in self._leaves}

    def _walk(self, space: spaces.Space, path: tuple, optional: bool = False) -> None:
        """``optional`` says that something around the space may be missing, and it with that."""
        optional = optional or bool(getattr(space, "optional", False))
        if isinstance(space, spaces.Dict):
            may_lack = {key for key, child in space.spaces.items() if getattr(child, "optional", False)}
            self._groups.append((path, set(space.spaces), may_lack, optional))
            for key, child in space.spaces.items():
                self._walk(child, (*path, key), optional)
        elif isinstance(space, spaces.Tuple):
            for index, child in enumerate(space.spaces):
                self._walk(child, (*path, index), optional)
        elif is_text(space) or math.prod(space.shape or ()):
            self._leaf(space, path, optional)

    def _leaf(self, space: spaces.Space, path: tuple, optional: bool) -> None:
        layout, said = find_layout(space) if isinstance(space, spaces.Box) else (None, "")
        key = "/".join(map(str, path)) or ("image" if layout else "text" if is_text(space) else "vector")
        kind = self._kinds.get(key, getattr(space, "kind", ""))
        self._seen.add(key)
        if kind is None:
            return
        if is_text(space):
            spec = text_spec(space, *self._text)
            read, kind = _text_reader(key, spec, limit_of(space, *self._text)), kind or spec.kind
        else:
            spec, start = _observation_spec(space)
            read = _array_reader(key, spec, start)
            if layout and kind in ("", "image"):
                spec, read = replace(spec, shape=layout.shape, dtype="uint8"), _picture_reader(key, read, layout)
            if said and not kind:
                self.notes.append(f"observation {key!r} of shape {space.shape} {said}")
        spec = replace(spec, kind=kind, rate=_rate(key, getattr(space, "rate", 0)), optional=optional)
        if spec.silence is not None and kind in ("", "audio") and spec.dtype.startswith("float"):
            read = _sound_reader(key, read)
        if optional:
            present = presence_key(key)
            self._add(present, ObservationSpec((), "bool", 2), lambda value: np.array(_find(value, path) is not None))
            self._add(key, spec, _optional_reader(read, spec, path))
        else:
            self._add(key, spec, (lambda value: read(_follow(value, path))) if path else read)

    def _add(self, key: str, spec: ObservationSpec, read: Callable[[Any], np.ndarray]) -> None:
        if key in self.specs:
            raise ConfigError(f"the observation space has two observations called {key!r}; rename one of its keys")
        self.specs[key] = spec
        self._leaves.append((key, read))

    @staticmethod
    def _check_keys(path: tuple, expected: set, optional: set, value: Any) -> None:
        where = f"observation {'/'.join(map(str, path))!r}" if path else "the observation"
        if not isinstance(value, Mapping):
            raise BadTransition(f"{where} is {type(value).__name__}, expected a dict with the keys {sorted(expected)}")
        if value.keys() != expected and value.keys() | optional != expected:
            raise BadTransition(f"{where} has the keys {sorted(value)}, expected {sorted(expected)}")


def read_reward(reward: Any) -> float:
    """The reward as a finite float; raises `BadTransition` otherwise."""
    if type(reward) is not float:
        if not isinstance(reward, (int, float, np.number, np.ndarray)) or np.size(reward) != 1:
            raise BadTransition(f"reward is {reward!r} ({type(reward).__name__}), expected a number")
        reward = float(np.asarray(reward).reshape(()))
    if not -LARGEST <= reward <= LARGEST:
        raise BadTransition(f"reward is {reward}, expected a finite float32 number")
    return reward


def read_flag(name: str, flag: Any) -> bool:
    """The flag as a bool; raises `BadTransition` if it is anything else."""
    if flag is True or flag is False:
        return flag
    if not isinstance(flag, np.bool_):
        raise BadTransition(f"{name} is {flag!r} ({type(flag).__name__}), expected a bool")
    return bool(flag)


def _follow(value: Any, path: tuple) -> Any:
    try:
        for part in path:
            value = value[part]
    except (LookupError, TypeError) as error:
        raise BadTransition(f"observation {'/'.join(map(str, path))!r} is missing") from error
    return value


def _find(value: Any, path: tuple) -> Any:
    """What is there, or None."""
    try:
        return _follow(value, path)
    except BadTransition:
        return None


def _rate(key: str, rate: Any) -> float:
    """Samples per second, as a space says them; zero where they are unknown."""
    number = float(rate) if isinstance(rate, (Real, np.number)) else math.nan
    if number and not SLOWEST <= number <= FASTEST:
        raise ConfigError(f"observation {key!r}: rate = {rate!r} should be a positive number, of samples per second "
                          f"from {SLOWEST:g} to {FASTEST:g}; leave it out where it is unknown")  # fmt: skip
    return number


def _observation_spec(space: spaces.Space) -> tuple[ObservationSpec, Any]:
    """The spec of a simple space, and the number that its smallest class has in the environment."""
    if isinstance(space, spaces.Discrete):
        return ObservationSpec((), "int64", int(space.n)), int(space.start)
    if isinstance(space, spaces.MultiDiscrete):
        return ObservationSpec(space.shape, "int64", int(space.nvec.max())), space.start
    if isinstance(space, spaces.MultiBinary):
        return ObservationSpec(space.shape, "int64", 2), 0
    if isinstance(space, spaces.Box):
        name = np.dtype(space.dtype).name
        return ObservationSpec(space.shape, name if name in KEPT else "float32", 2 if name == "bool" else 0), 0
    raise ConfigError(f"the observation space {space} is not supported; use Box, Discrete, Multi*, Text, Dict or Tuple")


def _array_reader(key: str, spec: ObservationSpec, start: Any) -> Callable[[Any], np.ndarray]:
    dtype, shape, classes = np.dtype(spec.dtype), spec.shape, spec.classes
    is_float = dtype.kind == "f"

    def read(value: Any) -> np.ndarray:
        array = np.array(value)  # a copy: many environments reuse their buffer
        if array.dtype != dtype:
            if array.dtype.kind not in SAFE_CASTS[spec.dtype]:
                raise BadTransition(f"observation {key!r} has dtype {array.dtype}, expected {dtype}")
            given, array = array, array.astype(dtype)
            if dtype.kind in "biu" and dtype.itemsize < 8 and (array != given).any():
                raise BadTransition(f"observation {key!r} has numbers from {given.min()} to {given.max()}, which are "
                                    f"no {dtype}")  # fmt: skip
        if array.shape != shape:
            raise BadTransition(f"observation {key!r} has shape {array.shape}, expected {shape}")
        # The sum of squares is much cheaper than isfinite, and finite only if every number is.
        if is_float and not math.isfinite(np.vdot(array, array)) and not np.isfinite(array).all():
            raise BadTransition(f"observation {key!r} holds NaN or infinity, expected finite numbers")
        if classes and dtype.kind != "b":
            array -= start
            if array.min() < 0 or array.max() >= classes:
                raise BadTransition(f"observation {key!r} is outside of its {classes} classes")
        return array

    return read


def _text_reader(key: str, spec: ObservationSpec, limit: str) -> Callable[[Any], np.ndarray]:
    def read(value: Any) -> np.ndarray:
        if not isinstance(value, str):
            raise BadTransition(f"observation {key!r} is {type(value).__name__}, expected a text")
        return encode(value, spec, key, limit)

    return read


def _sound_reader(key: str, read: Callable[[Any], np.ndarray]) -> Callable[[Any], np.ndarray]:
    """Points out floats that are too loud, which the world model cuts off."""

    def read_sound(value: Any) -> np.ndarray:
        samples = read(value)
        if samples.min() < -1 or samples.max() > 1:
            _warn_of_loudness(key)
        return samples

    return read_sound


@functools.cache
def _warn_of_loudness(key: str) -> None:
    logger.warning("the sound %r has samples beyond -1 and 1, which are cut off; divide them by the loudest, or show "
                   "them as int16", key)  # fmt: skip


def _optional_reader(
    read: Callable[[Any], np.ndarray], spec: ObservationSpec, path: tuple
) -> Callable[[Any], np.ndarray]:
    def read_optional(value: Any) -> np.ndarray:
        found = _find(value, path)
        return np.full(spec.shape, spec.silence or 0, spec.dtype) if found is None else read(found)

    return read_optional


def _picture_reader(key: str, read: Callable[[Any], np.ndarray], layout: Layout) -> Callable[[Any], np.ndarray]:
    def read_picture(value: Any) -> np.ndarray:
        array = read(value)
        if not layout.fits(array):
            raise BadTransition(
                f"observation {key!r} has numbers from {array.min():g} to {array.max():g}, but its bounds are 0 and "
                f"{layout.white:g}; mend its Box"
            )
        return layout(array)

    return read_picture
