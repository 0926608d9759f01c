"""Learning curves: trains every task with every seed through the real command line, and writes figures and a table.

    python benchmarks/learning.py                      # all tasks, their seeds, two runs side by side
    python benchmarks/learning.py cartpole --seeds 5   # one task

Runs that have finished are not repeated; results are in ``benchmarks/results/learning_<task>.{json,png}``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from reverie.config import load
from reverie.env import make_vector
from reverie.run.collect import Scores

RESULTS = Path(__file__).parent / "results"
RUNS = Path("runs/learning")


@dataclass(frozen=True)
class Task:
    """A file in ``configs``, how many seeds, and the mean evaluation return that counts as solved."""

    config: str
    seeds: int
    goal: float


TASKS = {
    "cartpole": Task("default", 5, 475),
    "pendulum": Task("pendulum", 3, -250),
    "acrobot": Task("acrobot", 3, -100),
    "pixels": Task("pixels", 2, 0.8),
    "lunarlander": Task("lunarlander", 1, 200),
}


def train(name: str, task: Task, seed: int, *, threads: int) -> Path:
    """Runs one seed to its end (or finds it finished); returns its metrics file."""
    folder = RUNS / f"{name}-{seed}"
    finished = folder / "finished"
    if not finished.exists():
        latest = folder / "checkpoints" / "latest.pt"
        start = (
            ["--checkpoint", str(latest)]
            if latest.exists()
            else ["--config", f"configs/{task.config}.json", "--seed", str(seed)]
        )
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


def random_return(task: Task, episodes: int = 100) -> float:
    """Mean return of uniformly random actions."""
    env = load(Path(f"configs/{task.config}.json")).env
    envs, random = make_vector(env.model_copy(update={"mode": "inline"}), 0, envs=10), np.random.default_rng(0)
    scores, finished = Scores(envs.size), []
    while len(finished) < episodes:
        parts = [
            np.eye(part.size)[random.integers(part.size, size=envs.size)]
            if part.discrete
            else random.uniform(-1, 1, (envs.size, part.size))
            for part in envs.action
        ]
        step = envs.step(np.concatenate(parts, 1).astype(np.float32))
        finished += [episode.total for _, episode in scores.add(step.reward, step.first, step.last)]
    envs.close()
    return float(np.mean(finished))


def plot(name: str, goal: float, random: float, curves: list[dict[str, list[float]]], path: Path) -> None:
    """Every seed's curve, the goal, and a random policy."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 3.6), sharey=True)
    for axis, column, label in ((axes[0], "step", "environment steps"), (axes[1], "seconds", "seconds of training")):
        for seed, points in enumerate(curves):
            axis.plot(points[column], points["return"], label=f"seed {seed}", linewidth=1.4)
        axis.axhline(goal, color="gray", linestyle="--", linewidth=1)
        axis.axhline(random, color="gray", linestyle=":", linewidth=1)
        axis.set_xlabel(label)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("mean evaluation return")
    axes[0].legend(frameon=False)
    figure.suptitle(f"{name}: dashed = goal {goal:g}, dotted = random policy {random:.3g}")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def machine() -> str:
    """Processor, cores and the versions that matter."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    processor = names[0] if names else platform.processor()
    return f"{processor}, {os.cpu_count()} cores, Python {platform.python_version()}, torch {torch.__version__}"


def report(name: str, paths: list[Path], load: str) -> None:
    """Writes the results of one task, a metrics file per seed, and prints a line for each."""
    task, curves = TASKS[name], [curve(path) for path in paths]
    random, verdicts = random_return(task), [judge(points, task.goal) for points in curves]
    result = {
        "task": name,
        "config": task.config,
        "goal": task.goal,
        "random": random,
        "machine": machine(),
        "side by side": load,
        "verdicts": verdicts,
        "curves": curves,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"learning_{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    plot(name, task.goal, random, curves, RESULTS / f"learning_{name}.png")
    for seed, verdict in enumerate(verdicts):
        print(f"{name} seed {seed}: {verdict}", flush=True)


def main() -> None:
    """Trains what was asked for, and writes its results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", metavar="task", help=f"of {', '.join(TASKS)} (default: all)")
    parser.add_argument("--seeds", type=int, help="instead of the task's own number")
    parser.add_argument("--parallel", type=int, default=2, help="runs side by side")
    parser.add_argument("--threads", type=int, default=1, help="threads of each run")
    options = parser.parse_args()
    names = options.tasks or list(TASKS)
    with ThreadPoolExecutor(options.parallel) as pool:
        jobs = {
            name: [
                pool.submit(train, name, TASKS[name], seed, threads=options.threads)
                for seed in range(options.seeds or TASKS[name].seeds)
            ]
            for name in names
        }
        for name in names:
            report(name, [job.result() for job in jobs[name]], f"{options.parallel} x {options.threads} threads")


if __name__ == "__main__":
    main()
