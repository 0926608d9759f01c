"""Whether what a checkpoint holds fits an agent: spaces in words, sections and shapes by name, and what has changed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from reverie.errors import ConfigError, MisfitError
from reverie.trees import show
from reverie.types import ActionSpec, ObservationSpec


def describe(observation: Mapping[str, ObservationSpec], action: ActionSpec) -> dict[str, dict[str, str]]:
    """What is observed and done, in words: two agents whose words are the same can take each other's place."""
    return {
        "observation": {key: str(spec) for key, spec in sorted(observation.items())},
        "action": {part.name: f"{part.size} {'classes' if part.discrete else 'numbers'}" for part in action},
    }


def check_sections(state: Mapping[str, Any], expected: Iterable[str]) -> None:
    """Raises MisfitError naming the sections that a checkpoint lacks."""
    if missing := sorted(set(expected) - state.keys()):
        raise MisfitError(f"the checkpoint lacks {', '.join(missing)}; use another one")


def shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor by name."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def compare(what: str, saved: Mapping[str, Any], mine: Mapping[str, Any]) -> None:
    """Raises MisfitError naming the first entry that differs, and how to leave out what is observed since then."""
    differing = sorted(name for name in saved.keys() | mine.keys() if saved.get(name) != mine.get(name))
    if differing:
        name = differing[0]
        advice = "use the environment and the configuration it was trained with"
        if what == "observation" and name not in saved:
            advice += f", or leave it out with 'env.kinds={{\"{name}\": null}}'"
        if what == "tensor" and name.startswith("world.weights.") and name not in saved:
            advice += ", or set world.reconstruction_floor=0"
        if what == "tensor" and any(other.startswith("own_motives.") and other not in mine for other in differing):
            advice += "; an intrinsic reward goes on unpaid with a weight of 0"
        raise MisfitError(
            f"the checkpoint does not fit: {what} {name} is {saved.get(name, 'missing')} in it and "
            f"{mine.get(name, 'missing')} here; {advice}"
        )


@contextmanager
def explained(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[None]:
    """Turns a MisfitError into a ConfigError that names the options which differ; without any it stays what it is.

    ``before`` and ``now`` are the configuration that was stored and that of what goes on.
    """
    try:
        yield
    except MisfitError as error:
        if not (changes := list(changed(before, now))):
            raise
        raise ConfigError(f"{error}; changed: {', '.join(changes)}") from error


def changed(before: Any, now: Any, path: str = "") -> Iterator[str]:
    """Which options of the agent, its environment and its replay differ, with the old values."""
    if not (isinstance(before, Mapping) and isinstance(now, Mapping)):
        if before != now:
            yield f"{path} (was {show(before)})"
        return
    for key in now if path else now.keys() - {"run", "logger"}:
        yield from changed(before.get(key), now[key], f"{path}.{key}" if path else key)
