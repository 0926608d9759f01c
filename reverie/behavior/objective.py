"""Numbers of a policy's objective that are learned while it trains: entropy weight, lambda, discount, stream weights.

A number lives as the logarithm of its distance from where it would stop to matter: an entropy weight or the weight of a
stream from zero, a discount or lambda from one. `meta_gradient` says where it should move.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn

from reverie.behavior.streams import TASK, Stream
from reverie.options import OTHERS, Options

log = logging.getLogger(__name__)


class ObjectiveOptions(Options):
    """Which numbers of a policy's objective are learned, by the gradient through a step of the policy."""

    switches = {"learned": OTHERS}

    learned: list[Literal["entropy", "return_lambda", "discount", "weights"]] = Field(default=[], max_length=4)
    """`entropy` is the weight of the entropy, `discount` the task's, `weights` are those of all streams but the task's.
    The critic keeps the numbers that are configured."""
    step: float = Field(default=0.01, gt=0)
    """What the logarithm of a number moves by at most in an update."""
    dreams: int = Field(default=64, ge=1)
    """Dreams from which the policy takes the step, and as many others that judge it."""


RANGES = {
    "entropy": (1e-5, 3e-2),
    "return_lambda": (0.7, 0.99),
    "discount": (0.95, 0.999),
    "weights": (0.01, 1.0),
}
"""Where learned numbers stay. A start outside of it widens the range."""

BELOW_ONE = {"return_lambda", "discount"}
"""Numbers whose distance is that from one."""

DECAYS = (0.9, 0.999)
"""Of the averaged gradient, and of its averaged square."""


class LearnedObjective(nn.Module):
    """The learned numbers of one level, by their names; the weight of the stream s is called ``weight_s``."""

    position: Tensor
    start: Tensor
    configured: Tensor
    averages: Tensor
    count: Tensor
    bounds: Tensor
    below_one: Tensor
    decays: Tensor

    def __init__(self, options: ObjectiveOptions, start: Mapping[str, float], kinds: Mapping[str, str]):
        """``start`` has the number by name, ``kinds`` says which of `RANGES` it is."""
        super().__init__()
        self.options, self.names = options, list(start)
        below = [kinds[name] in BELOW_ONE for name in start]
        distances, bounds = [], []
        for (name, number), from_one in zip(start.items(), below, strict=True):
            reach = [number, *RANGES[kinds[name]]]
            distance, *both = (1.0 - each if from_one else each for each in reach)
            distances.append(math.log(distance))
            bounds.append([math.log(min(distance, *both)), math.log(max(distance, *both))])
        self.register_buffer("position", torch.tensor(distances))
        self.register_buffer("start", torch.tensor(distances))
        self.register_buffer("averages", torch.zeros(len(DECAYS), len(distances)))
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("bounds", torch.tensor(bounds).T.contiguous(), persistent=False)
        self.register_buffer("below_one", torch.tensor(below), persistent=False)
        self.register_buffer("configured", torch.tensor(distances), persistent=False)
        self.register_buffer("decays", torch.tensor(DECAYS)[:, None], persistent=False)
        self.register_load_state_dict_post_hook(lambda module, _: module._honour_new_starts())  # of a copy as well

    @torch.no_grad()
    def _honour_new_starts(self) -> None:
        """Where a number is configured otherwise than when it was saved, it begins there."""
        changed = self.start != self.configured
        self.position.copy_(torch.where(changed, self.configured, self.position))
        self.averages.copy_(torch.where(changed, 0.0, self.averages))
        self.start.copy_(self.configured)
        for name, number, new in zip(self.names, self.numbers().values(), changed.tolist(), strict=True):
            if new:
                log.info("the learned %s begins anew at %g", name, number)

    def numbers(self, position: Float[Tensor, "P"] | None = None) -> dict[str, Float[Tensor, ""]]:
        """Every learned number, by default as it is now."""
        distance = (self.position if position is None else position).exp()
        return dict(zip(self.names, torch.where(self.below_one, 1.0 - distance, distance).unbind(), strict=True))

    @torch.no_grad()
    def move(self, slope: Float[Tensor, "P"], allowed: Bool[Tensor, ""]) -> None:
        """Steps against the slope of a loss by each position, where ``allowed`` and where the slope says something."""
        valid = allowed & slope.isfinite().all() & (slope != 0).any()
        seen = torch.stack([slope, slope.square()])
        count = self.count + 1
        averages = torch.lerp(seen, self.averages, self.decays)
        mean, square = averages / (1.0 - self.decays**count)
        moved = self.position - self.options.step * (mean / (square.sqrt() + TINY)).clamp(-1.0, 1.0)
        for mine, new in (
            (self.position, torch.clamp(moved, *self.bounds)),
            (self.averages, averages),
            (self.count, count),
        ):
            mine.copy_(torch.where(valid, new, mine))


TINY = 1e-30
"""Keeps quotients of zero at zero."""

CONFIGURED: Mapping[str, Tensor] = {}
"""No number is learned: all are as the options have them."""


def learned_objective(
    options: ObjectiveOptions, streams: Mapping[str, Stream], entropy: float, return_lambda: float
) -> LearnedObjective | None:
    """The chosen numbers of a level with these streams, where it has any; one of zero counts for nothing, and stays."""
    numbers = {"entropy": ("entropy", entropy), "return_lambda": ("return_lambda", return_lambda)}
    if TASK in streams:
        numbers["discount"] = ("discount", streams[TASK].discount)
    numbers |= {f"weight_{name}": ("weights", stream.weight) for name, stream in streams.items() if name != TASK}
    chosen = {
        name: (kind, number)
        for name, (kind, number) in numbers.items()
        if kind in options.learned and number > 0 and (number < 1 or kind not in BELOW_ONE)
    }
    if not chosen:
        if options.learned:
            log.warning("behavior.objective.learned: a level with the streams %s has no %s to learn",
                        ", ".join(streams), " or ".join(options.learned))  # fmt: skip
        return None
    return LearnedObjective(
        options,
        {name: number for name, (_, number) in chosen.items()},
        {name: kind for name, (kind, _) in chosen.items()},
    )
