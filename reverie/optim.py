"""One optimizer per group of parameters: LaProp or Adam, with adaptive or global gradient clipping.

A group lives in one flat buffer (its parameters are views of it), so that a step is a handful of operations however
many tensors there are. A step takes gradients for its own group only: a loss may pass through foreign networks
without training them. Nothing here waits for the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn

from reverie import native
from reverie.clipping import FLOOR, agc_ratio, layer_sizes
from reverie.compatibility import shapes
from reverie.directions import KINDS, Averaging, Kind, Moments
from reverie.errors import MisfitError
from reverie.native import optimizer as kernel
from reverie.options import Options
from reverie.types import Metrics, cpu_copy


class OptimizerOptions(Options):
    """How one group of parameters is trained."""

    switches = {"decay": {"final"}}

    kind: Literal["laprop", "adam", "prodigy"] = "laprop"
    """LaProp normalises the gradient before it averages; Adam averages first. `prodigy` is Adam with a rate that it
    finds by itself (the extra `prodigy`)."""
    rate: float = Field(default=4e-5, ge=0)
    """Learning rate after warm-up."""
    warmup: int = Field(default=1000, ge=0)
    """Updates over which the rate rises linearly from zero."""
    agc: float = Field(default=0.3, ge=0)
    """Each layer's gradient norm is clipped to this share of its weight norm; 0 turns it off."""
    clip: float = Field(default=0.0, ge=0)
    """The group's gradient norm is clipped to this; 0 turns it off."""
    decay: int = Field(default=0, ge=0)
    """Steps of this optimizer over which the rate falls linearly to `final` of itself; 0: it stays."""
    final: float = Field(default=0.1, ge=0, le=1)
    """What is left of the rate in the end."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """Decay of the averaged step."""
    beta2: float = Field(default=0.999, ge=0, lt=1)
    """Decay of the averaged square."""
    eps: float = Field(default=1e-20, gt=0)
    """Added to the root of the averaged square."""


class PolicyOptimizerOptions(OptimizerOptions):
    """The defaults of actors and critics, which take several smaller steps per dream."""

    kind: Literal["laprop", "adam", "prodigy"] = "adam"
    """LaProp normalises the gradient before it averages; Adam averages first. `prodigy` is Adam with a rate that it
    finds by itself (the extra `prodigy`)."""
    rate: float = Field(default=1e-4, ge=0)
    """Learning rate after warm-up."""
    warmup: int = Field(default=0, ge=0)
    """Updates over which the rate rises linearly from zero."""
    agc: float = Field(default=0.0, ge=0)
    """Each layer's gradient norm is clipped to this share of its weight norm; 0 turns it off."""
    clip: float = Field(default=1.0, ge=0)
    """The group's gradient norm is clipped to this; 0 turns it off."""
    eps: float = Field(default=1e-5, gt=0)
    """Added to the root of the averaged square."""


LOSS_SCALE_GROWTH = 2.0 ** (1 / 2000)
"""A gradient that overflows halves the loss scale; all others let it grow, twofold in 2000 updates."""

LARGEST_LOSS_SCALE = 2.0**24
"""Factor up to which it grows."""

SCHEDULE = {"rate", "warmup", "decay", "final"}
"""The options that `ramps` reads."""


def ramps(options: OptimizerOptions) -> Float[Tensor, "3 2"]:
    """The schedule of the learning rate as the product of two ramps, of warm-up and of decay.

    For each: over how many updates it goes, where it begins, and by how much it changes.
    """
    rate, warmup, decay, final = options.rate, options.warmup, options.decay, options.final
    rise = (warmup, 0.0, rate) if warmup else (1, rate, 0.0)
    fall = (decay, 1.0, final - 1.0) if decay else (1, 1.0, 0.0)
    return torch.tensor([rise, fall]).T.contiguous()


def may_ask(flag: Tensor) -> bool:
    """Whether its value is there at once: a CPU need not be waited for."""
    return flag.is_cpu


def copy_where(wanted: Bool[Tensor, ""], source: Tensor, target: Tensor) -> None:
    """Copies all of ``source`` or nothing. A CPU is asked, which saves a pass."""
    if not may_ask(wanted):
        target.copy_(torch.where(wanted, source, target))
    elif wanted:
        target.copy_(source)


class Optimizer:
    """Trains one group of parameters. Build it once the parameters are on their device: they move into its buffer."""

    def __init__(
        self,
        name: str,
        parameters: Iterable[nn.Parameter],
        options: OptimizerOptions,
        scales: Mapping[str, float],
        *,
        rows: Mapping[nn.Parameter, Sequence[int]] | None = None,
        half: bool = False,
    ):
        """``scales`` weighs each loss of `step`; a loss without a scale is an error there.

        ``rows`` are the numbers of rows of the layers that share a parameter: `agc` clips each layer by itself.
        ``half`` says that gradients pass through float16: losses are then multiplied by a scale, as large as can be
        without overflow.
        """
        self.name, self.options, self.scales = name, options, dict(scales)
        self.parameters = list(parameters)
        self.weight = torch.cat([parameter.detach().flatten() for parameter in self.parameters])
        self.gradient = torch.zeros_like(self.weight)
        flat = (buffer.split([p.numel() for p in self.parameters]) for buffer in (self.weight, self.gradient))
        for parameter, weight, gradient in zip(self.parameters, *flat, strict=True):
            parameter.data = weight.view_as(parameter)
            parameter.grad = gradient.view_as(parameter)
        sizes = layer_sizes(self.parameters, rows or {})
        self.sizes, self.weights = sizes, list(self.weight.split(sizes))
        self.moments = Moments(torch.zeros_like(self.weight), torch.zeros_like(self.weight))
        self.averaging = Averaging(options.beta1, options.beta2, options.eps)
        self.count = torch.zeros((), device=self.weight.device)
        self.half = half
        self.lengths = torch.tensor(sizes, device=self.weight.device)
        self.factor, self.ceiling, self.good = None, None, None
        self.reading = self.nothing = torch.tensor([math.nan, 0.0, 0.0, 0.0, 0.0, 0.0], device=self.weight.device)
        self.refused = torch.zeros_like(self.count)
        self.ramps = ramps(options).to(self.weight.device).unbind()
        self.whole = torch.ones_like(self.count)
        recipe = options.model_dump(include=OptimizerOptions.model_fields.keys() - SCHEDULE - {"kind"})
        self.task = kernel.task(sizes, adam=options.kind == "adam", floor=FLOOR, **recipe)
        self.loss_scale = torch.full_like(self.count, 2.0**16 if half else 1.0)

    @property
    def learnable(self) -> bool:
        """Whether there is a rate that can be learned: none grows from zero."""
        return self.options.rate > 0

    @property
    def kind(self) -> Kind:
        """How gradients are averaged."""
        return KINDS[self.options.kind]

    @property
    def rate(self) -> Tensor:
        """The learning rate of the next update; the first of a warm-up is zero."""
        updates, begin, change = self.ramps
        scheduled = (begin + change * torch.minimum(self.count / updates, self.whole)).prod()
        return scheduled if self.factor is None else scheduled * self.factor

    def step(self, losses: Mapping[str, Tensor], when: Tensor | None = None, *, fresh: bool = True) -> Metrics:
        """Descends the weighted sum of the means of ``losses``.

        The update is skipped, moments included, where the gradient is not finite or ``when`` (a boolean scalar) is
        false. Only losses on ``fresh`` data, which no earlier step has seen, say something of the rate. Raises
        KeyError where losses and scales do not match.
        """
        if losses.keys() != self.scales.keys():
            raise KeyError(f"losses {sorted(losses)} and scales {sorted(self.scales)} of '{self.name}' differ")
        total = torch.stack([losses[name].mean() * scale for name, scale in self.scales.items()]).sum()
        self.gradient.zero_()
        with torch.autocast(self.weight.device.type, enabled=False):
            (total * self.loss_scale if self.half else total).backward(inputs=self.parameters)
        if self.half:
            self.gradient.div_(self.loss_scale)
        return self._descend(total.detach(), when, fresh)

    @torch.no_grad()
    def _descend(self, loss: Tensor, when: Tensor | None, fresh: bool) -> Metrics:
        if self.factor is not None and fresh:
            self.reading = self._read(loss, when)
        elif self.factor is not None and when is not None:
            self.refused = torch.maximum(self.refused, (~when).to(self.refused))
        step = self._native_step if native.supports(self.weight, kernel="optimizer") else self._step
        rate = self.rate
        norm, skipped = step(rate, when)
        if self.half:
            self.loss_scale *= torch.where(skipped > 0, 0.5, LOSS_SCALE_GROWTH)
            self.loss_scale.clamp_(max=LARGEST_LOSS_SCALE)
        return {f"{self.name}/grad_norm": norm, f"{self.name}/skipped": skipped, f"{self.name}/lr": rate}

    def _read(self, loss: Tensor, when: Tensor | None) -> Tensor:
        if native.supports(self.weight, kernel="optimizer"):
            products = kernel.agreement(self.task, self.gradient, *self.moments, self.count)
        else:
            direction = self.kind.direction(self.moments, self.count, self.averaging)
            products = torch.stack([self.gradient @ direction, self.gradient.norm(), direction.norm()])
        if self.ceiling is not None and self.good is not None:
            copy_where((loss <= self.ceiling) & products[1].isfinite(), self.weight, self.good)
        wanted = self.whole if when is None else when.to(self.whole)
        return torch.cat([loss[None], products, torch.stack([self.count, wanted])])

    def _step(self, rate: Tensor, when: Tensor | None) -> tuple[Tensor, ...]:
        """Returns the norm of the gradient, and one where it was not finite."""
        norm = self.gradient.norm()
        finite = torch.isfinite(norm)
        go = finite if when is None else finite & when
        self._clip(self.gradient)
        moments = self.kind.moments(self.gradient, self.moments, self.count + 1, self.averaging)
        direction = self.kind.direction(moments, self.count + 1, self.averaging)
        self.weight.copy_(torch.where(go, self.weight - rate * direction, self.weight))
        for old, new in zip(self.moments, moments, strict=True):
            old.copy_(torch.where(go, new, old))
        self.count += go
        return norm, (~finite).float()

    def _clip(self, gradient: Tensor) -> tuple[Tensor, ...]:
        """Clips a gradient in place; returns what its numbers are divided by, and then all multiplied by."""
        ratio = scale = self.whole
        if self.options.agc:
            layers = list(gradient.split(self.sizes))
            ratio = agc_ratio(layers, self.weights, self.options.agc).to(gradient)
            ratio = ratio.repeat_interleave(self.lengths, output_size=len(gradient))
            gradient.div_(ratio)
        if self.options.clip:
            scale = (self.options.clip / gradient.norm()).clamp(max=1.0)
            gradient.mul_(scale)
        return ratio, scale

    @torch.no_grad()
    def look_ahead(self, gradient: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """All parameters after a step that is not taken, and a function on gradients of a loss by them.

        It gives the derivative of that loss by ``gradient``, over minus the rate, with the clipping as it is.
        """
        gradient = gradient.clone()
        ratio, scale = self._clip(gradient)

        def direction(gradient: Tensor) -> Tensor:
            moments = self.kind.moments(gradient, self.moments, self.count + 1, self.averaging)
            return self.kind.direction(moments, self.count + 1, self.averaging)

        def pull(outer: Tensor) -> Tensor:  # each number of the direction depends on its own of the gradient alone
            return torch.func.jvp(direction, (gradient,), (outer,))[1] / ratio * scale

        return self.weight - self.rate * direction(gradient), pull

    def _native_step(self, rate: Tensor, when: Tensor | None) -> tuple[Tensor, ...]:
        """The same in one call; reading ``when`` costs nothing on a CPU."""
        wanted = when is None or bool(when)
        return kernel.descend(self.task, self.weight, self.gradient, *self.moments, rate, self.count, wanted).unbind()

    def watch(self, factor: Float[Tensor, ""], ceiling: Float[Tensor, ""] | None) -> None:
        """From now on the rate is the schedule's times ``factor``, and steps on fresh data are read.

        With a ``ceiling``, a copy of the parameters is kept where a loss is no higher. Both may change in place.
        """
        self.factor, self.ceiling = factor, ceiling
        self.good = None if ceiling is None else self.weight.clone()

    def take_reading(self) -> Float[Tensor, "7"]:
        """What the last step on fresh data saw before it changed anything, once; a loss of NaN where there was none.

        Its loss, the product of its gradient with the direction of the step before, the norms of both, how many steps
        there were, whether it was wanted, and whether one that followed it was not. Not all is finite where there was
        no step before.
        """
        reading, self.reading = torch.cat([self.reading, self.refused[None]]), self.nothing
        self.refused = torch.zeros_like(self.count)
        return reading

    def begin_anew(self, wanted: Bool[Tensor, ""]) -> None:
        """Goes back to the parameters that were kept, as if there had been no step, where ``wanted``."""
        if self.good is not None:
            copy_where(wanted, self.good, self.weight)
        for gathered in (*self.moments, self.count):
            copy_where(wanted, torch.zeros_like(self.count), gathered)

    def state_dict(self) -> dict[str, Any]:
        return {
            "kind": self.options.kind,
            "step": cpu_copy(self.moments[0]),
            "square": cpu_copy(self.moments[1]),
            "count": cpu_copy(self.count),
            "loss_scale": cpu_copy(self.loss_scale),
        }

    def check(self, state: Mapping[str, Any]) -> None:
        """Raises MisfitError where a state is incomplete, of another kind or of other parameters."""
        tensors = dict(zip(("step", "square"), self.moments, strict=True))
        tensors |= {"count": self.count, "loss_scale": self.loss_scale}
        saved = {name: tuple(state[name].shape) if name in state else None for name in tensors}
        if state.get("kind") != self.options.kind or saved != shapes(tensors):
            raise MisfitError(
                f"optimizer '{self.name}' is {self.options.kind} over {self.weight.numel()} numbers, in the checkpoint "
                f"it is {state.get('kind')} over {saved['step']}; resume with the configuration it was trained with"
            )

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises what `check` does; then nothing has changed."""
        self.check(state)
        for mine, saved in zip(self.moments, (state["step"], state["square"]), strict=True):
            mine.copy_(saved)
        self.count.copy_(state["count"])
        self.loss_scale.copy_(state["loss_scale"])
