"""When things are due: how many updates per step, duties every so many steps, and the wish to stop."""

from __future__ import annotations

import logging
import os
import signal
import threading
from dataclasses import dataclass
from types import FrameType

log = logging.getLogger(__name__)


class Ratio:
    """How many updates are due, for a fixed number of updates per environment step; the first call owes one."""

    def __init__(self, ratio: float):
        self.ratio = ratio
        self.paid: float | None = None
        """The step up to which updates were made."""

    def __call__(self, step: int) -> int:
        if self.paid is None:
            self.paid = float(step)
            return 1
        due = int((step - self.paid) * self.ratio)
        self.paid += due / self.ratio
        return due


@dataclass(frozen=True)
class Every:
    """Fires once for every multiple of ``interval`` that is passed; an interval of 0 never fires."""

    interval: int

    def __call__(self, before: int, after: int) -> bool:
        return bool(self.interval) and before // self.interval != after // self.interval


class Interruption:
    """Turns the first SIGINT or SIGTERM into a wish to stop; the second ends the process at once."""

    def __init__(self) -> None:
        self.signal: int | None = None

    @property
    def exit_code(self) -> int:
        """130 for SIGINT, 143 for SIGTERM, 0 for none."""
        return 128 + self.signal if self.signal else 0

    def __enter__(self) -> Interruption:
        main = threading.current_thread() is threading.main_thread()  # no other thread may handle signals
        self._old = {number: signal.signal(number, self._wish) for number in (signal.SIGINT, signal.SIGTERM) if main}
        return self

    def __exit__(self, *failure: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def wished(self) -> bool:
        """Whether a signal has come."""
        return self.signal is not None

    def _wish(self, number: int, frame: FrameType | None) -> None:
        if self.wished():
            os._exit(128 + number)
        self.signal = number
        log.info("stopping; a second signal stops at once")
