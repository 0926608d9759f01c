from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch
from torch import Tensor, nn

from reverie.clipping import agc_ratio
from reverie.directions import KINDS, Averaging, Moments
from reverie.errors import StoredDataError
from reverie.nets.layers import Linear, output_rows
from reverie.optim import LARGEST_LOSS_SCALE, Optimizer, OptimizerOptions
from tests.core import close

pytestmark = pytest.mark.usefixtures("both_ways")

CONSTANT = OptimizerOptions(warmup=0, rate=0.01)
ADAM = OptimizerOptions(kind="adam", warmup=0, rate=0.01, agc=0.0, eps=1e-8)


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def make(options: OptimizerOptions = CONSTANT, seed: int = 0) -> tuple[nn.Sequential, Optimizer]:
    net = network(seed)
    return net, Optimizer("net", net.parameters(), options, {"fit": 1.0})


def loss(net: nn.Module, seed: int = 0) -> Tensor:
    x, y = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(seed)).unbind()
    return (net(x) - y[:, :2]).square().sum(-1)


def values(parameters: Iterable[Tensor]) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in parameters])


# --- numbers ---


def test_amplified_losses_give_the_same_update_and_yield_to_an_overflow():
    (plain, single), (other, _) = make(), make()
    half = Optimizer("net", other.parameters(), CONSTANT, {"fit": 1.0}, half=True)
    single.step({"fit": loss(plain)})
    half.step({"fit": loss(other)})
    close(values(other.parameters()), values(plain.parameters()), 1e-6)
    factor = half.loss_scale.clone()
    assert factor > 2**16
    assert half.step({"fit": 1e38 * loss(other)})["net/skipped"]  # times the factor, this is infinite
    close(half.loss_scale, factor / 2, 1e-6)
    assert not half.step({"fit": loss(other)})["net/skipped"]
    assert single.loss_scale == 1
    half.loss_scale.fill_(LARGEST_LOSS_SCALE)
    assert not half.step({"fit": loss(other)})["net/skipped"]
    assert half.loss_scale == LARGEST_LOSS_SCALE


@pytest.mark.parametrize(
    ("weight", "gradient", "clipped"),
    [
        ([3.0, 4.0], [30.0, 40.0], [0.9, 1.2]),
        ([3.0, 4.0], [3.0, 4.0], [0.9, 1.2]),
        ([3.0, 4.0], [0.6, 0.8], [0.6, 0.8]),
        ([3.0, 4.0], [0.3, 0.4], [0.3, 0.4]),
        ([0.0, 0.0], [1.0, 0.0], [0.0003, 0.0]),
    ],
)
def test_a_gradient_is_clipped_to_a_share_of_its_weights(weight, gradient, clipped):
    gradient = torch.tensor(gradient)
    close(gradient / agc_ratio([gradient], [torch.tensor(weight)], 0.3), clipped, atol=1e-9)


def directions(name: str, gradients: list[float]) -> Tensor:
    kind, by, moments, found = KINDS[name], Averaging(0.9, 0.999, 1e-20), Moments(torch.zeros(1), torch.zeros(1)), []
    for count in map(torch.tensor, range(1, len(gradients) + 1)):
        moments = kind.moments(torch.tensor([float(gradients[count - 1])]), moments, count, by)
        found.append(kind.direction(moments, count, by))
    return torch.cat(found)


def test_laprop_has_the_published_directions():
    close(directions("laprop", [1, 1, -2, 0, 0]), [1, 1, 0.1092733, 0.0774986, 0.0585739], rtol=3e-5)
    close(directions("adam", [1, 1, -2])[2], -0.0756491, rtol=3e-5)


@pytest.mark.parametrize(("count", "rate"), [(0, 0.0), (1, 4e-8), (500, 2e-5), (1000, 4e-5), (5000, 4e-5)])
def test_the_rate_rises_linearly_from_zero(count, rate):
    _, optimizer = make(OptimizerOptions())
    optimizer.count.fill_(float(count))
    close(optimizer.rate, rate, atol=1e-15)


@pytest.mark.parametrize(("count", "rate"), [(0, 0.0), (1, 0.0875), (2, 0.15), (3, 0.125), (7, 0.05), (9, 0.05)])
def test_the_rate_falls_linearly_to_what_is_left_of_it(count, rate):
    """0.2 · count / 2 · (1 - 0.75 · count / 6), each share at most one."""
    _, optimizer = make(OptimizerOptions(rate=0.2, warmup=2, decay=6, final=0.25))
    optimizer.count.fill_(float(count))
    close(optimizer.rate, rate, atol=1e-8)


def test_without_warmup_the_first_rate_is_whole():
    net, optimizer = make()
    before = values(net.parameters())
    close(optimizer.step({"fit": loss(net)})["net/lr"], 0.01)
    close((values(net.parameters()) - before).abs(), torch.full((26,), 0.01), rtol=1e-3)


def test_with_warmup_the_first_update_counts_but_moves_nothing():
    net, optimizer = make(OptimizerOptions(rate=0.1))
    before = values(net.parameters())
    optimizer.step({"fit": loss(net)})
    assert torch.equal(values(net.parameters()), before) and optimizer.count == 1 and optimizer.moments[0].any()


# --- whole updates against independent ones ---


def test_many_updates_equal_laprop_with_adaptive_clipping_written_tensor_by_tensor():
    net, optimizer = make(OptimizerOptions(warmup=4, rate=0.01))
    twin = network()
    momentum, square = ([torch.zeros_like(p) for p in twin.parameters()] for _ in range(2))
    for update in range(8):
        optimizer.step({"fit": loss(net, update)})
        gradients = torch.autograd.grad(loss(twin, update).mean(), list(twin.parameters()))
        for p, g, m, v in zip(twin.parameters(), gradients, momentum, square, strict=True):
            g = g / max(1.0, g.norm().item() / (0.3 * max(1e-3, p.norm().item())))
            v.mul_(0.999).add_(0.001 * g**2)
            m.mul_(0.9).add_(0.1 * g / ((v / (1 - 0.999 ** (update + 1))).sqrt() + 1e-20))
            p.data -= 0.01 * min(1, update / 4) * m / (1 - 0.9 ** (update + 1))
        close(values(net.parameters()), values(twin.parameters()), rtol=1e-4, atol=1e-6)


def test_adam_with_global_clipping_equals_that_of_torch():
    net, optimizer = make(ADAM.model_copy(update={"clip": 0.5}))
    twin = network()
    reference = torch.optim.Adam(twin.parameters(), lr=0.01, eps=1e-8)
    for update in range(8):
        optimizer.step({"fit": loss(net, update)})
        reference.zero_grad()
        loss(twin, update).mean().backward()
        nn.utils.clip_grad_norm_(twin.parameters(), 0.5)
        reference.step()
        close(values(net.parameters()), values(twin.parameters()), rtol=1e-4, atol=1e-6)


# --- groups ---


def test_losses_are_averaged_and_weighed():
    net = network()
    optimizer = Optimizer("net", net.parameters(), CONSTANT, {"a": 2.0, "b": -0.5})
    total = 2.0 * loss(net, 0).mean() - 0.5 * loss(net, 1).mean()
    expected = values(torch.autograd.grad(total, list(net.parameters()))).norm()
    metrics = optimizer.step({"b": loss(net, 1), "a": loss(net, 0)})
    close(metrics["net/grad_norm"], expected)


@pytest.mark.parametrize("names", [["fit", "surplus"], [], ["other"]])
def test_losses_without_a_scale_or_scales_without_a_loss_are_refused(names):
    net, optimizer = make()
    with pytest.raises(KeyError, match="net"):
        optimizer.step({name: loss(net) for name in names})


def test_a_step_trains_its_own_group_through_a_foreign_one():
    (mine, optimizer), (foreign, other) = make(), make(seed=1)
    head = nn.Linear(2, 3)
    other.gradient.fill_(7.0)
    before = values(foreign.parameters())
    optimizer.step({"fit": loss(nn.Sequential(mine, head, foreign))})
    assert torch.equal(values(foreign.parameters()), before) and bool((other.gradient == 7.0).all())
    assert head.weight.grad is None and optimizer.gradient.any()


def test_parameters_live_in_one_buffer_and_gradients_do_not_pile_up():
    net, optimizer = make()
    norms = [optimizer.step({"fit": 0 * loss(net)})["net/grad_norm"] for _ in range(2)]
    assert norms == [0, 0]
    optimizer.weight.fill_(0.25)
    assert all(bool((parameter == 0.25).all()) for parameter in net.parameters())


# --- updates that must not happen ---


def test_a_gradient_that_is_not_finite_leaves_everything_untouched_and_is_reported():
    net, optimizer = make()
    assert optimizer.step({"fit": loss(net)})["net/skipped"] == 0
    before = values(net.parameters()), optimizer.state_dict()
    for broken in (float("nan"), float("inf")):
        assert optimizer.step({"fit": loss(net) * broken})["net/skipped"] == 1
        assert torch.equal(values(net.parameters()), before[0])
        for name in ("step", "square", "count"):
            assert torch.equal(optimizer.state_dict()[name], before[1][name])
    assert optimizer.step({"fit": loss(net)})["net/skipped"] == 0
    assert not torch.equal(values(net.parameters()), before[0])


def test_a_step_that_is_not_wanted_changes_nothing_and_is_no_failure():
    net, optimizer = make()
    optimizer.step({"fit": loss(net)}, when=torch.tensor(True))
    before = values(net.parameters()), optimizer.state_dict()
    assert optimizer.count == 1
    assert optimizer.step({"fit": loss(net)}, when=torch.tensor(False))["net/skipped"] == 0
    assert torch.equal(values(net.parameters()), before[0])
    for name in ("step", "square", "count"):
        assert torch.equal(optimizer.state_dict()[name], before[1][name])


# --- saving ---


@pytest.mark.parametrize("options", [CONSTANT, ADAM])
def test_a_restored_optimizer_goes_on_as_if_nothing_had_happened(options, tmp_path):
    net, optimizer = make(options)
    for update in range(3):
        optimizer.step({"fit": loss(net, update)})
    torch.save({"net": net.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "state.pt")
    twin, twin_optimizer = make(options, seed=5)
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    twin.load_state_dict(saved["net"])
    twin_optimizer.load_state_dict(saved["optimizer"])
    for update in range(3, 6):
        optimizer.step({"fit": loss(net, update)})
        twin_optimizer.step({"fit": loss(twin, update)})
    assert torch.equal(values(net.parameters()), values(twin.parameters()))


def test_a_saved_state_does_not_change_with_further_updates():
    net, optimizer = make()
    state = optimizer.state_dict()
    optimizer.step({"fit": loss(net)})
    assert state["count"] == 0 and not state["step"].any()


def test_the_state_of_another_group_or_another_kind_is_refused():
    _, optimizer = make()
    small = nn.Linear(2, 2)
    foreign = Optimizer("small", small.parameters(), CONSTANT, {"fit": 1.0})
    with pytest.raises(StoredDataError, match="26 numbers"):
        optimizer.load_state_dict(foreign.state_dict())
    with pytest.raises(StoredDataError, match="laprop"):
        optimizer.load_state_dict(make(ADAM)[1].state_dict())


def test_layers_that_share_a_parameter_are_clipped_each_by_itself():
    torch.manual_seed(0)
    together = Linear(3, [1, 2])
    apart = [Linear(3, 1), Linear(3, 2)]
    with torch.no_grad():
        for rows, layer in zip((slice(0, 1), slice(1, 3)), apart, strict=True):
            layer.weight.copy_(together.weight[rows])
    options = OptimizerOptions(warmup=0, rate=0.01, agc=0.01, eps=1e-8)
    scale, x = torch.tensor([100.0, 1.0, 1.0]), torch.randn(5, 3)
    one = Optimizer("one", together.parameters(), options, {"loss": 1.0}, rows=output_rows(together))
    two = Optimizer("two", [p for layer in apart for p in layer.parameters()], options, {"loss": 1.0})
    for _ in range(3):
        one.step({"loss": (together(x) * scale).square()})
        two.step({"loss": (torch.cat([layer(x) for layer in apart], -1) * scale).square()})
    torch.testing.assert_close(together.weight, torch.cat([layer.weight for layer in apart]), rtol=0, atol=1e-6)
    torch.testing.assert_close(together.bias, torch.cat([layer.bias for layer in apart]), rtol=0, atol=1e-6)
