"""Pin Pad: its rules one by one, what it shows, and how often chance succeeds."""

from __future__ import annotations

import itertools
import math
import random

import jaxtyping
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from reverie.env import EnvOptions, make, make_vector
from reverie.env.pinpad import BOARDS, PinPad, create
from reverie.errors import ConfigError
from reverie.types import ObservationSpec

STAY, DOWN, UP, RIGHT, LEFT = range(5)

SIZES = {
    "vec-3": (7, 7, 3),
    "vec-4": (7, 7, 4),
    "vec-5": (9, 9, 5),
    "three": (14, 16, 3),
    "four": (14, 16, 4),
    "five": (14, 16, 5),
    "six": (14, 16, 6),
}
"""Rows, columns and pads."""


@pytest.fixture
def unchecked(monkeypatch):
    """Without shape checks, which take many times as long as a step."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def board(*rows: str, length: int = 1000, at: tuple[int, int] = (0, 0), image: int = 0) -> PinPad:
    env = PinPad(list(rows), length, vector=True, image=image)
    env.reset(seed=0)
    env.cell = env.floor.index(at)
    return env


def walk(env: PinPad, actions: list[int]) -> list[tuple[dict, float]]:
    return [env.step(action)[:2] for action in actions]


def test_moves_stop_at_walls_and_at_the_edge():
    env = board("...", ".#.", "..1", at=(1, 0))
    path = [env.floor[obs["cell"]] for obs, _ in walk(env, [RIGHT, LEFT, STAY, DOWN, DOWN, RIGHT, UP, RIGHT, UP])]
    assert path == [(1, 0), (1, 0), (1, 0), (2, 0), (2, 0), (2, 1), (2, 1), (2, 2), (1, 2)]


def test_a_pad_is_noted_when_it_differs_from_the_one_before():
    env = board(".12.", ".33.")
    path = [RIGHT, STAY, LEFT, RIGHT, RIGHT, RIGHT, LEFT, LEFT, DOWN, RIGHT, UP]
    shown = [(int(obs["pad"]), obs["history"].tolist()) for obs, _ in walk(env, path)]
    assert shown == [
        (1, [0, 0, 1]),
        (1, [0, 0, 1]),
        (0, [0, 0, 1]),
        (1, [0, 0, 1]),
        (2, [0, 1, 2]),
        (0, [0, 1, 2]),
        (2, [0, 1, 2]),
        (1, [1, 2, 1]),
        (3, [2, 1, 3]),
        (3, [2, 1, 3]),
        (2, [1, 3, 2]),
    ]


def test_the_right_order_pays_once_and_ten_steps_later_the_player_starts_elsewhere():
    env = board("1.2" + "." * 13, *["." * 16] * 14)
    rewards = [reward for _, reward in walk(env, [STAY, RIGHT, RIGHT])]
    assert rewards == [0, 0, 1]
    for left in range(10, 1, -1):
        assert env.countdown == left
        obs, reward = walk(env, [STAY])[0]
        assert (obs["cell"], obs["countdown"], reward) == (2, left - 1, 0) and obs["history"].tolist() == [1, 2]
    obs, reward = walk(env, [STAY])[0]
    assert reward == 0 and obs["countdown"] == 0 and obs["cell"] > 2 and not obs["history"].any()


def test_a_success_during_the_countdown_pays_nothing():
    env = board("12...")
    assert [reward for _, reward in walk(env, [STAY, RIGHT, LEFT, RIGHT, LEFT, RIGHT])] == [0, 1, 0, 0, 0, 0]


@pytest.mark.parametrize("order", list(itertools.permutations("123")))
def test_only_the_right_order_pays(order):
    env = board("." + ".".join(order), at=(0, 0))
    assert sum(reward for _, reward in walk(env, [RIGHT] * 6)) == (order == ("1", "2", "3"))


def test_the_player_begins_anywhere_on_the_floor():
    env = create("vec-4")
    starts = [env.reset(seed=seed)[0] for seed in range(600)]
    assert {obs["cell"] for obs in starts} == set(range(49))
    assert all(not obs["history"].any() and obs["countdown"] == 0 for obs in starts)
    assert {obs["cell"]: obs["pad"] for obs in starts} == dict(enumerate(env.pads))


def test_only_time_ends_an_episode():
    env = board("12", length=5)
    ends = [env.step(action)[2:4] for action in (STAY, RIGHT, STAY, STAY, STAY)]
    assert ends == [(False, False)] * 4 + [(False, True)]
    assert env.countdown and env.reset()[0]["countdown"] == 0
    assert env.step(STAY)[2:4] == (False, False)


@pytest.mark.parametrize("task", BOARDS)
def test_every_board_is_sound_and_its_pads_lie_apart(task):
    height, width, pads = SIZES[task]
    rows, env = BOARDS[task].split(), create(task)
    assert len(rows) == height and {len(row) for row in rows} == {width} and env.target == tuple(range(1, pads + 1))
    for pad, around in zip(env.pads, env.neighbours, strict=True):
        assert not pad or {env.pads[cell] for cell in around} <= {0, pad}
    check_env(env, skip_render_check=True)
    check_env(create(task, image=64), skip_render_check=True)


def test_the_observation_holds_all_that_the_future_depends_on(unchecked):
    env, chance = create("vec-3", length=5000), random.Random(0)
    after, seen = {}, 0
    obs, _ = env.reset(seed=0)
    for _ in range(30_000):
        before = (obs["cell"], obs["pad"], *obs["history"].tolist(), obs["countdown"])
        action = chance.randrange(5)
        obs, reward, _, truncated, _ = env.step(action)
        result = (obs["cell"], obs["pad"], *obs["history"].tolist(), obs["countdown"], reward)
        if before[-1] != 1:  # then the player is put down at random
            seen += (before, action) in after
            assert after.setdefault((before, action), result) == result
        if truncated:
            obs, _ = env.reset()
    assert seen > 10_000 and any(result[-1] for result in after.values())


@pytest.mark.parametrize(
    ("task", "length", "steps", "every"),
    [("vec-3", 2000, 60_000, 819.4), ("vec-4", 1000, 400_000, 20_800), ("three", 2000, 150_000, 2_103)],
)
def test_chance_succeeds_as_often_as_the_rules_say(unchecked, task, length, steps, every):
    """Steps per success are exact, from the Markov chain over cells and histories with these episodes."""
    env = create(task, length=length)
    env.reset(seed=0)
    successes = 0.0
    for action in random.Random(0).choices(range(5), k=steps):
        _, reward, _, truncated, _ = env.step(action)
        successes += reward
        if truncated:
            env.reset()
    expected = steps / every
    assert abs(successes - expected) < 4 * math.sqrt(expected)


def test_the_small_picture_stands_beside_the_classes():
    env = board(".1.", "...", ".2.", at=(0, 1), image=8)
    obs, _ = walk(env, [STAY])[0]
    red, pale_green, white, gray, black = (255, 0, 0), (229, 255, 229), (255, 255, 255), (192, 192, 192), (0, 0, 0)
    expected = np.full((8, 8, 3), gray)
    expected[:3, :3] = white
    expected[0, 1], expected[2, 1], expected[3, 1] = black, pale_green, red  # the third is the history's first
    np.testing.assert_array_equal(obs["image"], expected)
    obs, _ = walk(env, [DOWN])[0]
    assert obs["image"][0, 1].tolist() == [255, 229, 229] and obs["image"][1, 1].tolist() == list(black)
    obs, reward = walk(env, [DOWN])[0]
    assert reward == 1 and obs["image"][1, 1].tolist() == [223, 255, 223]
    assert obs["image"][3, [1, 3, 5]].tolist() == [list(red), [0, 255, 0], list(gray)]


def test_the_picture_alone_has_64_pixels_a_side():
    env = make(EnvOptions(name="pinpad/four", kwargs={"vector": False, "image": 64}))
    assert env.observation == {"image": ObservationSpec((64, 64, 3), "uint8")}
    image = env.reset(0)["image"]
    np.testing.assert_array_equal(image, image[::4, ::4].repeat(4, 0).repeat(4, 1))
    np.testing.assert_array_equal(env.render(), image)
    assert (image == 0).all(-1).sum() == 16 and image[8, 8].tolist() == [255, 229, 229]


def test_infos_tell_the_state_to_those_who_see_only_pictures():
    env, twin = create("five", vector=False, image=64), create("five")
    for one, other in zip(
        [env.reset(seed=3), *(env.step(action) for action in (RIGHT, DOWN, DOWN))],
        [twin.reset(seed=3), *(twin.step(action) for action in (RIGHT, DOWN, DOWN))],
        strict=True,
    ):
        assert list(one[0]) == ["image"] and one[-1].keys() == other[0].keys()
        assert all(np.array_equal(one[-1][key], other[0][key]) for key in one[-1])


def test_an_episode_continues_where_chance_has_put_the_player(unchecked):
    options = EnvOptions(name="pinpad/vec-3", kwargs={"length": 2000})
    original, resumed = make_vector(options, 0, envs=2), make_vector(options, 5, envs=2)
    actions = np.eye(5, dtype=np.float32)[np.random.default_rng(2).integers(0, 5, (620, 2))]
    reward = np.array([original.step(action).reward for action in actions[:574]])
    assert reward[:, 0].any() and reward[-14:-11, 1].any()  # the second player was put down a moment ago
    resumed.load_state_dict(original.state_dict())
    for action in actions[574:]:
        one, other = original.step(action), resumed.step(action)
        assert not one.last.any() and not other.last.any()
        assert all(np.array_equal(one.obs[key], other.obs[key]) for key in one.obs)


@pytest.mark.parametrize(
    ("task", "kwargs", "message"),
    [
        ("for", {}, "unknown Pin Pad board 'for'; did you mean 'four'?"),
        ("four", {"vector": False}, "shows nothing; set env.kwargs.image to 64"),
        ("four", {"image": 8}, "env.kwargs.image = 8 does not fit .* set it to 64 or another multiple of 16"),
        ("vec-4", {"image": -8}, "multiple of 8"),
        ("vec-3", {"length": 0}, "env.kwargs.length = 0"),
        ("vec-3", {"colour": 1}, "cannot be made with env.kwargs"),
    ],
)
def test_what_cannot_be_played_is_refused(task, kwargs, message):
    with pytest.raises(ConfigError, match=message):
        make(EnvOptions(name=f"pinpad/{task}", kwargs=kwargs))
