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
    replay: ReplayValue,
    optimizers: Mapping[str, Optimizer],
    generator: torch.Generator,
) -> Metrics:
    """Improves actor and critic from one rollout. ``optimizers`` has ``actor`` and ``critic``.

    The actor stops for this rollout once the exact KL of a minibatch exceeds 1.5 times its target; the critic always
    finishes. Returns the mean of every metric over all minibatches.
    """
    options, distribution = level.options, level.distribution
    inputs, action = rollout.inputs[:, :-1].flatten(0, 1), rollout.action.flatten(0, 1)
    old_policy, old_logprob = rollout.policy.flatten(0, 1), rollout.logprob.flatten()
    weight, advantage = rollout.weight.flatten(), judgement.advantage.flatten()
    returns, slow_value = judgement.returns.flatten(), judgement.slow_value.flatten()

    going, history = torch.ones((), dtype=torch.bool, device=weight.device), []
    for _ in range(options.epochs):
        for index, replay_index in pieces((len(weight), replay.weight.numel()), options.minibatches, generator):
            seen = inputs[index]
            policy = level.policy(seen)
            logprob = distribution.logprob(policy, action[index])
            entropy = distribution.entropy(policy)
            gain = surrogate(logprob, old_logprob[index], advantage[index], options.clip)
            policy_loss = -weight[index] * (gain + options.entropy * entropy)
            with torch.no_grad():
                kl = distribution.divergence(old_policy[index], policy).mean()
                ratio = torch.exp(logprob - old_logprob[index])
                going = going & (kl <= 1.5 * options.target_kl)
            # One pass of the critic over imagined and replayed steps.
            real = replay.pick(replay_index)
            judged = level.value_loss(
                torch.cat([seen, real.inputs]),
                torch.cat([returns[index], real.target]),
                torch.cat([slow_value[index], real.slow_value]),
            )
            on_dream, on_replay = judged.split([len(policy), len(real.weight)])
            value_loss, replay_loss = weight[index] * on_dream, real.weight * on_replay

            history.append(
                {
                    "policy/policy_loss": policy_loss.detach().mean(),
                    "policy/value_loss": value_loss.detach().mean(),
                    "policy/entropy": entropy.detach().mean(),
                    "policy/kl": kl,
                    "policy/kl_stopped": (~going).float(),
                    "policy/clip_fraction": ((ratio - 1.0).abs() > options.clip).float().mean(),
                    "policy/ratio_error": (ratio - 1.0).abs().max(),
                }
                | optimizers["actor"].step({"policy": policy_loss}, when=going)
                | optimizers["critic"].step({"value": value_loss, "replay_value": replay_loss})
            )
    metrics = {name: torch.stack([entry[name] for entry in history]).mean() for name in history[0]}
    return metrics | {"policy/ratio_first": history[0]["policy/ratio_error"]}
