"""The loops of the recurrent state-space model as single calls of the native kernels.

`observe` and `dream` compute what `RSSM.observe` and the steps of `RSSM.prior_step` do, sample for sample. On the way
back the kernel returns the gradients of every layer's output; their products with the layers' inputs, done here for
all steps at once, are the gradients of the matrices.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from reverie import native
from reverie.native import BLOCK, LARGEST_MATRIX
from reverie.native.layers import Dense, fits, matrix_gradient, structure
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


# --- the structures of rssm.c ---

OBSERVED = [*Core.__dataclass_fields__, *Posterior.__dataclass_fields__]
WEIGHTS = [*Core.__dataclass_fields__, *Prior.__dataclass_fields__]
TRACE = ["deter_in", "a1", "h1", "a2", "h2", "x", "m", "gate"]
"""What a step leaves behind for the way back: inputs and outputs of its layers."""
GRADIENTS = ["a1", "a2", "x", "gate", "p", "logits", "scales"]


class _Sizes(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int) for name in ("deter", "hidden", "blocks", "stoch", "classes")),
        *((name, ctypes.c_int) for name in ("batch", "steps", "block")),
        ("unimix", ctypes.c_float),
    ]


class _Weights(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in WEIGHTS]


class _Trace(ctypes.Structure):
    _fields_ = [*((name, ctypes.c_void_p) for name in TRACE), ("stride", ctypes.c_size_t)]


class _Gradients(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in GRADIENTS]


class _Part(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int) for name in ("size", "discrete")),
        *((name, ctypes.c_float) for name in ("unimix", "low", "high")),
    ]


def _addresses(tensors: Mapping[str, Tensor]) -> dict[str, ctypes.c_void_p]:
    return {name: native.address(tensor) for name, tensor in tensors.items()}


def _sizes(sizes: Sizes, unimix: float, batch: int, steps: int) -> _Sizes:
    block = min(BLOCK, -(-batch // torch.get_num_threads()))  # so that every thread gets rows
    return _Sizes(sizes.deter, sizes.hidden, sizes.blocks, sizes.stoch, sizes.classes, batch, steps, block, unimix)


def supports(sizes: Sizes, states: int, *tensors: Tensor) -> bool:
    """Whether the kernels can run a loop over ``states`` in all, and are the faster way.

    Every call packs the matrices anew, which few states do not repay.
    """
    largest = sizes.hidden * sizes.deter
    repaid = states >= 64 or largest <= LARGEST_MATRIX // 4
    return native.supports(*tensors) and largest <= 8 * LARGEST_MATRIX and repaid


def supports_dream(sizes: Sizes, states: int, actor: Sequence[Dense], *tensors: Tensor) -> bool:
    """Whether `dream` is supported; the policy has to be one that learns by the same kernels as it acts."""
    return fits(actor) and supports(sizes, states, *tensors)


def _check(**shapes: tuple[Tensor, tuple[int, ...]]) -> None:
    """The kernels trust every shape: raises ValueError for a tensor of another one."""
    for name, (tensor, expected) in shapes.items():
        if tuple(tensor.shape) != expected:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {expected}")


# --- observing ---


class _Observe(torch.autograd.Function):
    """Its inputs: sizes, unimix, keep, uniform, the start (deter, stoch), drive, offset, and all of `OBSERVED`."""

    @staticmethod
    def forward(
        ctx: Any,
        sizes: Sizes,
        unimix: float,
        keep: Tensor,
        uniform: Tensor,
        deter: Tensor,
        stoch: Tensor,
        drive: Tensor,
        offset: Tensor,
        *parameters: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        (batch, steps), width, hidden = keep.shape, sizes.deter, sizes.hidden
        widths = (width, hidden, hidden, hidden, hidden, width, width, 3 * width)
        trace = {name: drive.new_empty(batch, steps, width) for name, width in zip(TRACE, widths, strict=True)}
        p, q = (drive.new_empty(batch, steps, hidden) for _ in range(2))  # the posterior's layer
        points = drive.new_empty(batch, steps, width)
        samples, logits = (drive.new_empty(batch, steps, sizes.stoch, sizes.classes) for _ in range(2))
        weights = {name: tensor.contiguous() for name, tensor in zip(OBSERVED, parameters, strict=True)}
        numbers, keep = _sizes(sizes, unimix, batch, steps), keep.contiguous()
        given = [tensor.contiguous() for tensor in (deter, stoch, keep, drive, offset, uniform)]
        results = p, q, points, samples, logits
        structures, bf16 = (ctypes.byref(_Weights(**_addresses(weights))), numbers), native.uses_bf16()
        native.call("observe_forward", *structures, *given, _Trace(**_addresses(trace)), *results, bf16=bf16)
        ctx.save_for_backward(keep, stoch, *results, *trace.values(), *parameters)
        ctx.sizes, ctx.numbers, ctx.bf16 = sizes, numbers, bf16
        return points, samples, logits

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        sizes: Sizes = ctx.sizes
        keep, start, p, q, points, samples, logits, *rest = ctx.saved_tensors
        trace = dict(zip(TRACE, rest, strict=False))
        weights = {name: tensor.contiguous() for name, tensor in zip(OBSERVED, rest[len(TRACE) :], strict=True)}
        given_deter, given_stoch, given_logits = (gradient.contiguous() for gradient in gradients)
        blocks, scales = -(-len(keep) // ctx.numbers.block), [sizes.hidden] * 3 + [sizes.deter]
        grad = {name: torch.empty_like(trace[name]) for name in ("a1", "a2", "x", "gate")}
        grad |= {"p": torch.empty_like(p), "logits": given_logits.clone(), "scales": p.new_zeros(blocks, sum(scales))}
        start_deter, start_stoch = p.new_empty(len(start), sizes.deter), p.new_empty(start.shape)
        native.call(
            "observe_backward",
            *(ctypes.byref(_Weights(**_addresses(weights))), ctx.numbers, keep, _Trace(**_addresses(trace))),
            *(p, logits, given_deter, given_stoch, start_deter, start_stoch, _Gradients(**_addresses(grad))),
            bf16=ctx.bf16,
        )
        before = torch.cat([start[:, None], samples[:, :-1]], 1) * keep[..., None, None]
        scale1, scale2, inner_scale, mix_scale = grad.pop("scales").sum(0).split(scales)
        d = {name: tensor.flatten(2).flatten(0, 1) for name, tensor in grad.items()}
        inputs = {"deter": points, "q": q, "stoch_in": before.flatten(2)} | trace
        into = {name: tensor.flatten(0, 1) for name, tensor in inputs.items()}
        product = partial(matrix_gradient, bf16=ctx.bf16)
        from_deter, from_deter_bias = product(d["a1"], into["deter_in"])
        from_stoch, from_stoch_bias = product(d["a2"], into["stoch_in"])
        head, head_bias = product(d["logits"], into["q"])
        of_weights = {
            "from_deter": from_deter[0],
            "from_deter_bias": from_deter_bias,
            "from_deter_scale": scale1,
            "from_stoch": from_stoch[0],
            "from_stoch_bias": from_stoch_bias,
            "from_stoch_scale": scale2,
            "recurrent": product(into["deter_in"], d["x"], sizes.blocks)[0],
            "mix_deter": product(into["h1"], d["x"])[0][0],
            "mix_stoch": product(into["h2"], d["x"])[0][0],
            "mix_scale": mix_scale,
            "gates": product(into["m"], d["gate"], sizes.blocks)[0],
            "gates_bias": d["gate"].sum(0),
            "inner": product(d["p"], into["deter"])[0][0],
            "inner_scale": inner_scale,
            "head": head[0],
            "head_bias": head_bias,
        }
        nothing = (None,) * 4
        return (*nothing, start_deter, start_stoch, grad["x"], grad["p"], *(of_weights[name] for name in OBSERVED))


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
    sizes, (batch, steps) = shape[0], keep.shape
    _check(
        drive=(drive, (batch, steps, sizes.deter)),
        offset=(offset, (batch, steps, sizes.hidden)),
        deter=(start[0], (batch, sizes.deter)),
        stoch=(start[1], (batch, sizes.stoch, sizes.classes)),
        uniform=(uniform, (batch, steps, sizes.stoch)),
    )
    parameters = vars(core) | vars(posterior)
    weights = (parameters[name] for name in OBSERVED)
    return Latent(*_Observe.apply(*shape, keep, uniform, *start, drive, offset, *weights))  # type: ignore[misc]


# --- dreaming ---


def _part(part: Distribution) -> _Part:
    if isinstance(part, OneHot):
        return _Part(part.size, discrete=1, unimix=part.unimix)
    assert isinstance(part, BoundedNormal)
    return _Part(part.size, discrete=0, low=part.low, high=part.high)


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
    (actor, distribution), (horizon, count), sizes = behavior, latent_noise.shape[:2], shape[0]
    _check(
        deter=(start.deter, (count, sizes.deter)),
        stoch=(start.stoch, (count, sizes.stoch, sizes.classes)),
        latent_noise=(latent_noise, (horizon, count, sizes.stoch)),
        action_noise=(action_noise, (horizon, count, distribution.noise)),
        target=(target, (count, target.shape[1])),
        actor=(actor[0][0], (len(actor[0][0]), sizes.features + target.shape[1])),
    )
    features, logits = (
        first.new_empty(count, horizon + 1, *first.shape[1:]) for first in (start.features, start.logits)
    )
    features[:, 0], logits[:, 0] = start.features, start.logits
    parts = [_part(part) for part in distribution.parts]
    policy = action_noise.new_empty(count, horizon, distribution.parameters)
    action = action_noise.new_empty(count, horizon, sum(part.size for part in distribution.parts))
    weights = {name: tensor.contiguous() for name, tensor in (vars(core) | vars(prior)).items()}
    noise, mix, target = distribution.noise_of(action_noise).contiguous(), drive.mix.contiguous(), target.contiguous()
    native.call(
        "dream",
        *(ctypes.byref(_Weights(**_addresses(weights))), _sizes(*shape, count, horizon)),
        *(structure(actor), len(actor), structure([drive.layer]), mix, drive.bias),
        *((_Part * len(parts))(*parts), len(parts), target, target.shape[-1]),
        *(noise, noise.shape[-1], latent_noise.contiguous()),
        *(features, logits, policy, action),
    )
    return Latent.of(features, logits), policy, action
