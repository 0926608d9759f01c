"""What all contestants of ``benchmarks/speed.py`` share: the task, the clock, and the line of JSON that they answer.

A contestant runs in an environment of its own, so this file needs nothing but Python.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Task = dict[str, Any]
"""``config`` is every option of Reverie, ``sizes`` the widths of the networks, ``observation`` a shape and a dtype,
``actions`` how many there are to choose from; at least ``seconds`` are measured."""


def task() -> Task:
    """What the command line asks for, at its end."""
    return json.loads(sys.argv[-1])


def report(repeat: Callable[[], object], seconds: float, parameters: int) -> None:
    """Repeats for ``seconds``, at least once, after a quarter of that to warm up; prints what it took."""
    times_of(repeat, seconds / 4)
    times = times_of(repeat, seconds)
    print(json.dumps({"milliseconds": times, "megabytes": peak(), "parameters": parameters}))


def times_of(repeat: Callable[[], object], seconds: float) -> list[float]:
    """Milliseconds of each repetition, until ``seconds`` have passed but at least once."""
    times: list[float] = []
    while not times or sum(times) < 1000 * seconds:
        began = time.perf_counter()
        repeat()
        times.append(1000 * (time.perf_counter() - began))
    return times


def peak() -> float:
    """The most memory that this program ever held, in MB; ``ru_maxrss`` would count the one that started it."""
    return int(re.findall(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[0]) / 1024
