"""One update of the agent against the published one: a single backward pass and a single optimizer."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from reverie.agent import Agent
from reverie.functional import lambda_return, replay_return, two_hot_loss
from reverie.imagine import imagine
from reverie.nets.distributions import Distribution, OneHot
from reverie.optim import OptimizerOptions
from reverie.types import ActionSpec, Batch
from tests.core import CHOICE, IMAGE, STEER, VECTORS, make_agent, make_batch, shake

pytestmark = pytest.mark.usefixtures("both_ways")

# A published eps of 1e-20 would turn the rounding noise of parameters without gradient into whole steps.
OPTIMIZER = OptimizerOptions(rate=0.01, warmup=2, eps=1e-5, agc=0.001)  # so little that every layer is clipped


def published_losses(agent: Agent, batch: Batch) -> Tensor:
    """The published scalar: every loss of world, actor and critic, with one graph through all of them."""
    world, level, generator = agent.world, agent.behavior.worker, agent.generators["learn"]
    latent, _, losses = world.loss(batch, torch.rand(*batch.reward.shape, world.sizes.stoch, generator=generator))
    scales = dict(world.scales) | {"policy": 1.0, "value": 1.0, "replay": 0.3}

    dream = imagine(world, agent.behavior, agent.starts(latent), agent.options.horizon, generator)
    inputs, discount = dream.latent.features, 1 - 1 / 333
    con = dream.continues * discount
    value = level.value(inputs)[..., 0].detach()
    returns = lambda_return(dream.reward["extrinsic"], con[:, 1:], value, 0.95)
    low, high = torch.quantile(returns, 0.05), torch.quantile(returns, 0.95)
    mixer = level.mixer
    mixer.updates += 1
    mixer.return_low.copy_(0.99 * mixer.return_low + 0.01 * low)
    mixer.return_high.copy_(0.99 * mixer.return_high + 0.01 * high)
    advantage = (returns - value[:, :-1]) / torch.clamp(mixer.return_high - mixer.return_low, min=1)
    weight, policy = con.cumprod(1)[:, :-1], level.policy(inputs[:, :-1])
    logprob, entropy = level.distribution.logprob(policy, dream.action), level.distribution.entropy(policy)
    losses["policy"] = -weight * (logprob * advantage + 3e-4 * entropy)

    def value_loss(features: Tensor, target: Tensor) -> Tensor:
        logits, slow = level.critic(features), level.slow_value(features)[..., 0].detach()
        return two_hot_loss(logits, [target], [1.0], level.bins) + two_hot_loss(logits, [slow], [1.0], level.bins)

    losses["value"] = weight * value_loss(inputs[:, :-1], returns)
    rows = len(returns) // len(batch.reward)
    reward, ended, last = (x[:, -rows:] for x in (batch.reward, batch.terminal, batch.last))
    target = replay_return(reward, ended, last, returns[:, 0].unflatten(0, reward.shape), discount, 0.95)
    losses["replay"] = (~last[:, :-1]).float() * value_loss(latent.features[:, -rows:-1], target)
    assert losses.keys() == scales.keys()
    return torch.stack([losses[name].mean() * scale for name, scale in scales.items()]).sum()


def published_clipping(agent: Agent, parameter: nn.Parameter, gradient: Tensor) -> Tensor:
    """Adaptive clipping, layer by layer: the reference has one last layer per action key, and for numbers one of means
    and one of deviations."""
    actor, pieces = agent.behavior.worker.actor, 1
    if any(parameter is mine for mine in list(actor)[-1].parameters()):
        pieces = [count for part in agent.behavior.worker.distribution.parts for count in published_layers(part)]
        pieces = torch.tensor(pieces).cumsum(0)[:-1].tolist()
    pairs = zip(parameter.tensor_split(pieces), gradient.tensor_split(pieces), strict=True)
    return torch.cat([g / (g.norm() / (OPTIMIZER.agc * p.norm().clamp(min=1e-3))).clamp(min=1) for p, g in pairs])


def published_layers(part: Distribution) -> list[int]:
    """Widths of the reference's last layers for one key."""
    return [part.size] if isinstance(part, OneHot) else [part.size, part.size]


def published_updates(agent: Agent, batches: list[Batch]) -> None:
    """LaProp with adaptive clipping over all parameters, layer by layer."""
    networks = [agent.world, agent.behavior.worker.actor, agent.behavior.worker.critic]
    parameters = [parameter for network in networks for parameter in network.parameters()]
    momentum, square = ([torch.zeros_like(p) for p in parameters] for _ in range(2))
    for count, batch in enumerate(batches):
        gradients = torch.autograd.grad(published_losses(agent, batch), parameters)
        with torch.no_grad():
            for p, g, m, v in zip(parameters, gradients, momentum, square, strict=True):
                g = published_clipping(agent, p, g)
                v.mul_(0.999).add_(0.001 * g**2)
                m.mul_(0.9).add_(0.1 * g / ((v / (1 - 0.999 ** (count + 1))).sqrt() + OPTIMIZER.eps))
                p -= OPTIMIZER.rate * min(1, count / 2) * m / (1 - 0.9 ** (count + 1))
            networks = agent.behavior.worker.slow_critic.parameters(), agent.behavior.worker.critic.parameters()
            for slow, fast in zip(*networks, strict=True):
                slow += 0.02 * (fast - slow)


def centre(agent: Agent) -> None:
    """Keeps two-hot predictions moderate: far bins are worth 1e8 and would amplify rounding."""
    peak = -0.5 * ((torch.arange(255) - 127) / 6).square()
    for head in (agent.world.reward_head, agent.behavior.worker.critic, agent.behavior.worker.slow_critic):
        list(head)[-1].bias.data += peak


@pytest.mark.parametrize(
    ("observation", "action", "starts"),
    [(VECTORS, CHOICE, 0), (VECTORS, STEER, 3), (VECTORS, CHOICE + STEER, 4), (IMAGE, CHOICE, 4)],
)
def test_three_updates_equal_one_backward_and_one_optimizer(observation, action: ActionSpec, starts: int):
    agents = [make_agent(observation, action, optimizer=OPTIMIZER, starts=starts) for _ in range(2)]
    batches = []
    for seed in range(3):
        batch = make_batch(agents[0].world, action, seed=seed)
        ends = torch.rand(3, 6, generator=torch.Generator().manual_seed(seed)) < 0.2
        first = torch.cat([torch.zeros(3, 1, dtype=torch.bool), ends[:, :-1]], 1)
        batches.append(replace(batch, last=ends, terminal=ends & (batch.reward > 0), first=first))
    for agent in agents:
        shake(agent)
        agent.behavior.worker.slow_critic.load_state_dict(agent.behavior.worker.critic.state_dict())
        centre(agent)
    before = {name: value.clone() for name, value in agents[0].state_dict().items()}
    for batch in batches:
        agents[0].learn(batch)
    published_updates(agents[1], batches)
    for (name, ours), theirs in zip(agents[0].state_dict().items(), agents[1].state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5, msg=lambda text, name=name: f"{name}: {text}")
        assert (ours - before[name]).abs().max() > 1e-4 or name.endswith(
            ("return_low", "return_high", "advantage_std", "started", "entropy_weight")
        ), name


def test_the_critic_is_held_while_its_gradient_trains_the_world():
    with_replay, without = (make_agent(optimizer=OPTIMIZER.model_copy(update={"warmup": 0})) for _ in range(2))
    for agent in (with_replay, without):
        shake(agent)
    without.optimizers["world"].scales["replay_value"] = 0.0
    batch = make_batch(with_replay.world)
    for agent in (with_replay, without):
        agent.learn(batch)
    states = with_replay.state_dict(), without.state_dict()
    differing = {name.split(".")[0] for name in states[0] if not torch.equal(states[0][name], states[1][name])}
    assert differing == {"world"}
