"""Environments that draw from the global generators: no copies of each other, the same rows anywhere, no trace."""

from __future__ import annotations

import random

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from reverie.env import ENVIRONMENTS, EnvOptions, make_vector
from tests.env.test_faults import run_script
from tests.env.test_vector import assert_same, play, through_a_file

STEPS = np.zeros((30, 3, 1), np.float32)


def draw() -> list[float]:
    """A number of each global generator, and normals, of which they make two and hold one back."""
    return [random.random(), np.random.random(), torch.rand(()).item(), random.gauss(0, 1), np.random.normal()]


class Draws(gymnasium.Env):
    """Shows what it draws: when it is made, when an episode begins, and in two steps of three."""

    observation_space = spaces.Dict({key: spaces.Box(-9, 9, (5,)) for key in ("made", "begun", "now")})
    action_space = spaces.Box(-1, 1, (1,))

    def __init__(self, fail: int = 0):
        self.made, self.fail = draw(), fail

    def reset(self, *, seed=None, options=None):
        self.count, self.begun, self.now = 0, draw(), [0.0] * 5
        return self.show(), {}

    def step(self, action):
        self.count += 1
        if self.count == self.fail:
            raise RuntimeError("a failure")
        self.now = draw() if self.count % 3 else self.now
        return self.show(), self.now[0], False, random.random() < 0.1, {}

    def show(self):
        return {"made": self.made, "begun": self.begun, "now": self.now}


@pytest.fixture
def vector():
    """A function that makes environments, which the end of the test closes."""
    ENVIRONMENTS["draws"], made = Draws, []

    def make(seed: int = 7, mode: str = "inline", envs: int = 3, **options):
        made.append(make_vector(EnvOptions(name="draws", mode=mode, **options), seed, envs=envs))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.mark.parametrize("mode", ["inline", "processes"])
def test_no_two_draws_are_alike_among_workers_episodes_and_seeds(mode, vector):
    """Evaluation has another seed than training."""
    ends = play(vector(1, mode), STEPS)[-1], play(vector(2, mode), STEPS)[-1]
    for key in ("made", "begun"):
        drawn = np.concatenate([step.obs[key].ravel() for step in ends])
        assert len(np.unique(drawn)) == drawn.size
    for step in ends:
        drawn = np.concatenate([step.obs[key].ravel() for key in ("made", "begun")])
        assert len(np.unique(drawn)) == drawn.size


def test_an_environment_draws_the_same_whoever_else_is_played(vector):
    alone = play(vector(envs=1), STEPS[:, :1])
    among = play(vector(envs=3), STEPS)
    for one, other in zip(alone, among, strict=True):
        assert one.obs["now"].tolist() == other.obs["now"][:1].tolist()


@pytest.mark.parametrize("mode", ["inline", "processes"])
def test_a_loaded_state_continues_with_the_same_rows(mode, vector):
    for stop in (2, 13, 17):
        env, resumed = vector(mode=mode), vector(seed=99, mode=mode)
        play(env, STEPS[:stop])
        resumed.load_state_dict(through_a_file(env.state_dict()))
        assert_same(play(env, STEPS[stop:]), play(resumed, STEPS[stop:]))


def test_one_that_is_started_again_draws_anew_and_a_loaded_state_knows_it(vector):
    env, resumed = (vector(envs=1, kwargs={"fail": 4}) for _ in range(2))
    steps = play(env, STEPS[:12, :1])
    made = [step.obs["made"][0].tolist() for step in steps if step.first[0]]
    assert len(made) >= 2 and made[0] != made[-1]
    resumed.load_state_dict(through_a_file(env.state_dict()))
    assert_same(play(env, STEPS[12:15, :1]), play(resumed, STEPS[12:15, :1]))


PROGRAM = """
    import random, torch
    from reverie.env import ENVIRONMENTS
    from tests.env.test_generators import Draws, STEPS
    from tests.env.test_vector import assert_same, play

    ENVIRONMENTS["draws"] = Draws
    inline, processes = (
        make_vector(EnvOptions(name="draws", mode=mode), 7, envs=3) for mode in ("inline", "processes")
    )
    assert_same(play(inline, STEPS), play(processes, STEPS))

    def seed():
        random.seed(3), np.random.seed(3), torch.manual_seed(3)

    def numbers():
        return [random.random(), np.random.random(), torch.rand(()).item(), random.gauss(0, 1)]

    def play_between():
        yield
        env = make_vector(EnvOptions(name="draws", mode="inline"), 7, envs=3)
        yield
        for action in STEPS[:5]:
            yield env.step(action)
        yield env.load_state_dict(env.state_dict())
        yield env.close()

    seed()
    expected = [numbers() for _ in range(9)]
    seed()
    assert [numbers() for _ in play_between()] == expected
    print("done")
    inline.close()
    processes.close()
"""


def test_processes_give_the_same_rows_as_inline_and_the_callers_generators_go_on_undisturbed(tmp_path):
    """In a program of its own: those who check types in tests draw from Python's generator as well."""
    assert run_script(tmp_path, PROGRAM).communicate(timeout=120)[0].split() == ["done"]


def test_what_an_environment_seeds_itself_stays_its_own(vector):
    class Seeds(Draws):
        def reset(self, *, seed=None, options=None):
            np.random.seed(5)
            torch.manual_seed(5)
            return super().reset()

    ENVIRONMENTS["draws"] = Seeds
    first, *_ = steps = play(vector(), STEPS[:3])
    for column in (1, 2, 4):
        for key in ("begun", "now"):
            assert len({*steps[1].obs[key][:, column].tolist()}) == 1
    assert first.obs["begun"][0, 1] == np.float32(np.random.RandomState(5).random())
