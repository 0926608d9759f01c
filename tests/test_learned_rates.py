"""Learning rates that learn: readings against autograd through a step, rules by hand, and what they survive."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from reverie.errors import StoredDataError
from reverie.learned_rates import INTERVAL, PATIENCE, RULES, ActorRateOptions, LearnedRate, MetaOptions, RateOptions
from reverie.optim import Optimizer, OptimizerOptions
from tests.core import close

DOUBLE = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["double", "single"])


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def make(options: OptimizerOptions, rates: RateOptions, dtype=torch.float32, **meta) -> tuple[nn.Sequential, Optimizer]:
    net = network().to(dtype)
    learned = rates, MetaOptions(enabled=True, **meta)
    return net, Optimizer("net", net.parameters(), options, {"fit": 1.0}, learned=learned)


def batch(update: int, dtype=torch.float32) -> tuple[Tensor, Tensor]:
    x, y = torch.randn(2, 8, 3, generator=torch.Generator().manual_seed(update)).to(dtype).unbind()
    return x, y[:, :2]


def loss(net: nn.Module, update: int, dtype=torch.float32) -> Tensor:
    x, y = batch(update, dtype)
    return (net(x) - y).square().sum(-1)


# --- what a pair says, against autograd through the step ---


def slope_by_autograd(options: OptimizerOptions, updates: int) -> Tensor:
    """Of the loss after so many steps by the logarithm of the last one's rate, all in double and tensor by tensor."""
    net = network().double()
    names = [name for name, _ in net.named_parameters()]
    thetas = [parameter.detach().clone() for parameter in net.parameters()]
    moments = [(torch.zeros_like(theta), torch.zeros_like(theta)) for theta in thetas]
    log_rate = torch.tensor(math.log(options.rate), dtype=torch.float64, requires_grad=True)

    def evaluate(parameters: list[Tensor], update: int) -> Tensor:
        x, y = batch(update, torch.float64)
        outputs = functional_call(net, dict(zip(names, parameters, strict=True)), x)
        return (outputs - y).square().sum(-1).mean()

    for update in range(1, updates + 1):
        leaves = [theta.detach().requires_grad_() for theta in thetas]
        gradients = list(torch.autograd.grad(evaluate(leaves, update), leaves))
        if options.agc:
            limits = [options.agc * max(1e-3, float(theta.norm())) for theta in thetas]
            gradients = [g * min(1.0, limit / float(g.norm())) for g, limit in zip(gradients, limits, strict=True)]
        if options.clip:
            norm = math.sqrt(sum(float(g.square().sum()) for g in gradients))
            gradients = [g * min(1.0, options.clip / norm) for g in gradients]
        rate = log_rate.exp() if update == updates else log_rate.exp().detach()
        for i, g in enumerate(gradients):
            m, v = moments[i]
            v = options.beta2 * v + (1 - options.beta2) * g**2
            root = (v / (1 - options.beta2**update)).sqrt() + options.eps
            m = options.beta1 * m + (1 - options.beta1) * (g if options.kind == "adam" else g / root)
            direction = m / (1 - options.beta1**update) / (root if options.kind == "adam" else 1.0)
            moments[i], thetas[i] = (m, v), thetas[i] - rate * direction
    (slope,) = torch.autograd.grad(evaluate(thetas, updates + 1), log_rate)
    return slope


@pytest.mark.usefixtures("both_ways")
@DOUBLE
@pytest.mark.parametrize("limits", [{"agc": 0.02, "clip": 0.0}, {"agc": 0.0, "clip": 0.3}, {"agc": 0.0}])
@pytest.mark.parametrize("kind", ["laprop", "adam"])
def test_a_reading_is_the_gradient_through_the_last_step(kind, limits, dtype):
    options = OptimizerOptions(kind=kind, rate=0.03, warmup=0, eps=1e-8, **limits)
    net, optimizer = make(options, RateOptions(offset=0.0), dtype, warmup=4)
    for update in range(1, 7):
        optimizer.step({"fit": loss(net, update, dtype)})
    rate = optimizer.learned
    assert rate is not None
    slope = rate.averages[0] / rate.weights[0]  # of the only pair beyond the warm-up
    expected = slope_by_autograd(options, 5)
    close(slope, expected, rtol=1e-6 if dtype == torch.float64 else 2e-3)
    assert abs(float(expected)) > 1e-3
    close(rate.log, -0.05 * expected.sign(), rtol=1e-12)


# --- rules, by hand ---


def learned(rule: str, rate: float = 0.1, **options) -> LearnedRate:
    """Without a warm-up, an offset or near bounds, unless ``options`` say so."""
    shared = {name: options.pop(name) for name in ("lowest", "highest") if name in options}
    rates = RateOptions(rule=rule, **{"offset": 0.0, **options})
    meta = MetaOptions(**{"warmup": 0, "lowest": 1e-6, "highest": 1e6, **shared})
    return LearnedRate(rate, 0, rates, meta, torch.device("cpu"))


def pair(gradient: list[float], direction: list[float]) -> Tensor:
    """What `LearnedRate.learn` is told of two vectors."""
    g, u = torch.tensor(gradient), torch.tensor(direction)
    return torch.stack([g @ u, g.norm(), u.norm()])


def learn(rate: LearnedRate, gradient: list[float], direction: list[float], count: float = 1.0) -> float:
    rate.learn(pair(gradient, direction), torch.tensor(count), torch.tensor(True))
    return float(rate.log)


@pytest.mark.parametrize(("rate", "gradient", "slope"), [(0.1, 1.6, -0.32), (0.5, 0.0, 0.0), (0.75, -1.0, 1.5)])
def test_the_gradient_of_a_parabola_by_its_rate(rate, gradient, slope):
    """theta^2 from theta = 1: the direction was 2, and (1 - 2 rate)^2 changes with the rate by -4 (1 - 2 rate)."""
    assert slope == pytest.approx(-4 * (1 - 2 * rate) * rate)
    assert learn(learned("raw", rate, step=1.0), [gradient], [2.0]) == pytest.approx(-slope, rel=1e-6)


@pytest.mark.parametrize(("step", "rate"), [(0.02, 1.020201e-4), (0.05, 1.051271e-4)])
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_the_first_move_of_adam_does_not_depend_on_the_size(step, rate, size):
    rule = learned("adam", 1e-4, step=step)
    learn(rule, [size], [1.0])
    close(1e-4 * rule.factor, rate, rtol=1e-6)


def test_adam_averages_slopes_and_their_squares():
    """Slopes -1 and 0.5 of rate 1, after unbiased averages of 0.9 and 0.999: (-0.09 + 0.05) / 0.19, and 0.62484."""
    rule = learned("adam", 1.0, step=1e-9)
    learn(rule, [1.0], [1.0])
    first = float(rule.log)
    assert first == pytest.approx(1e-9)
    second = learn(rule, [-0.5], [1.0]) - first
    mean, square = (-0.09 + 0.05) / 0.19, (0.000999 + 0.00025) / 0.001999
    assert second == pytest.approx(-1e-9 * mean / math.sqrt(square), rel=1e-5)


@pytest.mark.parametrize("size", [1.0, 1000.0])
def test_the_cosine_moves_in_proportion_whatever_the_size(size):
    rule = learned("cosine", step=0.02)
    learn(rule, [size, 0.0], [1.0, 1.0])
    close(rule.factor, 1.0142426, rtol=1e-6)


def test_a_sign_moves_a_step_and_a_norm_by_the_mean_over_the_root_of_squares():
    assert [learn(learned("sign", step=0.02), [g, 0.0], [1.0, 1.0]) for g in (3.0, 0.0, -1.0)] == [0.02, 0.0, -0.02]
    rule = learned("norm", step=0.02)
    assert learn(rule, [3.0, 0.0], [1.0, 1.0]) == pytest.approx(0.02)
    mean, square = (0.09 - 0.1) / 0.19, 1.0
    assert learn(rule, [-5.0, 0.0], [1.0, 1.0]) == pytest.approx(0.02 + 0.02 * mean / math.sqrt(square), rel=1e-6)


def test_an_offset_counts_as_agreement():
    rule = learned("cosine", step=0.02, offset=0.1)
    assert learn(rule, [0.0, 1.0], [1.0, 0.0]) == pytest.approx(0.002)
    close(rule.cosine, 0.0)
    assert learn(learned("raw", 0.5, step=1.0, offset=0.1), [0.0, 2.0], [3.0, 0.0]) == pytest.approx(0.5 * 0.1 * 6)


@pytest.mark.parametrize(("gradient", "share"), [(1.0, 2.0), (-1.0, 0.5)])
def test_a_rate_stays_within_its_bounds_and_says_that_it_is_there(gradient, share):
    rule = learned("sign", step=0.5, lowest=0.5, highest=2.0)
    learn(rule, [gradient], [1.0])
    assert not rule.metrics("net")["meta/bound_net"]
    learn(rule, [gradient], [1.0])
    close(rule.factor, share, rtol=1e-6)
    seen = rule.metrics("net")
    assert seen["meta/bound_net"] == 1
    close(seen["meta/lr_net"], 0.1 * share, rtol=1e-6)


@pytest.mark.parametrize("rule", RULES)
def test_what_says_nothing_moves_nothing(rule):
    rate = learned(rule)
    learn(rate, [1.0, 0.5], [1.0, 1.0])
    before = {name: tensor.clone() for name, tensor in rate.state_dict().items()}
    rate.learn(pair([1.0], [1.0]), torch.tensor(0.0), torch.tensor(True))  # there was no step
    rate.learn(pair([1.0], [1.0]), torch.tensor(1.0), torch.tensor(False))
    for broken in (math.nan, math.inf):
        learn(rate, [broken], [1.0])
        assert rate.metrics("net")["meta/cosine_net"] == 0
    assert all(torch.equal(before[name], tensor) for name, tensor in rate.state_dict().items())
    learn(rate, [0.0], [1.0])
    assert bool(rate.log.isfinite())


# --- whole optimizers ---

CONSTANT = OptimizerOptions(warmup=0, rate=0.01)
ADAM = OptimizerOptions(kind="adam", warmup=0, rate=0.01, agc=0.0, clip=1.0, eps=1e-8)


def values(net: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in net.parameters()])


@pytest.mark.usefixtures("both_ways")
def test_a_rate_that_does_not_move_changes_no_bit():
    net, optimizer = make(CONSTANT, RateOptions(rule="cosine", step=1e-300))
    twin = network()
    plain = Optimizer("net", twin.parameters(), CONSTANT, {"fit": 1.0})
    for update in range(5):
        optimizer.step({"fit": loss(net, update)})
        plain.step({"fit": loss(twin, update)})
    assert torch.equal(values(net), values(twin)) and not plain.rate_metrics()
    assert set(optimizer.rate_metrics()) == {f"meta/{kind}_net" for kind in ("lr", "cosine", "bound", "restored")}


@pytest.mark.usefixtures("both_ways")
def test_the_warm_up_multiplies_and_the_decay_gives_way():
    options = OptimizerOptions(rate=0.1, warmup=4, decay=8, final=0.5)
    net, optimizer = make(options, RateOptions(rule="sign", step=0.5, offset=1.0), warmup=0)
    rates = [float(optimizer.step({"fit": loss(net, update)})["net/lr"]) for update in range(7)]
    close(torch.tensor(rates[:5]), [0.0, 0.025, 0.05, 0.075, 0.1])  # no reading before the warm-up is over
    close(torch.tensor(rates[5:]), [0.1 * math.exp(0.5), 0.1 * math.exp(1.0)])


@pytest.mark.usefixtures("both_ways")
def test_only_fresh_losses_that_are_wanted_and_finite_are_read():
    net, optimizer = make(CONSTANT, RateOptions(rule="sign", step=0.1, offset=1.0), warmup=0)
    assert optimizer.learned is not None
    optimizer.step({"fit": loss(net, 0)})
    optimizer.step({"fit": loss(net, 1)}, fresh=False)
    optimizer.step({"fit": loss(net, 2)}, when=torch.tensor(False))
    assert optimizer.step({"fit": loss(net, 3) * math.nan})["net/skipped"] == 1
    assert optimizer.learned.log == 0 and optimizer.count == 2
    optimizer.step({"fit": loss(net, 4)})
    close(optimizer.learned.log, 0.1, rtol=1e-6)


def test_a_loss_scale_does_not_change_what_is_read():
    slopes = []
    for half in (False, True):
        net = network()
        shared = RateOptions(), MetaOptions(enabled=True, warmup=0)
        optimizer = Optimizer("net", net.parameters(), ADAM, {"fit": 1.0}, half=half, learned=shared)
        for update in range(4):
            optimizer.step({"fit": loss(net, update)})
        assert optimizer.learned is not None and float(optimizer.loss_scale) == (
            1.0 if not half else pytest.approx(65627, 1e-3)
        )
        slopes.append(optimizer.learned.averages.clone())
    close(slopes[1], slopes[0], rtol=1e-4)


def test_gradients_of_random_sign_move_a_rate_nowhere_in_the_mean():
    """Each rate walks at random: over 24 of them the mean has a deviation of 0.05 · sqrt(100) / sqrt(24) = 0.1."""
    ends = []
    for seed in range(24):
        net, optimizer = make(ADAM, RateOptions(offset=0.0), warmup=0, lowest=1e-9, highest=1e9)
        generator = torch.Generator().manual_seed(seed)
        for update in range(100):
            sign = torch.randint(2, (), generator=generator) * 2 - 1
            optimizer.step({"fit": sign * loss(net, 1000 * seed + update)})
        assert optimizer.learned is not None
        ends.append(float(optimizer.learned.log))
    assert abs(sum(ends) / len(ends)) < 0.3
    assert max(map(abs, ends)) > 0.05  # they did move


# --- divergence ---


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize("kind", ["laprop", "adam"])
def test_a_rate_a_hundred_times_too_high_is_survived(kind):
    options = (CONSTANT if kind == "laprop" else ADAM).model_copy(update={"rate": 3.0, "agc": 0.0, "clip": 0.0})
    net, optimizer = make(options, RateOptions(), warmup=5)
    losses, restored = [], 0.0
    for update in range(300):
        fit = loss(net, update).square()  # steep, so that it explodes
        losses.append(float(fit.detach().mean()))
        optimizer.step({"fit": fit})
        restored += float(optimizer.rate_metrics()["meta/restored_net"])
    assert bool(optimizer.weight.isfinite().all()) and restored
    assert float(optimizer.rate) < 0.3
    assert sum(losses[-20:]) / 20 < losses[0] < max(losses)


@pytest.mark.usefixtures("both_ways")
def test_the_guard_goes_back_to_sound_parameters_with_a_tenth_of_the_rate():
    net, optimizer = make(CONSTANT, RateOptions(limit=2.0), warmup=1000)
    assert optimizer.guard is not None
    for update in range(150):
        optimizer.step({"fit": loss(net, update)})
    sound = optimizer.guard.good.clone()
    assert optimizer.guard.kept >= INTERVAL and not torch.equal(sound, values(network()))
    high = 10 * optimizer.guard.first
    for update in range(PATIENCE - 1):
        optimizer.step({"fit": loss(net, update) * 0 + high})
    assert not torch.equal(optimizer.weight, sound) and optimizer.guard.failed == PATIENCE - 1
    optimizer.step({"fit": loss(net, 0) * 0 + high}, when=torch.tensor(False))
    assert optimizer.guard.failed == PATIENCE - 1  # a step that is not wanted says nothing
    optimizer.step({"fit": loss(net, 0) * 0 + high})
    assert torch.equal(optimizer.weight, sound) and optimizer.count == 0 and not optimizer.moments[0].any()
    close(optimizer.rate, 0.001, rtol=1e-6)
    assert optimizer.rate_metrics()["meta/restored_net"] == 1
    optimizer.step({"fit": loss(net, 0)})
    assert optimizer.rate_metrics()["meta/restored_net"] == 0 and optimizer.count == 1


@pytest.mark.usefixtures("both_ways")
def test_an_actor_is_guarded_against_numbers_that_are_not_finite_alone():
    net, optimizer = make(CONSTANT, ActorRateOptions(), warmup=1000)
    assert optimizer.guard is not None
    for factor in [1.0, *[1e6] * 10]:
        optimizer.step({"fit": factor * loss(net, 0)})
    assert optimizer.count == 11
    for _ in range(PATIENCE):
        optimizer.step({"fit": math.nan * loss(net, 0)})
    assert optimizer.count == 0 and torch.equal(optimizer.weight, values(network()))


# --- saving ---


@pytest.mark.usefixtures("both_ways")
def test_a_restored_rate_goes_on_as_if_nothing_had_happened(tmp_path):
    net, optimizer = make(ADAM, RateOptions(), warmup=2)
    for update in range(120):
        optimizer.step({"fit": loss(net, update)})
    torch.save({"net": net.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "state.pt")
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    twin, other = make(ADAM, RateOptions(), warmup=2)
    twin.load_state_dict(saved["net"])
    other.load_state_dict(saved["optimizer"])
    for update in range(120, 130):
        for model, mine in ((net, optimizer), (twin, other)):
            mine.step({"fit": loss(model, update)})
        assert torch.equal(optimizer.rate, other.rate) and torch.equal(values(net), values(twin))
    assert optimizer.rate != ADAM.rate
    states = [pickled["guard"] | pickled["learned"] for pickled in (optimizer.state_dict(), other.state_dict())]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_rates_that_were_not_saved_begin_anew_from_the_parameters_that_were(caplog):
    net = network(1)
    plain = Optimizer("net", net.parameters(), ADAM, {"fit": 1.0})
    plain.step({"fit": loss(net, 0)})
    twin, other = make(ADAM, RateOptions())
    twin.load_state_dict(net.state_dict())
    with caplog.at_level("INFO"):
        other.load_state_dict(plain.state_dict())
        plain.load_state_dict(other.state_dict())
    assert [record.getMessage() for record in caplog.records] == [
        "net: the rate is learned from here on",
        "net: the rate is as scheduled from here on",
    ]
    assert other.guard is not None and torch.equal(other.guard.good, values(net)) and other.rate == plain.rate


def test_a_damaged_state_of_a_rate_is_refused():
    _, optimizer = make(ADAM, RateOptions())
    state = optimizer.state_dict()
    state["learned"]["averages"] = torch.zeros(3)
    with pytest.raises(StoredDataError, match="net_optimizer.learned averages is"):
        optimizer.load_state_dict(state)
    del state["learned"]["averages"]
    with pytest.raises(StoredDataError, match="averages is missing"):
        optimizer.load_state_dict(state)
