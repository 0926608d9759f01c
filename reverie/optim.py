"""One optimizer per group of parameters: LaProp or Adam, with adaptive or global gradient clipping.

A group lives in one flat buffer (its parameters are views of it), so that a step is a handful of operations however
many tensors there are. A step takes gradients for its own group only: a loss may pass through foreign networks
without training them. Nothing here waits for the device.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from reverie import native
from reverie.compatibility import compare, shapes
from reverie.directions import KINDS, Averaging, Moments
from reverie.errors import StoredDataError
from reverie.learned_rates import Guard, Learned, LearnedRate, Memory
from reverie.native import optimizer as kernel
from reverie.types import Metrics, Options, cpu_copy

log = logging.getLogger(__name__)


class OptimizerOptions(Options):
    """How one group of parameters is trained."""

    kind: Literal["laprop", "adam"] = "laprop"
    """LaProp normalises the gradient before it averages; Adam averages first."""
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

    kind: Literal["laprop", "adam"] = "adam"
    """LaProp normalises the gradient before it averages; Adam averages first."""
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

FLOOR = 1e-3
"""Norm below which a tensor of weights counts as this, so that zeros can grow."""


def agc_ratio(gradients: list[Tensor], weights: list[Tensor], limit: float) -> Float[Tensor, "tensors"]:
    """How many times each gradient's norm is what it may be, ``limit`` times its tensor's norm (Brock et al. 2021).

    One where it is less.
    """
    allowed = torch.stack(torch._foreach_norm(weights)).clamp(min=FLOOR) * limit
    return (torch.stack(torch._foreach_norm(gradients)) / allowed).clamp(min=1.0)


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


def layer_sizes(parameters: Iterable[nn.Parameter], rows: Mapping[nn.Parameter, Sequence[int]]) -> list[int]:
    """How many numbers each layer's tensors have, in order: a parameter with ``rows`` belongs to several layers."""
    return [
        count * parameter.numel() // len(parameter)
        for parameter in parameters
        for count in rows.get(parameter, [len(parameter)])
    ]


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
        learned: Learned | None = None,
    ):
        """``scales`` weighs each loss of `step`; a loss without a scale is an error there.

        ``rows`` are the numbers of rows of the layers that share a parameter: `agc` clips each layer by itself.
        ``half`` says that gradients pass through float16: losses are then multiplied by a scale, as large as can be
        without overflow. ``learned`` says how the rate adjusts itself, which takes the place of its decay.
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
        self.weights, self.gradients = list(self.weight.split(sizes)), list(self.gradient.split(sizes))
        self.moments = Moments(torch.zeros_like(self.weight), torch.zeros_like(self.weight))
        self.kind, self.averaging = KINDS[options.kind], Averaging(options.beta1, options.beta2, options.eps)
        self.count = torch.zeros((), device=self.weight.device)
        self.half = half
        self.lengths = torch.tensor(sizes, device=self.weight.device)
        self.learned, self.guard = None, None
        if learned is not None:
            rates, meta = learned
            self.learned = LearnedRate(options.rate, options.warmup, rates, meta, self.weight.device)
            self.guard = Guard(self.weight, rates.limit) if meta.guard else None
            if options.decay:
                log.info("%s: the rate is learned, and does not decay beside that", name)
            options = options.model_copy(update={"decay": 0})
        self.ramps = ramps(options).to(self.weight.device).unbind()
        self.whole = torch.ones_like(self.count)
        recipe = options.model_dump(include=OptimizerOptions.model_fields.keys() - SCHEDULE - {"kind"})
        self.task = kernel.task(sizes, adam=options.kind == "adam", floor=FLOOR, **recipe)
        self.loss_scale = torch.full_like(self.count, 2.0**16 if half else 1.0)

    @property
    def rate(self) -> Tensor:
        """The learning rate of the next update; the first of a warm-up is zero."""
        updates, begin, change = self.ramps
        scheduled = (begin + change * torch.minimum(self.count / updates, self.whole)).prod()
        return scheduled if self.learned is None else scheduled * self.learned.factor

    def step(self, losses: Mapping[str, Tensor], when: Tensor | None = None, *, fresh: bool = True) -> Metrics:
        """Descends the weighted sum of the means of ``losses``.

        The update is skipped, moments included, where the gradient is not finite or ``when`` (a boolean scalar) is
        false. A rate is learned only from losses on ``fresh`` data, which no earlier step has seen. Raises KeyError
        where losses and scales do not match.
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
        if self.learned is not None and fresh:
            when = self._learn_rate(self.learned, loss, when)
        step = self._native_step if native.supports(self.weight, kernel="optimizer") else self._step
        rate = self.rate
        norm, skipped = step(rate, when)
        if self.half:
            self.loss_scale *= torch.where(skipped > 0, 0.5, LOSS_SCALE_GROWTH)
            self.loss_scale.clamp_(max=LARGEST_LOSS_SCALE)
        return {f"{self.name}/grad_norm": norm, f"{self.name}/skipped": skipped, f"{self.name}/lr": rate}

    def _learn_rate(self, learned: LearnedRate, loss: Tensor, when: Tensor | None) -> Tensor:
        """Before a step on fresh data; returns whether it is still wanted. Where the group diverged, it begins anew."""
        wanted = torch.ones_like(self.whole, dtype=torch.bool) if when is None else when
        if native.supports(self.weight, kernel="optimizer"):
            products = kernel.agreement(self.task, self.gradient, *self.moments, self.count)
        else:
            direction = self.kind.direction(self.moments, self.count, self.averaging)
            products = torch.stack([self.gradient @ direction, self.gradient.norm(), direction.norm()])
        learned.learn(products, self.count, wanted)
        if self.guard is None:
            return wanted
        finite = loss if self.half else loss + products[1]  # a scaled gradient may overflow, and heals by itself
        back = self.guard.watch(self.weight, self.count, loss, finite.isfinite(), wanted)
        learned.reduce(back)
        self.guard.restore(back, self.weight, *self.moments, self.count)
        return wanted & ~back

    def rate_metrics(self) -> Metrics:
        """What the learned rate did in this update; nothing where it is not learned."""
        return {} if self.learned is None else self.learned.metrics(self.name)

    def _step(self, rate: Tensor, when: Tensor | None) -> tuple[Tensor, ...]:
        """Returns the norm of the gradient, and one where it was not finite."""
        norm = self.gradient.norm()
        finite = torch.isfinite(norm)
        go = finite if when is None else finite & when
        if self.options.agc:
            ratio = agc_ratio(self.gradients, self.weights, self.options.agc)
            self.gradient.div_(ratio.repeat_interleave(self.lengths, output_size=len(self.gradient)))
        if self.options.clip:
            self.gradient.mul_((self.options.clip / self.gradient.norm()).clamp(max=1.0))
        moments = self.kind.moments(self.gradient, self.moments, self.count + 1, self.averaging)
        direction = self.kind.direction(moments, self.count + 1, self.averaging)
        self.weight.copy_(torch.where(go, self.weight - rate * direction, self.weight))
        for old, new in zip(self.moments, moments, strict=True):
            old.copy_(torch.where(go, new, old))
        self.count += go
        return norm, (~finite).float()

    def _native_step(self, rate: Tensor, when: Tensor | None) -> tuple[Tensor, ...]:
        """The same in one call; reading ``when`` costs nothing on a CPU."""
        wanted = when is None or bool(when)
        return kernel.descend(self.task, self.weight, self.gradient, *self.moments, rate, self.count, wanted).unbind()

    def state_dict(self) -> dict[str, Any]:
        return {
            "kind": self.options.kind,
            "step": cpu_copy(self.moments[0]),
            "square": cpu_copy(self.moments[1]),
            "count": cpu_copy(self.count),
            "loss_scale": cpu_copy(self.loss_scale),
            **{name: memory.state_dict() for name, memory in self._memories().items()},
        }

    def _memories(self) -> dict[str, Memory]:
        """What a checkpoint may lack: a learned rate and its guard."""
        return {name: memory for name, memory in (("learned", self.learned), ("guard", self.guard)) if memory}

    def check(self, state: Mapping[str, Any]) -> None:
        """Raises StoredDataError where a state is incomplete, of another kind or of other parameters."""
        tensors = dict(zip(("step", "square"), self.moments, strict=True))
        tensors |= {"count": self.count, "loss_scale": self.loss_scale}
        saved = {name: tuple(state[name].shape) if name in state else None for name in tensors}
        if state.get("kind") != self.options.kind or saved != shapes(tensors):
            raise StoredDataError(
                f"optimizer '{self.name}' is {self.options.kind} over {self.weight.numel()} numbers, in the checkpoint "
                f"it is {state.get('kind')} over {saved['step']}; resume with the configuration it was trained with"
            )
        for name, memory in self._memories().items():
            compare(
                f"{self.name}_optimizer.{name}",
                shapes(state.get(name, memory.state_dict())),
                shapes(memory.state_dict()),
            )

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises what `check` does; then nothing has changed. A learned rate that was not saved begins anew."""
        self.check(state)
        for mine, saved in zip(self.moments, (state["step"], state["square"]), strict=True):
            mine.copy_(saved)
        self.count.copy_(state["count"])
        self.loss_scale.copy_(state["loss_scale"])
        if (self.learned is None) != ("learned" not in state):
            log.info("%s: the rate is %s from here on", self.name, "learned" if self.learned else "as scheduled")
        if self.guard is not None:
            self.guard.good.copy_(self.weight)
        for name, memory in self._memories().items():
            if name in state:
                memory.load_state_dict(state[name])
