"""Rewards that an agent makes for itself: what is new to it, and what lets it choose.

Each gives raw numbers in dreams and learns from replay beside the world model (`reward`). All see by the same features
(`sight`). What they count for is a matter of their streams.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Set

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from reverie.behavior.goals import Decision
from reverie.behavior.intrinsic.bound import BoundOptions
from reverie.behavior.intrinsic.disagreement import Disagreement, DisagreementOptions
from reverie.behavior.intrinsic.empowerment import Empowerment, EmpowermentOptions
from reverie.behavior.intrinsic.icm import Icm, IcmOptions
from reverie.behavior.intrinsic.pay import NONE, PayOptions
from reverie.behavior.intrinsic.reward import IntrinsicReward
from reverie.behavior.intrinsic.rnd import Rnd
from reverie.behavior.intrinsic.sight import Setting, Sight
from reverie.behavior.intrinsic.skills import Skills
from reverie.behavior.motive import Motive
from reverie.behavior.streams import Stream
from reverie.errors import ConfigError
from reverie.optim import PolicyOptimizerOptions
from reverie.options import Options
from reverie.types import ActionSpec, Batch, Dream, Explained, Metrics


class IntrinsicOptimizerOptions(PolicyOptimizerOptions):
    """How intrinsic rewards are trained, all together."""

    rate: float = Field(default=3e-4, ge=0)
    """Learning rate after warm-up."""
    clip: float = Field(default=100.0, ge=0)
    """The group's gradient norm is clipped to this; 0 turns it off."""
    eps: float = Field(default=1e-8, gt=0)
    """Added to the root of the averaged square."""


class IntrinsicOptions(Options):
    """Rewards that the agent makes for itself."""

    curiosity: PayOptions = PayOptions()
    """What is new: `icm`, `rnd`, `disagreement`, or another one of `INTRINSIC`."""
    empowerment: EmpowermentOptions = EmpowermentOptions()
    """Where the agent can decide a lot: `empowerment`, by its actions, or `skills`, by its manager's goals."""
    optimizer: IntrinsicOptimizerOptions = IntrinsicOptimizerOptions()
    """How they are trained, all together."""
    every: int = Field(default=2, ge=1, le=1000)
    """They learn at one of so many updates, and pay at all."""
    features: int = Field(default=64, ge=2, le=65536)
    """Width of the features of an observation."""
    units: int | None = Field(default=None, ge=1, le=65536)
    """Width of hidden layers; left out, that of the world model's."""
    icm: IcmOptions = IcmOptions()
    """The intrinsic curiosity module."""
    disagreement: DisagreementOptions = DisagreementOptions()
    """Several models of what comes next."""
    skills: BoundOptions = BoundOptions()
    """Empowerment where a manager's goals are what is chosen."""

    @property
    def pay(self) -> dict[str, PayOptions]:
        """By the names of their streams, those that there are."""
        return {name: pay for name, pay in self._all.items() if pay.kind != NONE}

    @property
    def streams(self) -> dict[str, Stream]:
        """What whoever explores is paid for."""
        return {name: pay.stream for name, pay in self.pay.items()}

    @property
    def _all(self) -> dict[str, PayOptions]:
        return {"curiosity": self.curiosity, "empowerment": self.empowerment}

    @model_validator(mode="after")
    def _is_known(self) -> IntrinsicOptions:
        for name, pay in self._all.items():
            if pay.kind not in (NONE, *INTRINSIC):
                known = ", ".join([NONE, *INTRINSIC])
                raise ConfigError(f"intrinsic.{name}.kind = {pay.kind!r} is unknown; choose among {known}")
        return self

    def unread(self) -> dict[str, tuple[str, ...]]:
        """What belongs to rewards that nothing is paid by.

        A section that has the name of a kind is that kind's, but for what its stream is paid for.
        """
        kinds, switches = {pay.kind for pay in self.pay.values()}, tuple(f"{name}.kind" for name in self._all)
        found = [] if kinds else ["optimizer", "every", "features", "units"]
        for kind, section in self:
            if kind in INTRINSIC.keys() - kinds and isinstance(section, Options):
                payment = PayOptions.model_fields.keys() if isinstance(section, PayOptions) else set()
                found += [f"{kind}.{name}" for name in type(section).model_fields.keys() - payment]
        return dict.fromkeys(found, switches)

    def refuse_without_manager(self) -> None:
        """Raises ConfigError where a reward is chosen that says nothing without a manager."""
        for name, pay in self.pay.items():
            if pay.kind in OF_MANAGERS:
                others = ", ".join(kind for kind in INTRINSIC if kind not in OF_MANAGERS)
                raise ConfigError(
                    f"intrinsic.{name}.kind = {pay.kind}: there is no manager whose goals could be chosen; set "
                    f"hierarchy.enabled=true, or choose another one of {others}"
                )

    @model_validator(mode="after")
    def _pays_each_kind_once(self) -> IntrinsicOptions:
        names = {pay.kind: name for name, pay in self.pay.items()}
        if len(names) < len(self.pay):
            first, second = self.pay
            raise ConfigError(
                f"intrinsic.{second}.kind = {self.pay[second].kind}: so is intrinsic.{first}.kind; one reward is paid "
                f"once, so choose another one of {', '.join(INTRINSIC)} or none"
            )
        return self


class Intrinsic(Motive):
    """All intrinsic rewards of an agent, over one `Sight`. Each has a stream, and pays nothing before its warm-up."""

    def __init__(self, options: IntrinsicOptions, tokens: int, setting: Setting):
        super().__init__(options.optimizer)
        self.options, self.every = options, options.every
        sources = {name: INTRINSIC[pay.kind](options, setting) for name, pay in options.pay.items()}
        self.sight = Sight(tokens, setting, outcome=any(source.sees_outcome for source in sources.values()))
        self.sources = nn.ModuleDict(sources)
        self.inverse_scale = min(source.inverse_scale for source in sources.values())

    @torch.no_grad()
    def rewards(self, dream: Dream, wanted: Set[str]) -> dict[str, Float[Tensor, "N H"]]:
        sources = {name: source for name, source in self.sources.items() if name in wanted}
        looked_at = any(source.pays_by_outcome for source in sources.values())
        outcome = self.sight.expect(dream.latent.features) if looked_at else dream.latent.features[..., :0]
        rewards = {}
        for name, source in sources.items():
            pay = self.options.pay[name]
            raw = source.reward(dream, outcome).clamp(max=pay.clip or math.inf)  # type: ignore[operator]
            rewards[name] = torch.where(self.updates >= pay.warmup, raw, 0.0)
        return rewards

    def loss(
        self, explained: Explained, batch: Batch, dream: Dream, generator: torch.Generator
    ) -> tuple[Tensor, Metrics]:
        """The sum of all losses, one number."""
        loss, seen, metrics = self.sight.loss(explained, batch, self.inverse_scale, generator)
        for source in self.sources.values():
            more, found = source.loss(seen, generator)  # type: ignore[operator]
            loss, metrics = loss + more, metrics | found
        return loss, {f"intrinsic/{name}": number for name, number in metrics.items()}


INTRINSIC: dict[str, Callable[[IntrinsicOptions, Setting], IntrinsicReward]] = {
    "icm": lambda options, setting: Icm(options.icm, setting),
    "rnd": lambda options, setting: Rnd(setting),
    "empowerment": lambda options, setting: Empowerment(options.empowerment, setting),
    "skills": lambda options, setting: Skills(options.skills, setting),
    "disagreement": lambda options, setting: Disagreement(options.disagreement, setting),
}
"""Every intrinsic reward, by the name that `PayOptions.kind` chooses it by."""

OF_MANAGERS = {"skills"}
"""Those of `INTRINSIC` that are about a manager's goals."""


def build_intrinsic(
    options: IntrinsicOptions,
    action: ActionSpec,
    decision: Decision | None = None,
    *,
    tokens: int,
    features: int,
    units: int,
    bins: int,
) -> dict[str, Motive]:
    """The motive that options ask for, by its name; nothing where they ask for none.

    ``decision`` is what a manager decides, where there is one. Raises ConfigError for what needs one and has none.
    ``tokens`` is the width of encoded observations, ``features`` that of states, ``units`` that of the world model's
    hidden layers, and ``bins`` the number of its two-hot bins.
    """
    if decision is None:
        options.refuse_without_manager()
    setting = Setting(action, features, options.features, options.units or units, bins, decision)
    return {"intrinsic": Intrinsic(options, tokens, setting)} if options.pay else {}
