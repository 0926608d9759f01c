"""Whole functions fused by torch's compiler while an agent learns: the same functions, written once.

`compiled` marks a function. Within `learning` its calls run machine code, which is made at the first call and kept in
the user's cache; everywhere else, and where the compiler fails at a function, Python runs it as it is written. The
shapes of an update never change, so all is compiled in the first one; acting and evaluation, whose shapes differ, are
not compiled.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import torch

from reverie import native
from reverie.native import build

log = logging.getLogger(__name__)

Function = TypeVar("Function", bound=Callable[..., Any])

CACHE = "TORCHINDUCTOR_CACHE_DIR"
"""The environment variable that names the folder in which torch keeps what it compiled."""

BACKEND: Any = "inductor"
"""Which of torch's compilers is used."""

MODES = {"graphs": "reduce-overhead"}
"""What else is asked of it, by the choice that asks."""

VARIANTS = 32
"""Kinds of arguments that one function may be compiled for: levels, and minibatches that differ by a row."""

REPAID = 5_000
"""Updates that repay the compiler's minutes."""

_learning: ContextVar[bool] = ContextVar("learning", default=False)
"""Whether this thread is in an update that is compiled; another one may act meanwhile."""
_mode: ContextVar[str | None] = ContextVar("mode", default=None)
_failed = False


def compiled(function: Function) -> Function:
    """Marks a function of tensors, modules and plain values that is compiled within `learning`.

    A compiled function that calls another marked one takes it in.
    """
    fused = functools.cache(functools.partial(torch.compile, function, dynamic=False))

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        if torch.compiler.is_compiling() or _failed or not _learning.get():
            return function(*arguments)
        from torch._dynamo.exc import TorchDynamoException  # a second of import that most runs never need

        try:
            return fused(backend=BACKEND, mode=_mode.get())(*arguments)
        except TorchDynamoException as error:
            result = function(*arguments)  # a mistake in the function itself is raised here
            _give_up(error)
            return result

    return call  # type: ignore[return-value]


@contextmanager
def learning(enabled: bool, choice: str = "on") -> Iterator[None]:
    """One update, whose marked functions are compiled if ``enabled`` and unless the compiler failed before.

    With the choice ``graphs``, what they return lasts until the next update, which may write over it.
    """
    before, mode = _learning.set(enabled), _mode.set(MODES.get(choice))
    if enabled:
        _prepare()
        if _mode.get() is not None:
            torch.compiler.cudagraph_mark_step_begin()
    try:
        yield
    finally:
        _learning.reset(before)
        _mode.reset(mode)


def _prepare() -> None:
    """Tells torch's compiler where to keep its work and how to go about it."""
    from torch._dynamo import config as tracer
    from torch._functorch import config as differentiation

    folder()
    differentiation.force_non_lazy_backward_lowering = True  # what fails on the way back fails in `compiled`, too
    tracer.recompile_limit = max(tracer.recompile_limit, VARIANTS)


def folder() -> str:
    """Where torch keeps what it compiled: in the user's cache, unless the environment names another place."""
    if CACHE not in os.environ:
        os.environ[CACHE] = str(build.cache_folder() / "compiled")
    return os.environ[CACHE]


def repays(choice: str, device: torch.device, updates: float = 0) -> bool:
    """Whether to compile: ``on``, ``graphs``, ``off``, or ``auto``, which asks if a run of so many updates repays it.

    Beside the native kernels it does not: at the sizes that are trained on a CPU they are as fast.
    """
    if choice == "auto":
        return updates >= REPAID and not native.supports(torch.empty(1, device=device))
    return choice in ("on", *MODES)


def works() -> bool:
    """Whether the compiler has not failed in this process."""
    return not _failed


def _give_up(error: Exception) -> None:
    global _failed
    _failed = True
    cause = getattr(error, "inner_exception", error)  # of what a backend raised
    reason = next(iter(str(cause).strip().splitlines()), "") or type(cause).__name__
    log.warning("torch cannot compile here (%s): going on without, as with agent.compile=off", reason)
