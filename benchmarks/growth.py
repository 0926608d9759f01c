"""How Reverie's time and memory grow: an update with model, batch and horizon, a step of play with environments.

    python benchmarks/growth.py                         # four minutes on two cores
    python benchmarks/growth.py --threads 1

Measured as ``benchmarks/speed.py`` does, one process for each point. Results are in
``benchmarks/results/growth.{json,png}``.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curves import machine
from speed import SCRIPTS, WORKLOADS, describe, options_of, run, summary

from reverie.run import plots


@dataclass(frozen=True)
class Curve:
    """One workload of ``speed.py`` measured along one option: an ``update``, or to ``act``."""

    what: str
    workload: str
    option: str
    values: tuple[Any, ...]


CURVES = (
    Curve("update", "size1m", "world.size", ("tiny", "1m", "12m", "25m")),
    Curve("update", "size1m", "replay.batch_size", (4, 8, 16, 32)),
    Curve("update", "size1m", "agent.horizon", (5, 15, 30, 60)),
    Curve("act", "size1m", "env.envs", (1, 8, 32)),
    Curve("act", "mid", "env.envs", (1, 8, 32)),
    Curve("act", "image", "env.envs", (1, 8, 32)),
)


def trace(curve: Curve, threads: int, seconds: float) -> list[dict[str, Any]]:
    """The points of a curve, in order."""
    program, points = [sys.executable, str(SCRIPTS / f"reverie_{curve.what}.py")], []
    for value in curve.values:
        task = describe(WORKLOADS[curve.workload], threads, seconds, (f"{curve.option}={value}",))
        points.append({"value": value, **summary([run(program, task)])})
        print(f"{curve.what:<8}{curve.workload:<9}{curve.option:>18} = {value:<6}{points[-1]['milliseconds']:>10.2f} ms"
              f"{points[-1]['megabytes']:>8} MB", flush=True)  # fmt: skip
    return points


def plot(traces: list[list[dict[str, Any]]], path: Path) -> None:
    """Time above and memory below, a column for each option, all on logarithmic axes; a size is as far as it is big."""
    if (pyplot := plots.pyplot(path)) is None:
        return
    from matplotlib.ticker import NullLocator

    options = list(dict.fromkeys(curve.option for curve in CURVES))
    figure, axes = pyplot.subplots(2, len(options), figsize=(3.6 * len(options), 5.4))
    for curve, points in zip(CURVES, traces, strict=True):
        column = axes[:, options.index(curve.option)]
        places = [point["parameters"] if curve.option == "world.size" else point["value"] for point in points]
        for axis, measure in zip(column, ("milliseconds", "megabytes"), strict=True):
            numbers = [point[measure] for point in points]
            axis.loglog(places, numbers, marker="o", label=curve.workload)
            for place, number in zip(places, numbers, strict=True):
                text = f"{number:,.0f}" if number >= 10 else f"{number:.2f}"
                axis.annotate(text, (place, number), (0, 5), textcoords="offset points", ha="center", size=8)
            axis.xaxis.set_minor_locator(NullLocator())
            axis.set_xticks(places, [str(value) for value in curve.values])
            axis.set_yticks([])
            axis.yaxis.set_minor_locator(NullLocator())
            axis.margins(0.12, 0.2)
            axis.spines[["top", "right"]].set_visible(False)
        column[0].set_title(f"{curve.what}, {curve.option}", fontsize=10)
    axes[0, 0].set_ylabel("milliseconds")
    axes[1, 0].set_ylabel("peak memory in MB")
    axes[0, 0].legend(frameon=False)
    axes[0, -1].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main() -> None:
    """Measures all curves and writes them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options = options_of(parser)
    traces = [trace(curve, options.threads, options.seconds) for curve in CURVES]
    path = options.results / "growth.json"
    curves = [{**vars(curve), "points": points} for curve, points in zip(CURVES, traces, strict=True)]
    result = {"machine": machine(), "threads": options.threads, "load before": options.load, "curves": curves}
    path.write_text(json.dumps(result, indent=1) + "\n")
    plot(traces, path.with_suffix(".png"))


if __name__ == "__main__":
    main()
