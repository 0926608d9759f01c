from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from reverie.behavior.actor_critic import ActorCritic, BehaviorOptions
from reverie.behavior.streams import Stream
from reverie.types import Rollout
from tests.core import STEER, TASK, close, make_batch, make_level, make_world, shake


def make(inputs: int = 4, streams: dict[str, Stream] = TASK, **options) -> ActorCritic:
    torch.manual_seed(0)
    return make_level(BehaviorOptions(**options), inputs, streams=streams)


def rewards_alone(values: Tensor) -> Rollout:
    """A rollout whose returns are these values."""
    reward = values[None].float()
    steps = reward.shape[1]
    zeros, inputs, none = torch.zeros(1, steps), torch.zeros(1, steps + 1, 4), torch.zeros(1, steps, 3)
    return Rollout(none, inputs, none, zeros, reward[..., None], zeros[..., None], zeros + 1)


# --- the fresh critic ---


def test_a_fresh_critic_predicts_exactly_zero_and_pays_ln_255_twice():
    level, inputs = make(), torch.randn(5, 3, 4)
    assert not level.value(inputs).any() and not level.slow_value(inputs).any()
    close(level.value_loss(inputs, torch.randn(5, 3, 1), torch.zeros(5, 3, 1)), torch.full((5, 3, 1), 11.082527))


def test_a_fresh_policy_is_nearly_uniform():
    level = make_level(inputs=640, units=64)
    output = list(level.actor)[-1]
    assert output.weight.std().item() == pytest.approx(0.01 / 8, rel=0.3)
    assert level.policy(torch.randn(50, 640)).abs().max() < 0.06


def test_a_continuous_policy_has_a_mean_and_a_deviation_per_dimension():
    level = make_level(action=STEER)
    assert level.policy(torch.randn(7, 4)).shape == (7, 4)


def test_the_slow_critic_pulls_with_its_own_scale():
    inputs, target, slow = torch.randn(6, 4), torch.ones(6, 1), torch.zeros(6, 1)
    full, half, none = (make(slow_scale=scale) for scale in (1.0, 0.5, 0.0))
    for level in (full, half, none):
        shake(level.critic)
    losses = [level.value_loss(inputs, target, slow) for level in (full, half, none)]
    close(losses[1], (losses[0] + losses[2]).detach() / 2)
    assert not torch.equal(losses[0], losses[2])


def test_an_advantage_compares_the_return_with_the_value_of_its_own_point():
    level = make(inputs=4)
    shake(level.critic, 1e-3)
    rollout = replace(rewards_alone(torch.arange(3)), inputs=torch.eye(4)[None])
    targets = level.compute_targets(rollout)
    with torch.no_grad():
        value = level.value(rollout.inputs)
    scale = (level.mixer.return_high - level.mixer.return_low).clamp(min=1.0)
    close(targets.advantage, (targets.returns - value[:, :3])[..., 0] / scale, atol=1e-4)
    assert value.unique().numel() == 4
    assert not targets.advantage.requires_grad


# --- the critic on replayed steps ---


def test_replayed_steps_before_a_seam_have_no_weight_and_cost_ln_255_twice():
    world = make_world()
    level, batch = make(inputs=5), make_batch(world)
    batch = replace(batch, last=batch.last | torch.tensor([False, False, True, False, False, False]))
    replay = level.replay_value(torch.randn(3, 6, 5), batch, torch.randn(18))
    assert replay.weight.tolist() == [[1, 1, 0, 1, 1]] * 3
    close(level.replay_value_loss(replay), 11.082527 * replay.weight)


def test_the_imagined_return_of_each_start_bootstraps_its_own_row():
    level, batch = make(inputs=5, return_lambda=0.0), make_batch(make_world())
    replay = level.replay_value(torch.randn(3, 6, 5), batch, torch.arange(18.0))
    expected = batch.reward[:, 1:] + (1 - 1 / 333) * torch.arange(18.0).view(3, 6)[:, 1:]
    close(replay.target, expected)


def test_with_fewer_starts_only_the_last_rows_are_valued():
    level, batch, features = make(inputs=5), make_batch(make_world()), torch.randn(3, 6, 5)
    shake(level)
    batch = replace(batch, last=batch.last | (torch.arange(6) == 4), terminal=batch.terminal | (torch.arange(6) == 4))
    returns = torch.randn(3, 6)
    whole = level.replay_value(features, batch, returns.flatten(0, 1))
    tail = level.replay_value(features, batch, returns[:, 3:].flatten(0, 1))
    for name in ("inputs", "target", "slow_value", "weight"):
        close(getattr(tail, name), getattr(whole, name)[:, 3:])


def test_only_the_features_of_a_replay_value_carry_gradient():
    level, features = make(inputs=5), torch.randn(3, 6, 5, requires_grad=True)
    replay = level.replay_value(features, make_batch(make_world()), torch.randn(18))
    assert replay.inputs.requires_grad
    assert not any(field.requires_grad for field in (replay.target, replay.slow_value, replay.weight))


# --- the slow critic ---


def test_the_slow_critic_follows_at_its_rate_and_is_never_trained():
    level = make()
    before = [parameter.clone() for parameter in level.slow_critic.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, level.critic.parameters(), strict=True))
    shake(level.critic)
    level.update_slow_critic()
    moved = zip(before, level.critic.parameters(), level.slow_critic.parameters(), strict=True)
    for old, new, slow in moved:
        close(slow, (old + 0.02 * (new - old)).detach(), atol=1e-7)
        assert not slow.requires_grad and slow.grad is None


@pytest.mark.parametrize(("bias", "factor"), [(0.0, 1 / 1.1), (100.0, 1.1)])
@pytest.mark.parametrize("ready", [True, torch.tensor(False)])
def test_the_weight_of_the_entropy_is_steered_once_the_level_learns(bias, factor, ready):
    level = make(entropy_target=0.5)
    rollout = replace(rewards_alone(torch.zeros(3)), policy=torch.tensor([bias, 0.0, 0.0]).expand(1, 3, 3))
    metrics = level.adapt_entropy(rollout, torch.as_tensor(ready))
    close(level.entropy_weight, 3e-4 * (factor if ready is True else 1.0), atol=0)
    assert metrics["policy/entropy_weight"] == level.entropy_weight


def test_a_normal_that_is_too_certain_is_paid_more_for_its_entropy():
    level = make_level(BehaviorOptions(entropy_target=0.5), action=STEER)
    certain = torch.tensor([0.0, 0.0, -30.0, -30.0]).expand(1, 3, 4)
    rollout = replace(rewards_alone(torch.zeros(3)), action=torch.zeros(1, 3, 2), policy=certain)
    level.adapt_entropy(rollout, torch.tensor(True))
    close(level.entropy_weight, 3e-4 * 1.1, atol=0)


def test_the_slow_critic_is_a_copy_and_not_the_critic_itself():
    level = make()
    nn.init.ones_(list(level.critic.parameters())[-1])
    assert not list(level.slow_critic.parameters())[-1].any()


def test_a_stream_that_outlives_the_episode_goes_on_with_the_value_of_a_start():
    """Pathak-style rewards 1, 1 with discount 0.9 where the episode ends right after the first: 1 + 0.9 * 5."""
    level = make(inputs=3, streams={"curiosity": Stream(1.0, 10, episodic=False)}, return_lambda=1.0)
    level.value = lambda inputs: torch.tensor([[[5.0], [7.0], [9.0]]])  # type: ignore[method-assign]
    discount = torch.tensor([[[0.0], [0.9]]])
    rollout = Rollout(
        *(torch.zeros(1, 2, 3), torch.zeros(1, 3, 3), torch.zeros(1, 2, 3), torch.zeros(1, 2)),
        *(torch.ones(1, 2, 1), discount, torch.ones(1, 2)),
        ended=0.9 - discount,
    )
    close(level.compute_targets(rollout).returns[0, :, 0], [1 + 0.9 * 5, 1 + 0.9 * 9])


def test_replayed_steps_train_the_column_of_the_task_wherever_it_stands():
    streams = {"novelty": Stream(0.5, 10), "extrinsic": Stream(1.0, 333)}
    level, features, batch = make(inputs=5, streams=streams), torch.randn(3, 6, 5), make_batch(make_world())
    level.replay_value_loss(level.replay_value(features, batch, torch.randn(18))).sum().backward()
    novelty, task = list(level.critic)[-1].bias.grad.split(len(level.bins))
    assert not novelty.any() and task.any()
    assert make(inputs=5, streams={"novelty": Stream(0.5, 10)}).task is None
