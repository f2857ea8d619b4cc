# SPDX-License-Identifier: Apache-2.0
"""Being asked to stop: SIGINT, SIGTERM and USR1 set a flag that the loop reads once a step."""

from __future__ import annotations

import signal
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """Whether this rank was asked to stop. The ranks agree in the reduction of the loss."""

    def __init__(self) -> None:
        self.was_asked = False
        self.signal_name = ""

    def listen(self) -> StopRequest:
        """Takes the signals over. Call before the process group starts, on the main thread."""
        for number in _SIGNALS:
            signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.was_asked = True
        self.signal_name = signal.Signals(number).name
