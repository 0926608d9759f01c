"""Prodigy as a kind of optimizer: it steps as its package does, and skips, saves and warms up as the others do."""

from __future__ import annotations

import sys

import pytest
import torch
from prodigyopt import Prodigy
from torch import Tensor, nn

from reverie.errors import ConfigError, StoredDataError
from reverie.learned_rates import MetaOptions
from reverie.optim import Optimizer, OptimizerOptions
from reverie.rate_free import RateFreeOptimizer, optimizer_class
from tests.core import close, make_agent, make_batch

PLAIN = OptimizerOptions(kind="prodigy", rate=7.0, warmup=0, agc=0.0, eps=1e-8)
"""The rate is one that must not matter."""


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def loss(net: nn.Module, update: int) -> Tensor:
    x, y = torch.randn(2, 8, 3, generator=torch.Generator().manual_seed(update)).unbind()
    return (net(x) - y[:, :2]).square().sum(-1)


class Trained:
    def __init__(self, options: OptimizerOptions = PLAIN):
        self.net = network()
        self.optimizer = optimizer_class(options.kind)("net", self.net.parameters(), options, {"fit": 1.0})
        assert isinstance(self.optimizer, RateFreeOptimizer)

    def step(self, update: int, when: Tensor | None = None) -> dict[str, Tensor]:
        return self.optimizer.step({"fit": loss(self.net, update)}, when)

    def all(self) -> list[Tensor]:
        state = self.optimizer.state_dict()
        estimates = torch.tensor([*state["estimates"].values()], dtype=torch.float64)
        return [estimates, self.optimizer.weight.clone(), *(v for v in state.values() if isinstance(v, Tensor))]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(mine, its) for mine, its in zip(one, other, strict=True))


def test_it_steps_as_the_package_does():
    mine, net = Trained(), network()
    theirs = Prodigy(net.parameters(), eps=1e-8)
    for update in range(30):
        metrics = mine.step(update)
        theirs.zero_grad()
        loss(net, update).mean().backward()
        theirs.step()
    assert theirs.param_groups[0]["d"] > 1e-4  # it has found a rate
    torch.testing.assert_close(mine.optimizer.weight, torch.cat([p.detach().flatten() for p in net.parameters()]),
                               rtol=1e-4, atol=1e-5)  # fmt: skip
    close(mine.optimizer.rate, theirs.param_groups[0]["d"], atol=1e-5)
    assert metrics.keys() == {"net/grad_norm", "net/skipped", "net/lr"}


@pytest.mark.parametrize("why", ["unwanted", "not finite"])
def test_a_skipped_step_changes_nothing(why):
    trained = Trained()
    for update in range(5):
        trained.step(update)
    before = trained.all()
    if why == "unwanted":
        assert trained.step(5, torch.tensor(False))["net/skipped"] == 0
    else:
        assert trained.optimizer.step({"fit": loss(trained.net, 5) * torch.inf})["net/skipped"] == 1
    assert same(before, trained.all())


def test_it_goes_on_bit_for_bit():
    one, other = Trained(), Trained()
    for update in range(20):
        one.step(update)
    other.optimizer.weight.copy_(one.optimizer.weight)
    other.optimizer.load_state_dict(one.optimizer.state_dict())
    for update in range(20, 25):
        one.step(update), other.step(update)
    assert same(one.all(), other.all())


@pytest.mark.parametrize("lost", ["sums", "start", "estimates", "step"])
def test_a_state_that_lacks_something_is_refused(lost):
    trained = Trained()
    state = trained.optimizer.state_dict()
    del state[lost]
    with pytest.raises(StoredDataError, match="net|estimates|sums|start"):
        Trained().optimizer.load_state_dict(state)
    state = trained.optimizer.state_dict()
    del state["estimates"]["d"]
    with pytest.raises(StoredDataError, match="lacks d"):
        Trained().optimizer.load_state_dict(state)


def test_a_state_of_another_kind_is_refused():
    adam = Optimizer("net", network().parameters(), OptimizerOptions(kind="adam"), {"fit": 1.0})
    with pytest.raises(StoredDataError, match="prodigy"):
        Trained().optimizer.load_state_dict(adam.state_dict())


def test_warm_up_and_decay_multiply_what_it_finds():
    trained = Trained(PLAIN.model_copy(update={"warmup": 4, "decay": 8, "final": 0.5}))
    before = trained.optimizer.weight.clone()
    trained.step(0)
    assert torch.equal(trained.optimizer.weight, before)  # the first rate of a warm-up is zero
    for update in range(1, 10):
        share = float(trained.optimizer.rate) / trained.optimizer.group["d"]
        assert share == pytest.approx(min(update / 4, 1.0) * (1.0 - 0.5 * min(update / 8, 1.0)), rel=1e-5)
        trained.step(update)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "prodigyopt", None)
    with pytest.raises(ConfigError, match=r"pip install 'reverie\[prodigy\]'"):
        Trained()


def test_an_agent_trains_with_it_beside_learned_rates():
    options = OptimizerOptions(kind="prodigy", warmup=0)
    agent = make_agent(optimizer=options, meta=MetaOptions(enabled=True))
    assert not agent.learned_rates.optimizers
    before = agent.optimizers["world"].weight.clone()
    for update in range(3):
        metrics, _ = agent.learn(make_batch(agent.world, seed=update))
    assert not torch.equal(agent.optimizers["world"].weight, before)
    assert all(torch.isfinite(value).all() for value in metrics.values())
    twin = make_agent(optimizer=options, meta=MetaOptions(enabled=True), seed=1)
    twin.restore(agent.checkpoint())
    both = [each.learn(make_batch(agent.world, seed=9))[0] for each in (agent, twin)]
    assert all(torch.equal(both[0][name], both[1][name]) for name in both[0])


def test_no_objective_is_learned_through_its_step():
    with pytest.raises(ConfigError, match="laprop, adam"):
        Trained().optimizer.look_ahead(torch.zeros(1))
