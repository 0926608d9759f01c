"""Stable-Baselines3's PPO on one environment: evaluations while it learns, and the seconds of training until each."""

from __future__ import annotations

import json
import time

import clock
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

FALLING = ("learning_rate", "clip_range")
"""Options that fall linearly to zero over the run where the task says so."""


class Examination(BaseCallback):
    """Plays whole episodes every so many steps, as the library does by default: without sampling, time stopped."""

    def __init__(self, task: clock.Task):
        super().__init__()
        self.task, self.rows, self.paused, self.due = task, [], 0.0, task["every"]
        self.began = time.monotonic()
        self.envs = make_vec_env(task["env"], n_envs=50, seed=10_000 + task["seed"])

    def _on_step(self) -> bool:
        if self.num_timesteps >= self.due:
            self.due += self.task["every"]
            asked = time.monotonic()
            mean, _ = evaluate_policy(self.model, self.envs, n_eval_episodes=self.task["episodes"])
            self.rows.append((self.num_timesteps, asked - self.began - self.paused, float(mean)))
            self.paused += time.monotonic() - asked
        return True


if __name__ == "__main__":
    task = clock.task()
    torch.set_num_threads(1)
    settings = dict(task["settings"])
    envs = make_vec_env(task["env"], n_envs=settings.pop("n_envs"), seed=task["seed"])
    if settings.pop("falling"):
        settings |= {name: lambda left, start=settings[name]: left * start for name in FALLING}
    examination = Examination(task)
    PPO("MlpPolicy", envs, seed=task["seed"], device="cpu", **settings).learn(task["steps"], callback=examination)
    print(json.dumps(examination.rows))
