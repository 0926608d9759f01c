"""Learning rates that adjust themselves while the agent trains.

An update is ``theta' = theta - rate * u`` with a direction u that does not depend on the rate. So the gradient g of the
next minibatch, which u has not seen, says exactly how the rate should have been different (Baydin et al. 2018, with
the held-out loss of Xu et al. 2018):

    d loss(theta') / d log(rate) = -rate * g . u

It costs one product of vectors. A rule turns such readings into moves of log(rate). To look one step ahead is
short-sighted: noise makes it prefer rates that are too low (Wu et al. 2018). Where rates are right, g and u disagree a
little on average, and a rule that follows them lets rates sink. Hence the tolerance, and the bounds.

Optimizers read (`Optimizer.watch`), and once per update all groups' rates move together, as vectors [G]. Nothing here
waits for the device.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from reverie.compatibility import compare, shapes
from reverie.optim import Optimizer, may_ask
from reverie.options import OTHERS, Options
from reverie.types import Metrics, cpu_copy

log = logging.getLogger(__name__)


class RateOptions(Options):
    """How the learning rates of one kind of group are learned."""

    rule: Literal["adam", "norm", "cosine", "sign", "raw", "fixed"] = "adam"
    """How readings move the logarithm of the rate; `fixed`: not at all."""
    step: float = Field(default=0.05, gt=0)
    """What the logarithm moves by at most (`adam`, `norm`, `sign`), or in proportion to the cosine (`cosine`) or the
    gradient (`raw`)."""
    offset: float = Field(default=0.0, ge=-1, le=1)
    """Added to the cosine of gradient and last direction; above zero it works against rates that sink too low."""
    tolerance: float = Field(default=0.05, ge=0, le=1)
    """The rate stays while the mean cosine, with the offset, is no further from zero than this."""
    limit: float = Field(default=10.0, ge=0)
    """The group has diverged where its loss stays above this many times its first one; 0: the loss is not watched."""


class WorldRateOptions(RateOptions):
    """Steps at the tuned rate disagree a little on average, by a cosine of -0.02 to -0.06 in runs of CartPole-v1."""

    offset: float = Field(default=0.03, ge=-1, le=1)
    """Added to the cosine of gradient and last direction; above zero it works against rates that sink too low."""


class MotiveRateOptions(RateOptions):
    """The losses of motives may begin near zero."""

    limit: float = Field(default=0.0, ge=0)
    """The group has diverged where its loss stays above this many times its first one; 0: the loss is not watched."""


class ActorRateOptions(RateOptions):
    """The gradient of a policy is mostly noise, which moves a rule by the cosine the least; its loss has no scale."""

    rule: Literal["adam", "norm", "cosine", "sign", "raw", "fixed"] = "cosine"
    """How readings move the logarithm of the rate; `fixed`: not at all."""
    step: float = Field(default=0.1, gt=0)
    """What the logarithm moves by at most (`adam`, `norm`, `sign`), or in proportion to the cosine (`cosine`) or the
    gradient (`raw`)."""
    limit: float = Field(default=0.0, ge=0)
    """The group has diverged where its loss stays above this many times its first one; 0: the loss is not watched."""


class MetaOptions(Options):
    """Whether and how learning rates adjust themselves."""

    switches = {"enabled": OTHERS}

    enabled: bool = False
    """Learn what the scheduled learning rates are multiplied by."""
    world: WorldRateOptions = WorldRateOptions()
    """The world model's."""
    critic: RateOptions = RateOptions()
    """Those of critics."""
    actor: ActorRateOptions = ActorRateOptions()
    """Those of policies."""
    motive: MotiveRateOptions = MotiveRateOptions()
    """Those of goals and other motives."""
    lowest: float = Field(default=0.1, gt=0, le=1)
    """The least that a scheduled rate is multiplied by."""
    highest: float = Field(default=10.0, ge=1)
    """The most that a scheduled rate is multiplied by."""
    warmup: int = Field(default=20, ge=0)
    """Steps of an optimizer before its rate is learned; those of its own warm-up come first in any case."""
    guard: bool = True
    """Go back to parameters that were sound, with a tenth of the rate, where a group has diverged."""


FIXED = MetaOptions()
"""No rate is learned."""


class Reading(NamedTuple):
    """What pairs of a gradient and the direction before it say, and the averages over all pairs so far."""

    slope: Float[Tensor, "G"]
    """Of the loss, by the logarithm of the rate."""
    cosine: Float[Tensor, "G"]
    """Of gradient and direction, with the offset: above zero where the step should have been longer."""
    mean_slope: Float[Tensor, "G"]
    square_slope: Float[Tensor, "G"]
    mean_cosine: Float[Tensor, "G"]
    square_cosine: Float[Tensor, "G"]


TINY = 1e-30
"""Keeps quotients of zero at zero."""

RULES: dict[str, Callable[[Reading], Tensor]] = {
    "adam": lambda reading: -reading.mean_slope / (reading.square_slope.sqrt() + TINY),
    "norm": lambda reading: reading.mean_cosine / (reading.square_cosine.sqrt() + TINY),
    "cosine": lambda reading: reading.cosine,
    "sign": lambda reading: reading.cosine.sign(),
    "raw": lambda reading: -reading.slope,
}
"""How far the logarithm of the rate moves, in steps. Whatever is not here, `fixed`, does not move it."""

DECAYS = (0.9, 0.999, 0.9, 0.999)
"""Of the averages of slope, its square, cosine and its square."""

PATIENCE = 5
"""Updates in a row that have to fail before the guard goes back."""

INTERVAL = 100
"""Steps of an optimizer between two copies of its parameters."""


class LearnedRates:
    """The rates of several optimizers, by their names; those that are to stay fixed are left alone.

    A guard remembers sound parameters of each group, and goes back to them where it has diverged. An update fails where
    its numbers are not finite, and where its loss is above ``limit`` times the first one. Parameters are sound where
    neither holds and the loss, if it is watched, is no higher than the first one.
    """

    remembered = ("log", "applied", "start", "averages", "weights", "first", "failed", "kept")
    """What lasts from update to update; the last axis is that of the groups."""

    def __init__(self, optimizers: Mapping[str, Optimizer], options: Mapping[str, RateOptions], meta: MetaOptions):
        wanted = {name for name in optimizers if meta.enabled and options[name].rule in RULES}
        names = [name for name, optimizer in optimizers.items() if name in wanted and optimizer.learnable]
        for name in sorted(wanted - {*names}):
            log.warning("meta.enabled: %s has no rate to learn", name)
        self.optimizers, self.meta = {name: optimizers[name] for name in names}, meta
        groups, chosen = [optimizers[name] for name in names], [options[name] for name in names]
        vector = partial(torch.tensor, device=groups[0].weight.device if groups else None)
        number = partial(vector, dtype=torch.float64)  # products of small rates, and their squares
        self.base = number([group.options.rate for group in groups])
        self.decay = number([group.options.decay or 1 for group in groups])
        self.final = number([group.options.final if group.options.decay else 1.0 for group in groups])
        self.begin = number([max(group.options.warmup, meta.warmup) for group in groups])
        self.steps, self.offsets = number([own.step for own in chosen]), number([own.offset for own in chosen])
        self.tolerances = number([own.tolerance for own in chosen])
        self.limits, self.half = number([own.limit for own in chosen]), vector([group.half for group in groups])
        self.rules = {rule: vector([own.rule == rule for own in chosen]) for rule in {own.rule for own in chosen}}
        self.decays, self.bounds = number(DECAYS)[:, None], number([[meta.lowest], [meta.highest]]).log()
        none = torch.zeros_like(self.base)
        self.log, self.applied = none.clone(), none.clone()  # of the factors, now and when the last step was taken
        self.start = none.clone()  # what the bounds are relative to, as a logarithm
        self.averages, self.weights = none.repeat(4, 1), none.repeat(4, 1)
        self.first, self.failed, self.kept = none.clone(), none.clone(), none.clone()
        self.factors, self.ceilings = torch.ones_like(none).float(), torch.full_like(none, -math.inf).float()
        for group, factor, ceiling in zip(groups, self.factors, self.ceilings, strict=True):
            group.watch(factor, ceiling if meta.guard else None)

    @torch.no_grad()
    def learn(self) -> Metrics:
        """Moves all rates by what the optimizers have read in this update, after their steps.

        Of every group: the rate of its next update but for the warm-up, the cosine (0 where there was no pair), whether
        the rate is at a bound, and whether the guard went back.
        """
        if not self.optimizers:
            return {}
        readings = torch.stack([optimizer.take_reading() for optimizer in self.optimizers.values()], -1).double()
        cosine = self.move(readings)
        back = self.guard(readings) if self.meta.guard else torch.zeros_like(cosine)
        self.factors.copy_(self.log.exp())
        lowest, highest = self.start + self.bounds
        bound = (self.log <= lowest) | (self.log >= highest)
        found = {"lr": self.scheduled(self.counts) * self.log.exp(), "cosine": cosine, "bound": bound, "restored": back}
        return {
            f"meta/{kind}_{name}": value
            for kind, values in found.items()
            for name, value in zip(self.optimizers, values.float().unbind(), strict=True)
        }

    @property
    def counts(self) -> Float[Tensor, "G"]:
        """How many steps each optimizer has taken."""
        return torch.stack([optimizer.count for optimizer in self.optimizers.values()])

    def scheduled(self, counts: Float[Tensor, "G"]) -> Float[Tensor, "G"]:
        """The rates that follow so many steps as the optimizers have them, but for the warm-up."""
        return self.base * (1 + (self.final - 1) * (counts / self.decay).clamp(max=1))

    def move(self, readings: Float[Tensor, "7 G"]) -> Float[Tensor, "G"]:
        """Moves rates by a pair each, `Optimizer.reading`; returns the cosine of gradient and direction.

        A rate stays where it is during warm-up, where the step was not wanted, and where a number is not finite. It
        falls instead of rising where later steps were refused: a policy went as far from the old one as it may.
        """
        _, along, gradient, direction, count, wanted, refused = readings
        stepped = (wanted > 0) & gradient.isfinite()
        valid = stepped & (count > self.begin) & readings[1:4].isfinite().all(0)
        along, gradient, direction = torch.where(valid, readings[1:4], 0.0)
        size = gradient * direction
        cosine = along / (size + TINY)
        agreed = cosine + self.offsets
        slope = -self.scheduled(count - 1) * self.applied.exp() * size * agreed
        seen = torch.stack([slope, slope.square(), agreed, agreed.square()])
        decays = torch.where(valid, self.decays, 1.0)
        self.averages = torch.lerp(seen, self.averages, decays)
        self.weights = torch.lerp(torch.ones_like(seen), self.weights, decays)
        reading = Reading(slope, agreed, *(self.averages / self.weights))
        moves = torch.zeros_like(slope)
        for rule, mine in self.rules.items():
            moves = torch.where(mine, RULES[rule](reading), moves)
        moves = torch.where(reading.mean_cosine.abs() > self.tolerances, moves, 0.0)
        moves = torch.where(refused > 0, -moves.abs(), moves)
        self.applied = torch.where(stepped, self.log, self.applied)
        lowest, highest = self.start + self.bounds
        moved = torch.clamp(self.log + self.steps * moves, lowest, highest)
        self.log = torch.where(valid, moved, self.log)
        return cosine

    def guard(self, readings: Float[Tensor, "7 G"]) -> Bool[Tensor, "G"]:
        """Where a group has diverged, goes back to sound parameters with a tenth of the rate; returns where that is."""
        loss, _, gradient, _, count, wanted, _ = readings
        wanted = wanted > 0
        finite = torch.where(self.half, loss, loss + gradient).isfinite()  # a scaled gradient may overflow, and heals
        self.kept = torch.where(loss <= self.ceilings, count, self.kept)
        self.first = torch.where(wanted & finite & (self.first == 0), loss, self.first)
        high = (self.limits > 0) & (self.first > 0) & (loss > self.limits * self.first)
        self.failed = torch.where(wanted, (self.failed + 1) * (high | ~finite), self.failed)
        back = self.failed >= PATIENCE
        if not may_ask(back) or bool(back.any()):
            self._go_back(back)
        self._renew_ceilings()
        return back

    def _renew_ceilings(self) -> None:
        due = (self.counts >= self.kept + INTERVAL) & (self.first != 0)
        any_loss = torch.finfo(self.ceilings.dtype).max
        self.ceilings.copy_(torch.where(due, torch.where(self.limits > 0, self.first, any_loss), -math.inf))

    def _go_back(self, back: Bool[Tensor, "G"]) -> None:
        less = torch.where(back, math.log(10.0), 0.0)
        self.log, self.start = self.log - less, self.start - less
        self.averages, self.weights = (torch.where(back, 0.0, kept) for kept in (self.averages, self.weights))
        self.failed, self.kept = (torch.where(back, 0.0, kept) for kept in (self.failed, self.kept))
        for optimizer, mine in zip(self.optimizers.values(), back, strict=True):
            optimizer.begin_anew(mine)

    # --- saving ---

    def state_dict(self) -> dict[str, Any]:
        """What each group remembers, by its name."""
        return {
            name: {field: cpu_copy(getattr(self, field)[..., i]) for field in self.remembered}
            | ({"good": cpu_copy(optimizer.good)} if optimizer.good is not None else {})
            for i, (name, optimizer) in enumerate(self.optimizers.items())
        }

    def check(self, state: Mapping[str, Any]) -> None:
        """Raises StoredDataError where what a group remembers is incomplete or of another shape."""
        for name, mine in self.state_dict().items():
            expected = shapes(mine)
            found = {"good": expected.get("good")} | shapes(state.get(name, mine))
            compare(f"learned_rates.{name}", {field: found[field] for field in expected if field in found}, expected)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """After parameters and optimizers were loaded. What was not saved begins anew."""
        for name in sorted(self.optimizers.keys() ^ state.keys()):
            log.info("%s: the rate is %s from here on", name, "learned" if name in self.optimizers else "as scheduled")
        for i, (name, optimizer) in enumerate(self.optimizers.items()):
            saved = state.get(name, {})
            for field in self.remembered if saved else ():
                getattr(self, field)[..., i] = saved[field]
            if optimizer.good is not None:
                optimizer.good.copy_(saved.get("good", optimizer.weight))
        self.factors.copy_(self.log.exp())
        if self.optimizers:
            self._renew_ceilings()
