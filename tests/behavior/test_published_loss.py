from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from reverie.behavior.actor_critic import ActorCritic
from reverie.types import ActionPart, ActionSpec, Batch, Dream, Latent, Rollout
from tests.core import (
    CHOICE,
    ONE_PASS,
    STEER,
    close,
    flat_dream,
    flat_view,
    lookup,
    make_batch,
    make_level,
    make_world,
    no_replay,
    record,
    shake,
    uniform,
)

MIXED = (ActionPart("gear", 3, True), ActionPart("steer", 2, False))
ONE = (ActionPart("x", 1, False),)


# --- the published numbers of the whole imagination loss ---


def golden_level() -> tuple[ActorCritic, Rollout]:
    """Four points with given policies and values, three edges."""
    level = make_level(ONE_PASS, 4, ONE)
    mean, deviation = torch.tensor([0.1, -0.2, 0.3, 0.4]), torch.tensor([0.9, 0.8, 0.7, 0.6])
    level.actor = lookup(torch.stack([torch.atanh(mean), torch.logit((deviation - 0.1) / 0.9) - 2.0], -1))  # type: ignore[assignment]
    critic, slow = torch.zeros(4, 255), torch.zeros(4, 255)
    critic[:, 131], slow[:, 132] = torch.tensor([6.0, 7.0, 8.0, 9.0]), 6.0
    level.critic, level.slow_critic = lookup(critic), lookup(slow)  # type: ignore[assignment]
    action, inputs = torch.tensor([[[0.5], [-1.2], [0.3]]]), torch.eye(4)[None]
    policy = level.policy(inputs[:, :3]).detach()
    continues = torch.tensor([[0.997, 0.9, 0.8, 0.7]])
    latent = Latent(inputs[..., :2], inputs[..., 2:, None], inputs[..., 2:, None])
    logprob, reward = level.distribution.logprob(policy, action), torch.tensor([[1.0, 2.0, 3.0]])
    return level, flat_view(level, flat_dream(latent, action, policy, logprob, continues / level.discount, reward))


def test_the_whole_imagination_loss_has_the_published_values():
    level, rollout = golden_level()
    close(level.value(rollout.inputs)[0, :, 0], [0.5371173, 0.7117977, 0.8082957, 0.8506888])
    targets = level.compute_targets(rollout)
    close(targets.slow_value[0, :, 0], [0.7331296] * 3)
    close(targets.returns[0, :, 0], [5.106019, 4.7648983, 3.5954823])
    close(torch.cat([level.mixer.return_low, level.mixer.return_high]), [0.0371242, 0.0507191])
    assert targets.metrics["policy/return_scale"] == 1.0
    actor, critic, _ = record(level, rollout, targets, no_replay(4))
    assert len(actor.losses) == len(critic.losses) == 1
    close(critic.losses[0]["value"], [10.111933, 9.968966, 8.890058])
    weight, advantage = rollout.weight[0], targets.advantage[0]
    # The published policy loss multiplies advantages by log-probabilities, ours by ratios, which are one here.
    offset = weight * advantage * (1.0 - rollout.logprob[0])
    close(actor.losses[0]["policy"] + offset, [4.1555095, 5.3714647, 1.1247225])


# --- an independent DreamerV3 loss ---


def reference_two_hot(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy against two-hot targets, written out with one weight per bin."""
    half = torch.linspace(-20, 0, 128).abs().expm1()
    bins = torch.cat([-half, half[:-1].flip(0)])
    above = (bins <= target[..., None]).sum(-1).clamp(1, 254)
    low, high = bins[above - 1], bins[above]
    share = ((target - low) / (high - low))[..., None]
    weights = nn.functional.one_hot(above - 1, 255) * (1 - share) + nn.functional.one_hot(above, 255) * share
    return -(weights * logits.log_softmax(-1)).sum(-1)


def reference_value(logits: Tensor, bins: Tensor) -> Tensor:
    return (logits.double().softmax(-1) * bins.double()).sum(-1).float()


def reference_losses(level: ActorCritic, action: ActionSpec, dream: Dream, features: Tensor, batch: Batch):
    """The published actor and critic losses as one scalar, for a fresh scale of returns."""
    inputs, bins, gamma, mix = dream.latent.features, level.bins, 1 - 1 / 333, 0.95
    con = dream.continues * gamma
    value, slow = (reference_value(net(inputs), bins).detach() for net in (level.critic, level.slow_critic))
    returns, following = [], value[:, -1]
    for t in reversed(range(dream.action.shape[1])):
        mixed = (1 - mix) * value[:, t + 1] + mix * following
        following = dream.reward["extrinsic"][:, t] + con[:, t + 1] * mixed
        returns.insert(0, following)
    target = torch.stack(returns, 1)
    spread = 0.01 * (torch.quantile(target, 0.95) - torch.quantile(target, 0.05))
    advantage = (target - value[:, :-1]) / torch.clamp(spread, min=1)
    weight, params = con.cumprod(1)[:, :-1], level.actor(inputs[:, :-1])
    logprob, entropy, a, p = 0.0, 0.0, 0, 0
    for part in action:
        if part.discrete:
            probs = 0.99 * params[..., p : p + part.size].softmax(-1) + 0.01 / part.size
            choice = torch.distributions.Categorical(probs=probs)
            logprob = logprob + choice.log_prob(dream.action[..., a : a + part.size].argmax(-1))
            entropy, p = entropy + choice.entropy(), p + part.size
        else:
            mean, spreads = params[..., p : p + 2 * part.size].split(part.size, -1)
            normal = torch.distributions.Normal(mean.tanh(), 0.9 * torch.sigmoid(spreads + 2) + 0.1)
            logprob = logprob + normal.log_prob(dream.action[..., a : a + part.size]).sum(-1)
            entropy, p = entropy + normal.entropy().sum(-1), p + 2 * part.size
        a += part.size
    policy_loss = -weight * (logprob * advantage + 3e-4 * entropy)
    logits = level.critic(inputs[:, :-1])
    value_loss = weight * (reference_two_hot(logits, target) + reference_two_hot(logits, slow[:, :-1]))
    rows = len(target) // len(batch.reward)
    boot, features = target[:, 0].view(-1, rows), features[:, -rows:]
    reward, last, ended = (x[:, -rows:].float() for x in (batch.reward, batch.last, batch.terminal))
    following, replayed = boot[:, -1], []
    for t in reversed(range(rows - 1)):
        trust = mix * (1 - last[:, t + 1])
        onward = (1 - trust) * boot[:, t + 1] + trust * following
        following = reward[:, t + 1] + (1 - ended[:, t + 1]) * gamma * onward
        replayed.insert(0, following)
    logits, slow = level.critic(features[:, :-1]), reference_value(level.slow_critic(features[:, :-1]), bins).detach()
    both = reference_two_hot(logits, torch.stack(replayed, 1)) + reference_two_hot(logits, slow)
    return {"policy": policy_loss, "value": value_loss, "replay_value": (1 - last[:, :-1]) * both}


def random_case(action: ActionSpec):
    """A level with sensible values, a dream of it, and replayed features."""
    torch.manual_seed(3)
    level = make_level(ONE_PASS, 16 + 16, action, units=16)
    shake(level)
    for network in (level.critic, level.slow_critic):
        list(network)[-1].bias.data -= 0.5 * ((torch.arange(255) - 127) / 6).square()
    latent = Latent(torch.randn(12, 6, 16), torch.randn(12, 6, 4, 4), torch.zeros(12, 6, 4, 4))
    policy = level.policy(latent.features[:, :-1]).detach()
    chosen = level.distribution.sample(policy, uniform(12, 5, level.distribution.noise))
    logprob = level.distribution.logprob(policy, chosen)
    continues = torch.rand(12, 6) ** 0.1
    dream = flat_dream(latent, chosen, policy, logprob, continues, torch.randn(12, 5))
    batch, ends = make_batch(make_world()), torch.rand(3, 6) < 0.3
    batch = replace(batch, last=ends, terminal=ends & (torch.rand(3, 6) < 0.5))
    return level, dream, torch.randn(3, 6, 32, requires_grad=True), batch


@pytest.mark.parametrize("action", [CHOICE, STEER, MIXED])
def test_one_pass_is_the_published_loss_written_independently(action):
    level, dream, features, batch = random_case(action)
    expected = reference_losses(level, action, dream, features, batch)
    rollout = flat_view(level, dream)
    targets = level.compute_targets(rollout)
    replay = level.replay_value(features, batch, targets.returns[:, 0, 0])
    actor, critic, metrics = record(level, rollout, targets, replay)
    losses = actor.losses[0] | critic.losses[0]
    close(losses["value"], expected["value"].flatten().detach(), atol=1e-5)
    close(losses["replay_value"], expected["replay_value"].flatten().detach(), atol=1e-5)
    close(metrics["policy/value_loss"], expected["value"].mean().detach())
    parameters = [*level.actor.parameters(), *level.critic.parameters()]
    scales = {"policy": 1.0, "value": 1.0, "replay_value": 0.3}
    gradients = [
        torch.autograd.grad(
            sum(scale * each[name].mean() for name, scale in scales.items()), parameters, retain_graph=True
        )
        for each in (losses, expected)
    ]
    for ours, theirs in zip(*gradients, strict=True):
        close(ours, theirs, rtol=0, atol=1e-6)
    world_gradients = [
        torch.autograd.grad(each.mean(), features)[0]
        for each in (level.replay_value_loss(replay), expected["replay_value"])
    ]
    close(*world_gradients, rtol=0, atol=1e-6)
    assert world_gradients[0].abs().max() > 1e-4
