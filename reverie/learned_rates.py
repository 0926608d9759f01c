"""Learning rates that adjust themselves while the agent trains.

An update is ``theta' = theta - rate * u`` with a direction u that does not depend on the rate. So the gradient g of the
next minibatch, which u has not seen, says exactly how the rate should have been different (Baydin et al. 2018, with
the held-out loss of Xu et al. 2018):

    d loss(theta') / d log(rate) = -rate * g . u

It costs one product of vectors. A rule turns such readings into moves of log(rate). To look one step ahead is
short-sighted: noise makes it prefer rates that are too low (Wu et al. 2018). Hence the bounds, and the offset.

All state is in tensors on the group's device, and nothing here waits for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import log
from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from reverie.types import Metrics, Options, cpu_copy


class RateOptions(Options):
    """How the learning rates of one kind of group are learned."""

    rule: Literal["adam", "norm", "cosine", "sign", "raw", "fixed"] = "adam"
    """How readings move the logarithm of the rate; `fixed`: not at all, and the rate decays as scheduled."""
    step: float = Field(default=0.05, gt=0)
    """What the logarithm moves by at most (`adam`, `norm`, `sign`), or in proportion to the cosine (`cosine`) or the
    gradient (`raw`)."""
    offset: float = Field(default=0.01, ge=-1, le=1)
    """Added to the cosine of gradient and last direction; above zero it works against rates that sink too low."""
    limit: float = Field(default=10.0, ge=0)
    """The group has diverged where its loss stays above this many times its first one; 0: the loss is not watched."""


class ActorRateOptions(RateOptions):
    """The gradient of a policy is mostly noise, which moves a rule by the cosine the least; its loss has no scale."""

    rule: Literal["adam", "norm", "cosine", "sign", "raw", "fixed"] = "cosine"
    """How readings move the logarithm of the rate; `fixed`: not at all, and the rate decays as scheduled."""
    step: float = Field(default=0.1, gt=0)
    """What the logarithm moves by at most (`adam`, `norm`, `sign`), or in proportion to the cosine (`cosine`) or the
    gradient (`raw`)."""
    limit: float = Field(default=0.0, ge=0)
    """The group has diverged where its loss stays above this many times its first one; 0: the loss is not watched."""


class MetaOptions(Options):
    """Whether and how learning rates adjust themselves."""

    enabled: bool = False
    """Learn the learning rates: they start as the optimizers have them, warm-up included, and replace their decay."""
    world: RateOptions = RateOptions()
    """The world model's."""
    critic: RateOptions = RateOptions()
    """Those of critics."""
    actor: ActorRateOptions = ActorRateOptions()
    """Those of policies."""
    motive: RateOptions = RateOptions(limit=0.0)
    """Those of goals and other motives."""
    lowest: float = Field(default=0.1, gt=0, le=1)
    """The least share of its start that a rate falls to."""
    highest: float = Field(default=10.0, ge=1)
    """The most times its start that a rate rises to."""
    warmup: int = Field(default=20, ge=0)
    """Steps of an optimizer before its rate is learned; those of its own warm-up come first in any case."""
    guard: bool = True
    """Go back to parameters that were sound, with a tenth of the rate, where a group has diverged."""

    def learned(self, rates: RateOptions) -> Learned | None:
        """How a group of this kind learns its rate; None where it does not."""
        return (rates, self) if self.enabled and rates.rule in RULES else None


FIXED = MetaOptions()
"""No rate is learned."""

Learned = tuple[RateOptions, MetaOptions]
"""What one kind of group chose, and what all share."""


class Reading(NamedTuple):
    """What one pair of a gradient and the direction before it says, and the averages over all pairs so far."""

    slope: Float[Tensor, ""]
    """Of the loss, by the logarithm of the rate."""
    cosine: Float[Tensor, ""]
    """Of gradient and direction, with the offset: above zero where the step should have been longer."""
    mean_slope: Float[Tensor, ""]
    square_slope: Float[Tensor, ""]
    mean_cosine: Float[Tensor, ""]
    square_cosine: Float[Tensor, ""]


TINY = 1e-30
"""Keeps quotients of zero at zero."""

RULES: dict[str, Callable[[Reading], Tensor]] = {
    "adam": lambda reading: -reading.mean_slope / (reading.square_slope.sqrt() + TINY),
    "norm": lambda reading: reading.mean_cosine / (reading.square_cosine.sqrt() + TINY),
    "cosine": lambda reading: reading.cosine,
    "sign": lambda reading: reading.cosine.sign(),
    "raw": lambda reading: -reading.slope,
}
"""How far the logarithm of the rate moves, in steps."""

DECAYS = (0.9, 0.999, 0.9, 0.999)
"""Of the averages of slope, its square, cosine and its square."""


class Memory:
    """What lasts from update to update, and is saved: the tensors that ``remembered`` names."""

    remembered: ClassVar[tuple[str, ...]]

    def state_dict(self) -> dict[str, Tensor]:
        return {name: cpu_copy(getattr(self, name)) for name in self.remembered}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        for name in self.remembered:
            setattr(self, name, state[name].to(getattr(self, name)))


class LearnedRate(Memory):
    """The factor by which the rate of one group differs from where it started, ``base``, after ``warmup`` steps."""

    remembered = ("log", "start", "averages", "weights")

    def __init__(self, base: float, warmup: int, options: RateOptions, meta: MetaOptions, device: torch.device):
        self.base, self.begin, self.options = base, max(warmup, meta.warmup), options
        number = torch.zeros((), dtype=torch.float64, device=device)
        self.log, self.start = number.clone(), number.clone()  # of the factor, and of what the bounds are relative to
        self.averages, self.weights = number.repeat(4), number.repeat(4)
        self.cosine, self.cut = number.clone(), number.clone()  # of this update: for metrics only
        self.bounds = torch.tensor([log(meta.lowest), log(meta.highest)], dtype=torch.float64, device=device)
        self.decays = torch.tensor(DECAYS, dtype=torch.float64, device=device)

    @property
    def factor(self) -> Float[Tensor, ""]:
        return self.log.exp().float()

    def learn(self, products: Float[Tensor, "3"], count: Float[Tensor, ""], wanted: Bool[Tensor, ""]) -> None:
        """Moves by one pair: the product of gradient and direction, and their norms. ``count`` is the optimizer's.

        Does nothing unless ``wanted``, during warm-up, and where a number is not finite.
        """
        valid = wanted & (count > self.begin) & products.isfinite().all()
        along, *norms = torch.where(valid, products, 0.0).double().unbind()
        size = norms[0] * norms[1]
        self.cosine = along / (size + TINY)
        cosine = self.cosine + self.options.offset
        slope = -self.base * self.log.exp() * size * cosine
        seen, decays = (
            torch.stack([slope, slope.square(), cosine, cosine.square()]),
            torch.where(valid, self.decays, 1.0),
        )
        self.averages = torch.lerp(seen, self.averages, decays)
        self.weights = torch.lerp(torch.ones_like(seen), self.weights, decays)
        move = RULES[self.options.rule](Reading(slope, cosine, *(self.averages / self.weights).unbind()))
        lowest, highest = (self.start + self.bounds).unbind()
        moved = torch.clamp(self.log + self.options.step * move, lowest, highest)
        self.log = torch.where(valid, moved, self.log)

    def reduce(self, cut: Bool[Tensor, ""]) -> None:
        """Takes a tenth of the rate and of its bounds, and forgets all readings, where ``cut``."""
        less = torch.where(cut, log(10.0), 0.0)
        self.log, self.start, self.cut = self.log - less, self.start - less, cut.double()
        self.averages, self.weights = (torch.where(cut, 0.0, kept) for kept in (self.averages, self.weights))

    def metrics(self, name: str) -> Metrics:
        """The rate, and of this update: the pair's cosine, if any, whether the rate is at a bound, and was reduced."""
        lowest, highest = (self.start + self.bounds).unbind()
        bound = (self.log <= lowest) | (self.log >= highest)
        found = {"lr": self.base * self.log.exp(), "cosine": self.cosine, "bound": bound, "restored": self.cut}
        return {f"meta/{kind}_{name}": value.float() for kind, value in found.items()}


PATIENCE = 5
"""Updates in a row that have to fail before the guard goes back."""

INTERVAL = 100
"""Steps of an optimizer between two copies of its parameters."""


class Guard(Memory):
    """Remembers sound parameters of a group, and says when to return to them.

    An update fails where its numbers are not finite, and where its loss is above ``limit`` times the first one.
    Parameters are sound where neither holds and the loss, if it is watched, is no higher than the first one.
    """

    remembered = ("good", "first", "failed", "kept")

    def __init__(self, weight: Float[Tensor, "W"], limit: float):
        self.limit, self.good = limit, weight.clone()
        self.first, self.failed, self.kept = (weight.new_zeros(()) for _ in range(3))

    def watch(
        self,
        weight: Float[Tensor, "W"],
        count: Float[Tensor, ""],
        loss: Float[Tensor, ""],
        finite: Bool[Tensor, ""],
        wanted: Bool[Tensor, ""],
    ) -> Bool[Tensor, ""]:
        """Whether to go back to ``good`` now. ``count`` is the optimizer's, ``loss`` that of ``weight``."""
        watched = self.limit > 0
        self.first = torch.where(wanted & finite & (self.first == 0), loss, self.first)
        high = (loss > self.limit * self.first) & (self.first > 0) & watched
        sound = finite & ~high
        self.failed = torch.where(wanted, (self.failed + 1) * ~sound, self.failed)
        back = self.failed >= PATIENCE
        self.failed = self.failed * ~back
        learned = (loss <= self.first) if watched else sound
        keep = wanted & sound & learned & (count >= self.kept + INTERVAL)
        copy_where(keep, weight, self.good)
        self.kept = torch.where(keep, count, self.kept) * ~back
        return back

    def restore(self, back: Bool[Tensor, ""], weight: Float[Tensor, "W"], *others: Tensor) -> None:
        """Goes back to sound parameters, where ``back``, and sets what an optimizer has gathered to zero."""
        copy_where(back, self.good, weight)
        for gathered in others:
            copy_where(back, torch.zeros_like(self.failed), gathered)


def copy_where(wanted: Bool[Tensor, ""], source: Tensor, target: Tensor) -> None:
    """Copies all of ``source`` or nothing. A CPU is asked, which saves a pass."""
    if not may_ask(wanted):
        target.copy_(torch.where(wanted, source, target))
    elif wanted:
        target.copy_(source)


def may_ask(flag: Tensor) -> bool:
    """Whether its value is there at once: a CPU need not be waited for."""
    return flag.is_cpu
