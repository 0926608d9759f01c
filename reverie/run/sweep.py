"""Runs the trials of a grid, each as a process of its own, and keeps what came of them.

A trial's outcome is in its folder's ``result.json``, so a sweep that was stopped or killed goes on with what is
missing. A trial that fails stops nothing.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path

from reverie import config as configuration
from reverie.config import Config
from reverie.errors import ConfigError, StoredDataError
from reverie.run import checkpoint
from reverie.run.device import cores
from reverie.run.folder import FolderInUse, lock
from reverie.run.grid import PLACES, Grid, Trial, expand, show
from reverie.run.schedule import Interruption
from reverie.trees import find
from reverie.trust import code

PAUSE = 0.1
"""Seconds between two looks at the running trials."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Result:
    """What came of a trial so far."""

    status: str = "waiting"
    """``waiting``, ``unfinished`` (running, or killed), ``stopped`` with the sweep, ``failed`` or ``finished``."""
    message: str = ""
    """Why it failed."""
    budget: int = 0
    """The steps that were asked for."""
    steps: int = 0
    seconds: float = 0.0
    """Spent on training, evaluations left out."""
    returns: list[float] = field(default_factory=list)
    """Mean returns of all evaluations, in their order."""

    @property
    def best(self) -> float | None:
        return max(self.returns, default=None)

    @property
    def last(self) -> float | None:
        return self.returns[-1] if self.returns else None

    def reaches(self, steps: int) -> bool:
        """Whether nothing is left to do for a budget of so many steps."""
        return self.status == "finished" and self.budget >= steps


Command = Callable[[Trial], Sequence[str]]


def train(trial: Trial) -> list[str]:
    """The command that begins a trial, or goes on from its last checkpoint."""
    latest, previous = _checkpoints(trial)
    fresh = not (latest.exists() or previous.exists())
    source = ["--config", str(trial.folder / "config.json")] if fresh else ["--checkpoint", str(latest)]
    trusted = ["--trust"] if any(code(trial.config.model_dump(mode="json"))) else []  # or no sweep would have begun
    return [sys.executable, "-m", "reverie", "train", *source, *trusted, "--steps", str(trial.config.run.steps)]


def run(grid: Grid, parallel: int, tell: Callable[[dict[str, Result]], None], command: Command = train) -> int:
    """Runs what is not finished, ``parallel`` trials side by side; ``tell`` gets all results whenever one comes in.

    Returns the process's exit code: that of the signal which stopped it, or of the first trial that failed.

    Raises FolderInUse, and ConfigError where the folder holds another sweep.
    """
    with lock(grid.folder), Interruption() as interruption:
        _remember(grid)
        results = read(grid)
        waiting = [trial for trial in grid.trials if not results[trial.name].reaches(trial.config.run.steps)]
        done, failure = len(results) - len(waiting), 0
        log.info("%d trials, %d of them finished, in %s", len(results), done, grid.folder)
        if busy := sum(map(_in_use, waiting)):
            log.info("%d trials still run since a sweep was killed: they are waited for", busy)
        with closing(_ended(waiting, parallel, command, interruption)) as ended:
            for trial, code in ended:
                result = _outcome(trial, code, stopped=interruption.signal is not None)
                checkpoint.write(trial.folder / "result.json", json.dumps(asdict(result)).encode())
                results[trial.name] = result
                done += result.status == "finished"
                failure = failure or (code if result.status == "failed" else 0)
                score = "" if result.best is None else f", best return {result.best:.1f}"
                log.info("%s: %s%s (%d of %d)", trial.name, result.message or result.status, score, done, len(results))
                tell(results)
    return interruption.exit_code or (failure if failure >= 0 else 128 - failure)


def reopen(folder: Path) -> Grid:
    """The grid of the sweep in a folder. Raises ConfigError where there is none."""
    folder = folder if folder.name else folder.resolve()
    tree = configuration.read(folder / "sweep.json")
    return expand(configuration.change(tree, (), {"run.directory": str(folder.parent), "run.name": folder.name}), "")


def read(grid: Grid) -> dict[str, Result]:
    """What came of each trial, by its name."""
    return {trial.name: _read(trial) for trial in grid.trials}


# --- processes ---


def _ended(
    waiting: list[Trial], parallel: int, command: Command, interruption: Interruption
) -> Generator[tuple[Trial, int], None, None]:
    """Starts the trials, and yields each with its exit code when it has ended; a wish to stop is passed on to all."""
    running: list[tuple[Trial, subprocess.Popen[bytes]]] = []
    told = False
    try:
        while running or (waiting and interruption.signal is None):
            free = (trial for trial in list(waiting) if not _in_use(trial))
            while interruption.signal is None and len(running) < parallel and (trial := next(free, None)):
                waiting.remove(trial)
                running.append((trial, _start(trial, command, parallel)))
            if interruption.signal is not None and not told:
                log.info("Stopping; the same command goes on")
                _stop(running)  # once: a second signal would end a trial before it has saved
                told = True
            for entry in [entry for entry in running if entry[1].poll() is not None]:
                running.remove(entry)
                yield entry[0], entry[1].returncode
            time.sleep(PAUSE)
    finally:
        _stop(running)
        for _, process in running:
            process.wait()


def _in_use(trial: Trial) -> bool:
    """Whether another process trains in the trial's folder."""
    if not trial.folder.exists():
        return False
    try:
        lock(trial.folder).close()
    except FolderInUse:
        return True
    return False


def _start(trial: Trial, command: Command, parallel: int) -> subprocess.Popen[bytes]:
    trial.folder.mkdir(exist_ok=True)
    (trial.folder / "config.json").write_text(configuration.dump(trial.config))
    (trial.folder / "result.json").unlink(missing_ok=True)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    if parallel > 1:
        environment.setdefault("OMP_NUM_THREADS", str(max(1, cores() // parallel)))
    with (trial.folder / "console.log").open("a") as console:
        return subprocess.Popen(
            command(trial),
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=console,
            start_new_session=True,  # Ctrl-C reaches the sweep alone, which passes it on
            preexec_fn=_end_with_parent if sys.platform == "linux" else None,
        )


def _stop(running: Sequence[tuple[Trial, subprocess.Popen[bytes]]]) -> None:
    for _, process in running:
        process.terminate()


def _end_with_parent() -> None:
    """Lets Linux stop a trial whose sweep was killed; elsewhere it goes on, and the next sweep waits for it."""
    set_parent_death_signal = 1  # PR_SET_PDEATHSIG of prctl(2)
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)


# --- files ---


def _checkpoints(trial: Trial) -> tuple[Path, Path]:
    folder = trial.folder / "checkpoints"
    return folder / "latest.pt", folder / "previous.pt"


def _read(trial: Trial) -> Result:
    try:
        return Result(**json.loads((trial.folder / "result.json").read_text()))
    except (OSError, ValueError, TypeError):
        return _measure(trial, "unfinished") if (trial.folder / "config.json").exists() else Result()


def _measure(trial: Trial, status: str, message: str = "") -> Result:
    """How far the trial came, as its last checkpoint says."""
    budget = trial.config.run.steps
    try:
        _, state = checkpoint.load_run(*_checkpoints(trial))
    except StoredDataError:
        return Result(status, message, budget)
    returns = [row["evaluation/return"] for row in state["metrics_history"]]
    return Result(status, message, budget, state["global_step"], round(state["seconds"], 1), returns)


def _outcome(trial: Trial, code: int, *, stopped: bool) -> Result:
    if code == 0 or stopped:
        return _measure(trial, "stopped" if code else "finished")
    if code < 0:
        return _measure(trial, "failed", f"failed, killed by signal {-code}")
    lines = (trial.folder / "console.log").read_text(errors="replace").splitlines()
    return _measure(trial, "failed", f"failed with exit code {code}: {lines[-1] if lines else 'it said nothing'}")


def _remember(grid: Grid) -> None:
    """Writes ``sweep.json``, the whole configuration with its lists. Later it may have more values and more steps."""
    path = grid.folder / "sweep.json"
    old, every = reopen(grid.folder).tree if path.exists() else grid.tree, list(configuration.keys(Config))
    for key in every:
        before, now = find(old, key), find(grid.tree, key)
        section = any(other.startswith(f"{key}.") for other in every)
        grown = key in grid.axes and isinstance(before, list)
        if before != now and not (section or grown or key == "run.steps" or key in PLACES):
            raise ConfigError(f"{grid.folder} holds a sweep with {key} = {show(before)}, now {show(now)}; choose "
                              "another run.name for this one")  # fmt: skip
    checkpoint.write(path, (json.dumps(grid.tree, indent=4) + "\n").encode())
