"""The rows of ``metrics.jsonl``: each is there once, however often a run is killed and goes on."""

from __future__ import annotations

import json
import logging
import math
import os
import zlib
from collections.abc import Mapping
from pathlib import Path

from reverie.run.checkpoint import ResourceError, write

log = logging.getLogger(__name__)


class Rows:
    """An append-only file with one JSON object per line; a full disk costs rows, not the run.

    It begins with the rows up to a mark. Where these are not what they were there, it begins with all rows up to the
    step ``resume`` that can be read.
    """

    def __init__(self, path: Path, resume: int, mark: Mapping[str, int] | None = None):
        self._path = path
        self._descriptor: int | None = None
        self._warned = False
        self.size = self.digest = 0
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            found = path.read_bytes() if path.exists() else b""
            kept = self._kept(found, resume, mark)
            if not found.startswith(kept):
                write(path, kept)
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            os.ftruncate(self._descriptor, len(kept))
            self.size, self.digest = len(kept), zlib.crc32(kept)
        except (OSError, ResourceError) as error:
            self._warn(error)

    def append(self, step: int, numbers: Mapping[str, float]) -> None:
        if self._descriptor is None:
            return
        plain = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        line = (json.dumps({"step": step, **plain}) + "\n").encode()
        try:
            end = os.fstat(self._descriptor).st_size
            if os.write(self._descriptor, line) < len(line):
                os.ftruncate(self._descriptor, end)
                raise OSError(None, "the disk is full")
            self.size, self.digest = end + len(line), zlib.crc32(line, self.digest)
        except OSError as error:
            self._warn(error)

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _kept(self, found: bytes, resume: int, mark: Mapping[str, int] | None) -> bytes:
        """The rows that were there at the mark."""
        if mark is not None and len(found) >= mark["bytes"]:
            marked = found[: mark["bytes"]]
            if zlib.crc32(marked) == mark["digest"]:
                return marked
        lines = found.split(b"\n")[:-1]  # what follows the last end of a line was torn
        steps = list(map(_step, lines))
        if mark is not None:
            log.warning("%s is not what it was at the checkpoint: %d of its %d rows can be read and are kept",
                        self._path, len(steps) - steps.count(None), len(steps))  # fmt: skip
        return b"".join(
            line + b"\n" for line, step in zip(lines, steps, strict=True) if step is not None and step <= resume
        )

    def _warn(self, error: OSError | ResourceError) -> None:
        if not self._warned:
            reason = error.strerror if isinstance(error, OSError) else error
            log.warning("cannot write %s (%s); training goes on, rows are lost", self._path, reason)
        self._warned = True


def _step(line: bytes) -> float | None:
    """The step of a row; None where it cannot be read."""
    try:
        step = json.loads(line)["step"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return step if isinstance(step, int | float) else None
