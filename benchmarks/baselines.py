"""What it takes to reach 475 on CartPole-v1: Reverie, Stable-Baselines3's PPO, and the DreamerV3 of sheeprl.

    python benchmarks/baselines.py reverie          # `make train` until then, five seeds
    python benchmarks/baselines.py ppo              # tuned and by default, one core, five seeds each
    python benchmarks/baselines.py sheeprl          # one seed, ten minutes at the most

Run them one at a time on an idle machine. The others are installed into environments of their own in ``.peers``.
"Reached" is the first evaluation of Reverie and of PPO, 100 episodes each, with a mean return of at least 475, and the
first 20 training episodes of sheeprl with such a mean. ``seconds`` are of training; of Reverie there are also those of
the whole process, from its start, evaluations included. Results are in ``benchmarks/results/baselines.json``, in the
format of ``learning_cartpole.json``.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from pathlib import Path
from statistics import mean
from typing import Any

from curves import curve, judge, machine
from learning import RESULTS, TASKS
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
GOAL = TASKS["cartpole"].goal


def reverie() -> dict[str, Any]:
    """All seeds, each from the start of its process to the first evaluation that is good enough."""
    curves, processes = [], []
    for seed in range(SEEDS):
        with tempfile.TemporaryDirectory() as folder:
            places = f"run.directory={folder}", f"run.checkpoint_dir={folder}/newest", "--name", "run"
            command = [sys.executable, "run_dreamer.py", "--seed", str(seed), f"run.target_return={GOAL}", *places]
            began = time.monotonic()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            processes.append(round(time.monotonic() - began, 1))
            curves.append(curve(Path(folder) / "run" / "metrics.jsonl"))
    told = tell("reverie", curves)
    reached = [{name: verdict[name] for name in ("steps", "seconds")} for verdict in told["verdicts"]]
    return {"reverie": told | {"verdicts": reached, "process seconds": processes}}


def learn(settings: str, seed: int) -> dict[str, list[float]]:
    """One run's evaluations: steps, seconds of training, mean returns."""
    steps, every = BUDGETS[settings]
    task = {"env": "CartPole-v1", "settings": SETTINGS[settings], "seed": seed, "steps": steps, "every": every,
            "episodes": 100}  # fmt: skip
    command = [str(install("sb3")), "-E", str(SCRIPTS / "sb3_learn.py"), json.dumps(task)]
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    columns = zip(*json.loads(answer.stdout.splitlines()[-1]), strict=True)
    return dict(zip(("step", "seconds", "return"), map(list, columns), strict=True))


def tell(settings: str, curves: list[dict[str, list[float]]]) -> dict[str, Any]:
    """Prints a line for each seed; returns what goes into the results."""
    verdicts = [judge(curve, GOAL) for curve in curves]
    for seed, verdict in enumerate(verdicts):
        print(f"{settings} seed {seed}: {verdict}", flush=True)
    return {"machine": machine(), "verdicts": verdicts, "curves": curves}


def ppo() -> dict[str, Any]:
    """All seeds of both settings."""
    return {
        settings: {"settings": chosen} | tell(f"PPO {settings}", [learn(settings, seed) for seed in range(SEEDS)])
        for settings, chosen in SETTINGS.items()
    }


SHEEPRL = [
    *("exp=dreamer_v3_5", "algo=dreamer_v3_5_1M", "env=gym", "env.id=CartPole-v1", "env.capture_video=False"),
    *("algo.cnn_keys.encoder=[]", "algo.cnn_keys.decoder=[]"),
    *("algo.mlp_keys.encoder=[vector]", "algo.mlp_keys.decoder=[vector]"),
    *("metric.log_level=1", "fabric.accelerator=cpu", "num_threads=2"),
]
"""Its smallest published network, and its own values for everything else."""
PATIENCE = 600
"""Seconds."""
EPISODE = re.compile(r"policy_step=(\d+), reward_env_\d+=([-\d.]+)")


def sheeprl() -> dict[str, Any]:
    """One run from its first printed episode on, until 475 is reached or patience has ended."""
    points: dict[str, list[float]] = {"step": [], "seconds": [], "return": []}
    returns: deque[float] = deque(maxlen=20)
    command = [str(install("sheeprl")), "-u", "-W", "ignore", "-m", "sheeprl", *SHEEPRL]
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert process.stdout is not None
        silence = threading.Timer(2 * PATIENCE, process.kill)
        silence.start()
        began = None
        try:
            for found in filter(None, map(EPISODE.search, process.stdout)):
                now = time.monotonic()
                began = began or now
                returns.append(float(found[2]))
                if len(returns) == returns.maxlen:
                    for name, value in zip(points, (int(found[1]), now - began, mean(returns)), strict=True):
                        points[name].append(value)
                if now - began > PATIENCE or (points["return"] and points["return"][-1] >= GOAL):
                    break
        finally:
            silence.cancel()
            process.kill()
            process.wait()
    if not points["step"]:
        sys.exit(f"{' '.join(command)} printed no episodes")
    return {"sheeprl": {"settings": SHEEPRL} | tell("sheeprl", [points])}


WHO = {"reverie": reverie, "ppo": ppo, "sheeprl": sheeprl}


def main() -> None:
    """Trains what was asked for, and adds it to the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("who", choices=WHO)
    path = RESULTS / "baselines.json"
    RESULTS.mkdir(exist_ok=True)
    found = WHO[parser.parse_args().who]()
    results = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(results | found, indent=1) + "\n")


if __name__ == "__main__":
    main()
