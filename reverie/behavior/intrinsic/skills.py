"""Empowerment over a manager's goals: states are paid for how much a manager can decide from there.

What is chosen is the code of one goal, its groups one after the other; the worker then acts for its time, with open
eyes. What the outcome tells of the code is what the manager can bring about from there (Gregor et al. 2016). A worker
that ignores its goals leaves nothing of it.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from reverie.behavior.intrinsic.bound import Bound, BoundOptions
from reverie.behavior.intrinsic.sight import Seen, Setting
from reverie.types import Latent


class Skills(Bound):
    """That of a goal's code, for the steps that a goal holds."""

    name = "skills"

    def __init__(self, options: BoundOptions, setting: Setting):
        assert setting.decision is not None  # `build_intrinsic` refuses it otherwise
        code = setting.decision.code
        super().__init__(options, setting, code.noise, [code.classes])
        self.decision = setting.decision

    def follow(self, start: Latent, code: Float[Tensor, "N K C"], seen: Seen, generator: torch.Generator) -> Latent:
        decision = self.decision
        noise = decision.steps, len(code), decision.noise + start.stoch.shape[-2]
        uniform = torch.rand(noise, generator=generator, device=code.device)
        return seen.pursue(start, code.flatten(-2), uniform)
