"""Numbers of the objective that are learned: the meta-gradient against autograd through the step, and what it moves."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from reverie import native
from reverie.agent import Agent
from reverie.behavior.actor_critic import ActorCritic, BehaviorOptions
from reverie.behavior.meta_gradient import halves, learn_objective, meta_gradient, objective_slope
from reverie.behavior.objective import LearnedObjective, ObjectiveOptions, learned_objective
from reverie.behavior.streams import Stream
from reverie.config import load
from reverie.errors import ConfigError
from reverie.functional import lambda_return
from reverie.optim import Optimizer, OptimizerOptions
from reverie.types import Rollout
from tests.core import TASK, close, make_agent, make_batch, make_level, shake

PAIR = {"extrinsic": Stream(1.0, 333), "novelty": Stream(0.1, 100, floor=0.05)}
EVERYTHING = ObjectiveOptions(learned=["entropy", "return_lambda", "discount", "weights"], dreams=4)
NAMES = ["entropy", "return_lambda", "discount", "weight_novelty"]


# --- the gradient through a step ---


class PlainDescent(Optimizer):
    def look_ahead(self, gradient: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        return self.weight - self.rate * gradient, lambda outer: outer


def test_the_weight_of_a_linear_loss_by_hand():
    """-0.1 * (1, 2) . (3, -1)."""
    theta = nn.Parameter(torch.zeros(2))
    optimizer = PlainDescent("theta", [theta], OptimizerOptions(rate=0.1, warmup=0), {})
    slope = theta @ torch.tensor([3.0, -1.0])
    close(meta_gradient(optimizer, 0.5 * slope, [slope], lambda after: after[0] @ torch.tensor([1.0, 2.0])), [-0.1])


class Steps:
    """A little policy in double precision on made-up dreams, with the objective that `eta` gives it."""

    def __init__(self, options: OptimizerOptions):
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()
        self.optimizer = Optimizer("policy", self.net.parameters(), options, {"policy": 1.0})
        self.reward, self.continues = torch.randn(6, 4).double(), torch.rand(6, 4).double()
        self.value, self.inputs = torch.randn(6, 5).double(), torch.randn(6, 4, 3).double()
        self.judged = torch.randn(6, 4).double()
        for _ in range(3):  # moments that are not those of a first step
            self.optimizer.step({"policy": self.loss(dict(self.net.named_parameters()), self.eta())})

    def eta(self) -> Tensor:
        """Discount, lambda, and the weight of the entropy."""
        return torch.tensor([0.9, 0.8, 0.05], dtype=torch.float64)

    def advantage(self, eta: Tensor) -> Tensor:
        """Normalised, as that of a manager."""
        lam = eta[1].expand_as(self.reward)
        advantage = lambda_return(self.reward, eta[0] * self.continues, self.value, lam) - self.value[:, :-1]
        return (advantage - advantage.mean()) / advantage.std()

    def log_probs(self, parameters: dict[str, Tensor]) -> Tensor:
        return functional_call(self.net, parameters, self.inputs).log_softmax(-1)

    def loss(self, parameters: dict[str, Tensor], eta: Tensor, advantage: Tensor | None = None) -> Tensor:
        log_probs = self.log_probs(parameters)
        entropy = -(log_probs.exp() * log_probs).sum(-1)
        advantage = self.advantage(eta) if advantage is None else advantage
        return -(advantage * log_probs[..., 0] + eta[2] * entropy).mean()

    def judge(self, parameters: dict[str, Tensor]) -> Tensor:
        return -(self.judged * self.log_probs(parameters)[..., 1]).mean()

    def by_autograd(self) -> Tensor:
        """Through the unrolled step, second derivatives included."""
        optimizer, eta = self.optimizer, self.eta().requires_grad_()
        named = {name: p.detach().clone().requires_grad_() for name, p in self.net.named_parameters()}
        slopes = torch.autograd.grad(self.loss(named, eta), [*named.values()], create_graph=True)
        gradient = torch.cat([slope.flatten() for slope in slopes])
        if optimizer.options.clip:
            gradient = gradient * (optimizer.options.clip / gradient.norm()).clamp(max=1.0).detach()
        moments = optimizer.kind.moments(gradient, optimizer.moments, optimizer.count + 1, optimizer.averaging)
        direction = optimizer.kind.direction(moments, optimizer.count + 1, optimizer.averaging)
        after = optimizer.weight - optimizer.rate * direction
        pieces = after.split([p.numel() for p in named.values()])
        named = {name: piece.view_as(p) for (name, p), piece in zip(named.items(), pieces, strict=True)}
        return torch.autograd.grad(self.judge(named), eta)[0]

    def by_meta_gradient(self) -> Tensor:
        eta, named = self.eta(), dict(self.net.named_parameters())
        slopes = torch.autograd.functional.jacobian(self.advantage, eta).unbind(-1)
        log_probs = self.log_probs(named)
        entropy = -(log_probs.exp() * log_probs).sum(-1)
        terms = [-(slope * log_probs[..., 0]).mean() for slope in slopes[:2]] + [-entropy.mean()]
        judge = lambda parameters: self.judge(dict(zip(named, parameters, strict=True)))  # noqa: E731
        return meta_gradient(self.optimizer, self.loss(named, eta), terms, judge)


@pytest.mark.parametrize("clip", [0.0, 0.01])
@pytest.mark.parametrize("kind", ["adam", "laprop"])
def test_it_is_that_of_autograd_through_the_step(kind, clip):
    steps = Steps(OptimizerOptions(kind=kind, rate=0.05, warmup=0, agc=0.0, clip=clip, eps=1e-8))
    expected, found = steps.by_autograd(), steps.by_meta_gradient()
    assert (expected.abs() > 1e-6).all()
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0.0)


def test_a_step_that_is_looked_at_is_not_taken():
    steps = Steps(OptimizerOptions(rate=0.05, warmup=0))
    before = steps.optimizer.weight.clone()
    steps.by_meta_gradient()
    assert torch.equal(before, steps.optimizer.weight) and steps.optimizer.count == 3


@pytest.mark.parametrize("options", [OptimizerOptions(warmup=0), OptimizerOptions(kind="adam", warmup=0, clip=0.01)])
def test_where_it_would_end_is_where_the_step_ends(options):
    steps = Steps(options)
    gradient = torch.randn_like(steps.optimizer.weight)
    after, _ = steps.optimizer.look_ahead(gradient)
    steps.optimizer.step({"policy": (gradient * torch.cat([p.flatten() for p in steps.net.parameters()])).sum()})
    torch.testing.assert_close(after, steps.optimizer.weight)


# --- a level ---


def make(streams: dict[str, Stream] = PAIR, **options) -> tuple[ActorCritic, Optimizer]:
    torch.manual_seed(0)
    level = make_level(BehaviorOptions(objective=EVERYTHING, **options), 4, streams=streams)
    shake(level)
    choices = OptimizerOptions(kind="adam", rate=0.01, warmup=0, agc=0.0, eps=1e-8)
    optimizer = Optimizer("actor", level.actor.parameters(), choices, {"policy": 1.0})
    optimizer.moments.step.normal_(), optimizer.moments.square.uniform_(), optimizer.count.fill_(20)
    return level, optimizer


def rollout_of(level: ActorCritic, dreams: int = 9, length: int = 5, pieces: int = 1) -> Rollout:
    rows = dreams * pieces
    inputs = torch.randn(rows, length + 1, 4)
    policy = level.policy(inputs[:, :-1]).detach()
    action = level.distribution.sample(policy, torch.rand(rows, length, level.distribution.noise))
    sure = [stream.discount for stream in level.streams.values()]
    return Rollout(
        action=action,
        inputs=inputs,
        policy=policy,
        logprob=level.distribution.logprob(policy, action),
        reward=torch.randn(rows, length, len(sure)),
        discount=torch.rand(rows, length, len(sure)) * torch.tensor(sure),
        weight=torch.rand(rows, length),
        after=torch.randn(dreams, 4) if pieces > 1 else None,
        sure_discount=sure,
    )


def slope_by_autograd(level: ActorCritic, optimizer: Optimizer, inner: Rollout, outer: Rollout) -> Tensor:
    """What `objective_slope` says, from the definition: by autograd through the step of a level of plain tensors."""
    assert level.objective is not None
    at = level.objective.position.clone().requires_grad_()
    named = {name: p.detach().clone().requires_grad_() for name, p in level.actor.named_parameters()}

    def logprob(named: dict[str, Tensor], rollout: Rollout) -> tuple[Tensor, Tensor]:
        policy = functional_call(level.actor, named, rollout.inputs[:, :-1])
        return level.distribution.logprob(policy, rollout.action), level.distribution.entropy(policy)

    numbers = level.objective.numbers(at)
    log_probs, entropy = logprob(named, inner)
    values = level.point_values(inner)
    returns = torch.stack(
        [
            lambda_return(
                inner.reward[..., i],
                inner.discount[..., i] * (numbers["discount"] / level.discount if i == 0 else 1.0),
                values.inside[..., i].detach(),
                numbers["return_lambda"].expand(inner.weight.shape),
            )
            for i in range(2)
        ],
        -1,
    )
    weights = torch.stack([torch.ones(()), numbers["weight_novelty"]])
    advantage = ((returns - values.inside[:, :-1].detach()) / level.mixer.scale * weights).sum(-1)
    loss = -(inner.weight * (advantage * log_probs + numbers["entropy"] * entropy)).mean()
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, [*named.values()], create_graph=True)])
    gradient = (
        gradient * (optimizer.options.clip / gradient.norm()).clamp(max=1.0).detach()
        if (optimizer.options.clip)
        else gradient
    )
    moments = optimizer.kind.moments(gradient, optimizer.moments, optimizer.count + 1, optimizer.averaging)
    after = optimizer.weight - optimizer.rate * optimizer.kind.direction(
        moments, optimizer.count + 1, optimizer.averaging
    )
    pieces = after.split([p.numel() for p in named.values()])
    named = {name: piece.view_as(p) for (name, p), piece in zip(named.items(), pieces, strict=True)}
    judged = level.advantage(outer, level.point_values(outer), {}).detach()
    ratio = (logprob(named, outer)[0] - outer.logprob).exp()
    return torch.autograd.grad(-(outer.weight * ratio * judged).mean(), at)[0]


@pytest.mark.parametrize("kernels", [True, False])
def test_a_level_says_what_autograd_says(kernels, monkeypatch):
    level, optimizer = make()
    rollout = rollout_of(level)
    level.compute_targets(rollout)
    assert level.objective is not None and level.objective.names == NAMES
    inner, outer = halves(rollout, 4, torch.Generator().manual_seed(1))
    monkeypatch.setattr(native, "_enabled", frozenset(native.KERNELS if kernels else ()))
    found = objective_slope(level, level.objective, rollout, optimizer, torch.Generator().manual_seed(1))
    monkeypatch.setattr(native, "_enabled", frozenset())
    expected = slope_by_autograd(level, optimizer, inner, outer)
    assert (expected != 0).all()
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=1e-8)


def test_the_halves_share_no_dream_and_keep_their_pieces():
    level, _ = make({"extrinsic": Stream(1.0, 50), "goal": Stream(2.0, 30, ends_with_goal=True)})
    rollout = rollout_of(level, dreams=5, pieces=3)
    values = level.point_values(rollout)
    returns = level.returns(rollout, values)
    inner, outer = halves(rollout, 64, torch.Generator().manual_seed(0))
    assert len(inner.weight) == len(outer.weight) == 2 * 3
    seen = []
    for half in (inner, outer):
        rows = [int((rollout.logprob == row).all(1).nonzero()) for row in half.logprob]
        seen += rows
        torch.testing.assert_close(level.returns(half, level.point_values(half)), returns[rows])
    assert len({*seen}) == len(seen)


# --- what is learned ---


def test_numbers_begin_where_they_are_configured_and_the_critic_keeps_them():
    level, _ = make()
    rollout = rollout_of(level)
    assert level.objective is not None
    numbers = level.objective.numbers()
    close(torch.stack([*numbers.values()]), [3e-4, 0.95, 1 - 1 / 333, 0.1])
    returns = level.compute_targets(rollout).returns
    with torch.no_grad():
        level.objective.position[1:] += 1.0
    targets = level.compute_targets(rollout)
    assert torch.equal(targets.returns, returns)
    own = level.returns(rollout, level.point_values(rollout), level.objective.numbers())
    assert not torch.allclose(own, returns)


def test_an_advantage_uses_the_learned_numbers():
    level, _ = make()
    rollout = rollout_of(level)
    assert level.objective is not None
    before = level.compute_targets(rollout).advantage
    with torch.no_grad():
        level.objective.position[3] = math.log(0.9)
    targets = level.compute_targets(rollout)
    close(targets.metrics["policy/weight_novelty"], 0.9)
    assert not torch.allclose(targets.advantage, before)


def test_a_step_of_the_numbers_is_limited_and_goes_against_the_slope():
    objective = learned_objective(EVERYTHING, PAIR, 3e-4, 0.95)
    assert objective is not None
    before, yes = objective.position.clone(), torch.tensor(True)
    objective.move(torch.tensor([1e-9, -5.0, 0.3, 0.0]), yes)
    close(objective.position - before, [-0.01, 0.01, -0.01, 0.0], atol=1e-6)
    for slope, allowed in ((torch.full((4,), math.nan), yes), (torch.ones(4), ~yes), (torch.zeros(4), yes)):
        position, count = objective.position.clone(), objective.count.clone()
        objective.move(slope, allowed)
        assert torch.equal(objective.position, position) and objective.count == count


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_numbers_stay_in_their_range(sign):
    objective = learned_objective(EVERYTHING, PAIR | {"goal": Stream(3.0, 30)}, 3e-4, 0.95)
    assert objective is not None
    for _ in range(700):
        objective.move(sign * torch.ones(5), torch.tensor(True))
    low = [1e-5, 0.99, 0.999, 0.01, 0.01]
    high = [3e-2, 0.7, 0.95, 1.0, 3.0]
    close(torch.stack([*objective.numbers().values()]), low if sign > 0 else high, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "streams", "entropy", "names"),
    [
        (ObjectiveOptions(), PAIR, 3e-4, None),
        (ObjectiveOptions(learned=["weights"]), TASK, 3e-4, None),
        (ObjectiveOptions(learned=["entropy"]), TASK, 0.0, None),
        (ObjectiveOptions(learned=["discount"]), {"goal": Stream(1.0, 30)}, 3e-4, None),
        (ObjectiveOptions(learned=["weights"]), PAIR, 3e-4, ["weight_novelty"]),
    ],
)
def test_what_counts_for_nothing_is_not_learned(options, streams, entropy, names):
    objective = learned_objective(options, streams, entropy, 0.95)
    assert (objective and objective.names) == names


# --- an agent ---


def agent_of(**options) -> Agent:
    agent = make_agent(behavior=BehaviorOptions(epochs=1, minibatches=1, objective=EVERYTHING, **options))
    shake(agent)
    return agent


def test_an_agent_learns_them_and_goes_on_bit_for_bit():
    agent = agent_of()
    level = agent.behavior.worker
    for update in range(3):
        metrics, _ = agent.learn(make_batch(agent.world, seed=update))
    assert {"meta/entropy_policy", "meta/return_lambda_policy", "meta/discount_policy"} <= metrics.keys()
    assert level.objective is not None and level.objective.count == 2  # the first rate of a warm-up is zero
    close(level.entropy_weight, metrics["meta/entropy_policy"])
    assert level.entropy_weight != 3e-4
    twin = make_agent(behavior=BehaviorOptions(epochs=1, minibatches=1, objective=EVERYTHING), seed=1)
    twin.restore(agent.checkpoint())
    both = [each.learn(make_batch(agent.world, seed=9))[0] for each in (agent, twin)]
    assert both[0].keys() == both[1].keys()
    assert all(torch.equal(both[0][name], both[1][name]) for name in both[0])


def test_one_dream_alone_teaches_nothing():
    level, optimizer = make()
    rollout = rollout_of(level, dreams=1)
    assert isinstance(level.objective, LearnedObjective)
    before = level.objective.position.clone()
    learn_objective(level, level.objective, rollout, optimizer, torch.Generator(), torch.tensor(True))
    assert torch.equal(level.objective.position, before)


def test_an_entropy_that_has_a_target_is_left_to_it():
    level, _ = make(entropy_target=0.5)
    assert level.objective is not None and "entropy" not in level.objective.names


def test_a_number_that_is_configured_anew_begins_there(caplog):
    agent = agent_of()
    for update in range(3):
        agent.learn(make_batch(agent.world, seed=update))
    before = agent.behavior.worker.objective
    changed = BehaviorOptions(epochs=1, minibatches=1, objective=EVERYTHING, entropy=0.02, return_lambda=0.8)
    twin = make_agent(behavior=changed)
    with caplog.at_level("INFO"):
        twin.restore(agent.checkpoint())
    after = twin.behavior.worker.objective
    assert before is not None and after is not None
    numbers, old = after.numbers(), before.numbers()
    close(torch.stack([numbers["entropy"], numbers["return_lambda"]]), [0.02, 0.8])
    assert numbers["discount"] == old["discount"] and not torch.equal(before.position, before.start)
    assert "the learned entropy begins anew at 0.02" in caplog.text and "discount begins" not in caplog.text


def test_a_policy_without_a_known_step_has_nothing_to_learn_by():
    with pytest.raises(ConfigError, match="agent.actor_optimizer.kind = prodigy has none; choose adam or laprop"):
        load("flat", ["agent.actor_optimizer.kind=prodigy", 'behavior.objective.learned=["entropy"]'])
