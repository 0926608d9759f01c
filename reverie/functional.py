"""The formulas of the papers as pure functions of tensors: no module, no option, no state.

Each has hand-worked numbers in ``tests/test_functional.py``. Randomness enters as an argument: a tensor of
uniform numbers, so that a caller decides where they come from and a compiled graph holds no generator.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def symlog(x: Tensor) -> Tensor:
    """``sign(x) ln(1 + |x|)``: the identity near zero, a logarithm far from it (DreamerV3, eq. 9)."""
    return torch.sign(x) * torch.log1p(torch.abs(x))


def symexp(x: Tensor) -> Tensor:
    """The inverse of `symlog`."""
    return torch.sign(x) * torch.expm1(torch.abs(x))


# --- Two-hot regression on exponentially spaced bins (DreamerV3, eq. 10) ---------------------------------------


def two_hot_bins(count: int) -> Float[Tensor, "count"]:
    """``count`` (odd) bins, symexp-spaced over symexp(-20) to symexp(20) and antisymmetric bit for bit."""
    if count % 2 == 0:
        raise ValueError(f"two-hot needs an odd number of bins so that one of them is zero, got {count}")
    left = symexp(torch.linspace(-20.0, 0.0, count // 2 + 1))
    return torch.cat([left, -left[:-1].flip(0)])


def two_hot_mean(logits: Float[Tensor, "*batch K"], bins: Float[Tensor, "K"]) -> Float[Tensor, "*batch"]:
    """The expected bin. Mirrored bins are paired before the sum, so uniform logits give exactly zero."""
    probs = torch.softmax(logits, -1)
    middle = bins.shape[0] // 2
    return ((probs.flip(-1)[..., :middle] - probs[..., :middle]) * -bins[:middle]).sum(-1)


def two_hot_logit(
    logits: Float[Tensor, "*batch K"], target: Float[Tensor, "*batch"], bins: Float[Tensor, "K"]
) -> Float[Tensor, "*batch"]:
    """The logit expected under the two bins around ``target``, weighted linearly by raw distance."""
    below = (torch.searchsorted(bins, target.contiguous(), right=True) - 1).clamp(0, bins.shape[0] - 2)
    low, high = bins[below], bins[below + 1]
    share = ((target - low) / (high - low)).clamp(0.0, 1.0)  # of the upper bin; the clamp serves targets out of range
    logit_below = logits.gather(-1, below[..., None]).squeeze(-1)
    logit_above = logits.gather(-1, below[..., None] + 1).squeeze(-1)
    return torch.lerp(logit_below, logit_above, share)


def two_hot_loss(
    logits: Float[Tensor, "*batch K"],
    targets: Sequence[Float[Tensor, "*batch"]],
    weights: Sequence[float],
    bins: Float[Tensor, "K"],
) -> Float[Tensor, "*batch"]:
    """Cross-entropies of the softmax against two-hot targets, summed by weight; they share one normaliser."""
    around = [weight * two_hot_logit(logits, target, bins) for target, weight in zip(targets, weights, strict=True)]
    return sum(weights) * torch.logsumexp(logits, -1) - torch.stack(around).sum(0)


# --- Categorical latents and actions -------------------------------------------------------------------------------


def softmax(logits: Float[Tensor, "*batch C"]) -> Float[Tensor, "*batch C"]:
    """Over the last axis. CPUs take few classes up to ten times faster from the first axis."""
    if logits.device.type == "cpu" and logits.shape[-1] <= 8:
        return torch.softmax(logits.movedim(-1, 0), 0).movedim(0, -1)
    return torch.softmax(logits, -1)


def mixed_probs(logits: Float[Tensor, "*batch C"], unimix: float) -> Float[Tensor, "*batch C"]:
    """The softmax, mixed with a share ``unimix`` of the uniform distribution."""
    return (1.0 - unimix) * softmax(logits) + unimix / logits.shape[-1]


def mixed_log_probs(logits: Float[Tensor, "*batch C"], unimix: float) -> Float[Tensor, "*batch C"]:
    """The logarithm of `mixed_probs`, finite also without mixing."""
    return torch.log(mixed_probs(logits, unimix)) if unimix else torch.log_softmax(logits, -1)


def sample_one_hot(probs: Float[Tensor, "*batch C"], uniform: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch C"]:
    """One-hot samples by inverting the cumulative distribution: one uniform number in [0, 1) per sample."""
    cumulative = probs.detach().cumsum(-1)
    index = (cumulative[..., :-1] <= uniform[..., None] * cumulative[..., -1:]).sum(-1)
    return one_hot(index, probs.shape[-1])


def one_hot(index: Int[Tensor, "*batch"], classes: int) -> Float[Tensor, "*batch {classes}"]:
    """One-hot rows; an index outside ``0..classes-1`` gives a row of zeros."""
    return (index[..., None] == torch.arange(classes, device=index.device)).float()


def straight_through(probs: Float[Tensor, "*batch C"], uniform: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch C"]:
    """Samples that are exactly one-hot forward and pass the gradient of the probabilities backward."""
    return sample_one_hot(probs, uniform) + (probs - probs.detach())


def categorical_kl(log_p: Float[Tensor, "*batch C"], log_q: Float[Tensor, "*batch C"]) -> Float[Tensor, "*batch"]:
    """KL(p || q) of normalised log-probabilities."""
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def balanced_kl(
    posterior: Float[Tensor, "*batch S C"], prior: Float[Tensor, "*batch S C"], free_nats: float
) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
    """The dynamics and the representation loss of DreamerV3 (eq. 3), from log-probabilities.

    Both are the KL summed over the S groups, floored at ``free_nats`` per element; the first trains only the
    prior, the second only the posterior.
    """
    dynamics = categorical_kl(posterior.detach(), prior).sum(-1)
    representation = categorical_kl(posterior, prior.detach()).sum(-1)
    return dynamics.clamp(min=free_nats), representation.clamp(min=free_nats)


# --- Goals -------------------------------------------------------------------------------------------------------


def max_cosine(goal: Float[Tensor, "*batch D"], state: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch"]:
    """``(g/m) . (s/m)`` with m the larger of the two norms: one only where direction and length agree (Director)."""
    norms = torch.maximum(goal.square().sum(-1), state.square().sum(-1))
    return (goal * state).sum(-1) / norms.clamp(min=1e-12)


# --- Controllers -------------------------------------------------------------------------------------------------


def adapt(weight: Tensor, ratio: Tensor, low: float, high: float, step: float = 0.1) -> Tensor:
    """A weight in [low, high], raised by a share ``step`` where ``ratio`` exceeds 1 + step, lowered below its inverse.

    ``ratio`` is wanted over found for what the weight raises, and found over wanted for what it lowers.
    """
    factor = 1.0 + step
    change = torch.where(ratio > factor, factor, torch.where(ratio < 1.0 / factor, 1.0 / factor, 1.0))
    return (weight * change).clamp(low, high)


# --- Credit over time --------------------------------------------------------------------------------------------


def lambda_return(
    reward: Float[Tensor, "R L"],
    discount: Float[Tensor, "R L"],
    value: Float[Tensor, "R L+1"],
    lam: float | Float[Tensor, "R L"],
) -> Float[Tensor, "R L"]:
    """The TD(lambda) return of every edge; minus the value of its point it is the GAE advantage.

    ``G_t = r_t + d_t ((1 - lambda_t) v_{t+1} + lambda_t G_{t+1})`` with ``G_L = v_L``. Entry t of ``reward`` and
    ``discount`` belongs to the edge from point t to point t+1; death and truncation live in ``discount``.
    """
    lam = lam if isinstance(lam, Tensor) else torch.full_like(reward, lam)  # no copy from the host, which waits
    step = reward + discount * (1.0 - lam) * value[:, 1:]
    carry = discount * lam
    following, returns = value[:, -1], []
    for t in reversed(range(reward.shape[1])):
        following = torch.addcmul(step[:, t], carry[:, t], following)
        returns.append(following)
    return torch.stack(returns[::-1], 1)


def replay_return(
    reward: Float[Tensor, "B T"],
    terminal: Bool[Tensor, "B T"],
    last: Bool[Tensor, "B T"],
    bootstrap: Float[Tensor, "B T"],
    discount: float,
    lam: float,
) -> Float[Tensor, "B T-1"]:
    """The return of every replayed row but the last, bootstrapped with the imagined return of each row.

    A truncated episode (``last`` without ``terminal``) continues into its bootstrap, a terminal one ends.
    """
    return lambda_return(reward[:, 1:], discount * (~terminal[:, 1:]).float(), bootstrap, lam * (~last[:, 1:]).float())


# --- Statistics of the rows that count -----------------------------------------------------------------------


def masked_mean(values: Float[Tensor, "n *columns"], counted: Bool[Tensor, "n"]) -> Float[Tensor, "*columns"]:
    """The mean of the rows that count; zero where there is none."""
    return torch.where(_beside(counted, values), values, 0.0).sum(0) / counted.sum().clamp(min=1)


def masked_variance(values: Float[Tensor, "n *columns"], counted: Bool[Tensor, "n"]) -> Float[Tensor, "*columns"]:
    """The unbiased variance of the rows that count; zero where there are fewer than two."""
    deviation = torch.where(_beside(counted, values), values - masked_mean(values, counted), 0.0)
    return deviation.square().sum(0) / (counted.sum() - 1).clamp(min=1)


def constant_error(target: Float[Tensor, "n *columns"], counted: Bool[Tensor, "n"]) -> Float[Tensor, ""]:
    """The squared error, summed over columns, of the best constant prediction of the rows that count."""
    return masked_mean((target - masked_mean(target, counted)).square(), counted).sum()


def constant_surprise(target: Float[Tensor, "n *columns"], counted: Bool[Tensor, "n"]) -> Float[Tensor, ""]:
    """The cross-entropy of the best constant prediction of one-hots, any number side by side."""
    return torch.special.entr(masked_mean(target, counted)).sum()


def _beside(counted: Tensor, values: Tensor) -> Tensor:
    """With as many axes as the values have."""
    return counted.view(-1, *[1] * (values.ndim - 1))
