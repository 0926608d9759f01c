"""Where metrics go: always to ``metrics.jsonl`` and the console, and to TensorBoard and Weights & Biases on demand.

Logging can lose rows but never training: the trackers live behind bounded queues on threads of their own, so one
that raises, hangs or is missing costs a warning and nothing else.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable
from urllib.parse import urlsplit

from torch import Tensor

from reverie.config import LoggerOptions
from reverie.run.rows import Rows

HEADLINES = (
    "world/recon_loss",
    "world/kl_loss",
    "policy/policy_loss",
    "policy/value_loss",
    "policy/entropy",
)
"""What the console shows of a row of metrics, if anything; DEBUG shows all of it."""

PATIENCE = 3
"""Failures in a row after which a tracker is switched off."""

EXIT_DELAY = 5.0
"""Seconds that trackers get, together, to finish when a run ends; wandb may take them once more at exit."""

log = logging.getLogger("reverie")


@runtime_checkable
class Tracker(Protocol):
    """A place that shows metrics. Any method may raise, hang or take its time."""

    def scalars(self, step: int, metrics: dict[str, float]) -> None: ...

    def media(self, step: int, name: str, path: Path) -> None: ...

    def close(self) -> None: ...


class Logger:
    """Writes what one run measures; see the module's docstring.

    ``resume`` is the step that the run goes on from, and ``mark`` what `mark` returned there: rows written since are
    cut, so none appears twice.
    """

    def __init__(
        self,
        options: LoggerOptions,
        directory: Path,
        config: Mapping[str, Any],
        resume: int = 0,
        mark: Mapping[str, int] | None = None,
    ):
        self._rows = Rows(directory / "metrics.jsonl", resume, mark)
        self._trackers: list[Background] = []
        if options.tensorboard:
            self._trackers.append(Background("tensorboard", partial(TensorBoard, directory / "tensorboard", resume)))
        if options.wandb:
            connect = partial(WeightsAndBiases, options.wandb_project, directory, dict(config))
            self._trackers.append(Background("wandb", connect))

    def write(self, step: int, metrics: Mapping[str, Tensor | float]) -> None:
        """Stores one row of metrics; here, and only here, tensors become numbers."""
        numbers = {name: float(value) for name, value in metrics.items()}
        self._store(step, numbers)
        everything = log.isEnabledFor(logging.DEBUG)
        shown = {name: float(f"{numbers[name]:.4g}") for name in numbers if everything or name in HEADLINES}
        if shown:
            log.info("Step %d: %s", step, shown)

    def episode(self, step: int, episode_return: float, length: int, info: Mapping[str, float] | None = None) -> None:
        """Stores the return and the length (in steps) of an episode that just ended, and what else was told of it."""
        told = {f"episode/{name}": value for name, value in (info or {}).items()}
        self._store(step, {"episode/return": float(episode_return), "episode/length": float(length)} | told)
        log.info("Episode return: %s, length: %d", round(float(episode_return), 2), length)

    def mark(self) -> dict[str, int]:
        """Where ``metrics.jsonl`` ends now, and a digest of it: a checkpoint keeps them."""
        return {"bytes": self._rows.size, "digest": self._rows.digest}

    def media(self, step: int, name: str, path: Path) -> None:
        """Shows a video or picture file to the trackers."""
        for tracker in self._trackers:
            tracker.put(lambda backend: backend.media(step, name, path))

    def close(self) -> None:
        """Gives the trackers a few seconds to finish, then leaves them behind."""
        deadline = time.monotonic() + EXIT_DELAY
        for tracker in self._trackers:
            tracker.finish()
        for tracker in self._trackers:
            tracker.join(deadline - time.monotonic())
        self._rows.close()

    def _store(self, step: int, numbers: dict[str, float]) -> None:
        self._rows.append(step, numbers)
        for tracker in self._trackers:
            tracker.put(lambda backend: backend.scalars(step, numbers))


class Background:
    """Feeds one tracker from a daemon thread; when it cannot keep up, the oldest rows are dropped and counted."""

    def __init__(self, name: str, connect: Callable[[], Tracker], capacity: int = 1000):
        self.dropped = 0
        self._name = name
        self._connect = connect
        self._tasks: deque[Callable[[Tracker], None] | None] = deque(maxlen=capacity)
        self._news = threading.Condition()
        self._thread = threading.Thread(target=self._run, name=f"reverie-{name}", daemon=True)
        self._thread.start()

    def put(self, task: Callable[[Tracker], None] | None) -> None:
        """Queues a call on the tracker; never waits."""
        if not self._thread.is_alive():
            return
        with self._news:
            self.dropped += len(self._tasks) == self._tasks.maxlen
            self._tasks.append(task)
            self._news.notify()

    def finish(self) -> None:
        """Lets the thread end once it has done what is queued."""
        self.put(None)

    def join(self, seconds: float) -> None:
        self._thread.join(max(0.0, seconds))
        if self._thread.is_alive():
            log.warning("%s did not finish in time and is left behind", self._name)
        if self.dropped:
            log.warning("%s was too slow: %d rows are only in metrics.jsonl", self._name, self.dropped)

    def _run(self) -> None:
        failures = 0
        try:
            tracker = self._connect()
            while task := self._next():
                try:
                    task(tracker)
                    failures = 0
                except BaseException:
                    failures += 1
                    if failures == PATIENCE:
                        raise
            tracker.close()
        except BaseException as error:  # a tracker may even call sys.exit
            reason = str(error).strip().partition("\n")[0]
            log.warning("%s is switched off (%s: %s); training goes on", self._name, type(error).__name__, reason)

    def _next(self) -> Callable[[Tracker], None] | None:
        with self._news:
            while not self._tasks:
                self._news.wait()
            return self._tasks.popleft()


class TensorBoard:
    """Event files in the run's folder."""

    def __init__(self, directory: Path, resume: int):
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(directory), purge_step=resume + 1 if resume else None)

    def scalars(self, step: int, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def media(self, step: int, name: str, path: Path) -> None:
        if path.suffix == ".png":
            from matplotlib.image import imread  # whoever drew it has matplotlib

            self._writer.add_image(name, imread(path)[..., :3], step, dataformats="HWC")
        else:
            self._writer.add_text(name, str(path), step)

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run on wandb, named after its folder; kept on disk for `wandb sync` when it cannot be sent now."""

    def __init__(self, project: str, directory: Path, config: dict[str, Any]):
        import wandb

        self._wandb = wandb
        mode: Any = os.environ.get("WANDB_MODE") or ("online" if self._reachable() else "offline")
        settings = wandb.Settings(console="off", silent=True, init_timeout=30, finish_timeout=EXIT_DELAY)
        name = directory.resolve().name
        self._run = wandb.init(
            project=project,
            name=name,
            id=name,
            resume="allow",
            dir=directory,
            config=config,
            mode=mode,
            settings=settings,
        )
        self._run.define_metric("*", step_metric="step")  # wandb's own step keeps one of the episodes that end at it
        if mode == "offline":
            log.info("wandb is offline; send the run later with: wandb sync %s", Path(self._run.dir).parent)

    def scalars(self, step: int, metrics: dict[str, float]) -> None:
        self._run.log({"step": step, **metrics})

    def media(self, step: int, name: str, path: Path) -> None:
        kind = self._wandb.Image if path.suffix in (".webp", ".png") else self._wandb.Video
        self._run.log({"step": step, name: kind(str(path))})

    def close(self) -> None:
        self._run.finish()

    def _reachable(self) -> bool:
        """Whether the server answers and knows us; decided before `init`, which would block or ask."""
        host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai"))
        try:
            socket.create_connection((host.hostname, host.port or 443), timeout=5).close()
        except OSError:
            return False
        return self._wandb.login(prompt=False)


class Console(logging.Handler):
    """Prints to whatever stdout is now; when its reader has gone, goes on in silence."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            print(self.format(record), flush=True)
        except BrokenPipeError:
            with open(os.devnull, "w") as silence:
                os.dup2(silence.fileno(), sys.stdout.fileno())
        except (OSError, ValueError):
            pass


def console(level: str) -> None:
    """Makes the package speak on the console as ``INFO - message``, from this level on."""
    handler = Console()
    handler.setFormatter(logging.Formatter("%(levelname)s - %(message)s"))
    log.handlers[:] = [handler]
    log.propagate = False
    log.setLevel(level)
