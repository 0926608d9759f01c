"""The figures in the documents are those that the benchmarks stored, rounded as they are shown."""

from __future__ import annotations

import csv
import importlib
import json
import re
from collections.abc import Iterable, Iterator
from decimal import ROUND_HALF_EVEN, ROUND_HALF_UP, Decimal
from pathlib import Path
from statistics import mean
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
SMALL = ["cartpole", "cartpole_flat", "pendulum", "acrobot", "pixels", "lunarlander"]
"""The tasks of the tables, from top to bottom."""


def stored(name: str) -> Any:
    return json.loads((RESULTS / name).read_text())


def tables(page: str) -> dict[str, list[list[list[str]]]]:
    """The rows of cells of every table without its first two lines, by the heading that they stand under."""
    found: dict[str, list[list[list[str]]]] = {}
    heading, inside = "", False
    for line in (ROOT / page).read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            heading = line.lstrip("# ")
        if line.startswith("|"):
            if not inside:
                found.setdefault(heading, []).append([])
            found[heading][-1].append([cell.strip() for cell in line.strip("|").split("|")])
        inside = line.startswith("|")
    return {heading: [rows[2:] for rows in tables] for heading, tables in found.items()}


def numbers(text: str) -> list[str]:
    return [number.replace(",", "") for number in NUMBER.findall(text)]


def agree(shown: str | Iterable[str], exact: Iterable[float]) -> None:
    """Asserts that the shown numbers are the exact ones, rounded to as many digits as are shown."""
    shown, exact = numbers(shown) if isinstance(shown, str) else list(shown), list(exact)
    assert len(shown) == len(exact), (shown, exact)
    for text, value in zip(shown, exact, strict=True):
        digits = Decimal(text)
        places = Decimal(1).scaleb(digits.as_tuple().exponent)  # type: ignore[arg-type]
        ways = {Decimal(str(value)).quantize(places, way) for way in (ROUND_HALF_EVEN, ROUND_HALF_UP)}
        assert digits in ways, (text, value)


@pytest.fixture
def learning(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("learning")


@pytest.mark.parametrize(("page", "heading"), [("README.md", "Results"), ("README.ko.md", "결과")])
def test_readme_has_the_steps_and_seconds_of_each_seed(page: str, heading: str) -> None:
    (rows,) = tables(page)[heading]
    for name, (_, target, random, steps, seconds) in zip(SMALL, rows, strict=True):
        result = stored(f"learning_{name}.json")
        agree(target, [result["goal"]])
        agree(random, [result["random"]])
        agree(steps, [verdict["steps"] for verdict in result["verdicts"]])
        agree(seconds, [verdict["seconds"] for verdict in result["verdicts"]])


def test_small_tasks_are_as_they_were_measured(learning: ModuleType) -> None:
    (rows,) = tables("docs/results.md")["Small tasks"]
    rows = iter(rows)
    for name in SMALL:
        result = stored(f"learning_{name}.json")
        for seed, verdict in enumerate(result["verdicts"]):
            _, target, random, shown, reached, held = next(rows)
            if seed == 0:
                episodes = learning.load(result["config"]).run.evaluate_episodes
                agree(target, [episodes, result["goal"]])
                agree(random, [result["random"]])
            agree(shown, [seed])
            agree(reached, [verdict["steps"], verdict["seconds"]])
            agree(held, [verdict["held_mean"], verdict["held_min"]])
    assert next(rows, None) is None


def test_other_libraries_are_as_they_were_measured() -> None:
    results = stored("baselines.json")
    (rows,) = tables("docs/results.md")["CartPole beside other libraries"]
    for name, (_, steps, seconds) in zip(("reverie", "tuned", "default"), rows, strict=False):
        agree(steps, [verdict["steps"] for verdict in results[name]["verdicts"]])
        agree(seconds, [verdict["seconds"] for verdict in results[name]["verdicts"]])
    assert results["sheeprl"]["verdicts"][0]["steps"] is None
    text = (ROOT / "docs/results.md").read_text()
    for name, words in (("reverie", "Reverie needs fewer steps: "), ("tuned", "tuned PPO needs ")):
        shown = text.split(words)[1].split(" ")[0]
        agree(shown, [mean(verdict["steps"] for verdict in results[name]["verdicts"])])
    agree(
        text.split("whole process takes ")[1].split(" s.")[0].replace("and", ","), results["reverie"]["process seconds"]
    )


def test_published_algorithm_is_as_it_was_measured() -> None:
    result = stored("learning_dmc.json")
    published = json.loads((ROOT / "benchmarks" / "published.json").read_text())["dmc"]
    rows, begun = tables("docs/results.md")["The published algorithm at a published task"]
    last = [points["return"][-1] for points in result["curves"]]
    *seeds, curve = rows[0][1:]
    agree(seeds, last)
    agree(curve, [published[name][-1] for name in ("mean", "lowest", "highest")])
    curves = [*stored("learning_dmc_all_starts.json")["curves"], *result["curves"]]
    for (_, *cells), points in zip(begun, curves, strict=True):
        agree(cells, points["return"])
    for page in ("README.md", "README.ko.md"):
        text = (ROOT / page).read_text()
        shown = re.search(r"`cartpole_balance`\D*(\d+)\D+(\d+)\D+(\d+)", text)
        assert shown
        agree(shown.groups(), [*last, published["mean"][-1]])


@pytest.mark.parametrize(("heading", "task"), [("Pin Pad with three pads", "vecpad3"), ("DoorKey", "doorkey")])
def test_arms_are_as_they_were_measured(learning: ModuleType, heading: str, task: str) -> None:
    (rows,) = tables("docs/results.md")[heading]
    summary = (RESULTS / "ladder.md").read_text().splitlines()
    arms = ["a0_reinforce", "a1_ppo", "a3_director", "a3_hybrid", "a8_frozen"]
    for arm, (_, returns, goals, shuffled) in zip(arms, rows, strict=True):
        outcomes = [
            learning.Outcome(**run) for run in stored("ladder.json")["runs"] if (run["task"], run["arm"]) == (task, arm)
        ]
        agree(returns, [outcome.final for outcome in outcomes])
        if goals:  # the statistics have them as means over seeds, with dashes for what was not counted
            line = next(line for line in summary if line.startswith(f"| {task} | {arm} |"))
            agree(goals, map(float, numbers(" ".join(line.split("|")[5:8]))))
            agree(shuffled, [outcome.shuffled_return for outcome in outcomes])


def test_sweep_is_as_it_was_measured() -> None:
    trials = list(csv.DictReader((RESULTS / "sweep_pinpad.csv").open()))
    (rows,) = tables("docs/results.md")["How goals and returns are weighed"]
    for entropy, floor, *cells in rows:
        for weight, cell in zip((1.0, 3.0), cells, strict=True):
            wanted = float(entropy), float(floor), weight
            keys = "behavior.entropy", "behavior.return_floor", "hierarchy.goal_weight"
            last = [
                float(trial["last_return"]) for trial in trials if tuple(float(trial[key]) for key in keys) == wanted
            ]
            assert len(last) == 3
            agree(numbers(cell)[:1], [mean(last)])


MACHINES = {
    "EPYC (Zen 5)": "AMD EPYC .*Zen 5.* with AVX512,",
    "EPYC (Zen 4)": "AMD EPYC family 25 model 17 with AVX512,",
    "EPYC with AVX2": "AMD EPYC .* with AVX2,",
    "2.5 GHz Xeon": r"Intel\(R\) Xeon\(R\) Processor @ 2.50GHz ",
}
"""What the pages call a machine, and how its name begins beside the figures."""


def speeds(machine: str) -> dict[str, Any]:
    (figures,) = (value for name, value in stored("speed.json").items() if re.match(MACHINES[machine], name))
    return figures


def contestants(machine: str) -> Iterator[dict[str, dict[str, Any]]]:
    for workload in ("size1m", "mid", "image"):
        yield speeds(machine)[workload]["contestants"]


def milliseconds(cell: str) -> tuple[str, float]:
    """The number of a cell, and how many milliseconds it counts."""
    number, unit = cell.replace(",", "").split(" ")
    return number, {"ms": 1.0, "s": 1000.0}[unit]


def test_rules_of_learned_rates_are_as_they_were_measured() -> None:
    rows, trial, cosines = tables("docs/results.md")["Learned learning rates"]
    areas = {(arm["way"], arm["start"]): mean(arm["area"]) for arm in stored("rates_toy.json")["arms"]}
    ways = dict.fromkeys(way for way, _ in areas)
    for (_, *cells), way in zip(rows, ways, strict=True):
        agree(" ".join(cells), [areas[way, start] for start in (0.1, 1.0, 10.0, 100.0) if (way, start) in areas])
    for (_, *cells), arm in zip(trial, stored("rates_default.json")["arms"], strict=True):
        agree(" ".join(cells), [mean(evaluations) for evaluations in arm["returns"]])
    for (_, *cells), measured in zip(cosines, stored("rates_default.json")["cosines"]["by"].values(), strict=True):
        _, world, actor, critic = zip(*measured, strict=True)
        agree(" ".join(cells), [world[1], world[-1], mean(actor), mean(critic)])


def test_senses_are_held_as_was_measured() -> None:
    (rows,) = tables("docs/results.md")["Small senses"]
    measured = stored("senses.json")["read"]
    assert [row[0].partition(",")[0] for row in rows] == [*measured, "chance"]
    for (_, *cells), (seed,) in zip(rows, measured.values(), strict=False):
        agree(" ".join(cells), [100 * seed[fact][0] for fact in ("wall", "color", "hand")])


def test_updates_take_as_long_as_was_measured() -> None:
    names = ["reverie", "reverie-bf16", "reverie-checkpointed", "reverie-tensors", "reverie-compiled"]
    rows = tables("docs/speed.md")["One update"][0]
    for name, (_, *cells) in zip([*names, "sheeprl", "sheeprl-bf16", "torchrl"], rows, strict=True):
        for time, memory, measured in zip(cells[::2], cells[1::2], contestants("EPYC (Zen 5)"), strict=True):
            assert bool(time) == (name in measured), (name, time)
            if time:
                number, unit = milliseconds(time)
                agree([number], [measured[name]["milliseconds"] / unit])
                size, scale = memory.split(" ")
                agree([size], [measured[name]["megabytes"] / {"MB": 1, "GB": 1000}[scale]])


def test_earlier_updates_took_as_long_as_was_measured() -> None:
    rows = tables("docs/speed.md")["One update"][1]
    for who, *cells in rows:
        name, machine = who.split(", ")
        for cell, measured in zip(cells, contestants(machine), strict=True):
            if cell:
                number, unit = milliseconds(cell)
                agree([number], [measured[name.lower()]["milliseconds"] / unit])


def test_the_reference_took_as_long_as_was_measured() -> None:
    (rows,) = tables("docs/speed.md")["Beside the reference in JAX"]
    measured = speeds("EPYC (Zen 4)")["size1m"]["contestants"]
    names = ["reverie", "reverie-bf16", "reference", "reference-bf16", "sheeprl", "torchrl"]
    for name, (_, time, memory) in zip(names, rows, strict=True):
        agree([milliseconds(time)[0]], [measured[name]["milliseconds"]])
        agree(memory, [measured[name]["megabytes"]])
    shares = [measured[name]["milliseconds"] / measured["reference"]["milliseconds"] for name in names[:2]]
    text = (ROOT / "docs/speed.md").read_text().split("So Reverie takes ")[1].split(" in bf16")[0]
    agree(text, [100 * share for share in shares])
    for page in ("README.md", "README.ko.md"):
        *_, shown = re.findall(r"Zen 4\D*(\d+)\D+(\d+)", (ROOT / page).read_text())
        agree(shown, [measured[name]["milliseconds"] for name in ("reference", "reverie")])


def test_modalities_cost_as_much_as_was_measured() -> None:
    (rows,) = tables("docs/speed.md")["Modalities"]
    measured = stored("modalities.json")["sizes"]
    for (_, *cells), name in zip(rows, measured["tiny"], strict=True):
        for cell, size in zip(cells, ("tiny", "1m"), strict=True):
            agree([milliseconds(cell)[0]], [measured[size][name]["milliseconds"]])


def test_shares_of_the_limit_follow_from_what_was_measured() -> None:
    workloads = speeds("EPYC (Zen 5)")
    (rows,) = tables("docs/speed.md")["How far the limit is"]
    for (_, *cells), who, rate in zip(
        rows, ("reverie", "reverie-bf16"), ("gigaflops", "gigaflops in bf16"), strict=True
    ):
        best = max(workload["limit"][rate] for workload in workloads.values())
        for cell, name in zip(cells, ("size1m", "mid", "image"), strict=True):
            needed = 1000 * workloads[name]["limit"]["gigaflop"] / best
            agree(cell, [100 * needed / workloads[name]["contestants"][who]["milliseconds"]])


def test_environments_leave_as_much_as_was_measured() -> None:
    measured = stored("scaling.json")["environments"]["measured"]
    rows = tables("docs/speed.md")["Environments beside learning"][0]
    for (_, *cells), place in zip(rows, ("inline", "processes", "async"), strict=True):
        shares = [row for row in measured if (row["name"], row["place"]) == ("sleep", place)]
        agree(" ".join(cells), [100 * row["kept"] for row in shares])
