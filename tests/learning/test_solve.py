"""Agents solve real tasks through the real command line; minutes each: ``pytest -m learning -n0``."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean

import pytest

from reverie.cli import main
from reverie.presets import locate

FOLLOWING = 3
"""Evaluations after the goal was reached, in which it has to last: the best of many may be luck."""


def evaluations(run: Path) -> list[float]:
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [row["evaluation/return"] for row in rows if "evaluation/return" in row]


@pytest.mark.learning
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("name", "goal"), [("default", 475), ("pendulum", -250), ("acrobot", -100)], ids=["cartpole", "pendulum", "acrobot"]
)
def test_an_agent_reaches_its_goal_and_stays_there(tmp_path, name, goal):
    folder, preset = tmp_path / "run", json.loads(locate(name).read_text())
    places = [f"run.directory={tmp_path}", "run.name=run", f"run.checkpoint_dir={tmp_path / 'newest'}"]
    options = [*places, f"run.target_return={goal}", "run.video=false", "logger.tensorboard=false"]
    assert main(["train", "--config", name, "--seed", "7", *options]) == 0
    reached = evaluations(folder)
    assert reached[-1] >= goal

    latest = folder / "checkpoints" / "latest.pt"
    steps = (len(reached) + FOLLOWING) * preset["run"]["evaluate_every"]
    assert main(["train", "--checkpoint", str(latest), "--steps", str(steps), "run.target_return=null"]) == 0
    following = evaluations(folder)[len(reached) :]
    assert len(following) == FOLLOWING and mean(following) >= goal
