"""Agents solve real tasks through the real command line; minutes each: ``pytest -m learning -n0``."""

from __future__ import annotations

import json

import pytest

from reverie.cli import main


@pytest.mark.learning
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("name", "goal"), [("default", 475), ("pendulum", -250), ("acrobot", -100)], ids=["cartpole", "pendulum", "acrobot"]
)
def test_an_agent_reaches_its_goal(tmp_path, name, goal):
    arguments = ["train", "--config", name, "--seed", "7", f"run.target_return={goal}"]
    places = [f"run.directory={tmp_path}", "run.name=run", f"run.checkpoint_dir={tmp_path / 'newest'}"]
    assert main([*arguments, *places, "run.video=false", "logger.tensorboard=false"]) == 0
    rows = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    assert max(row["evaluation/return"] for row in rows if "evaluation/return" in row) >= goal
