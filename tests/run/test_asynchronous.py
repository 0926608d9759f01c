"""Asynchronous collection: the rows and the updates of lock-step, whatever the threads do.

What the counting environment shows depends on seeds alone, so lock-step is the oracle for every row.
"""

from __future__ import annotations

import json
import os
import signal
import threading
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from reverie import config as configuration
from reverie.agent import Agent
from reverie.env import ENVIRONMENTS
from reverie.errors import EnvironmentFailure
from reverie.run.asynchronous import AsynchronousPlayer, sufficient_lead
from reverie.run.train import DreamerV3Trainer
from reverie.types import Batch
from tests.counting import create_counting
from tests.run.test_train import TINY, CountingAgent, final_state, make_config

SHOWN = ("obs/count", "obs/episode", "reward", "first", "last", "terminal")


@pytest.fixture(scope="module", autouse=True)
def counting():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("reverie.run.train.Agent", CountingAgent)
        patch.setitem(ENVIRONMENTS, "counting", create_counting)
        yield


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert not any(thread.name == "player" for thread in threading.enumerate())


def make(folder: Path, asynchronous: bool = True, run: dict[str, Any] | None = None, **env: Any) -> DreamerV3Trainer:
    env = {"name": "counting", "envs": 3, "mode": "inline"} | env
    return DreamerV3Trainer(make_config(folder, env=env, run={"asynchronous": asynchronous} | (run or {})))


def rows(trainer: DreamerV3Trainer) -> dict[str, list]:
    """What every stream shows, from its first row to its last."""
    chunks = sorted(trainer.replay.store.chunks.values(), key=lambda chunk: (chunk.stream, chunk.start))
    return {name: np.concatenate([chunk.columns[name][: chunk.rows] for chunk in chunks]).tolist() for name in SHOWN}


@pytest.fixture(scope="module")
def lock_step(tmp_path_factory, counting) -> DreamerV3Trainer:
    """A finished run that others must equal."""
    trainer = make(tmp_path_factory.mktemp("lock_step"), asynchronous=False)
    trainer.train()
    return trainer


@pytest.mark.parametrize("mode", ["inline", "processes"])
def test_rows_and_updates_are_those_of_lock_step_though_it_evaluates_and_saves(tmp_path, lock_step, mode):
    busy = {"evaluate_every": 60, "evaluate_episodes": 2, "video": False, "checkpoint_every": 50}
    ahead = make(tmp_path, run=busy, mode=mode)
    assert ahead.train() == 0
    assert rows(ahead) == rows(lock_step)
    assert (ahead.step, ahead.updates, ahead.episodes) == (lock_step.step, lock_step.updates, lock_step.episodes)
    assert ahead.updates > 5 and len(ahead.history) == 2


def test_nobody_acts_while_the_first_update_is_compiled(tmp_path, monkeypatch):
    trainer = make(tmp_path)
    trainer.compiling, player, learn, settled = True, trainer.player, trainer.agent.learn, []
    monkeypatch.setattr(player, "settle", lambda: settled.append(trainer.updates) or AsynchronousPlayer.settle(player))

    def compile_and_learn(batch: Batch) -> Any:
        assert trainer.updates or (settled == [0] and len(player.ahead) == player.lead)
        return learn(batch)

    monkeypatch.setattr(trainer.agent, "learn", compile_and_learn)
    trainer.train()
    assert trainer.updates > 2 and settled == [0, trainer.updates]


@pytest.mark.parametrize("then", ["true", "false"])
def test_no_row_is_lost_or_doubled_by_a_resume(tmp_path, lock_step, then, caplog):
    make(tmp_path, run={"steps": 99}).train()
    middle = final_state(tmp_path)
    lead = sufficient_lead(configuration.build(TINY).updates_per_step, envs=3)
    assert middle["global_step"] == 99 and len(middle["collector"]["player"]["ahead"]) == lead
    latest = tmp_path / "run" / "checkpoints" / "latest.pt"
    parts = DreamerV3Trainer.resume(latest, ["run.steps=160", f"run.async={then}"])
    assert ("not bit-exact: collection is asynchronous" in caplog.text) == (then == "true")
    parts.train()
    assert rows(parts) == rows(lock_step)
    assert (parts.step, parts.updates, parts.episodes) == (lock_step.step, lock_step.updates, lock_step.episodes)


def test_playing_stands_still_at_its_lead_and_goes_on_with_fresh_weights(tmp_path):
    trainer = make(tmp_path)
    player = trainer.player
    assert isinstance(player, AsynchronousPlayer)
    for taken in range(1, 4):
        trainer.collector.step()
        player.settle()
        assert len(player.ahead) == player.lead and len(trainer.replay) == 3 * taken
    learner, copies = trainer.agent, player.agent
    learner.restore(learner.checkpoint())
    with torch.no_grad():
        next(learner.parameters()).add_(1)
        learner.behavior.worker.mixer.return_high.add_(1)
    assert not torch.equal(next(learner.parameters()), next(copies.parameters()))
    player.refresh()
    for fresh, copy in zip(learner.state_dict().values(), copies.state_dict().values(), strict=True):
        assert torch.equal(fresh, copy) and fresh.data_ptr() != copy.data_ptr()
    trainer.close()


@pytest.mark.parametrize("mode", ["inline", "processes"])
def test_an_environment_that_keeps_failing_ends_the_run_as_documented_and_it_can_go_on(tmp_path, monkeypatch, mode):
    monkeypatch.setattr("reverie.run.train.Agent", Agent)  # to count on, truncated episodes would be mistakes
    trainer = make(tmp_path, mode=mode, restarts=1, kwargs={"fault": "step", "when": 3})
    with pytest.raises(EnvironmentFailure, match="RuntimeError: step went wrong; 2 failures within 10 minutes"):
        trainer.train()
    state = final_state(tmp_path)
    assert state["global_step"] == len(trainer.replay) > 0
    latest = tmp_path / "run" / "checkpoints" / "latest.pt"
    mended = DreamerV3Trainer.resume(latest, ["env.kwargs={}", "run.steps=60"])
    assert mended.train() == 0
    shown = {name: np.reshape(column, (3, 20)) for name, column in rows(mended).items()}  # one row per environment
    np.testing.assert_array_equal(shown["last"][:, :-1], shown["first"][:, 1:])
    assert shown["terminal"].sum() < shown["last"].sum()


def test_a_mistake_in_the_thread_surfaces_where_the_run_is(tmp_path, monkeypatch):
    def fail(*arguments: Any) -> None:
        raise ZeroDivisionError("in the thread")

    trainer = make(tmp_path)
    monkeypatch.setattr(CountingAgent, "act", fail)
    with pytest.raises(ZeroDivisionError, match="in the thread"):
        trainer.train()


def test_a_signal_saves_and_stops(tmp_path):
    trainer = make(tmp_path, run={"steps": 100_000})
    collect = trainer._collect

    def interrupt() -> None:
        collect()
        if trainer.step == 120:
            os.kill(os.getpid(), signal.SIGINT)

    trainer._collect = interrupt  # type: ignore[method-assign]
    assert trainer.train() == 130
    assert final_state(tmp_path)["global_step"] == 120


@pytest.mark.parametrize(("per_step", "envs", "lead"), [("1/4", 1, 5), ("1/4", 8, 2), ("1", 4, 2), ("1/512", 1, 64)])
def test_the_lead_covers_one_update(per_step, envs, lead):
    assert sufficient_lead(Fraction(per_step), envs) == lead


def test_where_environments_run_is_decided_once(tmp_path, monkeypatch):
    monkeypatch.setattr("reverie.env.placement._time", lambda options: (0.0, 1.0))
    make(tmp_path, mode="auto", run={"steps": 30}).train()
    assert json.loads((tmp_path / "run" / "config.json").read_text())["env"]["mode"] == "inline"
    monkeypatch.setattr("reverie.env.placement._time", lambda options: pytest.fail("timed again"))
    again = DreamerV3Trainer.resume(tmp_path / "run" / "checkpoints" / "latest.pt", ["run.steps=60"])
    assert again.config.env.mode == "inline" and again.train() == 0
