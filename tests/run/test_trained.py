"""A trained agent in a user's own loop: it acts as in evaluation, in any environment like that of its training."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch

from reverie import TrainedAgent
from reverie.env import Environment, make_vector
from reverie.errors import ConfigError
from reverie.run.train import DreamerV3Trainer
from tests.run.test_train import make_config

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    DreamerV3Trainer(make_config(folder, run={"steps": 60}, env={"repeat": 2})).train()
    return folder / "run" / "checkpoints" / "latest.pt"


def episode(agent: TrainedAgent, env: Environment, seed: int = 0) -> list[np.ndarray]:
    """The actions of one episode."""
    actions, over, observation = [], False, env.reset(seed)
    while not over:
        actions.append(agent.act(observation))
        observation, _, *flags = env.step(actions[-1])
        over = any(flags)
    agent.reset()
    return actions


def test_it_acts_as_the_agent_does_in_environments_side_by_side(checkpoint):
    trained = TrainedAgent.load(checkpoint, "cpu", seed=7)
    envs = make_vector(trained.config.env.model_copy(update={"mode": "inline"}), seed=3, envs=1)
    generator, carry = torch.Generator().manual_seed(7), trained.agent.initial(1)
    action = carry.action.numpy()
    for _ in range(40):
        step = envs.step(action)
        if step.first[0]:
            trained.reset()
            carry = trained.agent.initial(1)
        action, carry = trained.agent.act(step, carry, generator)
        assert np.array_equal(trained.act({key: value[0] for key, value in step.obs.items()}), action[0])
    envs.close()


def test_an_environment_of_the_user_gets_what_was_around_that_of_the_training(checkpoint):
    own, given = (TrainedAgent.load(str(checkpoint), "cpu") for _ in range(2))
    alike = given.environment(gymnasium.make("CartPole-v1"))
    first, second = episode(own, own.environment()), episode(given, alike)
    assert np.array_equal(first, second)
    with pytest.raises(ConfigError, match=r"the agent knows .*; give it one like that of its training"):
        own.environment(gymnasium.make("Pendulum-v1"))


@pytest.mark.parametrize(
    ("observation", "said"),
    [
        ({"image": np.zeros(4, np.float32)}, "{'image': (4,)}"),
        ({"vector": np.zeros(5, np.float32)}, "{'vector': (5,)}"),
        (np.zeros(4, np.float32), "ndarray"),  # as a gymnasium.Env gives it
    ],
)
def test_an_observation_that_the_agent_does_not_know_is_refused(checkpoint, observation, said):
    agent = TrainedAgent.load(checkpoint, "cpu")
    with pytest.raises(ConfigError, match=re.escape(f"observation is {said}, the agent knows {{'vector': (4,)}}; use")):
        agent.act(observation)


def test_the_example_plays_an_episode(checkpoint, tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "act.py", checkpoint],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        text=True,
        capture_output=True,
        timeout=300,
    )
    assert re.fullmatch(r"return \d+\.\d\n", done.stdout), done.stderr


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_refused_and_change_nothing(checkpoint, number):
    agent, untouched = (TrainedAgent.load(checkpoint, "cpu") for _ in range(2))
    with pytest.raises(ConfigError, match="'vector' has numbers that are not finite"):
        agent.act({"vector": np.array([0, 0, number, 0], np.float32)})
    sound = {"vector": np.ones(4, np.float32)}
    assert np.array_equal(agent.act(sound), untouched.act(sound))
