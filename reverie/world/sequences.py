"""Whether sequences of a data set have the shapes that a world model takes."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from reverie.errors import ConfigError
from reverie.types import ObservationSpec


def rows_and_steps(given: Mapping[str, Tensor], observation: Mapping[str, ObservationSpec]) -> tuple[int, int]:
    """B and T of observations {key: [B, T, *shape]}; an image may have its channels first or last.

    What is not of ``observation`` is a flag [B, T]. Raises ConfigError, which names what does not fit.
    """
    batch: tuple[int, int] | None = None
    for key, value in given.items():
        spec, found = observation.get(key, ObservationSpec((), "bool")), tuple(value.shape)
        shape, shapes = spec.shape, {spec.shape}
        if len(shape) == 3:
            shapes |= {(*shape[1:], shape[0]), (shape[2], *shape[:2])}
        if len(found) < 2 or found[2:] not in shapes or found[:2] != (batch or found[:2]):
            check(key, found, (*(batch or "BT"), *shape))
        batch = value.shape[0], value.shape[1]
    assert batch is not None  # at least one is given
    return batch


def check(name: str, found: tuple[int, ...], expected: tuple[int | str, ...]) -> None:
    """Raises ConfigError where something of a batch has another shape than is expected."""
    if tuple(found) != expected:
        raise ConfigError(f"a batch has {name!r} of shape [{', '.join(map(str, found))}], expected "
                          f"[{', '.join(map(str, expected))}]: sequences, steps, and what each shows")  # fmt: skip
