# SPDX-License-Identifier: Apache-2.0
"""How long a run takes from its command to the end of its first step, and what it does in that time."""

from __future__ import annotations

import time
from collections.abc import Mapping


class StartUp:
    """Seconds of each phase, in order. Made when a rank begins, before anything slow is imported."""

    def __init__(self, command_unix_seconds: float | None = None) -> None:
        """`command_unix_seconds`: when the command was given, by the clock of its machine, where it is known;
        the time since then is the launcher's.
        """
        self.is_over = False
        self._seconds: dict[str, float] = {}
        self._last = time.perf_counter()
        if command_unix_seconds is not None:
            self._seconds["launcher"] = max(0.0, time.time() - command_unix_seconds)

    @classmethod
    def of_environment(cls, environment: Mapping[str, str], variable: str) -> StartUp:
        """With the time of the command from `variable`, as deepy.py sets it."""
        try:
            return cls(float(environment[variable]))
        except (KeyError, ValueError):  # started by hand
            return cls()

    def done(self, phase: str) -> None:
        """What was done since the last call belongs to `phase`."""
        now = time.perf_counter()
        self._seconds[phase] = self._seconds.get(phase, 0.0) + now - self._last
        self._last = now

    def report(self) -> dict[str, float]:
        """`seconds` in all, and those of each phase."""
        seconds = {phase: round(value, 3) for phase, value in self._seconds.items()}
        return {"seconds": round(sum(self._seconds.values()), 3), **seconds}
