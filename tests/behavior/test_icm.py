"""Curiosity by hand: what is foreseen, what is paid and when, and every trap that other implementations fell into."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from reverie.behavior.intrinsic import IntrinsicOptions
from reverie.behavior.intrinsic.icm import Icm, IcmOptions, surprise
from reverie.behavior.intrinsic.pay import PayOptions
from reverie.behavior.intrinsic.sight import Sight, action_error, action_hits
from reverie.functional import lambda_return
from reverie.types import ActionPart, Explained
from tests.core import CHOICE, STEER, close, make_agent, make_batch, shake
from tests.intrinsic import always, dream_of, nothing, replayed, seen_of, setting, silence, states, still

BRANCHES = (ActionPart("first", 3, True), ActionPart("second", 2, True))


# --- the numbers of the paper ---


def test_a_surprise_is_half_the_squared_distance():
    raw = surprise(torch.tensor([1.0, 2.0]), torch.zeros(2))
    close(raw, 2.5)
    close(0.01 * raw, 0.025)  # with the paper's eta


def test_the_loss_is_four_fifths_inverse_and_one_fifth_forward():
    sight, icm = Sight(4, setting()), Icm(IcmOptions(), setting())
    silence(sight), silence(icm)
    list(icm.forward_model)[-1].bias.data.copy_(torch.tensor([1.0, 2.0]))
    batch = replayed(torch.eye(3)[None, :2])
    explained = Explained(states(1, 2), torch.randn(1, 2, 4), still, always, still)
    loss, seen, metrics = sight.loss(explained, batch, 0.8, nothing())
    close(metrics["inverse_loss"], math.log(3))
    more, found = icm.loss(seen, nothing())
    close(found["icm_loss"], 1.378890)
    close(loss + more - metrics["outcome_loss"], 1.378890)
    close(found["forward_loss"], 2.5)


@pytest.mark.parametrize(("detached", "slope"), [(True, -0.5), (False, 0.5)])
def test_features_are_drawn_to_what_is_foreseen_only_where_asked(detached, slope):
    """Features w x with x = 1, 2 and w = 1/2, and a forward model that foresees no change."""
    icm = Icm(IcmOptions(detach_target=detached, beta=1.0), setting(outcome=1))
    silence(icm)
    weight = torch.tensor(0.5, requires_grad=True)
    icm.loss(seen_of(weight * torch.tensor([[[1.0], [2.0]]])), nothing())[0].backward()
    assert weight.grad is not None
    close(weight.grad, slope)


# --- actions of every kind ---


def test_numbers_count_by_their_squared_error_one_by_one():
    """Averaged over steps, never over all pairs of steps, of which there are four times as many here."""
    action = torch.tensor([0.0, 1.0, 2.0, 3.0]).sqrt()[:, None]
    close(action_error(torch.zeros(4, 1), action, (ActionPart("pedal", 1, False),)).mean(), 1.5)
    wide = (ActionPart("arm", 8, False),)
    errors = action_error(torch.zeros(256, 8), torch.ones(256, 8), wide)
    assert errors.shape == (256,) and bool((errors == 8).all())


def test_the_branches_of_an_action_add_up():
    action = torch.tensor([[1.0, 0.0, 0.0, 0.0, 1.0]])
    close(action_error(torch.zeros(1, 5), action, BRANCHES), [math.log(6)])
    mixed = (*BRANCHES, ActionPart("pedal", 1, False))
    close(action_error(torch.zeros(1, 6), torch.cat([action, torch.tensor([[0.5]])], -1), mixed), [math.log(6) + 0.25])
    close(action_hits(torch.tensor([[9.0, 0.0, 0.0, 9.0, 0.0]]), action, BRANCHES), [0.5])


# --- seams ---


def test_steps_across_a_seam_count_for_nothing():
    phi = torch.tensor([[0.0], [2.0], [math.sqrt(200) + 2], [math.sqrt(8) + math.sqrt(200) + 2]])[None]
    joined = torch.tensor([[True, False, True]])
    icm = Icm(IcmOptions(context=False), setting(outcome=1))
    silence(icm)
    close(seen_of(phi, joined=joined).pair_mean(torch.tensor([[2.0, 100.0, 4.0]])), 3.0)
    close(seen_of(phi, joined=joined).pair_mean(torch.tensor([[2.0, math.nan, 4.0]])), 3.0)
    close(icm.loss(seen_of(phi, joined=joined), nothing())[1]["forward_loss"], 3.0)


def test_the_first_step_of_an_episode_is_no_consequence_of_the_last_action():
    sight = Sight(4, setting(outcome=3))
    shake(sight)
    tokens, first = torch.randn(2, 4, 4), torch.zeros(2, 4, dtype=torch.bool)
    first[:, 2] = True
    batch = replayed(torch.eye(3)[torch.arange(8) % 3].view(2, 4, 3), first)
    explained, losses = Explained(states(2, 4), tokens, still, always, still), []
    for seam in (batch.action[:, 1], batch.action[:, 1].roll(1, -1)):
        action = batch.action.clone()
        action[:, 1] = seam  # chosen where the episode ended, and ignored
        _, seen, metrics = sight.loss(explained, replace(batch, action=action), 1.0, nothing().manual_seed(0))
        losses.append(metrics)
        assert seen.joined.tolist() == [[True, False, True]] * 2
    assert all(torch.equal(losses[0][name], losses[1][name]) for name in ("inverse_loss", "inverse_accuracy"))


# --- features ---


def test_features_are_of_the_observation_alone_and_learn_to_tell_the_action():
    sight = Sight(4, setting(outcome=6))
    batch = replayed(torch.eye(3)[None])
    tokens = torch.randn(1, 3, 4)
    phis = []
    for seed in (0, 1):
        explained = Explained(states(1, 3, seed=seed), tokens, still, always, still)
        loss, seen, metrics = sight.loss(explained, batch, 1.0, nothing())
        phis.append(seen.phi)
        (gradient,) = torch.autograd.grad(loss, next(sight.encoder.parameters()))
        assert bool(gradient.any())
    assert torch.equal(*phis)
    optimizer = torch.optim.Adam(sight.parameters(), 0.01)
    for _ in range(60):
        loss, _, metrics = sight.loss(explained, batch, 1.0, nothing())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert metrics["inverse_loss"] < 0.1 and metrics["inverse_accuracy"] == 1 and metrics["outcome_loss"] < 0.5


def test_features_can_neither_grow_nor_shrink():
    sight, tokens = Sight(4, setting(outcome=16)), torch.randn(7, 4)
    phi = sight.phi(tokens)
    close(phi.square().sum(-1), torch.full((7,), 16.0), rtol=1e-3)
    with torch.no_grad():
        for parameter in list(sight.encoder)[-1].parameters():
            parameter *= 10
    close(sight.phi(tokens), phi.detach(), rtol=1e-3, atol=1e-3)


# --- what dreams are paid ---


def test_an_edge_is_paid_for_what_it_leads_to_and_its_own_action_is_credited():
    icm = Icm(IcmOptions(), setting())
    silence(icm)
    outcome = torch.tensor([[[0.0, 0.0], [1.0, 1.0], [1.0, 1.0]]])
    reward = icm.reward(dream_of(torch.zeros(1, 2, 3), 3), outcome)
    close(reward, [[1.0, 0.0]])
    close(lambda_return(reward, torch.ones(1, 2), torch.zeros(1, 3), 1.0), [[1.0, 0.0]])


def test_a_forward_model_that_is_right_pays_nothing_and_sees_action_and_context():
    icm, action = Icm(IcmOptions(), setting()), torch.rand(1, 2, 3)
    shake(icm, 0.5)
    dream = dream_of(action, 3)
    state, start = dream.latent.features, torch.randn(1, 1, 2)
    first = icm.foresee(start, action[:, :1], state[:, :1])
    outcome = torch.cat([start, first, icm.foresee(first, action[:, 1:], state[:, 1:2])], 1).detach()
    close(icm.reward(dream, outcome), [[0.0, 0.0]])
    assert bool((icm.reward(replace(dream, action=1 - action), outcome) > 1e-4).all())
    assert bool((icm.reward(replace(dream, latent=states(1, 3, seed=5)), outcome) > 1e-4).all())
    blind = Icm(IcmOptions(context=False), setting())
    shake(blind, 0.5)
    close(blind.reward(replace(dream, latent=states(1, 3, seed=5)), outcome), blind.reward(dream, outcome).detach())


@pytest.mark.parametrize("action", [CHOICE, STEER])
def test_a_head_recalls_what_replayed_steps_surprised(action):
    torch.manual_seed(0)
    place = setting(action=action)
    icm = Icm(IcmOptions(mode="head"), place)
    phi, taken = torch.randn(4, 6, 2), torch.rand(4, 5, place.width)
    seen = seen_of(phi, taken)
    dream = replace(dream_of(taken, 6), latent=seen.latent)
    assert not icm.reward(dream, phi).any()
    optimizer = torch.optim.Adam([*icm.recall.parameters()], 0.02)
    for _ in range(400):
        optimizer.zero_grad()
        icm.loss(seen, nothing())[0].backward()
        optimizer.step()
    found = surprise(icm.foresee(phi[:, :-1], taken, seen.latent.features[:, :-1]), phi[:, 1:]).detach()
    reward = icm.reward(dream, torch.randn(4, 6, 2)).detach()
    assert torch.corrcoef(torch.stack([reward.flatten(), found.flatten()]))[0, 1] > 0.95


@pytest.mark.parametrize("mode", ["model", "head"])
def test_states_are_looked_at_only_where_dreams_are_paid_by_what_they_look_like(mode):
    assert Icm(IcmOptions(mode=mode), setting()).sees_outcome == (mode == "model")
    curious = IntrinsicOptions(curiosity=PayOptions(kind="icm"), icm=IcmOptions(mode=mode))
    agent = make_agent(intrinsic=curious)
    metrics, _ = agent.learn(make_batch(agent.world))
    assert ("intrinsic/outcome_loss" in metrics) == (mode == "model") and "curiosity" in agent.behavior.worker.streams
