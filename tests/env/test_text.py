"""Text on its way to the agent: bytes of one length, and back."""

from __future__ import annotations

import logging

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from reverie.env import ENVIRONMENTS, EnvOptions, make, make_vector
from reverie.env import text as module
from reverie.env.spaces import ObservationReader
from reverie.env.text import is_text, text_spec, to_bytes, to_text
from reverie.errors import ConfigError
from reverie.types import ObservationSpec

RED_BALL = "go to the red ball"


@pytest.fixture(autouse=True)
def _unwarned():
    module._warn.cache_clear()


@pytest.mark.parametrize("text", ["", "a", RED_BALL, "빨간 공", "🙂🎈", "e\u0301"])
def test_a_text_that_fits_survives(text):
    array = to_bytes(text, 24)
    assert array.shape == (24,) and array.dtype == np.uint8
    assert to_text(array) == text
    assert bytes(array[: len(text.encode())]) == text.encode() and not array[len(text.encode()) :].any()


@pytest.mark.parametrize(
    ("text", "length", "kept"),
    [("abcd", 3, "abc"), ("빨간", 5, "빨"), ("빨간", 6, "빨간"), ("a🙂", 4, "a"), ("🙂", 3, ""), ("빨", 1, "")],
)
def test_a_text_is_cut_after_a_whole_character(text, length, kept):
    assert to_text(to_bytes(text, length)) == kept


def test_what_no_utf_8_can_say_does_not_stop_an_episode():
    assert to_text(to_bytes("a\0b", 4)) == "ab"
    assert to_text(to_bytes("\ud83d!", 4)) == "?!"
    assert to_text(np.array([97, 0xEB, 0, 98], np.uint8)) == "a\ufffd"


def test_a_cut_is_pointed_out_once_for_each_observation(caplog):
    with caplog.at_level(logging.WARNING):
        for name in ("say", "say", "hear"):
            to_bytes("too long", 3, name)
        to_bytes("fits", 4, "see")
    assert [record.args[:2] for record in caplog.records] == [("say", "3 bytes"), ("hear", "3 bytes")]
    assert "the limit is the length that was asked for" in caplog.text


@pytest.mark.parametrize(
    ("space", "limit"),
    [
        (spaces.Text(30), "env.text_length = 12; train with a larger one"),
        (spaces.Text(13), "env.text_length = 12; train with a larger one"),
        (spaces.Space(dtype=str), "env.text_length = 12; train with a larger one"),
        (spaces.Text(12), "its space, with max_length = 12 and the bytes of its charset; mend"),
        (spaces.Text(3, charset="빨"), "its space, with max_length = 3 and the bytes of its charset; mend"),
    ],
)
def test_a_cut_is_blamed_on_the_limit_that_made_it(caplog, space, limit):
    read = ObservationReader(spaces.Dict({"say": space}), text_length=12)
    read({"say": "a word that is longer than the rest"})
    assert f"the observation 'say' is longer than {read.specs['say'].shape[0]} bytes" in caplog.text
    assert f"is cut; the limit is {limit}" in caplog.text


def test_the_length_is_what_is_asked_for_or_what_the_space_allows():
    assert text_spec(spaces.Text(200), 64) == ObservationSpec((64,), "uint8", kind="text")
    assert text_spec(spaces.Text(9), 64).shape == (9,)
    assert text_spec(spaces.Text(9, charset="ab빨"), 64).shape == (27,)


def test_a_space_that_only_says_so_by_its_dtype_is_text():
    mission = spaces.Space(dtype=str)
    assert is_text(mission) and is_text(spaces.Text(3)) and not is_text(spaces.Discrete(3))
    assert text_spec(mission, 12).shape == (12,)


class Herald(gymnasium.Env):
    """Says a word a step, beside a number."""

    observation_space = spaces.Dict({"say": spaces.Text(30), "count": spaces.Box(-1, 9, (1,))})
    action_space = spaces.Discrete(2)
    words = ("빨간 공", "🙂", "", "a word that is longer than the rest")

    def reset(self, seed=None, options=None):
        self.count = -1
        return self.show(), {}

    def step(self, action):
        return self.show(), 0.0, self.count == 3, False, {}

    def show(self):
        self.count += 1
        return {"say": self.words[self.count], "count": np.full(1, self.count, np.float32)}


@pytest.mark.parametrize("mode", ["inline", "processes"])
def test_texts_come_through_wherever_the_environment_runs(mode):
    ENVIRONMENTS["herald"] = Herald
    envs = make_vector(EnvOptions(name="herald", mode=mode, text_length=12), 0, envs=2)
    try:
        rows = [envs.step(np.eye(2, dtype=np.float32)).obs["say"] for _ in range(4)]
    finally:
        envs.close()
    assert envs.observation["say"] == ObservationSpec((12,), "uint8", kind="text")
    assert [to_text(row[1]) for row in rows] == ["빨간 공", "🙂", "", "a word that "]


def test_a_text_is_no_number_of_an_observation():
    ENVIRONMENTS["herald"] = Herald
    assert make(EnvOptions(name="herald", obs_dim=1, one_hot=True)).observation["say"].shape == (30,)
    with pytest.raises(ConfigError, match="obs_dim is 31, but herald has 1"):
        make(EnvOptions(name="herald", obs_dim=31))


def test_what_is_no_text_is_refused():
    env = Herald()
    env.words = (3,)
    ENVIRONMENTS["herald"] = lambda: env
    with pytest.raises(Exception, match="observation 'say' is int, expected a text"):
        make(EnvOptions(name="herald")).reset(0)


def test_missions_are_text():
    pytest.importorskip("minigrid", reason="minigrid is not installed")
    env = make(EnvOptions(name="BabyAI-GoToRedBall-v0"))
    assert env.observation["mission"] == ObservationSpec((64,), "uint8", kind="text")
    assert to_text(env.reset(0)["mission"]) == "go to the red ball"
    muted = make(EnvOptions(name="BabyAI-GoToRedBall-v0", mute=["mission"]))
    assert muted.observation == env.observation and to_text(muted.reset(0)["mission"]) == ""
    assert "mission" not in make(EnvOptions(name="BabyAI-GoToRedBall-v0", kinds={"mission": None})).observation
