"""Streams of reward: what a level of the behavior is paid for, each with a critic head of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import AfterValidator, Field, model_validator
from torch import Tensor

from reverie.options import OTHERS, Options

TASK = "extrinsic"
"""The stream of the environment's own reward."""


def _known(kind: str) -> str:
    if kind not in SCHEDULES:
        raise ValueError(f"choose among {', '.join(SCHEDULES)}")
    return kind


class Schedule(Options):
    """How much of a stream's weight counts as learning goes on."""

    switches = {"kind": OTHERS}

    kind: Annotated[str, AfterValidator(_known)] = "constant"
    """`constant`; `linear` down to `final` over `decay` updates; `exponential`, a half of what is left every `decay`
    updates; `until`, all of it for `decay` updates; or another one of `streams.SCHEDULES`."""
    decay: int = Field(default=0, ge=0)
    """Updates of the agent."""
    final: float = Field(default=0.0, ge=0, le=1)
    """The share of the weight that is left in the end."""

    @model_validator(mode="after")
    def _has_a_length(self) -> Schedule:
        if self.kind != "constant" and not self.decay:
            raise ValueError("a schedule that is not constant needs the number of updates, decay")
        return self

    def share(self, updates: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """The share of the weight after so many updates."""
        return SCHEDULES[self.kind](updates / max(self.decay, 1)).clamp(min=self.final)


SCHEDULES: dict[str, Callable[[Tensor], Tensor]] = {
    "constant": torch.ones_like,
    "linear": lambda progress: 1.0 - progress,
    "exponential": lambda progress: 0.5**progress,
    "until": lambda progress: (progress < 1.0).float(),
}
"""The share of a weight, of updates in units of `Schedule.decay`; less than `Schedule.final` counts as that."""


CONSTANT = Schedule()
"""All of the weight, always."""


@dataclass(frozen=True)
class Stream:
    """One kind of reward: how much it counts, and over how many steps it is discounted."""

    weight: float
    horizon: float
    episodic: bool = True
    """Whether nothing is expected after the episode's end. Otherwise it goes on with the mean value of the rollouts'
    first points, for a dream sees no start of an episode."""
    ends_with_goal: bool = False
    """Whether credit ends where a goal does: the goal's value goes on, whatever the manager wants next."""
    floor: float = 1.0
    """Least spread of returns that advantages are divided by. As published, the scale of a stream whose floor is at
    least one begins at zero; any other begins with the first batch."""
    silent: bool = False
    """Whether the stream pays nothing for a while. Its scale then begins with the first batch that it pays for."""
    schedule: Schedule = CONSTANT

    @property
    def discount(self) -> float:
        return 1.0 - 1.0 / self.horizon
