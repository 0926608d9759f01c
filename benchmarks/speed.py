"""Speed of one full update (explain a batch, dream, improve), with native kernels and in plain tensors.

    python benchmarks/speed.py                          # all workloads
    python benchmarks/speed.py size1m --threads 1

Every measurement is a process of its own; the settings take turns, so that a busy minute of the machine hits all of
them. Results are in ``benchmarks/results/speed.json``: medians over all updates, and peak memory.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

from reverie.agent import Agent
from reverie.config import Config, load
from reverie.run.device import set_up
from reverie.types import ActionPart, Batch, ObservationSpec

RESULTS = Path(__file__).parent / "results" / "speed.json"
SETTINGS = ("kernels", "tensors")
PUBLISHED = ["behavior.epochs=1", "behavior.minibatches=1", "replay.batch_size=16", "replay.length=64"]


@dataclass(frozen=True)
class Workload:
    """A file in ``configs`` with changes, the shape of what is observed, and the number of actions."""

    config: str
    changes: list[str]
    observation: ObservationSpec
    actions: int


NUMBERS = ObservationSpec((16,), "float32")
WORKLOADS = {
    "cartpole": Workload("default", [], ObservationSpec((4,), "float32"), 2),
    "size1m": Workload("dreamerv3", ["world.size=1m", *PUBLISHED], NUMBERS, 5),
    "mid": Workload(
        "dreamerv3",
        ["world.size=1m", "world.hidden=512", "world.units=512", "world.layers=2", "behavior.layers=2", *PUBLISHED],
        NUMBERS,
        5,
    ),
    "pixels": Workload("pixels", [], ObservationSpec((64, 64, 3), "uint8"), 7),
}


def make_batch(config: Config, agent: Agent, workload: Workload) -> Batch:
    """Random sequences of the configured size."""
    generator, shape = torch.Generator().manual_seed(0), (config.replay.batch_size, config.replay.length)
    spec, sizes = workload.observation, agent.world.sizes
    image = spec.dtype == "uint8"
    obs = torch.rand(*shape, *spec.shape, generator=generator)
    action = torch.eye(workload.actions)[torch.randint(workload.actions, shape, generator=generator)]
    first = torch.rand(shape, generator=generator) < 0.02
    return Batch(
        obs={"observation": (255 * obs).to(torch.uint8) if image else obs},
        action=action,
        reward=torch.rand(shape, generator=generator),
        first=first,
        last=first.roll(-1, 1),
        terminal=first.roll(-1, 1),
        slot=torch.zeros(shape, dtype=torch.long),
        context_action=action[:, 0],
        context_latent={
            "deter": torch.zeros(shape[0], sizes.deter),
            "stoch": torch.zeros(shape[0], sizes.stoch, dtype=torch.uint8),
        },
    )


def measure(name: str, setting: str, threads: int, updates: int) -> dict[str, object]:
    """Milliseconds of each update after three that warm up, peak memory in MB, and the number of parameters."""
    workload = WORKLOADS[name]
    set_up(threads, "auto" if setting == "kernels" else "off")
    config = load(Path(f"configs/{workload.config}.json"), workload.changes)
    spaces = {"observation": workload.observation}, (ActionPart("action", workload.actions, True),)
    agent = Agent(config.agent, config.world, config.behavior, config.hierarchy, spaces, torch.device("cpu"))
    batch, times = make_batch(config, agent, workload), []
    for _ in range(3 + updates):
        began = time.perf_counter()
        agent.learn(batch)
        times.append(1000 * (time.perf_counter() - began))
    return {
        "milliseconds": times[3:],
        "megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "parameters": sum(parameter.numel() for parameter in agent.parameters() if parameter.requires_grad),
    }


def compare(name: str, threads: int, updates: int, rounds: int) -> dict[str, dict[str, float]]:
    """Medians of every setting, whose processes take turns."""
    runs: dict[str, list[dict[str, object]]] = {setting: [] for setting in SETTINGS}
    for _ in range(rounds):
        for setting in SETTINGS:
            command = [sys.executable, __file__, name, "--measure", setting, "--threads", str(threads)]
            command += ["--updates", str(updates)]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            runs[setting].append(json.loads(output))
    table = {
        setting: {
            "milliseconds": round(median(value for run in found for value in run["milliseconds"]), 1),  # type: ignore[union-attr]
            "megabytes": round(max(run["megabytes"] for run in found)),  # type: ignore[type-var]
            "parameters": found[0]["parameters"],
        }
        for setting, found in runs.items()
    }
    ratio = table["tensors"]["milliseconds"] / table["kernels"]["milliseconds"]
    print(f"{name}: {table['kernels']['milliseconds']} ms with kernels, {table['tensors']['milliseconds']} ms without "
          f"({ratio:.2f} x), {threads} threads", flush=True)  # fmt: skip
    return table


def main() -> None:
    """Measures what was asked for, and adds it to the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workloads", nargs="*", metavar="workload", help=f"of {', '.join(WORKLOADS)} (default: all)")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--updates", type=int, default=8, help="per process")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each setting")
    parser.add_argument("--measure", choices=SETTINGS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.workloads[0], options.measure, options.threads, options.updates)))
        return
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in options.workloads or WORKLOADS:
        table = compare(name, options.threads, options.updates, options.rounds)
        machine = f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}"
        results[f"{name}, {options.threads} threads"] = {"machine": machine, **table}
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
