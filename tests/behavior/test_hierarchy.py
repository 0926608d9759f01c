"""A manager over a worker: in dreams, in learning, and in real environments."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from reverie.agent import Agent
from reverie.behavior import views
from reverie.behavior.actor_critic import BehaviorOptions
from reverie.behavior.goals import GOAL_REWARDS
from reverie.behavior.hierarchy import Hierarchy, HierarchyOptions
from reverie.behavior.streams import Stream
from reverie.errors import ConfigError
from reverie.imagine import imagine
from reverie.types import Dream, Latent
from reverie.world.model import MultimodalWorldModel
from tests.core import (
    CONSTANT,
    PASSES,
    PLANNED,
    Recorder,
    close,
    dream_starts,
    make_agent,
    make_batch,
    make_behavior,
    make_world,
    planned_dream,
    shake,
    step_of,
    values,
)

SCALES = {"mixer"}
"""What a level that rests keeps measuring."""
LEARNED = {"actor", "critic", "slow_critic"}
STEERED = LEARNED | {"entropy_weight"}
"""What else changes where the entropy is steered."""

OWNERS = {
    "world": "world",
    "goals": "behavior.goals",
    "manager_actor": "behavior.manager.actor",
    "manager_critic": "behavior.manager.critic",
    "actor": "behavior.worker.actor",
    "critic": "behavior.worker.critic",
}
"""What each optimizer trains."""


def choose(**changes) -> HierarchyOptions:
    return HierarchyOptions(**PLANNED.model_dump() | changes)


@pytest.fixture
def world() -> MultimodalWorldModel:
    world = make_world()
    shake(world)
    return world


def over(world: MultimodalWorldModel, **changes) -> Hierarchy:
    behavior = make_behavior(choose(**changes), features=world.sizes.features, deter=world.sizes.deter)
    shake(behavior)
    assert isinstance(behavior, Hierarchy)
    return behavior


def dream_in(world: MultimodalWorldModel, behavior: Hierarchy) -> Dream:
    return imagine(world, behavior, dream_starts(world), 4, torch.Generator().manual_seed(0))


# --- the dream ---


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize("goals", ["autoencoder", "skill"])
def test_the_worker_sees_one_goal_until_the_manager_decides_again(world, goals):
    behavior = over(world, goals=goals)
    dream = dream_in(world, behavior)
    features, goal, manager = dream.latent.features, dream.goal, behavior.manager
    assert torch.equal(dream.target, goal.target[:, [0, 0, 1, 1, 2]])
    close(dream.policy, behavior.worker.policy(torch.cat([features, dream.target], -1)[:, :-1]))
    close(goal.target, behavior.goals.decode(goal.code).target.detach())
    close(dream.goal_policy, manager.policy(features[:, :-1:2]))
    close(dream.goal_logprob, manager.distribution.logprob(dream.goal_policy, goal.code[:, :-1]))
    assert dream.own.all() and not torch.equal(goal.code[:, 0], goal.code[:, 1])
    assert not any(field.requires_grad for field in (*goal.fields, dream.goal_policy, dream.goal_logprob))


def test_a_goal_pays_for_the_state_that_was_reached_while_it_was_in_force():
    states = torch.tensor([[[1.0, 0], [0, 1], [1, 1], [2, 0], [0, 2]]])
    goals = torch.tensor([[[1.0, 0], [0, 2], [9, 9]]])  # with the next goal the last reward would be 0.1111
    behavior = make_behavior(features=2, deter=2)
    close(behavior.goals.rewards(planned_dream(states, goals, {}), {"goal", "novelty"})["goal"], [[0.0, 0.5, 0.0, 1.0]])


def test_no_level_expects_more_than_certainty_to_go_on():
    states, goals = torch.randn(1, 5, 2), torch.randn(1, 3, 2)
    behavior, alive = make_behavior(features=2, deter=2), torch.tensor([[0.902711, 1.01, 1.01, 1.01, 0.902711]])
    rewards = dict.fromkeys(("extrinsic", "goal", "novelty"), torch.zeros(1, 4))
    planned, played = behavior.views(planned_dream(states, goals, rewards, alive))
    for level, rollout, steps in ((behavior.levels[0], planned, 2), (behavior.levels[1], played, 1)):
        discounts = torch.tensor([stream.discount for stream in level.streams.values()])
        close(rollout.discount[0, 0], discounts**steps)
        close(rollout.discount[-1, -1], discounts**steps * 0.902711)
    close(played.weight.flatten(), 0.902711 * behavior.levels[0].discount ** torch.arange(1, 5))


def test_given_goals_are_states_of_another_sequence_and_hold_for_the_whole_dream(world, monkeypatch):
    behavior, start, seen = over(world, goal_mix=1.0), dream_starts(world), []
    propose = behavior.goals.propose
    monkeypatch.setattr(behavior.goals, "propose", lambda deter, noise: (seen.append(deter), propose(deter, noise))[1])
    dream = imagine(world, behavior, start, 4, torch.Generator().manual_seed(0))
    assert not dream.own.any()
    assert all(torch.equal(field, field[:, :1].expand_as(field)) for field in dream.goal.fields)
    origin = (seen[0][:, None] == start.deter).all(-1).float().argmax(-1)
    assert origin.unique().numel() == 18 and bool((origin // 6 != torch.arange(18) // 6).all())


def test_dreams_whose_goals_are_given_stand_beside_those_of_the_manager(world):
    dream = dream_in(world, over(world, goal_mix=0.5))
    changing = (dream.goal.code[:, 0] != dream.goal.code[:, 1]).any(-1)
    assert torch.equal(dream.own, changing) and 0 < dream.own.sum() < 18


def test_reaching_is_measured_where_a_goal_ends_against_goals_of_other_dreams():
    states = torch.tensor([[[1.0, 0], [5, 5], [0, 1]], [[0, 1.0], [5, 5], [0, 1]]])
    goals = torch.tensor([[[0.0, 1], [9, 9]], [[1.0, 0], [9, 9]]])
    dream = planned_dream(states, torch.zeros(2, 2, 64), {}, target=goals)
    reach = make_behavior(features=2, deter=2).goal_metrics(dream)
    expected = {"fit_at_start": 0.0, "fit_at_end": 0.5, "gain": 0.5, "reach": 0.5, "reach_shuffled": 0.5}
    assert {name: reach[f"goals/{name}"].item() for name in expected} == expected
    close(reach["manager/perplexity"], 8.0)  # no class is preferred
    close(reach["manager/switch"], (torch.tensor([9.0, 8.0]).norm() + torch.tensor([8.0, 9.0]).norm()) / 2)
    given = replace(dream, own=torch.tensor([True, False]))
    reach = make_behavior(features=2, deter=2).goal_metrics(given)
    expected = {"fit_at_start": 0.0, "fit_at_end": 1.0, "gain": 1.0, "reach": 1.0, "reach_shuffled": 0.0}
    assert {name: reach[f"goals/{name}"].item() for name in expected} == expected
    close(reach["manager/switch"], torch.tensor([9.0, 8.0]).norm())


def test_the_joint_policy_moves_once_with_the_goal_and_at_every_step_of_it():
    moved = make_behavior(features=2, deter=2).joint_kl(
        {"manager/kl": torch.tensor(0.1), "worker/kl": torch.tensor(0.02)}
    )
    close(moved["manager/kl_segment"], 0.1 + 2 * 0.02)


# --- what each level is paid for ---


@pytest.mark.parametrize(
    ("changes", "manager", "worker"),
    [
        ({}, {"extrinsic": 1.0, "novelty": 0.1}, {"extrinsic": 1.0, "goal": 1.0}),
        ({"preset": "goals_only"}, {"extrinsic": 1.0, "novelty": 0.1}, {"goal": 1.0}),
        ({"novelty_weight": 0.0, "goal_weight": 0.0}, {"extrinsic": 1.0}, {"extrinsic": 1.0}),
    ],
)
def test_streams_without_weight_are_left_out(changes, manager, worker):
    behavior = make_behavior(choose(**changes), features=3, deter=2)
    for level, streams in zip(behavior.levels, (manager, worker), strict=True):
        assert {name: stream.weight for name, stream in level.streams.items()} == streams
        assert [stream.ends_with_goal for stream in level.streams.values()] == [name == "goal" for name in streams]


def test_every_option_reaches_the_level_that_it_is_for():
    planning = {"minibatches": 3, "target_kl": 0.5, "entropy": 0.2, "entropy_target": 0.4}
    pay = {"novelty_weight": 0.3, "novelty_horizon": 20, "goal_weight": 2.0, "goal_horizon": 30}
    options = BehaviorOptions(horizon=50)
    hierarchy = HierarchyOptions(enabled=True, **planning, **pay)
    manager, worker = make_behavior(hierarchy, options, features=6, deter=4).levels
    assert {name: getattr(manager.options, name) for name in planning} == planning
    task = Stream(1.0, 50, floor=0.05)
    assert manager.streams == {"extrinsic": task, "novelty": Stream(0.3, 20, floor=0.05)}
    assert worker.streams == {"extrinsic": task, "goal": Stream(2.0, 30, ends_with_goal=True, floor=0.05)}
    assert worker.options == options


@pytest.mark.parametrize(("preset", "scale"), [("hybrid", 0.3), ("goals_only", 0.3), ("director", 0.0)])
def test_only_a_manager_that_counts_steps_learns_from_replayed_steps(preset, scale):
    agent = make_agent(hierarchy=choose(preset=preset))
    for group in ("world", "manager_critic"):
        assert agent.optimizers[group].scales.get("replay_value", 0.0) == scale
    assert agent.optimizers["critic"].scales.keys() == {"value"}


# --- learning ---


@pytest.mark.parametrize(
    "changes",
    [
        {"preset": "director"},
        {"goals": "skill", "period": 4},
        {"goal_reward": "distance", "period": 1},
        {"goal_reward": "cosine", "goal_mix": 0.5},
    ],
)
def test_every_choice_learns(changes):
    agent = make_agent(behavior=PASSES, hierarchy=choose(**changes), optimizer=CONSTANT)
    batch, seen = make_batch(agent.world), []
    for _ in range(14):
        metrics, _ = agent.learn(batch)
        assert all(value.ndim == 0 and bool(value.isfinite()) for value in metrics.values())
        assert not any(value for name, value in metrics.items() if name.endswith("/skipped"))
        seen.append(metrics)
    errors = {"world/recon_loss": 0.9, "manager/value_loss": 0.6, "worker/value_loss": 0.8, "goals/reconstruction": 0.6}
    for name in errors.keys() & seen[0].keys():
        first, last = (sum(metrics[name] for metrics in part) for part in (seen[:3], seen[-3:]))
        assert last < errors[name] * first, name


@pytest.mark.parametrize(
    ("changes", "manager", "worker"),
    [
        ({}, STEERED, LEARNED),
        ({"frozen": True}, LEARNED - {"actor"}, LEARNED),
        ({"goal_warmup": 2}, STEERED, LEARNED),
        ({"goal_warmup": 3}, set(), set()),
    ],
)
def test_of_a_frozen_manager_only_the_critic_learns_and_nobody_learns_before_goals_were_learned(
    changes, manager, worker
):
    agent = make_agent(behavior=PASSES, hierarchy=choose(**changes), optimizer=CONSTANT)
    shake(agent)
    for level in agent.behavior.levels:
        level.slow_critic.load_state_dict(level.critic.state_dict())
    before = values(agent)
    for seed in range(2):
        agent.learn(make_batch(agent.world, seed=seed))
    moved = {name for name, value in agent.state_dict().items() if not torch.equal(value, before[name])}
    for level, learned in (("manager", manager), ("worker", worker)):
        parts = {name.split(".")[2] for name in moved if name.startswith(f"behavior.{level}.")}
        assert parts == SCALES | learned, level
    assert any(name.startswith("behavior.goals.encoder") for name in moved)
    assert agent.behavior.goals.updates == 2


def test_given_goals_teach_the_worker_and_the_critics_but_not_the_manager():
    agent = make_agent(behavior=PASSES, hierarchy=choose(goal_mix=1.0), optimizer=CONSTANT)
    shake(agent)
    before = values(agent)
    agent.learn(make_batch(agent.world))
    moved = {name for name, value in agent.state_dict().items() if not torch.equal(value, before[name])}
    assert not any(name.startswith("behavior.manager.actor") for name in moved)
    for part in ("worker.actor", "worker.critic", "manager.critic", "goals.encoder"):
        assert any(name.startswith(f"behavior.{part}") for name in moved), part


def test_dreams_whose_goals_were_given_set_no_scale_of_the_manager(world):
    dream = dream_in(world, over(world, goal_mix=0.5))
    paid = torch.where(dream.own, 1.0, 100.0)[:, None].expand(-1, 4)
    level = over(world, novelty_weight=0.0).manager
    dream = replace(dream, reward={"extrinsic": paid}, continues=torch.ones_like(dream.continues))
    targets = level.compute_targets(views.manager(dream, level.streams, level.discount))
    assert level.mixer.return_high < 5 and targets.returns.max() > 100


def test_replayed_values_are_not_bootstrapped_from_dreams_of_given_goals(monkeypatch):
    agent = make_agent(behavior=PASSES, hierarchy=choose(goal_mix=0.5), optimizer=CONSTANT)
    shake(agent)
    seen, manager = {}, agent.behavior.levels[0]
    compute, replay = manager.compute_targets, manager.replay_value
    monkeypatch.setattr(
        manager, "compute_targets", lambda rollout: seen.setdefault("targets", (rollout.own, compute(rollout)))[1]
    )
    monkeypatch.setattr(manager, "replay_value", lambda *given: (seen.update(returns=given[2]), replay(*given))[1])
    agent.learn(make_batch(agent.world))
    own, targets = seen["targets"]
    assert own.any() and not own.all()
    close(seen["returns"][own], targets.returns[own, 0, 0])
    close(seen["returns"][~own], targets.slow_value[~own, 0, 0])


def test_other_goal_rewards_can_be_registered(monkeypatch):
    monkeypatch.setitem(GOAL_REWARDS, "first", lambda target, state: (target * state)[..., 0])
    goals = make_behavior(choose(goal_reward="first"), features=2, deter=2).goals
    assert goals is not None and goals.reward(torch.tensor([2.0, 9.0]), torch.tensor([3.0, 9.0])) == 6.0
    with pytest.raises(ConfigError, match="hierarchy.goal_reward = 'nothing' is unknown; choose among max_cosine"):
        choose(goal_reward="nothing")


def test_alone_nobody_has_foreign_goals(world):
    behavior, latent = over(world), dream_starts(world).detach()
    one = Latent(*(field[:1] for field in latent.fields))
    goal = behavior.decide(one, torch.rand(1, behavior.noise))[0]
    fits = behavior.goal_outcomes(goal, torch.tensor([2]), one, torch.tensor([False]), one.deter)
    assert fits.shape == (1, 3) and fits[0].isnan().tolist() == [False, True, False]


class Witness(Recorder):
    """Notes which parts of an agent each loss would train."""

    def __init__(self, agent: Agent, name: str):
        super().__init__()
        self.name = name
        self.trained: dict[str, set[str]] = {}
        self.named = {name: parameter for name, parameter in agent.named_parameters() if parameter.requires_grad}

    def step(self, losses, when=None, fresh=True):
        for loss, value in losses.items():
            slopes = torch.autograd.grad(value.mean(), [*self.named.values()], allow_unused=True, retain_graph=True)
            found = [name for name, slope in zip(self.named, slopes, strict=True) if slope is not None and slope.any()]
            self.trained[loss] = {
                part for part in OWNERS.values() if any(name.startswith(f"{part}.") for name in found)
            }
        return {f"{self.name}/skipped": torch.zeros(())}


def test_every_loss_trains_its_owner_alone():
    agent = make_agent(hierarchy=PLANNED)
    shake(agent)
    scales = {group: optimizer.scales for group, optimizer in agent.optimizers.items()}
    agent.optimizers = {group: Witness(agent, group) for group in scales}
    agent.learn(make_batch(agent.world))
    for group, witness in agent.optimizers.items():
        expected = {loss: {OWNERS[group]} for loss in scales[group]}
        if group == "world":
            expected["replay_value"] = {"world", OWNERS["manager_critic"]}
        assert witness.trained == expected, group


# --- real environments ---


def test_goals_hold_for_their_period_and_end_with_their_own_episode():
    agent = make_agent(hierarchy=choose(period=3), horizon=3)
    shake(agent)
    told: list[Tensor] = []
    agent.behavior.worker.actor.register_forward_pre_hook(lambda _, inputs: told.append(inputs[0]))
    carry, decided, ages = agent.initial(2), [], []
    for t, first in enumerate(zip([1, 0, 0, 0, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0, 0], strict=True)):
        before = carry.goal
        _, carry = agent.act(step_of(agent, 2, seed=t, first=np.array(first, bool)), carry)
        decided.append([not torch.equal(*pair) for pair in zip(before.target, carry.goal.target, strict=True)])
        assert torch.equal(told[-1], torch.cat([carry.latent.features, carry.goal.target], -1))
        close(carry.goal.target, agent.behavior.goals.decode(carry.goal.code).target.detach())
        ages.append(carry.age.tolist())
    assert np.array(ages).T.tolist() == [[1, 2, 3, 1, 1, 2, 3, 1], [1, 2, 3, 1, 2, 3, 1, 2]]
    assert np.array(decided, int).T.tolist() == [[1, 0, 0, 1, 1, 0, 0, 1], [1, 0, 0, 1, 0, 0, 1, 0]]


def test_acting_without_a_decision_draws_the_same_random_numbers():
    agent = make_agent(hierarchy=choose(period=4))
    carry, states = agent.initial(2), []
    for t in range(3):
        twin = torch.Generator()
        twin.set_state(agent.generators["act"].get_state())
        _, carry = agent.act(step_of(agent, 2, seed=t), carry)
        torch.rand(2, 4 + 1 + 8, generator=twin)
        states.append(torch.equal(twin.get_state(), agent.generators["act"].get_state()))
    assert all(states)


def test_shuffled_goals_are_those_of_another_environment():
    agents = make_agent(hierarchy=PLANNED), make_agent(hierarchy=PLANNED)
    agents[1].behavior.shuffle()
    plain, shuffled = (agent.act(step_of(agent), agent.initial(3))[1].goal for agent in agents)
    assert torch.equal(shuffled.target, plain.target.roll(1, 0)) and not torch.equal(shuffled.target, plain.target)
    with pytest.raises(ConfigError, match="one environment has no other's goals"):
        agents[1].act(step_of(agents[1], 1), agents[1].initial(1))
    with pytest.raises(ConfigError, match="no goals to shuffle"):
        make_agent().behavior.shuffle()


def test_arrivals_are_goals_that_had_their_time_and_whose_episode_goes_on():
    behavior, none = make_behavior(features=2, deter=2), torch.zeros(4, 0, 0)
    goal = replace(
        behavior.initial_goal(Latent(torch.zeros(4, 2), none, none)), target=torch.tensor([[1.0, 0], [0, 1]] * 2)
    )
    arrived = Latent(torch.tensor([[1.0, 0]] * 4), none, none)
    age, first = torch.tensor([2, 4, 1, 2]), torch.tensor([False, False, False, True])
    start = torch.tensor([[0.0, 1], [0, 1], [1, 0], [1, 0]])
    close(behavior.goal_outcomes(goal, age, arrived, first, start), [[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]])
