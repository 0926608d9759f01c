"""A grid of 5 x 5 cells with five actions, whose empowerment is known: by Blahut and Arimoto, to ten digits."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from reverie.types import ActionPart, Latent

MOVE = (ActionPart("move", 5, True),)
SIDE = 5
CELLS = SIDE * SIDE


def moves() -> Tensor:
    """[cell, action]: where it leads; to stay, and to the four neighbours, where there is no wall."""
    row, column = torch.arange(CELLS) // SIDE, torch.arange(CELLS) % SIDE
    ways = torch.tensor([[0, 0], [-1, 0], [1, 0], [0, -1], [0, 1]])
    places = torch.stack([row, column], -1)[:, None] + ways
    reached = places.clamp(0, SIDE - 1)
    return reached[..., 0] * SIDE + reached[..., 1]


def channel(steps: int, slip: float) -> Tensor:
    """[cell, 5**steps, cell]: the probability of each end; an action is lost with probability ``slip``."""
    single = (1 - slip) * F.one_hot(moves(), CELLS).double()
    single = single + slip * torch.eye(CELLS, dtype=torch.double)[:, None]
    whole = torch.eye(CELLS, dtype=torch.double)[:, None]
    for _ in range(steps):
        whole = torch.einsum("csm,man->csan", whole, single).flatten(1, 2)
    return whole


def capacity(likelihood: Tensor, rounds: int = 2000, tolerance: float = 1e-10) -> tuple[Tensor, Tensor]:
    """Of channels [..., inputs, outputs] in nats, and the source [..., inputs] that reaches it."""
    source = torch.full_like(likelihood[..., 0], 1.0 / likelihood.shape[-2])
    for _ in range(rounds):
        spread = (source[..., None] * likelihood).sum(-2, keepdim=True)
        gain = torch.xlogy(likelihood, likelihood / spread.clamp(min=1e-300)).sum(-1)
        if (gain.amax(-1) - (source * gain).sum(-1)).max() < tolerance:
            break
        source = torch.softmax(source.log() + gain, -1)
    return (source * gain).sum(-1), source


def cells(index: Tensor) -> Latent:
    """The states of being there."""
    none = torch.zeros(*index.shape, 1, 0)
    return Latent(F.one_hot(index, CELLS).float(), none, none)


def sight(features: Tensor) -> Tensor:
    """What cells look like: each unlike any other, of mean zero and deviation one."""
    return F.layer_norm(features, (CELLS,))


class Grid:
    """Walks through it."""

    def __init__(self, slip: float):
        self.slip, self.moves = slip, moves()

    def walk(self, latent: Latent, actions: Tensor, uniform: Tensor) -> Latent:
        points = [latent.deter.argmax(-1)]
        for action, lost in zip(actions.argmax(-1).unbind(1), uniform[..., 0] < self.slip, strict=True):
            points.append(torch.where(lost, points[-1], self.moves[points[-1], action]))
        return cells(torch.stack(points, 1))
