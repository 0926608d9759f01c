"""What each modality costs, and attention among them beside concatenation: updates by turns in one process.

    python benchmarks/modalities.py                  # sizes tiny and 1m, a minute or two of one core
    python benchmarks/modalities.py tiny --rounds 5  # one of them, shorter

An update of the published algorithm explains 16 x 16 replayed steps, dreams 15 steps from each, and improves actor and
critic. Besides a vector it observes an image, a text, a sound, or all of them. The texts are as long as they may be and
all differ, which is the most that they can cost. Time of the process is counted, not of the clock: others may use the
machine. Medians are in ``benchmarks/results/modalities.json``.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

import torch
from curves import machine

from reverie.agent import Agent
from reverie.config import load
from reverie.run.device import set_up
from reverie.types import ActionPart, Batch, ObservationSpec

sys.path.insert(0, str(Path(__file__).parent / "peers"))
from reverie_update import count

RESULTS = Path(__file__).parent / "results" / "modalities.json"
ROWS, LENGTH, ACTIONS = 16, 16, 5

VECTOR = {"vector": ObservationSpec((16,), "float32")}
IMAGE = {"image": ObservationSpec((64, 64, 3), "uint8")}
TEXT = {"text": ObservationSpec((64,), "uint8", kind="text")}
AUDIO = {"audio": ObservationSpec((1600,), "int16", kind="audio", rate=16_000)}
TOKENS = {
    number: {"text": ObservationSpec((16,), "uint16", number, kind="text", tokenizer=f"any of {number}")}
    for number in (500, 8000)
}
EVERYTHING = VECTOR | IMAGE | TEXT | AUDIO
ARMS: dict[str, tuple[Mapping[str, ObservationSpec], str]] = {
    "vector": (VECTOR, "concat"),
    "image": (VECTOR | IMAGE, "concat"),
    "text": (VECTOR | TEXT, "concat"),
    "500 tokens": (VECTOR | TOKENS[500], "concat"),
    "8000 tokens": (VECTOR | TOKENS[8000], "concat"),
    "audio": (VECTOR | AUDIO, "concat"),
    "everything": (EVERYTHING, "concat"),
    "attention": (EVERYTHING, "attention"),
}
"""What is observed, and how it becomes one token."""


def make_agent(observation: Mapping[str, ObservationSpec], fusion: str, size: str) -> Agent:
    """One that learns as published, but for the floor under the losses of several modalities."""
    changes = [f"world.size={size}", f"world.fusion={fusion}", "world.reconstruction_floor=null"]
    chosen = load("dreamerv3", changes)
    spaces = dict(observation), (ActionPart("action", ACTIONS, True),)
    return Agent(chosen.agent, chosen.world, chosen.behavior, chosen.hierarchy, spaces, torch.device("cpu"))


def draw(spec: ObservationSpec) -> torch.Tensor:
    """Noise [B, T, *shape]; a text has no end before its last symbol."""
    shape, limits = (ROWS, LENGTH, *spec.shape), torch.iinfo(torch.int16)
    if spec.dtype == "float32":
        return torch.rand(shape)
    low, high = (limits.min, limits.max) if spec.silence is not None else (int(spec.kind == "text"), 256)
    return torch.randint(low, spec.classes or high, shape).to(getattr(torch, spec.dtype))


def make_batch(agent: Agent) -> Batch:
    """Replayed noise [B, T, ...] of what the agent observes."""
    sizes, first = agent.world.sizes, torch.rand(ROWS, LENGTH) < 0.02
    action = torch.eye(ACTIONS)[torch.randint(ACTIONS, (ROWS, LENGTH))]
    return Batch(
        obs={key: draw(spec) for key, spec in agent.world.observation.items()},
        action=action,
        reward=torch.rand(ROWS, LENGTH),
        first=first,
        last=first.roll(-1, 1),
        terminal=first.roll(-1, 1),
        slot=torch.zeros(ROWS, LENGTH, dtype=torch.long),
        context_action=action[:, 0],
        context_latent={
            "deter": torch.zeros(ROWS, sizes.deter),
            "stoch": torch.zeros(ROWS, sizes.stoch, dtype=torch.uint8),
        },
    )


def measure(size: str, rounds: int) -> dict[str, dict[str, Any]]:
    """By arm, the median milliseconds of an update after a first one, and how many parameters there are."""
    agents = {name: make_agent(*arm, size) for name, arm in ARMS.items()}
    batches = {name: make_batch(agent) for name, agent in agents.items()}
    times: dict[str, list[float]] = {name: [] for name in agents}
    for _ in range(1 + rounds):
        for name, agent in agents.items():
            began = time.process_time()
            agent.learn(batches[name])
            times[name].append(1000 * (time.process_time() - began))
    return {
        name: {"milliseconds": round(median(times[name][1:]), 1), "parameters": count(agent)}
        for name, agent in agents.items()
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sizes", nargs="*", default=["tiny", "1m"])
    parser.add_argument("--rounds", type=int, default=7, help="updates of each")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the file to write")
    options = parser.parse_args()
    set_up(threads=1, kernels="auto")
    measured = {size: measure(size, options.rounds) for size in options.sizes}
    result = {"machine": machine(), "time": "of the process, one thread", "updates": options.rounds, "sizes": measured}
    options.results.parent.mkdir(parents=True, exist_ok=True)
    options.results.write_text(json.dumps(result, indent=1) + "\n")
    print(f"| | {' | '.join(measured)} |\n|---|{'---|' * len(measured)}")
    for name in ARMS:
        print(
            f"| {name} | " + " | ".join(f"{table[name]['milliseconds']:.1f} ms" for table in measured.values()) + " |"
        )


if __name__ == "__main__":
    main()
