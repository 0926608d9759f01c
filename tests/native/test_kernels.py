"""The native kernels against their oracle: the same functions in plain tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from reverie import native
from reverie.functional import two_hot_bins
from reverie.imagine import imagine, roll
from reverie.native import build
from reverie.native.layers import supports_stack
from reverie.nets import two_hot
from reverie.nets.layers import MLP, NormSiLU
from reverie.optim import Optimizer, OptimizerOptions
from reverie.types import ActionPart, ActionSpec, Latent
from tests.core import CHOICE, STEER, dream_starts, make_behavior, make_level, make_world, shake, uniform

needs_compiler = pytest.mark.skipif(build.find_compiler() is None, reason="no C compiler")

WIDER = {"deter": 160, "hidden": 72, "stoch": 5, "classes": 9, "blocks": 4}
"""Several panels of columns, and widths that do not fill them."""
MIXED = (ActionPart("gear", 3, True), ActionPart("steer", 2, False), ActionPart("horn", 2, True))


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    native.use(True)
    torch.set_num_threads(threads)


def run_with(enabled: bool, function: Callable[[], list[Tensor]]) -> tuple[list[Tensor], set[str]]:
    """What a function returns with kernels or without, and the kernels that it called."""
    called: set[str] = set()
    call = native.call
    native.use(enabled)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "call", lambda kernel, *task, **how: (called.add(kernel), call(kernel, *task, **how)))
        return function(), called


def both(function: Callable[[], list[Tensor]], *kernels: str, rtol: float = 2e-5, atol: float = 2e-6) -> None:
    """Runs a function with kernels, at least the named ones, and without; compares everything that it returns."""
    mine, called = run_with(True, function)
    oracle, none = run_with(False, function)
    assert called >= set(kernels) and not none
    assert mine and len(mine) == len(oracle)
    for a, b in zip(mine, oracle, strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol * max(1.0, b.detach().abs().max().item()))


def gradients(output: Tensor, *inputs: Tensor) -> list[Tensor]:
    """Of a weighted sum, so that no element's gradient is like another's."""
    weight = torch.linspace(-1.0, 1.0, output.numel()).view_as(output)
    return list(torch.autograd.grad((output * weight).sum(), inputs))


@needs_compiler
@pytest.mark.parametrize("shape", [(1, 1), (3, 5, 7), (50, 16), (2, 300, 64)])
def test_norm_and_silu(shape):
    torch.manual_seed(0)
    x, norm = torch.randn(shape).mul(3).requires_grad_(), NormSiLU(shape[-1])
    shake(norm, 0.5)

    def run() -> list[Tensor]:
        y = norm(x)
        return [y, *gradients(y, x, norm.scale)]

    both(run, "norm_silu_forward", "norm_silu_backward")


@needs_compiler
@pytest.mark.parametrize("batch", [(1,), (3, 5, 2), (700,)])
@pytest.mark.parametrize("bins", [3, 63, 255])
def test_two_hot_heads(batch, bins):
    torch.manual_seed(0)
    edges, logits, head = two_hot_bins(bins), torch.randn(*batch, bins).mul(3).requires_grad_(), MLP(bins, 1, 0, bins)
    nn.init.eye_(head[0].weight)
    wanted = [torch.randn(batch).mul(scale) for scale in (2.0, 1e9)]  # between the bins, and beyond them
    wanted[0].view(-1)[0] = edges[1]  # exactly on one

    def run() -> list[Tensor]:
        loss = two_hot.loss(logits, wanted, [1.0, 0.25], edges)
        with torch.no_grad():
            expected = two_hot.predict(head, logits / 30, edges)
        return [loss, *gradients(loss, logits), expected]

    both(run, "two_hot_loss", "two_hot_loss_back", "two_hot_mean")


@needs_compiler
@pytest.mark.parametrize("streams", [1, 3])
@pytest.mark.parametrize(("rows", "bins"), [(1, 3), (24, 63), (130, 255)])
def test_the_mean_of_two_hot_heads(rows, bins, streams):
    torch.manual_seed(0)
    head, x, edges = MLP(17, 33, 2, streams * bins), torch.randn(2, rows, 17), two_hot_bins(bins)

    def run() -> list[Tensor]:
        with torch.no_grad():
            found = two_hot.predict(head, x, edges)
        assert found.shape == (2, rows, streams)
        return [found]

    both(run, "two_hot_mean")


@needs_compiler
def test_two_hot_heads_keep_zero_and_what_is_not_finite():
    edges = two_hot_bins(255)
    assert torch.equal(two_hot.mean(torch.full((4, 255), 3.3), edges), torch.zeros(4))
    logits = torch.zeros(2, 255)
    logits[0, 7] = float("nan")
    assert two_hot.mean(logits, edges).isnan().tolist() == [True, False]
    assert two_hot.loss(logits, [torch.zeros(2)], [1.0], edges).isnan().tolist() == [True, False]


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("outputs", [10, None])
def test_a_head_without_whole_distributions_is_an_error(outputs, enabled):
    native.use(enabled)
    with torch.no_grad(), pytest.raises(RuntimeError, match="unflatten"):
        two_hot.predict(MLP(4, 8, 1, outputs), torch.zeros(5, 4), two_hot_bins(3))


@needs_compiler
def test_the_mean_of_a_head_that_is_left_to_torch():
    head, x, edges = MLP(600, 300, 1, 2 * 63), torch.randn(7, 600), two_hot_bins(63)
    assert not supports_stack(x, head.dense)

    def run() -> list[Tensor]:
        with torch.no_grad():
            return [two_hot.predict(head, x, edges)]

    both(run, "two_hot_mean")


@needs_compiler
def test_a_number_that_is_not_finite_stays_visible():
    x = torch.zeros(2, 8)
    x[0, 3] = float("nan")
    y = NormSiLU(8)(x)
    assert y[0].isnan().all() and not y[1].isnan().any()


def exactly(network: MLP, x: Tensor) -> Tensor:
    """What a stack of layers gives in double precision."""
    x = x.double()
    for weight, bias, scale in network.dense:
        x = nn.functional.linear(x, weight.double(), bias.double())
        if scale is not None:
            x = nn.functional.silu(nn.functional.rms_norm(x, scale.shape, scale.double(), eps=1e-4))
    return x


@needs_compiler
@pytest.mark.parametrize("outputs", [None, 1, 63, 64])
@pytest.mark.parametrize(("rows", "inputs", "units", "depth"), [(1, 3, 5, 1), (25, 17, 33, 2), (130, 70, 64, 3)])
def test_a_stack_of_layers(rows, inputs, units, depth, outputs):
    torch.manual_seed(0)
    stack, x = MLP(inputs, units, depth, outputs), torch.randn(2, rows, inputs).requires_grad_()
    shake(stack, 0.3)

    def run() -> list[Tensor]:
        y = stack(x)
        with torch.no_grad():
            assert torch.equal(stack(x), y)
        return [y]

    both(run, "mlp_forward")
    inputs = x, *stack.parameters()
    mine, called = run_with(True, lambda: gradients(stack(x), *inputs))
    plain, _ = run_with(False, lambda: gradients(stack(x), *inputs))
    assert called == {"mlp_forward", "mlp_backward"}
    for a, b, exact in zip(mine, plain, gradients(exactly(stack, x), *inputs), strict=True):
        missed = (b - exact).abs().max().item()  # by plain tensors, which round long sums as well
        torch.testing.assert_close(a, exact, rtol=2e-5, atol=2e-6 * max(1.0, exact.abs().max().item()) + missed)


def linear_gradients(d: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """What ``d`` [rows, outputs], the gradient of a layer's outputs for ``x``, makes of its matrix and its bias."""
    layer = MLP(x.shape[1], 1, 0, d.shape[1])
    layer(x).backward(d)
    matrix, bias = (parameter.grad for parameter in layer.parameters())
    assert matrix is not None and bias is not None
    return matrix, bias


@needs_compiler
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("rows", "outputs", "inputs"), [(1, 4, 4), (152, 8, 64), (153, 20, 132), (2000, 64, 36)])
def test_the_gradients_of_a_matrix_and_a_bias(rows, outputs, inputs, threads):
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    d, x = torch.randn(rows, outputs), torch.randn(rows, inputs)
    matrix, bias = linear_gradients(d, x)
    size = d.double().abs().t() @ x.double().abs()  # of what is summed
    assert ((matrix - d.double().t() @ x.double()).abs() <= 1e-6 * size).all()
    assert ((bias - d.double().sum(0)).abs() <= 1e-6 * d.abs().sum(0)).all()


@needs_compiler
def test_a_stack_whose_input_needs_no_gradient():
    torch.manual_seed(0)
    stack, x = MLP(6, 8, 2, 3), torch.randn(40, 6)
    both(lambda: gradients(stack(x), *stack.parameters()), "mlp_forward", "mlp_backward")


@needs_compiler
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("batch", "widths"), [(1, {}), (16, {}), (53, {}), (30, WIDER)])
def test_the_loop_over_a_sequence_and_its_gradients(batch, widths, threads):
    torch.set_num_threads(threads)
    rssm = make_world(**widths).rssm
    shake(rssm, 0.3)
    steps, sizes, generator = 9, rssm.sizes, torch.Generator().manual_seed(0)
    tokens = torch.randn(batch, steps, rssm.posterior_input.in_features - sizes.deter, generator=generator)
    tokens.requires_grad_()
    action = 2 * torch.randn(batch, steps, 3, generator=generator)
    first = torch.rand(batch, steps, generator=generator) < 0.2
    deter = torch.randn(batch, sizes.deter, generator=generator).tanh()
    stoch = torch.eye(sizes.classes)[torch.randint(sizes.classes, (batch, sizes.stoch), generator=generator)]
    stoch[0] = 0.0
    carried = [deter.requires_grad_(), stoch.requires_grad_()]
    latent_noise = uniform(batch, steps, sizes.stoch)

    def run() -> list[Tensor]:
        latent = rssm.observe(tokens, action, first, deter, stoch, latent_noise)
        outputs = torch.cat([latent.features, latent.logits.flatten(-2)], -1)
        trained = [entry for name, entry in rssm.named_parameters() if not name.startswith("prior")]
        return [latent.stoch, outputs, *gradients(outputs, tokens, *carried, *trained)]

    both(run, "observe_forward", "observe_backward", rtol=1e-4, atol=1e-5)


@needs_compiler
@pytest.mark.parametrize("wide", [0, 5])
@pytest.mark.parametrize("action", [CHOICE, STEER, MIXED])
def test_a_dream(action: ActionSpec, wide: int):
    world, count, horizon = make_world(action=action), 61, 6
    worker = make_level(inputs=world.sizes.features + wide, action=action, units=16)
    shake(world, 0.3)
    shake(worker, 0.3)
    torch.manual_seed(1)
    stoch = nn.functional.one_hot(torch.randint(4, (count, 4)), 4).float()
    start = Latent(torch.randn(count, 16).tanh(), stoch, torch.randn(count, 4, 4))
    action_noise, latent_noise = uniform(horizon, count, worker.distribution.noise), uniform(horizon, count, 4)
    target = torch.randn(count, wide)

    def run() -> list[Tensor]:
        latent, policy, drawn = roll(world, worker, start, target, action_noise, latent_noise)
        return [latent.deter, latent.stoch, latent.logits, policy, drawn]

    with torch.no_grad():
        both(run, "dream", rtol=1e-4, atol=1e-5)


@needs_compiler
@pytest.mark.parametrize("action", [CHOICE, MIXED])
def test_a_walk_by_given_actions(action: ActionSpec):
    world, count, horizon = make_world(action=action), 61, 6
    shake(world, 0.3)
    torch.manual_seed(1)
    stoch = nn.functional.one_hot(torch.randint(4, (count, 4)), 4).float()
    start = Latent(torch.randn(count, 16).tanh(), stoch, torch.randn(count, 4, 4))
    given, latent_noise = 2 * torch.randn(count, horizon, world.action_width), uniform(horizon, count, 4)
    taken = given.clone()
    both(lambda: list(world.imagine(start, given, latent_noise).fields), "dream", rtol=1e-4, atol=1e-5)
    assert torch.equal(given, taken)  # the kernel only reads what it else would write


@needs_compiler
def test_a_dream_with_a_manager():
    world = make_world()
    behavior = make_behavior(features=world.sizes.features, deter=world.sizes.deter)
    shake(world, 0.3)
    shake(behavior, 0.3)
    start = dream_starts(world)

    def run() -> list[Tensor]:
        dream = imagine(world, behavior, start, 6, torch.Generator().manual_seed(0))
        latent, goal, rewards = dream.latent, dream.goal, behavior.goals.rewards(dream, {"goal", "novelty"})
        decided = [goal.code, goal.target, dream.goal_policy, dream.goal_logprob]
        return [
            *latent.fields,
            dream.policy,
            dream.action,
            dream.logprob,
            *decided,
            rewards["goal"],
            rewards["novelty"],
        ]

    both(run, "dream", rtol=1e-4, atol=1e-5)


@needs_compiler
@pytest.mark.parametrize("kind", ["laprop", "adam"])
@pytest.mark.parametrize("limits", [{"agc": 0.3, "clip": 0.5}, {"agc": 0.0, "clip": 0.5, "decay": 3}, {"agc": 0.0}])
def test_a_step_of_the_optimizer(kind, limits):
    def run() -> list[Tensor]:
        torch.manual_seed(0)
        model = MLP(5, 7, 2, 3, scale=0.0)
        options = OptimizerOptions(kind=kind, rate=0.05, warmup=2, **limits)
        optimizer = Optimizer("model", model.parameters(), options, {"loss": 1.0})
        reports: list[Tensor] = []
        for step in range(6):
            loss = (model(torch.randn(6, 5)) - 2.0).square().sum(-1) * (float("nan") if step == 3 else 1.0)
            reports += optimizer.step({"loss": loss}, when=torch.tensor(step != 4)).values()
        assert float(optimizer.count) == 4
        return [optimizer.weight, *optimizer.moments, torch.stack(reports).nan_to_num(-1.0)]

    both(run, "descend", rtol=1e-3, atol=1e-5)


# --- in bf16 ---


@pytest.fixture
def bf16() -> Iterator[None]:
    """Products in bf16, where this processor has them."""
    with torch.autocast("cpu", torch.bfloat16):
        if not native.uses_bf16():
            pytest.skip("no such products")
        yield


@pytest.mark.usefixtures("bf16")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("rows", "outputs", "inputs"), [(1, 3, 5), (24, 64, 63), (153, 255, 132), (9, 7, 40_000)])
def test_products_in_bf16_are_those_of_rounded_numbers(rows, outputs, inputs, threads):
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    d, x, network = torch.randn(rows, outputs), torch.randn(rows, inputs), MLP(inputs, 1, 0, outputs)
    weight = network[0].weight.detach()
    left, right, matrix = (tensor.bfloat16().double() for tensor in (d, x, weight))
    with torch.no_grad():
        assert ((network(x) - right @ matrix.t()).abs() <= 1e-6 * (x.abs() @ weight.abs().t())).all()
    slope, column = linear_gradients(d, x)
    assert ((slope - left.t() @ right).abs() <= 1e-6 * (d.abs().t() @ x.abs())).all()
    assert ((column - d.double().sum(0)).abs() <= 1e-6 * d.abs().sum(0)).all()


@pytest.mark.usefixtures("bf16")
def test_a_stack_goes_back_in_bf16_as_it_came():
    torch.manual_seed(0)
    network, x = MLP(70, 1, 0, 9), torch.randn(300, 70).requires_grad_()
    y = network(x)
    slope = torch.linspace(-1.0, 1.0, y.numel()).view_as(y)
    with torch.autocast("cpu", enabled=False):  # as backward passes are made
        found = torch.autograd.grad(y, (x, network[0].weight, network[0].bias), slope)
    d, inputs, weight = (tensor.detach().bfloat16().double() for tensor in (slope, x, network[0].weight))
    for mine, exact in zip(found, (d @ weight, d.t() @ inputs, slope.double().sum(0)), strict=True):
        torch.testing.assert_close(mine.double(), exact, rtol=1e-5, atol=1e-4)


@pytest.mark.usefixtures("bf16")
@pytest.mark.parametrize("widths", [{}, WIDER])
def test_the_loops_in_bf16_are_near_those_in_single_precision(widths):
    world = make_world(**widths)
    rssm, batch, steps = world.rssm, 30, 3
    shake(rssm, 0.1)
    start, generator = world.initial(batch), torch.Generator().manual_seed(0)
    tokens = torch.randn(batch, steps, rssm.posterior_input.in_features - rssm.sizes.deter, generator=generator)
    action, first = torch.randn(batch, steps, 3, generator=generator), torch.zeros(batch, steps, dtype=torch.bool)
    latent_noise, found = torch.zeros(batch, steps, rssm.sizes.stoch), []  # the first class everywhere: one walk
    for enabled in (True, False):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            latent = rssm.observe(tokens, action, first, start.deter, start.stoch, latent_noise)
        with torch.autocast("cpu", enabled=False):
            found.append([latent.deter, latent.logits, *gradients(latent.deter, *rssm.gates.parameters())])
    for mine, single in zip(*found, strict=True):
        assert 1e-5 < ((mine - single).norm() / single.norm()).item() < 0.02


@pytest.mark.usefixtures("bf16")
def test_a_number_that_is_not_finite_stays_visible_in_bf16():
    network, x = MLP(8, 1, 0, 4), torch.zeros(3, 8)
    nn.init.ones_(network[0].weight)
    x[0, 3], x[1, 3] = torch.nan, torch.inf
    with torch.no_grad():
        y = network(x)
    assert y[0].isnan().all() and y[1].isinf().all() and not y[2].any()


# --- what the kernels leave to plain tensors ---


@needs_compiler
def test_this_machine_has_kernels():
    assert native.version() and native.supports(torch.ones(1))


@needs_compiler
def test_the_kernels_decline_what_they_do_not_know():
    x = torch.ones(2, 3)
    assert not native.supports(x, x.double()) and not native.supports(x.half()) and not native.supports(x[:0])
    native.use(False)
    assert not native.supports(x) and native.version() == ""


@pytest.mark.parametrize("enabled", [True, False])
def test_a_tensor_of_the_wrong_shape_or_type_is_an_error(enabled):
    native.use(enabled)
    for call in (
        lambda: MLP(6, 4, 1, 2)(torch.zeros(5, 4)),
        lambda: MLP(6, 4, 1, 2).double()(torch.zeros(5, 6)),
        lambda: NormSiLU(3)(torch.zeros(5, 4)),
    ):
        with pytest.raises((RuntimeError, ValueError)):
            call()


@pytest.mark.parametrize("enabled", [True, False])
def test_no_rows_give_no_rows(enabled):
    native.use(enabled)
    assert MLP(6, 4, 2, 3)(torch.zeros(0, 5, 6)).shape == (0, 5, 3)


def test_a_gradient_of_a_gradient_is_never_silently_wrong():
    torch.manual_seed(0)
    stack, x = MLP(6, 8, 2, 3), torch.randn(4, 6).requires_grad_()
    (slope,) = torch.autograd.grad(stack(x).square().sum(), x, create_graph=True)
    if native.version():
        with pytest.raises(RuntimeError, match="once_differentiable"):
            slope.sum().backward()


def test_only_what_is_trainable_gets_a_gradient():
    stack = MLP(6, 8, 2, 3).requires_grad_(False)
    stack[1].scale.requires_grad_()
    stack(torch.randn(40, 6)).sum().backward()
    assert [name for name, entry in stack.named_parameters() if entry.grad is not None] == ["1.scale"]


@pytest.mark.parametrize(("torch_is_slow", "served"), [(False, []), (True, [1000])])
def test_large_matrices_are_left_to_torch_where_it_is_faster(torch_is_slow, served, monkeypatch):
    monkeypatch.setattr(native, "faster_than_torch", lambda: torch_is_slow)
    small, large, kernels = MLP(64, 64, 1).dense, MLP(512, 512, 1).dense, bool(native.version())
    assert supports_stack(torch.zeros(2, 64), small) == kernels
    assert [rows for rows in (2, 1000) if supports_stack(torch.zeros(rows, 512), large)] == served * kernels


@pytest.mark.parametrize(
    ("told", "slow", "bf16"),
    [
        ("vendor_id\t: GenuineIntel\nflags\t\t: fma avx512f avx512_bf16\n", False, True),
        ("vendor_id\t: AuthenticAMD\nflags\t\t: fma avx512f\n", True, False),
        ("vendor_id\t: AuthenticAMD\nflags\t\t: fma avx2\n", False, False),
        ("Features\t: fp asimd bf16\n", False, False),
        (None, False, False),
    ],
)
def test_what_a_processor_can_do_is_read_from_linux(told, slow, bf16, monkeypatch, tmp_path):
    if told is not None:
        (tmp_path / "cpuinfo").write_text("processor\t: 0\n" + told)
    monkeypatch.setattr(build, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(build, "load", lambda bf16=False: True)
    monkeypatch.setattr(build, "features", build.features.__wrapped__)
    with torch.autocast("cpu", torch.bfloat16):
        assert (native.faster_than_torch(), native.uses_bf16()) == (slow, bf16)
    assert not native.uses_bf16()
