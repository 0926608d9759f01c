"""The store: all chunks of one buffer, oldest first, and how they survive a crash.

A checkpoint names a *cursor*: the chunks, how many rows each held, and digests of them. Loading it cuts away everything
newer and takes rewritten latents back, so the directory becomes what it was. Hence nothing that one of the last two
checkpoints may still need is deleted; `ChunkStore.commit` says which those are.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from reverie.errors import StoredDataError
from reverie.replay import layout
from reverie.replay.chunks import Chunk, Columns
from reverie.replay.journal import Journal

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


class ChunkStore:
    """Rows of ``streams`` streams in a directory, at most ``capacity`` of them; the oldest full chunk goes first.

    A window is ``window`` consecutive rows of one stream and is named by the id of its first row. Without a journal,
    rewritten latents cannot be taken back: those of a killed run are forgotten.
    """

    def __init__(
        self,
        directory: Path,
        columns: Columns,
        latents: Columns,
        streams: int,
        window: int,
        size: int,
        capacity: int,
        *,
        journal: bool = True,
    ) -> None:
        self.directory, self.columns, self.latents = directory, columns, latents
        self.window, self.size, self.capacity, self.journaled = window, size, capacity, journal
        self.layout = layout.describe(columns, latents, streams, window, size)
        self.journal = Journal(directory, latents)
        self.streams = [Stream() for _ in range(streams)]
        self.chunks: dict[int, Chunk] = {}
        self.retired: dict[int, tuple[int, Chunk]] = {}
        """Evicted chunks whose files are still needed, with the journal generation in which they were evicted."""
        self.reading: set[int] = set()
        """Chunks that a pending batch is read from: set by the sampler, kept even if they are evicted."""
        self.pinned: dict[int, set[int]] = {}
        """Retired chunks that the pending batch of a checkpoint needs, by its generation."""
        self.opened = self.total = self.rows = self.windows = self.quarantined = 0
        self.marked = self.previous = self.latest = 0
        """Chunks opened before the last `state_dict`, and the generations of the last two checkpoints."""
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

    def commit(self, *, replaced: bool = True) -> None:
        """Tells that the last `state_dict` is safe, and whether the checkpoint before it is kept as the previous one.

        Deletes what neither needs.
        """
        if replaced:
            self.previous = self.latest
        self.latest = self.journal.generation
        self.journal.discard(self.previous)
        self.pinned = {generation: pins for generation, pins in self.pinned.items() if generation >= self.previous}
        self._sweep()

    def state_dict(self) -> dict:
        """The cursor. Begins a new generation of the journal."""
        self._sweep()
        self.journal.begin(self.journal.generation + 1)
        self.marked = self.opened
        self.pinned[self.journal.generation] = self.reading & self.retired.keys()
        for chunk in self.chunks.values() if self.journaled else ():
            chunk.guarded[: chunk.rows] = True
        return {
            "layout": self.layout,
            "generation": self.journal.generation,
            "previous": self.previous,
            "opened": self.opened,
            "total": self.total,
            "quarantined": self.quarantined,
            "streams": [stream.rows for stream in self.streams],
            "chunks": [_describe(chunk) for chunk in self.chunks.values()],
            "retired": [_describe(chunk) | {"evicted": when} for when, chunk in self.retired.values()],
            "pinned": {generation: sorted(pins) for generation, pins in self.pinned.items()},
        }

    def load_state_dict(self, state: dict) -> None:
        """Makes the directory what it was at the cursor; corrupt chunks are set aside and counted.

        Raises:
            StoredDataError: the directory is missing or foreign, or too many rows are corrupt.
        """
        layout.check(self.directory, self.layout, state)
        restored = [(item, *self._restore(**item)) for item in state["chunks"]]
        bad = [chunk for _, chunk, intact in restored if not intact]
        lost = sum(item["rows"] for item, _, intact in restored if not intact)
        if lost > TOLERATED_LOSS * sum(item["rows"] for item in state["chunks"]):
            raise StoredDataError(
                f"{self.directory}: {len(bad)} of {len(restored)} replay chunks are missing or corrupt;"
                " restore the folder that belongs to this checkpoint, or start a new run"
            )
        retired = [(item, *self._restore(**item)) for item in state["retired"]]
        mine = state["pinned"][state["generation"]]  # the others are of another checkpoint, which may be gone by now
        bad += [chunk for _, chunk, intact in retired if not intact and chunk.number in mine]
        for chunk in bad:
            logger.warning("%s: chunk %d is corrupt and set aside as *.bad", self.directory, chunk.number)
            chunk.quarantine()
        self.chunks = {chunk.number: chunk for _, chunk, intact in restored if intact}
        self.retired = {chunk.number: (item["evicted"], chunk) for item, chunk, intact in retired if intact}
        self.pinned = {generation: set(numbers) for generation, numbers in state["pinned"].items()}
        self.opened, self.total = state["opened"], state["total"]
        self.marked, self.previous, self.latest = self.opened, state["previous"], state["generation"]
        self.quarantined = state["quarantined"] + len(bad)
        self._link(state["streams"])
        self._rewind(state)
        self._delete_strangers()

    def _open(self, stream: int) -> None:
        """Begins a new chunk at the end of a stream."""
        if self.opened == 0:
            self._delete_strangers()
            self.journal.clear()
            layout.write(self.directory, self.layout)
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
            forgotten = generation < self.previous or number >= self.marked
            if forgotten and number not in self.reading.union(*self.pinned.values()):
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

    def _restore(
        self, number: int, stream: int, start: int, born: int, rows: int, digest: str, **_: int
    ) -> tuple[Chunk, bool]:
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

    def _rewind(self, state: dict) -> None:
        """Takes back what happened to the chunks after the checkpoint, and compares them with its digests."""
        for records in self.journal.records(state["generation"]):
            for chunk, indices, places in self._locate(records["row"]):
                chunk.rewrite(indices, {name: records[name][places] for name in self.latents})
        chunks = self.chunks | {number: chunk for number, (_, chunk) in self.retired.items()}
        known = {item["number"]: item["latents"] for item in [*state["chunks"], *state["retired"]]}
        changed = [chunk for number, chunk in chunks.items() if chunk.latent_digest() != known[number]]
        for chunk in changed:
            chunk.forget()
        if changed:
            logger.warning("%s: latents of %d of %d chunks are not those of the checkpoint and are forgotten; "
                           "resume is not bit-exact", self.directory, len(changed), len(chunks))  # fmt: skip
        for chunk in self.chunks.values():
            chunk.clear_tail()
            chunk.guarded[: chunk.rows] = self.journaled
        for chunk in chunks.values():
            chunk.sync()
        self.journal.rewind(state["generation"])

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
        "latents": chunk.latent_digest(),
    }
