"""Each suite through the registry: what it shows, and that a seed and actions determine an episode."""

from __future__ import annotations

import json
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from reverie.env import ENVIRONMENTS, EnvOptions, make, make_vector, with_protocol
from reverie.errors import ConfigError
from reverie.types import ObservationSpec, action_width

CONFIGS = Path(__file__).parents[2] / "reverie" / "presets"

SYMBOLS = {"grid": ((1617,), "float32"), "direction": ((4,), "float32"), "mission": ((64,), "uint8", 0, "text")}
SUITES = {
    "CartPole-v1": ("gymnasium", {"vector": ((4,), "float32")}, 2),
    "Pendulum-v1": ("gymnasium", {"vector": ((3,), "float32")}, 1),
    "atari/pong": ("ale_py", {"image": ((96, 96, 1), "uint8")}, 18),
    "atari100k/ms_pacman": ("ale_py", {"image": ((64, 64, 3), "uint8")}, 9),
    "ALE/Pong-v5": ("ale_py", {"image": ((210, 160, 3), "uint8")}, 6),
    "crafter": ("crafter", {"image": ((64, 64, 3), "uint8")}, 17),
    "deep_sea/10": ("gymnasium", {"vector": ((10, 10), "float32")}, 2),
    "dmc/walker_walk": (
        "dm_control",
        {"height": ((), "float32"), "orientations": ((14,), "float32"), "velocity": ((9,), "float32")},
        6,
    ),
    "dmc/ball_in_cup_catch": ("dm_control", {"position": ((4,), "float32"), "velocity": ((4,), "float32")}, 2),
    "highway": ("highway_env", {"vector": ((779,), "float32")}, 5),
    "minigrid/DoorKey-5x5": ("minigrid", SYMBOLS, 7),
    "MiniGrid-DoorKey-5x5-v0": ("minigrid", SYMBOLS, 7),
    "BabyAI-GoToLocal-v0": ("minigrid", SYMBOLS, 7),
    "pinpad/vec-3": (
        "gymnasium",
        {
            "cell": ((49,), "float32"),
            "pad": ((4,), "float32"),
            "history": ((12,), "float32"),
            "countdown": ((11,), "float32"),
        },
        5,
    ),
    "senses/5": (
        "gymnasium",
        {
            "body": ((3,), "float32"),
            "picture": ((28, 28, 3), "uint8"),
            "sound": ((800,), "int16", 0, "audio", 8000.0),
            "text": ((32,), "uint8", 0, "text"),
        },
        6,
    ),
}

ALIKE = {"deep_sea/10"}
"""Without chance: every seed begins the same episode."""

SMALLER = {"crafter": {"area": [24, 24]}, "highway": {"config": {"vehicles_count": 4}}}
"""Worlds that are made faster."""


@pytest.mark.parametrize("name", SUITES)
def test_a_suite_shows_what_it_promises_and_repeats_itself(name, capfd):
    package, expected, width = SUITES[name]
    pytest.importorskip(package, reason=f"{package} is not installed")
    env = make(EnvOptions(name=name, kwargs=SMALLER.get(name, {})))
    assert env.observation == {key: ObservationSpec(*spec) for key, spec in expected.items()}
    assert action_width(env.action) == width
    sequence = np.random.default_rng(0).normal(size=(8, width)).astype(np.float32)

    def episode(seed: int):
        return [env.reset(seed)] + [env.step(action)[0] for action in sequence]

    first, other, again = episode(1), episode(2), episode(1)
    for one, two in zip(first, again, strict=True):
        for key, spec in env.observation.items():
            assert one[key].shape == spec.shape and one[key].dtype == spec.dtype
            np.testing.assert_array_equal(one[key], two[key])
    differs = any(not np.array_equal(one[key], two[key]) for one, two in zip(first, other, strict=True) for key in one)
    assert differs == (name not in ALIKE)
    env.close()
    assert "rejected" not in capfd.readouterr().out


def test_every_suite_is_tested():
    needs_graphics = {"dmc_pixels"}
    assert {name.partition("/")[0] for name in SUITES} >= ENVIRONMENTS.keys() - needs_graphics - {"counting"}


def test_minigrid_can_be_seen_as_pixels():
    pytest.importorskip("minigrid", reason="minigrid is not installed")
    env = make(EnvOptions(name="minigrid/DoorKey-5x5", one_hot=False, kwargs={"pixels": True}))
    assert env.observation["image"] == ObservationSpec((56, 56, 3), "uint8")
    assert env.observation["direction"] == ObservationSpec((), "int64", 4)


def test_a_cell_of_minigrid_is_as_large_as_asked():
    pytest.importorskip("minigrid")
    kwargs = {"pixels": True, "tile": 4}
    assert make(EnvOptions(name="minigrid/Fetch-5x5-N2", kwargs=kwargs)).observation["image"].shape == (28, 28, 3)
    with pytest.raises(ConfigError, match=r"env.kwargs.tile = 2: should be at least 3 pixels"):
        make(EnvOptions(name="minigrid/Fetch-5x5-N2", kwargs=kwargs | {"tile": 2}))


@pytest.mark.parametrize("error", [AttributeError("no glGetError"), ImportError("no EGL"), RuntimeError("not GL")])
def test_a_machine_that_cannot_draw_is_told_so_and_what_to_set(error, monkeypatch):
    pytest.importorskip("dm_control", reason="dm_control is not installed")

    def render(self):
        raise error

    monkeypatch.setenv("MUJOCO_GL", "egl")
    monkeypatch.setattr("reverie.env.dm_control.Control.__init__", lambda self, *_: None)
    monkeypatch.setattr("reverie.env.dm_control.Control.render", render)
    with pytest.raises(ConfigError, match="MUJOCO_GL=egl .*; set MUJOCO_GL to egl .*, osmesa .* or glfw"):
        make(EnvOptions(name="dmc_pixels/walker_walk"))


def test_a_protocol_fills_only_what_was_left_open():
    options = with_protocol(EnvOptions(name="atari/pong", size=64, kwargs={"noops": 0}))
    assert (options.repeat, options.frame_pool, options.size, options.grayscale) == (4, True, 64, True)
    assert options.kwargs == {"noops": 0} and with_protocol(options) == options
    assert with_protocol(EnvOptions(name="atari100k/pong")).kwargs == {"sticky": 0.0, "all_actions": False}
    assert with_protocol(EnvOptions()).repeat == 1


@pytest.mark.parametrize(
    ("name", "similar"),
    [("CartPol-v1", "CartPole-v1"), ("cartpole-v1", "CartPole-v1"), ("craftr", "crafter"), ("countin", "counting")],
)
def test_an_unknown_name_is_answered_with_the_nearest(name, similar):
    with pytest.raises(ConfigError, match=f"unknown environment '{name}'; did you mean '{similar}'?"):
        make(EnvOptions(name=name))


@pytest.mark.parametrize(
    ("name", "package", "similar"),
    [
        ("minigrid/DoorKy-5x5", "minigrid", "MiniGrid-DoorKey-5x5-v0"),
        ("atari/pongg", "ale_py", "ALE/Pong-v5"),
        ("dmc/walker_wlk", "dm_control", "walker_walk"),
        ("pinpad/thre", "gymnasium", "three"),
    ],
)
def test_an_unknown_task_is_answered_with_the_nearest(name, package, similar):
    pytest.importorskip(package, reason=f"{package} is not installed")
    with pytest.raises(ConfigError, match=f"did you mean '{similar}'?"):
        make(EnvOptions(name=name))


@pytest.mark.parametrize("name", ["no_such_module:create", "json:no_such_function", "zzzzzzzzzz"])
def test_what_resembles_nothing_is_answered_with_the_ways_to_write_it(name):
    with pytest.raises(ConfigError, match="module:callable"):
        make(EnvOptions(name=name))


def test_a_missing_package_names_the_extra(monkeypatch):
    for name, package, extra in (("crafter", "crafter", "crafter"), ("ALE/Pong-v5", "ale_py", "atari")):
        monkeypatch.setitem(__import__("sys").modules, package, None)
        with pytest.raises(ConfigError, match=rf"pip install 'reverie\[{extra}\]'"):
            make(EnvOptions(name=name))


def test_a_custom_factory_gets_the_kwargs_and_a_dotted_one_is_loaded():
    env = make(EnvOptions(name="counting", kwargs={"longest": 3}))
    assert list(env.observation) == ["action", "count", "episode"]
    assert make(EnvOptions(name="tests.counting:create_counting")).observation == env.observation


def test_sizes_that_disagree_name_both_values():
    with pytest.raises(ConfigError, match="obs_dim is 779, but CartPole-v1 has 4; set obs_dim to 4"):
        make(EnvOptions(obs_dim=779, action_dim=2))
    with pytest.raises(ConfigError, match="action_dim is 5, but CartPole-v1 has 2"):
        make(EnvOptions(obs_dim=4, action_dim=5))
    make(EnvOptions(obs_dim=4, action_dim=2)).close()


def test_keyword_arguments_that_do_not_fit_are_refused_at_once():
    with pytest.raises(ConfigError, match=r"CartPole-v1 cannot be made with env\.kwargs = \{'wheels': 3\}: .*wheels"):
        make(EnvOptions(name="CartPole-v1", kwargs={"wheels": 3}))


class Old:
    """An environment of the older interface, without spaces."""

    def reset(self):
        self.count = 0
        return np.zeros(3)

    def step(self, action: int):
        self.count += 1
        over = self.count == 4
        return np.full(3, action), 1, over, {"TimeLimit.truncated": over}

    def close(self):
        pass


def test_an_older_environment_without_spaces_takes_them_from_the_options():
    ENVIRONMENTS["old"] = Old
    with pytest.raises(ConfigError, match="set obs_dim and action_dim"):
        make(EnvOptions(name="old"))
    vector = make_vector(EnvOptions(name="old", mode="inline", obs_dim=3, action_dim=5), seed=0, envs=1)
    steps = [vector.step(np.eye(5, dtype=np.float32)[[3]]) for _ in range(5)]
    assert steps[1].obs["vector"].tolist() == [[3, 3, 3]] and steps[4].last[0] and not steps[4].terminal[0]


def test_a_float64_space_is_shown_as_float32():
    class Doubles(gymnasium.Env):
        observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float64)
        action_space = spaces.Box(-1, 1, (1,), np.float64)

        def reset(self, *, seed=None, options=None):
            return np.array([1e-3, 2.0]), {}

    ENVIRONMENTS["doubles"] = Doubles
    assert make(EnvOptions(name="doubles")).reset(0)["vector"].dtype == np.float32


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.json")), ids=lambda path: path.stem)
def test_the_environment_of_every_shipped_configuration_is_valid(path):
    config = json.loads(path.read_text())
    section = {key: value for key, value in config.get("env", {}).items() if not key.startswith("$")}
    options = EnvOptions(**section)
    assert options.name
    if path.stem == "highway":
        pytest.importorskip("highway_env", reason="highway_env is not installed")
        assert (config["obs_dim"], config["action_dim"]) == (779, 5)
        make(options.model_copy(update={"obs_dim": 779, "action_dim": 5})).close()


def test_atari_is_heard_frame_by_frame_and_silent_before_the_first_one():
    pytest.importorskip("ale_py")
    env = make(EnvOptions(name="atari/pong", kwargs={"sound_obs": True, "noops": 0}))
    assert env.observation["sound"] == ObservationSpec((2048,), "uint8", rate=30_720.0)
    assert env.observation["image"].shape == (96, 96, 1)
    assert (env.reset(0)["sound"] == 128).all()
    serve = np.eye(18, dtype=np.float32)[1]
    heard = np.stack([env.step(serve)[0]["sound"] for _ in range(100)])
    assert heard.min() == 128 and len(np.unique(heard)) > 1
    loud = (heard.reshape(-1, 4, 512) != 128).any(-1)
    assert (
        0 < loud.sum() < loud.size and loud[:, 0].any() and loud[:, 3].any()
    )  # every frame is heard, not the last alone
    env.close()
