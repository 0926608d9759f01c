from __future__ import annotations

import math

import pytest
import torch

from reverie.functional import (
    adapt,
    balanced_kl,
    categorical_kl,
    constant_error,
    constant_surprise,
    lambda_return,
    masked_mean,
    masked_variance,
    max_cosine,
    mixed_log_probs,
    mixed_probs,
    one_hot,
    replay_return,
    sample_one_hot,
    softmax,
    straight_through,
    symexp,
    symlog,
    two_hot_bins,
    two_hot_loss,
    two_hot_mean,
)
from tests.core import close

BINS = two_hot_bins(255)


def two_hot(target: float, bins: torch.Tensor = BINS) -> dict[int, float]:
    """The weights that the loss gives to the bins: at uniform logits its gradient is ``1/K - weight``."""
    logits = torch.zeros(1, len(bins), dtype=torch.float64, requires_grad=True)
    two_hot_loss(logits, [torch.tensor([target], dtype=torch.float64)], [1.0], bins.double()).sum().backward()
    assert logits.grad is not None
    weight = 1 / len(bins) - logits.grad[0]
    return {index: value for index, value in enumerate(weight.tolist()) if abs(value) > 1e-12}


# --- symlog and two-hot ---


def test_symlog_and_symexp_have_the_published_values():
    close(symlog(torch.tensor([0.0, 1.0, -1.0, math.e - 1, 1000.0])), [0, 0.6931472, -0.6931472, 1, 6.9087548])
    close(symexp(torch.tensor(20.0)), 4.8516518e8)


def test_symexp_inverts_symlog():
    x = torch.cat([torch.logspace(-6, 6, 50), -torch.logspace(-6, 6, 50), torch.zeros(1)])
    close(symexp(symlog(x)), x)


def test_bins_have_the_published_values_and_are_antisymmetric_bit_for_bit():
    close(BINS[[0, 126, 128, 129]], [-4.8516518e8, -0.17055778, 0.17055778, 0.37020543])
    assert BINS.shape == (255,) and BINS[127] == 0 and torch.equal(BINS, -BINS.flip(0))
    assert bool((BINS.diff() > 0).all())


def test_an_even_number_of_bins_is_refused():
    with pytest.raises(ValueError, match="odd"):
        two_hot_bins(254)


@pytest.mark.parametrize(
    ("target", "weights"),
    [
        (1.0, {131: 0.6173297, 132: 0.3826703}),
        (-1.0, {122: 0.3826703, 123: 0.6173297}),
        (100.0, {156: 0.7105302, 157: 0.2894698}),
        (0.05, {127: 0.7068442, 128: 0.2931558}),
        (0.0, {127: 1.0}),
        (1e9, {254: 1.0}),
        (-1e9, {0: 1.0}),
    ],
)
def test_two_hot_interpolates_linearly_between_raw_bins(target, weights):
    assert two_hot(target) == pytest.approx(weights, rel=1e-5)


def test_two_hot_with_41_bins_puts_one_between_zero_and_symexp_of_one():
    bins = two_hot_bins(41)
    close(bins[21], math.e - 1)
    assert two_hot(1.0, bins) == pytest.approx({20: 0.418023, 21: 0.581977}, rel=1e-5)


def test_the_mean_of_a_two_hot_target_is_the_target():
    for target in (1.0, -1.0, 0.05, 100.0, -12345.6, 4.8e8):
        mean = sum(weight * BINS[index].item() for index, weight in two_hot(target).items())
        assert mean == pytest.approx(target, rel=1e-7)


def test_a_confident_two_hot_head_predicts_its_target():
    logits = torch.full((255,), -1e9)
    for index, weight in two_hot(1.0).items():
        logits[index] = math.log(weight)
    close(two_hot_mean(logits, BINS), 1.0)


def test_uniform_logits_cost_ln_255_and_predict_exactly_zero():
    targets = torch.tensor([0.0, 1.0, -3.7, 1e5, -1e9])
    close(two_hot_loss(torch.zeros(5, 255), [targets], [1.0], BINS), torch.full((5,), 5.5412635))
    assert torch.equal(two_hot_mean(torch.zeros(5, 255), BINS), torch.zeros(5))
    assert two_hot_mean(torch.full((255,), 3.3), BINS) == 0


# --- categorical distributions ---


@pytest.mark.parametrize("classes", [1, 2, 8, 9, 32])
def test_softmax_is_over_the_last_axis_however_many_classes_there_are(classes):
    logits = torch.randn(3, 5, classes, dtype=torch.float64, requires_grad=True)
    probs = softmax(logits)
    expected = logits.exp() / logits.exp().sum(-1, keepdim=True)
    close(probs, expected.detach())
    weight = torch.randn(3, 5, classes, dtype=torch.float64)
    slopes = [torch.autograd.grad((value * weight).sum(), logits)[0] for value in (probs, expected)]
    close(slopes[0], slopes[1])


def test_uniform_mixing_keeps_every_class_alive():
    log_p = mixed_log_probs(torch.tensor([10.0, 0.0, 0.0, 0.0]), 0.01)
    close(log_p.exp(), [0.9923651, 0.0025449, 0.0025449, 0.0025449], rtol=2e-5)
    close(-(log_p.exp() * log_p).sum(), 0.0532134)
    close(mixed_probs(torch.tensor([500.0, 0.0, -500.0, 0.0]), 0.01).min(), 0.0025)


def test_uniform_mixing_of_three_classes():
    log_q = mixed_log_probs(torch.tensor([2.0, 0.0, -1.0]), 0.01)
    close(log_q.exp(), [0.838690, 0.116387, 0.044923], atol=1e-6)
    close(-(log_q.exp() * log_q).sum(), 0.537254)
    raw = mixed_log_probs(torch.tensor([2.0, 0.0, -1.0]), 0.0)
    close(-(raw.exp() * raw).sum(), 0.524267)
    close(mixed_log_probs(torch.tensor([50.0, 0.0, 0.0]), 0.01)[2], -5.703782)


@pytest.mark.parametrize(("classes", "largest"), [(4, 5.924097), (16, 7.294657), (32, 7.980559), (64, 8.666619)])
def test_uniform_mixing_bounds_the_divergence(classes, largest):
    logits = 1000 * torch.eye(classes)[:2]
    close(categorical_kl(*mixed_log_probs(logits, 0.01)), largest)


@pytest.mark.parametrize("u", [0.62, 0.7, 0.6555])
def test_straight_through_is_one_hot_forward_and_the_softmax_backward(u):
    logits = torch.tensor([1.0, 0.0, -1.0, 0.5])

    def sample(x):
        return straight_through(mixed_probs(x, 0.01), torch.tensor(u))

    jacobian = torch.autograd.functional.jacobian(sample, logits)
    close(jacobian.diagonal(), [0.2468303, 0.1425264, 0.0594325, 0.2027911])
    close(jacobian[0, 1], -0.0818240)
    assert sorted(sample(logits).tolist()) == [0, 0, 0, 1]
    assert torch.equal(straight_through(mixed_probs(logits, 0.01), torch.tensor(0.65)), torch.eye(4)[2])


def test_samples_invert_the_cumulative_distribution():
    probs = torch.tensor([0.0, 0.25, 0.5, 0.25, 0.0])
    edges = torch.tensor([0.0, 0.2499, 0.25, 0.7499, 0.75, 1 - 2**-24])
    assert sample_one_hot(probs.expand(6, 5), edges).argmax(-1).tolist() == [1, 1, 2, 2, 3, 3]


def test_an_index_out_of_range_is_a_row_of_zeros():
    assert one_hot(torch.tensor([1, -1, 3, 255]), 3).tolist() == [[0, 1, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0]]


# --- the divergence between posterior and prior ---

POSTERIOR = torch.tensor([[1.0, 0.0, -1.0], [0.0, 0.5, 0.0]])


def kl_losses(scale: float = 1.0, free_nats: float = 1.0):
    """Losses of mixed logits, and the gradients of each with respect to posterior and prior logits."""
    leaves = [(scale * POSTERIOR).requires_grad_(), torch.zeros(2, 3, requires_grad=True)]
    losses = balanced_kl(*(mixed_log_probs(leaf, 0.01) for leaf in leaves), free_nats)
    gradients = [torch.autograd.grad(loss, leaves, allow_unused=True, retain_graph=True) for loss in losses]
    return losses, gradients


def test_divergence_of_mixed_categoricals():
    close(categorical_kl(*mixed_log_probs(torch.tensor([[1.0, 0.0, -1.0], [0.0, 0.5, 0.0]]), 0.01)), 0.3324799)


def test_free_nats_cut_loss_and_gradient():
    (dynamics, representation), ((_, to_prior), (to_posterior, _)) = kl_losses(free_nats=0.0)
    close(torch.stack([dynamics, representation]), [0.2900842, 0.2900842])
    assert to_prior.abs().max() > 0 and to_posterior.abs().max() > 0
    (dynamics, representation), ((_, to_prior), (to_posterior, _)) = kl_losses()
    assert dynamics == 1.0 and representation == 1.0
    assert not to_prior.any() and not to_posterior.any()


def test_above_the_free_nats_each_loss_trains_its_own_side():
    (dynamics, representation), ((from_dynamics, to_prior), (to_posterior, from_representation)) = kl_losses(6.0)
    close(torch.stack([dynamics, representation]), [1.7556335, 1.7556335])
    assert from_dynamics is None and from_representation is None
    close(to_posterior.abs().max(), 0.2390518)
    close(to_prior.abs().max(), 0.6510, rtol=1e-3)


def test_free_nats_apply_per_element_before_the_mean():
    def logit_of(kl: float) -> float:
        """The logit of two classes whose divergence from uniform is ``kl``."""
        low, high = 0.0, 50.0
        for _ in range(60):
            middle = (low + high) / 2
            pair = torch.tensor([[middle, 0.0], [0.0, 0.0]], dtype=torch.float64)
            low, high = (middle, high) if categorical_kl(*torch.log_softmax(pair, -1)) < kl else (low, middle)
        return low

    # Six groups of 0.5 nats make 3.0, one makes 0.5: floored to 1.0, the mean is 2.0.
    logits = torch.zeros(2, 6, 2, dtype=torch.float64)
    logits[0, 0, 0] = logits[1, :, 0] = logit_of(0.5)
    losses = balanced_kl(torch.log_softmax(logits, -1), torch.log_softmax(torch.zeros_like(logits), -1), 1.0)
    for loss in losses:
        close(loss, [1.0, 3.0])
        close(loss.mean(), 2.0)


# --- goals and controllers ---


@pytest.mark.parametrize(
    ("one", "other", "fit"),
    [
        ([3, 4], [3, 4], 1.0),
        ([3, 4], [6, 8], 0.5),
        ([3, 4], [-4, 3], 0.0),
        ([3, 4], [-3, -4], -1.0),
        ([1, 0], [1, 1], 0.5),
        ([0, 0], [1, 1], 0.0),
        ([0, 0], [0, 0], 0.0),
    ],
)
def test_max_cosine_asks_for_direction_and_length(one, other, fit):
    pair = torch.tensor([one, other], dtype=torch.float32, requires_grad=True)
    for goal, state in (pair, pair.flip(0)):
        value = max_cosine(goal, state)
        close(value, fit)
        assert bool(torch.autograd.grad(value, pair)[0].isfinite().all())


def test_max_cosine_is_the_cosine_times_the_ratio_of_the_lengths():
    goal, state = torch.randn(2, 20, 5, generator=torch.Generator().manual_seed(0))
    lengths = torch.stack([goal.norm(dim=-1), state.norm(dim=-1)])
    close(max_cosine(goal, state), torch.cosine_similarity(goal, state, -1) * lengths.amin(0) / lengths.amax(0))


def test_a_weight_is_steered_in_steps_of_a_tenth_outside_a_band_of_a_tenth():
    weight, seen = torch.ones(()), []
    for found in (0.6, 0.6, 0.5, 0.4, 0.44):
        weight = adapt(weight, torch.tensor(0.5 / found), 1e-5, 1e2)
        seen.append(weight.item())
    assert seen == pytest.approx([0.909091, 0.826446, 0.826446, 0.909091, 1.0], rel=1e-5)


@pytest.mark.parametrize(
    ("found", "weight"), [(0.4545, 1.1), (0.4546, 1.0), (0.5499, 1.0), (0.5501, 0.909091), (0.0, 1.1)]
)
def test_the_band_in_which_a_weight_stays(found, weight):
    close(adapt(torch.ones(()), 0.5 / torch.tensor(found), 1e-5, 1e2), weight)


def test_a_weight_is_steered_within_its_bounds():
    assert adapt(torch.tensor(1.95), torch.tensor(2.0), 1.0, 2.0) == 2.0
    assert adapt(torch.tensor(1.05), torch.tensor(0.5), 1.0, 2.0) == 1.0


# --- credit over time ---


def row(*values: float) -> torch.Tensor:
    return torch.tensor([values], dtype=torch.float32)


@pytest.mark.parametrize(
    ("reward", "discount", "value", "mix", "expected"),
    [
        ([1, 2, 3], [0.9, 0.9, 0.9], [10, 20, 30, 40], 0.5, [24.8725, 33.05, 39.0]),
        ([1, 2, 3], [0.997, 0.5, 0.0], [10, 20, 30, 40], 0.95, [5.9513516, 4.175, 3.0]),
        ([1, 0, 2], [0.9, 0.45, 0.9], [0.5, 1, -1, 4], 0.5, [1.91575, 1.035, 5.6]),
    ],
)
def test_lambda_return_has_the_published_values_and_is_the_advantage_of_gae(reward, discount, value, mix, expected):
    returns = lambda_return(row(*reward), row(*discount), row(*value), mix)[0]
    close(returns, expected)
    advantage, advantages = 0.0, []
    for t in reversed(range(3)):
        advantage = reward[t] + discount[t] * value[t + 1] - value[t] + discount[t] * mix * advantage
        advantages.insert(0, advantage)
    close(returns - torch.tensor(value[:3]), advantages)


def test_lambda_one_is_the_discounted_sum_and_lambda_zero_trusts_the_critic():
    reward, discount, value = row(1, 2, 3), row(0.9, 0.8, 0.7), row(10, 20, 30, 40)
    close(lambda_return(reward, discount, value, 0.0)[0], [1 + 0.9 * 20, 2 + 0.8 * 30, 3 + 0.7 * 40])
    close(lambda_return(reward, discount, value, 1.0)[0, 0], 1 + 0.9 * (2 + 0.8 * (3 + 0.7 * 40)))


@pytest.mark.parametrize(
    ("terminal", "expected"), [(True, [3.1933935, 2.0, 7.975976]), (False, [9.803514, 8.978979, 7.975976])]
)
def test_replay_return_ends_at_a_terminal_and_bootstraps_at_a_truncation(terminal, expected):
    last = torch.tensor([[False, False, True, False]])
    returns = replay_return(row(0, 1, 2, 0), last & terminal, last, row(5, 6, 7, 8), 1 - 1 / 333, 0.95)
    close(returns[0], expected)


def test_statistics_leave_out_what_does_not_count():
    values, counted = torch.tensor([1.0, 100.0, 2.0, 6.0]), torch.tensor([True, False, True, True])
    close(masked_mean(values, counted), 3.0)
    close(masked_variance(values, counted), 7.0)
    close(masked_variance(torch.stack([values, 2 * values], -1), counted), [7.0, 28.0])
    none, one = torch.zeros(4, dtype=torch.bool), torch.arange(4) == 1
    assert masked_mean(values, none) == masked_variance(values, none) == masked_variance(values, one) == 0.0


def test_the_best_constant_costs_what_is_left_around_the_mean():
    counted = torch.tensor([True, True, False, True])
    values = torch.tensor([[1.0, 0.0], [2.0, 0.0], [90.0, 5.0], [6.0, 3.0]])
    close(constant_error(values, counted), (4.0 + 1.0 + 9.0) / 3 + (1.0 + 1.0 + 4.0) / 3)
    chosen = one_hot(torch.tensor([0, 1, 2, 1]), 3)
    close(constant_surprise(chosen, counted), -(math.log(1 / 3) / 3 + math.log(2 / 3) * 2 / 3))
    none = torch.zeros(4, dtype=torch.bool)
    assert constant_error(values, none) == constant_surprise(chosen, none) == 0.0
