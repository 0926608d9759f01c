"""What a user sees of goals: in evaluations, on films, and in a checkpoint."""

from __future__ import annotations

import re
from dataclasses import replace
from hashlib import sha256
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from reverie.behavior.hierarchy import Hierarchy
from reverie.cli import main
from reverie.errors import ConfigError
from reverie.run.evaluate import evaluate, restore_agent
from reverie.run.film import show_goals
from reverie.run.inspect import describe, goal_codes
from reverie.run.train import DreamerV3Trainer
from tests.run.test_train import MANAGED, make_config


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("managed")
    DreamerV3Trainer(make_config(folder, **MANAGED | {"run": {"steps": 60}})).train()
    return folder / "run" / "checkpoints" / "latest.pt"


def test_goals_are_counted_while_their_environment_plays_its_share(checkpoint, monkeypatch):
    agent, config = restore_agent(checkpoint, "cpu")
    met: list[tuple[torch.Tensor, ...]] = []

    def goal_outcomes(goal, age, latent, first, start):
        met.append((goal.target, latent.deter, start))
        return Hierarchy.goal_outcomes(agent.behavior, goal, age, latent, first, start)

    monkeypatch.setattr(agent.behavior, "goal_outcomes", goal_outcomes)
    result = evaluate(agent, config.env.model_copy(update={"mode": "inline"}), episodes=3, seed=0)
    assert len(result.fits) == sum(episode.length // 2 for episode in result.episodes)
    names = {f"evaluation/goal_reach{which}" for which in ("", "_shuffled", "_at_start")}
    assert result.goals.keys() == names
    assert result.length == np.mean([episode.length for episode in result.episodes])
    changes = 0
    for (old, seen, _), (goal, _, start) in pairwise(met):
        new = (old != goal).any(-1)
        assert torch.equal(start[new], seen[new])
        changes += int(new.sum())
    assert changes > 6
    unknown = replace(result, fits=np.array([[0.9, np.nan, 0.1], [0.1, np.nan, 0.2]], np.float32))
    assert unknown.goals == {"evaluation/goal_reach": 0.5, "evaluation/goal_reach_at_start": 0.0}
    assert replace(result, fits=np.zeros((0, 3), np.float32)).goals == {}


def test_replay_keeps_nothing_of_goals_and_a_flat_agent_plays_as_before_there_were_any(tmp_path):
    flat, managed = (
        DreamerV3Trainer(make_config(tmp_path / name, **changes)) for name, changes in (("a", {}), ("b", MANAGED))
    )
    assert flat.replay.store.layout == managed.replay.store.layout
    played = [flat.player.play() for _ in range(200)]
    rows = [(row.action.astype(np.int8), row.step.reward.astype(np.float32), row.step.first) for row in played]
    digest = sha256(b"".join(column.tobytes() for row in rows for column in row)).hexdigest()
    flat.close(), managed.close()
    assert digest[:16] == "f0d1b1e3e65af0be"  # as before c2289e9, which brought managers


def test_goals_are_painted_for_every_step_of_a_film(checkpoint):
    agent, config = restore_agent(checkpoint, "cpu")
    result = evaluate(agent, config.env, episodes=2, seed=0, record=5)
    shown = show_goals(agent, result.recording)
    assert {key: (value.shape, value.dtype) for key, value in shown.items()} == {"vector": ((5, 4), np.float32)}
    assert isinstance(agent.behavior, Hierarchy)
    agent.behavior.goals.paints = False
    assert show_goals(agent, result.recording) == {}


def test_inspection_names_the_goals_in_use(checkpoint):
    lines = list(describe(checkpoint))
    begin = next(i for i, line in enumerate(lines) if "goals in force" in line)
    assert all(re.fullmatch(r" +[0-7](-[0-7]){7}", line) for line in lines[begin + 1 : begin + 3])
    codes = torch.zeros(2, 6)
    codes[1, [2, 3]] = 1.0
    assert goal_codes(codes, 2) == ["none yet", "2-0"]


def test_goals_can_be_exchanged_from_the_command_line(checkpoint, capsys):
    arguments = ["evaluate", "--checkpoint", str(checkpoint), "--episodes", "2", "--shuffle-goals"]
    assert main(arguments) == 0
    assert re.search(
        r"goal_reach: \d+\.\d%\n.*goal_reach_shuffled: .*\n.*goal_reach_at_start: .*\nmean return",
        capsys.readouterr().out,
    )


def test_a_flat_agent_has_no_goals_to_exchange_or_to_show(tmp_path):
    DreamerV3Trainer(make_config(tmp_path, run={"steps": 8})).train()
    agent, config = restore_agent(tmp_path / "run" / "checkpoints" / "latest.pt", "cpu")
    with pytest.raises(ConfigError, match="no goals"):
        agent.behavior.shuffle()
    result = evaluate(agent, config.env, episodes=1, seed=0, record=3)
    assert result.goals == {} and show_goals(agent, result.recording) == {}
