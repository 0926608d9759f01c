from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from reverie.errors import StoredDataError
from reverie.replay.chunks import NO_CLASS, Chunk
from tests.replay.counting import check, fill, make

ROW = 8 + 12 + 8 + 4 + 3 + 12 + 2


def stored_counts(buffer, stream):
    chunks = [chunk for chunk in buffer.store.chunks.values() if chunk.stream == stream]
    return np.concatenate([chunk.columns["obs/count"][: chunk.rows] for chunk in chunks]).tolist()


def test_the_oldest_steps_go_first_and_the_newest_stay(tmp_path):
    buffer = make(tmp_path, capacity=100, chunk=5)
    for time in range(200):
        fill(buffer, time, time + 1)
        assert len(buffer) <= 100
    assert len(buffer) > 90
    for stream in range(2):
        counts = stored_counts(buffer, stream)
        assert counts == list(range(400 - 2 * len(counts) + stream, 400, 2))
    assert buffer.items == len(buffer) - 2 * 4
    for _ in range(20):
        batch = buffer.sample()
        check(batch)
        assert batch.obs["count"].min() >= 300
    buffer.close()


def test_a_limit_in_bytes_holds(tmp_path):
    buffer = make(tmp_path, capacity_bytes=100 * ROW, chunk=5)
    for time in range(200):
        fill(buffer, time, time + 1)
        assert buffer.get_stats()["bytes"] <= 100 * ROW
    assert len(buffer) > 90
    buffer.close()


def test_evicted_files_are_deleted_at_once_when_no_checkpoint_needs_them(tmp_path):
    buffer = make(tmp_path, capacity=100, chunk=5)
    fill(buffer, 0, 300)
    assert len(list(tmp_path.glob("*.rows"))) <= len(buffer.store.chunks) + 2
    buffer.close()


def test_evicted_files_stay_until_two_newer_checkpoints_are_committed(tmp_path):
    buffer = make(tmp_path, capacity=100, chunk=5)
    fill(buffer, 0, 30)
    buffer.state_dict()
    buffer.commit()
    before = set(tmp_path.glob("*.rows"))
    fill(buffer, 30, 200)
    for kept in (True, False):
        buffer.state_dict()
        assert before <= set(tmp_path.glob("*.rows"))
        buffer.commit()
        assert (before <= set(tmp_path.glob("*.rows"))) == kept
    assert not before & set(tmp_path.glob("*.rows"))
    buffer.close()


def test_evicted_files_stay_as_long_as_the_previous_checkpoint_is_not_replaced(tmp_path):
    buffer = make(tmp_path, capacity=100, chunk=5)
    fill(buffer, 0, 30)
    buffer.state_dict()
    buffer.commit()
    before = set(tmp_path.glob("*.rows"))
    fill(buffer, 30, 200)
    buffer.state_dict()
    buffer.commit()
    for _ in range(2):  # as where the latest checkpoint was found corrupt and did not become the previous one
        buffer.state_dict()
        buffer.commit(replaced=False)
        assert before <= set(tmp_path.glob("*.rows"))
    buffer.close()


def test_a_short_run_takes_little_of_the_disk(tmp_path):
    buffer = make(tmp_path, streams=1, capacity=100_000, chunk=4096)
    fill(buffer, 0, 10, streams=1)
    taken = sum(512 * path.stat().st_blocks for path in tmp_path.glob("0*"))
    sizes = sum(path.stat().st_size for path in tmp_path.glob("0*"))
    assert sizes >= 4096 * ROW
    assert taken < sizes / 3
    fill(buffer, 10, 1000, streams=1)
    for _ in range(10):
        check(buffer.sample(), streams=1)
    buffer.close()


def test_what_was_written_behind_the_cursor_is_cleared_without_taking_space(tmp_path):
    buffer = make(tmp_path, streams=1, capacity=100_000, chunk=4096)
    fill(buffer, 0, 100, streams=1)
    state = buffer.state_dict()
    before = {path.name: path.read_bytes() for path in tmp_path.glob("0*")}
    fill(buffer, 100, 120, streams=1)
    assert {path.name: path.read_bytes() for path in tmp_path.glob("0*")} != before
    taken = sum(path.stat().st_blocks for path in tmp_path.glob("0*"))
    buffer.load_state_dict(state)
    assert {path.name: path.read_bytes() for path in tmp_path.glob("0*")} == before
    assert sum(path.stat().st_blocks for path in tmp_path.glob("0*")) <= taken
    buffer.close()


def test_latents_of_evicted_rows_are_ignored(tmp_path):
    buffer = make(tmp_path, capacity=100, chunk=5)
    fill(buffer, 0, 30)
    slot = buffer.sample().slot
    fill(buffer, 30, 200)
    buffer.write_latent(slot, {"deter": torch.full((4, 4, 3), -1.0), "stoch": torch.zeros(4, 4, 2)})
    assert all((chunk.latents["deter"] >= 0).all() for chunk in buffer.store.chunks.values())
    buffer.close()


def test_the_header_describes_the_files(tmp_path):
    buffer = make(tmp_path)
    fill(buffer, 0, 1)
    header = json.loads((tmp_path / "replay.json").read_text())
    assert header["columns"]["obs/image"] == [[2, 2, 3], "uint8"]
    assert header["latents"]["stoch"] == [[2], "uint8"]
    assert header["chunk"] == 16
    buffer.close()


def test_a_new_buffer_clears_what_an_older_run_left(tmp_path):
    old = make(tmp_path, chunk=4)
    fill(old, 0, 40)
    old.state_dict()
    old.close()
    new = make(tmp_path)
    fill(new, 0, 10)
    assert {path.name for path in tmp_path.iterdir()} == {
        *("replay.json", "00000000.rows", "00000000.latents", "00000001.rows", "00000001.latents")
    }
    new.close()


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[5] ^= 1
    path.write_bytes(data)


def stored(tmp_path, time=400):
    """A closed buffer of 2 x 25 chunks and its state."""
    buffer = make(tmp_path)
    fill(buffer, 0, time)
    buffer.sample()
    state = buffer.state_dict()
    buffer.close()
    return state


@pytest.mark.parametrize("harm", [damage, Path.unlink, lambda path: os.truncate(path, 100)])
def test_a_bad_chunk_is_set_aside_and_no_window_crosses_the_hole(tmp_path, harm):
    state = stored(tmp_path)
    harm(tmp_path / "00000020.rows")
    buffer = make(tmp_path)
    buffer.load_state_dict(state)
    assert buffer.get_stats()["quarantined"] == 1
    assert (tmp_path / "00000020.latents.bad").exists()
    assert len(buffer) == 800 - 16
    assert buffer.items == 800 - 16 - 3 * 4
    for _ in range(40):
        check(buffer.sample())
    fill(buffer, 400, 420)
    assert buffer.items == 800 + 40 - 16 - 3 * 4
    buffer.close()


def test_a_stream_goes_on_after_its_newest_chunk_was_lost(tmp_path):
    state = stored(tmp_path, 402)
    damage(tmp_path / "00000050.rows")
    buffer = make(tmp_path)
    buffer.load_state_dict(state)
    fill(buffer, 402, 440)
    assert buffer.items == (440 - 4) + (400 - 4) + (38 - 4)
    for _ in range(40):
        check(buffer.sample())
    buffer.close()


def test_a_hole_just_before_the_newest_chunk_is_not_crossed(tmp_path):
    buffer = make(tmp_path, streams=1, chunk=2)
    fill(buffer, 0, 61, streams=1)
    state = buffer.state_dict()
    buffer.close()
    damage(tmp_path / "00000029.rows")
    buffer = make(tmp_path, streams=1, chunk=2)
    buffer.load_state_dict(state)
    fill(buffer, 61, 70, streams=1)
    assert buffer.items == (58 - 4) + (10 - 4)
    for _ in range(40):
        check(buffer.sample(), streams=1)
    buffer.close()


def fill_with_ones(path: Path) -> None:
    path.write_bytes(b"\xff" * path.stat().st_size)


@pytest.mark.parametrize("harm", [damage, fill_with_ones, Path.unlink, lambda path: os.truncate(path, 100)])
def test_latents_that_are_not_those_of_the_checkpoint_are_forgotten_with_a_warning(tmp_path, caplog, harm):
    state = stored(tmp_path)
    harm(tmp_path / "00000020.latents")
    buffer = make(tmp_path)
    buffer.load_state_dict(state)
    assert "latents of 1 of 50 chunks are not those of the checkpoint and are forgotten" in caplog.text
    assert len(buffer) == 800
    for number, chunk in buffer.store.chunks.items():
        assert (number == 20) == (chunk.latents["stoch"] == NO_CLASS).all() == (not chunk.latents["deter"].any())
    buffer.close()


def test_more_than_five_percent_lost_is_refused_and_nothing_is_touched(tmp_path):
    state = stored(tmp_path)
    for number in (3, 20, 31):
        damage(tmp_path / f"{number:08d}.rows")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    buffer = make(tmp_path)
    with pytest.raises(StoredDataError, match="3 of 50 replay chunks are missing or corrupt"):
        buffer.load_state_dict(state)
    buffer.close()
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_a_missing_or_foreign_directory_is_refused(tmp_path):
    state = stored(tmp_path / "own")
    missing = make(tmp_path / "missing")
    with pytest.raises(StoredDataError, match="not the replay of the checkpoint"):
        missing.load_state_dict(state)
    missing.close()
    foreign = make(tmp_path / "foreign")
    fill(foreign, 7, 50)
    with pytest.raises(StoredDataError, match="missing or corrupt"):
        foreign.load_state_dict(state)
    foreign.close()
    longer = make(tmp_path / "own", length=5)
    with pytest.raises(StoredDataError, match="stored with replay.length = 4, this run has 5"):
        longer.load_state_dict(state)
    longer.close()


def test_a_fork_is_loaded_without_touching_the_original(tmp_path):
    source = make(tmp_path / "source")
    fill(source, 0, 50)
    state = source.state_dict()
    fill(source, 50, 100)
    source.state_dict()
    source.commit()
    before = sorted((path.name, path.read_bytes()) for path in (tmp_path / "source").iterdir())
    assert source.fork(tmp_path / "source", tmp_path / "fork", state) == state
    forked = make(tmp_path / "fork")
    forked.load_state_dict(state)
    fill(forked, 50, 60)
    assert len(forked) == 120
    check(forked.sample())
    assert sorted((path.name, path.read_bytes()) for path in (tmp_path / "source").iterdir()) == before
    with pytest.raises(StoredDataError, match="no replay to go on from"):
        source.fork(tmp_path / "nowhere", tmp_path / "other", state)
    forked.close()
    source.close()


def test_a_fork_goes_on_without_the_chunks_that_were_evicted_since(tmp_path, caplog):
    source = make(tmp_path / "source", capacity=160, chunk=8)
    fill(source, 0, 70)
    state = source.state_dict()
    source.commit()
    for begin in (70, 90):
        fill(source, begin, begin + 20)
        source.state_dict()
        source.commit()
    state = source.fork(tmp_path / "source", tmp_path / "fork", state)
    assert "chunks were evicted since this checkpoint; going on with the others" in caplog.text
    forked = make(tmp_path / "fork", capacity=160, chunk=8)
    forked.load_state_dict(state)
    assert 0 < len(forked) < 140
    fill(forked, 70, 100)
    for _ in range(40):
        check(forked.sample())
    forked.close()
    source.close()


def test_a_full_disk_is_an_error_when_a_chunk_begins(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    buffer = make(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        with pytest.raises(OSError, match="No space left"):
            fill(buffer, 0, 1)
    assert len(buffer) == 0
    buffer.close()


def test_a_full_disk_is_an_error_when_a_chunk_grows(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    buffer = make(tmp_path, streams=1, capacity=100_000, chunk=1024)
    fill(buffer, 0, 64, streams=1)
    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        with pytest.raises(OSError, match="No space left"):
            fill(buffer, 64, 65, streams=1)
    assert len(buffer) == 64
    fill(buffer, 64, 200, streams=1)
    check(buffer.sample(), streams=1)
    buffer.close()


def test_stored_rows_take_file_pages_not_private_memory(tmp_path):
    columns, latents = {"image": ((64, 64, 3), "uint8")}, {"deter": ((512,), "float32")}

    def private() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

    row = [np.ones((64, 64, 3), np.uint8), np.ones(512, np.float32)]
    before = private()
    chunks = [Chunk(tmp_path, number, 256, 0, 256 * number, 0) for number in range(20)]
    for chunk in chunks:
        chunk.create(columns, latents)
        for _ in range(256):
            chunk.append(row)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) > 70e6
    assert private() - before < 8_000


def test_chunks_keep_no_file_open(tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    buffer = make(tmp_path, chunk=1, streams=1)
    fill(buffer, 0, 200, streams=1)
    buffer.sample()
    assert len(buffer.store.chunks) == 200
    assert len(os.listdir("/proc/self/fd")) < before + 10
    buffer.close()
