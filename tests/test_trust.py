"""What a configuration or a checkpoint names is run only where the user says so."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from reverie import cli, config
from reverie.errors import ConfigError
from reverie.run.grid import expand
from reverie.run.sweep import train as command_of
from reverie.run.train import DreamerV3Trainer
from reverie.trust import code
from tests.test_cli import TINY

MODULE = """
import pathlib
import gymnasium
pathlib.Path("ran").touch()

def create(**kwargs):
    return gymnasium.make("CartPole-v1")
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with a module that leaves a mark when it runs, and a configuration that names it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*sys.path, ""])
    (tmp_path / "foreign.py").write_text(MODULE)
    tree = TINY | {"env": {"name": "foreign:create", "envs": 1, "mode": "inline"}}
    (tmp_path / "named.json").write_text(json.dumps(tree))
    (tmp_path / "plain.json").write_text(json.dumps(tree | {"env": {"envs": 1, "mode": "inline"}}))
    yield tmp_path
    sys.modules.pop("foreign", None)


def forget(folder: Path) -> None:
    """As in a new process: the module would run, and leave its mark, again."""
    sys.modules.pop("foreign", None)
    (folder / "ran").unlink()


@pytest.mark.parametrize(
    ("env", "keys"),
    [
        ({"name": "os:system"}, {"env.name"}),
        ({"name": "minigrid/os:system"}, {"env.name"}),
        ({"name": ["CartPole-v1", "os:system"]}, {"env.name.1"}),
        ({"plugins": ["mine"]}, {"env.plugins.0"}),
        ({"kwargs": {"env_id": "os:x"}}, {"env.kwargs.env_id"}),
        ({"kwargs": {"config": {"types": ["fine", "package.Class"]}}}, {"env.kwargs.config.types.1"}),
        ({"kwargs": {"xml_file": "/etc/passwd", "name": "x.xml", "other": "a\\b"}},
         {"env.kwargs.xml_file", "env.kwargs.name", "env.kwargs.other"}),
        ({"name": "dmc/walker_walk", "kwargs": {"difficulty": "hard", "size": 0.5, "version": "1.0"}}, set()),
        ({"name": "ALE/Pong-v5", "plugins": []}, set()),
        (5, set()),
        ({"name": 5, "plugins": {"a": 1}, "kwargs": [None]}, set()),
    ],
)  # fmt: skip
def test_code_is_found_in_whatever_values(env, keys):
    assert {key for key, _ in code({"env": env})} == keys


def test_what_the_user_says_counts_and_replaces_what_a_file_says(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"env": {"name": "os:system", "kwargs": {"file": "/x"}, "plugins": ["foreign"]}}))
    own = {"env.name": "mine:make", "env.plugins": ["mine"], "env.kwargs": {"file": "/y"}}
    assert config.load(path, (), own).env.name == "mine:make"
    assert config.load(path, trust=True).env.plugins == ["foreign"]
    assert config.load(path, ["env.plugins=[]", "env.name=os:system", "env.kwargs.file=/x"]).env.kwargs == {
        "file": "/x"
    }
    for missing in own:
        said = {key: value for key, value in own.items() if key != missing}
        with pytest.raises(ConfigError, match=rf"a.json: {missing}.* = .* runs code or reads a file; .*--trust"):
            config.load(path, (), said)


@pytest.mark.parametrize("command", ["train", "sweep", "profile"])
def test_a_configuration_runs_no_code_unseen(folder, capsys, command):
    axis = ["run.seed=[0,1]"] if command == "sweep" else []
    assert cli.main([command, "--config", "named.json", *axis]) == 2
    error = capsys.readouterr().err
    assert error.startswith('error: named.json: env.name = "foreign:create" runs code') and error.count("\n") == 1
    assert not (folder / "ran").exists() and not (folder / "runs").exists()
    assert cli.main(["config", "--config", "named.json"]) == 0
    assert not (folder / "ran").exists()


def test_a_checkpoint_runs_no_code_unseen(folder, capsys):
    given = ["--env", "foreign:create", "env.kwargs.path=a/b"]
    assert cli.main(["train", "--config", "plain.json", *given]) == 0
    latest = ["--checkpoint", "runs/run/checkpoints/latest.pt"]
    forget(folder)
    capsys.readouterr()
    for command in ("train", "evaluate", "play"):
        for arguments in ([], ["--env", "foreign:create"]):  # an argument of it is not given again
            assert cli.main([command, *latest, *arguments]) == 2
            error = capsys.readouterr().err
            assert "--trust" in error and error.count("\n") == 1
            assert not (folder / "ran").exists()
    with pytest.raises(ConfigError, match="trust=True"):
        DreamerV3Trainer.resume("runs/run/checkpoints/latest.pt")
    for arguments in (["train", *latest, *given, "--steps", "62"], ["train", *latest, "--trust", "--steps", "64"],
                      ["evaluate", *latest, "--episodes", "1", "--trust"]):  # fmt: skip
        assert cli.main(arguments) == 0
        forget(folder)
    assert cli.main(["inspect", *latest]) == 0
    assert not (folder / "ran").exists()


def test_the_trials_of_a_trusted_sweep_are_trusted_and_no_others(folder):
    tree = config.read("named.json") | {"agent": {"horizon": [3, 4]}}
    tree["run"]["evaluate_every"] = 40
    for name, trusted in (("foreign:create", True), ("CartPole-v1", False)):
        grid = expand(config.change(tree, (), {"env.name": name}), "sweep")
        assert all(("--trust" in command_of(trial)) == trusted for trial in grid.trials)


def test_a_sweep_trains_what_the_command_line_names(folder):
    arguments = ["sweep", "--config", "plain.json", "--env", "foreign:create", "--plugin", "foreign.py"]
    assert cli.main([*arguments, "--name", "s", "run.seed=[3]", "run.threads=1"]) == 0
    result = json.loads((folder / "runs" / "s" / "seed=3" / "result.json").read_text())
    assert result["status"] == "finished"


def test_an_error_of_a_plugin_is_one_line(folder, capsys):
    (folder / "talks.py").write_text("raise ValueError('first\\nsecond')")
    assert cli.main(["train", "--config", "plain.json", "--plugin", "talks.py"]) == 2
    error = capsys.readouterr().err
    assert "talks.py' cannot be imported: ValueError: first second" in error and error.count("\n") == 1
