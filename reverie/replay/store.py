"""The store: all chunks of one buffer, oldest first, and how they survive a crash.

A checkpoint names a *cursor*: the chunks and how many rows each held. Loading it cuts away everything newer and takes
rewritten latents back, so the directory becomes what it was. Hence nothing that a checkpoint may still need is deleted
before `ChunkStore.commit` says that a newer checkpoint is safe.
"""

from __future__ import annotations

import json
import logging
import os
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from reverie.replay.chunks import Chunk, Columns
from reverie.replay.journal import Journal
from reverie.types import StoredDataError

TOLERATED_LOSS = 0.05
"""Fraction of the rows that may be corrupt before a replay is refused."""

logger = logging.getLogger(__name__)


@dataclass
class Stream:
    """The rows of one environment, without end."""

    rows: int = 0
    """How many were ever appended."""
    tail: deque[Chunk] = field(default_factory=deque)
    """Adjacent chunks that hold at least the last window; the newest one is being written."""


OPTIONS = {
    "streams": ("env.envs", 1),
    "window": ("replay.length", 1),
    "chunk": ("replay.chunk (or its share of replay.capacity)", 0),
}
"""What the layout follows from: the option, and what is added to it (a stream of recorded episodes, a context row)."""


class ChunkStore:
    """Rows of ``streams`` streams in a directory, at most ``capacity`` of them; the oldest full chunk goes first.

    A window is ``window`` consecutive rows of one stream and is named by the id of its first row.
    """

    def __init__(
        self, directory: Path, columns: Columns, latents: Columns, streams: int, window: int, size: int, capacity: int
    ) -> None:
        self.directory, self.columns, self.latents = directory, columns, latents
        self.window, self.size, self.capacity = window, size, capacity
        self.layout: dict[str, Any] = {"streams": streams, "window": window, "chunk": size}
        self.layout |= {"columns": _plain(columns), "latents": _plain(latents)}
        self.journal = Journal(directory, latents)
        self.streams = [Stream() for _ in range(streams)]
        self.chunks: dict[int, Chunk] = {}
        self.retired: dict[int, tuple[int, Chunk]] = {}
        """Evicted chunks whose files are still needed, with the journal generation in which they were evicted."""
        self.reading: set[int] = set()
        """Chunks that a pending batch is read from: set by the sampler, kept even if they are evicted."""
        self.pinned: set[int] = set()
        """Retired chunks that the last checkpoint needs because of its pending batch."""
        self.opened = self.total = self.rows = self.windows = self.quarantined = 0
        self.marked = self.safe = 0
        """Chunks opened before the last `state_dict`, and the newest generation known to be durable."""
        directory.mkdir(parents=True, exist_ok=True)

    def append(self, stream: int, values: Sequence) -> int | None:
        """Writes one row and returns the window that it completes, if any.

        Raises:
            OSError: a new chunk does not fit on the disk; nothing was appended.
        """
        target = self.streams[stream]
        if not target.tail or target.tail[-1].full:
            self._open(stream)
        target.tail[-1].append(values)
        target.rows += 1
        self.total += 1
        self.rows += 1
        start = target.rows - self.window
        while target.tail[0].end <= start:
            target.tail.popleft()
        chunk = target.tail[0]
        complete = start >= chunk.start and chunk.number in self.chunks
        if complete:
            chunk.windows += 1
            self.windows += 1
        self._evict()
        return chunk.number * self.size + start - chunk.start if complete else None

    def find(self, row: int) -> tuple[Chunk, int] | None:
        """The chunk that holds a row, evicted or not, and the row's index in it."""
        number, index = divmod(row, self.size)
        chunk = self.chunks.get(number) or self.retired.get(number, (0, None))[1]
        return (chunk, index) if chunk is not None and index < chunk.rows else None

    def complete(self, row: int) -> bool:
        """Whether the row is stored and begins a complete window."""
        number, index = divmod(row, self.size)
        return number in self.chunks and index < self.chunks[number].windows

    def write_latents(self, rows: np.ndarray, values: dict[str, np.ndarray]) -> None:
        """Overwrites the latents [n, ...] of rows [n]; rows that are no longer stored are skipped."""
        for chunk, indices, places in self._locate(rows):
            guarded = np.unique(indices[chunk.guarded[indices]])
            if len(guarded):
                old = {name: array[guarded] for name, array in chunk.latents.items()}
                self.journal.append(chunk.number * self.size + guarded, old)
                chunk.guarded[guarded] = False
            chunk.rewrite(indices, {name: value[places] for name, value in values.items()})

    def flush(self) -> None:
        """Waits until all rows and latents are on the disk."""
        for chunk in [*self.chunks.values(), *(chunk for _, chunk in self.retired.values())]:
            chunk.sync()
        self.journal.sync()
        descriptor = os.open(self.directory, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)

    def commit(self) -> None:
        """Deletes what only the checkpoints before the last `state_dict` needed."""
        self.safe = self.journal.generation
        self.journal.discard()
        self._sweep()

    def state_dict(self) -> dict:
        """The cursor. Begins a new generation of the journal."""
        self.journal.begin(self.journal.generation + 1)
        self.marked = self.opened
        self.pinned = self.reading & self.retired.keys()
        for chunk in self.chunks.values():
            chunk.guarded[: chunk.rows] = True
        return {
            "layout": self.layout,
            "generation": self.journal.generation,
            "opened": self.opened,
            "total": self.total,
            "quarantined": self.quarantined,
            "streams": [stream.rows for stream in self.streams],
            "chunks": [_describe(chunk) for chunk in self.chunks.values()],
            "retired": [_describe(self.retired[number][1]) for number in sorted(self.pinned)],
        }

    def load_state_dict(self, state: dict) -> None:
        """Makes the directory what it was at the cursor; corrupt chunks are set aside and counted.

        Raises:
            StoredDataError: the directory is missing or foreign, or too many rows are corrupt.
        """
        self._check_layout(state)
        chunks = [self._restore(**description) for description in state["chunks"]]
        good = [chunk for chunk, intact in chunks if intact]
        bad = [chunk for chunk, intact in chunks if not intact]
        lost = sum(item["rows"] for item, (_, intact) in zip(state["chunks"], chunks, strict=True) if not intact)
        if lost > TOLERATED_LOSS * sum(item["rows"] for item in state["chunks"]):
            raise StoredDataError(
                f"{self.directory}: {len(bad)} of {len(chunks)} replay chunks are missing or corrupt;"
                " restore the folder that belongs to this checkpoint, or start a new run"
            )
        for chunk in bad:
            logger.warning("%s: chunk %d is corrupt and set aside as *.bad", self.directory, chunk.number)
            chunk.quarantine()
        retired = [chunk for chunk, intact in (self._restore(**item) for item in state["retired"]) if intact]
        self.chunks = {chunk.number: chunk for chunk in good}
        self.retired = {chunk.number: (state["generation"] - 1, chunk) for chunk in retired}
        self.pinned = set(self.retired)
        self.opened, self.total = state["opened"], state["total"]
        self.marked, self.safe = self.opened, state["generation"]
        self.quarantined = state["quarantined"] + len(bad)
        self._link(state["streams"])
        self._undo(state["generation"])
        self._delete_strangers()

    def _open(self, stream: int) -> None:
        """Begins a new chunk at the end of a stream."""
        if self.opened == 0:
            self._delete_strangers()
            self.journal.clear()
            (self.directory / "replay.json").write_text(json.dumps(self.layout, indent=1))
        self._sweep()
        target = self.streams[stream]
        chunk = Chunk(self.directory, self.opened, self.size, stream, target.rows, self.total)
        chunk.create(self.columns, self.latents)
        if target.tail:
            target.tail[-1].next = chunk
        target.tail.append(chunk)
        self.chunks[chunk.number] = chunk
        self.opened += 1

    def _evict(self) -> None:
        while self.rows > self.capacity:
            oldest = next(chunk for chunk in self.chunks.values() if chunk.full)
            del self.chunks[oldest.number]
            self.retired[oldest.number] = (self.journal.generation, oldest)
            self.rows -= oldest.rows
            self.windows -= oldest.windows

    def _sweep(self) -> None:
        """Deletes evicted chunks that no checkpoint and no reader needs."""
        for number, (generation, chunk) in list(self.retired.items()):
            forgotten = generation < self.safe or number >= self.marked
            if forgotten and number not in self.pinned | self.reading:
                chunk.delete()
                del self.retired[number]

    def _locate(self, rows: np.ndarray) -> Iterator[tuple[Chunk, np.ndarray, np.ndarray]]:
        """Splits row ids by chunk: yields the chunk, indices in it, and their places in ``rows``."""
        numbers, indices = np.divmod(rows, self.size)
        for number in np.unique(numbers):
            chunk = self.chunks.get(int(number))
            if chunk is not None:
                places = np.flatnonzero((numbers == number) & (indices < chunk.rows))
                yield chunk, indices[places], places

    def _check_layout(self, state: dict) -> None:
        stored = state["layout"]
        for name, (option, extra) in OPTIONS.items():
            if stored.get(name) != self.layout[name]:
                before, now = (f"{layout.get(name, extra) - extra}" for layout in (stored, self.layout))
                raise StoredDataError(
                    f"{self.directory}: the replay was stored with {option} = {before}, this run has {now};"
                    " resume with the original configuration"
                )
        if stored != self.layout:
            raise StoredDataError(
                f"{self.directory}: the replay was stored with other observations, actions or latents than this run's;"
                " resume with the original environment and configuration"
            )
        header = self.directory / "replay.json"
        if state["chunks"] and (
            not header.is_file() or header.read_bytes() != json.dumps(self.layout, indent=1).encode()
        ):
            raise StoredDataError(
                f"{self.directory}: this is not the replay of the checkpoint; restore it, or start a new run"
            )

    def _restore(self, number: int, stream: int, start: int, born: int, rows: int, digest: str) -> tuple[Chunk, bool]:
        chunk = Chunk(self.directory, number, self.size, stream, start, born)
        return chunk, chunk.intact(self.columns, self.latents, rows, digest)

    def _link(self, stream_rows: list[int]) -> None:
        """Finds out, after loading, which chunks follow each other and which rows begin complete windows."""
        everything = [*(chunk for _, chunk in self.retired.values()), *self.chunks.values()]
        begins = {(chunk.stream, chunk.start): chunk for chunk in everything}
        following: dict[int, int] = {}
        for chunk in sorted(everything, key=lambda chunk: chunk.number, reverse=True):
            chunk.next = begins.get((chunk.stream, chunk.end))
            following[chunk.number] = chunk.rows + (following[chunk.next.number] if chunk.next else 0)
            chunk.windows = min(max(following[chunk.number] - self.window + 1, 0), chunk.rows)
        self.streams = [Stream(rows) for rows in stream_rows]
        for chunk in self.chunks.values():
            tail = self.streams[chunk.stream].tail
            if tail and tail[-1].next is not chunk:
                tail.clear()
            tail.append(chunk)
        for stream in self.streams:
            if stream.tail and stream.tail[-1].end != stream.rows:
                stream.tail.clear()
        self.rows = sum(chunk.rows for chunk in self.chunks.values())
        self.windows = sum(chunk.windows for chunk in self.chunks.values())

    def _undo(self, generation: int) -> None:
        """Takes back everything that happened to the chunks after the checkpoint."""
        if not self.journal.holds(generation):
            logger.warning("%s: a newer checkpoint was committed; latents stay as they are now", self.directory)
        for records in self.journal.rewind(generation):
            for chunk, indices, places in self._locate(records["row"]):
                chunk.rewrite(indices, {name: records[name][places] for name in self.latents})
        for chunk in self.chunks.values():
            chunk.clear_tail()
            chunk.guarded[: chunk.rows] = True

    def _delete_strangers(self) -> None:
        """Removes chunk files that this store does not know: they are newer than the cursor, or of an older run."""
        known = {path for chunk in self.chunks.values() for path in chunk.paths}
        known |= {path for _, chunk in self.retired.values() for path in chunk.paths}
        for path in [*self.directory.glob("*.rows"), *self.directory.glob("*.latents")]:
            if path not in known:
                path.unlink()


def _describe(chunk: Chunk) -> dict:
    return {
        "number": chunk.number,
        "stream": chunk.stream,
        "start": chunk.start,
        "born": chunk.born,
        "rows": chunk.rows,
        "digest": chunk.digest(),
    }


def _plain(columns: Columns) -> dict:
    """Columns as JSON gives them back."""
    return {name: [list(shape), dtype] for name, (shape, dtype) in columns.items()}
