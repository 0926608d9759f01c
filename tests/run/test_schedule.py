from __future__ import annotations

import os
import signal
from fractions import Fraction

import pytest

from reverie.run.schedule import Every, Interruption, TrainRatio


@pytest.mark.parametrize(
    ("per_step", "updates"),
    [
        (Fraction(512, 1024), [1, 0, 1, 0, 1, 0]),
        (Fraction(2), [1, 2, 2, 2]),
        (Fraction(1), [1, 1, 1]),
        (Fraction(1, 4), [1, 0, 0, 0, 1, 0]),
    ],
)
def test_updates_keep_their_ratio_to_steps(per_step, updates):
    due = TrainRatio(per_step)
    assert [due(step) for step in range(len(updates))] == updates


def test_a_small_ratio_is_due_every_32_steps():
    due = TrainRatio(Fraction(32, 1024))
    assert [step for step in range(100) if due(step)] == [0, 32, 64, 96]


def test_counting_starts_when_training_does_and_owes_nothing_for_before():
    due = TrainRatio(Fraction(1))
    assert due(1000) == 1 and due(1001) == 1


def test_several_environments_step_at_once():
    due = TrainRatio(Fraction(1, 4))
    assert [due(step) for step in range(0, 48, 8)] == [1, 2, 2, 2, 2, 2]


@pytest.mark.parametrize(
    "per_step", [Fraction(1, 10), Fraction(3, 10), Fraction(1, 3), Fraction(7, 10), Fraction(33, 10)]
)
def test_an_uneven_ratio_neither_loses_nor_gains_updates_though_it_is_stored_again_and_again(per_step):
    due, updates = TrainRatio(per_step), []
    for step in range(3001):
        stored = due.state()
        due = TrainRatio(per_step)
        due.load_state(stored)
        updates.append(due(step))
    assert all(sum(updates[: step + 1]) == 1 + int(step * per_step) for step in range(3001))


def test_another_ratio_counts_from_where_training_is():
    due = TrainRatio(Fraction(1, 4))
    assert [due(step) for step in range(3)] == [1, 0, 0]
    later = TrainRatio(Fraction(1))
    later.load_state(due.state())
    assert [later(step) for step in range(3, 6)] == [3, 1, 1]


def test_every_fires_once_per_multiple_that_is_passed():
    every = Every(10)
    assert [every(step, step + 4) for step in range(0, 24, 4)] == [False, False, True, False, True, False]
    assert not Every(0)(0, 100)


@pytest.fixture
def handlers():
    """Handlers as a program has them that nobody started in the background; afterwards, as they were."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    for number in before:
        signal.signal(number, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_the_first_signal_is_a_wish_and_the_handlers_come_back(number, code):
    with Interruption() as interruption:
        assert interruption.exit_code == 0 and not interruption.wished()
        os.kill(os.getpid(), number)
        assert interruption.exit_code == code and interruption.wished()
    assert signal.getsignal(number) is signal.SIG_DFL


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize(("second", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, None)])
def test_a_second_signal_ends_the_process_unless_it_comes_from_a_terminal_that_closes(second, code, monkeypatch):
    ended = []
    monkeypatch.setattr(os, "_exit", ended.append)
    with Interruption() as interruption:
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), second)
        assert interruption.exit_code == 129
    assert ended == ([] if code is None else [code])


@pytest.mark.usefixtures("handlers")
def test_a_signal_that_was_ignored_stays_ignored():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    with Interruption() as interruption:
        os.kill(os.getpid(), signal.SIGHUP)
        assert not interruption.wished()
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


@pytest.mark.usefixtures("handlers")
def test_a_handler_that_an_environment_sets_does_not_last():
    with Interruption() as interruption:
        signal.signal(signal.SIGINT, lambda number, frame: pytest.fail("the environment's handler was called"))
        assert not interruption.wished()
        os.kill(os.getpid(), signal.SIGINT)
        assert interruption.exit_code == 130
    assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
