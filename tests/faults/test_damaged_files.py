"""Every file of a run, damaged in every way: resuming refuses, says what it lost, or is exact, never silent."""

from __future__ import annotations

import os
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from reverie.errors import ReverieError
from reverie.run.train import DreamerV3Trainer
from tests.run.test_train import digest, make_config

SAMPLE = 40

KINDS = {
    "rows": "replay/*.rows",
    "latents": "replay/*.latents",
    "journal": "replay/undo-*.bin",
    "layout": "replay/replay.json",
    "checkpoint": "checkpoints/*.pt",
    "config": "config.json",
    "metrics": "metrics.jsonl",
}
"""What a run keeps in its folder."""


def flip(data: bytes, other: bytes, draw: random.Random) -> bytes:
    place = draw.randrange(len(data))
    return data[:place] + bytes([data[place] ^ 1 << draw.randrange(8)]) + data[place + 1 :]


def wipe(data: bytes, other: bytes, draw: random.Random) -> bytes:
    place, length = draw.randrange(len(data)), draw.randrange(1, 4096)
    return (data[:place] + bytes(length) + data[place + length :])[: len(data)]


HARMS: dict[str, Callable[[bytes, bytes, random.Random], bytes | None]] = {
    "flip": flip,
    "wipe": wipe,
    "truncate": lambda data, other, draw: data[: draw.randrange(len(data))],
    "ones": lambda data, other, draw: b"\xff" * len(data),
    "noise": lambda data, other, draw: draw.randbytes(len(data)),
    "swap": lambda data, other, draw: other,
    "delete": lambda data, other, draw: None,
}
"""What becomes of a file's bytes; ``other`` is a file of the same kind."""


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose replay is full, killed some steps after its third checkpoint."""
    folder = tmp_path_factory.mktemp("killed")
    make_killed(folder)
    return folder


def make_killed(folder: Path) -> None:
    trainer = DreamerV3Trainer(make_config(folder, replay={"capacity": 128, "chunk": 4}, run={"steps": 1000}))
    for step in (100, 160, 200):
        while trainer.step < step:
            trainer.advance()
        trainer.save()
    for _ in range(8):
        trainer.advance()
    trainer.close()


def resumed(folder: Path, name: str) -> str:
    """A digest of all that a run goes on from."""
    trainer = DreamerV3Trainer.resume(folder / "run" / "checkpoints" / name)
    try:
        store = trainer.replay.store
        arrays = [
            [array[: chunk.rows].tobytes() for array in (*chunk.columns.values(), *chunk.latents.values())]
            for chunk in store.chunks.values()
        ]
        files = [(trainer.folder / name).read_text() for name in ("config.json", "metrics.jsonl")]
        batches = [trainer.replay.sample() for _ in range(2)]
        seen = [[batch.action, batch.obs, batch.context_latent, batch.slot] for batch in batches]
        counters = [trainer.step, trainer.updates, store.opened, store.total]
        own = files if name == "latest.pt" else []
        return digest([trainer.agent.checkpoint(), trainer.collector.state_dict(), arrays, own, seen, counters])
    finally:
        trainer.close()


def harm(folder: Path, draw: random.Random) -> tuple[str, str, str]:
    """Damages a file; returns its kind, the harm, and the checkpoint that should be resumed.

    Another whole checkpoint of the run is no damage: whoever puts one there goes back on purpose.
    """
    while True:
        kind, name = draw.choice(list(KINDS)), draw.choice(list(HARMS))
        if (kind, name) == ("checkpoint", "swap"):
            continue
        paths = sorted((folder / "run").glob(KINDS[kind]))
        path, other = draw.choice(paths), draw.choice(paths)
        before = path.read_bytes()
        after = HARMS[name](before, other.read_bytes(), draw) if before else before
        if after == before:
            continue
        if after is None:
            path.unlink()
        else:
            path.write_bytes(after)
        return kind, name, path.name if kind == "checkpoint" else "latest.pt"


def outcome(killed: Path, folder: Path, seed: int, exact: dict[str, str], caplog: pytest.LogCaptureFixture) -> tuple:
    """The kind of file, the harm, and what came of it: refused, said, exact or silent."""
    shutil.copytree(killed, folder)
    kind, name, source = harm(folder, random.Random(seed))
    caplog.clear()
    try:
        same = resumed(folder, source) == exact[source]
    except ReverieError:
        return kind, name, "refused"
    finally:
        shutil.rmtree(folder)
    said = any(record.levelname == "WARNING" for record in caplog.records)
    return kind, name, "said" if said else "exact" if same else "silent"


def references(killed: Path, folder: Path) -> dict[str, str]:
    """What each checkpoint of the run gives where nothing is damaged."""
    digests = {}
    for name in ("latest.pt", "previous.pt", "best_model.pt"):
        shutil.copytree(killed, folder)
        digests[name] = resumed(folder, name)
        shutil.rmtree(folder)
    return digests


def count(killed: Path, folder: Path, trials: int, caplog: pytest.LogCaptureFixture) -> Counter:
    """How often each harm of each kind of file came to what end."""
    exact = references(killed, folder)
    assert "bit-exact" not in caplog.text and "corrupt" not in caplog.text
    return Counter(outcome(killed, folder, seed, exact, caplog) for seed in range(trials))


def test_no_damaged_file_is_taken_silently(killed, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # no power is cut here
    counts = count(killed, tmp_path / "damaged", SAMPLE, caplog)
    assert not [case for case in counts if case[-1] == "silent"]
    assert {case[0] for case in counts} == set(KINDS)
    assert {case[1] for case in counts} == set(HARMS)
    assert {case[2] for case in counts} == {"refused", "said", "exact"}
