"""What the tests of intrinsic rewards share: steps as they see them, without a world model."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from reverie.behavior.intrinsic.reward import IntrinsicReward
from reverie.behavior.intrinsic.sight import Seen, Setting
from reverie.optim import Optimizer, PolicyOptimizerOptions
from reverie.types import ActionSpec, Batch, Dream, Latent
from tests.core import CHOICE, flat_dream


def setting(outcome: int = 2, action: ActionSpec = CHOICE) -> Setting:
    return Setting(action, features=5, outcome=outcome, units=8, bins=63)


def still(latent: Latent, actions: Tensor, uniform: Tensor) -> Latent:
    """A walk that leads nowhere."""
    points = actions.shape[1] + 1
    return Latent(*(field[:, None].expand(-1, points, *field.shape[1:]) for field in latent.fields))


def always(features: Tensor) -> Tensor:
    """Episodes go on."""
    return torch.ones_like(features[..., 0])


def states(*shape: int, seed: int = 0) -> Latent:
    """States of five numbers, three of them deterministic."""
    stoch = torch.zeros(*shape, 1, 2)
    return Latent(torch.randn(*shape, 3, generator=torch.Generator().manual_seed(seed)), stoch, stoch)


def seen_of(phi: Tensor, action: Tensor | None = None, joined: Tensor | None = None, inverse: float = 0.0) -> Seen:
    """Steps [B, T] with these features; all belong together unless ``joined`` says otherwise."""
    rows, steps = phi.shape[:2]
    alive = torch.ones(rows, steps, dtype=torch.bool)
    return Seen(
        phi=phi,
        action=torch.zeros(rows, steps - 1, 3) if action is None else action,
        joined=alive[:, 1:] if joined is None else joined,
        inverse=torch.tensor(inverse),
        latent=states(rows, steps),
        alive=alive,
        expect=lambda features: features[..., : phi.shape[-1]],
        walk=still,
        continues=always,
        pursue=still,
    )


def replayed(action: Tensor, first: Tensor | None = None) -> Batch:
    """Steps [B, T] with these actions, of which some begin an episode."""
    never = torch.zeros(action.shape[:2], dtype=torch.bool)
    return Batch(
        *({}, action, never.float(), never if first is None else first, never, never),
        slot=never.long(),
        context_action=torch.zeros_like(action[:, 0]),
        context_latent={},
    )


def silence(module: nn.Module) -> None:
    """Makes a network answer zero, up to the bias of its last layer."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()


def nothing() -> torch.Generator:
    return torch.Generator()


def teach(part: IntrinsicReward, seen: Seen, updates: int, rate: float = 3e-3) -> None:
    """Lets a reward learn from the same steps."""
    optimizer = Optimizer("part", part.parameters(), PolicyOptimizerOptions(rate=rate, clip=100.0), {"part": 1.0})
    generator = nothing().manual_seed(0)
    for _ in range(updates):
        loss, _ = part.loss(seen, generator)
        optimizer.step({"part": loss})


def dream_of(action: Tensor, points: int) -> Dream:
    rows, edges = action.shape[:2]
    none = torch.zeros(rows, edges, 3)
    return flat_dream(states(rows, points), action, none, none[..., 0], torch.ones(rows, points), none[..., 0])
