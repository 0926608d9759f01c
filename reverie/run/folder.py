"""The folder of a run: its name, the one process that it belongs to, and what it keeps when the run goes on."""

from __future__ import annotations

import itertools
import logging
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from reverie.config import Config
from reverie.errors import ConfigError, ReverieError, StoredDataError
from reverie.replay import SequenceReplayBuffer

log = logging.getLogger(__name__)


class FolderInUse(ReverieError):
    """Another living process trains in the same folder."""

    exit_code = 7


def lock(folder: Path) -> IO[str]:
    """Takes the folder for as long as the returned file stays open; a dead owner's lock is void.

    Raises FolderInUse naming the owner. Where the system has no file locks (Windows), nothing is checked.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = open(folder / "lock", "a+")  # noqa: SIM115 - held open for the life of the run
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:
        return file
    except OSError:
        file.seek(0)
        owner = file.read().strip() or "another process"
        raise FolderInUse(f"{folder} is in use by {owner}; wait for it, or choose another run.name") from None
    file.truncate(0)
    file.write(f"process {os.getpid()} on {os.uname().nodename}")
    file.flush()
    return file


def claim(config: Config, name: str | None) -> Path:
    """The folder of a new run: ``name``, or made here from environment, date and seed, and a number if that is taken.

    Whoever makes a folder owns it: no two runs that begin in one second get the same.
    """
    directory = Path(config.run.directory)
    if name is not None:
        return directory / name
    place = "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in config.env.name)
    made = f"{place}-{time.strftime('%Y%m%d-%H%M%S')}-{config.run.seed}"
    directory.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        folder = directory / (made if number == 1 else f"{made}-{number}")
        with suppress(FileExistsError):
            folder.mkdir()
            return folder
    raise AssertionError("there is always another number")


def refuse_occupied(folder: Path) -> None:
    """Raises StoredDataError where a folder has a checkpoint of a run, or the replay of one that lost its own."""
    checkpoints = folder / "checkpoints"
    for name in ("latest.pt", "previous.pt", "best_model.pt"):
        if (checkpoints / name).exists():
            source = checkpoints / ("best_model.pt" if name == "best_model.pt" else "latest.pt")
            raise StoredDataError(
                f"{folder} holds another run; resume it with --checkpoint {source}, or choose another run.name"
            )
    if SequenceReplayBuffer.is_named(folder / "replay"):
        raise StoredDataError(
            f"{folder} holds the replay of another run, whose checkpoints are gone; restore them to resume it, remove "
            "the folder, or choose another run.name"
        )


def branch(config: Config, path: Path, state: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
    """A new folder with a copy of the replay that the checkpoint at ``path`` names, and the state that belongs to it.

    Raises StoredDataError where the folder that the user chose has a run already, or what is left of one.
    """
    chosen = config.run.name if config.run.name != state["config"]["run"]["name"] else None
    fresh = claim(config, chosen)
    with lock(fresh):  # somebody else may have been told the same name
        return fresh, _fill(fresh, path, state)


def _fill(fresh: Path, path: Path, state: dict[str, Any]) -> dict[str, Any]:
    """Puts the copy of the replay into ``fresh``; returns the state that belongs to it."""
    refuse_occupied(fresh)
    if (fresh / "replay").exists():
        raise StoredDataError(f"{fresh} holds a replay without a checkpoint; remove it, or choose another run.name")
    log.info("%s is not the end of its run: going on in a new one, %s", path, fresh)
    origins = path.resolve().parents[1], Path(state["directory"])  # a run may be moved, a checkpoint be copied away
    origin = next((origin / "replay" for origin in origins if (origin / "replay").is_dir()), None)
    dropped = {"metrics"}  # the rows so far are the old run's
    if origin is None:
        log.warning("%s is gone: going on with an empty replay", origins[-1] / "replay")
        dropped |= {"replay", "collector"}
    else:
        state = state | {"replay": SequenceReplayBuffer.fork(origin, fresh / "replay", state["replay"])}
    return {name: value for name, value in state.items() if name not in dropped}


def keep_identity(config: Config, old: Mapping[str, Any], latest: Path) -> None:
    """Refuses what a run cannot change when it goes on in its own folder. Raises ConfigError."""
    for name in ("name", "directory"):
        if (value := getattr(config.run, name)) != old[name]:
            best = latest.with_name("best_model.pt")
            raise ConfigError(f"run.{name} = {value!r}: {latest} goes on in its own folder; leave that out, or begin "
                              f"a new run from {best}")  # fmt: skip
    if config.run.seed != old["seed"]:
        log.warning("run.seed = %d changes evaluations alone: random states are the checkpoint's", config.run.seed)
