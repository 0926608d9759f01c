"""The folder of a run: its name, the one process that it belongs to, and what it keeps when the run goes on."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from reverie.config import Config
from reverie.types import ConfigError, ReverieError

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


def fresh_name(config: Config) -> str:
    """For a new run: environment, date and seed; a number more if such a run exists."""
    place = "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in config.env.name)
    name = f"{place}-{time.strftime('%Y%m%d-%H%M%S')}-{config.run.seed}"
    taken = sum(1 for _ in Path(config.run.directory).glob(f"{name}*"))
    return f"{name}-{taken + 1}" if taken else name


def keep_identity(config: Config, old: Mapping[str, Any], latest: Path) -> None:
    """Refuses what a run cannot change when it goes on in its own folder. Raises ConfigError."""
    for name in ("name", "directory"):
        if (value := getattr(config.run, name)) != old[name]:
            best = latest.with_name("best_model.pt")
            raise ConfigError(f"run.{name} = {value!r}: {latest} goes on in its own folder; leave that out, or begin "
                              f"a new run from {best}")  # fmt: skip
    if config.run.seed != old["seed"]:
        log.warning("run.seed = %d changes evaluations alone: random states are the checkpoint's", config.run.seed)
