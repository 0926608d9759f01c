"""The profile: every millisecond is counted once, and nothing stays wrapped."""

from __future__ import annotations

import json

import pytest
import torch

from reverie.agent import Agent
from reverie.cli import main
from reverie.run.profile import PARTS, Stopwatch

TINY = [
    "world.size=tiny",
    "env.envs=2",
    "replay.batch_size=2",
    "replay.length=4",
    "run.train_ratio=4",
    "agent.horizon=2",
]


def test_time_inside_a_nested_part_counts_there_alone(monkeypatch):
    watch, now = Stopwatch(torch.device("cpu")), [0.0]
    monkeypatch.setattr(watch, "now", lambda: now[0])

    def inner() -> None:
        now[0] += 2.0

    def outer() -> None:
        now[0] += 1.0
        timed()
        timed()

    timed = watch.around("inner", inner)
    watch.around("outer", outer)()
    assert watch.calls == {"inner": 2, "outer": 1}
    assert watch.seconds == {"inner": 4.0, "outer": 1.0}


@pytest.mark.parametrize("hierarchy", [False, True])
def test_the_command_explains_a_training_step(hierarchy, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    act, kind = Agent.act, "skills" if hierarchy else "empowerment"
    more = [f"hierarchy.enabled={json.dumps(hierarchy)}", *(["hierarchy.period=2"] if hierarchy else [])]
    more += [f"intrinsic.empowerment.kind={kind}", "intrinsic.curiosity.kind=icm", "intrinsic.every=1"]
    motives = {"intrinsic", "icm", kind, *(["goals"] if hierarchy else [])}
    assert main(["profile", "--env", "CartPole-v1", "--updates", "4", "--output", "profile.json", *TINY, *more]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line[:18].strip() for line in lines} >= {*PARTS, *motives, "rest", "together"}
    result = json.loads((tmp_path / "profile.json").read_text())
    assert result["milliseconds"].keys() == {*PARTS, *motives, "rest"}
    assert result["updates"] >= 4
    assert all(time > 0 for part, time in result["milliseconds"].items() if part != "logging")
    assert all(result["calls"][motive] == 2 for motive in motives)  # rewards of a dream, and a loss
    assert result["calls"]["world model"] == result["calls"]["imagination"] == 1
    assert result["calls"]["views"] == (2 if hierarchy else 1) and result["calls"]["motives"] == 2
    assert result["calls"]["policy and critic"] == (7 if hierarchy else 4)  # slow critic and entropy of each level, too
    assert (tmp_path / "profile.png").read_bytes().startswith(b"\x89PNG")
    assert Agent.act is act
    assert not (tmp_path / "runs").exists() and not (tmp_path / "checkpoints").exists()


def test_a_profile_takes_the_flags_of_a_training_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["profile", "world.size=huge"]) == 2
    assert "world.size" in capsys.readouterr().err


def test_the_chart_never_takes_the_place_of_the_figures(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["profile", "--env", "CartPole-v1", "--output", "profile.png"]) == 2
    assert "profile.png" in capsys.readouterr().err and not list(tmp_path.iterdir())
