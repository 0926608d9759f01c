from __future__ import annotations

import os
import signal

import pytest

from reverie.run.clock import Every, Interruption, Ratio


@pytest.mark.parametrize(
    ("ratio", "updates"),
    [(512 / 1024, [1, 0, 1, 0, 1, 0]), (2.0, [1, 2, 2, 2]), (1.0, [1, 1, 1]), (0.25, [1, 0, 0, 0, 1, 0])],
)
def test_updates_keep_their_ratio_to_steps(ratio, updates):
    clock = Ratio(ratio)
    assert [clock(step) for step in range(len(updates))] == updates


def test_a_small_ratio_is_due_every_32_steps():
    clock = Ratio(32 / 1024)
    assert [step for step in range(100) if clock(step)] == [0, 32, 64, 96]


def test_the_clock_starts_when_training_does_and_owes_nothing_for_before():
    clock = Ratio(1.0)
    assert clock(1000) == 1 and clock(1001) == 1


def test_several_environments_step_the_clock_at_once():
    clock = Ratio(0.25)
    assert [clock(step) for step in range(0, 48, 8)] == [1, 2, 2, 2, 2, 2]


@pytest.mark.parametrize("ratio", [0.1, 0.3, 1 / 3, 0.7, 3.3])
def test_an_uneven_ratio_neither_loses_nor_gains_updates(ratio):
    clock = Ratio(ratio)
    assert sum(clock(step) for step in range(10_001)) == pytest.approx(1 + 10_000 * ratio, abs=1)


def test_every_fires_once_per_multiple_that_is_passed():
    every = Every(10)
    assert [every(step, step + 4) for step in range(0, 24, 4)] == [False, False, True, False, True, False]
    assert not Every(0)(0, 100)


def test_the_first_signal_is_a_wish_and_the_handlers_come_back():
    before = signal.getsignal(signal.SIGTERM)
    with Interruption() as interruption:
        assert interruption.exit_code == 0
        os.kill(os.getpid(), signal.SIGTERM)
        assert interruption.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) is before
