"""What a sweep found: a table of settings, best first, ``sweep.csv`` with one row per trial, and a plot."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from math import nan
from statistics import mean

from reverie.run import checkpoint, plots
from reverie.run.grid import SEED, Grid, describe, label, show
from reverie.run.sweep import Result

Results = Mapping[str, Result]
"""What came of each trial, by its name."""


def table(grid: Grid, results: Results) -> Iterator[str]:
    """Lines that rank the settings by their mean, over finished seeds, of the best evaluation and then of the last."""
    groups: dict[str, list[Result]] = {}
    for trial in grid.trials:
        settings = {key: trial.settings[key] for key in grid.axes if key != SEED}
        groups.setdefault(describe(settings) or "(only seeds differ)", []).append(results[trial.name])
    rows: list[tuple[tuple[float, ...], str, str]] = []
    for settings, group in groups.items():
        ended = [result.returns for result in group if result.status == "finished" and result.returns]
        means = (mean(map(max, ended)), mean(returns[-1] for returns in ended)) if ended else ()
        rows.append((means, settings, f"{len(ended)}/{len(group)}"))
    rows.sort(key=lambda row: row[0], reverse=True)
    width = max(len(settings) for _, settings, _ in rows)
    yield f"rank  {'settings':<{width}}  {'best':>9}  {'last':>9}  seeds"
    for rank, (means, settings, seeds) in enumerate(rows, 1):
        best, last = [f"{value:.1f}" for value in means] or ("-", "-")
        yield f"{rank:>4}  {settings:<{width}}  {best:>9}  {last:>9}  {seeds:>5}"
    yield from (f"{name}: {result.message}" for name, result in results.items() if result.message)


def write(grid: Grid, results: Results) -> None:
    """Writes ``sweep.csv``: each trial's values, and what came of it. Raises ResourceError."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    keys = [*(key for key in grid.axes if key != SEED), SEED]
    rows.writerow(["trial", *keys, "status", "steps", "seconds", "best_return", "last_return"])
    for trial in grid.trials:
        result, values = results[trial.name], trial.settings | {SEED: trial.config.run.seed}
        outcome = (result.status, result.steps, result.seconds, result.best, result.last)
        rows.writerow([trial.name, *(show(values[key]) for key in keys), *outcome])
    checkpoint.write(grid.folder / "sweep.csv", text.getvalue().encode())


def plot(grid: Grid, results: Results) -> None:
    """Writes ``sweep.png``: for each axis, the best evaluation of all finished trials over its values, and means."""
    path = grid.folder / "sweep.png"
    if (pyplot := plots.pyplot(path)) is None:
        return
    keys = [key for key in grid.axes if key != SEED] or [SEED]
    figure, panels = pyplot.subplots(1, len(keys), figsize=(1 + 3 * len(keys), 3.4), sharey=True, squeeze=False)
    for panel, key in zip(panels[0], keys, strict=True):
        columns: dict[str, list[float]] = {}
        for trial in grid.trials:
            column, result = columns.setdefault(show(trial.settings[key]), []), results[trial.name]
            column += [] if result.best is None or result.status != "finished" else [result.best]
        for place, column in enumerate(columns.values()):
            panel.plot([place] * len(column), column, "o", color="tab:blue", alpha=0.4, markeredgewidth=0)
            panel.hlines(mean(column) if column else nan, place - 0.2, place + 0.2, color="black")
        panel.set_xticks(range(len(columns)), list(columns))
        panel.set_xlabel(label(key))
        panel.spines[["top", "right"]].set_visible(False)
    panels[0][0].set_ylabel("best evaluation return")
    figure.suptitle(f"{grid.folder.name}: a dot is a trial, a line the mean")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
