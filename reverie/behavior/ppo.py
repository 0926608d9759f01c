"""Proximal policy optimisation over a judged rollout (Schulman et al. 2017).

Targets are fixed before the first pass. With one epoch and one minibatch the ratio is one everywhere and the gradient
is that of DreamerV3's actor loss: REINFORCE with a baseline, weighted by reachability, plus entropy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from reverie.behavior.actor_critic import ActorCritic, Judgement, ReplayValue
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


def kl_estimate(log_ratio: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """What one action tells of the KL of old and new policy: ``ratio - 1 - log ratio``, never negative (k3, Schulman).

    Beside the exact KL, it shows whether both speak of the same distributions.
    """
    return log_ratio.expm1() - log_ratio


def pieces(counts: tuple[int, ...], parts: int, generator: torch.Generator) -> Iterator[tuple[Tensor | slice, ...]]:
    """Cuts several ranges into ``parts`` shuffled pieces each, and yields them side by side."""
    if parts == 1:
        yield tuple(slice(None) for _ in counts)
        return
    device = generator.device
    shuffled = [torch.randperm(count, generator=generator, device=device).tensor_split(parts) for count in counts]
    yield from zip(*shuffled, strict=True)


def improve(
    level: ActorCritic,
    rollout: Rollout,
    judgement: Judgement,
    replay: ReplayValue | None,
    optimizers: Mapping[str, Optimizer],
    generator: torch.Generator,
    ready: bool | Tensor = True,
    frozen: bool = False,
) -> Metrics:
    """Improves actor and critic from one rollout. ``optimizers`` has ``actor`` and ``critic``.

    The actor stops for this rollout once the exact KL of a minibatch exceeds 1.5 times its target; the critic always
    finishes. Nothing moves unless ``ready``, and the actor of a ``frozen`` level never does. Returns the mean of every
    metric over all minibatches.
    """
    options, distribution = level.options, level.distribution
    inputs, action = rollout.inputs[:, :-1].flatten(0, 1), rollout.action.flatten(0, 1)
    old_policy, old_logprob = rollout.policy.flatten(0, 1), rollout.logprob.flatten()
    weight, advantage = rollout.weight.flatten(), judgement.advantage.flatten()
    returns, slow_value = judgement.returns.flatten(0, 1), judgement.slow_value.flatten(0, 1)
    own = rollout.counted.flatten()

    ready = torch.as_tensor(ready, device=weight.device)
    willing = going = ready & (not frozen)
    history: list[Metrics] = []
    for _ in range(options.epochs):
        counts = len(weight), 0 if replay is None else replay.weight.numel()
        for index, replay_index in pieces(counts, options.minibatches, generator):
            seen = inputs[index]
            policy = level.policy(seen)
            logprob = distribution.logprob(policy, action[index])
            entropy = distribution.entropy(policy)
            gain = surrogate(logprob, old_logprob[index], advantage[index], options.clip)
            policy_loss = -weight[index] * (gain + level.entropy_weight * entropy)
            with torch.no_grad():
                kl = distribution.divergence(old_policy[index], policy).mean()
                log_ratio = logprob - old_logprob[index]
                changes = log_ratio.expm1().abs()
                going = going & (kl <= 1.5 * options.target_kl)
            value_losses = _value_losses(level, seen, returns[index], slow_value[index], replay, replay_index)
            value_losses["value"] = weight[index] * value_losses["value"]

            history.append(
                {
                    f"{level.name}/policy_loss": policy_loss.detach().mean(),
                    f"{level.name}/value_loss": value_losses["value"].detach().mean(),
                    f"{level.name}/entropy": entropy.detach().mean(),
                    f"{level.name}/kl": kl,
                    f"{level.name}/kl_estimate": masked_mean(kl_estimate(log_ratio), own[index]),
                    f"{level.name}/kl_stopped": (willing & ~going).float(),
                    f"{level.name}/clip_fraction": (changes > options.clip).float().mean(),
                    f"{level.name}/ratio_error": changes.max(),
                }
                | optimizers["actor"].step({"policy": policy_loss}, when=going)
                | optimizers["critic"].step(value_losses, when=ready)
            )
    metrics = {name: torch.stack([entry[name] for entry in history]).mean() for name in history[0]}
    return metrics | {f"{level.name}/ratio_first": history[0][f"{level.name}/ratio_error"]}


def _value_losses(
    level: ActorCritic,
    seen: Float[Tensor, "n I"],
    returns: Float[Tensor, "n Q"],
    slow_value: Float[Tensor, "n Q"],
    replay: ReplayValue | None,
    replay_index: Tensor | slice,
) -> dict[str, Tensor]:
    """The critic's losses, one number per edge and per replayed step, in one pass over both."""
    if replay is None:
        return {"value": level.value_loss(seen, returns, slow_value).sum(-1)}
    real, streams = replay.pick(replay_index), returns.shape[-1]
    # Replayed steps know the first stream alone; what the others' heads say about them does not count.
    target, slow = (field[:, None].expand(-1, streams) for field in (real.target, real.slow_value))
    judged = level.value_loss(
        torch.cat([seen, real.inputs]), torch.cat([returns, target]), torch.cat([slow_value, slow])
    )
    on_dream, on_replay = judged.split([len(seen), len(real.weight)])
    return {"value": on_dream.sum(-1), "replay_value": real.weight * on_replay[:, 0]}
