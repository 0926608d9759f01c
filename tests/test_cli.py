"""The command line through the real program: what it prints, what it leaves on the disk, and its exit codes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from reverie import TrainedAgent, cli
from reverie.errors import ConfigError, DeviceError
from reverie.run import evaluate as evaluation
from reverie.run import play as playing
from reverie.run.device import choose_device

ROOT = Path(__file__).parents[1]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "MUJOCO_GL": "disable"}
TINY = {
    "run": {
        **{"name": "run", "steps": 60, "train_ratio": 2},
        **{"evaluate_every": 40, "evaluate_episodes": 2, "video": False, "log_every": 40},
    },
    "env": {"name": "CartPole-v1", "envs": 2},
    "replay": {"batch_size": 2, "length": 4, "capacity": 2000},
    "world": {"deter": 16, "hidden": 8, "stoch": 4, "classes": 4, "units": 16, "bins": 15, "blocks": 2},
    "behavior": {"minibatches": 1},
    "agent": {"horizon": 3},
    "logger": {"tensorboard": False},
}


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """Begins a command in a folder; what it prints on either stream can be read."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    command = [sys.executable, "-m", "reverie", *arguments]
    return subprocess.Popen(command, cwd=folder, env=ENVIRONMENT, text=True, encoding="utf-8", **pipes)


def call(folder: Path, *arguments: str, code: int = 0) -> str:
    """What a command prints; a failing one prints a single line, on standard error."""
    process = start(folder, *arguments)
    output, errors = process.communicate(timeout=100)
    assert process.returncode == code, errors
    if code:
        assert errors.startswith("error: ") and errors.count("\n") == 1
        assert not (folder / "crash.txt").exists()
    return errors if code else output


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with a small configuration and a finished run of it."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "tiny.json").write_text(json.dumps(TINY))
    output = call(folder, "train", "--config", "tiny.json", "agent.horizon=4", "--seed", "5", "behavior.epochs=1")
    (folder / "console.log").write_text(output, encoding="utf-8")
    return folder


def test_training_tells_what_it_does_and_leaves_its_files(folder):
    console = (folder / "console.log").read_text(encoding="utf-8").splitlines()
    assert re.fullmatch(r"INFO - CartPole-v1: a step takes .* ms; env.mode = (inline|processes)", console[0])
    assert console[1] == "INFO - CartPole-v1: observes vector (float32[4]); acts by action (2 classes)"
    assert any(re.fullmatch(r"INFO - Episode return: \d+\.0, length: \d+", line) for line in console)
    assert any(re.fullmatch(r"INFO - Step 40: \{.*'world/recon_loss': \d.*\}", line) for line in console)
    assert any(re.fullmatch(r"INFO - Evaluation at step 40: mean return .* over 2 episodes", line) for line in console)
    assert console[-1].startswith("INFO - Finished at step 60; ")
    kept = json.loads((folder / "runs/run/config.json").read_text())
    assert (kept["run"]["seed"], kept["agent"]["horizon"], kept["behavior"]["epochs"]) == (5, 4, 1)
    for name in ("latest.pt", "best_model.pt"):
        assert (folder / "checkpoints" / name).resolve() == folder / "runs/run/checkpoints" / name


def test_numbers_of_info_are_told_by_an_evaluation(folder):
    told = 'env.info_metrics={"middle": "max", "inner/count": "last"}'
    source = ["--config", "tiny.json", "--env", "tests.counting:CountingEnv"]
    call(folder, "train", *source, "--name", "informed", "--steps", "20", told, "run.checkpoint_dir=informed")
    newest = "informed/latest.pt"
    output = call(folder, "evaluate", "--checkpoint", newest, "--episodes", "3", "--trust").splitlines()
    assert output[0] == "evaluation/middle: 1"
    assert re.fullmatch(r"evaluation/inner/count: [\d.]+", output[1]) and output[-1].startswith("mean return")


def test_evaluation_ends_with_the_mean_return(folder):
    last = call(folder, "evaluate", "--episodes", "3").splitlines()[-1]
    assert re.fullmatch(r"mean return \d+\.\d ± \d+\.\d over 3 episodes", last)


def test_an_evaluation_takes_changes_of_the_environment(folder):
    last = call(folder, "evaluate", "--episodes", "3", "env.time_limit=4").splitlines()[-1]
    assert last == "mean return 4.0 ± 0.0 over 3 episodes"
    assert "episodes = 3: unknown key" in call(folder, "evaluate", "episodes=3", code=2)
    agent = TrainedAgent.load(folder / "checkpoints" / "best_model.pt", overrides=["env.time_limit=4"])
    assert agent.config.env.time_limit == 4


def test_playing_films_an_episode_and_a_dream(folder):
    lines = call(folder, "play", "--output", "films").splitlines()
    assert re.fullmatch(r"episode 1: return \d+\.0, length \d+", lines[0])
    films = [Path(line.strip()) for line in lines[1:]]
    assert {film.stem for film in films} == {"episode_1", "dream_1_vector"}
    assert all((folder / film).stat().st_size > 1000 for film in films)


def test_videos_go_into_a_folder(folder):
    assert "--output tiny.json is a file" in call(folder, "play", "--output", "tiny.json", code=2)


def test_an_evaluation_plays_other_episodes_than_any_training(folder, monkeypatch):
    """A run's seed, and that of its evaluations, has 32 bits."""
    seeds: list[int] = []
    monkeypatch.chdir(folder)
    for command, module in {"evaluate": evaluation, "play": playing}.items():
        monkeypatch.setattr(module, "make_vector", lambda options, seed, envs: seeds.append(seed) or sys.exit())
        with pytest.raises(SystemExit):
            cli.main([command, "--seed", "5"])
    assert seeds == [2**32 + 5] * 2
    for command in ("evaluate", "play", "train"):
        assert f"{2**32} should be less than" in call(folder, command, "--seed", str(2**32), code=2)


def test_inspection_says_what_is_in_a_checkpoint(folder):
    text = call(folder, "inspect")
    for words in ("CartPole-v1, seed 5", "60 steps (60 frames)", "world.rssm", "model_state"):
        assert words in text


def test_the_configuration_is_printed_as_a_file_that_can_be_used(folder):
    text = call(folder, "config", "--config", "tiny.json", "env.envs=3", "--steps", "70", "batch_size=5")
    config = json.loads(text)
    assert (config["env"]["envs"], config["run"]["steps"], config["replay"]["batch_size"]) == (3, 70, 5)


@pytest.mark.parametrize(
    ("code", "words", "arguments"),
    [
        (2, "replay.lenght = 4: unknown key; did you mean replay.length?", ["train", "replay.lenght=4"]),
        (3, "lost.pt: no such checkpoint", ["evaluate", "--checkpoint", "lost.pt"]),
        (2, "float32[6] here", ["train", "--checkpoint", "checkpoints/latest.pt", "--env", "Acrobot-v1"]),
        (6, "Not a directory", ["train", "--config", "tiny.json", "run.directory=tiny.json"]),
        (8, "device cuda:63 is not available", ["train", "--config", "tiny.json", "--device", "cuda:63"]),
    ],
)
def test_a_mistake_is_one_line_and_has_its_exit_code(folder, code, words, arguments):
    assert words in call(folder, *arguments, code=code)


@pytest.mark.parametrize(
    ("fail", "code", "words"),
    [
        (lambda options: torch.empty(2**53), 6, "error: out of memory: RuntimeError: .*; lower replay.batch_size"),
        (lambda options: np.empty(2**53), 6, "error: out of memory: MemoryError: .*; lower replay.batch_size"),
        (lambda options: Path("nowhere/x").read_text(), 6, "error: FileNotFoundError: .*; check disk and permissions"),
        (lambda options: {}["key"], 70, "error: internal: KeyError: 'key'; please report crash.txt"),
    ],
    ids=["torch", "numpy", "disk", "internal"],
)
def test_a_failure_that_nobody_foresaw_is_one_line_too(tmp_path, monkeypatch, capsys, fail, code, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "_config", fail)
    assert cli.main(["config"]) == code
    said = capsys.readouterr().err
    assert re.fullmatch(f"{words}.*\n", said) and (tmp_path / "crash.txt").exists() == (code == 70)


def test_a_reader_that_goes_away_is_no_mistake(tmp_path):
    process = start(tmp_path, "config")
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.wait(60) == 0
    assert process.stderr.read() == ""


def test_a_run_folder_has_one_owner_and_an_interrupted_run_saves_and_goes_on(tmp_path):
    (tmp_path / "tiny.json").write_text(json.dumps(TINY))
    owner = start(tmp_path, "train", "--config", "tiny.json", "--steps", "1000000")
    try:
        assert owner.stdout is not None
        assert any("Episode return" in line for line in owner.stdout)
        assert f"in use by process {owner.pid}" in call(tmp_path, "train", "--config", "tiny.json", code=7)
        owner.send_signal(signal.SIGINT)
        output, errors = owner.communicate(timeout=60)
    finally:
        owner.kill()
    assert owner.returncode == 130 and not errors
    stopped = re.search(r"Stopped at step (\d+); go on with --checkpoint (\S+)", output)
    assert stopped is not None
    steps = str(int(stopped[1]) + 4)
    assert f"Finished at step {steps}" in call(tmp_path, "train", "--checkpoint", stopped[2], "--steps", steps)


def test_a_script_without_a_main_guard_trains_its_own_environment_in_processes(tmp_path):
    (tmp_path / "tiny.json").write_text(json.dumps(TINY))
    (tmp_path / "script.py").write_text(
        "from pathlib import Path\n"
        "import gymnasium\n"
        "from reverie import ENVIRONMENTS, DreamerV3Trainer, config\n"
        "class Mine(gymnasium.Wrapper):\n"
        "    pass\n"
        "ENVIRONMENTS['custom'] = lambda: Mine(gymnasium.make('CartPole-v1'))\n"
        "settings = config.read(Path('tiny.json')) | {'env': {'name': 'custom', 'envs': 2, 'mode': 'processes'}}\n"
        "print('trained', DreamerV3Trainer(config.build(settings)).train())\n"
    )
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, env=ENVIRONMENT, text=True, capture_output=True, timeout=100
    )
    assert done.stdout.splitlines() == ["trained 0"], done.stderr


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["train", "--foo"], "--foo"),
        (["train", "a.b=1", "--seed", "1", "--c=2"], "--c=2"),
        (["inspect", "episodes=3"], "episodes=3"),
        (["evaluate", "--episodes", "0"], "at least 1"),
        (["play", "--seed", "-1"], "at least 0"),
        (["dream"], "invalid choice: 'dream'"),
    ],
)
def test_what_the_parser_does_not_know_is_refused(arguments, complaint):
    with pytest.raises(ConfigError, match=complaint):
        cli.parse(arguments)


@pytest.mark.parametrize("name", ["tpu", "meta", "cuda:x", "cuda:63"])
def test_a_device_that_is_not_there_is_refused(name):
    with pytest.raises(DeviceError, match=f"device {name} is .*; use --device"):
        choose_device(name)


def test_a_count_may_be_written_with_an_exponent():
    for arguments in (["train", "--steps"], ["sweep", "--steps"], ["evaluate", "--episodes"], ["profile", "--updates"]):
        value = cli.parse([*arguments, "1e3"])
        assert vars(value)[arguments[1].removeprefix("--")] == 1000
        for wrong in ("1.5", "1e-3", "x", "inf", "nan", "1e400", "-1e3", ""):
            with pytest.raises(ConfigError, match=arguments[1]):
                cli.parse([arguments[0], f"{arguments[1]}={wrong}"])


def test_options_may_stand_anywhere():
    options = cli.parse(["train", "a.b=1", "--seed", "1", "c.d=2", "--env", "x", "e=3"])
    assert options.overrides == ["a.b=1", "c.d=2", "e=3"]


def test_several_configurations_are_merged_in_their_order(tmp_path, capsys):
    for name, tree in (("a", {"run": {"steps": 1, "seed": 2}}), ("b", {"run": {"steps": 3}})):
        (tmp_path / f"{name}.json").write_text(json.dumps(tree))
    files = [text for name in "ab" for text in ("--config", str(tmp_path / f"{name}.json"))]
    assert cli.main(["config", *files, "batch_size=5"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["run"]["steps"], shown["run"]["seed"], shown["replay"]["batch_size"]) == (3, 2, 5)


@pytest.mark.parametrize("command", ["config", "profile"])
def test_a_sweep_is_not_one_run(command: str, capsys):
    assert cli.main([command, "--config", "experiment"]) == 2
    assert "a list makes this a sweep, which `reverie sweep` runs" in capsys.readouterr().err
