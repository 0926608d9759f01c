"""The live line of a training run: how far, how fast, how good, how long to go. Only on a terminal."""

from __future__ import annotations

import contextlib
import time
from collections import deque

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

RECENT = 20
"""Episodes that the shown return is the mean of."""


class Progress:
    """A context manager; silent where stdout is not a terminal, and a terminal that goes away does not matter.

    ``total`` and ``start`` are steps: where the run ends and where it goes on from.
    """

    def __init__(self, total: int, start: int = 0, console: Console | None = None):
        console = console or Console()
        self._bar = Bar(
            TextColumn("[bold]step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[rates]}"),
            TimeRemainingColumn(),
            console=console,
            refresh_per_second=4,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=total, completed=start, rates="")
        self._returns: deque[float] = deque(maxlen=RECENT)
        self._last = (time.monotonic(), start, 0)

    def __enter__(self) -> Progress:
        with contextlib.suppress(OSError):
            self._bar.start()
        return self

    def __exit__(self, *failure: object) -> None:
        with contextlib.suppress(OSError):
            self._bar.stop()

    def episode(self, episode_return: float) -> None:
        """Counts a finished episode into the shown mean."""
        self._returns.append(episode_return)

    def update(self, step: int, updates: int) -> None:
        """Moves to ``step`` after so many updates of the agent in all; rates are renewed once a second."""
        now, (then, old_step, old_updates) = time.monotonic(), self._last
        self._bar.update(self._task, completed=step)
        if now - then < 1:
            return
        self._last = (now, step, updates)
        speeds = (
            f"{(step - old_step) / (now - then):.0f} steps/s  {(updates - old_updates) / (now - then):.1f} updates/s"
        )
        score = f"  return {sum(self._returns) / len(self._returns):.1f}" if self._returns else ""
        self._bar.update(self._task, rates=speeds + score)
