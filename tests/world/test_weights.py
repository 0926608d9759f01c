"""What small observations count, so that a latent holds what they tell."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from reverie.errors import StoredDataError
from reverie.types import ObservationSpec
from reverie.world.weights import FLOOR, MOST, RATE, ObservationWeights
from tests import core
from tests.core import IMAGE, SENSES, VECTORS, close, make_agent, make_batch, make_world, shake, uniform

KEYS = ["body", "picture", "sound"]
OBS = {key: torch.zeros(2, 4, 1) for key in KEYS} | {"sound/present": torch.zeros(2, 4, dtype=torch.bool)}


class Costs(nn.Module):
    """A decoder of which only the costs are known."""

    def __init__(self, **costs: float):
        super().__init__()
        self.costs = {key: torch.tensor(cost) for key, cost in costs.items()}

    def constant_loss(self, obs, there):
        assert there["picture"].all() and torch.equal(there["sound"], obs["sound/present"])
        return self.costs


def test_a_weight_makes_up_for_what_the_best_constant_costs_too_little():
    weights = ObservationWeights(KEYS, floor=10.0)
    assert weights() == {"recon_body": 1.0, "recon_picture": 1.0, "recon_sound": 1.0}
    weights.learn([Costs(body=0.5, picture=300.0, sound=0.0)], OBS)
    close(weights()["recon_body"], 20.0)  # from the first batch on
    assert weights()["recon_picture"] == weights()["recon_sound"] == 1.0
    weights.learn([Costs(body=2.5, picture=300.0, sound=0.0)], OBS)
    close(weights()["recon_body"], 10.0 / (0.5 + RATE * 2.0 / (1 - (1 - RATE) ** 2)))


def test_what_hardly_varies_has_the_largest_weight_and_no_larger_one():
    weights = ObservationWeights(KEYS, floor=10.0)
    weights.learn([Costs(body=0.0, picture=1e-6, sound=0.0)], OBS)
    assert weights()["recon_body"] == weights()["recon_picture"] == MOST


def test_an_observation_that_is_seldom_there_costs_what_it_does_when_it_is():
    weights, there = ObservationWeights(KEYS, floor=10.0), dict(OBS)
    for cost, steps in ((4.0, 2), (0.0, 0), (1.0, 6)):
        there["sound/present"] = (torch.arange(8) < steps).view(2, 4)
        weights.learn([Costs(body=10.0, picture=10.0, sound=cost)], there)
    first, last = (1 - RATE) ** 2 * 2, 6
    close(weights()["recon_sound"], 10.0 * (first + last) / (4.0 * first + 1.0 * last))


@pytest.mark.parametrize("cost", [float("inf"), float("nan")])
def test_a_cost_that_is_not_finite_changes_no_weight(cost):
    weights = ObservationWeights(KEYS, floor=10.0)
    weights.learn([Costs(body=0.5, picture=2.0, sound=0.0)], OBS)
    weights.learn([Costs(body=cost, picture=2.0, sound=0.0)], OBS)
    close(weights()["recon_body"], 20.0)
    close(weights()["recon_picture"], 5.0)


def test_several_modalities_have_weights_and_one_has_none_unless_one_says_so():
    for observation, floor, expected in (
        (VECTORS, None, None),
        (VECTORS, 3.0, 3.0),
        (VECTORS | IMAGE, None, FLOOR),
        (VECTORS | IMAGE, 0.0, None),
    ):
        weights = make_world(observation, reconstruction_floor=floor).weights
        assert (None if weights is None else weights.floor) == expected


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_the_losses_of_a_batch_are_weighed_and_its_metrics_are_not(gradient_checkpointing):
    everything = VECTORS | IMAGE | SENSES
    plain = make_world(everything, reconstruction_floor=0.0)
    shake(plain)
    world = make_world(everything, reconstruction_floor=10.0, gradient_checkpointing=gradient_checkpointing)
    world.load_state_dict(plain.state_dict(), strict=False)
    batch, noise = make_batch(world), uniform(3, 6, 4)
    bare, losses = plain.loss(batch, noise)[2], world.loss(batch, noise)[2]
    weights = world.weights()
    assert {name.removeprefix("recon_") for name in weights} == everything.keys()
    assert weights["recon_gear"] > 2.0 and weights["recon_image"] == 1.0
    for name, loss in losses.items():
        close(loss, (bare[name] * weights.get(name, 1.0)).detach(), rtol=1e-4)
    metrics, expected = world.metrics(losses), plain.metrics(bare)
    assert metrics.keys() - expected.keys() == {f"world/weight_{key}" for key in everything}
    for name, value in expected.items():
        close(metrics[name], value, rtol=1e-4)


def test_weights_are_part_of_a_checkpoint():
    batch = make_batch(make_world(VECTORS | IMAGE))
    agent, other = make_agent(VECTORS | IMAGE), make_agent(VECTORS | IMAGE, seed=1)
    for _ in range(2):
        agent.learn(batch)
    other.restore(agent.checkpoint())
    assert other.world.weights()["recon_gear"] == agent.world.weights()["recon_gear"] > 1.0
    a, b = (learner.learn(batch)[0]["world/weight_gear"] for learner in (agent, other))
    assert torch.equal(a, b)


def test_an_older_checkpoint_without_weights_is_refused_with_a_way_out(monkeypatch):
    monkeypatch.setattr(core, "SMALL", core.SMALL.model_copy(update={"reconstruction_floor": 0.0}))
    old = make_agent(VECTORS | IMAGE).checkpoint()
    monkeypatch.undo()
    with pytest.raises(
        StoredDataError, match=r"world.weights.moments is missing in it .* world.reconstruction_floor=0"
    ):
        make_agent(VECTORS | IMAGE).restore(old)


def test_a_bit_beside_an_image_counts_as_much_as_the_floor():
    bit = {"bit": ObservationSpec((), "int64", 2)}
    world = make_world(bit | IMAGE)
    batch = make_batch(world, rows=8, steps=8)
    batch.obs["bit"] = torch.arange(64).view(8, 8) % 2
    world.loss(batch)
    close(world.weights()["recon_bit"], FLOOR / 0.6931472)
