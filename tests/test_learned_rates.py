"""Learning rates that learn: readings against autograd through a step, rules by hand, and what they survive."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from reverie.errors import StoredDataError
from reverie.learned_rates import (
    INTERVAL,
    PATIENCE,
    RULES,
    ActorRateOptions,
    LearnedRates,
    MetaOptions,
    RateOptions,
)
from reverie.optim import Optimizer, OptimizerOptions
from reverie.types import Metrics
from tests.core import close

DOUBLE = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["double", "single"])


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


class Trained:
    """A network whose rate is learned."""

    def __init__(self, options: OptimizerOptions, rates: RateOptions, dtype=torch.float32, half=False, **meta):
        self.net = network().to(dtype)
        self.optimizer = Optimizer("net", self.net.parameters(), options, {"fit": 1.0}, half=half)
        self.rates = LearnedRates({"net": self.optimizer}, {"net": rates}, MetaOptions(enabled=True, **meta))

    def step(self, fit: Tensor, **how) -> Metrics:
        return self.optimizer.step({"fit": fit}, **how) | self.rates.learn()

    @property
    def log(self) -> float:
        return float(self.rates.log)


def batch(update: int, dtype=torch.float32) -> tuple[Tensor, Tensor]:
    x, y = torch.randn(2, 8, 3, generator=torch.Generator().manual_seed(update)).to(dtype).unbind()
    return x, y[:, :2]


def loss(net: nn.Module, update: int, dtype=torch.float32) -> Tensor:
    x, y = batch(update, dtype)
    return (net(x) - y).square().sum(-1)


# --- what a pair says, against autograd through the step ---


def slope_by_autograd(options: OptimizerOptions, updates: int, factor: float = 1.0) -> Tensor:
    """Of the loss after so many steps by the logarithm of the last one's rate, all in double and tensor by tensor.

    ``factor`` is that of the last one's rate.
    """
    net = network().double()
    names = [name for name, _ in net.named_parameters()]
    thetas = [parameter.detach().clone() for parameter in net.parameters()]
    moments = [(torch.zeros_like(theta), torch.zeros_like(theta)) for theta in thetas]
    rates = [
        options.rate * (1 - (1 - options.final) * min(1, update / (options.decay or 1e9))) for update in range(updates)
    ]
    log_rate = torch.tensor(math.log(factor * rates[-1]), dtype=torch.float64, requires_grad=True)

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
        rate = log_rate.exp() if update == updates else rates[update - 1]
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
@pytest.mark.parametrize(
    "limits", [{"agc": 0.02, "clip": 0.0}, {"agc": 0.0, "clip": 0.3}, {"agc": 0.0}, {"decay": 6, "final": 0.4}]
)
@pytest.mark.parametrize("kind", ["laprop", "adam"])
def test_a_reading_is_the_gradient_through_the_last_step(kind, limits, dtype):
    options = OptimizerOptions(kind=kind, rate=0.03, warmup=0, eps=1e-8, **limits)
    trained = Trained(options, RateOptions(), dtype, warmup=4)
    logs = []
    for update in range(1, 9):
        trained.step(loss(trained.net, update, dtype))
        logs.append(trained.log)
    # Pairs from the sixth update on; the first one's move is in force at the seventh, of which the eighth tells.
    first, second = slope_by_autograd(options, 5), slope_by_autograd(options, 6)
    third = slope_by_autograd(options, 7, math.exp(logs[5]))
    assert logs[4] == 0 and logs[5] == pytest.approx(-0.05 * float(first.sign()), rel=1e-12)
    averaged = 0.1 * third + 0.09 * second + 0.081 * first
    close(trained.rates.averages[0], averaged[None], rtol=1e-6 if dtype == torch.float64 else 2e-3)
    assert min(map(abs, (first, second, third))) > 1e-3


# --- rules, by hand ---


def learned(rule: str, rate: float = 0.1, **options) -> LearnedRates:
    """Of one parameter, without a warm-up, a tolerance or near bounds, unless ``options`` say so."""
    shared = {name: options.pop(name) for name in ("lowest", "highest") if name in options}
    rates = RateOptions(rule=rule, **{"tolerance": 0.0, **options})
    meta = MetaOptions(**{"enabled": True, "warmup": 0, "lowest": 1e-6, "highest": 1e6, **shared})
    optimizer = Optimizer("net", [nn.Parameter(torch.zeros(1))], OptimizerOptions(rate=rate, warmup=0), {"fit": 1.0})
    return LearnedRates({"net": optimizer}, {"net": rates}, meta)


def learn(rates: LearnedRates, gradient: list[float], direction: list[float], *, count=1.0, wanted=True) -> float:
    """The logarithm of the factor after a pair of two vectors."""
    g, u = torch.tensor(gradient).double(), torch.tensor(direction).double()
    told = torch.stack([torch.tensor(0.0), g @ u, g.norm(), u.norm(), torch.tensor(count), torch.tensor(float(wanted))])
    rates.optimizers["net"].reading = told.float()
    rates.learn()
    return float(rates.log)


@pytest.mark.parametrize(("rate", "gradient", "slope"), [(0.1, 1.6, -0.32), (0.5, 0.0, 0.0), (0.75, -1.0, 1.5)])
def test_the_gradient_of_a_parabola_by_its_rate(rate, gradient, slope):
    """theta^2 from theta = 1: the direction was 2, and (1 - 2 rate)^2 changes with the rate by -4 (1 - 2 rate)."""
    assert slope == pytest.approx(-4 * (1 - 2 * rate) * rate)
    assert learn(learned("raw", rate, step=1.0), [gradient], [2.0]) == pytest.approx(-slope, rel=1e-6)


@pytest.mark.parametrize(("step", "rate"), [(0.02, 1.020201e-4), (0.05, 1.051271e-4)])
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_the_first_move_of_adam_does_not_depend_on_the_size(step, rate, size):
    rates = learned("adam", 1e-4, step=step)
    learn(rates, [size], [1.0])
    close(1e-4 * rates.factors, [rate], rtol=1e-6)


def test_adam_averages_slopes_and_their_squares():
    """Slopes -1 and 0.5 of rate 1, after unbiased averages of 0.9 and 0.999: (-0.09 + 0.05) / 0.19, and 0.62481."""
    rates = learned("adam", 1.0, step=1e-9)
    first = learn(rates, [1.0], [1.0])
    assert first == pytest.approx(1e-9)
    mean, square = (-0.09 + 0.05) / 0.19, (0.000999 + 0.00025) / 0.001999
    assert learn(rates, [-0.5], [1.0]) - first == pytest.approx(-1e-9 * mean / math.sqrt(square), rel=1e-5)


@pytest.mark.parametrize("gradient", [2.0, -2.0])
def test_a_rate_falls_where_later_steps_were_refused(gradient):
    """As far as it would have moved."""
    rates = learned("cosine", step=0.1)
    rates.optimizers["net"].refused.fill_(1.0)
    assert learn(rates, [gradient, 0.0], [3.0, 4.0]) == pytest.approx(-0.06)
    assert learn(rates, [gradient, 0.0], [3.0, 4.0]) == pytest.approx(-0.06 + math.copysign(0.06, gradient))


def test_a_rate_of_zero_is_not_learned_and_that_is_said(caplog):
    assert not learned("adam", rate=0.0).optimizers
    assert "net has no rate to learn" in caplog.text


def test_an_optimizer_says_whether_a_step_after_the_fresh_one_was_refused():
    trained = Trained(OptimizerOptions(warmup=0), RateOptions())
    no, yes = torch.tensor(False), torch.tensor(True)
    for later, refused in ([], 0), ([yes, no, yes], 1), ([yes], 0):
        trained.optimizer.step({"fit": loss(trained.net, 0)}, yes)
        for when in later:
            trained.optimizer.step({"fit": loss(trained.net, 0)}, when, fresh=False)
        assert trained.optimizer.take_reading()[-1] == refused


@pytest.mark.parametrize("size", [1.0, 1000.0])
def test_the_cosine_moves_in_proportion_whatever_the_size(size):
    rates = learned("cosine", step=0.02)
    learn(rates, [size, 0.0], [1.0, 1.0])
    close(rates.factors, [1.0142426], rtol=1e-6)


def test_a_sign_moves_a_step_and_a_norm_by_the_mean_over_the_root_of_squares():
    assert [learn(learned("sign", step=0.02), [g, 0.0], [1.0, 1.0]) for g in (3.0, 0.0, -1.0)] == [0.02, 0.0, -0.02]
    rates = learned("norm", step=0.02)
    assert learn(rates, [3.0, 0.0], [1.0, 1.0]) == pytest.approx(0.02)
    mean, square = (0.09 - 0.1) / 0.19, 1.0  # in units of the first cosine
    assert learn(rates, [-5.0, 0.0], [1.0, 1.0]) == pytest.approx(0.02 + 0.02 * mean / math.sqrt(square), rel=1e-6)


def test_an_offset_counts_as_agreement_and_is_not_reported():
    rates = learned("cosine", step=0.02, offset=0.1)
    assert learn(rates, [0.0, 1.0], [1.0, 0.0]) == pytest.approx(0.002)
    assert rates.learn()["meta/cosine_net"] == 0
    assert learn(learned("raw", 0.5, step=1.0, offset=0.1), [0.0, 2.0], [3.0, 0.0]) == pytest.approx(0.5 * 0.1 * 6)


@pytest.mark.parametrize("rule", [*RULES])
def test_a_rate_moves_only_where_the_mean_cosine_is_beyond_the_tolerance(rule):
    """Cosines 0.04 and 0.08 have the mean (0.0036 + 0.008) / 0.19 = 0.061, and with an offset of -0.02 it is 0.041."""
    rates, shifted = (learned(rule, step=0.02, tolerance=0.05, offset=offset) for offset in (0.0, -0.02))
    pairs = [[0.04, (1 - 0.04**2) ** 0.5], [0.08, (1 - 0.08**2) ** 0.5]]
    assert [learn(rates, pair, [1.0, 0.0]) > 0 for pair in pairs] == [False, True]
    assert [learn(shifted, pair, [1.0, 0.0]) for pair in pairs] == [0.0, 0.0]


@pytest.mark.parametrize(("gradient", "share"), [(1.0, 2.0), (-1.0, 0.5)])
def test_a_rate_stays_within_its_bounds_and_says_that_it_is_there(gradient, share):
    rates = learned("sign", step=0.5, lowest=0.5, highest=2.0)
    learn(rates, [gradient], [1.0])
    assert not rates.learn()["meta/bound_net"]
    learn(rates, [gradient], [1.0])
    close(rates.factors, [share], rtol=1e-6)
    seen = rates.learn()
    assert seen["meta/bound_net"] == 1
    close(seen["meta/lr_net"], 0.1 * share, rtol=1e-6)


@pytest.mark.parametrize("rule", RULES)
def test_what_says_nothing_moves_nothing(rule):
    rates = learned(rule)
    learn(rates, [1.0, 0.5], [1.0, 1.0])
    before = rates.state_dict()["net"]
    learn(rates, [1.0], [1.0], count=0.0)  # there was no step
    learn(rates, [1.0], [1.0], wanted=False)
    for broken in (math.nan, math.inf):
        learn(rates, [broken], [1.0])
    rates.learn()  # there was no pair
    after = rates.state_dict()["net"]
    assert all(torch.equal(before[name], after[name]) for name in ("log", "start", "averages", "weights"))
    learn(rates, [0.0], [1.0])
    assert bool(rates.log.isfinite())


def test_groups_move_by_their_own_rules():
    nets = {name: network() for name in ("one", "two", "three")}
    optimizers = {name: Optimizer(name, net.parameters(), CONSTANT, {"fit": 1.0}) for name, net in nets.items()}
    rules = {"one": RateOptions(rule="sign", step=0.1, offset=1.0), "two": RateOptions(rule="fixed")}
    rules |= {"three": RateOptions(rule="sign", step=0.2, offset=-1.0)}
    rates = LearnedRates(optimizers, rules, MetaOptions(enabled=True, warmup=0))
    for update in range(3):
        for name, net in nets.items():
            optimizers[name].step({"fit": loss(net, update)})
        metrics = rates.learn()
    assert {name.rpartition("_")[2] for name in metrics} == {"one", "three"}
    factors = [float(optimizer.rate) / CONSTANT.rate for optimizer in optimizers.values()]
    assert factors == pytest.approx([math.exp(0.2), 1.0, math.exp(-0.4)])


# --- whole optimizers ---

CONSTANT = OptimizerOptions(warmup=0, rate=0.01)
ADAM = OptimizerOptions(kind="adam", warmup=0, rate=0.01, agc=0.0, clip=1.0, eps=1e-8)


def values(net: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in net.parameters()])


@pytest.mark.usefixtures("both_ways")
def test_a_rate_that_does_not_move_changes_no_bit():
    trained = Trained(CONSTANT, RateOptions(rule="cosine", step=1e-300))
    twin = network()
    plain = Optimizer("net", twin.parameters(), CONSTANT, {"fit": 1.0})
    for update in range(5):
        seen = trained.step(loss(trained.net, update))
        plain.step({"fit": loss(twin, update)})
    assert torch.equal(values(trained.net), values(twin))
    assert {f"meta/{kind}_net" for kind in ("lr", "cosine", "bound", "restored")} < seen.keys()


@pytest.mark.usefixtures("both_ways")
def test_what_is_learned_multiplies_the_schedule():
    options = OptimizerOptions(rate=0.1, warmup=4, decay=8, final=0.5)
    trained = Trained(options, RateOptions(rule="sign", step=0.5, offset=1.0), warmup=0)
    seen = [trained.step(loss(trained.net, update)) for update in range(8)]
    scheduled = [0.1 * min(1, update / 4) * (1 - update / 16) for update in range(9)]
    moved = [0, 0, 0, 0, 0, 0, 0.5, 1.0, 1.5]  # no pair before the warm-up is over
    rates = [rate * math.exp(log) for rate, log in zip(scheduled, moved, strict=True)]
    assert [float(row["net/lr"]) for row in seen] == pytest.approx(rates[:8])
    assert [float(row["meta/lr_net"]) for row in seen[4:]] == pytest.approx(rates[5:])


@pytest.mark.usefixtures("both_ways")
def test_only_fresh_losses_that_are_wanted_and_finite_are_read():
    trained = Trained(CONSTANT, RateOptions(rule="sign", step=0.1, offset=1.0), warmup=0)
    trained.step(loss(trained.net, 0))
    trained.step(loss(trained.net, 1), fresh=False)
    trained.step(loss(trained.net, 2), when=torch.tensor(False))
    assert trained.step(loss(trained.net, 3) * math.nan)["net/skipped"] == 1
    assert trained.log == 0 and trained.optimizer.count == 2
    trained.step(loss(trained.net, 4))
    assert trained.log == pytest.approx(0.1)


def test_a_loss_scale_does_not_change_what_is_read():
    slopes = []
    for half in (False, True):
        trained = Trained(ADAM, RateOptions(), half=half, warmup=0)
        for update in range(4):
            trained.step(loss(trained.net, update))
        assert (trained.optimizer.loss_scale > 2**16) == half
        slopes.append(trained.rates.averages)
    close(slopes[1], slopes[0], rtol=1e-4)


def test_gradients_of_random_sign_move_a_rate_nowhere_in_the_mean():
    """Each rate walks at random: over 24 of them the mean has a deviation of 0.05 · sqrt(100) / sqrt(24) = 0.1."""
    ends = []
    for seed in range(24):
        trained = Trained(ADAM, RateOptions(tolerance=0.0), warmup=0, lowest=1e-9, highest=1e9)
        generator = torch.Generator().manual_seed(seed)
        for update in range(100):
            sign = torch.randint(2, (), generator=generator) * 2 - 1
            trained.step(sign * loss(trained.net, 1000 * seed + update))
        ends.append(trained.log)
    assert abs(sum(ends) / len(ends)) < 0.3
    assert max(map(abs, ends)) > 0.05  # they did move


# --- divergence ---


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize("kind", ["laprop", "adam"])
def test_a_rate_a_hundred_times_too_high_is_survived(kind):
    options = (CONSTANT if kind == "laprop" else ADAM).model_copy(update={"rate": 3.0, "agc": 0.0, "clip": 0.0})
    trained = Trained(options, RateOptions(), warmup=5)
    losses, restored = [], 0.0
    for update in range(300):
        fit = loss(trained.net, update).square()  # steep, so that it explodes
        losses.append(float(fit.detach().mean()))
        restored += float(trained.step(fit)["meta/restored_net"])
    assert bool(trained.optimizer.weight.isfinite().all()) and restored
    assert float(trained.optimizer.rate) < 0.3
    assert sum(losses[-20:]) / 20 < losses[0] < max(losses)


@pytest.mark.usefixtures("both_ways")
def test_the_guard_goes_back_to_sound_parameters_with_a_tenth_of_the_rate():
    trained = Trained(CONSTANT, RateOptions(limit=2.0), warmup=1000)
    optimizer, rates = trained.optimizer, trained.rates
    assert optimizer.good is not None
    found = []
    for update in range(150):
        found.append(optimizer.weight.clone())
        trained.step(loss(trained.net, update))
    sound = optimizer.good.clone()
    assert rates.kept >= INTERVAL and torch.equal(sound, found[int(rates.kept)])
    high = 10 * rates.first.float()
    for update in range(PATIENCE - 1):
        trained.step(loss(trained.net, update) * 0 + high)
    assert not torch.equal(optimizer.weight, sound) and rates.failed == PATIENCE - 1
    trained.step(loss(trained.net, 0) * 0 + high, when=torch.tensor(False))
    assert rates.failed == PATIENCE - 1  # a step that is not wanted says nothing
    assert trained.step(loss(trained.net, 0) * 0 + high)["meta/restored_net"] == 1
    assert torch.equal(optimizer.weight, sound) and optimizer.count == 0 and not optimizer.moments[0].any()
    close(optimizer.rate, 0.001, rtol=1e-6)
    assert trained.step(loss(trained.net, 0))["meta/restored_net"] == 0
    assert optimizer.count == 1 and not torch.equal(optimizer.weight, sound)


@pytest.mark.usefixtures("both_ways")
def test_an_actor_is_guarded_against_numbers_that_are_not_finite_alone():
    trained = Trained(CONSTANT, ActorRateOptions(), warmup=1000)
    for factor in [1.0, *[1e6] * 10]:
        trained.step(factor * loss(trained.net, 0))
    assert trained.optimizer.count == 11
    for _ in range(PATIENCE):
        trained.step(math.nan * loss(trained.net, 0))
    assert trained.optimizer.count == 0 and torch.equal(trained.optimizer.weight, values(network()))


@pytest.mark.usefixtures("both_ways")
def test_without_a_guard_nothing_is_kept():
    trained = Trained(CONSTANT, RateOptions(), guard=False)
    for _ in range(PATIENCE + 1):
        trained.step(math.nan * loss(trained.net, 0))
    assert trained.optimizer.good is None and trained.log == 0


# --- saving ---


@pytest.mark.usefixtures("both_ways")
def test_restored_rates_go_on_as_if_nothing_had_happened(tmp_path):
    mine, other = (Trained(ADAM, RateOptions(), warmup=2) for _ in range(2))
    for update in range(120):
        mine.step(loss(mine.net, update))
    parts = {"net": mine.net, "optimizer": mine.optimizer, "rates": mine.rates}
    torch.save({name: part.state_dict() for name, part in parts.items()}, tmp_path / "state.pt")
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    for part, name in ((other.net, "net"), (other.optimizer, "optimizer"), (other.rates, "rates")):
        part.load_state_dict(saved[name])
    assert other.optimizer.rate != ADAM.rate
    for update in range(120, 230):  # beyond the next copy of the guard
        for trained in (mine, other):
            trained.step(loss(trained.net, update))
        assert torch.equal(mine.optimizer.rate, other.optimizer.rate) and torch.equal(
            values(mine.net), values(other.net)
        )
    states = [trained.rates.state_dict()["net"] for trained in (mine, other)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert mine.rates.kept > 120


def test_rates_that_were_not_saved_begin_anew_from_the_parameters_that_were(caplog):
    trained, other = Trained(ADAM, RateOptions()), network(1)
    trained.net.load_state_dict(other.state_dict())
    with caplog.at_level("INFO"):
        trained.rates.load_state_dict({})
        LearnedRates({}, {}, MetaOptions()).load_state_dict(trained.rates.state_dict())
    assert [record.getMessage() for record in caplog.records] == [
        "net: the rate is learned from here on",
        "net: the rate is as scheduled from here on",
    ]
    assert trained.optimizer.good is not None and torch.equal(trained.optimizer.good, values(other))


def test_a_damaged_state_of_a_rate_is_refused():
    rates = Trained(ADAM, RateOptions()).rates
    state = rates.state_dict()
    state["net"]["averages"] = torch.zeros(3)
    with pytest.raises(StoredDataError, match="learned_rates.net averages is"):
        rates.check(state)
    del state["net"]["averages"]
    with pytest.raises(StoredDataError, match="averages is missing"):
        rates.check(state)
