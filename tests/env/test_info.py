"""Numbers that environments tell in ``info``: one per episode, wherever they run, after a resume, in the metrics."""

from __future__ import annotations

import json

import numpy as np
import pytest

from reverie.env.info import InfoReader
from reverie.errors import ConfigError
from reverie.run.collect import Scores
from reverie.run.train import DreamerV3Trainer
from reverie.types import Step
from tests.env.test_vector import actions, assert_same, play, through_a_file, vector
from tests.run.test_train import make_config

TOLD = {"middle": "max", "inner/count": "mean"}


@pytest.mark.parametrize(("how", "number"), [("last", 2.0), ("max", 3.0), ("sum", 6.0), ("mean", 2.0)])
def test_an_episode_is_brought_to_one_number(how, number):
    reader = InfoReader({"score": how})
    reader.begin()
    for value in (1, np.float32(3), np.array([2.0])):
        reader.add({"score": value})
    assert reader.report() == {"score": number}
    reader.begin()
    assert reader.report() == {}


def test_names_go_into_nested_dicts_and_prefer_the_whole():
    reader = InfoReader({"a/b": "last", "a/c/d": "last", "a/e": "last"})
    reader.add({"a/b": True, "a": {"b": 5, "c": {"d": 7}}})
    assert reader.report() == {"a/b": 1.0, "a/c/d": 7.0}


@pytest.mark.parametrize("info", [None, {}, {"score": None}, {"score": float("nan")}, {"score": np.inf}, [1.0]])
def test_what_is_not_told_is_left_out(info):
    reader = InfoReader({"score": "sum"})
    reader.add(info)
    assert reader.report() == {}


@pytest.mark.parametrize("value", ["much", [1.0, 2.0], {"x": 1.0}, np.zeros(0), 1j, object()])
def test_what_is_no_number_is_refused_by_name(value):
    with pytest.raises(ConfigError, match=r"env.info_metrics names 'score'"):
        InfoReader({"score": "last"}).add({"score": value})


@pytest.mark.parametrize("name", ["return", "length", "goal_reach"])
def test_names_of_other_metrics_are_refused(name, tmp_path):
    with pytest.raises(ConfigError, match="is a metric of every episode already"):
        make_config(tmp_path, env={"info_metrics": {name: "last"}})


def by_hand(steps: list[Step], env: int) -> list[tuple[float, float]]:
    """What ``TOLD`` should be of each episode: whether it had a second step, and the mean of 1 to its length."""
    ends = [t for t, step in enumerate(steps) if step.last[env]]
    begins = [t for t, step in enumerate(steps) if step.first[env]]
    return [(float(end - begin >= 2), (1 + end - begin) / 2) for begin, end in zip(begins, ends, strict=False)]


@pytest.mark.parametrize("mode", ["inline", "processes"])
def test_rows_tell_the_numbers_of_the_episode_that_they_end(mode):
    with vector(mode=mode, info_metrics=TOLD) as envs:
        steps = play(envs, actions(60, 3))
    for env in range(3):
        told = [tuple(step.info[name][env, 0] for name in TOLD) for step in steps if step.last[env]]
        assert told == by_hand(steps, env) and len(told) > 3
        assert all(step.info[name][env, 1] == step.last[env] for step in steps for name in TOLD)


def test_repeated_actions_tell_of_every_frame():
    with vector(repeat=2, time_limit=2, info_metrics={"inner/count": "sum"}) as envs:
        steps = play(envs, actions(12, 3))
    ended = [step.info["inner/count"][env, 0] for step in steps for env in range(3) if step.last[env]]
    assert set(ended) <= {1.0 + 2 + 3, 1.0 + 2 + 3 + 4} and len(ended) > 5


def test_an_open_episode_tells_the_same_after_a_resume():
    with vector(info_metrics=TOLD) as envs:
        play(envs, actions(10, 3))
        state = through_a_file(envs.state_dict())
        expected = play(envs, actions(30, 3, seed=1))
    with vector(info_metrics=TOLD, seed=1) as envs:
        envs.load_state_dict(state)
        assert_same(expected, play(envs, actions(30, 3, seed=1)))


def test_a_number_that_never_came_is_pointed_out_once(caplog):
    with vector(info_metrics={"sucess": "last"}) as envs:
        steps = play(envs, actions(40, 3))
    assert all(not step.info["sucess"].any() for step in steps)
    assert [record.message for record in caplog.records].count(
        "counting: an episode ended and its info had no number 'sucess' (env.info_metrics)"
    ) == 1


def test_scores_keep_what_was_told():
    nothing, flag = np.zeros(2, np.float32), np.zeros(2, bool)
    scores = Scores(2)
    last = Step({}, nothing, flag, np.array([True, True]), flag, {"won": np.array([[0.5, 1.0], [0.0, 0.0]])})
    (_, first), (_, second) = scores.add(last)
    assert (first.info, second.info) == ({"won": 0.5}, {})


def test_they_reach_the_metrics_of_episodes_and_evaluations(tmp_path):
    env = {"name": "counting", "mode": "inline", "info_metrics": TOLD}
    run = {"steps": 80, "evaluate_every": 40, "evaluate_episodes": 4, "video": False}
    trainer = DreamerV3Trainer(make_config(tmp_path, env=env, run=run))
    assert trainer.train() == 0
    rows = [json.loads(line) for line in (trainer.folder / "metrics.jsonl").read_text().splitlines()]
    episodes = [row for row in rows if "episode/return" in row]
    assert episodes and all(row["episode/inner/count"] == (row["episode/length"] + 1) / 2 for row in episodes)
    evaluations = [row for row in rows if "evaluation/return" in row]
    assert [row["evaluation/middle"] for row in evaluations] == [1.0, 1.0]
    assert all(row["evaluation/inner/count"] == (row["evaluation/length"] + 1) / 2 for row in evaluations)


@pytest.mark.parametrize("mode", ["inline", "processes"])
def test_text_in_info_ends_a_run_with_the_users_mistake(mode, tmp_path):
    env = {"name": "counting", "mode": mode, "info_metrics": {"text": "last"}}
    with pytest.raises(ConfigError, match=r"env.info_metrics names 'text', but info has <U4\[\] there"):
        DreamerV3Trainer(make_config(tmp_path, env=env)).train()
