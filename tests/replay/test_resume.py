from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.replay.counting import digest_batch, digest_directory, drive, fill, latents, make

OPTIONS = {"capacity": 160, "chunk": 8, "batch_size": 6}


def checkpoint(buffer):
    """What a trainer does: flush, store, commit. Returns what a checkpoint file would give back."""
    buffer.flush()
    state = buffer.state_dict()
    buffer.commit()
    return state


@pytest.mark.parametrize("moment", [0, 40, 121])
def test_a_resumed_buffer_equals_the_uninterrupted_one(tmp_path, moment):
    whole = make(tmp_path / "whole", **OPTIONS)
    drive(whole, 0, moment)
    checkpoint(whole)
    expected = drive(whole, moment, 180)
    final = checkpoint(whole)

    broken = make(tmp_path / "broken", **OPTIONS)
    drive(broken, 0, moment)
    state = checkpoint(broken)
    drive(broken, moment, moment + 50)  # all of this is lost: no commit follows
    broken.close()
    torch.save(state, tmp_path / "state.pt")
    resumed = make(tmp_path / "broken", **OPTIONS)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert drive(resumed, moment, 180) == expected
    assert checkpoint(resumed) == final
    assert digest_directory(tmp_path / "broken") == digest_directory(tmp_path / "whole")
    assert resumed.get_stats() == whole.get_stats()
    whole.close()
    resumed.close()


def test_loading_brings_back_the_exact_files(tmp_path):
    buffer = make(tmp_path, **OPTIONS)
    drive(buffer, 0, 132)
    state = checkpoint(buffer)
    before = digest_directory(tmp_path)
    drive(buffer, 132, 180)
    assert digest_directory(tmp_path) != before
    for _ in range(2):
        buffer.load_state_dict(state)
        assert digest_directory(tmp_path) == before
        drive(buffer, 132, 150)
    buffer.close()


@pytest.mark.parametrize("survivor", ["older", "newer"])
def test_before_the_commit_both_the_old_and_the_new_checkpoint_are_exact(tmp_path, survivor):
    buffer = make(tmp_path, **OPTIONS)
    drive(buffer, 0, 80)
    states = {"older": checkpoint(buffer)}
    batches = {"older": drive(buffer, 80, 130)}
    states["newer"] = buffer.state_dict()
    batches["newer"] = drive(buffer, 130, 180)
    buffer.load_state_dict(states[survivor])
    assert drive(buffer, *{"older": (80, 130), "newer": (130, 180)}[survivor]) == batches[survivor]
    buffer.close()


def test_a_pending_batch_comes_back_even_if_its_rows_were_evicted(tmp_path):
    buffer = make(tmp_path, **OPTIONS)
    drive(buffer, 0, 40)
    buffer.state_dict()
    buffer.commit()
    fill(buffer, 40, 150)  # evicts every row that the pending batch consists of
    state = checkpoint(buffer)
    fill(buffer, 150, 200)
    expected = digest_batch(buffer.sample())
    buffer.close()
    buffer = make(tmp_path, **OPTIONS)
    buffer.load_state_dict(state)
    fill(buffer, 150, 200)
    assert digest_batch(buffer.sample()) == expected
    buffer.close()


def test_a_rewritten_latent_is_taken_back(tmp_path):
    buffer = make(tmp_path, online=False)
    fill(buffer, 0, 20)
    state = checkpoint(buffer)
    for version in (1, 2):
        batch = buffer.sample()
        buffer.write_latent(batch.slot, latents(batch.obs["count"].numpy(), version))
    assert any(chunk.latents["deter"][:, 2].any() for chunk in buffer.store.chunks.values())
    buffer.load_state_dict(state)
    assert not any(chunk.latents["deter"][:, 2].any() for chunk in buffer.store.chunks.values())
    buffer.close()


def test_a_torn_record_at_the_end_of_the_journal_is_ignored(tmp_path):
    buffer = make(tmp_path, **OPTIONS)
    drive(buffer, 0, 60)
    state = checkpoint(buffer)
    before = digest_directory(tmp_path)
    drive(buffer, 60, 80)
    buffer.close()
    journal = max(tmp_path.glob("undo-*.bin"))
    assert journal.stat().st_size > 0
    with journal.open("ab") as file:
        file.write(b"torn")
    buffer = make(tmp_path, **OPTIONS)
    buffer.load_state_dict(state)
    assert digest_directory(tmp_path) == before
    buffer.close()


@pytest.mark.parametrize("resumed", [False, True])
def test_the_last_two_checkpoints_are_exact_when_the_replay_is_full(tmp_path, caplog, resumed):
    buffer = make(tmp_path, **OPTIONS)
    drive(buffer, 0, 100)
    checkpoint(buffer)
    drive(buffer, 100, 140)
    previous = checkpoint(buffer)
    files = digest_directory(tmp_path)
    expected = drive(buffer, 140, 180)  # evicts chunks that the previous checkpoint needs
    latest = checkpoint(buffer)
    assert not {item["number"] for item in previous["store"]["chunks"]} <= buffer.store.chunks.keys()
    beyond = drive(buffer, 180, 200)
    if resumed:
        buffer.close()
        buffer = make(tmp_path, **OPTIONS)
        buffer.load_state_dict(latest)
        assert drive(buffer, 180, 200) == beyond
    buffer.close()
    buffer = make(tmp_path, **OPTIONS)
    buffer.load_state_dict(previous)
    assert {item["number"] for item in previous["store"]["chunks"]} == buffer.store.chunks.keys()
    assert digest_directory(tmp_path).items() <= files.items()
    assert drive(buffer, 140, 180) == expected
    assert caplog.text == ""
    buffer.close()


def test_a_checkpoint_older_than_the_previous_one_still_loads_but_says_so(tmp_path, caplog):
    buffer = make(tmp_path)
    drive(buffer, 0, 60)
    older = checkpoint(buffer)
    for begin in (60, 80):
        drive(buffer, begin, begin + 20)
        checkpoint(buffer)
    buffer.load_state_dict(older)
    assert "not those of the checkpoint and are forgotten; resume is not bit-exact" in caplog.text
    assert len(buffer) == 120
    buffer.sample()
    buffer.close()


def overwrite(path: Path) -> None:
    path.write_bytes(b"\xff" * path.stat().st_size)


@pytest.mark.parametrize("harm", [overwrite, Path.unlink, lambda path: os.truncate(path, 100)])
def test_a_damaged_journal_is_noticed(tmp_path, caplog, harm):
    buffer = make(tmp_path, **OPTIONS)
    drive(buffer, 0, 60)
    state = checkpoint(buffer)
    drive(buffer, 60, 80)
    buffer.close()
    harm(max(tmp_path.glob("undo-*.bin")))
    buffer = make(tmp_path, **OPTIONS)
    buffer.load_state_dict(state)
    assert "are forgotten; resume is not bit-exact" in caplog.text
    buffer.close()


@pytest.mark.parametrize("killed", [False, True])
def test_without_a_journal_only_a_killed_run_forgets(tmp_path, caplog, killed):
    buffer = make(tmp_path, **OPTIONS, journal=False)
    drive(buffer, 0, 60)
    state = checkpoint(buffer)
    if killed:
        drive(buffer, 60, 80)
    buffer.close()
    assert all(path.stat().st_size == 0 for path in tmp_path.glob("undo-*.bin"))
    buffer = make(tmp_path, **OPTIONS, journal=False)
    buffer.load_state_dict(state)
    assert ("are forgotten; resume is not bit-exact" in caplog.text) == killed
    buffer.sample()
    buffer.close()


def test_a_state_survives_a_restricted_load_and_stays_small(tmp_path):
    buffer = make(tmp_path)
    drive(buffer, 0, 200)
    torch.save(buffer.state_dict(), tmp_path / "state.pt")
    torch.load(tmp_path / "state.pt", weights_only=True)
    assert (tmp_path / "state.pt").stat().st_size < 20_000
    buffer.close()


LENGTH = 240
SAVE_EVERY = 10


def live(folder: Path) -> None:
    """One life of a run: loads the last checkpoint, goes on to the end, and leaves a digest of its last batch."""
    buffer = make(folder / "replay", **OPTIONS)
    begin = 0
    if (folder / "state.pt").exists():
        saved = torch.load(folder / "state.pt", weights_only=True)
        begin = saved["time"]
        buffer.load_state_dict(saved["replay"])
    while begin < LENGTH:
        drive(buffer, begin, begin + SAVE_EVERY)
        begin += SAVE_EVERY
        buffer.flush()
        torch.save({"time": begin, "replay": buffer.state_dict()}, folder / "new.pt")
        os.replace(folder / "new.pt", folder / "state.pt")
        buffer.commit()
    (folder / "result").write_text(digest_batch(buffer.sample()))
    buffer.close()


def test_kills_at_random_moments_change_nothing(tmp_path):
    """The replay is full after a third of the run, so chunks are deleted between all later kills."""
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    live(tmp_path / "whole")
    random = np.random.Generator(np.random.PCG64(0))
    context = multiprocessing.get_context("fork")
    saved, kills = tmp_path / "killed" / "state.pt", 0
    while not (tmp_path / "killed" / "result").exists():
        before = saved.stat().st_mtime_ns if saved.exists() else 0
        process = context.Process(target=live, args=(tmp_path / "killed",))
        process.start()
        while process.is_alive() and (not saved.exists() or saved.stat().st_mtime_ns == before):
            time.sleep(0.001)
        time.sleep(random.uniform(0, 0.05))
        if kills < 12:
            process.kill()
            kills += process.is_alive()
        process.join()
        assert process.exitcode in (0, -9)
    assert kills >= 8
    assert not (tmp_path / "killed" / "replay" / "00000000.rows").exists()
    assert (tmp_path / "killed" / "result").read_text() == (tmp_path / "whole" / "result").read_text()
    assert digest_directory(tmp_path / "killed" / "replay") == digest_directory(tmp_path / "whole" / "replay")
