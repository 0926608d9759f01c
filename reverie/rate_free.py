"""An optimizer without a learning rate: Prodigy (Mishchenko & Defazio 2024, arXiv 2306.06101), by its own package."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from reverie.compatibility import check_sections, compare, shapes
from reverie.directions import KINDS
from reverie.errors import ConfigError
from reverie.optim import Optimizer, OptimizerOptions, ramps
from reverie.types import cpu_copy


class RateFreeOptimizer(Optimizer):
    """Trains one group by steps of Prodigy, which estimates how far the parameters are from where they should be.

    Warm-up, decay and clipping are those of the options; their rate is not used. Every step waits for the device, as
    the package itself does.
    """

    estimates = ("d", "d_max", "d_numerator", "k")
    """What Prodigy knows of the distance, and how many steps it took: numbers of the one group."""

    def __init__(
        self,
        name: str,
        parameters: Iterable[nn.Parameter],
        options: OptimizerOptions,
        scales: Mapping[str, float],
        **how: Any,
    ):
        """As of any `Optimizer`. Raises ConfigError where the package is missing."""
        super().__init__(name, parameters, options, scales, **how)
        try:
            from prodigyopt import Prodigy
        except ModuleNotFoundError:
            raise ConfigError(f"{name}: the kind prodigy needs the package prodigyopt: pip install 'reverie[prodigy]'"
                              ) from None  # fmt: skip
        whole = nn.Parameter(self.weight)  # of the same memory
        whole.grad = self.gradient
        betas = options.beta1, options.beta2
        self.inner = Prodigy([whole], betas=betas, eps=options.eps, safeguard_warmup=options.warmup > 0)
        self.sums, self.start = torch.zeros_like(self.weight), self.weight.clone()
        self.inner.state[whole] = {
            "step": 0,
            "s": self.sums,
            "p0": self.start,
            "exp_avg": self.moments.step,
            "exp_avg_sq": self.moments.square,
        }
        self.ramps = ramps(options.model_copy(update={"rate": 1.0})).to(self.weight.device).unbind()

    @property
    def learnable(self) -> bool:
        return False

    @property
    def group(self) -> dict[str, Any]:
        """What Prodigy keeps beside its tensors."""
        return self.inner.param_groups[0]

    @property
    def rate(self) -> Tensor:
        """The estimate, times the share of it that warm-up and decay leave."""
        return super().rate * self.group["d"]

    def _step(self, rate: Tensor, when: Tensor | None) -> tuple[Tensor, ...]:
        norm = self.gradient.norm()
        finite = torch.isfinite(norm)
        if bool(finite if when is None else finite & when):
            self._clip(self.gradient)
            self.group["lr"] = float(rate) / self.group["d"]
            self.inner.step()
            self.count += 1
        return norm, (~finite).float()

    def _native_step(self, rate: Tensor, when: Tensor | None) -> tuple[Tensor, ...]:
        return self._step(rate, when)

    def look_ahead(self, gradient: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        raise ConfigError(f"behavior.objective.learned needs a step whose derivative is known: choose "
                          f"agent.actor_optimizer.kind among {', '.join(KINDS)}")  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        own = {"sums": cpu_copy(self.sums), "start": cpu_copy(self.start)}
        return super().state_dict() | own | {"estimates": {name: float(self.group[name]) for name in self.estimates}}

    def check(self, state: Mapping[str, Any]) -> None:
        super().check(state)
        own = {"sums": self.sums, "start": self.start}
        check_sections(state, {"estimates", *own})
        check_sections(state["estimates"], self.estimates)
        compare(f"{self.name}_optimizer", shapes({name: state[name] for name in own}), shapes(own))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.sums.copy_(state["sums"])
        self.start.copy_(state["start"])
        self.group.update(state["estimates"])


OPTIMIZERS: dict[str, type[Optimizer]] = {"prodigy": RateFreeOptimizer}
"""Kinds of optimizer that are not steps of `reverie.optim` in another direction."""


def optimizer_class(kind: str) -> type[Optimizer]:
    """Which one trains a group whose options are of this kind."""
    return OPTIMIZERS.get(kind, Optimizer)
