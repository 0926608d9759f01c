"""Empowerment by hand, against exact tables, and that an action which does nothing counts for nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from reverie.behavior.intrinsic.empowerment import Empowerment, EmpowermentOptions
from reverie.behavior.intrinsic.sight import Seen, Setting
from reverie.config import build
from reverie.errors import ConfigError
from reverie.types import ActionPart, Explained
from tests import core
from tests.core import CHOICE, STEER, VECTORS, close, make_agent, make_batch
from tests.grid import CELLS, MOVE, Grid, capacity, cells, channel, sight
from tests.intrinsic import always, dream_of, nothing, setting, silence, still, teach

BOTH = (ActionPart("which", 2, True),)
ON_GRID = Setting(MOVE, features=CELLS, outcome=CELLS, units=64, bins=63)


# --- the exact tables ---


@pytest.mark.parametrize(
    ("rows", "nats", "source"),
    [
        ([[0.9, 0.1], [0.1, 0.9]], 0.368064, [0.5, 0.5]),
        ([[1.0, 0.0], [0.5, 0.5]], 0.223144, [0.6, 0.4]),
        ([[0.75, 0.25, 0.0], [0.0, 0.25, 0.75]], 0.519860, [0.5, 0.5]),
    ],
)
def test_the_oracle_knows_the_channels_of_the_textbooks(rows, nats, source):
    found, best = capacity(torch.tensor(rows, dtype=torch.double))
    close(found, nats)
    close(best, source, atol=1e-4)


@pytest.mark.parametrize(
    ("steps", "slip", "corner", "edge", "centre"),
    [
        (1, 0.0, 1.0986, 1.3863, 1.6094),
        (2, 0.0, 1.7918, 2.1972, 2.5649),
        (3, 0.0, 2.3026, 2.6391, 3.0445),
        (1, 0.2, 0.7275, 0.9574, 1.1442),
        (2, 0.2, 1.1524, 1.4797, 1.7756),
    ],
)
def test_the_oracle_knows_the_grid(steps, slip, corner, edge, centre):
    nats = capacity(channel(steps, slip))[0]
    close(nats[[0, 2, 12]], [corner, edge, centre], atol=1e-4)


# --- by hand ---


def test_the_bound_is_what_the_planner_knows_more_than_the_source():
    """Two actions with outcomes of their own, drawn alike, of which the planner is certain by 0.8."""
    part = Empowerment(EmpowermentOptions(steps=1), replace(setting(), action=BOTH))
    silence(part)
    certain = math.log((0.8 - 0.0005) / (0.2 - 0.0005))  # one in a thousand is uniform
    list(part.planner.network)[-1].bias.data.copy_(torch.tensor([certain, 0.0]))
    features, code = torch.zeros(1, 5), torch.tensor([[[1.0, 0.0]]])
    bound = part.planner_logprob(features, torch.zeros(1, 2), code) - part.source_logprob(features, code)
    close(bound, [0.470004])
    assert bound < math.log(2)


def test_actions_are_drawn_one_after_the_other_and_known_in_that_order_alone():
    torch.manual_seed(0)
    part = Empowerment(EmpowermentOptions(steps=3), setting())
    code = torch.nn.functional.one_hot(torch.tensor([[2, 0, 1]]), 3).float()
    known = part.source.before(code)[0]
    assert known[:, :3].tolist() == torch.eye(3).tolist()
    assert known[:, 3:].tolist() == [[0.0] * 9, [0, 0, 1, *[0] * 6], [0, 0, 1, 1, 0, 0, 0, 0, 0]]
    features = torch.randn(1, 5)
    seen = part.propose(features, torch.rand(4000, 3, 1))
    assert seen.shape == (4000, 3, 3) and bool((seen.sum(-1) == 1).all())
    index = (seen.argmax(-1) * torch.tensor([9, 3, 1])).sum(-1)
    found = torch.bincount(index, minlength=27) / 4000
    every = torch.cartesian_prod(*[torch.arange(3)] * 3)
    wanted = part.source_logprob(features, torch.nn.functional.one_hot(every, 3).float()).exp()
    close(wanted.sum(), 1.0)
    close(found, wanted.detach(), atol=0.02, rtol=0)


@pytest.mark.parametrize("action", [CHOICE, STEER, (*CHOICE, *STEER)], ids=["choice", "numbers", "both"])
def test_actions_of_every_kind_become_choices(action):
    part, draws = Empowerment(EmpowermentOptions(steps=1), setting(action=action)), torch.rand(50, 3)
    noise = part.drawn.noise
    taken = part.drawn.sample(torch.zeros(50, part.drawn.size), draws[:, :noise]) @ part.table
    width = sum(part.size for part in action)
    assert taken.shape == (50, width) and bool((taken.abs() <= 1).all())
    wanted = math.log(3) * (CHOICE[0] in action) + 2 * math.log(8) * (STEER[0] in action)
    assert part.most == pytest.approx(wanted)
    if STEER[0] in action:
        assert taken[:, -1].unique().numel() > 4 and bool((taken[:, -1] < 0).any())


def test_the_source_finds_what_the_planner_can_tell():
    """A planner that is right by 0.8 and by 0.4: two thirds and one third are best, which is worth ln 1.2."""
    torch.manual_seed(0)
    place = Setting(BOTH, features=CELLS, outcome=2, units=16, bins=63)
    part = Empowerment(EmpowermentOptions(steps=1, starts=256, samples=1, noise=0.0), place)
    known = torch.tensor([0.8, 0.4]).log()
    part.planner_logprob = lambda features, outcome, code: (code[..., 0, :] * known).sum(-1)  # type: ignore[method-assign]
    seen = replace(on_grid(Grid(0.0), lambda features: features[..., :2]), walk=still)
    teach(part, seen, 400, 0.01)
    start = cells(torch.arange(CELLS)).features
    first = torch.eye(2)[:1].expand(CELLS, 1, 2)
    close(part.source_logprob(start, first).exp().mean(), 2 / 3, atol=0.03)
    close(part.value(start).mean(), 0.182322, atol=0.03)


def test_where_an_episode_is_over_no_action_has_an_effect():
    grid = Grid(0.0)
    part = Empowerment(EmpowermentOptions(steps=3, samples=1, noise=0.0), ON_GRID)
    safe = replace(on_grid(grid, lambda features: features), continues=lambda x: (x.argmax(-1) == 12).float())
    start = cells(torch.full((64,), 12))  # the centre, which alone is safe
    code, outcome = part.attempt(start, safe, nothing())
    ends = outcome[:, 0].argmax(-1)
    assert len(ends.unique()) > 3
    for actions, end in zip(code[:, 0].argmax(-1).tolist(), ends.tolist(), strict=True):
        first = next((a for a in actions if a), 0)  # the first move away from the centre is the last
        assert end == grid.moves[12, first]


def test_a_dream_is_paid_for_where_it_leads_and_never_less_than_nothing():
    part, dream = Empowerment(EmpowermentOptions(steps=2), setting()), dream_of(torch.zeros(2, 3, 3), 4)
    reward = part.reward(dream, torch.zeros(2, 4, 2)).detach()
    value = part.value(dream.latent.features)[:, 1:, 0].detach() / (2 * math.log(3))
    close(reward, value.clamp(min=0))
    assert bool((value < 0).any() and (value > 0).any())


# --- against the tables ---


def test_who_has_one_action_has_nothing_to_choose():
    with pytest.raises(ConfigError, match="one action alone"):
        Empowerment(EmpowermentOptions(), setting(action=(ActionPart("only", 1, True),)))


def test_ends_of_episodes_are_worth_nothing_and_teach_nothing_else():
    part, seen = Empowerment(EmpowermentOptions(steps=1, starts=CELLS), ON_GRID), on_grid(Grid(0.0))
    list(part.value)[-1].bias.data.fill_(1.0)
    others = [parameter.clone() for parameter in (*part.planner.parameters(), *part.source.parameters())]
    teach(part, replace(seen, alive=torch.zeros_like(seen.alive)), 300)
    assert part.value(seen.latent.features).abs().max() < 0.05
    assert all(map(torch.equal, others, (*part.planner.parameters(), *part.source.parameters())))
    assert EmpowermentOptions().episodic


def on_grid(grid: Grid, expect=sight) -> Seen:
    """All cells, replayed."""
    alive = torch.ones(1, CELLS, dtype=torch.bool)
    return Seen(
        phi=torch.zeros(1, CELLS, CELLS),
        action=torch.zeros(1, CELLS - 1, 5),
        joined=alive[:, 1:],
        inverse=torch.zeros(()),
        latent=cells(torch.arange(CELLS)[None]),
        alive=alive,
        expect=expect,
        walk=grid.walk,
        continues=always,
        pursue=still,
    )


@torch.no_grad()
def bounds(part: Empowerment, seen: Seen, tries: int = 2000) -> Tensor:
    """[cell], as a mean over many actions."""
    start = cells(torch.arange(CELLS).repeat_interleave(tries))
    code, outcome = part.attempt(start, seen, nothing().manual_seed(1))
    features = start.features[:, None]
    gain = part.planner_logprob(features, outcome, code) - part.source_logprob(features, code)
    return gain.view(CELLS, -1).mean(-1)


SHORT_CASES = [(1, 0.0, 400, 0.04, 0.99)]
"""Steps, slip, updates, largest mean error and least correlation."""

LONG_CASES = [
    (1, 0.0, 1500, 0.02, 0.99),
    (2, 0.0, 2000, 0.02, 0.99),
    (3, 0.0, 3000, 0.05, 0.99),
    (1, 0.2, 1500, 0.05, 0.98),
    (2, 0.2, 2500, 0.08, 0.98),
]


@pytest.mark.parametrize(
    ("steps", "slip", "updates", "error", "correlation"),
    [
        *SHORT_CASES,
        *(pytest.param(*case, marks=[pytest.mark.learning, pytest.mark.timeout(600)]) for case in LONG_CASES),
    ],
)
def test_the_bound_comes_close_to_the_capacity_from_below(steps, slip, updates, error, correlation):
    torch.manual_seed(0)
    options = EmpowermentOptions(steps=steps, starts=256, samples=1)
    part, seen = Empowerment(options, ON_GRID), on_grid(Grid(slip))
    teach(part, seen, updates)
    found, exact = bounds(part, seen), capacity(channel(steps, slip))[0].float()
    value = part.value(cells(torch.arange(CELLS)).features).squeeze(-1).detach()
    together = torch.corrcoef(torch.stack([found, exact]))[0, 1]
    print(f"K={steps} slip={slip}: off by {(found - exact).abs().mean():.4f}, correlation {together:.4f}")
    assert (found - exact).abs().mean() < error
    assert together > correlation
    assert (found - exact).max() < 0.05  # of what few tries miss
    assert (value - found).abs().mean() < 0.1


# --- actions that do nothing ---


def idle_world(noise: float, expect: Callable[[Tensor], Tensor] | None = None) -> tuple[float, float]:
    """The bound and the mean value, in nats, where nothing that is seen depends on an action.

    The world model is fresh: its recurrent state tells all actions. ``expect`` replaces the outcome head.
    """
    tree = {
        "empowerment": {"kind": "empowerment", "steps": 2, "noise": noise},
        "optimizer": {"rate": 0.01},
        "every": 1,
        "features": 64,
        "units": 64,
    }
    agent = make_agent(VECTORS, MOVE, intrinsic=build({"intrinsic": tree}).intrinsic)
    motive, world = agent.motives["intrinsic"], agent.world
    if expect is not None:
        motive.sight.expect = expect
    generator, found = agent.generators["intrinsic"], []
    for seed in range(100):
        batch = make_batch(world, MOVE, rows=4, seed=seed)
        latent = world.observe(batch, torch.rand(4, 6, 4, generator=generator))[0].detach()
        seen = Explained(latent, world.encode(batch.obs).detach(), world.imagine, world.continues, still)
        metrics = motive.learn(agent.optimizers["intrinsic"], seen, batch, dream_of(torch.zeros(1, 1, 5), 2), generator)
        found.append(metrics["intrinsic/empowerment"])
    value = motive.sources["empowerment"].value(latent.features).mean().detach()
    return float(torch.stack(found[-50:]).mean()), float(value)


def test_actions_that_change_nothing_empower_nobody(monkeypatch):
    """Of 3.2 nats that two actions could tell: nothing, unless the planner were shown what remembers them."""
    monkeypatch.setattr(core, "SMALL", core.SMALL.model_copy(update={"deter": 64, "hidden": 32}))
    bound, value = idle_world(noise=0.3)
    assert abs(bound) < 0.05 and abs(value) < 0.05
    leak, _ = idle_world(noise=0.0, expect=lambda features: F.layer_norm(features[..., :64], (64,)))
    assert leak > 0.5
