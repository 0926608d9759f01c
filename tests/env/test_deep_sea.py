"""Deep Sea: every path through a small one, and the mapping of the published suite."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from reverie.env import EnvOptions, make, make_vector
from reverie.env.deep_sea import DeepSea, create
from reverie.errors import ConfigError


def dive(env: DeepSea, actions) -> tuple[float, list[tuple[int, int]]]:
    """The return, and the cells after the first."""
    env.reset(seed=0)
    total, cells = 0.0, []
    for number, action in enumerate(actions, start=1):
        obs, reward, terminated, truncated, _ = env.step(action)
        assert (terminated, truncated) == (number == env.depth, False)
        cells += [(int(row), int(column)) for row, column in np.argwhere(obs)]
        total += reward
    assert not obs.any()
    return total, cells


def rights(env: DeepSea, moves) -> list[int]:
    """The actions that move to the right where ``moves`` is true, else to the left."""
    actions, column = [], 0
    for row, move in enumerate(moves):
        actions.append(env.right[row][column] if move else 1 - env.right[row][column])
        column = min(column + 1, env.depth - 1) if move else max(column - 1, 0)
    return actions


def test_actions_mean_what_they_do_in_the_published_suite():
    assert create("3").right == [[0, 1, 1], [1, 0, 0], [0, 1, 1]]
    assert create("10").right[0] == [0, 1, 1, 1, 0, 0, 0, 1, 1, 1]
    assert create("10", mapping_seed=7).right != create("10").right


def test_a_dive_goes_down_and_aside_and_pays_for_each_step_to_the_right():
    env = create("5")
    total, cells = dive(env, rights(env, [True, True, False, False, False]))
    assert cells == [(1, 1), (2, 2), (3, 1), (4, 0)] and total == pytest.approx(-2 * 0.01 / 5)


@pytest.mark.parametrize("depth", ["1", "2", "10", "14", "20"])
def test_the_best_return_is_99_hundredths(depth):
    env = create(depth)
    total, cells = dive(env, rights(env, [True] * env.depth))
    assert total == pytest.approx(0.99) and cells == [(row, row) for row in range(1, env.depth)]


@pytest.mark.parametrize("depth", [2, 5, 8])
def test_chance_finds_the_treasure_once_in_two_to_the_depth(depth):
    env = DeepSea(depth, 42)
    returns = np.array([dive(env, actions)[0] for actions in itertools.product((0, 1), repeat=depth)])
    assert (returns > 0.5).sum() == 1
    assert returns.mean() == pytest.approx(0.5**depth - 0.005)  # a random policy's return: half of the moves cost


def test_one_wrong_move_costs_the_treasure():
    env = create("8")
    returns = {actions: dive(env, actions)[0] for actions in itertools.product((0, 1), repeat=8)}
    best = tuple(rights(env, [True] * 8))
    assert [actions for actions, total in returns.items() if total > 0] == [best]
    moves = itertools.product((True, False), repeat=8)
    assert all(dive(env, rights(env, move))[0] == pytest.approx(-sum(move) / 800) for move in moves if not all(move))


def test_all_environments_and_episodes_share_one_mapping():
    env = create("10")
    actions = np.eye(2, dtype=np.float32)[[0, *rights(env, [True] * 10)]]  # the first begins the episodes
    vector = make_vector(EnvOptions(name="deep_sea/10"), seed=3, envs=2)
    for _ in range(2):
        steps = [vector.step(action[None].repeat(2, 0)) for action in actions]
        np.testing.assert_allclose(sum(step.reward for step in steps), 0.99, rtol=1e-6)
        assert steps[0].first.all() and steps[-1].terminal.all() and not steps[-2].last.any()


def test_it_is_a_sound_environment():
    check_env(create("10"), skip_render_check=True)


@pytest.mark.parametrize("task", ["ten", "0", "-3", "2.5", ""])
def test_a_sea_without_depth_is_refused(task):
    with pytest.raises(ConfigError, match="as in deep_sea/10"):
        make(EnvOptions(name=f"deep_sea/{task or 'x'}"))
