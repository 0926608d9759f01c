"""Where environments run when the options leave that open: what takes much longer to step than to ask is sent away.

Rows are the same wherever they are made, so timing decides how fast a run is and nothing else.
"""

from __future__ import annotations

import functools
import logging
import multiprocessing
import threading
import time
from typing import Any

import numpy as np

from reverie.env.generators import kept, with_generators
from reverie.env.registry import EnvOptions, make
from reverie.env.worker import summary
from reverie.env.wrappers import Environment
from reverie.errors import ReverieError
from reverie.types import action_width

logger = logging.getLogger(__name__)

STEPS, SECONDS = 200, 0.05
"""Steps are timed until either is reached."""

MESSAGES = 20

WORTH = 15.0
"""Messages that a step must outlast: a process also has to be started, again for each evaluation, woken and watched.

On two cores MiniGrid, 2 messages long, is collected faster in one process, and so is Pong, 10 messages long, until
there are sixteen; processes pay for steps of 5 ms (benchmarks/results/scaling.json).
"""


def with_mode(options: EnvOptions) -> EnvOptions:
    """The options with ``mode`` decided: an environment is made for the timing alone, and thrown away.

    One that fails meanwhile goes to processes, where it is watched. Raises `ConfigError` as `make` does.
    """
    if options.mode != "auto":
        return options
    mode, reason = "processes", ""
    try:
        with kept():
            step, message = _time(options)
        reason = f"a step takes {1000 * step:.2f} ms, a message to another process {1000 * message:.2f} ms"
        mode = "processes" if step > WORTH * message else "inline"
    except ReverieError:
        raise
    except KeyboardInterrupt:  # of the user
        raise
    except BaseException as error:  # a foreign environment may raise anything, SystemExit too
        reason = f"failed while it was timed ({summary(error)})"
    logger.info("%s: %s; env.mode = %s", options.name, reason, mode)
    return options.model_copy(update={"mode": mode})


def _time(options: EnvOptions) -> tuple[float, float]:
    """Seconds of one step, and of one message that carries its result."""
    environment = with_generators(functools.partial(make, options), 0)
    try:
        step, question, answer = _time_steps(environment)
    finally:
        environment.close()
    return step, _time_message(question, answer)


def _time_steps(environment: Environment) -> tuple[float, Any, Any]:
    """Median seconds of a step with random actions; the last action, and what it led to."""
    draw, width = np.random.default_rng(0), action_width(environment.action)
    seconds, over, end, action, answer = [], True, 0.0, None, None
    for count in range(1 + STEPS):
        action = draw.uniform(-1, 1, width).astype(np.float32)
        if over:
            environment.reset(count)
        began = time.perf_counter()
        _, _, terminated, truncated = answer = environment.step(action)
        now, over = time.perf_counter(), terminated or truncated
        if count == 0:  # it may load what all others use
            end = now + SECONDS
            continue
        seconds.append(now - began)
        if now > end:
            break
    return float(np.median(seconds)), action, answer


def _time_message(question: Any, answer: Any) -> float:
    """Median seconds until a question has gone through a pipe and its answer has come back.

    A thread answers: it must be woken as a process must, but need not be started.
    """
    ours, theirs = multiprocessing.Pipe()

    def serve() -> None:
        with theirs:
            for _ in range(MESSAGES):
                theirs.recv()
                theirs.send(answer)

    threading.Thread(target=serve, daemon=True).start()
    seconds = []
    with ours:
        for _ in range(MESSAGES):
            began = time.perf_counter()
            ours.send(question)
            ours.recv()
            seconds.append(time.perf_counter() - began)
    return float(np.median(seconds))
