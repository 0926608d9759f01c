"""Chunks: runs of consecutive rows of one stream, each kept in two memory-mapped files.

``*.rows`` holds what was observed and never changes once written; ``*.latents`` holds what the agent remembered, which
training rewrites. A file is its columns one after the other, each a plain array [rows, ...]. It has its full size from
the beginning, but space on the disk is reserved as rows come in.
"""

from __future__ import annotations

import hashlib
import math
import os
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

Columns = dict[str, tuple[tuple[int, ...], str]]
"""Name -> shape of one row and numpy dtype name."""

ALIGNMENT = 64

NO_CLASS = 255
"""What a latent of class indices (uint8) holds where no class was chosen: it decodes to the all-zero vector."""

FIRST_ROWS = 64
"""Rows that a new chunk reserves space for; whenever they are full, it reserves twice as many."""


def unknown(dtype: str) -> int:
    """What a latent of this type holds where the agent remembers nothing."""
    return NO_CLASS if dtype == "uint8" else 0


def row_bytes(columns: Columns) -> int:
    """Bytes that one row takes."""
    return sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in columns.values())


def _offsets(columns: Columns, rows: int) -> list[int]:
    """Where each column begins, and the size of the file."""
    offsets = [0]
    for column in columns.values():
        size = rows * row_bytes({"": column})
        offsets.append(offsets[-1] + -(-size // ALIGNMENT) * ALIGNMENT)
    return offsets


def _create(path: Path, size: int) -> None:
    """Creates a file of zeros that takes no space yet."""
    path.unlink(missing_ok=True)
    with open(path, "xb") as file:
        file.truncate(size)


def _reserve(path: Path, columns: Columns, size: int, rows: range) -> None:
    """Gives rows of a file of ``size`` rows their place: a full disk is an `OSError` here, not a crash later."""
    if not hasattr(os, "posix_fallocate"):
        return
    with open(path, "r+b") as file:
        for offset, column in zip(_offsets(columns, size), columns.values(), strict=False):
            width = row_bytes({"": column})
            if width and rows:
                os.posix_fallocate(file.fileno(), offset + rows.start * width, len(rows) * width)


def _map(path: Path, columns: Columns, rows: int) -> dict[str, np.ndarray]:
    """The columns of a file as writable arrays [rows, ...]. Unlike `numpy.memmap` this keeps no file open."""
    offsets = _offsets(columns, rows)
    raw = torch.from_file(str(path), shared=True, size=offsets[-1], dtype=torch.uint8).numpy()
    return {
        name: raw[offset : offset + rows * row_bytes({"": (shape, dtype)})].view(dtype).reshape(rows, *shape)
        for (name, (shape, dtype)), offset in zip(columns.items(), offsets[:-1], strict=True)
    }


def chunk_paths(directory: Path, number: int) -> tuple[Path, Path]:
    """The files of observations and of latents of a chunk."""
    stem = f"{number:08d}"
    return directory / f"{stem}.rows", directory / f"{stem}.latents"


class Chunk:
    """Rows ``start .. start + rows - 1`` of a stream. The row at ``index`` has the id ``number * size + index``.

    Chunks are numbered in the order in which they were opened; ``born`` is how many steps the buffer had seen by then.
    """

    def __init__(self, directory: Path, number: int, size: int, stream: int, start: int, born: int) -> None:
        self.directory, self.number, self.size = directory, number, size
        self.stream, self.start, self.born = stream, start, born
        self.rows = self.reserved = 0
        self.windows = 0
        """How many rows, counted from the front, begin a complete window."""
        self.next: Chunk | None = None
        self.dirty = True
        self.guarded = np.zeros(size, bool)
        """Rows whose latent belongs to the last checkpoint and must be journaled before it is overwritten."""
        self._digest: str | None = None
        self._latent_digest: int | None = None

    @property
    def paths(self) -> tuple[Path, Path]:
        """The files of observations and of latents."""
        return chunk_paths(self.directory, self.number)

    @property
    def end(self) -> int:
        """The stream position after the last row."""
        return self.start + self.rows

    @property
    def full(self) -> bool:
        return self.rows == self.size

    def create(self, columns: Columns, latents: Columns) -> None:
        """Makes empty files. Raises `OSError` when the disk is full."""
        for path, layout in zip(self.paths, (columns, latents), strict=True):
            _create(path, _offsets(layout, self.size)[-1])
        self.open(columns, latents)
        self._grow()

    def intact(self, columns: Columns, latents: Columns, rows: int, digest: str) -> bool:
        """Opens existing files and tells whether their first ``rows`` rows are the ones that ``digest`` names.

        A file of latents that is missing or of a wrong size is made anew: latents have a digest of their own.
        """
        sizes = [_offsets(layout, self.size)[-1] for layout in (columns, latents)]
        found = [path.stat().st_size if path.is_file() else None for path in self.paths]
        if found[0] != sizes[0]:
            return False
        if found[1] != sizes[1]:
            _create(self.paths[1], sizes[1])
            _reserve(self.paths[1], latents, self.size, range(rows))
        self.open(columns, latents)
        self.rows = self.reserved = rows
        self.dirty = False  # a checkpoint names rows that are on the disk
        return self.digest() == digest

    def open(self, columns: Columns, latents: Columns) -> None:
        self._layouts = columns, latents
        self.columns = _map(self.paths[0], columns, self.size)
        self.latents = _map(self.paths[1], latents, self.size) if latents else {}
        self._arrays = [*self.columns.values(), *self.latents.values()]

    def append(self, values: Sequence) -> None:
        """Writes one row: a value per column, then one per latent.

        Raises `OSError` when the disk is full; then nothing was appended.
        """
        if self.rows == self.reserved:
            self._grow()
        for array, value in zip(self._arrays, values, strict=True):
            array[self.rows] = value
        self.rows += 1
        self._latents_changed()

    def rewrite(self, indices: np.ndarray, values: dict[str, np.ndarray]) -> None:
        """Replaces the latents [n, ...] of the rows at ``indices`` [n]."""
        for name, array in self.latents.items():
            array[indices] = values[name]
        self._latents_changed()

    def forget(self) -> None:
        """Replaces all latents by those of an agent that remembers nothing."""
        for array in self.latents.values():
            array[: self.rows] = unknown(array.dtype.name)
        self._latents_changed()

    def clear_tail(self) -> None:
        """Zeroes whatever was written behind the last row."""
        for array in self._arrays:
            tail = array[self.rows :]
            written = np.flatnonzero(tail.any(tuple(range(1, tail.ndim))))
            if len(written):  # what was never written has no place on the disk, and needs none
                tail[: written[-1] + 1] = 0
                self.dirty = True

    def digest(self) -> str:
        """SHA-256 of the observation columns of all rows."""
        if self._digest is None:
            sha = hashlib.sha256()
            for array in self.columns.values():
                sha.update(array[: self.rows].data)
            if not self.full:
                return sha.hexdigest()
            self._digest = sha.hexdigest()
        return self._digest

    def latent_digest(self) -> int:
        """CRC-32 of the latents of all rows: training rewrites them, so they are summed up at every checkpoint."""
        if self._latent_digest is None:
            self._latent_digest = 0
            for array in self.latents.values():
                self._latent_digest = zlib.crc32(array[: self.rows].data, self._latent_digest)
        return self._latent_digest

    def _latents_changed(self) -> None:
        self.dirty, self._latent_digest = True, None

    def _grow(self) -> None:
        """Reserves space for more rows."""
        end = min(self.size, max(FIRST_ROWS, 2 * self.reserved))
        for path, layout in zip(self.paths, self._layouts, strict=True):
            _reserve(path, layout, self.size, range(self.reserved, end))
        self.reserved = end

    def sync(self) -> None:
        """Waits until the disk has everything that was written."""
        if self.dirty:
            for path in self.paths:
                descriptor = os.open(path, os.O_RDONLY)
                os.fsync(descriptor)
                os.close(descriptor)
        self.dirty = False

    def delete(self) -> None:
        for path in self.paths:
            path.unlink(missing_ok=True)

    def quarantine(self) -> None:
        """Renames the files to ``*.bad``, out of the way of the run but there to be looked at."""
        for path in self.paths:
            if path.exists():
                path.rename(path.with_name(path.name + ".bad"))
