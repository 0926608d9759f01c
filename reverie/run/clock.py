"""When things are due: how many updates per step, duties every so many steps, and the wish to stop."""

from __future__ import annotations

import logging
import os
import signal
import threading
from dataclasses import dataclass
from types import FrameType
from typing import Any

log = logging.getLogger(__name__)

HANG_UP = getattr(signal, "SIGHUP", None)
"""What a process gets when its terminal closes; Windows has no such signal."""

SIGNALS = tuple(filter(None, (signal.SIGINT, signal.SIGTERM, HANG_UP)))


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
