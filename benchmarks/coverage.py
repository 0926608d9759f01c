"""How many states an agent comes to where nothing is rewarded but what it finds new, beside random actions.

    python benchmarks/coverage.py                              # all arms on both tasks, minutes each
    python benchmarks/coverage.py doorkey --arms none icm --seeds 3

A run is trained through the real command line with the task's reward at weight zero. Every episode of a seed begins in
the same place; in DoorKey-8x8 half of the states are behind a locked door. Results are in
``benchmarks/results/coverage.{json,png}``. A run that was stopped begins anew, for the count is in its process.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import visited
from curves import machine

from reverie.config import load
from reverie.env import make_vector
from reverie.run import plots

RESULTS = Path(__file__).parent / "results"
RUNS = Path("runs/coverage")
STEPS, EPISODE = 20_000, 250

CONFIGS = {"doorkey": "minigrid", "pinpad": "pinpad"}
"""The preset that each task of `visited` is played with."""

COMMON = (
    *("env.envs=4", "env.mode=inline", "env.one_hot=true", f"env.time_limit={EPISODE}"),
    *('env.info_metrics={"visited": "last"}', "hierarchy.enabled=false", "behavior.task_weight=0"),
    *(f"run.steps={STEPS}", "run.train_ratio=64", "run.evaluate_every=0", "logger.tensorboard=false"),
)

ARMS: dict[str, tuple[str, ...]] = {
    "none": (),
    **{
        kind: (f"intrinsic.curiosity.kind={kind}", "intrinsic.curiosity.weight=1")
        for kind in ("icm", "rnd", "disagreement")
    },
    "empowerment": ("intrinsic.empowerment.kind=empowerment", "intrinsic.empowerment.weight=1"),
}
"""What is rewarded. Beside them there is ``random``: uniform actions, which need no training."""

Curve = list[tuple[int, float]]
"""Steps, and the states visited until then."""


@dataclass(frozen=True)
class Run:
    """One seed of an arm on a task."""

    task: str
    arm: str
    seed: int

    @property
    def settings(self) -> list[str]:
        place = [f"env.name=visited/{self.task}", f'env.kwargs={{"layout": {self.seed}}}', f"run.seed={self.seed}"]
        return [*COMMON, *ARMS.get(self.arm, ()), *place]

    @property
    def folder(self) -> Path:
        return RUNS / f"{self.task}-{self.arm}-{self.seed}"


def measure(run: Run) -> Curve:
    """Trains a run, unless that was done, or plays it with random actions."""
    if run.arm == "random":
        return play_randomly(run)
    if not (run.folder / "finished").exists():
        shutil.rmtree(run.folder, ignore_errors=True)
        run.folder.mkdir(parents=True)
        place = [f"run.directory={RUNS}", f"run.name={run.folder.name}", f"run.checkpoint_dir={run.folder}/newest"]
        plugin = ["--plugin", visited.__file__, "--log-level", "WARNING"]
        command = [sys.executable, "run_dreamer.py", "--config", CONFIGS[run.task], *plugin, *run.settings, *place]
        with (run.folder / "console.log").open("w") as console:
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            if subprocess.run(command, stdout=console, stderr=console, env=environment).returncode:
                sys.exit(f"{run.folder} failed: see its console.log")
        (run.folder / "finished").touch()
    rows = map(json.loads, (run.folder / "metrics.jsonl").read_text().splitlines())
    return [(row["step"], row["episode/visited"]) for row in rows if "episode/visited" in row]


def play_randomly(run: Run) -> Curve:
    """The same with uniform actions."""
    visited.VISITED.clear()
    envs, draw = make_vector(load(CONFIGS[run.task], run.settings).env, run.seed), np.random.default_rng(run.seed)
    (part,), curve = envs.action, []
    for step in range(envs.size, STEPS + 1, envs.size):
        shown = envs.step(np.eye(part.size, dtype=np.float32)[draw.integers(part.size, size=envs.size)])
        if shown.last.any():
            curve.append((step, float(shown.info["visited"][:, 0].max())))
    envs.close()
    return curve


def interval(differences: list[float]) -> tuple[float, float]:
    """Mean, and half the width of Student's 95 % interval."""
    quantile = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
    count = len(differences)
    spread = float(np.std(differences, ddof=1)) / count**0.5 if count > 1 else float("nan")
    return float(np.mean(differences)), quantile.get(count, 1.96) * spread


def table(last: dict[str, dict[str, list[float]]]) -> list[str]:
    """A row for each task and arm: states in the end, by seed, and how many more than without a reward."""
    lines = ["| task | arm | states, each seed | more than none, with 95 % interval |", "|---|---|---|---|"]
    for task, arms in last.items():
        for arm, counts in arms.items():
            more = ""
            if arm != "none" and "none" in arms:
                mean, half = interval([own - base for own, base in zip(counts, arms["none"], strict=True)])
                more = f"{mean:+.0f} ± {half:.0f}"
            lines.append(f"| {task} | {arm} | {' '.join(f'{count:.0f}' for count in counts)} | {more} |")
    return lines


def plot(curves: dict[str, dict[str, list[Curve]]], path: Path) -> None:
    """A panel for each task, a line for each seed, a color for each arm."""
    if (pyplot := plots.pyplot(path)) is None:
        return
    figure, axes = pyplot.subplots(1, len(curves), figsize=(5 * len(curves), 3.6), squeeze=False)
    for axis, (task, arms) in zip(axes[0], curves.items(), strict=True):
        for number, (arm, seeds) in enumerate(arms.items()):
            for index, points in enumerate(seeds):
                axis.plot(*zip(*points, strict=True), color=f"C{number}", linewidth=1.2, label=None if index else arm)
        axis.set(title=task, xlabel="steps of the agent", ylabel="distinct states")
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main() -> None:
    """Trains what was asked for, and writes its results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", choices=[*CONFIGS, []], default=list(CONFIGS))
    parser.add_argument("--arms", nargs="+", choices=["random", *ARMS], default=["random", *ARMS])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--parallel", type=int, default=2, help="runs side by side")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where to write (default: benchmarks/results)")
    options = parser.parse_args()
    runs = [Run(task, arm, seed) for task in options.tasks for arm in options.arms for seed in range(options.seeds)]
    with ThreadPoolExecutor(options.parallel) as pool:
        trained = dict(zip(runs, pool.map(lambda run: run.arm != "random" and measure(run), runs), strict=True))
    found = {run: curve or measure(run) for run, curve in trained.items()}  # one after another: the count is shared
    curves = {
        task: {arm: [found[Run(task, arm, seed)] for seed in range(options.seeds)] for arm in options.arms}
        for task in options.tasks
    }
    last = {
        task: {arm: [seed[-1][1] for seed in seeds] for arm, seeds in arms.items()} for task, arms in curves.items()
    }
    options.results.mkdir(parents=True, exist_ok=True)
    result = {"machine": machine(), "steps": STEPS, "states": last, "curves": curves}
    (options.results / "coverage.json").write_text(json.dumps(result, indent=1) + "\n")
    plot(curves, options.results / "coverage.png")
    print("\n".join(table(last)))


if __name__ == "__main__":
    main()
