from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from reverie.behavior.goals import GOAL_REWARDS, AutoencoderGoals, SkillGoals
from reverie.nets.distributions import OneHot
from reverie.types import Dream
from tests.core import NO_BATCH, close, explained, planned_dream, shake

UNEVEN = [0.65] + [0.05] * 7
CERTAIN = [1.0] + [1e-30] * 7


class Always(nn.Module):
    """Says the same whatever it sees."""

    def __init__(self, answer: Tensor):
        super().__init__()
        self.answer = nn.Parameter(answer)

    def forward(self, x: Tensor) -> Tensor:
        return self.answer.expand(*x.shape[:-1], -1)


def some_dream(code: Tensor | None = None, deter: int = 6) -> Dream:
    states = torch.randn(4, 5, deter, generator=torch.Generator().manual_seed(0))
    return planned_dream(states, torch.zeros(4, 3, 1) if code is None else code, {})


# --- compressed states ---


def painter(chances: list[float], error: float) -> AutoencoderGoals:
    """Gives every state the same code, and is wrong about every number of it by the same."""
    goals = AutoencoderGoals(256, 4, "max_cosine", 10.0)
    goals.distribution = OneHot(8, 0.0, 8)
    goals.encoder = Always(torch.tensor(chances).log().repeat(8))  # type: ignore[assignment]
    goals.decoder = Always(torch.full((256,), error))  # type: ignore[assignment]
    return goals


@pytest.mark.parametrize(("chances", "nats"), [(UNEVEN, 6.007411), (CERTAIN, 16.635532), ([0.125] * 8, 0.0)])
def test_the_loss_adds_up_errors_over_dimensions_and_nats_over_groups(chances, nats):
    goals, states = painter(chances, 0.1), torch.zeros(5, 256)
    loss, seen = goals.loss(explained(states), NO_BATCH, some_dream(), torch.Generator())
    close(seen["goals/kl"], nats)
    close(seen["goals/reconstruction"], 2.56)
    close(loss, torch.full((5,), 2.56 + nats))
    close(goals.novelty(states), torch.full((5,), 0.01))


def test_beta_weighs_the_nats():
    goals = painter(UNEVEN, 0.1)
    goals.beta.fill_(0.5)
    close(
        goals.loss(explained(torch.zeros(1, 256)), NO_BATCH, some_dream(), torch.Generator())[0],
        [2.56 + 0.5 * 6.007411],
    )


@pytest.mark.parametrize(
    ("before", "nats", "after"), [(1.0, 6.0, 0.909091), (1.0, 16.0, 1.0), (0.5, 16.0, 0.55), (0.5, 9.5, 0.5)]
)
def test_beta_follows_the_nats_up_to_one(before, nats, after):
    goals = AutoencoderGoals(4, 4, "max_cosine", 10.0)
    goals.beta.fill_(before)
    goals.adapt({"goals/kl": torch.tensor(nats)}, torch.tensor(True))
    close(goals.beta, after)


def test_a_target_is_what_is_painted_from_a_code_and_states_are_proposed_as_their_codes():
    goals, states = AutoencoderGoals(6, 8, "max_cosine", 10.0), torch.randn(5, 6)
    shake(goals)
    goal = goals.propose(states, torch.rand(5, 8))
    assert goal.code.shape == (5, 64) and torch.equal(goals.distribution.split(goal.code).sum(-1), torch.ones(5, 8))
    close(goal.target, goals.decoder(goal.code).detach())


def test_the_encoder_learns_through_the_code_that_it_drew():
    goals = AutoencoderGoals(6, 8, "max_cosine", 10.0)
    goals.beta.zero_()
    loss, _ = goals.loss(explained(torch.randn(5, 6)), NO_BATCH, some_dream(), torch.Generator())
    assert torch.autograd.grad(loss.sum(), goals.encoder[0].weight)[0].abs().max() > 1e-4


@pytest.mark.parametrize(
    ("reward", "fits"),
    [("max_cosine", [1.0, 0.5, 0.5]), ("cosine", [1.0, 1.0, 0.707107]), ("distance", [0.0, -3.535534, -2.828427])],
)
def test_the_ways_to_compare_a_state_with_the_one_that_was_asked_for(reward, fits):
    goal = torch.tensor([[3.0, 4.0], [3.0, 4.0], [4.0, 0.0]])
    state = torch.tensor([[3.0, 4.0], [6.0, 8.0], [4.0, 4.0]])
    close(GOAL_REWARDS[reward](goal, state), fits)


# --- skills ---


def test_a_skill_pays_the_nats_by_which_the_state_gives_it_away():
    goals = SkillGoals(6, 4, 16)
    skill = goals.decode(torch.eye(16)[:3])
    assert torch.equal(skill.target, skill.code)
    goals.discriminator = Always(torch.zeros(16))  # type: ignore[assignment]
    close(goals.reward(skill.target, torch.randn(3, 6)), torch.zeros(3))
    close(goals.novelty(torch.randn(3, 6)), torch.full((3,), math.log(16)))
    goals.discriminator = Always(1e3 * torch.eye(16)[1])  # type: ignore[assignment]
    close(goals.reward(skill.target, torch.randn(3, 6)), [math.log(16) - 1e3, math.log(16), math.log(16) - 1e3])
    close(goals.novelty(torch.randn(3, 6)), torch.zeros(3))


def test_the_guess_learns_the_skill_that_was_in_force_when_the_state_was_reached():
    goals, code = SkillGoals(6, 4, 3), torch.eye(3).expand(4, 3, 3)  # skills 0 and 1; 2 is never acted upon
    goals.discriminator = Always(torch.tensor([0.2, 0.3, 0.5]).log())  # type: ignore[assignment]
    loss, seen = goals.loss(explained(torch.randn(2, 6)), NO_BATCH, some_dream(code), torch.Generator())
    close(loss, -torch.tensor([0.2, 0.2, 0.3, 0.3]).log().expand(4, 4))
    assert seen["goals/accuracy"] == 0
