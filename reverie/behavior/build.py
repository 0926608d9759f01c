"""Builds the behavior that options ask for, and says what each of its levels is paid for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from reverie.behavior.actor_critic import ActorCritic, BehaviorOptions
from reverie.behavior.behavior import Behavior
from reverie.behavior.flat import Flat
from reverie.behavior.hierarchy import GOAL_SPACES, PRESETS, Hierarchy, HierarchyOptions
from reverie.behavior.streams import TASK, Stream
from reverie.nets.distributions import ActionDistribution
from reverie.types import ActionSpec


def default_streams(options: BehaviorOptions, hierarchy: HierarchyOptions) -> dict[str, dict[str, Stream]]:
    """What each level is paid for, by the names of level and stream."""
    task = Stream(1.0, options.horizon)
    if not hierarchy.enabled:
        return {"policy": {TASK: task}}
    novelty = Stream(hierarchy.novelty_weight, hierarchy.novelty_horizon)
    goal = Stream(hierarchy.goal_weight, hierarchy.goal_horizon, ends_with_goal=True)
    worker_task = replace(task, weight=PRESETS[hierarchy.preset].task_weight)
    return {"manager": {TASK: task, "novelty": novelty}, "worker": {TASK: worker_task, "goal": goal}}


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

    ``streams`` are those of each level, by name; those without weight are left out.
    """
    distribution = ActionDistribution.of(action, options.unimix)
    paid = {level: {name: stream for name, stream in mine.items() if stream.weight} for level, mine in streams.items()}
    if not hierarchy.enabled:
        return Flat(ActorCritic("policy", options, features, distribution, paid["policy"], units=units, bins=bins))
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
    manager = ActorCritic(
        "manager", planning, features, codes, paid["manager"], units=units, bins=bins, group="manager_"
    )
    told = features + goals.target
    worker = ActorCritic("worker", options, told, distribution, paid["worker"], units=units, bins=bins)
    return Hierarchy(hierarchy, manager, worker, goals)
