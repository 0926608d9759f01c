"""What a model-free method needs on CartPole-v1: Stable-Baselines3's PPO, tuned and by default, one core, five seeds.

    python benchmarks/baselines.py

It is installed into an environment of its own in ``.peers``. "Reached" is the first of the evaluations, 100 episodes
each, with a mean return of at least 475; results are in ``benchmarks/results/baselines.json``, in the format of
``learning_cartpole.json``.
"""

from __future__ import annotations

import json
import subprocess

from learning import RESULTS, TASKS, judge, machine
from speed import SCRIPTS, install

SETTINGS = {
    "tuned": {  # of RL Baselines3 Zoo
        "n_envs": 8, "n_steps": 32, "batch_size": 256, "gae_lambda": 0.8, "gamma": 0.98, "n_epochs": 20,
        "learning_rate": 1e-3, "clip_range": 0.2, "falling": True,
    },
    "default": {"n_envs": 1, "falling": False},
}  # fmt: skip
BUDGETS = {"tuned": (60_000, 2000), "default": (150_000, 5000)}
"""Environment steps of a run, and between its evaluations."""
SEEDS = 5


def learn(settings: str, seed: int) -> dict[str, list[float]]:
    """One run's evaluations: steps, seconds of training, mean returns."""
    steps, every = BUDGETS[settings]
    task = {"env": "CartPole-v1", "settings": SETTINGS[settings], "seed": seed, "steps": steps, "every": every,
            "episodes": 100}  # fmt: skip
    command = [str(install("sb3")), "-E", str(SCRIPTS / "sb3_learn.py"), json.dumps(task)]
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    columns = zip(*json.loads(answer.stdout.splitlines()[-1]), strict=True)
    return dict(zip(("step", "seconds", "return"), map(list, columns), strict=True))


def main() -> None:
    """Trains all seeds of both settings and writes what came of them."""
    goal, results = TASKS["cartpole"].goal, {}
    for settings in SETTINGS:
        curves = [learn(settings, seed) for seed in range(SEEDS)]
        verdicts = [judge(curve, goal) for curve in curves]
        results[settings] = {"settings": SETTINGS[settings], "verdicts": verdicts, "curves": curves}
        for seed, verdict in enumerate(verdicts):
            print(f"PPO {settings} seed {seed}: {verdict}", flush=True)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "baselines.json").write_text(json.dumps({"machine": machine()} | results, indent=1) + "\n")


if __name__ == "__main__":
    main()
