from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from reverie.functional import balanced_kl, mixed_log_probs
from reverie.types import Latent
from reverie.world.rssm import RSSM
from reverie.world.sizes import Sizes
from tests.core import close, fill, shake, uniform

SIZES = Sizes(deter=8, hidden=3, classes=3, units=2, depth=2, embed=4, stoch=2, blocks=4)
DETER = torch.tensor([[0.1, -0.2, 0.3, -0.4, 0.5, -0.6, 0.7, -0.8]])
STOCH = torch.eye(3)[[1, 2]][None]
ACTION = torch.tensor([[0.5, -2.0, 4.0]])
TOKENS = torch.tensor([[0.3, -0.1, 0.2, 0.9]])
FIRST_DETER = [-0.005459, -0.044258, 0.028161, 0.014318, -0.028989, 0.028025, 0.012598, -0.063871]
ROUNDED = {"rtol": 0, "atol": 1.1e-6}
"""The published numbers have six decimals."""


pytestmark = pytest.mark.usefixtures("both_ways")


@pytest.fixture
def golden() -> RSSM:
    """The model whose parameters the published implementation was filled with."""
    rssm = RSSM(tokens=4, action=3, sizes=SIZES, unimix=0.01)
    inputs = [layer for mlp in (rssm.from_deter, rssm.from_stoch, rssm.from_action) for layer in list(mlp)[:2]]
    posterior_norm, posterior_logits = list(rssm.posterior_output)
    fill(
        *(rssm.gates, rssm.mix, rssm.mix_norm, *inputs),
        *(rssm.posterior_input, posterior_norm, posterior_logits, *rssm.prior),
    )
    return rssm


@pytest.fixture
def shaken() -> RSSM:
    torch.manual_seed(0)
    rssm = RSSM(tokens=4, action=3, sizes=SIZES, unimix=0.01)
    shake(rssm, 0.3)
    return rssm


def core(rssm: RSSM, deter: Tensor, stoch: Tensor, action: Tensor) -> Tensor:
    weights = rssm.weights()
    return rssm.core(deter, stoch, rssm.drive(action, weights), weights)


def sequence(batch: int = 3, steps: int = 7) -> dict[str, Tensor]:
    """Arguments of `RSSM.observe`."""
    torch.manual_seed(1)
    return {
        "tokens": torch.randn(batch, steps, 4),
        "previous_action": torch.randn(batch, steps, 3),
        "first": torch.zeros(batch, steps, dtype=torch.bool),
        "deter": torch.randn(batch, 8),
        "stoch": torch.eye(3)[torch.randint(3, (batch, 2))],
        "uniform": torch.rand(batch, steps, 2),
    }


def same(one: Latent, other: Latent) -> None:
    for field in ("deter", "stoch", "logits"):
        torch.testing.assert_close(getattr(one, field), getattr(other, field), rtol=0, atol=1e-6)


# --- golden numbers ---


def test_the_core_has_the_published_values(golden):
    deter = core(golden, DETER, STOCH, ACTION)
    close(
        deter[0],
        [0.028764, -0.242108, 0.242872, -0.282898, 0.277995, -0.454710, 0.514203, -0.583952],
        **ROUNDED,
    )
    prior = golden.prior_logits(deter)[0]
    close(prior, [[0.263553, -0.536860, -0.125211], [0.569125, -0.021447, -0.563599]], **ROUNDED)


def test_the_posterior_and_its_divergence_have_the_published_values(golden):
    still = torch.zeros(1, 1, dtype=torch.bool)
    latent = golden.observe(TOKENS[None], ACTION[None], still, DETER, STOCH, uniform(1, 1, 2)).at(0)
    close(latent.logits[0], [[0.661463, -0.197014, -0.610694], [0.354383, 0.519374, -0.488220]], **ROUNDED)
    close(latent.deter, core(golden, DETER, STOCH, ACTION))
    logits = latent.logits, golden.prior_logits(latent.deter)
    for loss in balanced_kl(*(mixed_log_probs(logit, 0.01) for logit in logits), 0.0):
        close(loss[0], 0.118752, **ROUNDED)


def test_a_reset_runs_the_core_on_zeros_whatever_was_carried(golden):
    close(core(golden, 0 * DETER, 0 * STOCH, 0 * ACTION)[0], FIRST_DETER, **ROUNDED)
    first = torch.ones(1, 1, dtype=torch.bool)
    latent = golden.observe(TOKENS[None], ACTION[None], first, DETER, STOCH, uniform(1, 1, 2))
    close(latent.deter[0, 0], FIRST_DETER, **ROUNDED)


def test_without_weights_the_state_decays_by_the_closed_update_gate():
    rssm = RSSM(tokens=4, action=3, sizes=SIZES, unimix=0.01)
    for parameter in rssm.parameters():
        nn.init.zeros_(parameter)
    close(core(rssm, DETER, STOCH, ACTION), 0.7310586 * DETER)


def test_actions_beyond_one_are_scaled_without_a_gradient_through_the_scale(golden):
    close(core(golden, DETER, STOCH, ACTION), core(golden, DETER, STOCH, torch.tensor([[0.5, -1.0, 1.0]])))
    weights = golden.weights()
    slopes = []
    for x in ([0.5, -2.0, 4.0], [0.5, -1.0, 1.0]):
        action = torch.tensor([x], requires_grad=True)
        golden.drive(action, weights).sum().backward()
        assert action.grad is not None
        slopes.append(action.grad[0])
    close(slopes[0], slopes[1] * torch.tensor([1.0, 0.5, 0.25]))
    assert slopes[0].abs().min() > 1e-6


# --- the loop over time ---


def test_observing_step_by_step_equals_observing_all_steps_at_once(shaken):
    inputs = sequence()
    inputs["first"][1, 3] = True
    whole = shaken.observe(**inputs)
    deter, stoch = inputs["deter"], inputs["stoch"]
    for t in range(7):
        at = {name: inputs[name][:, t : t + 1] for name in ("tokens", "previous_action", "first", "uniform")}
        step = shaken.observe(deter=deter, stoch=stoch, **at).at(0)
        same(step, whole.at(t))
        deter, stoch = step.deter, step.stoch


def test_a_reset_inside_a_sequence_equals_a_fresh_sequence(shaken):
    inputs = sequence()
    inputs["first"][:, 4] = True
    whole = shaken.observe(**inputs)
    tail = {name: inputs[name][:, 4:].clone() for name in ("tokens", "previous_action", "first", "uniform")}
    tail["previous_action"][:, 0] = 17.0
    fresh = shaken.observe(deter=torch.randn(3, 8), stoch=torch.rand(3, 2, 3), **tail)
    same(fresh, Latent(whole.deter[:, 4:], whole.stoch[:, 4:], whole.logits[:, 4:]))


def test_a_reset_of_one_sequence_leaves_the_others_alone(shaken):
    inputs = sequence()
    before = shaken.observe(**inputs)
    inputs["first"][1, 2] = True
    after = shaken.observe(**inputs)
    for field in ("deter", "stoch", "logits"):
        assert torch.equal(getattr(after, field)[::2], getattr(before, field)[::2])
    assert not torch.equal(before.deter[1, 2], after.deter[1, 2])


def test_no_gradient_crosses_a_reset(shaken):
    inputs = sequence()
    inputs["first"][:, 4] = True
    inputs["tokens"].requires_grad_()
    shaken.observe(**inputs).features[:, 4:].sum().backward()
    gradient = inputs["tokens"].grad
    assert gradient is not None and not gradient[:, :4].any() and gradient[:, 4].any()


def test_an_imagined_step_is_the_core_followed_by_the_prior(shaken):
    inputs = sequence()
    start = Latent(inputs["deter"], inputs["stoch"], torch.zeros(3, 2, 3))
    action, noise = inputs["previous_action"][:, 0], inputs["uniform"][:, 0]
    latent = shaken.prior_step()(start, action, noise)
    close(latent.deter, core(shaken, start.deter, start.stoch, action))
    close(latent.logits, shaken.prior_logits(latent.deter))
    assert torch.equal(latent.stoch, shaken.sample(latent.logits, noise))


def test_latents_are_drawn_from_the_mixed_distribution(shaken):
    logits = torch.tensor([[100.0, 0, 0], [0, 0, 100.0]]).expand(20_000, 2, 3)
    share = shaken.sample(logits, uniform(20_000, 2)).mean(0)
    close(share, [[0.99333, 0.00333, 0.00333], [0.00333, 0.00333, 0.99333]], rtol=0, atol=0.002)
