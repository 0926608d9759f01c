"""What the arms of an ablation come to: interquartile means with bootstrap intervals, a table and a figure.

The statistics are those of Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical Precipice"
(2021): scores of all tasks are normalised and pooled, and seeds are resampled within their task.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from curves import GOALS, Curve
from jaxtyping import Float

from reverie.run import plots


@dataclass(frozen=True)
class Outcome:
    """One run of an arm. ``random`` and ``goal`` are the ends of the task's normalised scale."""

    task: str
    arm: str
    seed: int
    random: float
    goal: float
    curve: Curve
    shuffled_return: float | None
    """Played with goals that were meant for other environments; None where there are no goals."""
    made: str = ""
    """On which machine, and how many runs side by side."""

    @property
    def final(self) -> float:
        """Mean return of the evaluations in the last tenth of the steps."""
        steps = self.curve["step"]
        late = [value for step, value in zip(steps, self.curve["return"], strict=True) if step >= 0.9 * steps[-1]]
        return float(np.mean(late))

    @property
    def area(self) -> float:
        """Mean return over all steps: the area under the curve, which begins with a random policy."""
        steps, returns = [0.0, *self.curve["step"]], [self.random, *self.curve["return"]]
        return float(np.trapezoid(returns, steps) / steps[-1])

    def normalised(self, value: float) -> float:
        return (value - self.random) / (self.goal - self.random)

    def last(self, name: str) -> float | None:
        """The newest value of a column, if the run has it."""
        return self.curve[name][-1] if name in self.curve else None


def interquartile_mean(scores: Float[np.ndarray, "*batch n"]) -> Float[np.ndarray, "*batch"]:
    """The mean of the middle half; ``n // 4`` scores are left out at either end."""
    count = scores.shape[-1]
    return np.sort(scores, -1)[..., count // 4 : count - count // 4].mean(-1)


def aggregate(tasks: Sequence[Sequence[float]], resamples: int = 5000) -> tuple[float, float, float]:
    """The interquartile mean of scores [task][seed], and its 95 % interval over seeds drawn anew within each task."""
    random = np.random.default_rng(0)
    rows = [np.asarray(scores) for scores in tasks]
    drawn = [scores[random.integers(len(scores), size=(resamples, len(scores)))] for scores in rows]
    low, high = np.percentile(interquartile_mean(np.concatenate(drawn, 1)), (2.5, 97.5))
    return float(interquartile_mean(np.concatenate(rows))), float(low), float(high)


def shared(outcomes: Sequence[Outcome]) -> list[str]:
    """The tasks that every arm was trained on: over others, arms cannot be compared."""
    arms = {run.arm for run in outcomes}
    tasks = dict.fromkeys(run.task for run in outcomes)
    return [task for task in tasks if {run.arm for run in outcomes if run.task == task} == arms]


def summary(outcomes: Sequence[Outcome]) -> dict[str, dict[str, tuple[float, float, float]]]:
    """By arm, over shared tasks: the normalised area and the normalised final return, each with its interval."""
    found = {}
    if tasks := shared(outcomes):
        for arm in dict.fromkeys(run.arm for run in outcomes):
            runs = [[run for run in outcomes if (run.task, run.arm) == (task, arm)] for task in tasks]
            found[arm] = {
                "area": aggregate([[run.normalised(run.area) for run in seeds] for seeds in runs]),
                "final": aggregate([[run.normalised(run.final) for run in seeds] for seeds in runs]),
            }
    return found


def table(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Markdown: a row for every arm of every task, then the arms over the tasks that they share."""
    yield f"| task | arm | final return of each seed | mean return | {' | '.join(GOALS.values())} | final, shuffled |"
    yield "|---|---|---|---|---|---|---|---|"
    for task, arm in dict.fromkeys((outcome.task, outcome.arm) for outcome in outcomes):
        runs = [outcome for outcome in outcomes if (outcome.task, outcome.arm) == (task, arm)]
        finals = ", ".join(f"{run.final:.2f}" for run in runs)
        shares = " | ".join(_mean([run.last(name) for run in runs], "{:.0%}") for name in GOALS)
        shuffled = _mean([run.shuffled_return for run in runs], "{:.2f}")
        area = _mean([run.area for run in runs], "{:.2f}")
        yield f"| {task} | {arm} | {finals} | {area} | {shares} | {shuffled} |"
    if not (tasks := shared(outcomes)):
        return
    yield ""
    over = " and ".join(tasks)
    yield f"| arm, over {over} | interquartile mean of the normalised mean return | of the normalised final return |"
    yield "|---|---|---|"
    for arm, scores in summary(outcomes).items():
        cells = [f"{middle:.2f} ({low:.2f} to {high:.2f})" for middle, low, high in scores.values()]
        yield f"| {arm} | {' | '.join(cells)} |"


def _mean(values: Sequence[float | None], style: str) -> str:
    known = [value for value in values if value is not None]
    return style.format(np.mean(known)) if known else "--"


def plot(outcomes: Sequence[Outcome], path: Path) -> None:
    """A row per task: every seed thin and the mean of an arm bold, by steps and by minutes."""
    if (pyplot := plots.pyplot(path)) is None:
        return
    tasks, arms = ([*dict.fromkeys(names)] for names in zip(*((run.task, run.arm) for run in outcomes), strict=True))
    figure, panels = pyplot.subplots(len(tasks), 2, figsize=(11, 3.4 * len(tasks)), squeeze=False)
    for task, row in zip(tasks, panels, strict=True):
        for index, arm in enumerate(arms):
            if not (curves := [run.curve for run in outcomes if (run.task, run.arm) == (task, arm)]):
                continue
            for panel, column, unit in ((row[0], "step", 1.0), (row[1], "seconds", 60.0)):
                for curve in curves:
                    panel.plot(np.divide(curve[column], unit), curve["return"], color=f"C{index}", alpha=0.3, lw=0.8)
                shortest = min(len(curve["return"]) for curve in curves)
                means = [np.mean([curve[name][:shortest] for curve in curves], 0) for name in (column, "return")]
                panel.plot(means[0] / unit, means[1], color=f"C{index}", label=arm)
        random = next(run.random for run in outcomes if run.task == task)
        for panel, label in zip(row, ("steps of the agent", "minutes of training"), strict=True):
            panel.axhline(random, color="gray", linestyle=":", linewidth=1)
            panel.set_xlabel(label)
            panel.spines[["top", "right"]].set_visible(False)
        row[0].set_ylabel(f"{task}: mean return")
    panels[0][0].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
