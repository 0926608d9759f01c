"""Proximal policy optimisation over a rollout (Schulman et al. 2017).

Targets are fixed before the first pass. With one epoch and one minibatch the ratio is one everywhere and the gradient
is that of DreamerV3's actor loss: REINFORCE with a baseline, weighted by reachability, plus entropy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from reverie.behavior.actor_critic import ActorCritic, ReplayValue, Targets
from reverie.behavior.meta_gradient import learn_objective
from reverie.compilation import compiled
from reverie.functional import masked_mean
from reverie.optim import Optimizer
from reverie.types import Metrics, Rollout


def surrogate(
    logprob: Float[Tensor, "*batch"],
    old_logprob: Float[Tensor, "*batch"],
    advantage: Float[Tensor, "*batch"],
    clip: float,
) -> Float[Tensor, "*batch"]:
    """The clipped objective, to be maximised."""
    ratio = torch.exp(logprob - old_logprob)
    return torch.minimum(ratio * advantage, ratio.clamp(1.0 - clip, 1.0 + clip) * advantage)


@compiled
def policy_losses(
    level: ActorCritic,
    inputs: Float[Tensor, "n I"],
    action: Float[Tensor, "n A"],
    old_policy: Float[Tensor, "n P"],
    old_logprob: Float[Tensor, "n"],
    advantage: Float[Tensor, "n"],
    weight: Float[Tensor, "n"],
) -> tuple[Float[Tensor, "n"], ...]:
    """The loss of every edge, and without gradient: entropy, exact KL from the old policy, logarithm of the ratio."""
    policy, distribution = level.policy(inputs), level.distribution
    logprob, entropy = distribution.logprob(policy, action), distribution.entropy(policy)
    gain = surrogate(logprob, old_logprob, advantage, level.options.clip)
    loss = -weight * (gain + level.entropy_weight * entropy)
    with torch.no_grad():
        divergence = distribution.divergence(old_policy, policy)
    return loss, entropy.detach(), divergence, (logprob - old_logprob).detach()


def kl_estimate(log_ratio: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """What one action tells of the KL of old and new policy: ``ratio - 1 - log ratio``, never negative (k3, Schulman).

    Beside the exact KL, it shows whether both speak of the same distributions.
    """
    return log_ratio.expm1() - log_ratio


def ratio_metrics(log_ratio: Float[Tensor, "n"], counted: Bool[Tensor, "n"], clip: float) -> Metrics:
    """KL estimate and clip fraction over the edges that count, and how far any ratio is from one."""
    change = log_ratio.expm1().abs()
    told = torch.stack([kl_estimate(log_ratio), (change > clip).float()], -1)
    estimate, clipped = masked_mean(told, counted).unbind()
    return {"kl_estimate": estimate, "clip_fraction": clipped, "ratio_error": change.max()}


def minibatches(
    counts: tuple[int, ...], parts: int, generator: torch.Generator
) -> Iterator[tuple[Tensor | slice, ...]]:
    """Cuts several ranges into ``parts`` shuffled minibatches each.

    Yields side by side one minibatch of each, and last the same numbers in all ranges laid end to end.
    """
    if parts == 1:
        yield (slice(None),) * (len(counts) + 1)
        return
    device = generator.device
    shuffled = [torch.randperm(count, generator=generator, device=device).tensor_split(parts) for count in counts]
    begins = [0, *accumulate(counts[:-1])]
    for cut in zip(*shuffled, strict=True):
        yield *cut, torch.cat([begin + piece for begin, piece in zip(begins, cut, strict=True)])


def rows(values: Shaped[Tensor, "n *columns"], index: Tensor | slice) -> Shaped[Tensor, "m *columns"]:
    """Those of a minibatch. Indexing would look at every number of a row: on a CPU that takes several times as long."""
    return values if isinstance(index, slice) else values.index_select(0, index)


def improve(
    level: ActorCritic,
    rollout: Rollout,
    targets: Targets,
    replay: ReplayValue | None,
    optimizers: Mapping[str, Optimizer],
    generator: torch.Generator,
    ready: bool | Tensor = True,
    frozen: bool = False,
) -> Metrics:
    """Improves actor and critic from one rollout. ``optimizers`` has ``actor`` and ``critic``.

    The actor stops for this rollout once the exact KL of a minibatch exceeds 1.5 times its target; the critic always
    finishes. Nothing moves unless ``ready``, and the actor of a ``frozen`` level never does. Returns the mean of every
    metric over the minibatches of actor and critic, each measured before its step and up to the one where it stopped,
    the first always; clip fraction and KL estimate are of the level's own actions.
    """
    options = level.options
    inputs, target, slow_value = critic_batch(rollout, targets, replay)
    action, old_policy = rollout.action.flatten(0, 1), rollout.policy.flatten(0, 1)
    old_logprob, own = rollout.logprob.flatten(), rollout.counted.flatten()
    weight, advantage = rollout.weight.flatten(), targets.advantage.flatten()

    ready = torch.as_tensor(ready, device=weight.device)
    allowed = active = ready & (not frozen)
    objective: Metrics = {}
    if level.objective is not None:
        objective = learn_objective(level, level.objective, rollout, optimizers["actor"], generator, allowed)
    actor, critic, stopped = Means(), Means(), []
    for _ in range(options.epochs):
        counts = len(weight), 0 if replay is None else replay.weight.numel()
        for index, replayed, both in minibatches(counts, options.minibatches, generator):
            seen, weighed, counted = rows(inputs, both), rows(weight, index), rows(own, index)
            edges = len(weighed)
            if actor.wants(active):
                before = active
                experience = (rows(field, index) for field in (action, old_policy, old_logprob, advantage))
                policy_loss, entropy, kl, log_ratio = policy_losses(level, seen[:edges], *experience, weighed)
                active = active & (kl.mean() <= 1.5 * options.target_kl)
                moved = optimizers["actor"].step({"policy": policy_loss}, when=active, fresh=not actor.rows)
                means = {"policy_loss": policy_loss.detach().mean(), "entropy": entropy.mean(), "kl": kl.mean()}
                measured = means | ratio_metrics(log_ratio, counted, options.clip)
                actor.add({f"{level.name}/{name}": value for name, value in measured.items()} | moved, before)
            stopped.append((allowed & ~active).float())
            if critic.wants(ready):
                errors = level.value_loss(seen, rows(target, both), rows(slow_value, both))
                losses = {"value": weighed * (targets.critic_weight * errors[:edges]).sum(-1)}
                if replay is not None:
                    losses["replay_value"] = rows(replay.weight.flatten(), replayed) * errors[edges:, level.task]
                moved = optimizers["critic"].step(losses, when=ready, fresh=not critic.rows)
                critic.add({f"{level.name}/value_loss": losses["value"].detach().mean()} | moved, ready)
    return (
        {f"{level.name}/kl_stopped": torch.stack(stopped).mean()}
        | {f"{level.name}/ratio_first": actor.first[f"{level.name}/ratio_error"]}
        | actor.result()
        | critic.result()
        | objective
    )


class Means:
    """Of what is measured at each minibatch: at the first, and wherever learning still goes on."""

    def __init__(self) -> None:
        self.rows: list[Metrics] = []
        self.counted: list[Tensor] = []

    @property
    def first(self) -> Metrics:
        return self.rows[0]

    def wants(self, active: Tensor) -> bool:
        """Whether a minibatch is worth its pass. A GPU is not asked, for that waits; its optimizer drops the step."""
        return not self.rows or not active.is_cpu or bool(active)

    def add(self, metrics: Metrics, active: Tensor) -> None:
        self.counted.append(active if self.rows else torch.ones_like(active))
        self.rows.append(metrics)

    def result(self) -> Metrics:
        if len(self.rows) == 1:
            return dict(self.first)
        table = torch.stack([torch.stack([*row.values()]) for row in self.rows])
        return dict(zip(self.first, masked_mean(table, torch.stack(self.counted)).unbind(), strict=True))


def critic_batch(rollout: Rollout, targets: Targets, replay: ReplayValue | None) -> tuple[Tensor, Tensor, Tensor]:
    """What the critic is shown, its targets and the slow critic's values: [n, ...] of all edges, then replayed steps.

    Replayed steps know the task's stream alone; what the other heads say about them must not count.
    """
    parts = [(rollout.inputs[:, :-1], targets.returns, targets.slow_value)]
    if replay is not None:
        shape = *replay.weight.shape, targets.returns.shape[-1]
        target, slow_value = (field[..., None].expand(shape) for field in (replay.target, replay.slow_value))
        parts.append((replay.inputs.detach(), target, slow_value))
    inputs, target, slow_value = map(_in_line, zip(*parts, strict=True))
    return inputs, target, slow_value


def _in_line(parts: Sequence[Tensor]) -> Tensor:
    """Tensors [..., W] as one [n, W], copied once: nothing in an update is larger than the inputs of a dream."""
    counts = [part.shape[:-1].numel() for part in parts]
    whole = parts[0].new_empty(sum(counts), parts[0].shape[-1])
    for place, part in zip(whole.split(counts), parts, strict=True):
        place.view_as(part).copy_(part)
    return whole
