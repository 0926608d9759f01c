"""Learning curves: trains tasks, arms of the ablation ladder and seeds through the real command line; figures, tables.

    python benchmarks/learning.py                      # the small tasks of docs/results.md, two runs side by side
    python benchmarks/learning.py cartpole --seeds 5   # one task
    python benchmarks/learning.py vecpad3 doorkey --arms a0_reinforce a1_ppo a3_hybrid

An arm is a preset of ``ladder/`` that changes the task's configuration. Runs that have finished are not repeated,
others go on from their last checkpoint, and those of another configuration are refused; one that fails stops no other.
Results are in ``benchmarks/results/learning_<task>.{json,png}``, those of all arms so far in ``ladder.{json,md,png}``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path

import ladder
import numpy as np
from curves import Curve, curve, judge, machine, plot
from ladder import Outcome

from reverie.config import Config, dump, load, override, read
from reverie.env import make_vector
from reverie.presets import PRESETS
from reverie.run.collect import Scores
from reverie.run.evaluate import evaluate, restore_agent
from reverie.trees import merge

RESULTS = Path(__file__).parent / "results"
RUNS = Path("runs/learning")


@dataclass(frozen=True)
class Task:
    """A preset, how many seeds, and the mean evaluation return that counts as solved."""

    config: str
    seeds: int
    goal: float
    settings: tuple[str, ...] = ()
    """Changes of the file, as ``section.key=value``."""


TASKS = {
    "cartpole": Task("default", 5, 475),
    "cartpole_flat": Task("flat", 5, 475, ("run.steps=16600",)),
    "pendulum": Task("pendulum", 3, -250),
    "pendulum_hierarchy": Task("pendulum", 3, -250, ("hierarchy.enabled=true", "agent.horizon=16", "run.steps=5000")),
    "acrobot": Task("acrobot", 3, -100),
    "pixels": Task("pixels", 2, 0.8),
    "lunarlander": Task("lunarlander", 1, 200),
}
"""The small tasks of docs/results.md."""

LADDER_TASKS = {
    "vecpad3": Task("pinpad", 3, 18.0),
    "vecpad4": Task("pinpad", 3, 14.0, ("env.name=pinpad/vec-4",)),
    "doorkey": Task("minigrid", 3, 0.9),
}
"""Where arms are compared; the goal is what a good policy gets, and the end of the normalised scale."""

LONG_TASKS = {
    "dmc": Task("dmc", 2, 752),
    "dmc_all_starts": Task("dmc", 1, 752, ("agent.starts=0",)),
}
"""Hours each; the goal is what the lowest of five published seeds has after as many steps. The preset dreams from a
quarter of the states, to be done sooner; the reference from all of them."""

ARITHMETIC = {
    "bf16": ("agent.precision=bf16",),
    "compiled": ("agent.compile=on", "run.kernels=off"),
}
"""Other ways to compute, which should learn as well."""

SOLVED = {"cartpole_flat": 6000, "pendulum": 4500, "pixels": 3600}
"""Where they are compared, and the steps after which all seeds have solved the task in single precision."""

EVERY = (
    TASKS
    | LADDER_TASKS
    | LONG_TASKS
    | {
        f"{name}_{way}": replace(TASKS[name], seeds=3, settings=(*TASKS[name].settings, f"run.steps={steps}", *changes))
        for name, steps in SOLVED.items()
        for way, changes in ARITHMETIC.items()
    }
)


@dataclass(frozen=True)
class Run:
    """One seed of a task, in its own configuration or changed by an arm."""

    name: str
    seed: int
    arm: str | None = None

    @property
    def task(self) -> Task:
        return EVERY[self.name]

    @property
    def folder(self) -> Path:
        return RUNS / "-".join(filter(None, (self.name, self.arm, str(self.seed))))

    @property
    def latest(self) -> Path:
        return self.folder / "checkpoints" / "latest.pt"

    @property
    def plan(self) -> Path:
        """The configuration that the folder was begun with."""
        return self.folder / "plan.json"

    @property
    def presets(self) -> list[str]:
        """What it is configured by; the later changes the earlier."""
        return [self.task.config, *([f"ladder/{self.arm}"] if self.arm else [])]

    def config(self) -> Config:
        """The configuration that it should be trained with."""
        tree = reduce(merge, map(read, self.presets))
        return override(tree, self.task.settings, {"run.seed": self.seed})

    def source(self) -> list[str]:
        """The arguments that say what to train: the last checkpoint, or the configuration."""
        if self.latest.exists():
            return ["--checkpoint", str(self.latest)]
        configs = [argument for name in self.presets for argument in ("--config", name)]
        return [*configs, "--seed", str(self.seed), *self.task.settings]


def train(run: Run, *, threads: int) -> Curve | None:
    """Trains one run to its end (or finds it finished); returns its evaluations, or None where it failed."""
    folder = run.folder
    finished = folder / "finished"
    if not finished.exists():
        settings = [f"run.directory={RUNS}", f"run.name={folder.name}", f"run.threads={threads}", "run.video=false",
                    "logger.tensorboard=false", f"run.checkpoint_dir={folder}/newest"]  # fmt: skip
        folder.mkdir(parents=True, exist_ok=True)
        run.plan.write_text(dump(run.config()))
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        with (folder / "console.log").open("a") as console:
            command = [sys.executable, "run_dreamer.py", *run.source(), *settings, "--log-level", "WARNING"]
            code = subprocess.run(command, stdout=console, stderr=console, env=environment).returncode
        if code:
            print(f"{folder} failed with exit code {code}: see its console.log", flush=True)
            return None
        finished.touch()
    return curve(folder / "metrics.jsonl")


def check(run: Run) -> None:
    """Ends the program where the run's folder holds another one."""
    if run.folder.exists() and not (run.plan.exists() and run.plan.read_text() == dump(run.config())):
        raise SystemExit(f"{run.folder} was trained with another configuration; remove it, or move it away")


def random_return(task: Task, episodes: int = 100) -> float:
    """Mean return of uniformly random actions."""
    env = load(task.config, task.settings).env
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
        finished += [episode.total for _, episode in scores.add(step)]
    envs.close()
    return float(np.mean(finished))


def report(name: str, curves: dict[int, Curve], load: str) -> None:
    """Writes the results of one task by seed, and prints a line for each."""
    task = EVERY[name]
    random, verdicts = random_return(task), [judge(points, task.goal) for points in curves.values()]
    result = {
        "task": name,
        "config": task.config,
        "goal": task.goal,
        "random": random,
        "machine": machine(),
        "side by side": load,
        "seeds": [*curves],
        "verdicts": verdicts,
        "curves": [*curves.values()],
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"learning_{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    plot(name, task.goal, random, curves, RESULTS / f"learning_{name}.png")
    for seed, verdict in zip(curves, verdicts, strict=True):
        print(f"{name} seed {seed}: {verdict}", flush=True)


def shuffled_return(run: Run, episodes: int = 50) -> float | None:
    """Mean return of a trained agent whose goals are exchanged among environments; None where it has no goals."""
    agent, config = restore_agent(run.latest, "cpu")
    if agent.behavior.goals is None:
        return None
    agent.behavior.shuffle()
    return evaluate(agent, config.env, episodes, seed=1, limit=config.run.evaluate_limit).mean


def compare(curves: dict[Run, Curve], load: str) -> None:
    """Adds what came of every arm on every task to the results, and prints the table of them all."""
    path = RESULTS / "ladder.json"
    known = [Outcome(**run) for run in json.loads(path.read_text())["runs"]] if path.exists() else []
    randoms = {task: random_return(task) for task in {run.task for run in curves}}
    made = f"{machine()}, {load}"
    outcomes = [
        Outcome(run.name, run.arm or "", run.seed, randoms[run.task], run.task.goal, points, shuffled_return(run), made)
        for run, points in curves.items()
    ]
    compared = {(run.task, run.arm) for run in outcomes}
    outcomes += [run for run in known if (run.task, run.arm) not in compared]
    outcomes.sort(key=lambda run: ([*EVERY].index(run.task), run.arm, run.seed))
    lines = list(ladder.table(outcomes))
    result = {"arms": ladder.summary(outcomes), "runs": [vars(outcome) for outcome in outcomes]}
    RESULTS.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    path.with_suffix(".md").write_text("\n".join(lines) + "\n")
    ladder.plot(outcomes, path.with_suffix(".png"))
    print("\n".join(lines))


def main() -> None:
    """Trains what was asked for, and writes its results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", metavar="task", help=f"of {', '.join(EVERY)}")
    parser.add_argument("--arms", nargs="+", metavar="arm", help="presets of ladder/: compare them on the tasks")
    parser.add_argument("--seeds", type=int, help="instead of the task's own number")
    parser.add_argument("--parallel", type=int, default=2, help="runs side by side")
    parser.add_argument("--threads", type=int, default=1, help="threads of each run")
    options = parser.parse_args()
    names = options.tasks or list(LADDER_TASKS if options.arms else TASKS)
    if unknown := set(names) - (LADDER_TASKS if options.arms else EVERY).keys():
        parser.error(f"{min(unknown)} is no task{' of the ladder' * bool(options.arms)}; choose from "
                     f"{', '.join(LADDER_TASKS if options.arms else EVERY)}")  # fmt: skip
    arms = [name.removeprefix("ladder/") for name in PRESETS if name.startswith("ladder/")]
    if unknown := set(options.arms or ()) - set(arms):
        parser.error(f"{min(unknown)} is no arm; choose from {', '.join(arms)}")
    load = f"{options.parallel} x {options.threads} threads"
    runs = [
        Run(name, seed, arm)
        for name in names
        for seed in range(options.seeds or EVERY[name].seeds)
        for arm in options.arms or [None]
    ]
    for run in runs:
        check(run)
    with ThreadPoolExecutor(options.parallel) as pool:
        jobs = {run: pool.submit(train, run, threads=options.threads) for run in runs}
        if options.arms:
            compare({run: curve for run, job in jobs.items() if (curve := job.result())}, load)
        else:
            for name in names:
                results = {run.seed: job.result() for run, job in jobs.items() if run.name == name}
                if found := {seed: curve for seed, curve in results.items() if curve}:
                    report(name, found, load)
    sys.exit(any(job.result() is None for job in jobs.values()))


if __name__ == "__main__":
    main()
