"""One run folder belongs to one process at a time."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO

from reverie.types import ReverieError


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
