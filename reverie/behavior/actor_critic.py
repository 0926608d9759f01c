"""One level of the behavior: a policy, a two-hot critic per reward stream with its slow copy, and their mixer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn

from reverie.behavior.mixer import Mixer
from reverie.behavior.objective import CONFIGURED, ObjectiveOptions, learned_objective
from reverie.behavior.streams import TASK, Stream
from reverie.compilation import compiled
from reverie.functional import adapt, lambda_return, replay_return, two_hot_bins
from reverie.nets import two_hot
from reverie.nets.distributions import ActionDistribution
from reverie.nets.layers import MLP
from reverie.options import Options
from reverie.types import Batch, Metrics, Rollout


class BehaviorOptions(Options):
    """What actor and critic look like and how they learn from dreams."""

    layers: int = Field(default=3, ge=1, le=64)
    """Hidden layers of actor and critic."""
    unimix: float = Field(default=0.01, ge=0, lt=1)
    """Share of the uniform distribution in every discrete action, as in the paper. The reference's code has this option
    too, but its discrete actors ignore it, so 0 is what it does."""
    horizon: float = Field(default=333, gt=1)
    """Discount as an effective number of steps: 1 - 1/horizon."""
    return_lambda: float = Field(default=0.95, ge=0, le=1)
    """Lambda of the return: 0 trusts the critic after one step, 1 only at the end of the dream."""
    task_weight: float = Field(default=1.0, ge=0)
    """Weight of the task's reward. With 0 an agent explores without it; what the task would have paid is still learned
    and shown."""
    entropy: float = Field(default=3e-4, ge=0)
    """Weight of the policy's entropy."""
    epochs: int = Field(default=2, ge=1, le=1000)
    """Passes over a dream; 1 with one minibatch is the published actor loss."""
    minibatches: int = Field(default=4, ge=1)
    """Minibatches per pass."""
    clip: float = Field(default=0.2, gt=0)
    """PPO clips the probability ratio to 1 -+ clip."""
    target_kl: float = Field(default=0.02, gt=0)
    """The actor stops learning from a dream once the mean exact KL of a minibatch exceeds 1.5 times this."""
    entropy_target: float | None = Field(default=None, gt=0, lt=1)
    """Where given, the weight of the entropy is adapted until the entropy is at this share of its range."""
    return_rate: float = Field(default=0.01, gt=0, le=1)
    """Rate at which the 5 % and 95 % percentiles of returns are averaged."""
    return_floor: float | None = Field(default=None, gt=0)
    """Least spread of returns that advantages are divided by; left out, 1, and 0.05 for the levels of a hierarchy."""
    slow_rate: float = Field(default=0.02, gt=0, le=1)
    """Rate at which the slow critic follows the critic."""
    slow_scale: float = Field(default=1.0, ge=0)
    """Weight of the pull towards the slow critic's prediction."""
    value_scale: float = Field(default=1.0, ge=0)
    """Weight of the critic's loss on dreams."""
    replay_value_scale: float = Field(default=0.3, ge=0)
    """Weight of the critic's loss on replayed steps; its gradient reaches the world model."""
    objective: ObjectiveOptions = ObjectiveOptions()
    """Which numbers of the policy's objective are learned."""


class PointValues(NamedTuple):
    """What a critic expects at every point of a rollout, and where `Rollout.after` is given there too."""

    inside: Float[Tensor, "R points Q"]
    after: Float[Tensor, "N Q"] | None


@dataclass(frozen=True)
class Targets:
    """What actor and critic learn from a rollout, fixed before either does."""

    returns: Float[Tensor, "R L Q"]
    advantage: Float[Tensor, "R L"]
    """Of all streams together, already scaled."""
    slow_value: Float[Tensor, "R L Q"]
    critic_weight: Float[Tensor, "Q"]
    """How much the critic's errors in each stream count."""
    metrics: Metrics


@dataclass(frozen=True)
class ReplayValue:
    """Targets for the critic of the task's stream on replayed steps. ``inputs`` carry the world model's gradient."""

    inputs: Float[Tensor, "*batch I"]
    target: Float[Tensor, "*batch"]
    slow_value: Float[Tensor, "*batch"]
    weight: Float[Tensor, "*batch"]


class ActorCritic(nn.Module):
    """``inputs`` [..., I] are latent features, and for a worker its goal.

    ``policy`` gives distribution parameters, ``value`` the expected return of every stream. ``task`` is the column of
    the environment's own reward, None where the level is not paid for it.
    """

    entropy_weight: Tensor
    bins: Tensor

    def __init__(
        self,
        name: str,
        options: BehaviorOptions,
        inputs: int,
        distribution: ActionDistribution,
        streams: Mapping[str, Stream],
        *,
        units: int,
        bins: int,
        group: str = "",
        normalised: bool = False,
    ):
        """``name`` begins the names of metrics, ``group`` those of the optimizers; ``normalised`` is the mixer's."""
        super().__init__()
        self.group = group
        self.name, self.options, self.streams, self.distribution = name, options, dict(streams), distribution
        self.task = list(streams).index(TASK) if TASK in streams else None
        self.discount, count = 1.0 - 1.0 / options.horizon, len(streams)
        self.actor = MLP(inputs, units, options.layers, distribution.outputs, scale=0.01)
        self.critic = MLP(inputs, units, options.layers, count * bins, scale=0.0)
        self.slow_critic = deepcopy(self.critic).requires_grad_(False)
        self.register_buffer("bins", two_hot_bins(bins), persistent=False)
        self.mixer = Mixer(streams, options.return_rate, normalised)
        self.register_buffer("entropy_weight", torch.tensor(options.entropy))
        free_entropy = options.entropy if options.entropy_target is None else 0.0
        self.objective = learned_objective(options.objective, streams, free_entropy, options.return_lambda)

    def policy(self, inputs: Float[Tensor, "*batch I"]) -> Float[Tensor, "*batch P"]:
        """Parameters of `distribution`."""
        return self.actor(inputs)

    @property
    def numbers(self) -> Mapping[str, Tensor]:
        """The learned numbers of the objective, as they are now."""
        return CONFIGURED if self.objective is None else self.objective.numbers()

    @property
    def learns_from_replay(self) -> bool:
        """Whether replayed steps train the critic too: they say something of the task alone."""
        return self.task is not None and self.options.replay_value_scale > 0

    @compiled
    def value(self, inputs: Float[Tensor, "*batch I"]) -> Float[Tensor, "*batch Q"]:
        """The return expected after each point."""
        return two_hot.predict(self.critic, inputs, self.bins)

    @compiled
    def slow_value(self, inputs: Float[Tensor, "*batch I"]) -> Float[Tensor, "*batch Q"]:
        """The same by the slow critic."""
        return two_hot.predict(self.slow_critic, inputs, self.bins)

    @compiled
    def value_loss(
        self,
        inputs: Float[Tensor, "*batch I"],
        target: Float[Tensor, "*batch Q"],
        slow_value: Float[Tensor, "*batch Q"],
    ) -> Float[Tensor, "*batch Q"]:
        """Cross-entropy towards the return, plus a pull towards the slow critic."""
        targets, weights = [target, slow_value], [1.0, self.options.slow_scale]
        logits = self.critic(inputs).unflatten(-1, (len(self.streams), len(self.bins)))
        return two_hot.loss(logits, targets, weights, self.bins)

    @torch.no_grad()
    def compute_targets(self, rollout: Rollout) -> Targets:
        """Lambda-returns of every stream, and one advantage. Updates the scales."""
        values = self.point_values(rollout)
        numbers = self.numbers
        returns = self.returns(rollout, values)
        judged = self.returns(rollout, values, numbers) if numbers else returns
        critic_weight = self.mixer.critic_weight
        advantage, metrics = self.mixer.mix(rollout, judged, values.inside[:, :-1], numbers)
        metrics = {f"{self.name}/{name}": number for name, number in metrics.items()}
        return Targets(returns, advantage, self.slow_value(rollout.inputs)[:, :-1], critic_weight, metrics)

    def point_values(self, rollout: Rollout) -> PointValues:
        """What the critic expects of a rollout."""
        return PointValues(self.value(rollout.inputs), None if rollout.after is None else self.value(rollout.after))

    def returns(
        self, rollout: Rollout, values: PointValues, numbers: Mapping[str, Tensor] = CONFIGURED
    ) -> Float[Tensor, "R L Q"]:
        """A stream that ends with its goal ends with its rollout, any other goes through all pieces of a dream.

        ``numbers``, those that are learned, take the place of lambda and of the task's discount.
        """
        value, joined, found = values.inside, values.inside, []
        if values.after is not None:
            points = value[:, :-1].reshape(len(values.after), -1, value.shape[-1])
            joined = torch.cat([points, values.after[:, None]], 1)
        for i, stream in enumerate(self.streams.values()):
            reward, discount, expected = rollout.reward[..., i], rollout.discount[..., i], value[..., i]
            if not stream.episodic:  # after the episode's end a new one follows
                assert rollout.ended is not None
                reward = reward + rollout.ended[..., i] * expected[:, 0].mean()
            if "discount" in numbers and i == self.task:
                steps = math.log(rollout.sure_discount[i]) / math.log(stream.discount)
                discount = discount * (numbers["discount"] / stream.discount) ** steps
            if not stream.ends_with_goal:
                expected = joined[..., i]
                reward, discount = (edges.reshape(len(expected), -1) for edges in (reward, discount))
            lam = numbers.get("return_lambda", self.options.return_lambda)
            lam = lam.expand_as(reward) if isinstance(lam, Tensor) else lam
            found.append(lambda_return(reward, discount, expected, lam).view(rollout.weight.shape))
        return torch.stack(found, -1)

    def advantage(self, rollout: Rollout, values: PointValues, numbers: Mapping[str, Tensor]) -> Float[Tensor, "R L"]:
        """That of all streams together by the scales of now, which stay; differentiable by ``numbers``."""
        return self.mixer.advantage(self.returns(rollout, values, numbers) - values.inside[:, :-1], numbers)

    def replay_value(self, features: Float[Tensor, "B T F"], batch: Batch, returns: Float[Tensor, "N"]) -> ReplayValue:
        """Targets of the task on the last N / B replayed steps of each sequence, the rows from which dreams started.

        ``returns``, what was imagined from each row, bootstrap the replayed ones; the step before an episode's seam has
        weight 0.
        """
        last_rows = slice(-(len(returns) // len(batch.reward)), None)
        inputs = features[:, last_rows]
        last: Bool[Tensor, "B K"] = batch.last[:, last_rows]
        target = replay_return(
            batch.reward[:, last_rows],
            batch.terminal[:, last_rows],
            last,
            returns.unflatten(0, inputs.shape[:2]),
            self.discount,
            self.options.return_lambda,
        )
        inputs = inputs[:, :-1]
        with torch.no_grad():
            slow_value = self.slow_value(inputs)[..., self.task]
        return ReplayValue(inputs, target, slow_value, (~last[:, :-1]).float())

    def replay_value_loss(self, replay: ReplayValue) -> Float[Tensor, "*batch"]:
        """One number per replayed step."""
        target, slow = (
            field[..., None].expand(*field.shape, len(self.streams)) for field in (replay.target, replay.slow_value)
        )
        return replay.weight * self.value_loss(replay.inputs, target, slow)[..., self.task]

    @torch.no_grad()
    def update_slow_critic(self) -> None:
        """Moves it towards the critic; once per learning step."""
        pair = self.slow_critic, self.critic
        slow, fast = ([parameter.detach() for parameter in critic.parameters()] for critic in pair)
        torch._foreach_lerp_(slow, fast, self.options.slow_rate)

    @torch.no_grad()
    def adapt_entropy(self, rollout: Rollout, allowed: Bool[Tensor, ""]) -> Metrics:
        """Moves the entropy's weight by the entropy of the policy that acted, where the policy is ``allowed`` to learn.

        Once per learning step.
        """
        share = self.distribution.entropy_share(rollout.policy).mean()
        if self.options.entropy_target is None:
            return {f"{self.name}/entropy_share": share}
        adapted = adapt(self.entropy_weight, self.options.entropy_target / share, *ENTROPY_WEIGHT)
        self.entropy_weight.copy_(torch.where(allowed, adapted, self.entropy_weight))
        return {f"{self.name}/entropy_share": share, f"{self.name}/entropy_weight": self.entropy_weight.clone()}


ENTROPY_WEIGHT = 1e-5, 1e2
"""Bounds on a weight that is adapted."""
