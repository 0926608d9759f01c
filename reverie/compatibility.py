"""Whether what a checkpoint holds fits an agent: spaces in words, sections and shapes by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from reverie.errors import StoredDataError
from reverie.types import ActionSpec, ObservationSpec


def describe(observation: Mapping[str, ObservationSpec], action: ActionSpec) -> dict[str, dict[str, str]]:
    """What is observed and done, in words: two agents whose words are the same can take each other's place."""
    return {
        "observation": {key: str(spec) for key, spec in sorted(observation.items())},
        "action": {part.name: f"{part.size} {'classes' if part.discrete else 'numbers'}" for part in action},
    }


def check_sections(state: Mapping[str, Any], expected: Iterable[str]) -> None:
    """Raises StoredDataError naming the sections that a checkpoint lacks."""
    if missing := sorted(set(expected) - state.keys()):
        raise StoredDataError(f"the checkpoint lacks {', '.join(missing)}; use another one")


def shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor by name."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def compare(what: str, saved: Mapping[str, Any], mine: Mapping[str, Any]) -> None:
    """Raises StoredDataError naming the first entry that differs, and how to leave out what is observed since then."""
    differing = sorted(name for name in saved.keys() | mine.keys() if saved.get(name) != mine.get(name))
    if differing:
        name = differing[0]
        advice = "use the environment and the configuration it was trained with"
        if what == "observation" and name not in saved:
            advice += f", or leave it out with 'env.kinds={{\"{name}\": null}}'"
        if what == "tensor" and name.startswith("world.weights.") and name not in saved:
            advice += ", or set world.reconstruction_floor=0"
        raise StoredDataError(
            f"the checkpoint does not fit: {what} {name} is {saved.get(name, 'missing')} in it and "
            f"{mine.get(name, 'missing')} here; {advice}"
        )
