"""Learning curves: trains every task with every seed through the real command line, and writes figures and a table.

    python benchmarks/learning.py                      # all tasks, their seeds, two runs side by side
    python benchmarks/learning.py cartpole --seeds 5   # one task

Runs that have finished are not repeated; results are in ``benchmarks/results/learning_<task>.{json,png}``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

RESULTS = Path(__file__).parent / "results"
RUNS = Path("runs/learning")


@dataclass(frozen=True)
class Task:
    """What to run, and the mean evaluation return that counts as solved."""

    arguments: tuple[str, ...]
    seeds: int
    goal: float
    random: float
    """Mean return of uniformly random actions, for the plot."""


TASKS = {
    "cartpole": Task(("--config", "configs/default.json"), 5, 475, 22.3),
    "pendulum": Task(("--config", "configs/pendulum.json"), 3, -250, -1200),
    "acrobot": Task(("--config", "configs/acrobot.json"), 3, -100, -499),
    "lunarlander": Task(("--config", "configs/lunarlander.json"), 2, 200, -180),
    "pixels": Task(("--config", "configs/pixels.json"), 2, 0.8, 0.0),
}


def train(name: str, task: Task, seed: int, *, threads: int) -> Path:
    """Runs one seed to its end (or finds it finished); returns its metrics file."""
    folder = RUNS / f"{name}-{seed}"
    finished = folder / "finished"
    if not finished.exists():
        latest = folder / "checkpoints" / "latest.pt"
        start = ["--checkpoint", str(latest)] if latest.exists() else [*task.arguments, "--seed", str(seed)]
        settings = [f"run.directory={RUNS}", f"run.name={folder.name}", f"run.threads={threads}", "run.video=false",
                    "logger.tensorboard=false", f"run.checkpoint_dir={folder}/newest"]  # fmt: skip
        folder.mkdir(parents=True, exist_ok=True)
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        with (folder / "console.log").open("a") as console:
            command = [sys.executable, "run_dreamer.py", *start, *settings, "--log-level", "WARNING"]
            subprocess.run(command, check=True, stdout=console, stderr=console, env=environment)
        finished.touch()
    return folder / "metrics.jsonl"


def curve(path: Path) -> dict[str, list[float]]:
    """Steps, seconds of training and mean returns of all evaluations in a metrics file."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows = [row for row in rows if "evaluation/return" in row]
    columns = {"step": "step", "seconds": "run/seconds", "return": "evaluation/return"}
    return {name: [row[key] for row in rows] for name, key in columns.items()}


def judge(points: dict[str, list[float]], goal: float) -> dict[str, float | None]:
    """When the goal was first reached, and how well it was held from there to three times the steps."""
    reached = next((i for i, value in enumerate(points["return"]) if value >= goal), None)
    if reached is None:
        return {"steps": None, "seconds": None, "best": max(points["return"])}
    steps = points["step"][reached]
    held = [value for step, value in zip(points["step"], points["return"], strict=True) if steps <= step <= 3 * steps]
    return {
        "steps": steps,
        "seconds": round(points["seconds"][reached], 1),
        "held_mean": round(float(np.mean(held)), 1),
        "held_min": round(min(held), 1),
        "held_to": min(3 * steps, points["step"][-1]),
        "best": round(max(points["return"]), 1),
        "last": round(points["return"][-1], 1),
    }


def plot(name: str, task: Task, curves: list[dict[str, list[float]]], path: Path) -> None:
    """Every seed's curve, the goal, and a random policy."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 3.6), sharey=True)
    for axis, column, label in ((axes[0], "step", "environment steps"), (axes[1], "seconds", "seconds of training")):
        for seed, points in enumerate(curves):
            axis.plot(points[column], points["return"], label=f"seed {seed}", linewidth=1.4)
        axis.axhline(task.goal, color="gray", linestyle="--", linewidth=1)
        axis.axhline(task.random, color="gray", linestyle=":", linewidth=1)
        axis.set_xlabel(label)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("mean evaluation return")
    axes[0].legend(frameon=False)
    figure.suptitle(f"{name}: dashed = goal {task.goal:g}, dotted = random policy {task.random:g}")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main() -> None:
    """Trains what was asked for, and writes its results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", metavar="task", help=f"of {', '.join(TASKS)} (default: all)")
    parser.add_argument("--seeds", type=int, help="instead of the task's own number")
    parser.add_argument("--parallel", type=int, default=2, help="runs side by side")
    parser.add_argument("--threads", type=int, default=1, help="threads of each run")
    options = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    for name in options.tasks or TASKS:
        task = TASKS[name]
        seeds = range(options.seeds or task.seeds)
        with ThreadPoolExecutor(options.parallel) as pool:
            paths = list(pool.map(partial(train, name, task, threads=options.threads), seeds))
        curves = [curve(path) for path in paths]
        verdicts = [judge(points, task.goal) for points in curves]
        result = {"task": name, "arguments": task.arguments, "goal": task.goal, "parallel": options.parallel,
                  "threads": options.threads, "verdicts": verdicts, "curves": curves}  # fmt: skip
        (RESULTS / f"learning_{name}.json").write_text(json.dumps(result, indent=1) + "\n")
        plot(name, task, curves, RESULTS / f"learning_{name}.png")
        for seed, verdict in zip(seeds, verdicts, strict=True):
            print(f"{name} seed {seed}: {verdict}")


if __name__ == "__main__":
    main()
