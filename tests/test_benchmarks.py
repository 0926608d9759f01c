"""What the benchmarks rest on: workloads of known sizes, peers in environments of their own, an honest clock."""

from __future__ import annotations

import importlib
import sys
import time
from pathlib import Path
from subprocess import CompletedProcess
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def speed(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("speed")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS / "peers")
    return importlib.import_module("clock")


@pytest.mark.parametrize(
    ("workload", "parameters"), [("size1m", 639_316), ("mid", 9_612_820), ("image", 14_102_919), ("cartpole", 148_101)]
)
def test_workload_has_the_size_that_the_peers_are_built_at(
    speed: ModuleType, clock: ModuleType, monkeypatch: pytest.MonkeyPatch, workload: str, parameters: int
) -> None:
    peer = importlib.import_module("reverie_update")
    monkeypatch.setattr(peer, "set_up", lambda *_: None)  # it would change this whole process
    agent = peer.make_agent(speed.describe(speed.WORKLOADS[workload], threads=1, seconds=0))
    assert peer.count(agent) == parameters


def test_update_is_measured_in_a_process_of_its_own(speed: ModuleType) -> None:
    small = ("replay.batch_size=4", "replay.length=4", "agent.starts=2", "agent.horizon=2")
    task = speed.describe(speed.WORKLOADS["cartpole"], threads=1, seconds=0, changes=small)
    answer = speed.run(speed.program_of("reverie"), task)
    assert len(answer["milliseconds"]) == 1
    assert answer["milliseconds"][0] > 0
    assert answer["parameters"] == 148_101
    assert answer["megabytes"] > 50


def test_failure_of_a_contestant_ends_the_benchmark_with_its_error(speed: ModuleType) -> None:
    task = speed.describe(speed.WORKLOADS["cartpole"], threads=1, seconds=0)
    with pytest.raises(SystemExit, match="no memory left"):
        speed.run([sys.executable, "-c", "raise SystemExit('no memory left')"], task)


@pytest.mark.parametrize(("seconds", "count"), [(0.0, 1), (1.0, 2), (1.2, 3)])
def test_clock_repeats_until_the_time_is_over(
    clock: ModuleType, monkeypatch: pytest.MonkeyPatch, seconds: float, count: int
) -> None:
    now = iter(0.5 * tick for tick in range(100))  # every look at the clock is half a second later
    monkeypatch.setattr(time, "perf_counter", lambda: next(now))
    calls: list[None] = []
    assert clock.times_of(lambda: calls.append(None), seconds) == [500.0] * count
    assert len(calls) == count


def test_summary_is_over_all_processes(speed: ModuleType) -> None:
    answers = [
        {"milliseconds": [9.0, 1.0], "megabytes": 200.4, "parameters": 7},
        {"milliseconds": [3.0], "megabytes": 300.4, "parameters": 7},
    ]
    assert speed.summary(answers) == {
        "milliseconds": 3.0,
        "fastest": 1.0,
        "megabytes": 300,
        "parameters": 7,
        "updates": 3,
    }


def test_peer_is_installed_once_and_again_when_its_requirements_change(
    speed: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made: list[Path] = []

    def create(folder: Path, **_: bool) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        made.append(folder)

    monkeypatch.setattr(speed, "INSTALLED", tmp_path / "installed")
    monkeypatch.setattr(speed, "SCRIPTS", tmp_path)
    monkeypatch.setattr(speed.venv, "create", create)
    monkeypatch.setattr(speed.subprocess, "run", lambda command: CompletedProcess(command, 0))
    for requirements, times in (("a==1", 1), ("a==1", 1), ("a==2", 2)):
        (tmp_path / "peer.txt").write_text(requirements)
        speed.install("peer")
        assert len(made) == times


def test_peer_that_could_not_be_installed_is_tried_again(
    speed: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "peer.txt").write_text("a==1")
    monkeypatch.setattr(speed, "INSTALLED", tmp_path / "installed")
    monkeypatch.setattr(speed, "SCRIPTS", tmp_path)
    monkeypatch.setattr(speed.venv, "create", lambda folder, **_: folder.mkdir(parents=True, exist_ok=True))
    monkeypatch.setattr(speed.subprocess, "run", lambda command: CompletedProcess(command, 1))
    for _ in range(2):
        with pytest.raises(SystemExit, match="peer could not be installed"):
            speed.install("peer")
