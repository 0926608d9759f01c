"""Every flat vector becomes an action of the space, whatever its bounds; an unsupported space is refused by name."""

from __future__ import annotations

import numpy as np
import pytest
from gymnasium import spaces

from reverie.env.actions import action_writer
from reverie.errors import ConfigError
from reverie.types import ActionPart, action_width

INF, MOST = np.inf, np.finfo(np.float32).max

ACTIONS = {
    "choice": (spaces.Discrete(3), [("action", 3, True)]),
    "choice from five": (spaces.Discrete(3, start=5), [("action", 3, True)]),
    "choices": (spaces.MultiDiscrete([2, 4]), [("action/0", 2, True), ("action/1", 4, True)]),
    "table of choices": (
        spaces.MultiDiscrete([[2, 3], [4, 5]], start=[[1, 0], [0, 1]]),
        [("action/0", 2, True), ("action/1", 3, True), ("action/2", 4, True), ("action/3", 5, True)],
    ),
    "bits": (spaces.MultiBinary(2), [("action/0", 2, True), ("action/1", 2, True)]),
    "numbers": (spaces.Box(np.array([-2, 0]), np.array([2, 10]), dtype=np.float32), [("action", 2, False)]),
    "endless": (spaces.Box(-np.inf, np.inf, (2,), np.float32), [("action", 2, False)]),
    "doubles": (spaces.Box(-1, 3, (2, 2), np.float64), [("action", 4, False)]),
    "dict": (
        spaces.Dict(
            {"move": spaces.Discrete(2), "arm": spaces.Dict({"up": spaces.Box(0, 1, (1,)), "jaw": spaces.Discrete(2)})}
        ),
        [("arm/jaw", 2, True), ("arm/up", 1, False), ("move", 2, True)],
    ),
    "tuple": (spaces.Tuple((spaces.Discrete(2), spaces.Box(-1, 1, (3,)))), [("0", 2, True), ("1", 3, False)]),
}


@pytest.mark.parametrize("name", ACTIONS)
def test_every_flat_vector_becomes_an_action_of_the_space(name):
    space, expected = ACTIONS[name]
    parts, write, _ = action_writer(space)
    assert parts == tuple(ActionPart(*part) for part in expected)
    random = np.random.default_rng(0)
    for _ in range(20):
        flat = random.normal(0, 2, action_width(parts)).astype(np.float32)
        assert space.contains(write(flat)), (flat, write(flat))


def test_one_hots_choose_and_numbers_span_the_box():
    _, write, _ = action_writer(spaces.MultiDiscrete([2, 3], start=[0, 5]))
    np.testing.assert_array_equal(write(np.array([0, 1, 0, 0, 1], np.float32)), [1, 7])
    _, write, _ = action_writer(spaces.Box(np.array([-2, 0]), np.array([2, 10]), dtype=np.float32))
    np.testing.assert_allclose(write(np.array([-1, 0], np.float32)), [-2, 5])
    np.testing.assert_allclose(write(np.array([0.5, 7], np.float32)), [1, 10])
    _, write, _ = action_writer(spaces.Discrete(3, start=5))
    assert write(np.array([0, 0, 1], np.float32)) == 7


RANGES = {
    "above five": (5, INF, 5, 7),
    "above zero": (0, INF, 0, 2),
    "below minus ten": (-INF, -10, -12, -10),
    "endless": (-INF, INF, -1, 1),
    "as far as float32 goes": (-MOST, MOST, -1, 1),
    "huge": (-1e30, 1e30, -1, 1),
    "huge above": (3, 1e35, 3, 5),
    "large": (-1e29, 1e29, -1e29, 1e29),
}
"""Bounds, and the range that is sent."""


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", RANGES)
def test_numbers_without_two_bounds_fill_two_units_and_one_line_says_so(name, dtype):
    low, high, least, most = RANGES[name]
    _, write, notes = action_writer(spaces.Box(dtype(low), dtype(high), (1,), dtype), "arm")
    sent = [float(write(np.array([a], np.float32))[0]) for a in (-5, -1, 0, 1, 5)]
    np.testing.assert_allclose(sent, [least, least, (least + most) / 2, most, most], rtol=1e-6)
    whole = name == "large"
    assert len(notes) == (not whole)
    assert whole or (f"[{least:g}, {most:g}]" in notes[0] and "'arm'" in notes[0])


def test_each_number_has_its_own_bounds():
    low, high = np.array([-INF, 5, -2, -INF], np.float32), np.array([INF, INF, 6, 0], np.float32)
    _, write, (note,) = action_writer(spaces.Box(low, high))
    np.testing.assert_array_equal(write(np.ones(4, np.float32)), [1, 7, 6, 0])
    np.testing.assert_array_equal(write(-np.ones(4, np.float32)), [-1, 5, -2, -2])
    assert "numbers in [-2, 0], [-1, 1], [5, 7] are sent" in note


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_the_ends_of_a_box_are_reached_and_never_passed(dtype):
    random = np.random.default_rng(0)
    ends = np.sort(random.normal(0, 100, (2, 500)).astype(dtype), 0)
    space = spaces.Box(ends[0], ends[1], dtype=dtype)
    _, write, notes = action_writer(space)
    for sign in (-1, 1):
        action = write(np.full(500, sign, np.float32))
        assert action.dtype == dtype and space.contains(action)
        np.testing.assert_allclose(action, ends[max(sign, 0)], rtol=1e-12)
    assert not notes and space.contains(write(random.uniform(-1, 1, 500).astype(np.float32)))


def test_bounds_as_far_as_half_precision_goes_are_none():
    most = np.finfo(np.float16).max
    _, write, notes = action_writer(spaces.Box(-most, most, (1,), np.float16))
    assert notes and write(np.ones(1, np.float32)) == 1


def test_two_parts_of_one_name_are_refused():
    with pytest.raises(ConfigError, match="two parts called 'a/b'"):
        action_writer(spaces.Dict({"a/b": spaces.Discrete(2), "a": spaces.Dict({"b": spaces.Discrete(3)})}))


HUGE = [spaces.Discrete(10**9), spaces.Discrete(100_001), spaces.MultiBinary(200_000), spaces.Box(-1, 1, (400, 400))]


@pytest.mark.parametrize("space", HUGE)
def test_an_action_space_larger_than_any_network_is_refused_before_it_fills_the_memory(space):
    for nested in (space, spaces.Dict({"hand": space})):
        with pytest.raises(ConfigError, match=r"action space 'action' = .* choices or numbers, at most 100000"):
            action_writer(nested)


@pytest.mark.parametrize("space", [spaces.Text(4), spaces.Box(0, 9, (2,), np.int32), spaces.Box(0, 1, (0,))])
def test_an_unsupported_action_space_is_refused_by_name(space):
    with pytest.raises(ConfigError, match=r"action space 'hand' = (Text|Box).* is not supported"):
        action_writer(spaces.Dict({"hand": space}))
