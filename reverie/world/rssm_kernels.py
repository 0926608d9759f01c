"""The loops of the recurrent state-space model as single calls of the native kernels.

`observe` and `dream` compute what `RSSM.observe` and the steps of `RSSM.prior_step` do, sample for sample. On the way
back the kernel returns the gradients of every layer's output; their products with the layers' inputs, done here for
all steps at once, are the gradients of the matrices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from reverie import native
from reverie.native import LARGEST_MATRIX
from reverie.native import rssm as kernels
from reverie.native.bindings import require
from reverie.native.layers import Dense, fits
from reverie.nets.distributions import ActionDistribution, BoundedNormal, Distribution, OneHot
from reverie.types import Latent
from reverie.world.sizes import Sizes


@dataclass(frozen=True)
class Core:
    """The parameters of the recurrent core, in the layout of the modules that own them."""

    from_deter: Float[Tensor, "h D"]
    from_deter_bias: Float[Tensor, "h"]
    from_deter_scale: Float[Tensor, "h"]
    from_stoch: Float[Tensor, "h SC"]
    from_stoch_bias: Float[Tensor, "h"]
    from_stoch_scale: Float[Tensor, "h"]
    recurrent: Float[Tensor, "G d d"]
    mix_deter: Float[Tensor, "h D"]
    mix_stoch: Float[Tensor, "h D"]
    mix_scale: Float[Tensor, "D"]
    gates: Float[Tensor, "G d _"]
    gates_bias: Float[Tensor, "_"]


@dataclass(frozen=True)
class Posterior:
    """From a deterministic state to logits, given what each step's tokens add to the hidden layer."""

    inner: Float[Tensor, "h D"]
    inner_scale: Float[Tensor, "h"]
    head: Float[Tensor, "SC h"]
    head_bias: Float[Tensor, "SC"]


@dataclass(frozen=True)
class Prior:
    """From a deterministic state to logits without an observation."""

    inner: Float[Tensor, "h D"]
    inner_bias: Float[Tensor, "h"]
    inner_scale: Float[Tensor, "h"]
    second: Float[Tensor, "h h"]
    second_bias: Float[Tensor, "h"]
    second_scale: Float[Tensor, "h"]
    head: Float[Tensor, "SC h"]
    head_bias: Float[Tensor, "SC"]


@dataclass(frozen=True)
class Drive:
    """What an action adds to the first block layer: `RSSM.drive`."""

    layer: Dense
    mix: Float[Tensor, "h D"]
    bias: Float[Tensor, "D"]


OBSERVED = [*Core.__dataclass_fields__, *Posterior.__dataclass_fields__]
"""What `observe` computes with."""


def _widths(sizes: Sizes, unimix: float) -> kernels.Widths:
    return kernels.Widths(sizes.deter, sizes.hidden, sizes.blocks, sizes.stoch, sizes.classes, unimix)


def supports(sizes: Sizes, states: int, *tensors: Tensor) -> bool:
    """Whether `observe` can see ``states`` in all, and is the faster way."""
    return native.supports(*tensors, kernel="observe") and _repaid(sizes, states)


def supports_dream(sizes: Sizes, states: int, actor: Sequence[Dense], *tensors: Tensor) -> bool:
    """Whether `dream` is supported or, without a policy, `walk`. A policy has to learn by the kernels it acts by."""
    return native.supports(*tensors, kernel="dream") and fits(actor) and _repaid(sizes, states)


def _repaid(sizes: Sizes, states: int) -> bool:
    """Every call packs the matrices anew, which few states do not repay."""
    largest = sizes.hidden * sizes.deter
    return largest <= 8 * LARGEST_MATRIX and (states >= 64 or largest <= LARGEST_MATRIX // 4)


# --- observing ---


class _Observe(torch.autograd.Function):
    """Its inputs: sizes, unimix, keep, latent_noise, the start (deter, stoch), drive, offset, and all of `OBSERVED`."""

    @staticmethod
    def forward(
        ctx: Any,
        sizes: Sizes,
        unimix: float,
        keep: Tensor,
        latent_noise: Tensor,
        deter: Tensor,
        stoch: Tensor,
        drive: Tensor,
        offset: Tensor,
        *parameters: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        widths, bf16 = _widths(sizes, unimix), native.uses_bf16()
        weights = dict(zip(OBSERVED, parameters, strict=True))
        seen = kernels.observe(widths, weights, keep, (deter, stoch), drive, offset, latent_noise, bf16)
        *results, trace = seen
        ctx.save_for_backward(keep, stoch, *results, *trace.values(), *parameters)
        ctx.widths, ctx.bf16 = widths, bf16
        return seen.deter, seen.stoch, seen.logits

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        widths: kernels.Widths = ctx.widths
        keep, start, points, samples, logits, before, after, *rest = ctx.saved_tensors
        trace = dict(zip(widths.trace, rest, strict=False))
        weights = dict(zip(OBSERVED, rest[len(trace) :], strict=True))
        seen = kernels.Seen(points, samples, logits, before, after, trace)
        grad, scales, entered = kernels.observe_back(widths, weights, keep, seen, gradients, ctx.bf16)
        stoch_in = torch.cat([start[:, None], samples[:, :-1]], 1) * keep[..., None, None]
        d = {name: tensor.flatten(2).flatten(0, 1) for name, tensor in grad.items()}
        inputs = {"deter": points, "after": after, "stoch_in": stoch_in.flatten(2)} | trace
        into = {name: tensor.flatten(0, 1) for name, tensor in inputs.items()}
        of_weights = scales | {
            "from_deter": _product(d["a1"], into["deter_in"])[0],
            "from_deter_bias": d["a1"].sum(0),
            "from_stoch": _product(d["a2"], into["stoch_in"])[0],
            "from_stoch_bias": d["a2"].sum(0),
            "recurrent": _product(into["deter_in"], d["x"], widths.blocks),
            "mix_deter": _product(into["h1"], d["x"])[0],
            "mix_stoch": _product(into["h2"], d["x"])[0],
            "gates": _product(into["m"], d["gate"], widths.blocks),
            "gates_bias": d["gate"].sum(0),
            "inner": _product(d["p"], into["deter"])[0],
            "head": _product(d["logits"], into["after"])[0],
            "head_bias": d["logits"].sum(0),
        }
        nothing = (None,) * 4
        return (*nothing, *entered, grad["x"], grad["p"], *(of_weights[name] for name in OBSERVED))


def _product(left: Float[Tensor, "n O"], right: Float[Tensor, "n I"], blocks: int = 1) -> Float[Tensor, "G o i"]:
    """``left.t() @ right``, for each of ``blocks`` of the columns of both: the gradient of W in ``left = W right``."""
    outputs, inputs = (tensor.unflatten(-1, (blocks, -1)).transpose(0, 1) for tensor in (left, right))
    return torch.bmm(outputs.transpose(1, 2), inputs)


def observe(
    shape: tuple[Sizes, float],
    core: Core,
    posterior: Posterior,
    drive: Float[Tensor, "B T D"],
    offset: Float[Tensor, "B T h"],
    keep: Float[Tensor, "B T"],
    start: tuple[Float[Tensor, "B D"], Float[Tensor, "B S C"]],
    uniform: Float[Tensor, "B T S"],
) -> Latent:
    """The posterior of every step, as `RSSM.observe` has it. ``shape`` is sizes and unimix.

    ``keep`` is 0 where an episode begins and 1 elsewhere; groups of the start are one-hot or zero. Call it where
    `supports`.
    """
    parameters = vars(core) | vars(posterior)
    weights = (parameters[name] for name in OBSERVED)
    return Latent(*_Observe.apply(*shape, keep, uniform, *start, drive, offset, *weights))  # type: ignore[misc]


# --- dreaming ---


def _part(part: Distribution) -> kernels.Part:
    if isinstance(part, OneHot):
        return kernels.Part(part.size, discrete=True, unimix=part.unimix)
    if isinstance(part, BoundedNormal):
        return kernels.Part(part.size, discrete=False, low=part.low, high=part.high)
    raise TypeError(f"the native kernels know no {type(part).__name__}")


def dream(
    shape: tuple[Sizes, float],
    core: Core,
    prior: Prior,
    drive: Drive,
    behavior: tuple[Sequence[Dense], ActionDistribution],
    start: Latent,
    target: Float[Tensor, "N W"],
    action_noise: Float[Tensor, "H N Z"],
    latent_noise: Float[Tensor, "H N S"],
) -> tuple[Latent, Float[Tensor, "N H P"], Float[Tensor, "N H A"]]:
    """Policy and prior by turns, without gradient: the points [N, H+1], the policy's parameters and the actions.

    ``shape`` is sizes and unimix, ``behavior`` the policy's layers and its distribution; the policy sees ``target``
    beside every state. Call it where `supports`.
    """
    actor, distribution = behavior
    features, logits = _places(shape[0], start, latent_noise)
    policy, action = kernels.dream(
        _widths(*shape),
        vars(core) | vars(prior),
        actor,
        (drive.layer, drive.mix, drive.bias),
        [_part(part) for part in distribution.parts],
        target,
        distribution.noise_of(action_noise),
        latent_noise,
        features,
        logits,
    )
    return Latent.of(features, logits), policy, action


def walk(
    shape: tuple[Sizes, float],
    core: Core,
    prior: Prior,
    drive: Drive,
    start: Latent,
    action: Float[Tensor, "N H A"],
    latent_noise: Float[Tensor, "H N S"],
) -> Latent:
    """The points [N, H+1] of the prior with actions that are given. Call it where `supports_dream`."""
    features, logits = _places(shape[0], start, latent_noise)
    from_action = drive.layer, drive.mix, drive.bias
    kernels.walk(_widths(*shape), vars(core) | vars(prior), from_action, action, latent_noise, features, logits)
    return Latent.of(features, logits)


def _places(sizes: Sizes, start: Latent, latent_noise: Float[Tensor, "H N S"]) -> tuple[Tensor, Tensor]:
    """Features [N, H+1, F] and logits [N, H+1, S, C] that hold the start, and room for what follows."""
    horizon, count = latent_noise.shape[:2]
    require(deter=(start.deter, (count, sizes.deter)), stoch=(start.stoch, (count, sizes.stoch, sizes.classes)))
    features, logits = (
        first.new_empty(count, horizon + 1, *first.shape[1:]) for first in (start.features, start.logits)
    )
    features[:, 0], logits[:, 0] = start.features, start.logits
    return features, logits
