"""One environment's place in a `VectorEnv`: its episodes, its failures, and the way back into an open episode.

Everything that must outlive the environment itself is kept here, on the caller's side, wherever the environment runs.
"""

from __future__ import annotations

import functools
import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

from reverie.env.registry import EnvOptions
from reverie.env.worker import Failure, Place
from reverie.env.wrappers import Observation
from reverie.errors import EnvironmentFailure
from reverie.types import ActionSpec, ObservationSpec

logger = logging.getLogger(__name__)

REMEMBERED_ACTIONS = 20_000
"""An episode with more actions than this cannot be continued from a checkpoint."""

BUDGET_SECONDS = 600.0
"""The window in which `EnvOptions.restarts` failures are allowed."""

LONGEST_PAUSE = 2.0


@functools.cache
def say(name: str, note: str) -> None:
    """A warning of the environment ``name``: once, however many there are, and however often they are made."""
    logger.warning("%s: %s", name, note)


class Row(NamedTuple):
    """One environment's share of a `Step`."""

    obs: Observation
    reward: float
    first: bool
    last: bool
    terminal: bool
    info: dict[str, float] = {}
    """Of the episode that ended, by name."""


class Slot:
    """Plays one environment, episode after episode; each is determined by (seed, number, episode) and the actions.

    What the environment draws when it is made is determined by (seed, number, starts), which is what ``start`` is told.
    Where the environment fails, it is started again and the open episode ends as truncated: its last observation
    once more, with reward 0. `EnvironmentFailure` is raised when that happens too often.
    """

    def __init__(self, number: int, options: EnvOptions, seed: int, start: Callable[[int], Place]):
        self.number = number
        self.options = options
        self.seed = seed
        self.start = start
        self.starts = 0
        self.place = self._start()
        self.failures: deque[float] = deque()
        self.episode = 0
        self.length = 0
        self.open = False
        self.lost = False  # open, but the environment is no longer there: the next row ends the episode
        self.obs: Observation = {}
        self.actions: list[np.ndarray] | None = []
        self.taken = np.zeros(0, np.float32)  # the action of a step that is under way

    def describe(self) -> tuple[dict[str, ObservationSpec], ActionSpec, list[str]]:
        """What the environment shows and takes, and what a user must know of that; the question must have been sent.

        Raises `EnvironmentFailure` as `_restart` does, and where it cannot be made twice for the same reason.
        """
        reason = None
        while True:
            try:
                return self.place.receive(self.options.reset_timeout)
            except Failure as failure:
                if failure.summary == reason:
                    raise EnvironmentFailure(
                        f"{self.options.name} cannot be made, as two attempts have shown: {reason}"
                    ) from failure
                reason = failure.summary
                self._restart(failure)
                self.place.send("describe")

    def send(self, action: np.ndarray) -> None:
        """Asks for the next row: a step where an episode is open, else the beginning of one. The action is kept."""
        if not self.open:
            self.place.send("reset", self._episode_seed())
        elif not self.lost:
            self.taken = action
            self.place.send("step", action)

    def receive(self) -> Row:
        """The row that `send` asked for."""
        if not self.open:
            return self._begin()
        if self.lost:
            return self._end(Row(self.obs, 0.0, False, True, False))
        try:
            self.obs, reward, terminated, truncated, info = self.place.receive(self.options.step_timeout)
        except Failure as failure:
            self._restart(failure)
            return self._end(Row(self.obs, 0.0, False, True, False))
        self.length += 1
        self._remember(self.taken)
        row = Row(self.obs, reward, False, terminated or truncated, terminated, info)
        if not row.last:
            return row
        for name in self.options.info_metrics.keys() - info.keys():
            say(self.options.name, f"an episode ended and its info had no number {name!r} (env.info_metrics)")
        return self._end(row)

    def state_dict(self) -> dict[str, Any]:
        """Plain containers and tensors. ``actions`` [length, A] is None where the episode has become too long."""
        actions = None if self.actions is None else torch.from_numpy(np.array(self.actions, np.float32))
        obs = {key: torch.from_numpy(value.copy()) for key, value in self.obs.items()} if self.open else {}
        now = {"episode": self.episode, "starts": self.starts, "open": self.open, "lost": self.lost}
        return now | {"actions": actions, "obs": obs}

    def send_restore(self, state: dict[str, Any], seed: int) -> None:
        """Takes over a state and, where an episode is open, asks the environment to go back into it."""
        if (seed, state["starts"]) != (self.seed, self.starts):  # it was made with other random numbers
            self.seed, self.starts = seed, state["starts"]
            self._stop()
            self.place = self._start()
        self.episode = state["episode"]
        self.open, self.lost = state["open"], state["lost"] or (state["open"] and state["actions"] is None)
        self.obs = {key: value.numpy().copy() for key, value in state["obs"].items()}
        self.actions = None if state["actions"] is None else list(state["actions"].numpy().copy())
        self.length = len(self.actions or ())
        if self.open and not self.lost:
            self.place.send("restore", self._episode_seed(), self.actions)

    def receive_restore(self) -> bool:
        """Whether the environment is where it was; if not, the next row ends the episode as truncated."""
        if self.open and not self.lost:
            try:
                obs = self.place.receive(self.options.reset_timeout)
                self.lost = obs is None or not _equal(obs, self.obs)
            except Failure as failure:
                self._restart(failure)
                self.lost = True
        return not self.lost

    def _begin(self) -> Row:
        while True:
            try:
                self.obs = self.place.receive(self.options.reset_timeout)
                break
            except Failure as failure:
                self._restart(failure)
                self.episode += 1
                self.place.send("reset", self._episode_seed())
        self.open, self.length, self.actions = True, 0, []
        return Row(self.obs, 0.0, True, False, False)

    def _end(self, row: Row) -> Row:
        self.open, self.lost, self.actions = False, False, []
        self.episode += 1
        return row

    def _remember(self, action: np.ndarray) -> None:
        if self.actions is not None:
            self.actions.append(action)
            if len(self.actions) > REMEMBERED_ACTIONS:
                self.actions = None

    def _restart(self, failure: Failure) -> None:
        """Replaces the environment after a pause, or raises `EnvironmentFailure` when the budget is spent."""
        self._stop()
        where = f"{self.options.name}, worker {self.number}, episode {self.episode}"
        where += f" (seed {self._episode_seed()}), step {self.length if self.open else 0}: {failure.summary}"
        logger.debug("%s\n%s", where, failure.trace)
        now = time.monotonic()
        self.failures.append(now)
        while now - self.failures[0] > BUDGET_SECONDS:
            self.failures.popleft()
        if len(self.failures) > self.options.restarts:
            raise EnvironmentFailure(
                f"{where}; {len(self.failures)} failures within {BUDGET_SECONDS / 60:g} minutes, "
                f"env.restarts allows {self.options.restarts}: mend the environment or allow more"
            )
        logger.warning("%s; the environment is started again%s", where, ", its episode is truncated" * self.open)
        time.sleep(min(LONGEST_PAUSE, 0.05 * 2 ** len(self.failures)))
        self.starts += 1
        self.place = self._start()

    def _stop(self) -> None:
        self.place.release()
        self.place.stop(time.monotonic())

    def _start(self) -> Place:
        seed = np.random.SeedSequence([self.seed, self.number], spawn_key=(self.starts,))
        return self.start(int(seed.generate_state(1)[0]))

    def _episode_seed(self) -> int:
        return int(np.random.SeedSequence([self.seed, self.number, self.episode]).generate_state(1)[0] >> 1)


def _equal(left: Observation, right: Observation) -> bool:
    return left.keys() == right.keys() and all(np.array_equal(left[key], right[key]) for key in left)
