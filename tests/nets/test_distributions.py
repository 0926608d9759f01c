from __future__ import annotations

import math

import pytest
import torch

from reverie.behavior.ppo import surrogate
from reverie.nets.distributions import ActionDistribution, BoundedNormal, OneHot
from reverie.types import ActionPart
from tests.core import close, uniform


def normal_params(mean: float, deviation: float) -> torch.Tensor:
    """What a network has to say for this mean and deviation."""
    share = (deviation - 0.1) / 0.9
    spread = 30.0 if share == 1 else -30.0 if share == 0 else math.log(share / (1 - share))
    return torch.tensor([math.atanh(mean), spread - 2.0])


# --- numbers ---


def test_a_fresh_normal_has_the_published_deviation_and_entropy():
    normal, zeros = BoundedNormal(1), torch.zeros(2)
    mean, deviation = normal.moments(zeros)
    assert mean == 0
    close(deviation[0], 0.8927173)
    close(normal.entropy(zeros), 1.3054528)


@pytest.mark.parametrize(("deviation", "entropy"), [(0.1, -0.8836465), (1.0, 1.4189385)])
def test_entropy_at_the_bounds_of_the_deviation(deviation, entropy):
    close(BoundedNormal(1).entropy(normal_params(0.0, deviation)), entropy)


def test_logprob_is_of_the_raw_sample():
    normal = BoundedNormal(1)
    close(normal.logprob(normal_params(0.1, 0.9), torch.tensor([0.5])), -0.9123434)
    old, new = normal_params(0.2, 0.5), normal_params(0.3, 0.4)
    close(normal.logprob(old, torch.tensor([1.3])), -2.645791)
    close(normal.logprob(old, torch.tensor([1.0])), -1.505791)
    close((normal.logprob(new, torch.tensor([1.3])) - normal.logprob(old, torch.tensor([1.3]))).exp(), 0.617636)
    close(normal.divergence(old, new), 0.089356, atol=1e-6)


def test_dimensions_of_a_normal_add_up():
    normal, pair = BoundedNormal(2), BoundedNormal(1)
    params, action = torch.tensor([0.3, -0.5, 1.0, -2.0]), torch.tensor([0.4, 1.7])
    parts = [params[[0, 2]], params[[1, 3]]]
    close(normal.logprob(params, action), sum(pair.logprob(p, action[i : i + 1]) for i, p in enumerate(parts)))
    close(normal.entropy(params), sum(pair.entropy(p) for p in parts))


def test_samples_are_not_squashed_and_follow_mean_and_deviation():
    samples = BoundedNormal(1).sample(normal_params(0.5, 0.8).expand(40_000, 2), uniform(40_000, 1))
    assert samples.mean().item() == pytest.approx(0.5, abs=0.015)
    assert samples.std().item() == pytest.approx(0.8, abs=0.015)
    assert samples.max() > 2.0


def test_the_extreme_uniform_numbers_give_finite_samples():
    extremes = torch.tensor([[0.0], [2.0**-24], [1 - 2**-24]])
    samples = BoundedNormal(1).sample(torch.zeros(3, 2), extremes)
    assert bool(samples.isfinite().all()) and samples.abs().max() < 6


def test_numbers_of_normals_equal_those_of_torch():
    old, new, action = torch.randn(3, 50, 6, generator=torch.Generator().manual_seed(0))
    action, normal = action[:, :3], BoundedNormal(3)
    theirs = [torch.distributions.Normal(*normal.moments(params)) for params in (old, new)]
    close(normal.logprob(old, action), theirs[0].log_prob(action).sum(-1))
    close(normal.entropy(old), theirs[0].entropy().sum(-1))
    close(normal.divergence(old, new), torch.distributions.kl_divergence(*theirs).sum(-1), atol=1e-5)


# --- choices ---


def test_everything_about_a_choice_is_of_the_mixed_distribution():
    choice, logits = OneHot(3, 0.01), torch.tensor([2.0, 0.0, -1.0])
    close(choice.entropy(logits), 0.537254)
    close(choice.logprob(logits, torch.eye(3)[1]).exp(), 0.116387)
    close(choice.logprob(torch.tensor([50.0, 0, 0]), torch.eye(3)[2]), -5.703782)
    samples = choice.sample(logits.expand(40_000, 3), uniform(40_000, 1))
    close(samples.mean(0), [0.838690, 0.116387, 0.044923], rtol=0, atol=0.006)
    assert bool((samples.sum(-1) == 1).all()) and bool(((samples == 0) | (samples == 1)).all())


def test_divergence_of_choices_is_exact_and_not_symmetric():
    choice = OneHot(2, 0.0)
    even, uneven = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.63, 0.37]).log()
    close(choice.divergence(even, uneven), 0.034997, atol=1e-6)
    close(choice.divergence(even, torch.tensor([0.6, 0.4]).log()), 0.020411, atol=1e-6)
    close(choice.divergence(uneven, even), 0.63 * math.log(1.26) + 0.37 * math.log(0.74))
    assert choice.divergence(uneven, uneven) == 0


@pytest.mark.parametrize(("change", "ratio"), [(0.02, 1.173511), (0.03, 1.271249)])
def test_the_groups_of_a_code_make_one_joint_probability(change, ratio):
    code = OneHot(8, 0.0, 8)
    assert code.size == code.parameters == 64 and code.noise == 8
    old = torch.full((2, 3, 8, 8), 0.125).log()
    new = old.clone()
    new[..., 0] += change
    new[..., 1:] = torch.log((1 - new[..., :1].exp()) / 7)
    action = torch.eye(8)[0].repeat(2, 3, 8)
    logprobs = [code.logprob(params.flatten(-2), action) for params in (old, new)]
    assert logprobs[0].shape == (2, 3)
    close((logprobs[1] - logprobs[0]).exp(), torch.full((2, 3), ratio))
    close(surrogate(logprobs[1], logprobs[0], torch.ones(2, 3), 0.2), torch.full((2, 3), min(ratio, 1.2)))


def test_the_groups_of_a_code_are_independent():
    code, single = OneHot(5, 0.01, 3), OneHot(5, 0.01)
    old, new = torch.randn(2, 7, 15, generator=torch.Generator().manual_seed(0))
    noise = uniform(7, 3)
    action = code.sample(new, noise)
    olds, news, actions, noises = old.split(5, -1), new.split(5, -1), action.split(5, -1), noise.split(1, -1)
    close(action, torch.cat(list(map(single.sample, news, noises)), -1))
    close(code.logprob(new, action), sum(map(single.logprob, news, actions)))
    close(code.entropy(new), sum(map(single.entropy, news)))
    close(code.divergence(old, new), sum(map(single.divergence, olds, news)))


# --- actions of several parts ---

MIXED = (ActionPart("gear", 3, True), ActionPart("steer", 2, False), ActionPart("horn", 2, True))


def test_a_mixed_action_is_the_concatenation_of_its_parts():
    joint = ActionDistribution.of(MIXED, 0.01)
    gear, steer, horn = joint.parts
    assert joint.parameters == 3 + 4 + 2 and joint.noise == 1 + 2 + 1
    params, noise = torch.randn(5, 9, generator=torch.Generator().manual_seed(0)), uniform(5, 4)
    action = joint.sample(params, noise)
    assert action.shape == (5, 7)
    close(action[:, :3], gear.sample(params[:, :3], noise[:, :1]))
    close(action[:, 3:5], steer.sample(params[:, 3:7], noise[:, 1:3]))
    close(action[:, 5:], horn.sample(params[:, 7:], noise[:, 3:]))
    pieces = params.split([3, 4, 2], -1), action.split([3, 2, 2], -1)
    logprobs = [part.logprob(p, a) for part, p, a in zip(joint.parts, *pieces, strict=True)]
    entropies = [part.entropy(p) for part, p in zip(joint.parts, pieces[0], strict=True)]
    close(joint.logprob(params, action), sum(logprobs))
    close(joint.entropy(params), sum(entropies))


@pytest.mark.parametrize(
    ("part", "most"), [(OneHot(8, 0.01, 8), 16.635532), (OneHot(5, 0.01), 1.609438), (BoundedNormal(2), 2.837877)]
)
def test_the_share_of_the_entropy_is_one_where_nothing_is_known(part, most):
    params = torch.full((part.parameters,), 30.0)
    assert part.entropy_range[1] == pytest.approx(most, rel=1e-6)
    close(ActionDistribution([part]).entropy_share(params), 1.0)


@pytest.mark.parametrize(("deviation", "share"), [(0.1, 0.0), (0.316228, 0.5), (1.0, 1.0)])
def test_the_share_of_a_normals_entropy_lies_between_its_bounds(deviation, share):
    close(ActionDistribution([BoundedNormal(1)]).entropy_share(normal_params(0.0, deviation)), share, atol=1e-5)


def test_parts_of_a_mixed_action_diverge_independently():
    joint = ActionDistribution.of(MIXED, 0.01)
    old = torch.randn(9, generator=torch.Generator().manual_seed(1))
    new = old.clone()
    new[7] += 1.0
    close(joint.divergence(old, new), joint.parts[2].divergence(old[7:], new[7:]))
    assert joint.divergence(old, new) > 0 and joint.divergence(old, old) == 0


def test_the_mode_is_the_likeliest_action():
    parts = (ActionPart("a", 3, True), ActionPart("b", 2, False), ActionPart("c", 4, True))
    distribution = ActionDistribution.of(parts, unimix=0.01)
    params = torch.randn(50, distribution.parameters)
    likeliest = distribution.logprob(params, distribution.mode(params))
    for _ in range(20):
        drawn = distribution.sample(params, uniform(50, distribution.noise))
        assert (distribution.logprob(params, drawn) <= likeliest).all()
