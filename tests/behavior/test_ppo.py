from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from reverie.behavior.actor_critic import ActorCritic, BehaviorOptions, ReplayValue, Targets
from reverie.behavior.ppo import improve, kl_estimate, minibatches, surrogate
from reverie.functional import mixed_log_probs
from reverie.optim import Optimizer, OptimizerOptions
from reverie.types import ActionPart, Rollout
from tests.core import Recorder, close, lookup, make_level, no_replay, record, shake

PAIR = (ActionPart("choice", 2, True),)


# --- the clipped objective ---


@pytest.mark.parametrize(
    ("change", "advantage", "objective", "slope"),
    [(0.3, 2, 2.4, 0), (0.3, -2, -2.699718, -2.699718), (-0.4, 2, 1.340640, 1.340640), (-0.4, -2, -1.6, 0)],
)
def test_the_objective_is_clipped_only_where_it_would_gain(change, advantage, objective, slope):
    logprob = torch.tensor([change], requires_grad=True)
    value = surrogate(logprob, torch.zeros(1), torch.tensor([float(advantage)]), 0.2)
    value.sum().backward()
    close(value, [objective])
    assert logprob.grad is not None
    close(logprob.grad, [slope])


def test_actions_estimate_the_divergence():
    close(kl_estimate(torch.tensor([0.3, -0.4, 0.0])), [0.0498588, 0.0703200, 0.0])


@pytest.mark.parametrize(("advantage", "slope"), [(1.0, 0.0), (-1.0, -0.389292)])
def test_the_gradient_of_a_clipped_choice(advantage, slope):
    logits = torch.tensor([[1.0, 0.0]], requires_grad=True)
    logprob = mixed_log_probs(logits, 0.01)[:, 0]
    close(logprob.exp() / 0.5, [1.457496])
    surrogate(logprob, torch.tensor([math.log(0.5)]), torch.tensor([advantage]), 0.2).sum().backward()
    assert logits.grad is not None
    close(logits.grad[0], [slope, -slope])


@pytest.mark.parametrize(
    ("logits", "actions", "advantage", "weight", "slope"),
    [([0.0, 0.0], [0], [1.0], [1.0], 0.495), ([0.3, -0.2], [0, 1], [2.0, -1.0], [1.0, 0.5], 0.52806263)],
)
def test_at_ratio_one_the_gradient_is_that_of_reinforce(logits, actions, advantage, weight, slope):
    leaf = torch.tensor(logits, requires_grad=True)
    logprob = mixed_log_probs(leaf.expand(len(actions), 2), 0.01)[torch.arange(len(actions)), actions]
    gain, scale = torch.tensor(advantage), torch.tensor(weight)
    clipped = -(scale * surrogate(logprob, logprob.detach(), gain, 0.2)).mean()
    plain = -(scale * logprob * gain).mean()
    for loss in (clipped, plain):
        close(torch.autograd.grad(loss, leaf, retain_graph=True)[0], [-slope, slope])


# --- the guard on the divergence ---


def one_hot_rollout(old: list[list[float]]) -> tuple[Rollout, Targets]:
    """One edge per row of old probabilities, from point t with input one-hot t; the first action was taken."""
    count = len(old)
    policy = torch.tensor([old]).log()
    ones = torch.ones(1, count)
    inputs = torch.eye(count + 1)[None]
    action = torch.tensor([1.0, 0.0]).expand(1, count, 2)
    streams = ones[..., None]
    rollout = Rollout(action, inputs, policy, policy[..., 0], streams, streams, ones)
    return rollout, Targets(streams, ones, streams, torch.ones(1), {})


def steered(new: list[list[float]], **options) -> ActorCritic:
    """A level whose policy at input one-hot t is row t."""
    level = make_level(BehaviorOptions(unimix=0.0, **options), len(new) + 1, PAIR, units=4, bins=63)
    level.actor = lookup(torch.cat([torch.tensor(new).log(), torch.zeros(1, 2)]))  # type: ignore[assignment]
    return level


@pytest.mark.parametrize(("new", "divergence", "goes"), [(0.6, 0.020411, True), (0.63, 0.034997, False)])
def test_the_actor_stops_beyond_the_divergence_while_the_critic_goes_on(new, divergence, goes):
    level = steered([[new, 1 - new]], epochs=2, minibatches=1)
    actor, critic, metrics = record(level, *one_hot_rollout([[0.5, 0.5]]), no_replay(2))
    close(metrics["policy/kl"], divergence, atol=1e-6)
    assert actor.when == ([True, True] if goes else [False]) and critic.when == [True, True]
    assert metrics["policy/kl_stopped"] == float(not goes)


def test_a_stopped_actor_keeps_its_parameters_and_the_critic_moves():
    level = steered([[0.63, 0.37]], epochs=2, minibatches=1)
    before = {name: parameter.clone() for name, parameter in level.named_parameters()}
    options = OptimizerOptions(warmup=0, rate=0.01)
    optimizers = {
        "actor": Optimizer("actor", level.actor.parameters(), options, {"policy": 1.0}),
        "critic": Optimizer("critic", level.critic.parameters(), options, {"value": 1.0, "replay_value": 0.3}),
    }
    rollout, targets = one_hot_rollout([[0.5, 0.5]])
    improve(level, rollout, targets, no_replay(2), optimizers, torch.Generator())
    moved = {name for name, parameter in level.named_parameters() if not torch.equal(parameter, before[name])}
    assert {name.split(".")[0] for name in moved} == {"critic"}
    assert optimizers["actor"].count == 0 and optimizers["critic"].count == 2


def test_the_actor_steps_before_the_critic_is_asked_so_that_one_graph_is_held_at_a_time(monkeypatch):
    level, order = steered([[0.5, 0.5]], epochs=1, minibatches=1), []
    ask, step = level.value_loss, Recorder.step
    monkeypatch.setattr(level, "value_loss", lambda *inputs: order.append("asked") or ask(*inputs))
    monkeypatch.setattr(Recorder, "step", lambda *inputs, **how: order.append("step") or step(*inputs, **how))
    record(level, *one_hot_rollout([[0.5, 0.5]]), no_replay(2))
    assert order == ["step", "asked", "step"]


def test_only_the_first_minibatch_of_a_rollout_is_fresh():
    level = steered([[0.5, 0.5]] * 4, epochs=2, minibatches=2)
    for optimizer in record(level, *one_hot_rollout([[0.5, 0.5]] * 4), no_replay(5))[:2]:
        assert optimizer.fresh == [True, False, False, False]


def test_an_actor_that_stopped_does_not_start_again():
    level = steered([[0.9, 0.1], [0.5, 0.5]], epochs=1, minibatches=2)
    orders = set()
    for seed in range(8):
        actor, _, _ = record(level, *one_hot_rollout([[0.5, 0.5], [0.5, 0.5]]), no_replay(3), seed)
        orders.add(tuple(actor.when))
    assert orders == {(False,), (True, False)}


@pytest.mark.parametrize(("ready", "frozen", "critics"), [(False, False, 1), (True, True, 6)])
def test_a_level_that_does_not_learn_makes_one_pass_to_be_measured(ready: bool, frozen: bool, critics: int):
    level = steered([[0.6, 0.4]] * 3, epochs=2, minibatches=3)
    rollout, targets = one_hot_rollout([[0.5, 0.5]] * 3)
    actor, critic = Recorder(), Recorder()
    optimizers, generator = {"actor": actor, "critic": critic}, torch.Generator()
    metrics = improve(level, rollout, targets, None, optimizers, generator, ready, frozen)
    assert actor.when == [False] and critic.when == [ready] * critics
    close(metrics["policy/kl"], 0.020411, atol=1e-6)
    assert metrics["policy/kl_stopped"] == 0


# --- minibatches ---


@pytest.mark.parametrize("parts", [1, 4])
def test_every_row_is_visited_once_per_pass(parts):
    generator = torch.Generator().manual_seed(0)
    for count in range(2):
        cuts = list(minibatches((10, 7), parts, generator))
        visited = [
            torch.cat([torch.arange(size)[index[side]] for index in cuts]) for side, size in enumerate((10, 7, 17))
        ]
        assert [sorted(rows.tolist()) for rows in visited] == [list(range(size)) for size in (10, 7, 17)], count
        for left, right, both in cuts:
            assert torch.arange(17)[both].tolist() == [
                *torch.arange(10)[left].tolist(),
                *(10 + torch.arange(7)[right]).tolist(),
            ]


def test_minibatches_are_shuffled_anew_in_every_pass():
    generator = torch.Generator().manual_seed(0)
    passes = [[index.tolist() for index, _ in minibatches((12,), 3, generator)] for _ in range(2)]
    assert passes[0] != passes[1] and [len(piece) for piece in passes[0]] == [4, 4, 4]


def test_all_passes_learn_from_the_same_targets():
    old = [[0.5, 0.5], [0.4, 0.6], [0.3, 0.7], [0.2, 0.8]]
    level = steered(old, epochs=3, minibatches=2)
    shake(level.critic)
    rollout, targets = one_hot_rollout(old)
    actor, critic, metrics = record(level, rollout, targets, no_replay(5))
    assert len(actor.losses) == len(critic.losses) == 6
    assert all(losses["policy"].shape == (2,) for losses in actor.losses)
    totals = [sum(losses["value"].sum() for losses in critic.losses[2 * i : 2 * i + 2]) for i in range(3)]
    expected = level.value_loss(rollout.inputs[0, :-1], targets.returns[0], targets.slow_value[0]).sum()
    for total in totals:
        assert isinstance(total, Tensor)
        close(total, expected.detach())
    close(metrics["policy/ratio_first"], 0.0)


@pytest.mark.parametrize("parts", [1, 2])
def test_the_critic_learns_from_every_replayed_step_and_gives_it_no_gradient(parts):
    old = [[0.5, 0.5], [0.4, 0.6], [0.3, 0.7], [0.2, 0.8]]
    level = steered(old, epochs=1, minibatches=parts)
    shake(level.critic)
    inputs = torch.randn(3, 2, 5, requires_grad=True)
    replay = ReplayValue(inputs, torch.randn(3, 2), torch.randn(3, 2), torch.tensor([[1.0, 0.0], [0.5, 1.0], [1, 1]]))
    _, critic, _ = record(level, *one_hot_rollout(old), replay)
    learned = torch.cat([losses["replay_value"] for losses in critic.losses])
    expected = level.replay_value_loss(replay).flatten()
    close(learned.sort().values, expected.sort().values.detach())
    learned.sum().backward()
    assert inputs.grad is None


def test_learning_raises_the_chance_of_what_was_good_and_moves_the_value_to_the_return():
    torch.manual_seed(0)
    level = make_level(BehaviorOptions(epochs=4, minibatches=2, entropy=0.0), 3, PAIR, units=16, bins=63)
    options = OptimizerOptions(kind="adam", warmup=0, rate=0.01, agc=0.0, eps=1e-8)
    optimizers = {
        "actor": Optimizer("actor", level.actor.parameters(), options, {"policy": 1.0}),
        "critic": Optimizer("critic", level.critic.parameters(), options, {"value": 1.0, "replay_value": 0.3}),
    }
    rollout, _ = one_hot_rollout([[0.5, 0.5], [0.5, 0.5]])
    advantage, returns = torch.tensor([[1.0, -1.0]]), torch.tensor([[[3.0], [-2.0]]])
    for _ in range(30):
        policy = level.policy(rollout.inputs[:, :-1]).detach()
        logprob = level.distribution.logprob(policy, rollout.action)
        rollout = replace(rollout, policy=policy, logprob=logprob)
        targets = Targets(returns, advantage, returns, torch.ones(1), {})
        improve(level, rollout, targets, no_replay(3), optimizers, torch.Generator().manual_seed(0))
    chances = level.distribution.logprob(level.policy(rollout.inputs[:, :-1]), rollout.action).exp()[0]
    assert chances[0] > 0.8 and chances[1] < 0.2
    close(level.value(rollout.inputs[:, :-1])[0], returns[0], rtol=0.05)
