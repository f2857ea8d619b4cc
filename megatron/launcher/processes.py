# SPDX-License-Identifier: Apache-2.0
"""What every launcher needs of the operating system: stop requests, deaths of parents, messages."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import FrameType

# They ask ranks to save and stop. USR1 is what SLURM is told to send ahead of a time limit, HUP what a closed
# terminal sends.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
# Of these the ones that a scheduler sends; its batch script looks at the requeue file when all went well.
SCHEDULERS_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
POLL_SECONDS = 0.05
PR_SET_PDEATHSIG = 1  # linux/prctl.h


@dataclass(frozen=True)
class Patience:
    """How long the others may go on after a rank has died."""

    report_seconds: float = 5.0  # to report errors of their own, before SIGTERM
    exit_seconds: float = 10.0  # to leave, before SIGKILL


@dataclass
class Stop:
    """Stop requests the launcher has got, in order.

    One request may arrive twice at once (`timeout` signals its child and then the child's whole group): what
    comes within half a second of another belongs to it.
    """

    received: list[int] = field(default_factory=list)
    last_seconds: float = float("-inf")

    def handle(self, signum: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if now - self.last_seconds > 0.5:
            self.received.append(signum)
        self.last_seconds = now

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Takes the stop signals over for the time being; call it on the main thread."""
        before = {
            signum: signal.signal(signum, self.handle)
            for signum in STOP_SIGNALS
            if not (signum == signal.SIGHUP and signal.getsignal(signum) == signal.SIG_IGN)  # under nohup
        }
        try:
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)


def die_with(parent: int, signum: int = signal.SIGKILL) -> Callable[[], None] | None:
    """For a child before it becomes its program: the kernel sends it `signum` when the launcher dies."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None, use_errno=True)

    def in_child() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signum, 0, 0, 0)
        if os.getppid() != parent:  # it died before the line above
            os._exit(1)

    return in_child


def kill_group(pid: int) -> None:
    """SIGKILL to the process group that `pid` leads."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def ending(returncode: int) -> str:
    """How a process ended, in words."""
    if returncode < 0:
        try:
            return f"was killed by {signal.Signals(-returncode).name}"
        except ValueError:
            return f"was killed by signal {-returncode}"
    return f"ended with exit status {returncode}"


def shell_status(returncode: int) -> int:
    """A return code as a shell counts it: 128 + the signal for a process that one killed."""
    return returncode if returncode >= 0 else 128 - returncode


def say(message: str) -> None:
    """The launcher's own message."""
    write_error(f"deepy: {message}")


def write_error(line: str) -> None:
    """To standard error; a terminal that has gone away must not keep the ranks from saving."""
    try:
        print(line, file=sys.stderr, flush=True)
    except ValueError:  # closed
        pass
    except OSError:
        # What could not be written is still in the buffer, and Python would end with status 120 for it.
        with suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), sys.stderr.fileno())
