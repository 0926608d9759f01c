"""A chart of how the learned learning rates of a run went."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from reverie.env.worker import summary
from reverie.run import plots

RATE, BOUND = "meta/lr_", "meta/bound_"
"""What metrics of learned rates begin with; then comes the name of the group."""

log = logging.getLogger(__name__)


def draw(folder: Path) -> Path | None:
    """Draws ``media/rates.png`` from the metrics of a run's folder, and returns where it is.

    Returns None where it could not be drawn, with a warning, and where no rate was learned.
    """
    try:
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return plot([row for row in rows if any(map(is_rate, row))], folder / "media" / "rates.png")
    except Exception as error:  # whatever the plotting library raises, the run has ended well
        log.warning("no chart of the learning rates: %s", summary(error))
        return None


def is_rate(metric: str) -> bool:
    """Whether a metric is the learned rate of a group."""
    return metric.startswith(RATE)


def plot(rows: list[dict[str, Any]], path: Path) -> Path | None:
    """One line per group over steps; dots where it was at a bound in most updates."""
    if not rows or (pyplot := plots.pyplot(path)) is None:
        return None
    figure, axes = pyplot.subplots(figsize=(7, 3.6))
    for name in (key.removeprefix(RATE) for key in sorted(filter(is_rate, rows[-1]))):
        known = [row for row in rows if row.get(RATE + name)]
        (line,) = axes.plot([row["step"] for row in known], [row[RATE + name] for row in known], label=name)
        bound = [row for row in known if row[BOUND + name] > 0.5]
        axes.plot([row["step"] for row in bound], [row[RATE + name] for row in bound], ".", color=line.get_color())
    axes.set_yscale("log")
    axes.set_xlabel("steps of the agent")
    axes.set_ylabel("learning rate")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return path
