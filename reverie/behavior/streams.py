"""Streams of reward: what a level of the behavior is paid for, each with a critic head of its own."""

from __future__ import annotations

from dataclasses import dataclass

TASK = "extrinsic"
"""The stream of the environment's own reward."""


@dataclass(frozen=True)
class Stream:
    """One kind of reward: how much it counts, and over how many steps it is discounted."""

    weight: float
    horizon: float
    episodic: bool = True
    """Whether nothing is expected after the episode's end. Otherwise it goes on with the mean value of the rollouts'
    first points, for a dream sees no start of an episode."""
    ends_with_goal: bool = False
    """Whether credit ends where a goal does: the goal's value goes on, whatever the manager wants next."""

    @property
    def discount(self) -> float:
        return 1.0 - 1.0 / self.horizon
