"""Manager and worker, each by itself, learn what can be known exactly: a bandit, and the ways of a small grid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from reverie.behavior import views
from reverie.behavior.actor_critic import ActorCritic, BehaviorOptions
from reverie.behavior.ppo import improve
from reverie.behavior.streams import Stream
from reverie.functional import max_cosine, one_hot
from reverie.nets.distributions import ActionDistribution, OneHot
from reverie.optim import Optimizer, PolicyOptimizerOptions
from reverie.types import Dream, Rollout
from tests.core import planned_dream

TASK = {"extrinsic": Stream(1.0, 333)}
GOAL = {"goal": Stream(1.0, 10, ends_with_goal=True)}


def level_of(choice: OneHot, inputs: int, streams: dict[str, Stream], **options) -> ActorCritic:
    torch.manual_seed(0)
    chosen = BehaviorOptions(layers=1, **options)
    return ActorCritic("level", chosen, inputs, ActionDistribution([choice]), streams, units=64, bins=63)


def train(level: ActorCritic, dream: Callable[[], Dream], view: Callable[..., Rollout], updates: int) -> None:
    options, generator = PolicyOptimizerOptions(rate=3e-3), torch.Generator().manual_seed(1)
    optimizers = {
        "actor": Optimizer("actor", level.actor.parameters(), options, {"policy": 1.0}),
        "critic": Optimizer("critic", level.critic.parameters(), options, {"value": 1.0}),
    }
    for _ in range(updates):
        rollout = view(dream(), level.streams, level.discount)
        improve(level, rollout, level.compute_targets(rollout), None, optimizers, generator)
        level.update_slow_critic()
        level.adapt_entropy(rollout, torch.tensor(True))


def test_a_manager_finds_the_code_that_pays():
    codes, generator = OneHot(8, 0.01, 8), torch.Generator().manual_seed(0)
    manager = level_of(codes, 4, TASK, minibatches=2, target_kl=0.16, entropy=3e-3)
    states = torch.ones(64, 5, 4)

    @torch.no_grad()
    def dream() -> Dream:
        choice = manager.policy(states[:, ::2])
        code = codes.sample(choice, torch.rand(64, 3, 8, generator=generator))
        paid = torch.stack([torch.zeros(64, 2), code[:, :-1, 3]], -1).flatten(1)  # where the first choice is 3
        logprob = manager.distribution.logprob(choice, code)
        made = planned_dream(states, code, {"extrinsic": paid})
        return replace(made, goal_policy=choice[:, :-1], goal_logprob=logprob[:, :-1])

    train(manager, dream, views.manager, updates=60)
    assert codes.split(dream().goal_policy[0, 0]).softmax(-1)[0, 3] > 0.9


MOVES = torch.tensor([[1, 0], [-1, 0], [0, 1], [0, -1], [0, 0]])


def test_a_worker_learns_the_way_to_every_goal_of_a_grid():
    moves, generator = OneHot(5, 0.01), torch.Generator().manual_seed(0)
    worker = level_of(moves, 25 + 25, GOAL, entropy=1e-3, target_kl=0.05, epochs=1)

    def cells(place: Tensor) -> Tensor:
        return one_hot(5 * place[..., 0] + place[..., 1], 25)

    @torch.no_grad()
    def dream() -> Dream:
        place = torch.randint(5, (128, 2), generator=generator)
        goals = cells(torch.randint(5, (128, 3, 2), generator=generator))
        states, policies, actions = [cells(place)], [], []
        for t in range(16):
            policies.append(worker.policy(torch.cat([states[-1], goals[:, t // 8]], -1)))
            actions.append(moves.sample(policies[-1], torch.rand(128, 1, generator=generator)))
            place = (place + MOVES[actions[-1].argmax(-1)]).clamp(0, 4)
            states.append(cells(place))
        points, policy, action = (torch.stack(parts, 1) for parts in (states, policies, actions))
        made = planned_dream(points, goals, {})
        reward = max_cosine(made.target[:, :-1], points[:, 1:])
        logprob = worker.distribution.logprob(policy, action)
        return replace(made, reward={"goal": reward}, action=action, policy=policy, logprob=logprob)

    train(worker, dream, views.worker, updates=70)
    made = dream()
    arrived, wanted = made.latent.deter[:, 8::8], made.goal.target[:, :-1]
    assert (arrived * wanted).sum(-1).mean() > 0.9
    assert (arrived * wanted.roll(1, 0)).sum(-1).mean() < 0.15
