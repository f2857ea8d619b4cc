# SPDX-License-Identifier: Apache-2.0
"""All ranks started again after one has died: a limited number of times, each later than the one before."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from megatron.launcher.processes import POLL_SECONDS, Stop
from megatron.neox_arguments.errors import UserError

ATTEMPT_VARIABLE = "DEEPY_ATTEMPT"  # 0 in the first start of the ranks, 1 in the first restart, …
LONGEST_WAIT_SECONDS = 300.0


@dataclass(frozen=True)
class Restarts:
    """How often, and how long before the first one; the wait doubles each time."""

    limit: int = 0
    first_wait_seconds: float = 10.0

    def wait_seconds(self, restart: int) -> float:
        """Before restart number `restart`, counted from 1."""
        return min(LONGEST_WAIT_SECONDS, self.first_wait_seconds * 2.0 ** min(restart - 1, 20))


def run_with_restarts(
    attempt: Callable[[int, Stop], int], restarts: Restarts, say: Callable[[str], None]
) -> int:
    """Calls `attempt(number, stop)` until it ends well, is told to stop, or has no restart left.

    Wrong input (exit status 2) is not tried again: it would be as wrong the next time.

    Returns:
        The exit status of the last attempt.
    """
    stop, number = Stop(), 0
    with stop.listening():
        while True:
            status = attempt(number, stop)
            if status in (0, UserError.exit_code) or stop.received:
                return status
            if number == restarts.limit:
                if number:
                    say(f"max_restarts={restarts.limit}: all are used, the run ends")
                return status
            number += 1
            seconds = restarts.wait_seconds(number)
            say(f"restart {number} of {restarts.limit} in {seconds:g} s, from the last checkpoint")
            if _told_to_stop(stop, seconds):
                return 128 + stop.received[0]


def _told_to_stop(stop: Stop, within_seconds: float) -> bool:
    end = time.monotonic() + within_seconds
    while not stop.received and time.monotonic() < end:
        time.sleep(POLL_SECONDS)
    return bool(stop.received)
