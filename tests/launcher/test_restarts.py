# SPDX-License-Identifier: Apache-2.0
"""Restarts: how many, how far apart, and which ends are ends."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from megatron.launcher.processes import Stop
from megatron.launcher.restarts import Restarts, run_with_restarts


def ends(*statuses: int, limit: int = 2, wait_seconds: float = 0.01) -> tuple[int, list[int], list[str]]:
    """The final status, the attempts that were made, and what was said."""
    left = list(statuses)
    numbers: list[int] = []
    said: list[str] = []

    def attempt(number: int, stop: Stop) -> int:
        numbers.append(number)
        return left.pop(0)

    return run_with_restarts(attempt, Restarts(limit, wait_seconds), said.append), numbers, said


def test_a_death_is_followed_by_another_attempt() -> None:
    status, attempts, said = ends(137, 9, 0)
    assert (status, attempts) == (0, [0, 1, 2])
    assert said[0] == "restart 1 of 2 in 0.01 s, from the last checkpoint"
    assert said[1] == "restart 2 of 2 in 0.02 s, from the last checkpoint"


def test_they_are_limited() -> None:
    status, attempts, said = ends(9, 9, 7, 0)
    assert (status, attempts) == (7, [0, 1, 2])
    assert said[-1] == "max_restarts=2: all are used, the run ends"
    assert ends(5, 0, limit=0) == (5, [0], [])


@pytest.mark.parametrize("status", [0, 2])
def test_done_and_wrong_input_are_ends(status: int) -> None:
    assert ends(status, 0)[:2] == (status, [0])


def test_the_wait_doubles_up_to_five_minutes() -> None:
    restarts = Restarts(10, 10.0)
    assert [restarts.wait_seconds(number) for number in range(1, 8)] == [10, 20, 40, 80, 160, 300, 300]


def test_a_stop_while_waiting_ends_it() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGUSR1)).start()
    started = time.monotonic()
    assert ends(9, 0, wait_seconds=30)[:2] == (128 + signal.SIGUSR1, [0])
    assert time.monotonic() - started < 10
    assert signal.getsignal(signal.SIGUSR1) == before


def test_a_stop_in_an_attempt_ends_it() -> None:
    def attempt(number: int, stop: Stop) -> int:
        stop.received.append(signal.SIGTERM)
        return 143

    assert run_with_restarts(attempt, Restarts(3, 0), lambda line: None) == 143
