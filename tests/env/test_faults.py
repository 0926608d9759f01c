"""Environments that die, hang, raise or lie: the others lose nothing, and nothing bad reaches a row."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reverie.env import EnvOptions, make_vector, spaces_of
from reverie.env.worker import summary
from reverie.errors import ConfigError, EnvironmentFailure
from tests.counting import CountingEnv

ACTION = np.eye(3, dtype=np.float32)[[1, 1]]

LIES = {
    "nan": "'count' holds NaN",
    "shape": r"'count' has shape \(2,\), expected \(1,\)",
    "dtype": "'count' has dtype <U5, expected float32",
    "none": "'count' has dtype object, expected float32",
    "missing": r"has the keys \['count'\], expected \['action', 'count', 'episode'\]",
    "extra": r"has the keys \['action', 'count', 'episode', 'more'\]",
    "text reward": r"reward is 'a lot' \(str\)",
    "huge reward": r"reward is 1e\+300",
}


@contextlib.contextmanager
def vector(mode: str, envs: int = 2, *, longest: int = 500, step_timeout: float = 60.0, restarts: int = 5, **kwargs):
    options = EnvOptions(
        name="counting",
        mode=mode,
        restarts=restarts,
        step_timeout=step_timeout,
        kwargs={"longest": longest, **kwargs},
    )
    made = make_vector(options, seed=3, envs=envs)
    try:
        yield made
    finally:
        made.close()


def play(mode: str, steps: int, envs: int = 2, **options):
    with vector(mode, envs, **options) as env:
        return [env.step(ACTION[:envs]) for _ in range(steps)]


def assert_one_is_truncated(steps, failing: int, at: int):
    """The failing environment repeats its last row once and begins anew; the other one goes on counting."""
    other = 1 - failing
    before, closing, opening = steps[at - 1], steps[at], steps[at + 1]
    assert closing.last[failing] and not closing.terminal[failing] and not closing.first[failing]
    assert closing.reward[failing] == 0
    for key in closing.obs:
        np.testing.assert_array_equal(closing.obs[key][failing], before.obs[key][failing])
    assert opening.first[failing] and opening.obs["count"][failing, 0] == 0
    np.testing.assert_array_equal([step.obs["count"][other, 0] for step in steps], np.arange(len(steps)))
    assert all(np.isfinite(value).all() for step in steps for value in step.obs.values())


def failing_number(steps, at: int) -> int:
    (failing,) = np.flatnonzero(steps[at].last)
    return int(failing)


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_never_reaches_a_row_and_is_explained(lie, tmp_path, caplog):
    with caplog.at_level(logging.WARNING), vector("inline", fault=lie, when=3, once=str(tmp_path / "done")) as env:
        steps = [env.step(ACTION) for _ in range(6)]
    assert_one_is_truncated(steps, failing_number(steps, 3), 3)
    (record,) = caplog.records
    assert record.message.startswith("counting, worker 0, episode 0 (seed ") and "step 2" in record.message
    with pytest.raises(EnvironmentFailure, match=LIES[lie]):
        play("inline", steps=4, fault=lie, restarts=0)


@pytest.mark.parametrize("mode", ["inline", "processes"])
def test_an_exception_in_step_truncates_only_that_episode(mode, tmp_path, caplog):
    with caplog.at_level(logging.DEBUG), vector(mode, fault="step", when=3, once=str(tmp_path / "done")) as env:
        steps = [env.step(ACTION) for _ in range(6)]
    assert_one_is_truncated(steps, failing_number(steps, 3), 3)
    assert any("RuntimeError: step went wrong" in record.message for record in caplog.records)
    assert any("_misbehave" in record.message for record in caplog.records if record.levelno == logging.DEBUG)


@pytest.mark.parametrize("mode", ["inline", "processes"])
@pytest.mark.parametrize("fault", ["init", "reset"])
def test_an_exception_before_an_episode_is_mended_without_a_trace(fault, mode, tmp_path):
    with vector(mode, envs=1, fault=fault, once=str(tmp_path / "done")) as env:
        steps = [env.step(ACTION[:1]) for _ in range(3)]
    assert steps[0].first[0] and not any(step.last[0] for step in steps)


@pytest.mark.parametrize("fault", ["die", "quit", "hang"])
def test_a_worker_that_dies_or_hangs_in_a_step_is_replaced(fault, tmp_path):
    with vector("processes", fault=fault, when=3, once=str(tmp_path / "done"), step_timeout=1.5) as env:
        steps = [env.step(ACTION) for _ in range(6)]
    assert_one_is_truncated(steps, failing_number(steps, 3), 3)


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGSTOP])
def test_a_worker_that_is_killed_or_stopped_from_outside_is_replaced(sent):
    with vector("processes", step_timeout=1.5) as env:
        steps = [env.step(ACTION) for _ in range(3)]
        os.kill(env.slots[1].place.process.pid, sent)
        steps += [env.step(ACTION) for _ in range(3)]
    assert_one_is_truncated(steps, 1, 3)


def test_a_worker_is_not_blamed_for_a_pause_of_everything(tmp_path):
    player = run_script(
        tmp_path,
        "    options = EnvOptions(name='CartPole-v1', mode='processes', step_timeout=1.2)\n"
        "    env = make_vector(options, 0, envs=1)\n"
        "    worker = env.slots[0].place.process.pid\n"
        "    print(worker, flush=True)\n"
        "    while not Path(__file__).with_name('enough').exists():\n"
        "        env.step(np.eye(2, dtype=np.float32)[:1])\n"
        "    print(len(env.slots[0].failures), env.slots[0].place.process.pid == worker)\n"
        "    env.close()\n",
    )
    worker = int(player.stdout.readline())
    for pid, sent in ((player.pid, signal.SIGSTOP), (worker, signal.SIGSTOP)):
        os.kill(pid, sent)
    time.sleep(2.0)
    for pid in (worker, player.pid):
        os.kill(pid, signal.SIGCONT)
    time.sleep(0.5)
    (tmp_path / "enough").touch()
    assert player.communicate(timeout=60)[0].split() == ["0", "True"]


@pytest.mark.parametrize("mode", ["inline", "processes"])
@pytest.mark.parametrize("fault", ["reset", "step"])
def test_an_environment_that_always_fails_ends_with_its_name_worker_seed_and_step(fault, mode):
    expected = rf"counting, worker 0, episode \d+ \(seed \d+\), step \d: RuntimeError: {fault} went wrong; 3 failures"
    with pytest.raises(EnvironmentFailure, match=expected):
        play(mode, steps=20, envs=1, restarts=2, fault=fault)


@pytest.mark.parametrize(
    ("message", "advised"),
    [
        ("an OpenGL platform library has not been loaded into this process", True),
        ("Cannot initialize a EGL device display", True),
        ("'NoneType' object has no attribute 'eglQueryString'", True),
        ("'NoneType' object has no attribute 'glGetError'", True),
        ("gladLoadGL error", True),
        ("the global state is wrong, neglect it", False),
    ],
)
def test_missing_graphics_are_named(message, advised):
    assert ("MUJOCO_GL" in summary(RuntimeError(message))) == advised


def leave(*_: Any, **__: Any) -> Any:
    """As a game does whose window was closed."""
    sys.exit(3)


def interrupt(*_: Any, **__: Any) -> Any:
    """As Ctrl-C does, wherever the program is."""
    raise KeyboardInterrupt


@pytest.mark.parametrize("where", ["__init__", "reset", "step"])
def test_an_environment_in_this_process_cannot_end_it(where, monkeypatch):
    monkeypatch.setattr(CountingEnv, where, leave)
    monkeypatch.setattr(CountingEnv, "close", leave)
    with pytest.raises(EnvironmentFailure, match="SystemExit: 3"):
        play("inline", steps=2, envs=1, restarts=0)
    monkeypatch.setattr(CountingEnv, where, interrupt)
    with pytest.raises(KeyboardInterrupt):
        play("inline", steps=2, envs=1)


@pytest.mark.parametrize("raised", [RuntimeError, SystemExit])
def test_an_environment_that_only_tells_its_spaces_may_fail_as_well(raised, monkeypatch):
    def fail(*_: Any, **__: Any) -> Any:
        raise raised("no licence")

    options = EnvOptions(name="counting")
    assert set(spaces_of(options)[0]) == {"count", "episode", "action"}
    monkeypatch.setattr(CountingEnv, "__init__", fail)
    with pytest.raises(EnvironmentFailure, match="no licence"):
        spaces_of(options)


@pytest.mark.parametrize("mode", ["inline", "processes"])
def test_what_cannot_be_made_twice_alike_is_not_tried_again(mode, caplog):
    with caplog.at_level(logging.WARNING), pytest.raises(EnvironmentFailure) as raised:
        play(mode, steps=1, envs=1, fault="init")
    assert str(raised.value) == "counting cannot be made, as two attempts have shown: RuntimeError: init went wrong"
    assert len(caplog.records) == 1


def test_old_failures_are_forgiven(monkeypatch, tmp_path):
    monkeypatch.setattr("reverie.env.slot.BUDGET_SECONDS", 0.0)
    with vector("inline", envs=1, restarts=1, fault="step", when=1) as env:
        steps = [env.step(ACTION[:1]) for _ in range(9)]
    assert [bool(step.last[0]) for step in steps] == [False, True] * 4 + [False]


def test_an_episode_whose_worker_fails_on_the_way_back_is_truncated(tmp_path):
    done = tmp_path / "done"
    with vector("inline", envs=1) as env, vector("inline", envs=1, fault="step", when=2, once=str(done)) as resumed:
        before = [env.step(ACTION[:1]) for _ in range(5)][-1]
        resumed.load_state_dict(env.state_dict())
        closing, opening = resumed.step(ACTION[:1]), resumed.step(ACTION[:1])
    assert done.exists() and closing.last[0] and not closing.terminal[0] and opening.first[0]
    np.testing.assert_array_equal(closing.obs["count"], before.obs["count"])


def test_a_users_mistake_in_a_worker_is_reported_at_once_as_one():
    options = EnvOptions(name="counting", mode="processes", obs_dim=779)
    with pytest.raises(ConfigError, match="obs_dim is 779, but counting has 3"):
        make_vector(options, seed=0, envs=1)


def test_closing_ends_workers_that_hang_and_everything_they_started(tmp_path):
    with vector("processes") as env:
        env.step(ACTION)
        workers = [slot.place.process for slot in env.slots]
        os.kill(workers[0].pid, signal.SIGSTOP)
        env.slots[1].send(ACTION[1])
    assert not any(worker.is_alive() for worker in workers)


def test_workers_end_with_a_parent_that_is_killed(tmp_path):
    parent = run_script(
        tmp_path,
        "    env = make_vector(EnvOptions(name='CartPole-v1', mode='processes'), 0, envs=2)\n"
        "    print(*[slot.place.process.pid for slot in env.slots], flush=True)\n"
        "    time.sleep(100)\n",
    )
    workers = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(workers) == 2 and all(is_running(pid) for pid in workers)
    parent.kill()
    parent.wait()
    for _ in range(100):
        if not any(is_running(pid) for pid in workers):
            break
        time.sleep(0.1)
    assert not any(is_running(pid) for pid in workers)


def test_an_environment_in_a_process_computes_with_one_thread(tmp_path):
    body = """
    import os
    from types import SimpleNamespace
    import cloudpickle
    from reverie.env.worker import Worker

    def build(seed):
        import torch
        return SimpleNamespace(observation=torch.get_num_threads(), action=None, notes=[], close=lambda: None)

    worker = Worker(cloudpickle.dumps(build), 0, "one")
    worker.send("describe")
    print(worker.receive(60.0)[0], os.environ["OMP_NUM_THREADS"])
    worker.release()
    worker.stop(time.monotonic() + 10)
"""
    program = run_script(tmp_path, body, OMP_NUM_THREADS="2")
    assert program.communicate(timeout=60)[0].split() == ["1", "2"]


def run_script(folder: Path, body: str, **settings: str) -> Any:
    """A program of its own that plays; its output can be read."""
    head = (
        "import time\nfrom pathlib import Path\nimport numpy as np\nfrom reverie.env import EnvOptions, make_vector\n"
    )
    (folder / "play.py").write_text(f"{head}if __name__ == '__main__':\n{body}")
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])} | settings
    return subprocess.Popen([sys.executable, folder / "play.py"], stdout=subprocess.PIPE, text=True, env=environment)


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return True
