"""Windows: which rows a batch consists of, and how they are read off the chunks.

The first row of a window is context: only its action and its stored latent are used. All others are trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from reverie.replay.chunks import Chunk, Columns
from reverie.replay.store import ChunkStore


@dataclass(frozen=True)
class Piece:
    """Rows ``begin .. end - 1`` of a chunk, which become rows ``time ..`` of sequence ``sequence``."""

    sequence: int
    time: int
    chunk: Chunk
    begin: int
    end: int


@dataclass(frozen=True)
class Plan:
    """The rows of B windows. It holds the chunks themselves, so eviction cannot take them away."""

    starts: list[int]
    """Row id of the context row of each window."""
    context: list[tuple[Chunk, int]]
    pieces: list[Piece]
    length: int
    """Trained rows per window."""

    @property
    def slot(self) -> np.ndarray:
        """Row ids [B, T]."""
        slot = np.empty((len(self.starts), self.length), np.int64)
        for piece in self.pieces:
            first = piece.chunk.number * piece.chunk.size
            slot[piece.sequence, piece.time : piece.time + piece.end - piece.begin] = np.arange(
                first + piece.begin, first + piece.end
            )
        return slot

    @property
    def chunks(self) -> set[int]:
        """Numbers of all chunks involved."""
        return {piece.chunk.number for piece in self.pieces} | {chunk.number for chunk, _ in self.context}


def plan(store: ChunkStore, starts: Sequence[int], length: int) -> Plan | None:
    """Resolves windows of one context row and ``length`` rows; None if one of them is no longer there."""
    context, pieces = [], []
    for sequence, start in enumerate(starts):
        found = store.find(start)
        if found is None:
            return None
        chunk, index = found
        context.append(found)
        time, begin = 0, index + 1
        while time < length:
            end = min(begin + length - time, chunk.rows)
            if end > begin:
                pieces.append(Piece(sequence, time, chunk, begin, end))
            time += end - begin
            if time < length and chunk.next is None:
                return None
            chunk, begin = chunk.next or chunk, 0
    return Plan(list(starts), context, pieces, length)


def gather(plan: Plan, columns: Columns) -> dict[str, np.ndarray]:
    """Copies the trained rows out of the chunks: [B, T, ...] per column."""
    batch = {name: np.empty((len(plan.starts), plan.length, *shape), dtype) for name, (shape, dtype) in columns.items()}
    for piece in plan.pieces:
        rows = slice(piece.time, piece.time + piece.end - piece.begin)
        for name, array in batch.items():
            array[piece.sequence, rows] = piece.chunk.columns[name][piece.begin : piece.end]
    return batch


def gather_context(plan: Plan, latents: Columns) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Copies the actions [B, A] and the present latents [B, ...] of the context rows."""
    action = np.stack([chunk.columns["action"][index] for chunk, index in plan.context])
    return action, {name: np.stack([chunk.latents[name][index] for chunk, index in plan.context]) for name in latents}
