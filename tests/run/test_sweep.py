"""Sweeps: what they expand to, that nothing is lost or done twice, and what they report."""

from __future__ import annotations

import csv
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from reverie import cli
from reverie import config as configuration
from reverie.errors import ConfigError
from reverie.presets import locate
from reverie.run import leaderboard
from reverie.run.folder import lock
from reverie.run.grid import Grid, Trial, axes, expand
from reverie.run.sweep import Result, read, reopen, run
from tests.test_cli import TINY, start

ORIGINAL = {"kl_scale": [0.5, 1.0, 2.0], "free_nats": [1.0, 3.0, 5.0], "clip_ratio": [0.1, 0.2, 0.3]}
LAST = "kl_scale=2.0,free_nats=5.0,clip_ratio=0.3"


def make_grid(folder: Path, *overrides: str) -> Grid:
    """Three seeds where nothing else is asked for."""
    return expand(configuration.change({"run": {"directory": str(folder), "seed": [0, 1, 2]}}, overrides), "sweep")


def ignore(results: object) -> None:
    """Nobody wants to hear of results."""


def shell(script: str, began: list[str] | None = None):
    """A command that runs a script instead of a trial, and notes the names of the trials."""

    def command(trial: Trial) -> list[str]:
        if began is not None:
            began.append(trial.name)
        return ["sh", "-c", f"cd '{trial.folder}'; {script}"]

    return command


# --- the grid ---


def test_a_file_of_nothing_but_three_lists_is_27_trials(tmp_path):
    path = tmp_path / "experiment.json"
    path.write_text(json.dumps(ORIGINAL))
    grid = expand(configuration.read(path), path.stem)
    assert grid.folder == Path("runs/experiment")
    assert len({trial.name for trial in grid.trials}) == len(grid.trials) == 27
    assert grid.trials[0].name == "kl_scale=0.5,free_nats=1.0,clip_ratio=0.1"
    assert grid.trials[1].name == "kl_scale=0.5,free_nats=1.0,clip_ratio=0.2"
    last = grid.trials[-1]
    assert last.name == LAST and last.folder == Path("runs/experiment") / LAST
    assert (last.config.world.kl_scale, last.config.world.free_nats, last.config.behavior.clip) == (2.0, 5.0, 0.3)


def test_the_shipped_sweep_holds_these_lists_and_every_trial_can_be_written_and_read():
    assert ORIGINAL.items() <= json.loads(locate("experiment").read_text()).items()
    grid = expand(configuration.read("experiment"), "experiment")
    assert len(grid.trials) == 27
    for trial in grid.trials:
        assert configuration.build(json.loads(configuration.dump(trial.config))) == trial.config
        assert trial.config.run.checkpoint_dir == str(trial.folder / "checkpoints")


def test_the_sweep_of_scales_trains_managers_on_pin_pad():
    grid = expand(configuration.read("pinpad_sweep"), "pinpad_sweep")
    assert grid.axes.keys() == {"behavior.return_floor", "behavior.entropy", "hierarchy.goal_weight", "run.seed"}
    assert len(grid.trials) == 24
    assert all(trial.config.hierarchy.enabled for trial in grid.trials)
    assert grid.trials[0].config.env == configuration.load("pinpad").env


def test_seeds_are_the_last_axis_and_lists_by_their_own_type_are_none():
    tree = {
        "run": {"seed": [0, 1]},
        "env": {"one_hot": ["a", "b"], "kwargs": {"sizes": [1, 2]}},
        "world": {"size": ["tiny", "1m"]},
        "agent": {"world_optimizer": {"beta1": [0.9]}},
        "unknown": [1, 2],
    }
    assert list(axes(tree)) == ["world.size", "agent.world_optimizer.beta1", "run.seed"]
    del tree["unknown"]
    assert expand(tree, "x").trials[1].name == "world.size=tiny,agent.world_optimizer.beta1=0.9,seed=1"


def test_trials_have_the_same_names_in_whatever_order_their_options_were_written():
    grid = expand(configuration.read("experiment"), "experiment")
    assert grid.trials[0].name == "kl_scale=0.5,free_nats=1.0,clip_ratio=0.1"
    assert [trial.name for trial in expand(grid.tree, "").trials] == [trial.name for trial in grid.trials]
    backwards = dict(reversed(grid.axes.items()))
    trials = expand(configuration.change(grid.tree, (), backwards), "").trials
    assert [trial.name for trial in trials] == [trial.name for trial in grid.trials]


@pytest.mark.parametrize("values", [["dmc/cartpole_balance", "dmc-cartpole_balance"], ["x" * 100, "x" * 101]])
def test_names_are_safe_short_and_different(values):
    trials = expand({"env": {"name": values}}, "my sweep!").trials
    assert len({trial.name for trial in trials}) == 2
    for trial in trials:
        assert trial.folder.parent == Path("runs/my-sweep")
        assert configuration.load(None, (), {"run.name": trial.name}).run.name == trial.name


@pytest.mark.parametrize(
    ("tree", "part"),
    [
        ({"world": {"kl_scale": [0.5, -1.0]}}, "world.kl_scale = -1.0"),
        ({"world": {"kl_scale": [0.5, "high"]}}, 'world.kl_scale = "high"'),
        ({"world": {"kl_scale": [0.5, [1.0]]}}, "world.kl_scale = [1.0]"),
        ({"world": {"kl_scale": []}}, "world.kl_scale = []: should be"),
        ({"world": {"kl_scale": [1, 1.0]}}, "two trials are kl_scale=1.0"),
        ({"world": {"kl_scal": [1.0, 2.0]}, "run": {"seed": [0, 1]}}, "did you mean world.kl_scale?"),
        ({"replay": {"length": [8, 4]}, "agent": {"starts": 6}}, "agent.starts = 6: should be at most"),
        ({"run": {"seed": list(range(101))}, "env": {"envs": list(range(1, 101))}}, "10100 combinations"),
        ({"run": {"name": ["a", "b"]}}, 'run.name = ["a", "b"]'),
        ({"run": {"name": "../a", "seed": [0, 1]}}, 'run.name = "../a"'),
        ({"run": {"evaluate_every": 0, "seed": [0, 1]}}, "run.evaluate_every = 0"),
        ({"run": {"evaluate_every": 200, "steps": [200, 100]}}, "run.steps = 100"),
        ({"run": {"seed": 1}}, "nothing to sweep"),
    ],
)
def test_a_grid_with_a_mistake_is_refused_in_one_line(tree, part):
    with pytest.raises(ConfigError) as caught:
        expand(tree, "sweep")
    assert part in str(caught.value) and str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["train", "--config", "sweep.json"], "world.kl_scale = -1.0"),
        (["sweep", "kl_scale=[0.5,-2]"], "world.kl_scale = -2"),
        (["train", "--parallel", "2"], "nothing to sweep"),
        (["sweep"], "nothing to sweep"),
        (["sweep", "--report", "nowhere"], "no such file"),
        (["sweep", "--name", "a b", "kl_scale=[0.5,1.0]"], 'run.name = "a b"'),
    ],
)
def test_a_mistake_is_told_before_anything_runs(tmp_path, monkeypatch, capsys, arguments, part):
    monkeypatch.chdir(tmp_path)
    Path("sweep.json").write_text(json.dumps({"kl_scale": [0.5, -1.0]}))
    assert cli.main(arguments) == 2
    errors = capsys.readouterr().err
    assert part in errors and errors.startswith("error: ") and errors.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.json"]


# --- running ---


def test_a_failing_trial_stops_nothing_and_is_tried_again_while_finished_ones_are_not(tmp_path):
    grid, began = make_grid(tmp_path), []
    heard: list[list[str]] = []
    fail = shell("case $PWD in *seed=1) echo 'error: no luck'; exit 4;; esac", began)
    code = run(grid, 1, lambda results: heard.append([result.status for result in results.values()]), fail)
    assert code == 4
    assert began == ["seed=0", "seed=1", "seed=2"]
    assert heard[-1] == ["finished", "failed", "finished"]
    assert read(grid)["seed=1"].message == "failed with exit code 4: error: no luck"
    assert "seed=1: failed with exit code 4: error: no luck" in list(leaderboard.table(grid, read(grid)))
    began.clear()
    assert run(grid, 1, ignore, shell("true", began)) == 0
    assert began == ["seed=1"]


def test_a_trial_that_is_killed_has_failed(tmp_path):
    grid = make_grid(tmp_path)
    assert run(grid, 1, ignore, shell("kill -9 $$")) == 137
    assert {result.message for result in read(grid).values()} == {"failed, killed by signal 9"}


def test_trials_run_side_by_side(tmp_path):
    """Each of two trials waits until the other one is there too."""
    wait = "touch here; for i in $(seq 600); do [ -e ../seed=0/here -a -e ../seed=1/here ] && exit 0; sleep 0.05; done"
    assert run(make_grid(tmp_path, "run.seed=[0,1]"), 2, ignore, shell(f"{wait}; exit 1")) == 0


def test_a_signal_stops_all_trials_once_and_the_same_sweep_goes_on(tmp_path):
    grid, began = make_grid(tmp_path), []
    obey = (
        "trap 'echo saved >> saved' TERM; case $PWD in *seed=1) kill -INT $PPID;; esac;"
        "while [ ! -e saved ]; do sleep 0.05; done; sleep 0.3; exit 143"
    )
    assert run(grid, 2, ignore, shell(obey, began)) == 128 + signal.SIGINT
    assert began == ["seed=0", "seed=1"]
    assert [result.status for result in read(grid).values()] == ["stopped", "stopped", "waiting"]
    assert (tmp_path / "sweep/seed=1/saved").read_text() == "saved\n"
    began.clear()
    assert run(grid, 2, ignore, shell("true", began)) == 0
    assert sorted(began) == ["seed=0", "seed=1", "seed=2"]


def test_a_trial_that_a_killed_sweep_left_running_is_waited_for(tmp_path):
    grid, began = make_grid(tmp_path, "run.seed=[0,1]"), []
    left = lock(grid.trials[0].folder)
    let_go = shell("true", began)

    def command(trial: Trial) -> list[str]:
        left.close()
        return let_go(trial)

    assert run(grid, 1, ignore, command) == 0
    assert began == ["seed=1", "seed=0"]


def test_a_sweep_may_grow_but_not_change(tmp_path):
    began: list[str] = []
    assert run(make_grid(tmp_path, "run.seed=[0,1]", "run.steps=10000"), 1, ignore, shell("true", began)) == 0
    assert run(make_grid(tmp_path, "run.steps=10000"), 1, ignore, shell("true", began)) == 0
    assert began == ["seed=0", "seed=1", "seed=2"]
    assert run(make_grid(tmp_path, "run.seed=[1]", "run.steps=20000"), 1, ignore, shell("true", began)) == 0
    assert began[3:] == ["seed=1"]
    for change, part in (("env.kwargs.a=1", "env.kwargs = {}"), ("batch_size=[4,8]", "replay.batch_size = 16")):
        with pytest.raises(ConfigError, match=part):
            run(make_grid(tmp_path, change), 1, ignore, shell("true", began))
    assert len(began) == 4


# --- reports ---


RESULTS = {
    "kl_scale=0.5,seed=0": Result("finished", "", 100, 104, 7.5, [10.0, 30.0, 20.0]),
    "kl_scale=0.5,seed=1": Result("finished", "", 100, 104, 7.0, [50.0]),
    "kl_scale=1.0,seed=0": Result("finished", "", 100, 104, 8.0, [60.0, 5.0]),
    "kl_scale=1.0,seed=1": Result("failed", "failed with exit code 5: error: not finite", 100, 24, 1.0, [99.0]),
    "kl_scale=2.0,seed=0": Result("stopped", "", 100, 40, 3.0, []),
    "kl_scale=2.0,seed=1": Result(),
}


def kl_grid(folder: Path) -> Grid:
    grid = make_grid(folder, "run.seed=[0,1]", "kl_scale=[0.5,1.0,2.0]")
    grid.folder.mkdir(parents=True)
    return grid


def test_the_table_ranks_settings_by_their_mean_over_finished_seeds(tmp_path):
    assert list(leaderboard.table(kl_grid(tmp_path), RESULTS)) == [
        "rank  settings           best       last  seeds",
        "   1  kl_scale=1.0       60.0        5.0    1/2",
        "   2  kl_scale=0.5       40.0       35.0    2/2",
        "   3  kl_scale=2.0          -          -    0/2",
        "kl_scale=1.0,seed=1: failed with exit code 5: error: not finite",
    ]


def test_the_csv_has_a_row_for_every_trial(tmp_path):
    grid = kl_grid(tmp_path)
    leaderboard.write(grid, RESULTS)
    rows = list(csv.DictReader((grid.folder / "sweep.csv").read_text().splitlines()))
    assert [row["trial"] for row in rows] == list(RESULTS)
    assert list(rows[0].values())[1:] == ["0.5", "0", "finished", "104", "7.5", "30.0", "20.0"]
    assert list(rows[5].values())[1:] == ["2.0", "1", "waiting", "0", "0.0", "", ""]
    assert list(rows[0])[1:3] == ["world.kl_scale", "run.seed"]


@pytest.mark.parametrize("results", [RESULTS, dict.fromkeys(RESULTS, Result())])
def test_the_plot_is_a_picture(tmp_path, results):
    grid = kl_grid(tmp_path)
    leaderboard.plot(grid, results)
    assert (grid.folder / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_a_killed_sweep_goes_on_through_the_real_program(tmp_path, monkeypatch, capsys):
    tree: dict[str, Any] = json.loads(json.dumps(TINY))
    tree["run"] |= {"name": "first", "steps": [60, 600], "evaluate_every": 60}
    (tmp_path / "sweep.json").write_text(json.dumps(tree))
    folder = tmp_path / "runs/first"
    second = folder / "steps=600/console.log"
    sweep = start(tmp_path, "train", "--config", "sweep.json")
    try:
        deadline = time.monotonic() + 100
        while not (second.exists() and "Episode return" in second.read_text()) and time.monotonic() < deadline:
            time.sleep(0.02)
    finally:
        os.kill(sweep.pid, signal.SIGKILL)
        sweep.communicate()
    first = (folder / "steps=60/console.log").read_text()
    assert "Finished at step 60" in first
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "--config", "sweep.json"]) == 0
    assert (folder / "steps=60/console.log").read_text() == first
    assert "Stopped at step" in second.read_text() and "Finished at step 600" in second.read_text()
    table = capsys.readouterr().out.splitlines()[-3:]
    assert [line.split()[-1] for line in table] == ["seeds", "1/1", "1/1"]
    rows = list(csv.DictReader((folder / "sweep.csv").read_text().splitlines()))
    assert [(row["run.steps"], row["steps"], row["status"]) for row in rows] == [
        ("60", "60", "finished"),
        ("600", "600", "finished"),
    ]
    assert float(rows[0]["best_return"]) >= float(rows[0]["last_return"]) > 0
    assert cli.main(["sweep", "--report", "runs/first"]) == 0
    assert capsys.readouterr().out.splitlines() == table
    moved = folder.rename(tmp_path / "moved")
    assert read(reopen(moved))["steps=600"].status == "finished"
