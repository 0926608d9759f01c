"""What the evaluations of runs say: their curves, whether and when a goal was reached, and a figure."""

from __future__ import annotations

import json
import os
import platform
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from reverie.run import plots

Curve = dict[str, list[Any]]
"""Steps, seconds of training and mean returns of all evaluations of one run; goals reached, where there are goals."""


GOALS = {"goal_reach": "goals reached", "goal_reach_shuffled": "others' goals", "goal_reach_at_start": "from the start"}
"""What evaluations count where there are goals, and how a table calls it."""

PUBLISHED: dict[str, Any] = json.loads(Path(__file__).with_name("published.json").read_text())
"""Curves of others by the name of a task: steps of the agent, mean, lowest and highest seed."""


def curve(path: Path) -> Curve:
    """All evaluations in a metrics file; how often goals were reached too, None where none had its time."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows = [row for row in rows if "evaluation/return" in row]
    columns = {"step": "step", "seconds": "run/seconds", "return": "evaluation/return"}
    columns |= {name: f"evaluation/{name}" for name in GOALS}
    return {name: [row.get(key) for row in rows] for name, key in columns.items() if any(key in row for row in rows)}


def judge(points: Curve, goal: float) -> dict[str, float | None]:
    """When the goal was first reached, and how well it was held from there to three times the steps."""
    reached = next((i for i, value in enumerate(points["return"]) if value >= goal), None)
    if reached is None:
        return {"steps": None, "seconds": None, "best": max(points["return"])}
    steps = points["step"][reached]
    held = [value for step, value in zip(points["step"], points["return"], strict=True) if steps <= step <= 3 * steps]
    return {
        "steps": steps,
        "seconds": round(points["seconds"][reached], 1),
        "held_mean": round(float(np.mean(held)), 2),
        "held_min": round(min(held), 2),
        "held_to": min(3 * steps, points["step"][-1]),
        "best": round(max(points["return"]), 2),
        "last": round(points["return"][-1], 2),
    }


def plot(name: str, goal: float, random: float, curves: dict[int, Curve], path: Path) -> None:
    """Every seed's curve, the goal, a random policy, and by steps what was published of the task, if anything."""
    if (pyplot := plots.pyplot(path)) is None:
        return
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 3.6), sharey=True)
    for axis, column, label in ((axes[0], "step", "steps of the agent"), (axes[1], "seconds", "seconds of training")):
        for seed, points in curves.items():
            axis.plot(points[column], points["return"], label=f"seed {seed}", linewidth=1.4)
        axis.axhline(goal, color="gray", linestyle="--", linewidth=1)
        axis.axhline(random, color="gray", linestyle=":", linewidth=1)
        axis.set_xlabel(label)
        axis.spines[["top", "right"]].set_visible(False)
    if known := PUBLISHED.get(name):
        axes[0].fill_between(known["step"], known["lowest"], known["highest"], color="gray", alpha=0.2, linewidth=0)
        axes[0].plot(known["step"], known["mean"], color="gray", label=known["label"], linewidth=1.4)
    axes[0].set_ylabel("mean evaluation return")
    axes[0].legend(frameon=False)
    figure.suptitle(f"{name}: dashed = goal {goal:g}, dotted = random policy {random:.3g}")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def machine() -> str:
    """Processor, the widest of its vectors that torch uses, cores, and the versions that matter."""
    chip = f"{processor()} with {torch.backends.cpu.get_cpu_capability()}"
    return f"{chip}, {os.cpu_count()} cores, Python {platform.python_version()}, torch {torch.__version__}"


def processor(info: Path = Path("/proc/cpuinfo")) -> str:
    """The name of the processor with its family and model: clouds call every AMD EPYC so, whatever its generation."""
    if not info.exists():
        return platform.processor()
    fields = dict(re.findall(r"^(model name|cpu family|model)\t+: (.*)$", info.read_text(), re.MULTILINE))
    if "cpu family" not in fields:
        return fields.get("model name", platform.machine())
    return f"{fields['model name']} family {fields['cpu family']} model {fields['model']}"
