"""A buffer filled by counting: every value of a row says which row it is, so every sampled window can be checked."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from reverie.replay import ReplayOptions, SequenceReplayBuffer
from reverie.types import ActionPart, Batch, ObservationSpec, Step

OBSERVATION = {"count": ObservationSpec((), "int64"), "image": ObservationSpec((2, 2, 3), "uint8")}
ACTION = (ActionPart("move", 2, True),)
LATENT = {"deter": ((3,), "float32"), "stoch": ((2,), "uint8")}
EPISODE = 7


def make(directory: Path, streams: int = 2, seed: int = 0, **options) -> SequenceReplayBuffer:
    chosen = {"batch_size": 4, "length": 4, "capacity": 10_000, "chunk": 16, **options}
    return SequenceReplayBuffer(ReplayOptions(**chosen), directory, OBSERVATION, ACTION, LATENT, streams, seed)


def images(count: np.ndarray) -> np.ndarray:
    return np.broadcast_to(count[..., None, None, None] % 251, (*count.shape, 2, 2, 3)).astype(np.uint8)


def actions(count: np.ndarray) -> np.ndarray:
    return np.stack([count, count + 0.5], -1).astype(np.float32)


def latents(count: np.ndarray, version: int = 0) -> dict[str, np.ndarray]:
    """Latents of rows [...]; ``version`` tells rewritten ones from the original."""
    return {
        "deter": np.stack([count, count + version, count * 0 + version], -1).astype(np.float32),
        "stoch": np.stack([count % 200, count * 0 + version % 200], -1).astype(np.uint8),
    }


def counts(time: int, streams: int) -> np.ndarray:
    return time * streams + np.arange(streams)


def fill(buffer: SequenceReplayBuffer, begin: int, end: int, streams: int = 2) -> None:
    """Adds the steps ``begin .. end - 1`` of every stream; episodes have seven steps."""
    for time in range(begin, end):
        count = counts(time, streams)
        first, last = np.full(streams, time % EPISODE == 0), np.full(streams, time % EPISODE == EPISODE - 1)
        obs = {"count": count, "image": images(count)}
        step = Step(obs, count.astype(np.float32), first, last, last & (time % (2 * EPISODE) == EPISODE - 1))
        buffer.add(step, actions(count), latents(count))


def check(batch: Batch, streams: int = 2) -> None:
    """Every row of the batch is the row that its count names, and rows of a window follow each other."""
    count = batch.obs["count"].numpy()
    time = count // streams
    np.testing.assert_array_equal(np.diff(count, axis=1), streams)
    np.testing.assert_array_equal(batch.obs["image"].numpy(), images(count))
    np.testing.assert_array_equal(batch.reward.numpy(), count)
    np.testing.assert_array_equal(batch.first.numpy(), time % EPISODE == 0)
    last = time % EPISODE == EPISODE - 1
    np.testing.assert_array_equal(batch.last.numpy(), last)
    np.testing.assert_array_equal(batch.terminal.numpy(), time % (2 * EPISODE) == EPISODE - 1)
    np.testing.assert_array_equal(batch.action.numpy(), np.where(last[..., None], 0, actions(count)))
    context = count[:, 0] - streams
    ended = (time[:, :1] - 1) % EPISODE == EPISODE - 1
    np.testing.assert_array_equal(batch.context_action.numpy(), np.where(ended, 0, actions(context)))
    np.testing.assert_array_equal(batch.context_latent["deter"].numpy()[:, 0], context)


def drive(buffer: SequenceReplayBuffer, begin: int, end: int) -> list[str]:
    """Adds steps; after every third one samples and rewrites latents. Returns a digest per batch."""
    digests = []
    for time in range(begin, end):
        fill(buffer, time, time + 1)
        if buffer.ready and time % 3 == 0:
            batch = buffer.sample()
            check(batch)
            digests.append(digest_batch(batch))
            fresh = latents(batch.obs["count"].numpy(), time)
            fresh["deter"][..., 2] += batch.context_latent["deter"].numpy()[:, None, 2]
            buffer.write_latent(batch.slot, fresh)
    return digests


def digest_batch(batch: Batch) -> str:
    tensors = [*batch.obs.values(), batch.action, batch.reward, batch.first, batch.last, batch.terminal, batch.slot]
    tensors += [batch.context_action, *batch.context_latent.values()]
    return hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in tensors)).hexdigest()


def digest_directory(directory: Path) -> dict[str, str]:
    """Names and contents of all files of rows and latents."""
    files = [*directory.glob("*.rows"), *directory.glob("*.latents")]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(files)}
