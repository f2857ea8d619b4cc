# SPDX-License-Identifier: Apache-2.0
"""Being asked to stop: a signal sets a flag that the loop reads once a step.

SIGINT and SIGHUP come from a person or a terminal. SIGTERM and SIGUSR1 come from a scheduler that wants the
machines back (a time limit, preemption) and is to start the run again: rank 0 leaves it a file.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping
from pathlib import Path
from types import FrameType

from megatron.neox_arguments.errors import UserError

_OF_A_PERSON = (signal.SIGINT, signal.SIGHUP)
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
        for number in (*_OF_A_PERSON, *_OF_A_SCHEDULER):
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue  # under nohup
            signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.was_asked = True
        self.wants_requeue = self.wants_requeue or number in _OF_A_SCHEDULER
        self.signal_name = signal.Signals(number).name


def requeue_file(save: Path | None, environment: Mapping[str, str]) -> Path | None:
    """The file that tells the batch script to submit the run again; None where there is no place for it."""
    if chosen := environment.get(REQUEUE_VARIABLE):
        return Path(chosen)
    return save / REQUEUE_FILE if save is not None else None


def ask_for_requeue(path: Path, iteration: int, signal_name: str) -> None:
    """Writes that file, in one step."""
    from megatron.neox_arguments.whole_files import write_whole  # this module is there before all others

    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, f"stopped by {signal_name or 'a signal to another rank'} after iteration {iteration}\n")


def withdraw_requeue(path: Path | None) -> None:
    """Removes that file, where there is a place for one: what was asked for is done, or under way.

    Raises:
        UserError: it cannot be removed, and a batch script that sees it would start a finished run again.
    """
    try:
        if path is not None:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; remove it, and run the same command again") from error
