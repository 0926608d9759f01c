"""A manager and its worker, and a worker alone, learn Pin Pad where dreams are exact: the world is the game itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from reverie.behavior.actor_critic import BehaviorOptions
from reverie.behavior.behavior import Behavior
from reverie.behavior.build import build, default_streams
from reverie.behavior.hierarchy import HierarchyOptions
from reverie.behavior.ppo import improve
from reverie.env.pinpad import BOARDS, COUNTDOWN, PinPad
from reverie.functional import one_hot
from reverie.imagine import imagine
from reverie.optim import Optimizer, PolicyOptimizerOptions
from reverie.types import ActionPart, Latent
from reverie.world import rssm_kernels
from reverie.world.model import MultimodalWorldModel
from reverie.world.sizes import PRESETS
from tests.core import NO_BATCH, explained

GAME = PinPad(BOARDS["vec-3"].split(), length=500, vector=True, image=0)
MOVES = (ActionPart("move", 5, True),)
ENVS, STEPS, RATIO, DREAMS, HORIZON = 16, 40_000, 1 / 32, 128, 16


class Board(MultimodalWorldModel):
    """The rules for many players at once. A state is the one-hots of cell, countdown and history, [N, 72]."""

    neighbours, pads = torch.tensor(GAME.neighbours), torch.tensor(GAME.pads)
    widths = (len(GAME.floor), COUNTDOWN + 1, 4, 4, 4)

    def __init__(self) -> None:
        nn.Module.__init__(self)  # it has nothing to learn
        self.sizes = replace(PRESETS["tiny"], stoch=1)
        self.rssm = SimpleNamespace(prior_step=self.prior_step, gates=SimpleNamespace(bias=torch.zeros(1)))  # type: ignore[assignment]

    def put_down(self, uniform: Tensor) -> Tensor:
        """States [N, 72] in the cells that uniform numbers [N] choose."""
        cell, none = (uniform * self.widths[0]).long(), torch.zeros(len(uniform), dtype=torch.long)
        return self.join([cell, none, none, none, none])

    def join(self, fields: list[Tensor]) -> Tensor:
        return torch.cat([one_hot(field, width) for field, width in zip(fields, self.widths, strict=True)], -1)

    def split(self, state: Tensor) -> list[Tensor]:
        return [field.argmax(-1) for field in state.split(self.widths, -1)]

    def move(self, state: Tensor, action: Tensor, uniform: Tensor) -> Tensor:
        """What follows; uniform numbers [N] say where a player is put down after a success."""
        cell, countdown, *history = self.split(state)
        ends, none = countdown == 1, torch.zeros_like(cell)
        countdown = (countdown - 1).clamp(min=0)
        cell = torch.where(ends, (uniform * self.widths[0]).long(), cell)
        history = [torch.where(ends, none, pad) for pad in history]
        cell = self.neighbours[cell, action.argmax(-1)]
        pad = self.pads[cell]
        new = (pad > 0) & (pad != history[-1])
        moved = [*history[1:], pad]
        history = [torch.where(new, after, before) for after, before in zip(moved, history, strict=True)]
        success = (torch.stack(history, -1) == torch.tensor([1, 2, 3])).all(-1) & (countdown == 0)
        return self.join([cell, torch.where(success, COUNTDOWN, countdown), *history])

    # --- what a dream asks of a world model ---

    def prior_step(self) -> Callable[[Latent, Tensor, Tensor], Latent]:
        return lambda latent, action, latent_noise: latent_of(self.move(latent.deter, action, latent_noise[:, 0]))

    def continues(self, features: Tensor) -> Tensor:
        return torch.ones(features.shape[:-1])

    def reward(self, features: Tensor) -> Tensor:
        return features[..., self.widths[0] + COUNTDOWN]


def latent_of(state: Tensor) -> Latent:
    none = state.new_zeros(*state.shape[:-1], 0, 0)
    return Latent(state, none, none)


def test_the_board_follows_the_rules_of_the_game():
    board, generator = Board(), torch.Generator().manual_seed(0)
    GAME.reset(seed=0)
    actions, states = torch.randint(5, (5000,), generator=generator), []
    for action in [0, *actions.tolist()]:
        GAME.step(action)
        shown = GAME._state()
        states.append([shown["cell"], shown["countdown"], *shown["history"]])
    before, after = torch.tensor(states[:-1]), torch.tensor(states[1:])
    told = board.split(board.move(board.join(list(before.T)), one_hot(actions, 5), torch.zeros(len(actions))))
    known = before[:, 1] != 1  # else the player is put down at random
    assert (before[:, 1] == COUNTDOWN).sum() > 1 and torch.equal(torch.stack(told, -1)[known], after[known])


def train(behavior: Behavior) -> int:
    """Plays and dreams as a run does; returns the number of successes in the last quarter of the steps."""
    board, generator, rate = Board(), torch.Generator().manual_seed(0), PolicyOptimizerOptions(rate=1e-3)
    optimizers = [
        {
            "actor": Optimizer("actor", level.actor.parameters(), rate, {"policy": 1.0}),
            "critic": Optimizer("critic", level.critic.parameters(), rate, {"value": 1.0}),
        }
        for level in behavior.levels
    ]
    goals = behavior.goals
    painter = (
        Optimizer("goals", goals.parameters(), PolicyOptimizerOptions(rate=3e-3), {"goals": 1.0}) if goals else None
    )

    def draw(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator)

    state = board.put_down(draw(ENVS))
    goal, age = behavior.initial_goal(latent_of(state)), torch.zeros(ENVS, dtype=torch.long)
    seen, successes, never = [state], 0, torch.zeros(ENVS, dtype=torch.bool)
    worker = behavior.worker
    for step in range(STEPS // ENVS):
        with torch.no_grad():
            goal, age = behavior.next_goal(latent_of(state), goal, age, never, draw(ENVS, behavior.noise))
            policy = worker.policy(torch.cat([state, goal.target], -1))
            state = board.move(state, worker.distribution.sample(policy, draw(ENVS, 1)), draw(ENVS))
        seen.append(state)
        successes += int(board.reward(state).sum()) * (4 * step >= 3 * STEPS // ENVS)
        if step * ENVS * RATIO % 1 or step < 8:
            continue
        starts = latent_of(torch.cat(seen)[torch.randint(len(seen) * ENVS, (DREAMS,), generator=generator)])
        dream = imagine(board, behavior, starts, HORIZON, generator)
        for motive in behavior.motives.values():
            dream = replace(dream, reward=dream.reward | motive.rewards(dream, {"goal", "novelty"}))
        for level, rollout, kinds in zip(behavior.levels, behavior.views(dream), optimizers, strict=True):
            ready = behavior.ready()
            improve(level, rollout, level.compute_targets(rollout), None, kinds, generator, ready)
            level.update_slow_critic()
            level.adapt_entropy(rollout, ready)
        if goals and painter:
            loss, metrics = goals.loss(explained(starts.deter), NO_BATCH, dream, generator)
            painter.step({"goals": loss})
            goals.adapt(metrics, torch.tensor(True))
    return successes


@pytest.mark.learning
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("enabled", [False, True], ids=["flat", "hierarchy"])
def test_pads_are_found_in_order(monkeypatch, enabled):
    monkeypatch.setattr(rssm_kernels, "supports", lambda *arguments: False)  # the world is no recurrent network
    torch.manual_seed(0)
    options = BehaviorOptions(horizon=100, slow_rate=0.1, epochs=1, entropy=0.01, return_floor=0.05)
    hierarchy = HierarchyOptions(enabled=enabled, goal_nats=8, goal_mix=0.25, goal_warmup=100)
    behavior = build(
        options, hierarchy, MOVES, default_streams(options, hierarchy), features=72, deter=72, units=64, bins=63
    )
    assert train(behavior) > 300  # about 410 are possible
