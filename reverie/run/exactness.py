"""What a run's arithmetic depends on beside its checkpoint: where that changes, a resume is not bit-exact."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from reverie import compilation, native
from reverie.agent import Agent


def surroundings(agent: Agent) -> dict[str, Any]:
    """How many threads compute, which native kernels take part, and whether updates are compiled."""
    return {
        "threads": torch.get_num_threads(),
        "kernels": native.version() if native.supports(*agent.world.parameters()) else "",
        "compiled": agent.compiles and compilation.works(),
    }


def differences(saved: Mapping[str, Any], agent: Agent) -> Iterator[str]:
    """Why a run that goes on from the checkpoint ``saved`` does not compute what it would have computed, in words."""
    now = surroundings(agent)
    if saved["threads"] != now["threads"]:
        yield f"{saved['threads']} threads before, {now['threads']} now"
    if saved.get("kernels") != now["kernels"]:
        yield "the native kernels are others than before"
    if saved.get("compiled", False) != agent.compiles:
        yield f"updates are compiled only {'now' if agent.compiles else 'before'}"
