"""Variational empowerment (Mohamed & Rezende 2015): states are paid for how much an agent can decide from there.

The empowerment of a state is the most that K actions can tell of what is seen afterwards, the capacity of the channel
from the ones to the other; what is learned is a bound on it (`bound`).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from reverie.behavior.intrinsic.bound import Bound, BoundOptions
from reverie.behavior.intrinsic.pay import PayOptions
from reverie.behavior.intrinsic.sight import Seen, Setting
from reverie.errors import ConfigError
from reverie.types import ActionSpec, Latent


class EmpowermentOptions(BoundOptions, PayOptions):
    """What the agent is paid for where it can decide a lot, and how that is estimated where actions are chosen."""

    weight: float = Field(default=0.05, ge=0)
    """Weight of its advantages, which are over the spread of its returns. With 0 the reward is learned
    and shown, its critic is not."""
    episodic: bool = True
    """Whether nothing is expected after an episode's end, where nothing can be decided."""
    warmup: int = Field(default=1000, ge=1)
    """Updates in which it learns, one of `intrinsic.every`, before it pays anything."""
    steps: int = Field(default=3, ge=1, le=100)
    """Actions that are chosen before the outcome is looked at."""


LEVELS = 8
"""Of a number in an action."""


def choices(action: ActionSpec) -> tuple[Float[Tensor, "C A"], list[int]]:
    """Actions as choices alone: what each stands for, and among how many; a number in [-1, 1] is one of `LEVELS`."""
    tables, sizes = [], []
    for part in action:
        levels = torch.linspace(-1.0, 1.0, LEVELS)[:, None]
        tables += [torch.eye(part.size)] if part.discrete else [levels] * part.size
        sizes += [part.size] if part.discrete else [LEVELS] * part.size
    return torch.block_diag(*tables), sizes


class Empowerment(Bound):
    """That of K actions, chosen without looking in between."""

    table: Tensor
    name = "empowerment"

    def __init__(self, options: EmpowermentOptions, setting: Setting):
        table, sizes = choices(setting.action)
        super().__init__(options, setting, options.steps, sizes)
        if not self.most:
            raise ConfigError(
                "intrinsic.empowerment: there is one action alone, and so nothing to choose; leave it out"
            )
        self.register_buffer("table", table, persistent=False)

    def follow(self, start: Latent, code: Float[Tensor, "N K C"], seen: Seen, generator: torch.Generator) -> Latent:
        noise = code.shape[1], *start.stoch.shape[:-1]
        uniform = torch.rand(noise, generator=generator, device=code.device)
        return seen.walk(start, code @ self.table, uniform)
