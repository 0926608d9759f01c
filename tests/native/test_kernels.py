"""The native kernels against their oracle: the same functions in plain tensors."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from reverie import native
from reverie.imagine import roll
from reverie.native.layers import norm_silu
from reverie.nets.layers import MLP
from reverie.optim import Optimizer, OptimizerOptions
from reverie.types import ActionPart, ActionSpec, Latent
from tests.core import CHOICE, STEER, make_agent, shake, uniform

pytestmark = pytest.mark.skipif(native.library() is None, reason="no C compiler")

MIXED = (ActionPart("gear", 3, True), ActionPart("steer", 2, False), ActionPart("horn", 2, True))


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    native.use(True)
    torch.set_num_threads(threads)


def both(function: Callable[[], list[Tensor]], rtol: float = 2e-5, atol: float = 2e-6) -> None:
    """Runs a function with kernels and without, and compares everything that it returns."""
    native.use(True)
    mine = function()
    native.use(False)
    oracle = function()
    assert mine and len(mine) == len(oracle)
    for a, b in zip(mine, oracle, strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol * max(1.0, b.detach().abs().max().item()))


def gradients(output: Tensor, *inputs: Tensor) -> list[Tensor]:
    """Of a weighted sum, so that no element's gradient is like another's."""
    weight = torch.linspace(-1.0, 1.0, output.numel()).view_as(output)
    return list(torch.autograd.grad((output * weight).sum(), inputs))


@pytest.mark.parametrize("shape", [(1, 1), (3, 5, 7), (50, 16), (2, 300, 64)])
def test_norm_and_silu(shape):
    torch.manual_seed(0)
    x, scale = torch.randn(shape).mul(3).requires_grad_(), torch.randn(shape[-1]).requires_grad_()

    def run() -> list[Tensor]:
        y = norm_silu(x, scale)
        return [y, *gradients(y, x, scale)]

    both(run)


def test_a_number_that_is_not_finite_stays_visible():
    x = torch.zeros(2, 8)
    x[0, 3] = float("nan")
    y = norm_silu(x, torch.ones(8))
    assert y[0].isnan().all() and not y[1].isnan().any()


@pytest.mark.parametrize("outputs", [None, 1, 63, 64])
@pytest.mark.parametrize(("rows", "inputs", "units", "layers"), [(1, 3, 5, 1), (25, 17, 33, 2), (130, 70, 64, 3)])
def test_a_stack_of_layers(rows, inputs, units, layers, outputs):
    torch.manual_seed(0)
    stack, x = MLP(inputs, units, layers, outputs), torch.randn(2, rows, inputs).requires_grad_()
    shake(stack, 0.3)

    def run() -> list[Tensor]:
        y = stack(x)
        with torch.no_grad():
            assert torch.equal(stack(x), y)
        return [y, *gradients(y, x, *stack.parameters())]

    both(run)


def test_a_stack_whose_input_needs_no_gradient():
    torch.manual_seed(0)
    stack, x = MLP(6, 8, 2, 3), torch.randn(40, 6)
    both(lambda: gradients(stack(x), *stack.parameters()))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("batch", [1, 16, 53])
def test_the_loop_over_a_sequence_and_its_gradients(batch, threads):
    torch.set_num_threads(threads)
    rssm = make_agent().world.rssm
    shake(rssm, 0.3)
    steps, sizes, generator = 9, rssm.sizes, torch.Generator().manual_seed(0)
    tokens = torch.randn(batch, steps, rssm.posterior_input.in_features - sizes.deter, generator=generator)
    tokens.requires_grad_()
    action = 2 * torch.randn(batch, steps, 3, generator=generator)
    first = torch.rand(batch, steps, generator=generator) < 0.2
    deter = torch.randn(batch, sizes.deter, generator=generator).tanh()
    stoch = torch.eye(sizes.classes)[torch.randint(sizes.classes, (batch, sizes.stoch), generator=generator)]
    stoch[0] = 0.0
    chance = uniform(batch, steps, sizes.stoch)

    def run() -> list[Tensor]:
        latent = rssm.observe(tokens, action, first, deter, stoch, chance)
        outputs = torch.cat([latent.features, latent.logits.flatten(-2)], -1)
        trained = [entry for name, entry in rssm.named_parameters() if not name.startswith("prior")]
        return [latent.stoch, outputs, *gradients(outputs, tokens, *trained)]

    both(run, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("action", [CHOICE, STEER, MIXED])
def test_a_dream(action: ActionSpec):
    agent = make_agent(action=action)
    shake(agent, 0.3)
    world, behavior, count, horizon = agent.world, agent.behavior, 61, 6
    torch.manual_seed(1)
    stoch = nn.functional.one_hot(torch.randint(4, (count, 4)), 4).float()
    start = Latent(torch.randn(count, 16).tanh(), stoch, torch.randn(count, 4, 4))
    choice, chance = uniform(horizon, count, behavior.distribution.noise), uniform(horizon, count, 4)

    def run() -> list[Tensor]:
        latent, policy, drawn = roll(world, behavior, start, choice, chance)
        return [latent.deter, latent.stoch, latent.logits, policy, drawn]

    with torch.no_grad():
        both(run, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["laprop", "adam"])
@pytest.mark.parametrize("limits", [{"agc": 0.3}, {"agc": 0.0, "clip": 0.5}, {"agc": 0.0}])
def test_a_step_of_the_optimizer(kind, limits):
    def run() -> list[Tensor]:
        torch.manual_seed(0)
        model = MLP(5, 7, 2, 3, scale=0.0)
        options = OptimizerOptions(kind=kind, rate=0.05, warmup=2, **limits)
        optimizer = Optimizer("model", model.parameters(), options, {"loss": 1.0})
        for step in range(5):
            broken = float("nan") if step == 3 else 1.0
            optimizer.step({"loss": (model(torch.randn(6, 5)) - 2.0).square().sum(-1) * broken})
        assert float(optimizer.count) == 4
        return [optimizer.weight, *optimizer.moments]

    both(run, rtol=1e-3, atol=1e-4)


def test_without_a_compiler_everything_is_computed_in_plain_tensors(monkeypatch, caplog):
    monkeypatch.setenv("CC", "no-such-compiler")
    native._load.cache_clear()
    try:
        with caplog.at_level(logging.INFO):
            assert native.library() is None
        assert "no C compiler" in caplog.text and not native.serves(torch.ones(1))
        assert norm_silu(torch.ones(2, 3), torch.ones(3)).isfinite().all()
    finally:
        native._load.cache_clear()


def test_a_compiler_that_fails_is_reported_in_one_line(monkeypatch, caplog, tmp_path):
    monkeypatch.setenv("CC", "false")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native._load.cache_clear()
    try:
        assert native.library() is None
        assert len(caplog.records) == 1 and "could not be built" in caplog.text
        assert not list(tmp_path.rglob("*.so"))
    finally:
        native._load.cache_clear()
