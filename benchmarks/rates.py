"""What learned rates make of a wrong start: the area under the curve, fixed against learned, from x0.1 to x100.

    python benchmarks/rates.py toy                 # a regression, every rule, ten seeds: minutes on one core
    python benchmarks/rates.py cartpole pendulum   # whole runs through the real command line: hours, resumable

The toy is an ill-conditioned regression with noisy labels. Its area is the mean loss on held-out data without noise. Of
runs it is the mean return. What a wrong start loses against the right one, both fixed, is a gap. The table says which
share of it learning regains, with a 95 % interval over seeds; and at the right start, what learning changes in percent.
Prodigy (Mishchenko & Defazio 2024), which has no rate to get wrong, takes part where ``prodigyopt`` is installed.
Results are in ``benchmarks/results/rates_<name>.{json,md,png}``.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import learning
import numpy as np
import torch
from curves import machine
from jaxtyping import Float
from ladder import Outcome
from torch import Tensor, nn

from reverie.config import Config, load
from reverie.learned_rates import LearnedRates, MetaOptions, RateOptions
from reverie.optim import OptimizerOptions
from reverie.rate_free import optimizer_class
from reverie.run import plots

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Arm:
    """What came of one way to choose rates from one start, over seeds; the arms of one ``what`` are compared."""

    what: str
    way: str
    start: float
    area: list[float]
    rates: list[list[float]]
    """How the rate went, by seed: evenly spaced in the toy, nothing of runs (their folders have it)."""


# --- the toy ---

UPDATES, EVERY, BATCH, NOISE, TUNED = 1200, 25, 64, 0.3, 3e-3
"""Updates, how many lie between two evaluations, examples of each, deviation of a label, and the best fixed rate."""

STARTS = (0.1, 1.0, 10.0, 100.0)
RULES = {
    "fixed": RateOptions(rule="fixed"),
    "adam": RateOptions(rule="adam", step=0.05),
    "adam, no tolerance": RateOptions(rule="adam", step=0.05, tolerance=0.0, offset=0.01),
    "norm": RateOptions(rule="norm", step=0.05),
    "cosine": RateOptions(rule="cosine", step=0.1),
    "sign": RateOptions(rule="sign", step=0.02),
    "raw": RateOptions(rule="raw", step=1.0),
}
"""The rules, each with a step that suits it."""

KINDS = {
    "adam": OptimizerOptions(kind="adam", rate=TUNED, warmup=0, agc=0.0, clip=10.0, eps=1e-8),
    "laprop": OptimizerOptions(rate=TUNED, warmup=0),
}


class Examples:
    """Draws from a random teacher whose inputs differ in scale by a hundred."""

    def __init__(self, seed: int):
        self.generator = torch.Generator().manual_seed(seed)
        self.scale = 3 * torch.logspace(0, -2, 20)
        self.first = self.normal(20, 64) * 1.5 / math.sqrt(20) / self.scale.sqrt()[:, None]
        self.second = self.normal(64, 1) / math.sqrt(64)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator)

    def draw(self, count: int) -> tuple[Float[Tensor, "n 20"], Float[Tensor, "n 1"]]:
        x = self.normal(count, 20) * self.scale
        return x, torch.tanh(x @ self.first) @ self.second


def fit(way: str, kind: str, start: float, seed: int) -> tuple[float, list[float]]:
    """The area under the curve of the held-out loss, and how the rate went."""
    examples = Examples(seed)
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))
    options = KINDS[kind].model_copy(update={"rate": start * TUNED} if way in RULES else {"kind": way})
    optimizer = optimizer_class(options.kind)("toy", network.parameters(), options, {"fit": 1.0})
    rates = LearnedRates({"toy": optimizer}, {"toy": RULES.get(way, RULES["fixed"])}, MetaOptions(enabled=True))
    inputs, truth = examples.draw(2000)
    losses, went = [], []
    for update in range(UPDATES):
        x, y = examples.draw(BATCH)
        optimizer.step({"fit": (network(x) - y - NOISE * examples.normal(BATCH, 1)).square()})
        rates.learn()
        if update % EVERY == EVERY - 1:
            with torch.no_grad():
                losses.append(float((network(inputs) - truth).square().mean()))
            went.append(float(f"{float(optimizer.rate):.4g}"))
    return float(np.mean(losses)), went


def toy(kind: str, seeds: int) -> list[Arm]:
    """Every rule from every start."""
    torch.set_num_threads(1)
    ways = [*RULES, *(["prodigy"] if importlib.util.find_spec("prodigyopt") else [])]
    arms = []
    for way in ways:
        for start in STARTS if way in RULES else (1.0,):
            areas, rates = zip(*(fit(way, kind, start, seed) for seed in range(seeds)), strict=True)
            arms.append(Arm("rate", way, start, [*areas], [*rates]))
            print(f"{way} x{start:g}: {np.mean(areas):.4f}", flush=True)
    return arms


# --- whole runs ---

TASKS = {
    "cartpole": replace(learning.TASKS["cartpole_flat"], settings=("run.steps=5000", "run.evaluate_every=250")),
    "pendulum": replace(learning.TASKS["pendulum"], settings=("run.steps=4500",)),
}
GROUPS = {
    "world": ("world",),
    "actor": ("actor",),
    "critic": ("critic",),
    "all": ("world", "actor", "critic"),
}
"""Whose rates are wrong."""

FACTORS = (0.1, 10.0)
WAYS = {"fixed": (), "learned": ("meta.enabled=true",)}
WITHOUT_RATE = {"prodigy": tuple(f"agent.{group}_optimizer.kind=prodigy" for group in GROUPS["all"])}
"""Ways for which there is no wrong start."""


def wrong(config: Config, groups: Sequence[str], factor: float) -> tuple[str, ...]:
    """Settings by which the rates of some groups are so many times what they were."""
    rates = {group: getattr(config.agent, f"{group}_optimizer").rate for group in groups}
    return tuple(f"agent.{group}_optimizer.rate={factor * rate:g}" for group, rate in rates.items())


def plan(name: str) -> dict[tuple[str, str, float], str]:
    """The tasks to train by what is wrong, way and factor; `learning` then knows them by these names."""
    task, found = TASKS[name], {}
    config = load(task.config)
    starts = [("all", 1.0), *((what, factor) for what in GROUPS for factor in FACTORS)]
    for what, factor in starts:
        for way, changes in (WAYS | WITHOUT_RATE if factor == 1 else WAYS).items():
            settings = *task.settings, *wrong(config, GROUPS[what], factor), *changes
            found[what, way, factor] = called = f"{name}-{what}-x{factor:g}-{way}"
            learning.EVERY[called] = replace(task, settings=settings)
    return found


def runs(name: str, seeds: int, parallel: int, threads: int) -> list[Arm]:
    """Trains what is not yet trained; a right start is that of every group."""
    planned = plan(name)
    jobs = {key: [learning.Run(called, seed) for seed in range(seeds)] for key, called in planned.items()}
    for run in (run for mine in jobs.values() for run in mine):
        learning.check(run)
    task, random = TASKS[name], learning.random_return(TASKS[name])
    with ThreadPoolExecutor(parallel) as pool:
        waiting = {
            key: [pool.submit(learning.train, run, threads=threads) for run in mine] for key, mine in jobs.items()
        }
        curves = {key: [job.result() for job in mine] for key, mine in waiting.items()}
    arms = []
    for (what, way, factor), mine in curves.items():
        outcomes = [Outcome(name, way, i, random, task.goal, points, None) for i, points in enumerate(mine) if points]
        area = [outcome.normalised(outcome.area) for outcome in outcomes]
        arms += [Arm(each, way, factor, area, []) for each in (GROUPS if factor == 1 else [what])]
    return arms


# --- what it comes to ---


def regained(wrong: Sequence[float], learned: Sequence[float], right: Sequence[float]) -> tuple[float, float, float]:
    """The share of the gap between a wrong and a right fixed start, by areas of the same seeds, with its interval."""
    areas = np.array([wrong, learned, right])
    drawn = np.random.default_rng(0).integers(areas.shape[1], size=(5000, areas.shape[1]))
    means = np.concatenate([areas.mean(1)[:, None], areas[:, drawn].mean(2)], 1)
    shares = (means[1] - means[0]) / (means[2] - means[0])
    return float(shares[0]), *(float(value) for value in np.percentile(shares[1:], (2.5, 97.5)))


def noisy(wrong: Sequence[float], right: Sequence[float]) -> bool:
    """Whether a gap is within two standard errors of nothing, so that no share of it can be told."""
    gap = np.subtract(right, wrong)
    return len(gap) < 2 or abs(gap.mean()) <= 2 * gap.std(ddof=1) / math.sqrt(len(gap))


def table(arms: Sequence[Arm]) -> Iterator[str]:
    """Markdown, a row for every arm."""
    yield "| what is wrong | start | way | area under the curve | of the gap regained |"
    yield "|---|---|---|---|---|"
    fixed = {(arm.what, arm.start): arm.area for arm in arms if arm.way == "fixed"}
    for arm in arms:
        mean, error = np.mean(arm.area), np.std(arm.area, ddof=1) / math.sqrt(len(arm.area)) if arm.area[1:] else 0.0
        said, own, right = "", fixed.get((arm.what, arm.start)), fixed.get((arm.what, 1.0))
        if arm.way != "fixed" and own and right and len(own) == len(arm.area) == len(right):
            if arm.start == 1:
                said = f"{mean / np.mean(own) - 1:+.1%} against fixed"
            elif noisy(own, right):
                said = f"no gap beyond noise; {mean / np.mean(own) - 1:+.1%} against fixed"
            else:
                said = "{:.0%} ({:.0%} to {:.0%})".format(*regained(own, arm.area, right))
        yield f"| {arm.what} | x{arm.start:g} | {arm.way} | {mean:.4f} ± {1.96 * error:.4f} | {said} |"


def plot(arms: Sequence[Arm], path: Path) -> None:
    """A panel for each thing that is wrong: areas over starts; in the toy, also how the rates went."""
    if (pyplot := plots.pyplot(path)) is None:
        return
    whats, ways = [*dict.fromkeys(arm.what for arm in arms)], [*dict.fromkeys(arm.way for arm in arms)]
    traced = sorted({arm.start for arm in arms if arm.rates and arm.way in RULES})
    figure, (panels,) = pyplot.subplots(1, len(whats) + len(traced), figsize=(3.6 * (len(whats) + len(traced)), 3.4),
                                        squeeze=False)  # fmt: skip
    for panel, what in zip(panels, whats, strict=False):
        for way in ways:
            mine = sorted((arm for arm in arms if (arm.what, arm.way) == (what, way)), key=lambda arm: arm.start)
            errors = [1.96 * np.std(arm.area) / math.sqrt(len(arm.area)) for arm in mine]
            panel.errorbar([arm.start for arm in mine], [np.mean(arm.area) for arm in mine], errors, label=way)
        panel.set(xscale="log", xlabel=f"start: times the tuned {what}", ylabel="area under the curve")
    for panel, start in zip(panels[len(whats) :], traced, strict=True):
        for way in ways:
            for arm in (arm for arm in arms if (arm.way, arm.start) == (way, start)):
                times = EVERY * np.arange(1, 1 + len(arm.rates[0]))
                panel.plot(times, np.exp(np.log(arm.rates).mean(0)), color=f"C{ways.index(way)}")
        panel.set(yscale="log", xlabel="updates", title=f"mean rate from x{start:g}")
    panels[0].legend(frameon=False, fontsize=8)
    for panel in panels:
        panel.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def report(name: str, arms: Sequence[Arm], made: str) -> None:
    """Writes and prints the results of the toy or a task."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"rates_{name}.json"
    path.write_text(json.dumps({"made": made, "arms": [vars(arm) for arm in arms]}) + "\n")
    lines = list(table(arms))
    path.with_suffix(".md").write_text("\n".join(lines) + "\n")
    plot(arms, path.with_suffix(".png"))
    print("\n".join(lines))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", choices=["toy", *TASKS])
    parser.add_argument("--kind", choices=KINDS, default="adam", help="the optimizer of the toy")
    parser.add_argument("--seeds", type=int, help="instead of ten of the toy, or the task's own number")
    parser.add_argument("--parallel", type=int, default=2, help="runs side by side")
    parser.add_argument("--threads", type=int, default=1, help="threads of each run")
    options = parser.parse_args()
    for name in options.names:
        if name in TASKS:
            load = f"{options.parallel} x {options.threads} threads"
            found = runs(name, options.seeds or TASKS[name].seeds, options.parallel, options.threads)
            report(name, found, f"{machine()}, {load}")
        else:
            called = name if options.kind == "adam" else f"{name}_{options.kind}"
            report(called, toy(options.kind, options.seeds or 10), machine())


if __name__ == "__main__":
    main()
