"""Environments that a user registers: found by whatever name, in this process and in workers."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

import gymnasium
import numpy as np
import pytest

from reverie.env import ENVIRONMENTS, EnvOptions, make, make_vector, plugins
from reverie.env.registry import find
from reverie.errors import ConfigError

PLUGIN = """
import gymnasium
from neighbour import LENGTH
from reverie import ENVIRONMENTS

class Mine(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1, 1, (3,))
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        self.count = 0
        return self.observation_space.sample() * 0, {}

    def step(self, action):
        self.count += 1
        return self.observation_space.sample() * 0, 7.0, self.count == LENGTH, False, {}

ENVIRONMENTS["custom"] = Mine
gymnasium.register("Mine-v7", Mine)
"""


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """A file that registers ``custom`` and ``Mine-v7``; whatever it leaves in this process is undone."""
    monkeypatch.setattr("sys.path", [*sys.path])
    monkeypatch.setitem(ENVIRONMENTS, "custom", "overwritten:by_the_plugin")
    (tmp_path / "neighbour.py").write_text("LENGTH = 3\n")
    (tmp_path / "mine.py").write_text(PLUGIN)
    yield tmp_path / "mine.py"
    gymnasium.registry.pop("Mine-v7", None)
    for name in [name for name in sys.modules if name.startswith(("mine", "neighbour"))]:
        del sys.modules[name]
    plugins._load.cache_clear()


def rewards(options: EnvOptions) -> np.ndarray:
    """Of three steps of two environments."""
    envs = make_vector(options, 0, envs=2)
    try:
        return np.stack([envs.step(np.eye(2, dtype=np.float32)).reward for _ in range(3)])
    finally:
        envs.close()


@pytest.mark.parametrize("mode", ["inline", "processes"])
@pytest.mark.parametrize("name", ["custom", "Mine-v7"])
def test_a_plugin_file_is_imported_here_and_in_workers(plugin, name, mode):
    options = EnvOptions(name=name, mode=mode, plugins=[str(plugin)], restarts=0)
    assert rewards(options).tolist() == [[0, 0], [7, 7], [7, 7]]


@pytest.mark.parametrize("mode", ["inline", "processes"])
@pytest.mark.parametrize("name", ["mine:Mine", "mine:Mine-v7"])
def test_a_module_is_named_before_its_callable_or_its_id(plugin, monkeypatch, name, mode):
    monkeypatch.syspath_prepend(plugin.parent)
    assert rewards(EnvOptions(name=name, mode=mode, restarts=0)).tolist() == [[0, 0], [7, 7], [7, 7]]


def test_an_id_that_was_registered_in_python_is_known_in_workers():
    class Local(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(-1, 1, (3,))
        action_space = gymnasium.spaces.Discrete(2)

        def reset(self, *, seed=None, options=None):
            return np.zeros(3, np.float32), {}

        def step(self, action):
            return np.zeros(3, np.float32), 5.0, False, False, {}

    gymnasium.register("Local-v0", Local)
    try:
        assert rewards(EnvOptions(name="Local-v0", mode="processes", restarts=0))[1:].tolist() == [[5, 5], [5, 5]]
    finally:
        del gymnasium.registry["Local-v0"]


def test_an_installed_plugin_is_imported_and_a_broken_one_left_out(plugin, monkeypatch, caplog):
    monkeypatch.syspath_prepend(plugin.parent)
    for name, module in (("good", "mine"), ("bad", "nowhere")):
        folder = plugin.parent / f"{name}-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (folder / "entry_points.txt").write_text(f"[reverie.plugins]\n{name} = {module}\n")
    plugins._load_installed.cache_clear()
    try:
        assert make(EnvOptions(name="custom")).observation["vector"].shape == (3,)
    finally:
        plugins._load_installed.cache_clear()
    assert caplog.messages == [
        "the installed plugin nowhere is left out: ModuleNotFoundError: No module named 'nowhere'"
    ]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "FileNotFoundError"),
        ("raise ValueError('no')", "ValueError: no"),
        ("def", "SyntaxError"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
    ],
)
def test_a_plugin_that_cannot_be_imported_is_named(tmp_path, content, complaint):
    path = tmp_path / "broken.py"
    if content is not None:
        path.write_text(content)
    for _ in range(2):
        with pytest.raises(ConfigError, match=f"(?s)plugin '.*broken.py' cannot be imported: .*{complaint}"):
            make(EnvOptions(plugins=[str(path)]))


@pytest.mark.parametrize("name", [":", "a:", ":b", "..:x", ".a:b", "os:nothing", "os:sep", "\0:x", "a b:c", "raises:x"])
def test_an_odd_name_of_an_environment_is_a_mistake_of_the_user(tmp_path: Path, monkeypatch, name):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "raises.py").write_text(textwrap.dedent("1 / 0"))
    with pytest.raises(ConfigError, match="cannot be loaded"):
        find(name)


@pytest.mark.parametrize("name", ["/", "//", "a/", "/b", "dmc/", "ä", "a b", "CartPole", "CartPole-v99", "\n", "-v0"])
def test_a_name_that_nobody_knows_is_a_mistake_of_the_user(name):
    with pytest.raises(ConfigError):
        make(EnvOptions(name=name))
