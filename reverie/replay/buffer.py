"""The replay buffer that agents train from: rows in, batches of sequences out.

Draws are made when they are asked for, in a fixed order, so a seed decides every batch; only the copying happens in a
background thread, one batch ahead.
"""

from __future__ import annotations

import logging
import shutil
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Shaped
from pydantic import Field

from reverie.errors import ConfigError, StoredDataError
from reverie.options import Options
from reverie.replay.chunks import Columns, chunk_paths, row_bytes, unknown
from reverie.replay.journal import generations
from reverie.replay.store import ChunkStore
from reverie.replay.windows import Plan, gather, gather_context, plan
from reverie.types import ActionSpec, Array, Batch, ObservationSpec, Step, action_width

AGE_RATE = 0.05
"""How fast the mean age of sampled rows follows the newest batch."""


logger = logging.getLogger(__name__)


class ReplayOptions(Options):
    """What is kept of the past, and how much of it one update sees."""

    batch_size: int = Field(default=16, ge=1, le=65536)
    """Sequences per batch."""
    length: int = Field(default=64, ge=1, le=65536)
    """Trained steps per sequence; one more is stored in front as context."""
    capacity: int = Field(default=1_000_000, ge=1, le=10**12)
    """Steps kept; the oldest chunk goes first."""
    capacity_bytes: int = Field(default=0, ge=0)
    """Bytes kept, whichever limit is reached first; 0 means no limit."""
    chunk: int = Field(default=1024, ge=1, le=1_000_000)
    """Steps per file; fewer if the capacity is small."""
    online: bool = True
    """Serve each new non-overlapping window once, as soon as it is complete."""
    journal: bool = True
    """Keep what learning overwrites until two checkpoints later, so that a killed run resumes bit for bit."""

    def least_capacity(self, streams: int) -> int:
        """Steps that `SequenceReplayBuffer.ready` asks for, with room for the chunk that is evicted next."""
        return (self.batch_size + streams) * self.length * 9 // 8 + 1


class SequenceReplayBuffer:
    """Streams of steps on disk, served as overlapping sequences.

    Every window of ``length + 1`` consecutive rows of a stream is one item; windows cross episodes freely. Recorded
    episodes (`add_episode`) follow each other in one more stream beside the ``streams`` environments.

    Raises:
        ConfigError: the capacity cannot hold what one batch needs.
    """

    def __init__(
        self,
        options: ReplayOptions,
        directory: Path,
        observation: Mapping[str, ObservationSpec],
        action: ActionSpec,
        latent: Columns,
        streams: int,
        seed: int,
    ) -> None:
        columns: Columns = {f"obs/{key}": (spec.shape, spec.dtype) for key, spec in observation.items()}
        columns |= {"action": ((action_width(action),), "float32"), "reward": ((), "float32")}
        columns |= {"first": ((), "bool"), "last": ((), "bool"), "terminal": ((), "bool")}
        self.options, self.observation, self.columns, self.latent = options, observation, columns, latent
        self.stream_count = streams
        capacity = options.capacity
        if options.capacity_bytes:
            capacity = min(capacity, options.capacity_bytes // (row_bytes(columns) + row_bytes(latent)))
        needed = options.least_capacity(streams)
        if capacity < needed:
            raise ConfigError(
                f"replay: a capacity of {capacity} steps cannot hold one batch from {streams} environments;"
                f" raise replay.capacity (or capacity_bytes) to at least {needed} steps"
            )
        chunk = max(1, min(options.chunk, capacity // (16 * streams)))
        self.store = ChunkStore(
            Path(directory),
            columns,
            latent,
            streams=streams + 1,
            window=options.length + 1,
            size=chunk,
            capacity=capacity,
            journal=options.journal,
        )
        self._random = np.random.Generator(np.random.PCG64(seed))
        self._online: deque[int] = deque()
        self._age = 0.0
        self._pending: tuple[Plan, Future] | None = None
        self._thread = ThreadPoolExecutor(1, "replay")

    def __len__(self) -> int:
        """Steps stored."""
        return self.store.rows

    @property
    def items(self) -> int:
        """Windows that may be sampled."""
        return self.store.windows

    @property
    def ready(self) -> bool:
        """Whether there are as many items as a batch has steps: training starts here."""
        return self.items >= self.options.batch_size * self.options.length

    def add(self, step: Step, action: Float[Array, "E A"], latent: Mapping[str, Shaped[Array, "E ..."]]) -> None:
        """Appends one row to each environment's stream.

        Raises:
            ValueError: the step is not of ``streams`` environments.
            OSError: the disk is full.
        """
        if len(step.reward) != self.stream_count:
            raise ValueError(f"a step of {len(step.reward)} environments does not fit {self.stream_count} streams")
        rows = [step.obs[key] for key in self.observation]
        rows += [np.where(step.last[:, None], 0, action), step.reward, step.first, step.last, step.terminal]
        rows += [latent[name] for name in self.latent]
        for stream, row in enumerate(zip(*rows, strict=True)):
            self._append(stream, row)

    def add_episode(self, episode: Mapping[str, Shaped[Array, "T ..."]]) -> None:
        """Appends a recorded episode: observation keys, ``action``, ``reward``, optionally ``terminal``, each [T, ...].

        It begins at its first row and ends at its last: by a time limit, unless ``terminal`` is true there.

        Raises:
            StoredDataError: a key is missing or has another shape than the environments'.
        """
        length = len(episode["reward"]) if "reward" in episode else 0
        shapes = {key: (length, *spec.shape) for key, spec in self.observation.items()}
        shapes |= {"action": (length, *self.columns["action"][0]), "reward": (length,)}
        for key, shape in shapes.items():
            if length == 0 or key not in episode or np.shape(episode[key]) != shape:
                found = np.shape(episode[key]) if key in episode else "nothing"
                raise StoredDataError(f"recorded episode: '{key}' should have shape {shape}, found {found}")
        ends = np.arange(length) == length - 1
        terminal = ends & np.asarray(episode.get("terminal", False), bool)
        rows = [episode[key] for key in self.observation]
        rows += [np.where(ends[:, None], 0, episode["action"]), episode["reward"]]
        rows += [np.arange(length) == 0, ends, terminal]
        rows += [np.full((length, *shape), unknown(dtype), dtype) for shape, dtype in self.latent.values()]
        for row in zip(*rows, strict=True):
            self._append(self.stream_count, row)

    def sample(self) -> Batch:
        """Hands over the batch that was drawn last time, and draws the next one.

        Raises:
            ValueError: not a single window is complete.
        """
        if self._pending is None:
            self._pending = self._schedule(self._draw())
        windows, future = self._pending
        columns = {name: torch.from_numpy(array) for name, array in future.result().items()}
        action, latent = gather_context(windows, self.latent)
        self._pending = self._schedule(self._draw())
        columns["last"][:, :-1] |= columns["first"][:, 1:]  # an episode that was abandoned has no last row of its own
        return Batch(
            obs={key: columns[f"obs/{key}"] for key in self.observation},
            action=columns["action"],
            reward=columns["reward"],
            first=columns["first"],
            last=columns["last"],
            terminal=columns["terminal"],
            slot=torch.from_numpy(windows.slot),
            context_action=torch.from_numpy(action),
            context_latent={name: torch.from_numpy(value) for name, value in latent.items()},
        )

    def write_latent(self, slot: Any, latent: Mapping[str, Any]) -> None:
        """Replaces the latents [B, T, ...] of the rows ``slot`` [B, T]; rows evicted meanwhile are ignored."""
        rows = np.asarray(slot).reshape(-1)
        self.store.write_latents(
            rows,
            {name: np.asarray(latent[name]).reshape(len(rows), *shape) for name, (shape, _) in self.latent.items()},
        )

    def get_stats(self) -> dict[str, float]:
        """Counters for the log. ``sampled_age`` is how many steps ago sampled windows began, on average."""
        chunks = self.store.chunks.values()
        return {
            "steps": float(len(self)),
            "items": float(self.items),
            "episodes": float(sum(chunk.columns["first"][: chunk.rows].sum() for chunk in chunks)),
            "bytes": float(len(self) * (row_bytes(self.columns) + row_bytes(self.latent))),
            "chunks": float(len(chunks)),
            "quarantined": float(self.store.quarantined),
            "sampled_age": self._age,
        }

    def flush(self) -> None:
        """Waits until everything that was added is on the disk. Call it before a checkpoint."""
        self.store.flush()

    def commit(self, *, replaced: bool = True) -> None:
        """Tells that the last `state_dict` is safely stored, and whether the one stored before it is kept beside it.

        What neither needs is deleted.
        """
        self.store.commit(replaced=replaced)

    def state_dict(self) -> dict:
        """Where the buffer stands; the data itself stays in the directory."""
        return {
            "store": self.store.state_dict(),
            "random": self._random.bit_generator.state,
            "online": list(self._online),
            "pending": self._pending[0].starts if self._pending else None,
            "age": self._age,
        }

    def load_state_dict(self, state: dict) -> None:
        """Returns buffer and directory to where they stood when ``state`` was made.

        Raises:
            StoredDataError: the directory is missing, foreign, or corrupt beyond repair.
        """
        if self._pending:
            wait([self._pending[1]])
        self.store.load_state_dict(state["store"])
        self._random.bit_generator.state = state["random"]
        self._online = deque(state["online"])
        self._age = state["age"]
        windows = plan(self.store, state["pending"] or [], self.options.length)  # none if it lost a row to corruption
        self._pending = self._schedule(windows) if windows and windows.starts else None

    @staticmethod
    def is_named(directory: Path) -> bool:
        """Whether a checkpoint that was committed names rows in a directory."""
        return max(generations(directory), default=0) > 1  # the first journal is older than the first checkpoint

    @staticmethod
    def fork(source: Path, destination: Path, state: dict) -> dict:
        """Copies a stored replay, so that another run can load ``state`` and leave the original as it is.

        Returns the state without chunks that are no longer there, as a full replay evicts them; a warning counts them.

        Raises:
            StoredDataError: there is no replay at ``source``.
        """
        if not source.is_dir():
            raise StoredDataError(f"{source}: there is no replay to go on from; restore the folder, or start a new run")
        shutil.copytree(source, destination, ignore=shutil.ignore_patterns("*.bad"))
        chunks = state["store"]["chunks"]
        present = [item for item in chunks if chunk_paths(destination, item["number"])[0].exists()]
        if evicted := len(chunks) - len(present):
            logger.warning("%s: %d of %d chunks were evicted since this checkpoint; going on with the others",
                           source, evicted, len(chunks))  # fmt: skip
        return state | {"store": state["store"] | {"chunks": present}}

    def close(self) -> None:
        """Ends the background thread."""
        self._thread.shutdown(wait=True)
        self.store.journal.close()

    def _append(self, stream: int, row: Sequence) -> None:
        window = self.store.append(stream, row)
        position = self.store.streams[stream].rows - 1
        if window is not None and self.options.online and position % (self.options.length + 1) == 0:
            self._online.append(window)

    def _draw(self) -> Plan:
        """Chooses the windows of the next batch: new ones first, the rest uniformly."""
        if not self.items:
            raise ValueError("replay holds no complete sequence yet; wait until it is ready")
        starts = []
        while self._online and len(starts) < self.options.batch_size:
            window = self._online.popleft()
            if self.store.complete(window):
                starts.append(window)
        chunks = list(self.store.chunks.values())
        cumulative = np.cumsum([chunk.windows for chunk in chunks])
        for item in self._random.integers(self.items, size=self.options.batch_size - len(starts)).tolist():
            place = int(np.searchsorted(cumulative, item, "right"))
            index = item - int(cumulative[place]) + chunks[place].windows
            starts.append(chunks[place].number * self.store.size + index)
        windows = plan(self.store, starts, self.options.length)
        assert windows is not None, "all windows that are counted are complete"
        self._note_age(windows)
        return windows

    def _note_age(self, windows: Plan) -> None:
        strides = [*[self.stream_count] * self.stream_count, 1]
        ages = [self.store.total - chunk.born - index * strides[chunk.stream] for chunk, index in windows.context]
        age = sum(ages) / len(ages)
        self._age += (age - self._age) * (AGE_RATE if self._age else 1)

    def _schedule(self, windows: Plan) -> tuple[Plan, Future]:
        """Begins to copy the rows of windows in the background."""
        self.store.reading = windows.chunks
        return windows, self._thread.submit(gather, windows, self.columns)
