from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from reverie.errors import ConfigError, StoredDataError
from reverie.replay import ReplayOptions, SequenceReplayBuffer
from reverie.types import ObservationSpec, Step
from tests.replay.counting import ACTION, LATENT, actions, check, counts, digest_batch, drive, fill, images, make


@pytest.fixture
def replay(tmp_path):
    """Builds buffers below the test's folder, and closes them."""
    made = []

    def build(name="replay", **options) -> SequenceReplayBuffer:
        made.append(make(tmp_path / name, **options))
        return made[-1]

    yield build
    for buffer in made:
        buffer.close()


def starts(batch, streams=1):
    """The stream position of the context row of each window."""
    return (batch.obs["count"][:, 0] // streams - 1).tolist()


def test_thirty_steps_hold_26_windows_of_five_and_serve_each_new_one_once(replay):
    buffer = replay(streams=1, batch_size=5)
    fill(buffer, 0, 30, streams=1)
    assert buffer.items == 26
    assert len(buffer) == 30
    assert starts(buffer.sample()) == [1, 6, 11, 16, 21]
    fill(buffer, 30, 31, streams=1)
    buffer.sample()
    assert starts(buffer.sample())[0] == 26


def test_without_the_online_queue_the_first_batch_is_uniform(replay):
    buffer = replay(streams=1, batch_size=5, online=False)
    fill(buffer, 0, 30, streams=1)
    assert starts(buffer.sample()) != [1, 6, 11, 16, 21]


def test_online_windows_come_from_every_stream(replay):
    buffer = replay(streams=2, batch_size=4)
    fill(buffer, 0, 11)
    assert buffer.sample().obs["count"][:, 0].tolist() == [4, 5, 14, 15]


def test_windows_are_whole_across_chunks_and_episodes(replay):
    for chunk, length in ((1, 4), (3, 10), (16, 4), (7, 7)):
        buffer = replay(f"{chunk}-{length}", chunk=chunk, length=length)
        fill(buffer, 0, 60)
        for _ in range(20):
            check(buffer.sample())


def test_uniform_draws_are_uniform(replay):
    buffer = replay(streams=2, batch_size=50, online=False)
    fill(buffer, 0, 54)
    assert buffer.items == 100
    drawn = torch.cat([buffer.sample().obs["count"][:, 0] for _ in range(100)]).numpy() - 2
    expected = len(drawn) / 100
    chi_square = sum((np.sum(drawn == count) - expected) ** 2 / expected for count in range(100))
    assert 60 < chi_square < 145  # 99 degrees of freedom: 99.8 % of all seeds


def test_batches_have_the_declared_types_and_shapes(replay):
    buffer = replay()
    fill(buffer, 0, 40)
    batch = buffer.sample()
    assert batch.obs["image"].shape == (4, 4, 2, 2, 3)
    assert batch.obs["image"].dtype == torch.uint8
    assert batch.obs["image"].is_contiguous()
    assert batch.action.shape == (4, 4, 2)
    assert batch.slot.dtype == torch.int64
    assert [flag.dtype for flag in (batch.first, batch.last, batch.terminal)] == [torch.bool] * 3
    assert batch.context_latent["stoch"].shape == (4, 2)


def test_an_abandoned_episode_ends_where_the_next_one_begins(replay):
    buffer = replay(streams=1, batch_size=1, length=6)
    for time in range(8):
        count = counts(time, 1)
        flag = np.zeros(1, bool)
        step = Step({"count": count, "image": images(count)}, np.zeros(1, np.float32), flag | (time == 5), flag, flag)
        buffer.add(step, actions(count), {name: np.zeros((1, *shape)) for name, (shape, _) in LATENT.items()})
    assert buffer.sample().last[0].tolist() == [False, False, True, False, False, False]


def test_rewritten_latents_are_the_context_of_later_batches(replay):
    buffer = replay(streams=1, batch_size=2, online=False)
    fill(buffer, 0, 9, streams=1)
    batch = buffer.sample()
    rows = {
        int(slot): int(count) for slot, count in zip(batch.slot.flatten(), batch.obs["count"].flatten(), strict=True)
    }
    buffer.write_latent(batch.slot, {"deter": torch.full((2, 4, 3), -1.0), "stoch": torch.full((2, 4, 2), 9)})
    seen = set()
    for _ in range(20):
        batch = buffer.sample()
        for count, deter, stoch in zip(
            batch.obs["count"][:, 0] - 1, batch.context_latent["deter"], batch.context_latent["stoch"], strict=True
        ):
            rewritten = int(count) in rows.values()
            assert deter[0] == (-1 if rewritten else count)
            assert (stoch[1] == 9) == rewritten
            seen.add(rewritten)
    assert seen == {True, False}


def test_the_same_seed_gives_the_same_batches_whatever_the_timing(replay):
    def run(name, seed, pause):
        buffer = replay(name, seed=seed, capacity=200)
        digests = []
        for time in range(150):
            digests += drive(buffer, time, time + 1)
            if pause and buffer._pending:
                buffer._pending[1].result()
        return digests

    calm = run("calm", 0, True)
    assert len(calm) > 40
    assert run("hasty", 0, False) == calm
    assert run("other", 1, False) != calm


def test_ready_when_there_are_as_many_windows_as_steps_in_a_batch(replay):
    buffer = replay(streams=2)
    fill(buffer, 0, 11)
    assert not buffer.ready
    fill(buffer, 11, 12)
    assert buffer.items == 16
    assert buffer.ready


def test_sampling_an_empty_buffer_is_an_error(replay):
    with pytest.raises(ValueError, match="no complete sequence"):
        replay().sample()


def test_an_error_in_the_background_surfaces_at_the_next_sample(replay, monkeypatch):
    buffer = replay()
    fill(buffer, 0, 40)

    def fail(*_):
        raise OSError("disk gone")

    monkeypatch.setattr("reverie.replay.buffer.gather", fail)
    with pytest.raises(OSError, match="disk gone"):
        buffer.sample()


def test_no_thread_is_left_after_close(tmp_path):
    before = threading.active_count()
    buffer = make(tmp_path)
    fill(buffer, 0, 40)
    buffer.sample()
    assert threading.active_count() == before + 1
    buffer.close()
    assert threading.active_count() == before


def test_a_recorded_episode_gets_flags_and_empty_latents(replay):
    buffer = replay(streams=1, batch_size=1, length=5)
    count = np.arange(1, 7)
    buffer.add_episode(
        {"count": count, "image": images(count), "action": actions(count), "reward": count, "terminal": count == 6}
    )
    assert buffer.items == 1
    batch = buffer.sample()
    assert batch.obs["count"][0].tolist() == [2, 3, 4, 5, 6]
    assert batch.last[0].tolist() == batch.terminal[0].tolist() == [False] * 4 + [True]
    assert batch.action[0, -1].tolist() == [0, 0]
    assert batch.context_action[0].tolist() == [1, 1.5]
    assert batch.context_latent["deter"][0].tolist() == [0, 0, 0]
    assert batch.context_latent["stoch"][0].tolist() == [255, 255]
    assert buffer.get_stats()["episodes"] == 1


def test_short_recorded_episodes_are_joined(replay):
    buffer = replay(streams=1, batch_size=1)
    for _ in range(3):
        count = np.arange(2)
        buffer.add_episode({"count": count, "image": images(count), "action": actions(count), "reward": count})
    assert buffer.items == 2
    batch = buffer.sample()
    assert batch.last.sum() == batch.first.sum() == 2
    assert not batch.terminal.any()


def test_a_recorded_episode_of_another_shape_is_refused(replay):
    count = np.arange(6)
    episode = {"count": count, "image": images(count), "action": np.zeros((6, 3)), "reward": count}
    with pytest.raises(StoredDataError, match=r"'action' should have shape \(6, 2\), found \(6, 3\)"):
        replay().add_episode(episode)
    with pytest.raises(StoredDataError, match="'image' .* found nothing"):
        replay().add_episode({"count": count, "action": actions(count), "reward": count})


def test_a_capacity_that_cannot_hold_a_batch_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="raise replay.capacity"):
        make(tmp_path, capacity=20)
    with pytest.raises(ConfigError, match="raise replay.capacity"):
        make(tmp_path, capacity_bytes=1000)


def test_the_smallest_accepted_capacity_stays_ready(replay):
    buffer = replay(capacity=28)
    for time in range(100):
        fill(buffer, time, time + 1)
        assert buffer.ready or time < 30


def test_a_step_of_other_width_is_refused(replay):
    with pytest.raises(ValueError, match="3 environments does not fit 2"):
        fill(replay(), 0, 1, streams=3)


def test_sampled_age_and_counters(replay):
    buffer = replay(streams=2, online=False)
    fill(buffer, 0, 50)
    batch = buffer.sample()
    stats = buffer.get_stats()
    assert stats["steps"] == 100
    assert stats["items"] == 92
    assert stats["episodes"] == 16
    assert stats["chunks"] == 8
    assert stats["quarantined"] == 0
    assert stats["bytes"] == 100 * (8 + 12 + 8 + 4 + 3 + 12 + 2)
    assert 8 < stats["sampled_age"] <= 100
    assert all(isinstance(value, float) for value in stats.values())
    again = replay("again", streams=2, online=False)
    fill(again, 0, 50)
    assert digest_batch(again.sample()) == digest_batch(batch)


def test_observations_without_latents_work(tmp_path):
    observation = {"x": ObservationSpec((), "float32")}
    buffer = SequenceReplayBuffer(ReplayOptions(batch_size=1, length=2), tmp_path, observation, ACTION, {}, 1, 0)
    for time in range(5):
        flag = np.zeros(1, bool)
        step = Step({"x": np.full(1, time, np.float32)}, np.zeros(1, np.float32), flag, flag, flag)
        buffer.add(step, np.zeros((1, 2), np.float32), {})
    assert buffer.sample().context_latent == {}
    buffer.close()
