from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from reverie.behavior.actor_critic import BehaviorOptions
from reverie.behavior.flat import Flat
from reverie.behavior.streams import Stream
from reverie.imagine import imagine, open_loop, pursue
from reverie.types import Dream, Latent, Rollout
from reverie.world.model import MultimodalWorldModel
from tests.core import (
    IMAGE,
    VECTORS,
    close,
    dream_starts,
    flat_dream,
    flat_view,
    make_batch,
    make_behavior,
    make_level,
    make_world,
    shake,
    uniform,
)

HORIZON = 5


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def world() -> MultimodalWorldModel:
    world = make_world(VECTORS | IMAGE)
    shake(world)
    return world


@pytest.fixture
def behavior(world) -> Flat:
    torch.manual_seed(1)
    return Flat(make_level(inputs=world.sizes.features, units=16, bins=63))


@pytest.fixture
def start(world) -> Latent:
    return dream_starts(world)


# --- the dream ---


class Steps(nn.Module):
    """Always chooses the action whose number is the step's, modulo three."""

    def forward(self, features: Tensor) -> Tensor:
        return 1e4 * nn.functional.one_hot(features[..., 0].long() % 3, 3).float()


def walker() -> Flat:
    level = make_level(BehaviorOptions(unimix=0.0))
    level.actor = Steps()  # type: ignore[assignment]
    return Flat(level)


def test_points_edges_and_rewards_of_a_dream_are_aligned(world, monkeypatch):
    def step(latent, action, uniform):
        return Latent(latent.deter + 1, latent.stoch, latent.logits)

    monkeypatch.setattr(world.rssm, "prior_step", lambda: step)
    monkeypatch.setattr(world, "reward", lambda features: features[..., 0])
    monkeypatch.setattr(world, "continues", lambda features: features[..., 0])
    start = world.initial(2)
    dream = imagine(world, walker(), start, HORIZON, seeded())
    assert dream.latent.features[0, :, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert dream.action.argmax(-1)[1].tolist() == [0, 1, 2, 0, 1]
    assert dream.reward["extrinsic"][0].tolist() == [1, 2, 3, 4, 5]
    assert dream.continues[0].tolist() == [0, 1, 2, 3, 4, 5]
    close(dream.logprob, torch.zeros(2, HORIZON))
    assert dream.latent.deter.data_ptr() == dream.latent.features.data_ptr()  # held once
    close(dream.latent.features, torch.cat([dream.latent.deter, dream.latent.stoch.flatten(-2)], -1))


def test_every_imagined_latent_comes_from_the_prior_of_its_own_state(world, behavior, start):
    dream = imagine(world, behavior, start, HORIZON, seeded())
    close(dream.latent.logits[:, 1:], world.rssm.prior_logits(dream.latent.deter[:, 1:]))
    assert torch.equal(dream.latent.stoch.sum(-1), torch.ones(18, HORIZON + 1, 4))
    assert torch.equal(dream.latent.deter[:, 0], start.deter) and torch.equal(dream.latent.stoch[:, 0], start.stoch)
    step = world.rssm.prior_step()
    for t in range(HORIZON):
        following = step(dream.latent.at(t), dream.action[:, t], uniform(18, 4))
        close(following.deter, dream.latent.deter[:, t + 1])


@torch.no_grad()
def test_a_dream_keeps_the_policy_and_the_continuation_of_each_point(world, behavior, start):
    dream = imagine(world, behavior, start, HORIZON, seeded())
    features = dream.latent.features
    close(dream.policy, behavior.worker.policy(features[:, :-1]))
    close(dream.logprob, behavior.worker.distribution.logprob(dream.policy, dream.action))
    close(dream.reward["extrinsic"], world.reward(features[:, 1:]))
    close(dream.continues, world.continues(features))
    assert dream.reward["extrinsic"].unique().numel() > 50


def test_a_dream_has_no_gradient_and_depends_on_its_generator_alone(world, behavior, start):
    torch.manual_seed(1)
    dream = imagine(world, behavior, start, HORIZON, seeded())
    torch.manual_seed(2)
    again, other = (imagine(world, behavior, start, HORIZON, seeded(seed)) for seed in (0, 1))
    for value in (dream.latent.features, dream.policy, dream.logprob, dream.continues, dream.reward["extrinsic"]):
        assert not value.requires_grad
    assert torch.equal(dream.latent.features, again.latent.features)
    assert not torch.equal(dream.action, other.action)


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize("managed", [False, True])
def test_who_pursues_a_goal_walks_as_in_a_dream_in_which_it_was_chosen(world, behavior, start, managed):
    sizes = world.sizes
    behavior = make_behavior(features=sizes.features, deter=sizes.deter) if managed else behavior
    shake(behavior, 0.5)
    steps = 2
    dream = imagine(world, behavior, start, steps, seeded())
    drawn = torch.rand(steps, 18, behavior.worker.distribution.noise + sizes.stoch, generator=seeded())
    code = dream.goal.code[:, 0]
    walked = pursue(world, behavior, start, code, drawn)
    assert all(map(torch.equal, walked.fields, dream.latent.fields)) and not walked.features.requires_grad
    if managed:
        other = pursue(world, behavior, start, code.roll(1, 1), drawn)
        assert not torch.equal(other.deter, walked.deter)


# --- the flat view ---


def dream_of(continues: list[float]) -> Dream:
    count = len(continues)
    latent = Latent(torch.arange(float(count))[None, :, None], torch.zeros(1, count, 1, 1), torch.zeros(1, count, 1, 1))
    edges = torch.arange(count - 1.0)[None]
    choice = torch.zeros(1, count - 1, 3)
    return flat_dream(latent, choice, choice, edges, torch.tensor([continues]), edges)


def view_of(continues: list[float], discount: float) -> Rollout:
    horizon = 1 / (1 - discount)
    streams = {"extrinsic": Stream(1.0, horizon)}
    return flat_view(make_level(BehaviorOptions(horizon=horizon), streams=streams), dream_of(continues))


def test_the_weight_of_an_edge_includes_the_start_and_not_where_it_leads():
    rollout = view_of([1.0, 1.0, 0.5, 1.0, 0.3], 0.9)
    close(rollout.weight[0], 0.9 * torch.tensor([1.0, 0.9, 0.405, 0.3645]))
    close(rollout.discount[0, :, 0], [0.9, 0.45, 0.9, 0.27])


def test_the_published_weights_are_the_product_of_the_continue_heads_outputs():
    discount, heads = 1 - 1 / 333, torch.tensor([0.997, 0.997, 0.5, 0.0, 1.0])
    rollout = view_of((heads / discount).tolist(), discount)
    close(rollout.weight[0], [0.997, 0.994009, 0.4970045, 0])
    close(rollout.discount[0, :, 0], heads[1:])


def test_no_step_counts_more_than_certain():
    rollout = view_of([1.003, 1.003, 1.003], 0.999)
    assert rollout.discount.tolist() == [[[1.0], [1.0]]] and rollout.weight.tolist() == [[1.0, 1.0]]


def test_the_view_hands_every_point_and_every_edge_on():
    dream = dream_of([1.0, 0.9, 0.8])
    rollout = flat_view(make_level(), dream)
    assert rollout.inputs[0, :, 0].tolist() == [0, 1, 2]
    assert torch.equal(rollout.reward[..., 0], dream.reward["extrinsic"])
    assert torch.equal(rollout.logprob, dream.logprob)


# --- open loop ---


def test_an_open_loop_shows_every_key_as_the_environment_draws_it(world):
    batch = make_batch(world)
    shown = open_loop(world, batch.obs, batch.previous_action, batch.first, 2, seeded())
    assert {key: (value.shape, value.dtype) for key, value in shown.items()} == {
        key: (value.shape, value.dtype) for key, value in batch.obs.items()
    }


def test_an_open_loop_sees_its_context_and_nothing_after_it(world):
    batch = make_batch(world)

    def show(obs: dict[str, Tensor]) -> Tensor:
        return open_loop(world, obs, batch.previous_action, batch.first, 2, seeded())["velocity"]

    before = show(batch.obs)
    for t, visible in ((1, True), (2, False), (5, False)):
        obs = {key: value.clone() for key, value in batch.obs.items()}
        obs["velocity"][:, t] += 10.0
        assert torch.equal(show(obs), before) is not visible
