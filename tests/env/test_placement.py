"""Where environments run when the options leave it open: decided by time, said in one line, without a trace."""

from __future__ import annotations

import logging
import random
import time

import numpy as np
import pytest
import torch

from reverie.env import ENVIRONMENTS, EnvOptions, make_vector, placement, with_mode
from reverie.errors import ConfigError
from tests.counting import CountingEnv


class Draws(CountingEnv):
    """Uses the global generators, as it should not, and remembers who was closed."""

    closed: list[Draws] = []

    def step(self, action):
        np.random.random()
        random.random()
        torch.rand(())
        return super().step(action)

    def close(self):
        self.closed.append(self)


class Sleeps(CountingEnv):
    def step(self, action):
        time.sleep(0.06)
        return super().step(action)


@pytest.mark.parametrize(
    ("step", "message", "mode"), [(2e-5, 1e-4, "inline"), (1.4e-3, 1e-4, "inline"), (1.6e-3, 1e-4, "processes")]
)
def test_a_step_that_outlasts_messages_goes_to_processes_and_one_line_says_so(monkeypatch, caplog, step, message, mode):
    monkeypatch.setattr(placement, "_time", lambda options: (step, message))
    with caplog.at_level(logging.INFO):
        assert with_mode(EnvOptions(name="counting")).mode == mode
    (record,) = caplog.records
    assert record.message.startswith(f"counting: a step takes {1000 * step:.2f} ms") and mode in record.message


def test_a_slow_environment_goes_to_processes():
    ENVIRONMENTS["sleeps"] = Sleeps
    assert with_mode(EnvOptions(name="sleeps")).mode == "processes"


@pytest.mark.parametrize("mode", ["inline", "processes"])
def test_a_mode_that_was_chosen_is_not_timed(monkeypatch, mode):
    monkeypatch.setattr(placement, "_time", lambda options: pytest.fail("timed"))
    assert with_mode(EnvOptions(name="counting", mode=mode)).mode == mode


def test_the_timing_leaves_no_trace():
    ENVIRONMENTS["draws"] = Draws

    def seed() -> None:
        random.seed(3)
        np.random.seed(3)
        torch.manual_seed(3)

    seed()
    with_mode(EnvOptions(name="draws"))
    assert len(Draws.closed) == 1 and Draws.closed[0].count > 0
    after = random.random(), np.random.random(), torch.rand(()).item()
    seed()
    assert after == (random.random(), np.random.random(), torch.rand(()).item())


def test_rows_are_those_of_an_environment_that_was_never_timed():
    action, seen = np.eye(3, dtype=np.float32)[[1, 2]], []
    for mode in ("auto", "inline"):
        envs = make_vector(EnvOptions(name="counting", mode=mode), seed=5, envs=2)
        seen.append([envs.step(action).obs["episode"].tolist() for _ in range(30)])
        envs.close()
    assert seen[0] == seen[1]


@pytest.mark.parametrize("fault", ["init", "reset", "step", "quit", "shape"])
def test_an_environment_that_fails_meanwhile_goes_where_it_is_watched(fault, caplog):
    with caplog.at_level(logging.INFO):
        assert with_mode(EnvOptions(name="counting", kwargs={"fault": fault})).mode == "processes"
    assert "failed while it was timed" in caplog.text


def test_a_mistake_of_the_user_stays_one():
    with pytest.raises(ConfigError, match="did you mean 'CartPole-v1'"):
        with_mode(EnvOptions(name="CartPoole-v1"))
