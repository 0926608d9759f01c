"""When things are due: so many updates per step, duties every so many steps, and the wish to stop."""

from __future__ import annotations

import logging
import os
import signal
import threading
from dataclasses import dataclass
from fractions import Fraction
from types import FrameType
from typing import Any

log = logging.getLogger(__name__)

HANG_UP = getattr(signal, "SIGHUP", None)
"""What a process gets when its terminal closes; Windows has no such signal."""

SIGNALS = tuple(filter(None, (signal.SIGINT, signal.SIGTERM, HANG_UP)))


class TrainRatio:
    """How many updates are due at a step, for so many updates per step of the agent; the first call owes one.

    It counts in fractions, so that no update is lost or gained by rounding, nor by a resume.
    """

    def __init__(self, updates_per_step: Fraction):
        self.updates_per_step = updates_per_step
        self.trained_to: Fraction | None = None
        """The step that the updates made so far belong to; None before the first one."""

    def __call__(self, step: int) -> int:
        if self.trained_to is None:
            self.trained_to = Fraction(step)
            return 1
        due = int((step - self.trained_to) * self.updates_per_step)
        self.trained_to += due / self.updates_per_step
        return due

    def state(self) -> str | None:
        """All that must be stored: `trained_to` as text, for a number with a point would round it."""
        return None if self.trained_to is None else str(self.trained_to)

    def load_state(self, state: str | None) -> None:
        """Takes over what `state` returned; the number of updates per step may be another one."""
        self.trained_to = None if state is None else Fraction(state)


@dataclass(frozen=True)
class Every:
    """Fires once for every multiple of ``interval`` that is passed; an interval of 0 never fires."""

    interval: int

    def __call__(self, before: int, after: int) -> bool:
        return bool(self.interval) and before // self.interval != after // self.interval


class Interruption:
    """Turns the first SIGINT, SIGTERM or SIGHUP into a wish to stop; the second ends the process at once.

    A second SIGHUP does not, for a terminal that closes sends several. What was ignored before, as by ``nohup``, stays
    ignored.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._old: dict[int, Any] = {}

    @property
    def exit_code(self) -> int:
        """130 for SIGINT, 143 for SIGTERM, 129 for SIGHUP, 0 for none."""
        return 128 + self.signal if self.signal else 0

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():  # no other thread may handle signals
            handlers = {number: signal.getsignal(number) for number in SIGNALS}
            self._old = {number: handler for number, handler in handlers.items() if handler is not signal.SIG_IGN}
        self._take()
        return self

    def __exit__(self, *failure: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler or signal.SIG_DFL)  # None: no handler of Python's

    def wished(self) -> bool:
        """Whether a signal has come. Environments may have set handlers of their own: ask after each of their steps."""
        self._take()
        return self.signal is not None

    def _take(self) -> None:
        for number in self._old:
            if signal.getsignal(number) != self._wish:
                signal.signal(number, self._wish)

    def _wish(self, number: int, frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal = number
            log.info("stopping; a second signal stops at once")
        elif number != HANG_UP:
            os._exit(128 + number)
