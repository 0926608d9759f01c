"""The undo journal: old values of rewritten latents, so that a crashed run can go back to its last checkpoint.

Generation g of the journal holds what was overwritten between checkpoint g and checkpoint g + 1. A record is complete
in the page cache before its row is overwritten, so a kill at any moment loses nothing. It has no digest of its own:
what it brings back is compared with the digests that the checkpoint has of all latents.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from reverie.replay.chunks import Columns

BLOCK = 4096
"""Records that are read at once."""


class Journal:
    """Files ``undo-<generation>.bin`` of fixed-size records: a row id and the old value of each latent."""

    def __init__(self, directory: Path, latents: Columns) -> None:
        self.directory = directory
        self.record = np.dtype([("row", "<i8"), *((name, dtype, shape) for name, (shape, dtype) in latents.items())])
        self.generation = 0
        self._file = None

    def begin(self, generation: int) -> None:
        """Starts an empty journal for what happens after checkpoint ``generation``."""
        self.close()
        self.generation = generation
        self._file = self._path(generation).open("wb", buffering=0)

    def append(self, rows: np.ndarray, values: dict[str, np.ndarray]) -> None:
        """Stores the values [n, ...] that rows [n] have now."""
        assert self._file is not None, "rows are guarded only after a checkpoint, which begins a journal"
        records = np.empty(len(rows), self.record)
        records["row"] = rows
        for name, value in values.items():
            records[name] = value
        data = memoryview(records.tobytes())
        while data:
            data = data[self._file.write(data) :]

    def records(self, generation: int) -> Iterator[np.ndarray]:
        """Yields the records since checkpoint ``generation``, newest first: the oldest have the last word."""
        for newer in sorted((number for number in self._generations() if number >= generation), reverse=True):
            count = self._path(newer).stat().st_size // self.record.itemsize  # a torn last record was never acted upon
            if count:
                records = np.memmap(self._path(newer), self.record, "r", shape=(count,))
                yield from (np.asarray(records[begin : begin + BLOCK]) for begin in range(0, count, BLOCK))

    def rewind(self, generation: int) -> None:
        """Forgets what happened since checkpoint ``generation``; call it when all of it is undone on the disk.

        Undoing is safe to repeat: the newest file goes first, for what it holds is not needed by older ones.
        """
        for newer in sorted((number for number in self._generations() if number > generation), reverse=True):
            self._path(newer).unlink()
        self.begin(generation)

    def discard(self, oldest: int) -> None:
        """Forgets the way back to all checkpoints before generation ``oldest``."""
        for generation in self._generations():
            if generation < oldest:
                self._path(generation).unlink()

    def clear(self) -> None:
        """Removes the journals that an earlier run left in the directory."""
        for generation in self._generations():
            if generation != self.generation:
                self._path(generation).unlink()

    def sync(self) -> None:
        if self._file is not None:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file = None

    def _path(self, generation: int) -> Path:
        return self.directory / f"undo-{generation:08d}.bin"

    def _generations(self) -> list[int]:
        return generations(self.directory)


def generations(directory: Path) -> list[int]:
    """Of which checkpoints there are journals in a directory."""
    return [int(path.stem.removeprefix("undo-")) for path in directory.glob("undo-*.bin")]
