"""Builds the behavior that options ask for, and says what each of its levels is paid for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from types import MappingProxyType

from reverie.behavior.actor_critic import ActorCritic, BehaviorOptions
from reverie.behavior.behavior import Behavior
from reverie.behavior.flat import Flat
from reverie.behavior.hierarchy import GOAL_SPACES, PRESETS, Hierarchy, HierarchyOptions
from reverie.behavior.streams import TASK, Stream
from reverie.nets.distributions import ActionDistribution
from reverie.types import ActionSpec


def default_streams(
    options: BehaviorOptions, hierarchy: HierarchyOptions, intrinsic: Mapping[str, Stream] = MappingProxyType({})
) -> dict[str, dict[str, Stream]]:
    """What each level is paid for, by the names of level and stream; ``intrinsic`` for whoever chooses where to go."""
    alone, balanced = options.return_floor or 1.0, options.return_floor or SMALL_SPREAD
    task = Stream(options.task_weight, options.horizon, floor=alone)
    if not hierarchy.enabled:
        return {"policy": {TASK: task, **intrinsic}}
    task, shared = replace(task, floor=balanced), PRESETS[hierarchy.preset].task
    manager, worker = {TASK: task}, {TASK: task} if shared else {}
    if hierarchy.novelty_weight:
        manager["novelty"] = Stream(hierarchy.novelty_weight, hierarchy.novelty_horizon, floor=balanced)
    if hierarchy.goal_weight:
        goal = Stream(hierarchy.goal_weight, hierarchy.goal_horizon, ends_with_goal=True)
        worker["goal"] = replace(goal, floor=balanced if shared else alone)
    return {"manager": {**manager, **intrinsic}, "worker": worker}


SMALL_SPREAD = 0.05
"""Floor of the spreads that a normalised level divides by."""


def build(
    options: BehaviorOptions,
    hierarchy: HierarchyOptions,
    action: ActionSpec,
    streams: Mapping[str, Mapping[str, Stream]],
    *,
    features: int,
    deter: int,
    units: int,
    bins: int,
) -> Behavior:
    """The behavior of these options over latents with ``features`` numbers, of which ``deter`` are deterministic.

    ``streams`` are those of each level, by name.
    """
    distribution = ActionDistribution.of(action, options.unimix)
    if not hierarchy.enabled:
        return Flat(ActorCritic("policy", options, features, distribution, streams["policy"], units=units, bins=bins))
    goals = GOAL_SPACES[hierarchy.goals](hierarchy, deter, units)
    changes = {
        "minibatches": hierarchy.minibatches,
        "target_kl": hierarchy.target_kl,
        "entropy": hierarchy.entropy,
        "entropy_target": hierarchy.entropy_target,
    }
    if not PRESETS[hierarchy.preset].replay_value:
        changes["replay_value_scale"] = 0.0
    planning, codes = options.model_copy(update=changes), ActionDistribution([goals.distribution])
    level, shared = partial(ActorCritic, units=units, bins=bins), PRESETS[hierarchy.preset].task
    manager = level("manager", planning, features, codes, streams["manager"], group="manager_", normalised=True)
    told = features + goals.target
    worker = level("worker", options, told, distribution, streams["worker"], normalised=shared)
    return Hierarchy(hierarchy, manager, worker, goals)
