"""Every intrinsic reward inside an agent: who learns by what, when it pays, and that nothing else is touched."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

import reverie.behavior.intrinsic
from reverie.agent import Agent
from reverie.behavior.hierarchy import HierarchyOptions
from reverie.behavior.intrinsic import INTRINSIC, OF_MANAGERS, IntrinsicOptions, IntrinsicReward
from reverie.config import Config, build
from reverie.errors import ConfigError
from reverie.imagine import imagine, pursue
from reverie.learned_rates import MetaOptions
from reverie.types import ActionPart, ActionSpec, Explained
from tests.core import (
    CHOICE,
    CONSTANT,
    FLAT,
    PASSES,
    PLANNED,
    STEER,
    VECTORS,
    close,
    make_agent,
    make_batch,
    step_of,
    values,
)

KINDS = sorted(INTRINSIC)
MANAGED: dict[str, Any] = {"hierarchy": {"enabled": True}, "agent": {"horizon": 16}}
MANY = (ActionPart("first", 2, True), ActionPart("second", 3, True))


def choose(kind: str, **pay: Any) -> IntrinsicOptions:
    """One intrinsic reward, which pays from its second update on unless ``pay`` says otherwise."""
    tree = {"every": 1, "curiosity": {"kind": kind, "warmup": 1, **pay}}
    return build(MANAGED | {"intrinsic": tree} if kind in OF_MANAGERS else {"intrinsic": tree}).intrinsic


def make(kind: str, action: ActionSpec = CHOICE, *, every: int = 1, pay: dict[str, Any] | None = None, **changes: Any):
    options = choose(kind, **pay or {}).model_copy(update={"every": every})
    changes = {"hierarchy": needed(kind)} | changes
    return make_agent(VECTORS, action, intrinsic=options, behavior=PASSES, optimizer=CONSTANT, **changes)


def needed(kind: str) -> HierarchyOptions:
    """One level alone, but for what is about a manager."""
    return PLANNED if kind in OF_MANAGERS else FLAT


def learn(agent: Agent, updates: int, action: ActionSpec = CHOICE) -> list[dict[str, torch.Tensor]]:
    return [agent.learn(make_batch(agent.world, action, seed=seed))[0] for seed in range(updates)]


@pytest.mark.parametrize("action", [CHOICE, STEER, MANY], ids=["choice", "numbers", "choices"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_reward_is_finite_for_every_kind_of_action_and_begins_after_its_first_update(kind, action):
    agent = make(kind, action)
    metrics = learn(agent, 3, action)
    assert all(value.ndim == 0 and bool(value.isfinite()) for row in metrics for value in row.values())
    assert not any(value for row in metrics for name, value in row.items() if name.endswith("/skipped"))
    paid = [row[f"{agent.behavior.levels[0].name}/dream_reward_curiosity"] for row in metrics]
    assert paid[0] == 0 and paid[1] > 0 and paid[2] > 0
    assert agent.own_motives["intrinsic"].updates == 3


@pytest.mark.parametrize("kind", KINDS)
def test_a_manager_is_paid_where_there_is_one_and_the_worker_never_is(kind):
    agent = make(kind, hierarchy=PLANNED)
    metrics = learn(agent, 2)[-1]
    assert metrics["manager/dream_reward_curiosity"] > 0 and "worker/dream_reward_curiosity" not in metrics


@pytest.mark.parametrize("kind", KINDS)
def test_rewards_learn_by_an_optimizer_of_their_own_which_moves_nothing_else(kind):
    agent = make(kind)
    learn(agent, 1)
    before, batch = values(agent), make_batch(agent.world)
    agent.world.loss(batch, torch.rand(3, 6, 4))
    walks = agent.world.imagine, agent.world.continues, partial(pursue, agent.world, agent.behavior)
    explained = Explained(*agent.world.loss(batch, torch.rand(3, 6, 4))[:2], *walks)
    dream = imagine(agent.world, agent.behavior, agent.starts(explained.latent), 4, agent.generators["learn"])
    learned = replace(explained, latent=explained.latent.detach()), batch, dream, agent.generators["intrinsic"]
    metrics = agent.own_motives["intrinsic"].learn(agent.optimizers["intrinsic"], *learned)
    moved = {name for name, value in agent.state_dict().items() if not torch.equal(value, before[name])}
    trained = {f"own_motives.intrinsic.{name}" for name, _ in agent.own_motives["intrinsic"].named_parameters()}
    assert moved - {"own_motives.intrinsic.updates"} <= trained
    assert len(moved) > 0.7 * len(trained) and metrics["intrinsic/grad_norm"] > 0
    assert {"intrinsic_optimizer"} <= agent.checkpoint().keys()


@pytest.mark.parametrize("kind", KINDS)
def test_beside_a_reward_that_hardly_counts_random_numbers_are_the_same(kind):
    agent = make(kind, pay={"weight": 0.0})
    alone = make_agent(behavior=PASSES, optimizer=CONSTANT, hierarchy=needed(kind))
    learn(agent, 2), learn(alone, 2)
    for name, generator in alone.generators.items():
        assert torch.equal(generator.get_state(), agent.generators[name].get_state())
    assert torch.equal(agent.world.reward_head[0].weight, alone.world.reward_head[0].weight)


def test_at_a_millionth_of_the_weight_a_policy_learns_the_same():
    tame = CONSTANT.model_copy(update={"eps": 1e-5, "kind": "adam", "agc": 0.0})
    agents = []
    for weight in (None, 1e-6, 0.1):
        options = IntrinsicOptions() if weight is None else choose("icm", weight=weight)
        agents.append(make_agent(behavior=PASSES, optimizer=tame, intrinsic=options))
        shake_task(agents[-1])
        learn(agents[-1], 3)
    alone, hardly = (dict(agent.world.named_parameters()) for agent in agents[:2])
    policies = [torch.cat([p.flatten() for p in agent.behavior.worker.actor.parameters()]) for agent in agents]
    assert all((hardly[name] - value).abs().max() < 1e-6 for name, value in alone.items())
    assert (policies[1] - policies[0]).abs().max() < 1e-5 < 1e-3 < (policies[2] - policies[0]).abs().max()


def shake_task(agent: Agent) -> None:
    """Moves what an agent without intrinsic rewards has as well, and keeps far bins from magnifying rounding."""
    generator, level = torch.Generator().manual_seed(0), agent.behavior.worker
    bins = len(level.bins)
    with torch.no_grad():
        for module in (agent.world, agent.behavior):
            for parameter in module.parameters():
                parameter[:bins].add_(0.1 * torch.randn(parameter[:bins].shape, generator=generator))
        for head in (agent.world.reward_head, level.critic, level.slow_critic):
            list(head)[-1].bias.view(-1, bins).sub_(0.5 * ((torch.arange(bins) - bins // 2) / 6).square())


@pytest.mark.parametrize("kind", KINDS)
def test_metrics_have_the_same_names_at_every_update_also_where_it_learns_at_every_third(kind):
    agent = make(kind, every=3, pay={"warmup": 2})
    metrics = learn(agent, 7)
    assert all(row.keys() == metrics[0].keys() for row in metrics)
    assert agent.own_motives["intrinsic"].updates == agent.optimizers["intrinsic"].count == 3
    learned = [name for name in metrics[0] if name.startswith("intrinsic/") and name.endswith("_loss")]
    for name in learned:
        assert metrics[0][name] == metrics[1][name] == metrics[2][name] != metrics[3][name]
    paid = f"{agent.behavior.levels[0].name}/dream_reward_curiosity"
    assert [bool(row[paid] > 0) for row in metrics] == 4 * [False] + 3 * [True]
    assert f"intrinsic/{kind}_loss" in learned


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_learned_goes_on_from_a_checkpoint(kind):
    agent, twin = make(kind, every=2), make(kind, every=2, seed=4)
    learn(agent, 3)
    twin.restore(agent.checkpoint())
    first, second = learn(agent, 2), learn(twin, 2)
    for row, other in zip(first, second, strict=True):
        assert row.keys() == other.keys() and all(torch.equal(row[name], other[name]) for name in row)
    assert all(torch.equal(value, agent.state_dict()[name]) for name, value in twin.state_dict().items())


def test_what_was_learned_without_the_tasks_reward_goes_on_with_it():
    free, paid = PASSES.model_copy(update={"task_weight": 0.0}), PASSES
    agents = [
        make_agent(VECTORS, behavior=behavior, optimizer=CONSTANT, intrinsic=choose("icm", weight=weight))
        for behavior, weight in ((free, 0.1), (paid, 0.0))
    ]
    metrics = learn(agents[0], 2)[-1]
    assert metrics["policy/share_extrinsic"] == 0 and metrics["policy/share_curiosity"] == 1
    agents[1].restore(agents[0].checkpoint())
    metrics = learn(agents[1], 1)[-1]
    assert metrics["policy/share_extrinsic"] == 1 and metrics["policy/dream_reward_curiosity"] > 0


@pytest.mark.parametrize("kind", KINDS)
def test_their_rate_can_be_learned_and_a_twin_acts_meanwhile(kind):
    agent = make(kind, meta=MetaOptions(enabled=True, warmup=0))
    metrics = learn(agent, 3)
    assert metrics[-1]["intrinsic/lr"] != metrics[0]["intrinsic/lr"]
    chosen, _ = agent.twin().act(step_of(agent), agent.initial(3))
    assert chosen.shape == (3, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_nobody_asks_for_it_while_acting(kind):
    agent = make(kind)
    twin = agent.twin()
    with torch.no_grad():
        for parameter in twin.own_motives.parameters():
            parameter.fill_(math.nan)
    chosen = [
        who.act(step_of(agent), agent.initial(3), torch.Generator().manual_seed(5), deterministic)[0]
        for deterministic in (False, True)
        for who in (agent, twin)
    ]
    assert (chosen[0] == chosen[1]).all() and (chosen[2] == chosen[3]).all()


@pytest.mark.parametrize("hierarchy", [FLAT, PLANNED])
def test_an_update_whose_gradient_is_not_finite_does_not_count(hierarchy):
    agent = make("icm", hierarchy=hierarchy)
    batch = make_batch(agent.world)
    lost = {
        name: value * math.nan if value.is_floating_point() else value for name, value in batch.context_latent.items()
    }
    metrics, _ = agent.learn(replace(batch, context_latent=lost))
    for name, motive in agent.motives.items():
        assert metrics[f"{name}/skipped"] == 1 and motive.updates == 0
        assert getattr(motive, "beta", torch.ones(())) == 1
    agent.learn(batch)
    assert all(motive.updates == 1 for motive in agent.motives.values())


def test_rewards_are_clipped_and_the_task_keeps_its_own():
    agent = make("icm", pay={"clip": 0.25})
    seen, targets = {}, agent.behavior.worker.compute_targets
    agent.behavior.worker.compute_targets = lambda rollout: seen.update(rollout=rollout) or targets(rollout)  # type: ignore[method-assign]
    rewards = agent.rewards
    agent.rewards = lambda dream: seen.update(task=dream.reward["extrinsic"].clone()) or rewards(dream)  # type: ignore[method-assign]
    learn(agent, 2)
    reward = seen["rollout"].reward
    close(reward[..., 1], torch.full(reward.shape[:2], 0.25))
    assert torch.equal(reward[..., 0], seen["task"])


def test_options_reach_the_stream():
    pay = {"weight": 0.3, "horizon": 20, "floor": 0.2, "episodic": True, "schedule": {"kind": "until", "decay": 9}}
    (stream,) = choose("icm", **pay).streams.values()
    assert {name: getattr(stream, name) for name in ("weight", "horizon", "floor", "episodic")} == {
        name: pay[name] for name in ("weight", "horizon", "floor", "episodic")
    }
    assert stream.silent and stream.schedule.kind == "until" and not stream.ends_with_goal
    assert not choose("icm").streams["curiosity"].episodic
    assert not IntrinsicOptions().streams


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"curiosity": {"kind": "luck"}}, r"intrinsic\.curiosity\.kind = 'luck' is unknown; choose among none, "),
        (
            {"curiosity": {"weight": 0.2}},
            r"intrinsic\.curiosity\.weight = 0\.2: is not used while intrinsic\.curiosity\.kind",
        ),
        (
            {"icm": {"beta": 0.5}, "curiosity": {"kind": "rnd"}},
            r"icm\.beta = 0\.5: is not used while intrinsic\.curiosity\.kind = \"rnd\" and intrinsic\.empowerment",
        ),
        (
            {"disagreement": {"members": 3}},
            r"disagreement\.members = 3: is not used while intrinsic\.curiosity\.kind = ",
        ),
        ({"empowerment": {"steps": 2}}, r"empowerment\.steps = 2: is not used while intrinsic\.curiosity\.kind = "),
        ({"skills": {"starts": 9}}, r"intrinsic\.skills\.starts = 9: is not used while intrinsic\.curiosity\.kind = "),
        (
            {"empowerment": {"kind": "skills"}},
            r"intrinsic\.empowerment\.kind = skills: there is no manager whose goals.*; set hierarchy\.enabled=true",
        ),
        (
            {"curiosity": {"kind": "empowerment"}, "empowerment": {"weight": 0.2}},
            r"empowerment\.weight = 0\.2: is not used while intrinsic\.empowerment\.kind = \"none\"",
        ),
        (
            {"curiosity": {"kind": "rnd"}, "empowerment": {"kind": "rnd"}},
            r"intrinsic\.empowerment\.kind = rnd: so is intrinsic\.curiosity\.kind; one reward is paid once",
        ),
        ({"curiosity": {"kind": "icm", "schedule": {"kind": "linear"}}}, "needs the number of updates"),
        ({"curiosity": {"kind": "icm", "schedule": {"kind": "soon"}}}, r"schedule\.kind = \"soon\": choose among"),
    ],
)
def test_a_choice_without_sense_is_one_line(tree, message):
    with pytest.raises(ConfigError, match=message):
        build({"intrinsic": tree})


@pytest.mark.parametrize(
    "tree",
    [
        {"curiosity": {"kind": "empowerment"}, "empowerment": {"steps": 2, "noise": 0.1}},
        {"empowerment": {"kind": "icm", "weight": 0.2}, "icm": {"beta": 0.5}},
        {"empowerment": {"kind": "empowerment", "steps": 2}, "curiosity": {"kind": "disagreement"}},
    ],
)
def test_what_is_read_may_be_chosen_whichever_stream_it_is_paid_by(tree):
    assert build({"intrinsic": tree}).intrinsic.pay


def test_who_chooses_among_goals_reads_no_number_of_actions():
    pay = {"kind": "skills", "weight": 0.2, "warmup": 5}
    chosen = build(MANAGED | {"intrinsic": {"empowerment": pay, "skills": {"samples": 3}}}).intrinsic
    assert chosen.pay["empowerment"].weight == 0.2 and chosen.skills.samples == 3
    with pytest.raises(ConfigError, match=r"empowerment\.steps = 2: is not used while intrinsic\.curiosity\.kind = "):
        build(MANAGED | {"intrinsic": {"empowerment": {**pay, "steps": 2}}})


@pytest.mark.parametrize(("kind", "scale"), [("icm", 0.3), ("rnd", 1.0), ("empowerment", 1.0)])
def test_the_inverse_model_counts_in_full_beside_what_does_not_train_features(kind, scale):
    tree = {"curiosity": {"kind": kind}} | ({"icm": {"beta": 0.7}} if kind == "icm" else {})
    agent = make_agent(VECTORS, CHOICE, intrinsic=build({"intrinsic": tree}).intrinsic)
    assert agent.own_motives["intrinsic"].inverse_scale == pytest.approx(scale)


def test_a_plugin_adds_a_reward_by_one_line(monkeypatch):
    class Always(IntrinsicReward):
        def __init__(self) -> None:
            super().__init__()
            self.bias = torch.nn.Parameter(torch.zeros(1))

        def loss(self, seen, generator):
            return (self.bias - 1).square().sum(), {"always_loss": self.bias.detach().sum()}

        def reward(self, dream, outcome):
            return torch.full_like(dream.logprob, 7.0)

    monkeypatch.setitem(reverie.behavior.intrinsic.INTRINSIC, "always", lambda options, setting: Always())
    metrics = learn(make("always"), 2)[-1]
    assert metrics["policy/dream_reward_curiosity"] == 7 and "intrinsic/always_loss" in metrics
    assert Config().intrinsic.curiosity.kind == "none"
