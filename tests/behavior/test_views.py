"""What manager and worker see of a dream, and what it is worth to them, against numbers worked by hand.

States and goals are numbered; values are looked up in tables.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from reverie.behavior import views
from reverie.behavior.actor_critic import BehaviorOptions, Targets
from reverie.behavior.streams import Stream
from reverie.types import Dream, Rollout
from tests.core import close, make_level, planned_dream

View = Callable[..., Rollout]
EIGHT = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]


def dream_of(reward: list[float], continues: list[float] | None = None, period: int = 4) -> Dream:
    """One dream through the states 0, 1, 2, ... with the goals 0, 1, 2, ..."""
    horizon = len(reward)
    states, goals = (torch.arange(float(count + 1))[None, :, None] for count in (horizon, horizon // period))
    alive = torch.tensor([continues or [1.0] * (horizon + 1)], dtype=torch.float32)
    return planned_dream(states, goals, {"extrinsic": torch.tensor([reward])}, alive)


def stream(discount: float, **ends: bool) -> dict[str, Stream]:
    return {"extrinsic": Stream(1.0, 1 / (1 - discount), **ends)}


def targets_of(view: View, dream: Dream, value: Tensor, discount: float, lam: float, **ends: bool) -> Targets:
    """``value`` is known for every state, or for every state and goal."""
    options, streams = BehaviorOptions(horizon=1 / (1 - discount), return_lambda=lam), stream(discount, **ends)
    level = make_level(options, streams=streams, bins=63)

    def look_up(inputs: Tensor) -> Tensor:
        return value[tuple(inputs.long().unbind(-1)[: value.ndim])][..., None]

    level.value = level.slow_value = look_up
    return level.compute_targets(view(dream, streams, level.discount))


# --- the manager ---


@pytest.mark.parametrize(
    ("view", "rewards", "discounts"),
    [(views.manager, [6.688, 16.07], [0.32805, 0.0]), (views.director, [2.0, 4.5], [0.495, 0.0])],
)
def test_the_steps_of_a_goal_become_one_edge_whose_last_reward_counts_in_full(view, rewards, discounts):
    rollout = view(dream_of(EIGHT, [1, 1, 1, 0.5, 1, 1, 1, 0, 1]), stream(0.9), 0.9)
    close(rollout.reward[0, :, 0], rewards)
    close(rollout.discount[0, :, 0], discounts)


@pytest.mark.parametrize(("period", "discount"), [(8, 0.976227), (4, 0.988042)])
def test_the_discount_of_a_goal_is_that_of_its_steps_together(period, discount):
    rollout = views.manager(dream_of(EIGHT, period=period), stream(1 - 1 / 333), 1 - 1 / 333)
    close(rollout.discount[0, :, 0], [discount] * (8 // period))


def test_with_lambda_one_the_managers_return_is_that_of_the_steps():
    dream = dream_of(EIGHT, [1, 1, 1, 0.5, 1, 1, 1, 0.8, 1])
    rollout = views.manager(dream, stream(0.9), 0.9)
    close(rollout.reward[0, :, 0], [6.688, 20.7356])
    close(rollout.discount[0, :, 0], [0.32805, 0.52488])
    value = torch.zeros(9)
    value[8] = 10.0
    for view in (views.manager, views.worker):
        close(targets_of(view, dream, value, 0.9, lam=1.0).returns[0, 0, 0], 15.21218242)


def test_the_managers_return_mixes_values_once_per_goal():
    value = torch.full((9,), 1e3)
    value[[0, 4, 8]] = torch.tensor([1.0, 2.0, 3.0])
    targets = targets_of(views.manager, dream_of(EIGHT, [1, 1, 1, 0.5, 1, 1, 1, 0.8, 1]), value, 0.9, lam=0.95)
    close(targets.returns[0, :, 0], [13.6737355204, 22.31024])
    close(targets.advantage[0], [12.6737355204, 20.31024])


def test_with_one_step_per_goal_the_manager_is_flat():
    dream = dream_of([1.0, 0.0, 2.0], [1, 1, 0.5, 1], period=1)
    value = torch.tensor([0.5, 1.0, -1.0, 4.0])
    targets = targets_of(views.manager, dream, value, 0.9, lam=0.5)
    close(targets.returns[0, :, 0], [1.91575, 1.035, 5.6])
    close(targets.advantage[0], [1.41575, 0.035, 6.6])


@pytest.mark.parametrize(
    ("view", "period"), [(views.worker, 1), (views.worker, 8), (views.manager, 8), (views.manager, 2)]
)
def test_where_all_goes_on_after_an_end_an_end_changes_nothing(view, period):
    """A half at every step and a discount of 0.99: 50, wherever in a goal an episode ends, and however probably."""
    dream = dream_of([0.5] * 8, [1, 0.9, 0.5, 1, 0, 0.7, 0.95, 1, 0.2], period=period)
    returns = targets_of(view, dream, torch.full((9,), 50.0), 0.99, lam=0.95, episodic=False).returns
    close(returns, torch.full_like(returns, 50.0))
    assert view(dream, stream(0.99), 0.99).ended is None


def test_an_end_within_a_goal_counts_by_the_time_until_then():
    """Certain after the second of four steps: 0.9 squared, and not what a whole goal is discounted by."""
    dream = dream_of([0.0] * 4, [1, 1, 0, 1, 1], period=4)
    streams = stream(0.9, episodic=False)
    close(views.manager(dream, streams, 0.9).ended[0, :, 0], [0.81])
    close(views.worker(dream, streams, 0.9).ended[0, :, 0], [0.0, 0.9, 0.0, 0.0])
    close(views.director(dream, streams, 0.9).ended[0, :, 0], [views.DIRECTOR_DISCOUNT])


# --- the worker ---


def test_the_value_at_a_switch_is_asked_of_the_goal_that_ends():
    value = torch.full((5, 3), 1e3)
    value[[0, 1, 2], 0] = torch.tensor([1.0, 2.0, 5.0])
    value[2, 1] = 9.0  # of the next goal: [9.731255, 9.71] would be wrong
    targets = targets_of(
        views.worker, dream_of([0.5, 0.8, 0.0, 0.0], period=2), value, 0.99, lam=0.95, ends_with_goal=True
    )
    close(targets.returns[0, :, 0], [6.006875, 5.75])


@pytest.mark.parametrize("period", [1, 2, 4])
def test_the_task_goes_on_where_a_goal_ends_and_its_value_knows_the_next_one(period):
    dream = dream_of([0.0, 0.0, 0.0, 1.0], period=period)
    value = torch.full((5, 5), 7.0)
    value[4, 4 // period] = 2.0
    close(targets_of(views.worker, dream, value, 0.9, lam=1.0).returns[0, 0, 0], 0.729 + 0.6561 * 2.0)


def test_the_worker_values_every_state_of_a_dream_under_the_goal_in_force():
    dream, value = dream_of([0.0] * 4, period=2), torch.arange(15.0).view(5, 3)
    returns = targets_of(views.worker, dream, value, 0.9, lam=0.0).returns[..., 0]
    close(returns, 0.9 * torch.stack([value[[1, 2], [0, 1]], value[[3, 4], [1, 2]]]))


def test_a_dream_is_cut_for_the_worker_and_thinned_for_the_manager():
    deter, codes, target = torch.randn(3, 5, 5), torch.randn(3, 3, 64), torch.randn(3, 3, 7)
    dream = planned_dream(deter, codes, {"extrinsic": torch.arange(12.0).view(3, 4)}, target=target)
    worker, manager = (view(dream, stream(0.9), 0.9) for view in (views.worker, views.manager))
    assert worker.inputs.shape == (6, 3, 12) and worker.reward.shape == (6, 2, 1)
    for row in range(6):
        n, piece = divmod(row, 2)
        close(worker.inputs[row, :, :5], deter[n, 2 * piece : 2 * piece + 3])
        close(worker.inputs[row, :, 5:], target[n, piece].expand(3, 7))
        close(worker.reward[row, :, 0], [4.0 * n + 2 * piece, 4.0 * n + 2 * piece + 1])
    assert worker.after is not None
    close(worker.after, torch.cat([deter[:, 4], target[:, 2]], -1))
    close(manager.inputs, deter[:, ::2])
    close(manager.action, codes[:, :2])


# --- weights ---


@pytest.mark.parametrize(
    ("continues", "weights"),
    [([1, 0.9, 1, 0.5, 1], [1, 0.891, 0.88209, 0.436635]), ([1, 1, 0, 1, 1], [1, 0.99, 0, 0])],
)
def test_no_weight_restarts_after_an_imagined_death(continues, weights):
    dream = dream_of([0.0] * 4, continues, period=2)
    expected = 0.99 * torch.tensor([weights])  # as published, the start's own discount included
    close(views.worker(dream, stream(0.99), 0.99).weight, expected.view(2, 2))
    for view in (views.manager, views.director):
        close(view(dream, stream(0.99), 0.99).weight, expected[:, ::2])


def test_the_weights_are_those_of_the_task_whatever_the_discount_of_a_stream():
    dream = dream_of([0.0] * 4, period=2)
    for view in (views.worker, views.manager):
        assert torch.equal(view(dream, stream(0.9), 0.99).weight, view(dream, stream(0.5), 0.99).weight)


@pytest.mark.parametrize("view", [views.manager, views.director])
def test_goals_that_were_given_teach_the_worker_alone(view):
    dream = replace(dream_of([0.0] * 4, period=2), own=torch.tensor([False]))
    assert not view(dream, stream(0.9), 0.9).weight.any()
    assert bool((views.worker(dream, stream(0.9), 0.9).weight > 0).all())
