"""Where one environment lives: in this process (`Inline`) or in a process of its own (`Worker`).

Both are asked in the same way, ``send`` then ``receive``, so that many workers can be busy at once. A worker that dies,
hangs or raises is a `Failure`; it never blocks the caller for longer than the time it was given, and never outlives it.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from types import ModuleType
from typing import Any, Protocol, runtime_checkable

import cloudpickle
import numpy as np

from reverie.env.wrappers import Environment, Observation
from reverie.errors import ReverieError

THREADS = "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"
"""What libraries of numbers ask for their number of threads."""

SLICE = 1.0
"""Seconds counted at most for one wait: if this process was suspended, its workers were too and are not to blame."""


GRAPHICS = re.compile(r"\bE?GL\b|\be?gl[A-Z]|OpenGL|OSMesa|GLFW|gladLoad")
"""What libraries speak of that cannot draw."""


class Failure(Exception):
    """An environment raised, died or hung: one line on what happened, and the traceback where there is one."""

    def __init__(self, summary: str, trace: str = ""):
        super().__init__(summary, trace)
        self.summary = summary
        self.trace = trace


@runtime_checkable
class Place(Protocol):
    """Where an environment lives."""

    def send(self, command: str, *arguments: Any) -> None:
        """Asks for a method of the environment, or for ``describe`` or ``restore``."""
        ...

    def receive(self, timeout: float) -> Any:
        """The answer to the last question. Raises `Failure`, and passes on a `ReverieError`."""
        ...

    def release(self) -> None:
        """Asks the environment to close, without waiting for it."""
        ...

    def stop(self, deadline: float) -> None:
        """Ends whatever is left at the deadline (of `time.monotonic`)."""
        ...


class Inline:
    """An environment in this process: it answers when it is asked to, however long that takes.

    It leaves the global generators in a state of its own: who asks keeps them.
    """

    def __init__(self, build: Callable[[int], Environment], seed: int):
        self.build, self.seed = build, seed
        self.environment: Environment | None = None
        self.question: tuple = ()

    def send(self, command: str, *arguments: Any) -> None:
        self.question = (command, *arguments)

    def receive(self, timeout: float) -> Any:
        try:
            if self.environment is None:
                self.environment = self.build(self.seed)
            return answer(self.environment, *self.question)
        except KeyboardInterrupt:  # of the user
            raise
        except BaseException as error:  # SystemExit too: an environment does not end the run
            raise as_failure(error) from error

    def release(self) -> None:
        _close(self.environment)

    def stop(self, deadline: float) -> None:
        self.environment = None


class Worker:
    """An environment in a process of its own, which ``recipe`` (a pickled function of the seed) tells how to build."""

    def __init__(self, recipe: bytes, seed: int, name: str):
        # A server that has the package imported forks faster than new interpreters start, and shares their memory.
        if "forkserver" in multiprocessing.get_all_start_methods():
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload([__name__])
        else:
            context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, recipe, seed), name=name, daemon=True)
        with _without_main(), _with_one_thread():
            self.process.start()
        theirs.close()

    def send(self, command: str, *arguments: Any) -> None:
        with contextlib.suppress(OSError):  # a dead worker is reported by `receive`
            self.connection.send((command, *arguments))

    def receive(self, timeout: float) -> Any:
        slices = math.ceil(timeout / SLICE)
        if not any(wait([self.connection, self.process.sentinel], timeout / slices) for _ in range(slices)):
            raise Failure(f"no answer within {timeout:g} s")
        try:
            if not self.connection.poll():
                raise EOFError
            error, result = self.connection.recv()
        except (EOFError, OSError) as gone:
            self.process.join(SLICE)
            raise Failure(f"its process died (exit code {self.process.exitcode})") from gone
        if error is not None:
            raise error
        return result

    def release(self) -> None:
        self.connection.close()

    def stop(self, deadline: float) -> None:
        self.process.join(max(0.0, deadline - time.monotonic()))
        if self.process.pid and hasattr(os, "killpg"):
            with contextlib.suppress(OSError):  # it leads a process group: this ends whatever it has started, too
                os.killpg(self.process.pid, signal.SIGKILL)
        if self.process.is_alive():
            self.process.kill()
            self.process.join(SLICE)


def serve(connection: Connection, recipe: bytes, seed: int) -> None:
    """The life of a worker: build the environment, answer until the other end closes. It ends with its first error."""
    _leave_the_terminal_to_the_parent()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    environment = None
    try:
        environment = cloudpickle.loads(recipe)(seed)
        while question := _next(connection):
            connection.send((None, answer(environment, *question)))
    except BaseException as error:
        with contextlib.suppress(OSError):
            connection.send((as_failure(error), None))
    finally:
        _close(environment)


def answer(environment: Environment, command: str, *arguments: Any) -> Any:
    """What the environment says to one question."""
    if command == "describe":
        return environment.observation, environment.action, environment.notes
    if command == "step":
        obs, reward, terminated, truncated = environment.step(*arguments)
        return obs, reward, terminated, truncated, environment.report() if terminated or truncated else {}
    if command == "restore":
        return restore(environment, *arguments)
    return getattr(environment, command)(*arguments)


def restore(environment: Environment, seed: int, actions: Sequence[np.ndarray]) -> Observation | None:
    """Goes through the beginning of an episode again: its last observation, or None if it ended too early."""
    obs = environment.reset(seed)
    for action in actions:
        obs, _, terminated, truncated = environment.step(action)
        if terminated or truncated:
            return None
    return obs


def as_failure(error: BaseException) -> Exception:
    """The error in a form that can cross to another process. A user's mistake stays what it is."""
    if isinstance(error, ReverieError):
        return error
    return Failure(summary(error), traceback.format_exc())


def summary(error: BaseException) -> str:
    """Type and message, on one line, and what to do where graphics are missing."""
    advice = " (to draw, set MUJOCO_GL to egl, osmesa or glfw)" if GRAPHICS.search(str(error)) else ""
    return " ".join(f"{type(error).__name__}: {error}".split()) + advice


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """Hides the script that runs: else every worker would import it, and one without ``if __name__`` trains again.

    Nothing is missed: the recipe brings along what it needs of that script.
    """
    main, sys.modules["__main__"] = sys.modules["__main__"], ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


@contextlib.contextmanager
def _with_one_thread() -> Iterator[None]:
    """What starts here computes with one thread, for there are as many workers as environments.

    Libraries ask when they are loaded, which in a worker is before any line of ours.
    """
    before = {name: os.environ.get(name) for name in THREADS}
    os.environ.update(dict.fromkeys(THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _close(environment: Environment | None) -> None:
    """Whatever an environment raises when it is closed, it is gone."""
    if environment is not None:
        with contextlib.suppress(Exception, SystemExit):
            environment.close()


def _next(connection: Connection) -> tuple:
    try:
        return connection.recv()
    except (EOFError, OSError):
        return ()


def _leave_the_terminal_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)
    if sys.platform == "linux":
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG of prctl(2)
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


def _end_with_parent() -> None:
    """Ends this process when the one that started it is gone, even while the environment is busy."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(0)
