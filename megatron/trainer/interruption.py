# SPDX-License-Identifier: Apache-2.0
"""Being asked to stop: SIGINT, SIGTERM and USR1 set a flag that the loop reads once a step."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
_OF_A_SCHEDULER = (signal.SIGTERM, signal.SIGUSR1)

REQUEUE_FILE = "requeue"
REQUEUE_VARIABLE = "DEEPY_REQUEUE_FILE"


class StopRequest:
    """Whether this rank was asked to stop. The ranks agree in the reduction of the loss."""

    def __init__(self) -> None:
        self.was_asked = False
        self.wants_requeue = False
        self.signal_name = ""

    def listen(self) -> StopRequest:
        """Takes the signals over. Call before the process group starts, on the main thread."""
        for number in _SIGNALS:
            signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.was_asked = True
        self.wants_requeue = self.wants_requeue or number in _OF_A_SCHEDULER
        self.signal_name = signal.Signals(number).name


def requeue_file(save: Path | None, environment: Mapping[str, str]) -> Path | None:
    """The file whose presence asks the batch script for a requeue; None where there is no place for it."""
    if chosen := environment.get(REQUEUE_VARIABLE):
        return Path(chosen)
    return save / REQUEUE_FILE if save is not None else None


def ask_for_requeue(path: Path, iteration: int, signal_name: str) -> None:
    """Writes that file, in one step; several ranks may do so at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, draft = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    with os.fdopen(handle, "w") as file:
        file.write(f"stopped by {signal_name} after iteration {iteration}\n")
    os.replace(draft, path)
