"""Several environments as one: the same rows wherever they run, and the way back into open episodes."""

from __future__ import annotations

import contextlib
import functools
import io
import logging

import gymnasium
import numpy as np
import pytest
import torch

from reverie.env import ENVIRONMENTS, EnvOptions, make_vector
from reverie.env import slot as slots
from reverie.errors import ConfigError, StoredDataError
from reverie.types import Step, action_width
from tests.counting import CountingEnv


def actions(steps: int, envs: int, width: int = 3, seed: int = 0) -> np.ndarray:
    chosen = np.random.default_rng(seed).integers(0, width, (steps, envs))
    return np.eye(width, dtype=np.float32)[chosen]


def play(vector, sequence) -> list[Step]:
    return [vector.step(action) for action in sequence]


def assert_same(left: list[Step], right: list[Step]) -> None:
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        assert one.obs.keys() == other.obs.keys()
        for key in one.obs:
            np.testing.assert_array_equal(one.obs[key], other.obs[key])
            assert one.obs[key].dtype == other.obs[key].dtype
        for field in ("reward", "first", "last", "terminal"):
            np.testing.assert_array_equal(getattr(one, field), getattr(other, field))
        assert one.info.keys() == other.info.keys()
        for name in one.info:
            np.testing.assert_array_equal(one.info[name], other.info[name])


@contextlib.contextmanager
def vector(name: str = "counting", seed: int = 7, envs: int = 3, mode: str = "inline", **options):
    made = make_vector(EnvOptions(name=name, mode=mode, **options), seed, envs=envs)
    try:
        yield made
    finally:
        made.close()


def through_a_file(state: dict) -> dict:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_environments_side_by_side_are_refused_as_one():
    ENVIRONMENTS["many"] = lambda: gymnasium.make_vec("CartPole-v1", num_envs=3, vectorization_mode="sync")
    with pytest.raises(ConfigError, match="SyncVectorEnv is 3 environments side by side; make one, and set env.envs"):
        make_vector(EnvOptions(name="many", mode="inline"), 0)


def test_rows_count_and_begin_anew_after_the_last_one():
    sequence = actions(60, 3)
    with vector() as env:
        steps = play(env, sequence)
    assert steps[0].first.all() and not steps[0].last.any() and (steps[0].reward == 0).all()
    assert steps[0].reward.dtype == np.float32 and steps[0].first.dtype == bool
    for before, now, action in zip(steps[:-1], steps[1:], sequence[1:], strict=True):
        np.testing.assert_array_equal(now.first, before.last)
        expected = np.where(now.first, 0, before.obs["count"][:, 0] + 1)
        np.testing.assert_array_equal(now.obs["count"][:, 0], expected)
        np.testing.assert_array_equal(now.reward, expected)
        np.testing.assert_array_equal(now.obs["action"][:, 0], np.where(now.first, -1, action.argmax(-1)))


def test_a_terminated_episode_is_terminal_and_a_truncated_one_only_last():
    with vector(envs=8) as env:
        steps = play(env, actions(60, 8))
    last = np.stack([step.last for step in steps])
    terminal = np.stack([step.terminal for step in steps])
    even = np.stack([step.obs["episode"][:, 0] % 2 == 0 for step in steps])
    np.testing.assert_array_equal(terminal, last & even)
    assert terminal.any() and (last & ~terminal).any()


def test_processes_give_the_same_rows_as_inline():
    sequence = actions(50, 3)
    with vector(mode="inline") as inline, vector(mode="processes") as processes:
        assert inline.observation == processes.observation and inline.action == processes.action
        assert_same(play(inline, sequence), play(processes, sequence))


def test_another_seed_gives_other_episodes_and_every_worker_has_its_own():
    with vector(seed=1) as one, vector(seed=2) as other:
        first, second = one.step(actions(1, 3)[0]), other.step(actions(1, 3)[0])
    assert len(set(first.obs["episode"][:, 0])) == 3
    assert not set(first.obs["episode"][:, 0]) & set(second.obs["episode"][:, 0])


@pytest.mark.parametrize("mode", ["inline", "processes"])
def test_a_loaded_state_continues_with_the_same_rows(mode):
    sequence = actions(60, 3)
    stops = (0, 1, 17, 31) if mode == "inline" else (20,)
    for stop in stops:
        with vector(mode=mode) as env, vector(mode=mode, seed=99) as resumed:
            play(env, sequence[:stop])
            resumed.load_state_dict(through_a_file(env.state_dict()))
            assert_same(play(env, sequence[stop:]), play(resumed, sequence[stop:]))


def test_a_state_is_right_at_every_moment_of_an_episode():
    sequence = actions(30, 2)
    with vector(envs=2) as env:
        for stop in range(25):
            with vector(envs=2) as resumed:
                resumed.load_state_dict(env.state_dict())
                rows = play(resumed, sequence[stop : stop + 3])
            state = env.state_dict()
            assert_same(play(env, sequence[stop : stop + 3]), rows)
            env.load_state_dict(state)
            env.step(sequence[stop])


@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1", "deep_sea/10", "pinpad/vec-3"])
def test_real_episodes_continue_bit_for_bit(name):
    with vector(name) as env, vector(name) as resumed:
        sequence = actions(80, 3, action_width(env.action))
        play(env, sequence[:37])
        resumed.load_state_dict(through_a_file(env.state_dict()))
        assert_same(play(env, sequence[37:]), play(resumed, sequence[37:]))


def test_an_episode_that_goes_another_way_is_truncated_with_one_warning(caplog):
    sequence = actions(20, 3)
    with vector(kwargs={"longest": 500}) as env, vector(kwargs={"longest": 500}) as resumed:
        last_seen = play(env, sequence[:5])[-1]
        state = env.state_dict()
        for saved in state["slots"][1:]:
            saved["obs"]["count"] += 1
        with caplog.at_level(logging.WARNING):
            resumed.load_state_dict(state)
        assert [record for record in caplog.records if "[1, 2]" in record.message] == caplog.records
        closing = resumed.step(sequence[5])
        np.testing.assert_array_equal(closing.last, [False, True, True])
        assert not closing.terminal.any() and not closing.first.any()
        np.testing.assert_array_equal(closing.reward, [5, 0, 0])
        np.testing.assert_array_equal(closing.obs["count"][:, 0], last_seen.obs["count"][:, 0] + [1, 1, 1])
        np.testing.assert_array_equal(resumed.step(sequence[6]).first, [False, True, True])


def test_an_episode_too_long_to_remember_is_truncated_after_loading(monkeypatch):
    monkeypatch.setattr(slots, "REMEMBERED_ACTIONS", 4)
    sequence = actions(20, 1)
    with vector(envs=1, kwargs={"longest": 500}) as env, vector(envs=1, kwargs={"longest": 500}) as resumed:
        play(env, sequence[:8])
        state = through_a_file(env.state_dict())
        assert state["slots"][0]["actions"] is None
        resumed.load_state_dict(state)
        closing, opening = play(resumed, sequence[8:10])
        assert closing.last[0] and not closing.terminal[0] and closing.obs["count"][0, 0] == 7
        assert opening.first[0] and not env.step(sequence[8]).last[0]


def test_a_state_of_another_number_of_environments_is_refused():
    with (
        vector(envs=2) as two,
        vector(envs=3) as three,
        pytest.raises(StoredDataError, match="2 environments, this one 3"),
    ):
        three.load_state_dict(two.state_dict())


def test_actions_of_the_wrong_shape_are_refused():
    with vector() as env, pytest.raises(ValueError, match=r"\(3, 2\), expected \(3, 3\)"):
        env.step(np.zeros((3, 2), np.float32))


def test_a_closure_registered_here_works_in_processes():
    longest = 4
    ENVIRONMENTS["closure"] = lambda: CountingEnv(longest)
    with vector("closure", mode="processes", envs=2) as env:
        assert all(step.obs["count"].max() <= longest for step in play(env, actions(20, 2)))


def test_what_cannot_be_sent_to_a_process_runs_inline_with_one_warning(caplog):
    file = io.TextIOWrapper(io.BytesIO())
    ENVIRONMENTS["stuck"] = lambda: (file, CountingEnv())[1]
    with caplog.at_level(logging.WARNING), vector("stuck", mode="processes") as env:
        assert env.step(actions(1, 3)[0]).first.all()
    assert sum("runs in this one" in record.message for record in caplog.records) == 1


def test_environments_with_different_spaces_are_refused_by_worker():
    made = iter([CountingEnv(), gymnasium.make("CartPole-v1")])
    ENVIRONMENTS["mixed"] = functools.partial(next, made)
    with pytest.raises(ConfigError, match="worker 1"), vector("mixed", envs=2):
        pass


def test_an_environment_that_reuses_its_buffer_does_not_change_earlier_rows():
    class Reusing(CountingEnv):
        def _observe(self):
            fresh = super()._observe()
            self.buffer = getattr(self, "buffer", fresh)
            for key, value in fresh.items():
                self.buffer[key][:] = value
            return self.buffer

    ENVIRONMENTS["reusing"] = Reusing
    with vector("reusing") as reusing, vector() as fresh:
        assert_same(play(reusing, actions(30, 3)), play(fresh, actions(30, 3)))


def test_pictures_come_from_inline_and_from_processes():
    for mode in ("inline", "processes"):
        with vector("CartPole-v1", mode=mode, envs=1) as env:
            env.step(actions(1, 1, 2)[0])
            picture = env.render()
        if picture is None:
            pytest.skip("this machine cannot draw CartPole")
        assert picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[-1] == 3
