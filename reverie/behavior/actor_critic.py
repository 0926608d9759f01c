"""One level of the behavior: a policy, a two-hot critic with its slow copy, and the scale of its returns."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn

from reverie.functional import lambda_return, replay_return, two_hot_bins, two_hot_logit, two_hot_mean
from reverie.nets.distributions import ActionDistribution
from reverie.nets.layers import MLP
from reverie.types import ActionSpec, Batch, Metrics, Options, Rollout


class BehaviorOptions(Options):
    """What actor and critic look like and how they learn from dreams."""

    layers: int = Field(default=3, ge=1)
    """Hidden layers of actor and critic."""
    unimix: float = Field(default=0.01, ge=0, lt=1)
    """Share of the uniform distribution in every discrete action."""
    horizon: float = Field(default=333, gt=1)
    """Discount as an effective number of steps: 1 - 1/horizon."""
    mix: float = Field(default=0.95, ge=0, le=1)
    """Lambda of the return: 0 trusts the critic after one step, 1 only at the end of the dream."""
    entropy: float = Field(default=3e-4, ge=0)
    """Weight of the policy's entropy."""
    epochs: int = Field(default=2, ge=1)
    """Passes over a dream; 1 with one minibatch is the published actor loss."""
    minibatches: int = Field(default=4, ge=1)
    """Pieces per pass."""
    clip: float = Field(default=0.2, gt=0)
    """PPO clips the probability ratio to 1 -+ clip."""
    target_kl: float = Field(default=0.02, gt=0)
    """The actor stops learning from a dream once the mean exact KL of a minibatch exceeds 1.5 times this."""
    return_rate: float = Field(default=0.01, gt=0, le=1)
    """Rate at which the 5 % and 95 % percentiles of returns are averaged."""
    slow_rate: float = Field(default=0.02, gt=0, le=1)
    """Rate at which the slow critic follows the critic."""
    slow_scale: float = Field(default=1.0, ge=0)
    """Weight of the pull towards the slow critic's prediction."""
    value_scale: float = Field(default=1.0, ge=0)
    """Weight of the critic's loss on dreams."""
    replay_value_scale: float = Field(default=0.3, ge=0)
    """Weight of the critic's loss on replayed steps; its gradient reaches the world model."""


@dataclass(frozen=True)
class Judgement:
    """What a rollout is worth, fixed before anybody learns from it."""

    returns: Float[Tensor, "R L"]
    advantage: Float[Tensor, "R L"]
    """Already divided by the scale of returns."""
    slow_value: Float[Tensor, "R L"]


@dataclass(frozen=True)
class ReplayValue:
    """Targets for the critic on replayed steps. ``inputs`` carry the world model's gradient."""

    inputs: Float[Tensor, "*batch I"]
    target: Float[Tensor, "*batch"]
    slow_value: Float[Tensor, "*batch"]
    weight: Float[Tensor, "*batch"]

    def pick(self, index: Tensor | slice) -> ReplayValue:
        """Some rows of all steps in a line, without gradient."""
        fields = self.inputs.detach().flatten(0, -2), self.target, self.slow_value, self.weight
        return ReplayValue(fields[0][index], *(field.flatten()[index] for field in fields[1:]))


class ActorCritic(nn.Module):
    """``inputs`` [..., I] are latent features; ``policy`` gives distribution parameters, ``value`` expected returns."""

    return_low: Tensor
    return_high: Tensor
    bins: Tensor

    def __init__(self, options: BehaviorOptions, inputs: int, action: ActionSpec, units: int, bins: int):
        super().__init__()
        self.options, self.discount = options, 1.0 - 1.0 / options.horizon
        self.distribution = ActionDistribution(action, options.unimix)
        self.actor = MLP(inputs, units, options.layers, self.distribution.parameters, scale=0.01)
        self.critic = MLP(inputs, units, options.layers, bins, scale=0.0)
        self.slow_critic = deepcopy(self.critic).requires_grad_(False)
        self.register_buffer("bins", two_hot_bins(bins), persistent=False)
        self.register_buffer("return_low", torch.zeros(()))
        self.register_buffer("return_high", torch.zeros(()))

    def policy(self, inputs: Float[Tensor, "*batch I"]) -> Float[Tensor, "*batch P"]:
        """Parameters of `distribution`."""
        return self.actor(inputs)

    def value(self, inputs: Float[Tensor, "*batch I"]) -> Float[Tensor, "*batch"]:
        """The return expected after each point."""
        return two_hot_mean(self.critic(inputs), self.bins)

    def slow_value(self, inputs: Float[Tensor, "*batch I"]) -> Float[Tensor, "*batch"]:
        """The slow critic's opinion."""
        return two_hot_mean(self.slow_critic(inputs), self.bins)

    def value_loss(
        self,
        inputs: Float[Tensor, "*batch I"],
        target: Float[Tensor, "*batch"],
        slow_value: Float[Tensor, "*batch"],
    ) -> Float[Tensor, "*batch"]:
        """Cross-entropy towards the return, plus a pull towards the slow critic."""
        logits, pull = self.critic(inputs), self.options.slow_scale
        # Two cross-entropies of the same logits share one normaliser.
        picked = two_hot_logit(logits, target, self.bins) + pull * two_hot_logit(logits, slow_value, self.bins)
        return (1.0 + pull) * torch.logsumexp(logits, -1) - picked

    @torch.no_grad()
    def judge(self, rollout: Rollout) -> tuple[Judgement, Metrics]:
        """Lambda-returns, and advantages over the spread of recent returns (DreamerV3, eq. 7). Updates that spread."""
        value = self.value(rollout.inputs)
        returns = lambda_return(rollout.reward, rollout.discount, value, self.options.mix)
        low, high = torch.quantile(returns.flatten(), torch.tensor([0.05, 0.95], device=returns.device))
        self.return_low.lerp_(low, self.options.return_rate)
        self.return_high.lerp_(high, self.options.return_rate)
        scale = (self.return_high - self.return_low).clamp(min=1.0)
        advantage = (returns - value[:, :-1]) / scale
        unexplained = (returns - value[:, :-1]).var() / returns.var().clamp(min=1e-8)
        metrics = {
            "policy/return": returns.mean(),
            "policy/value": value.mean(),
            "policy/return_scale": scale,
            "policy/advantage_std": advantage.std(),
            "policy/explained_variance": 1.0 - unexplained,
            "policy/dream_reward": rollout.reward.mean(),
        }
        return Judgement(returns, advantage, self.slow_value(rollout.inputs[:, :-1])), metrics

    def replay_value(
        self, features: Float[Tensor, "B T F"], batch: Batch, returns: Float[Tensor, "R L"]
    ) -> ReplayValue:
        """Targets on the last K replayed steps of each sequence, K = R / B, the rows from which dreams started.

        The imagined return of each row bootstraps the replayed one; the step before an episode's seam has weight 0.
        """
        last_rows = slice(-(returns.shape[0] // batch.reward.shape[0]), None)
        inputs = features[:, last_rows]
        last: Bool[Tensor, "B K"] = batch.last[:, last_rows]
        target = replay_return(
            batch.reward[:, last_rows],
            batch.terminal[:, last_rows],
            last,
            returns[:, 0].unflatten(0, inputs.shape[:2]),
            self.discount,
            self.options.mix,
        )
        with torch.no_grad():
            slow_value = self.slow_value(inputs[:, :-1])
        return ReplayValue(inputs[:, :-1], target, slow_value, (~last[:, :-1]).float())

    def replay_value_loss(self, replay: ReplayValue) -> Float[Tensor, "*batch"]:
        """One number per replayed step."""
        return replay.weight * self.value_loss(replay.inputs, replay.target, replay.slow_value)

    @torch.no_grad()
    def follow(self) -> None:
        """Moves the slow critic towards the critic; once per learning step."""
        for slow, fast in zip(self.slow_critic.parameters(), self.critic.parameters(), strict=True):
            slow.lerp_(fast, self.options.slow_rate)
