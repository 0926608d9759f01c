"""The loops of `reverie.world.rssm` as native kernels: over a sequence, back through it, and over a dream.

Weights go by the names that `bindings.Weights` has; all functions are called where `native.supports` says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ctypes import Structure, byref
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from reverie import native
from reverie.native import BLOCK, bindings
from reverie.native.bindings import layers_of, pointer, require
from reverie.native.layers import Dense

Named = Mapping[str, Tensor]
Places = TypeVar("Places", bound=Structure)


@dataclass(frozen=True)
class Widths:
    """Of a recurrent state-space model: D, h, G, S, C, and the share of uniform mixing."""

    deter: int
    hidden: int
    blocks: int
    stoch: int
    classes: int
    unimix: float

    @property
    def weights(self) -> dict[str, tuple[int, ...]]:
        """The shape of everything that a loop may use."""
        deter, hidden, wide, block = self.deter, self.hidden, self.stoch * self.classes, self.deter // self.blocks
        names = ("from_deter", "from_stoch", "inner", "second")
        inputs = dict.fromkeys([f"{name}_{kind}" for name in names for kind in ("bias", "scale")], (hidden,))
        matrices = {"from_deter": (hidden, deter), "from_stoch": (hidden, wide), "inner": (hidden, deter)}
        core = {"recurrent": (self.blocks, block, block), "mix_deter": (hidden, deter), "mix_stoch": (hidden, deter)}
        gates = {"mix_scale": (deter,), "gates": (self.blocks, block, 3 * block), "gates_bias": (3 * deter,)}
        heads = {"second": (hidden, hidden), "head": (wide, hidden), "head_bias": (wide,)}
        return inputs | matrices | core | gates | heads

    @property
    def trace(self) -> dict[str, int]:
        """The width of everything that a step leaves behind for the way back: inputs and outputs of its layers."""
        layers = dict.fromkeys(("a1", "h1", "a2", "h2"), self.hidden)
        return {"deter_in": self.deter, **layers, "x": self.deter, "m": self.deter, "gate": 3 * self.deter}

    def over(self, batch: int, steps: int) -> bindings.Sizes:
        """Those of a loop; one thread carries so many rows that every thread gets some."""
        block = min(BLOCK, -(-batch // torch.get_num_threads()))
        return bindings.Sizes(
            *(self.deter, self.hidden, self.blocks, self.stoch, self.classes), batch, steps, block, self.unimix
        )


class Part(NamedTuple):
    """One component of an action: a choice among ``size`` classes, or ``size`` bounded normals."""

    size: int
    discrete: bool
    unimix: float = 0.0
    low: float = 0.0
    high: float = 0.0
    """Of the deviation of normals."""


class Seen(NamedTuple):
    """What `observe` computes: the states, and what the way back needs of every step."""

    deter: Float[Tensor, "B T D"]
    stoch: Float[Tensor, "B T S C"]
    logits: Float[Tensor, "B T S C"]
    before: Float[Tensor, "B T h"]
    after: Float[Tensor, "B T h"]
    """The posterior's hidden layer before and after its norm."""
    trace: dict[str, Tensor]


def observe(
    widths: Widths,
    weights: Named,
    keep: Float[Tensor, "B T"],
    start: tuple[Float[Tensor, "B D"], Float[Tensor, "B S C"]],
    drive: Float[Tensor, "B T D"],
    offset: Float[Tensor, "B T h"],
    latent_noise: Float[Tensor, "B T S"],
    bf16: bool,
) -> Seen:
    """The posterior of every step. ``keep`` is 0 where an episode begins and 1 elsewhere.

    Groups of the start are one-hot or zero. Raises ValueError for a tensor of another shape.
    """
    (batch, steps), (deter, stoch) = keep.shape, start
    groups = widths.stoch, widths.classes
    require(
        drive=(drive, (batch, steps, widths.deter)),
        offset=(offset, (batch, steps, widths.hidden)),
        deter=(deter, (batch, widths.deter)),
        stoch=(stoch, (batch, *groups)),
        latent_noise=(latent_noise, (batch, steps, widths.stoch)),
    )
    trace = {name: drive.new_empty(batch, steps, width) for name, width in widths.trace.items()}
    before, after = (drive.new_empty(batch, steps, widths.hidden) for _ in range(2))
    seen = Seen(
        drive.new_empty(batch, steps, widths.deter),
        drive.new_empty(batch, steps, *groups),
        drive.new_empty(batch, steps, *groups),
        before,
        after,
        trace,
    )
    owned = {name: tensor.contiguous() for name, tensor in weights.items()}
    given = [tensor.contiguous() for tensor in (deter, stoch, keep, drive, offset, latent_noise)]
    places = *given, _structure(bindings.Trace, trace), before, after, seen.deter, seen.stoch, seen.logits
    native.call("observe_forward", byref(_weights(widths, owned)), widths.over(batch, steps), *places, bf16=bf16)
    return seen


def observe_back(
    widths: Widths,
    weights: Named,
    keep: Float[Tensor, "B T"],
    seen: Seen,
    gradients: Sequence[Tensor],
    bf16: bool,
) -> tuple[dict[str, Tensor], dict[str, Tensor], tuple[Float[Tensor, "B D"], Float[Tensor, "B S C"]]]:
    """Back through `observe`, from the gradients of deter, stoch and logits.

    Returns those of what each layer computed at every step, those of the four scales, and those of the start.
    """
    deter, stoch, logits = (gradient.contiguous() for gradient in gradients)
    (batch, steps), hidden = keep.shape, widths.hidden
    require(
        deter=(deter, tuple(seen.deter.shape)), stoch=(stoch, tuple(seen.stoch.shape)), logits=(logits, stoch.shape)
    )
    sizes, names = widths.over(batch, steps), ("from_deter_scale", "from_stoch_scale", "inner_scale", "mix_scale")
    found = {name: torch.empty_like(seen.trace[name]) for name in ("a1", "a2", "x", "gate")}
    found |= {"p": torch.empty_like(seen.before), "logits": logits.clone()}
    scales = deter.new_zeros(-(-batch // sizes.block), 3 * hidden + widths.deter)  # one row per block of rows
    start = deter.new_empty(batch, widths.deter), deter.new_empty(batch, widths.stoch, widths.classes)
    owned = {name: tensor.contiguous() for name, tensor in weights.items()}
    results = _structure(bindings.Gradients, found | {"scales": scales})
    places = (
        keep.contiguous(),
        _structure(bindings.Trace, seen.trace),
        seen.before,
        seen.logits,
        deter,
        stoch,
        *start,
        results,
    )
    native.call("observe_backward", byref(_weights(widths, owned)), sizes, *places, bf16=bf16)
    summed = scales.sum(0).split([hidden, hidden, hidden, widths.deter])
    return found, dict(zip(names, summed, strict=True)), start


def dream(
    widths: Widths,
    weights: Named,
    actor: Sequence[Dense],
    from_action: tuple[Dense, Float[Tensor, "h D"], Float[Tensor, "D"]],
    parts: Sequence[Part],
    target: Float[Tensor, "N W"],
    noise: Float[Tensor, "H N Z"],
    latent_noise: Float[Tensor, "H N S"],
    points: Float[Tensor, "N H+1 F"],
    logits: Float[Tensor, "N H+1 S C"],
) -> tuple[Float[Tensor, "N H P"], Float[Tensor, "N H A"]]:
    """Policy and prior by turns: fills points and logits, whose first step is given, and returns policies and actions.

    ``from_action`` is a layer with its part of the first block layer, and that layer's bias. ``noise`` has a uniform
    number per choice and a normal one per continuous dimension. Raises ValueError for a tensor of another shape.
    """
    (horizon, count), (layer, mix, bias) = latent_noise.shape[:2], from_action
    features, width = widths.deter + widths.stoch * widths.classes, sum(part.size for part in parts)
    parameters = sum(part.size if part.discrete else 2 * part.size for part in parts)
    require(
        points=(points, (count, horizon + 1, features)),
        logits=(logits, (count, horizon + 1, widths.stoch, widths.classes)),
        latent_noise=(latent_noise, (horizon, count, widths.stoch)),
        noise=(noise, (horizon, count, sum(1 if part.discrete else part.size for part in parts))),
        target=(target, (count, target.shape[1])),
        actor=(actor[0][0], (len(actor[0][0]), features + target.shape[1])),
        policy=(actor[-1][0], (parameters, actor[-1][0].shape[1])),
        from_action=(layer[0], (widths.hidden, width)),
        mix=(mix, (widths.hidden, widths.deter)),
        bias=(bias, (widths.deter,)),
    )
    policy, action = noise.new_empty(count, horizon, parameters), noise.new_empty(count, horizon, width)
    owned = {name: tensor.contiguous() for name, tensor in weights.items()}
    core = byref(_weights(widths, owned)), widths.over(count, horizon)
    acting = layers_of(actor), len(actor), layers_of([layer]), mix.contiguous(), bias
    structures = (bindings.Part * len(parts))(*parts)
    given = target.contiguous(), target.shape[1], noise.contiguous(), noise.shape[-1], latent_noise.contiguous()
    native.call("dream", *core, *acting, structures, len(parts), *given, points, logits, policy, action)
    return policy, action


def walk(
    widths: Widths,
    weights: Named,
    from_action: tuple[Dense, Float[Tensor, "h D"], Float[Tensor, "D"]],
    action: Float[Tensor, "N H A"],
    latent_noise: Float[Tensor, "H N S"],
    points: Float[Tensor, "N H+1 F"],
    logits: Float[Tensor, "N H+1 S C"],
) -> None:
    """The prior alone, as in `dream`, with actions that are given: fills points and logits, whose first step is given.

    Raises ValueError for a tensor of another shape.
    """
    (count, horizon, width), (layer, mix, bias) = action.shape, from_action
    require(
        points=(points, (count, horizon + 1, widths.deter + widths.stoch * widths.classes)),
        logits=(logits, (count, horizon + 1, widths.stoch, widths.classes)),
        latent_noise=(latent_noise, (horizon, count, widths.stoch)),
        from_action=(layer[0], (widths.hidden, width)),
        mix=(mix, (widths.hidden, widths.deter)),
        bias=(bias, (widths.deter,)),
    )
    owned = {name: tensor.contiguous() for name, tensor in weights.items()}
    core = byref(_weights(widths, owned)), widths.over(count, horizon)
    acting = layers_of([]), 0, layers_of([layer]), mix.contiguous(), bias, (bindings.Part * 0)(), 0
    given = None, 0, None, 0, latent_noise.contiguous()
    native.call("dream", *core, *acting, *given, points, logits, None, action.contiguous())


def _weights(widths: Widths, weights: Named) -> bindings.Weights:
    require(**{name: (tensor, widths.weights[name]) for name, tensor in weights.items()})
    return _structure(bindings.Weights, weights)


def _structure(kind: type[Places], tensors: Named) -> Places:
    """The caller keeps the tensors alive."""
    return kind(**{name: pointer(tensor) for name, tensor in tensors.items()})
