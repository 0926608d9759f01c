"""The layout of a replay: what its files consist of. It stands in ``replay.json`` beside them, and in checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from reverie.errors import MisfitError, StoredDataError
from reverie.replay.chunks import Columns

OPTIONS = {
    "streams": ("env.envs", 1),
    "window": ("replay.length", 1),
    "chunk": ("replay.chunk (or its share of replay.capacity)", 0),
}
"""What the layout follows from: the option, and what is added to it (a stream of recorded episodes, a context row)."""


def describe(columns: Columns, latents: Columns, streams: int, window: int, chunk: int) -> dict[str, Any]:
    """The layout as JSON gives it back."""
    layout: dict[str, Any] = {"streams": streams, "window": window, "chunk": chunk}
    return layout | {"columns": _plain(columns), "latents": _plain(latents)}


def write(directory: Path, layout: dict[str, Any]) -> None:
    """Leaves the layout beside the files."""
    _header(directory).write_text(json.dumps(layout, indent=1))


def check(directory: Path, layout: dict[str, Any], state: dict) -> None:
    """Raises MisfitError where a stored state has another layout, StoredDataError where the folder has."""
    stored = state["layout"]
    for name, (option, extra) in OPTIONS.items():
        if stored.get(name) != layout[name]:
            before, now = (f"{one.get(name, extra) - extra}" for one in (stored, layout))
            raise MisfitError(
                f"{directory}: the replay was stored with {option} = {before}, this run has {now};"
                " resume with the original configuration"
            )
    if stored != layout:
        raise MisfitError(
            f"{directory}: the replay was stored with other observations, actions or latents than this run's;"
            " resume with the original environment and configuration"
        )
    header = _header(directory)
    if state["chunks"] and not (header.is_file() and header.read_bytes() == json.dumps(layout, indent=1).encode()):
        raise StoredDataError(f"{directory}: this is not the replay of the checkpoint; restore it, or start a new run")


def _header(directory: Path) -> Path:
    return directory / "replay.json"


def _plain(columns: Columns) -> dict:
    return {name: [list(shape), dtype] for name, (shape, dtype) in columns.items()}
