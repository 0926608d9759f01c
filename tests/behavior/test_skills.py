"""Empowerment over a manager's goals: by hand on a table, and that a worker which ignores its goal leaves nothing."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from reverie import native
from reverie.agent import Agent
from reverie.behavior.goals import Decision
from reverie.behavior.intrinsic.bound import BoundOptions
from reverie.behavior.intrinsic.sight import Seen, Setting
from reverie.behavior.intrinsic.skills import Skills
from reverie.config import build
from reverie.errors import ConfigError
from reverie.imagine import pursue
from reverie.nets.distributions import OneHot
from reverie.types import Explained, Latent
from tests import core
from tests.core import CHOICE, FLAT, PLANNED, VECTORS, close, make_agent, make_batch, values
from tests.grid import capacity
from tests.intrinsic import always, dream_of, nothing, still, teach

LEADS = torch.tensor([[0, 1, 2, 3], [0, 0, 1, 1], [2, 2, 2, 3], [3, 3, 3, 3]])
"""[place, code]: where the worker ends. In the last place it ignores its goal."""
PLACES = len(LEADS)
ALIKE = [math.log(4), math.log(2), 0.562335, 0.0]
"""By hand: what the end tells of a code that is drawn alike."""
MOST = [math.log(4), math.log(2), math.log(2), 0.0]
"""The logarithm of the number of ends."""
EVERY = torch.cartesian_prod(torch.arange(2), torch.arange(2))
"""Codes of two groups with two classes each, by their number."""
ON_TABLE = Setting(CHOICE, PLACES, PLACES, units=64, bins=63, decision=Decision(OneHot(2, 0.01, groups=2), 3, 1))


def places(index: Tensor) -> Latent:
    none = torch.zeros(*index.shape, 1, 0)
    return Latent(F.one_hot(index, PLACES).float(), none, none)


def number(code: Tensor) -> Tensor:
    """Of codes [..., 2, 2]."""
    return (code.argmax(-1) * torch.tensor([2, 1])).sum(-1)


def lead(latent: Latent, code: Tensor, uniform: Tensor) -> Latent:
    """Waits where it is, and in the last step goes where the table says."""
    start = latent.deter.argmax(-1)
    assert uniform.shape == (3, len(start), 1 + 1)
    return places(torch.stack([start, start, start, LEADS[start, number(code.unflatten(-1, (2, 2)))]], 1))


def on_table(index: Tensor) -> Seen:
    """These places, replayed."""
    alive = torch.ones(1, len(index), dtype=torch.bool)
    return Seen(
        phi=torch.zeros(1, len(index), PLACES),
        action=torch.zeros(1, len(index) - 1, 3),
        joined=alive[:, 1:],
        inverse=torch.zeros(()),
        latent=places(index[None]),
        alive=alive,
        expect=lambda features: 2 * features,
        walk=still,
        continues=always,
        pursue=lead,
    )


# --- by hand ---


def knows(features: Tensor, outcome: Tensor, code: Tensor) -> Tensor:
    """What a planner says that knows the table and sees an end as it is."""
    ends, end = LEADS[features.argmax(-1)], outcome.argmax(-1)
    return -(ends == end[..., None]).sum(-1).log()


@pytest.mark.parametrize("place", range(PLACES))
def test_with_a_planner_that_knows_the_bound_is_what_the_end_tells_of_the_code(place, monkeypatch):
    part = Skills(BoundOptions(starts=8, samples=4, noise=0.0, uniform=True), ON_TABLE)
    assert part.most == pytest.approx(math.log(4)) and part.count == 2
    codes = F.one_hot(EVERY, 2).float().expand(8, 4, 2, 2)
    monkeypatch.setattr(part, "propose", lambda features, uniform: codes)
    monkeypatch.setattr(part, "planner_logprob", knows)
    _, metrics = part.loss(on_table(torch.full((3,), place)), nothing())
    close(metrics["skills"], ALIKE[place])
    close(metrics["skills_share"], ALIKE[place] / math.log(4))


def test_the_oracle_knows_the_most_that_there_is():
    close(capacity(F.one_hot(LEADS, PLACES).double())[0], MOST)


def test_the_bound_comes_close_to_the_most_from_below_and_to_nothing_where_goals_are_ignored():
    torch.manual_seed(0)
    part = Skills(BoundOptions(starts=64, samples=2), ON_TABLE)
    teach(part, on_table(torch.arange(PLACES)), 300, 0.01)
    start = torch.arange(PLACES).repeat_interleave(1000)
    code, outcome = part.attempt(places(start), on_table(start), nothing().manual_seed(1))
    features = places(start).features[:, None]
    with torch.no_grad():
        bound = part.planner_logprob(features, outcome, code) - part.source_logprob(features, code)
        found, value = bound.view(PLACES, -1).mean(-1), part.value(places(torch.arange(PLACES)).features).squeeze(-1)
    close(found, MOST, atol=0.05, rtol=0)
    close(value, MOST, atol=0.1, rtol=0)
    assert abs(found[-1]) < 0.02


# --- a worker that ignores its goal, in a world model ---


def managed(**changes: object) -> Agent:
    """An agent whose manager has four skills of two steps."""
    hierarchy = PLANNED.model_copy(update={"goals": "skill", "num_options": 4})
    tree = {"empowerment": {"kind": "skills", "warmup": 1}, "optimizer": {"rate": 0.01}, "every": 1, "units": 64}
    tree = {"hierarchy": {"enabled": True}, "agent": {"horizon": 16}, "intrinsic": tree | changes}
    return make_agent(VECTORS, CHOICE, hierarchy=hierarchy, intrinsic=build(tree).intrinsic)


def told(obeys: bool) -> float:
    """What a worker's skills tell of all that a fresh world model remembers, in nats."""
    agent = managed(skills={"noise": 0.0})
    motive, world, actor = agent.motives["intrinsic"], agent.world, agent.behavior.worker.actor
    with torch.no_grad():
        first, *_, last = actor
        first.weight[:, world.sizes.features :].mul_(10.0 if obeys else 0.0)
        last.weight.mul_(1000.0)
    motive.sight.expect = lambda features: F.layer_norm(features[..., :64], (64,))
    generator, found = agent.generators["intrinsic"], []
    walks = world.imagine, world.continues, partial(pursue, world, agent.behavior)
    for seed in range(100):
        batch = make_batch(world, CHOICE, rows=4, seed=seed)
        latent = world.observe(batch, torch.rand(4, 6, 4, generator=generator))[0].detach()
        seen = Explained(latent, world.encode(batch.obs).detach(), *walks)
        metrics = motive.learn(agent.optimizers["intrinsic"], seen, batch, dream_of(torch.zeros(1, 1, 3), 2), generator)
        found.append(metrics["intrinsic/skills"])
    return float(torch.stack(found[-50:]).mean())


def test_a_worker_that_ignores_its_goal_empowers_no_manager(monkeypatch):
    """Of 1.4 nats that four skills could tell. All is shown that remembers actions: they have to follow the goal."""
    monkeypatch.setattr(core, "SMALL", core.SMALL.model_copy(update={"deter": 64, "hidden": 32}))
    ignored, obeyed = told(obeys=False), told(obeys=True)
    assert abs(ignored) < 0.02
    assert obeyed > 0.4


# --- in an agent ---


@pytest.mark.parametrize("goals", ["autoencoder", "skill"])
def test_an_update_is_the_same_with_and_without_kernels(goals):
    agents = []
    for kernels in (True, False):
        native.use(kernels)
        agent = make_agent(
            VECTORS,
            hierarchy=PLANNED.model_copy(update={"goals": goals}),
            intrinsic=managed().motives["intrinsic"].options,
        )
        metrics = agent.learn(make_batch(agent.world))[0]
        assert all(bool(value.isfinite()) for value in metrics.values())
        agents.append((values(agent), metrics))
    native.use(True)
    (state, metrics), (other, others) = agents
    close(metrics["intrinsic/skills_loss"], others["intrinsic/skills_loss"], rtol=1e-3)
    moved = [name for name in state if name.startswith("own_motives")]
    assert len(moved) > 10
    for name in moved:
        close(state[name], other[name], atol=1e-4)


def test_its_gradient_is_finite_and_reaches_source_planner_and_value_alone():
    agent = managed()
    motive, batch, generator = agent.motives["intrinsic"], make_batch(agent.world), torch.Generator()
    latent, tokens, _ = agent.world.loss(batch, torch.rand(3, 6, 4))
    seen = Explained(latent.detach(), tokens, agent.world.imagine, agent.world.continues,
                     partial(pursue, agent.world, agent.behavior))  # fmt: skip
    loss, _ = motive.loss(seen, batch, dream_of(torch.zeros(1, 1, 3), 2), generator)
    loss.backward()
    part = motive.sources["empowerment"]
    for network in (part.source, part.planner, part.value):
        gradients = [parameter.grad for parameter in network.parameters()]
        assert all(bool(gradient.isfinite().all()) for gradient in gradients)
        assert any(bool(gradient.any()) for gradient in gradients)
    others = [*agent.world.parameters(), *agent.behavior.parameters()]
    assert not any(bool(parameter.grad.any()) for parameter in others if parameter.grad is not None)


def test_without_a_manager_it_is_refused_in_one_line():
    with pytest.raises(ConfigError, match=r"kind = skills: there is no manager .* set hierarchy\.enabled=true"):
        make_agent(VECTORS, hierarchy=FLAT, intrinsic=managed().motives["intrinsic"].options)
