# SPDX-License-Identifier: Apache-2.0
"""Ranks on this machine: started together, watched, stopped together, none left behind.

Rank 0 has the launcher's own standard output and error, so that a terminal stays one for it. Of the others
only standard error is shown, each line after `[rank N]`. Every rank leads a process group of its own: a
Ctrl-C at the terminal reaches the launcher alone, which passes it on once.
"""

from __future__ import annotations

import ctypes
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import FrameType

from megatron.launcher.devices import available_cores
from megatron.neox_arguments.errors import UserError

# They ask ranks to save and stop. USR1 is what SLURM is told to send ahead of a time limit, HUP what a closed
# terminal sends.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
POLL_SECONDS = 0.05
PR_SET_PDEATHSIG = 1  # linux/prctl.h


@dataclass(frozen=True)
class Patience:
    """How long the others may go on after a rank has died."""

    report_seconds: float = 5.0  # to report errors of their own, before SIGTERM
    exit_seconds: float = 10.0  # to leave, before SIGKILL


@dataclass
class _Rank:
    number: int
    process: subprocess.Popen[bytes]
    tail: bytes = b""  # of standard error, not yet a whole line

    @property
    def name(self) -> str:
        return f"rank {self.number} (process {self.process.pid})"

    def signal(self, signum: int) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signum)

    def kill_group(self) -> None:
        """SIGKILL to the rank and to what it started."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)


@dataclass
class _Stop:
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


def rank_environment(
    rank: int, ranks: int, master_addr: str, master_port: int, base: Mapping[str, str], on_gpu: bool
) -> dict[str, str]:
    """`base` with what a rank needs to find its place. On CPU it also hides the GPUs."""
    environment = dict(base)
    environment.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(ranks),
        LOCAL_WORLD_SIZE=str(ranks),
        MASTER_ADDR=master_addr,
        MASTER_PORT=str(master_port),
    )
    environment.setdefault("OMP_NUM_THREADS", str(max(1, available_cores() // ranks)))
    if not on_gpu:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    return environment


def launch(
    command: Sequence[str],
    ranks: int,
    *,
    environment: Mapping[str, str],
    on_gpu: bool,
    master_addr: str | None = None,
    master_port: int | None = None,
    patience: Patience | None = None,
    say: Callable[[str], None] | None = None,
) -> int:
    """Runs `command` once per rank and waits for all of them; call it from the main thread.

    Args:
        environment: variables all ranks get; each has its own place added.
        master_addr: default 127.0.0.1. master_port: default a free one.
        say: takes the launcher's own messages, by default to standard error.

    Returns:
        0 when every rank ended with 0. The exit status of the rank that died first, 128 + the signal when one
        killed it. After a stop that all ranks obeyed 128 + that signal: `deepy.py … && next` must stop too.

    Raises:
        UserError: the command cannot be started, or the port is taken.
    """
    say = say or _say
    address = master_addr or "127.0.0.1"
    port = _free_port() if master_port is None else _checked_port(master_port)
    stop = _Stop()
    started: list[_Rank] = []
    with _handled(stop):
        try:
            for number in range(ranks):
                place = rank_environment(number, ranks, address, port, environment, on_gpu)
                started.append(_start(command, number, place))
            return _Watch(started, stop, patience or Patience(), say).run()
        finally:
            for rank in started:
                rank.kill_group()
                rank.process.wait()
                if rank.process.stderr is not None:
                    rank.process.stderr.close()


class _Watch:
    """The wait for the ranks: output passed on, stop signals forwarded, a death made the end of all."""

    def __init__(
        self, ranks: list[_Rank], stop: _Stop, patience: Patience, say: Callable[[str], None]
    ) -> None:
        self._ranks, self._stop, self._patience, self._say = ranks, stop, patience, say
        self._handled = 0  # stop signals acted on
        self._dead: _Rank | None = None  # the first to fail
        self._deadlines: list[tuple[float, int]] = []  # (time, signal) for the survivors

    def run(self) -> int:
        with selectors.DefaultSelector() as selector:
            for rank in self._ranks:
                if rank.process.stderr is not None:
                    os.set_blocking(rank.process.stderr.fileno(), False)
                    selector.register(rank.process.stderr, selectors.EVENT_READ, rank)
            while self._alive():
                self._pass_on(selector, POLL_SECONDS)
                self._forward_stop()
                self._notice_death()
                self._press_survivors()
            self._pass_on(selector, 0)
        for rank in self._ranks:
            if rank.tail:
                _write_error(f"[rank {rank.number}] {rank.tail.decode(errors='replace')}")
        return self._status()

    def _alive(self) -> list[_Rank]:
        return [rank for rank in self._ranks if rank.process.poll() is None]

    def _pass_on(self, selector: selectors.BaseSelector, wait_seconds: float) -> None:
        if not selector.get_map():
            time.sleep(wait_seconds)
            return
        for key, _ in selector.select(wait_seconds):
            rank: _Rank = key.data
            chunk = os.read(key.fd, 65536)
            if not chunk:
                selector.unregister(key.fileobj)
            *lines, rank.tail = (rank.tail + chunk).split(b"\n")
            for line in lines:
                _write_error(f"[rank {rank.number}] {line.decode(errors='replace')}")

    def _forward_stop(self) -> None:
        while self._handled < len(self._stop.received):
            signum = self._stop.received[self._handled]
            self._handled += 1
            name = signal.Signals(signum).name
            if self._handled == 1:
                self._say(
                    f"{name}: the ranks finish their step, save and stop; the same command goes on from "
                    "there. Once more ends them at once, without saving."
                )
                for rank in self._ranks:
                    rank.signal(signum)
            else:
                self._say(
                    f"{name} again: all ranks are killed; the last checkpoint is the one to go on from."
                )
                for rank in self._ranks:
                    rank.kill_group()

    def _notice_death(self) -> None:
        if self._dead is not None or self._handled > 1:
            return
        failed = {rank.number: rank.process.returncode for rank in self._ranks if rank.process.poll()}
        if not failed:
            return
        self._dead = self._ranks[to_blame(failed)]
        # A rank that found the user's mistake has said so; which rank it was says nothing.
        if self._dead.process.returncode != UserError.exit_code:
            self._say(f"{self._dead.name} {_ending(self._dead.process.returncode)}{self._consequence()}")
        now = time.monotonic()
        self._deadlines = [
            (now + self._patience.report_seconds, signal.SIGTERM),
            (now + self._patience.report_seconds + self._patience.exit_seconds, signal.SIGKILL),
        ]

    def _consequence(self) -> str:
        others = len(self._alive())
        if not others:
            return ""
        seconds = self._patience.report_seconds
        return f"; {others} other {'rank ends' if others == 1 else 'ranks end'} within {seconds:g} s"

    def _press_survivors(self) -> None:
        while self._deadlines and time.monotonic() >= self._deadlines[0][0]:
            _, signum = self._deadlines.pop(0)
            for rank in self._alive():
                if signum == signal.SIGKILL:
                    self._say(f"{rank.name} did not leave; it is killed")
                    rank.kill_group()
                else:
                    rank.signal(signum)

    def _status(self) -> int:
        if self._handled > 1 or (self._handled and self._obeyed()):
            return 128 + self._stop.received[0]
        if self._dead is None:
            return 0
        status = self._dead.process.returncode
        return status if status > 0 else 128 - status

    def _obeyed(self) -> bool:
        """All ranks stopped with 0, or by the signal itself before they had set up to handle it."""
        return self._dead is None or all(
            rank.process.returncode in (0, -self._stop.received[0]) for rank in self._ranks
        )


def to_blame(failed: Mapping[int, int]) -> int:
    """The rank that caused the end, of (rank → return code) seen failed in the same moment.

    One killed by a signal is the cause, where others fell over its silence; else the lowest.
    """
    return min(failed, key=lambda rank: (failed[rank] > 0, rank))


def _start(command: Sequence[str], number: int, environment: Mapping[str, str]) -> _Rank:
    first = number == 0
    try:
        process = subprocess.Popen(
            command,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=None if first else subprocess.DEVNULL,
            stderr=None if first else subprocess.PIPE,
            start_new_session=True,
            preexec_fn=_die_with(os.getpid()),
        )
    except OSError as error:
        raise UserError(f"{command[0]}: {error.strerror}; rank {number} could not be started") from error
    return _Rank(number, process)


def _die_with(parent: int) -> Callable[[], None] | None:
    """For a child before it becomes its program: the kernel kills it when the launcher dies."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None, use_errno=True)

    def in_child() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it died before the line above
            os._exit(1)

    return in_child


@contextmanager
def _handled(stop: _Stop) -> Iterator[None]:
    before = {
        signum: signal.signal(signum, stop.handle)
        for signum in STOP_SIGNALS
        if not (signum == signal.SIGHUP and signal.getsignal(signum) == signal.SIG_IGN)  # under nohup
    }
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _ending(returncode: int) -> str:
    if returncode < 0:
        try:
            return f"was killed by {signal.Signals(-returncode).name}"
        except ValueError:
            return f"was killed by signal {-returncode}"
    return f"ended with exit status {returncode}"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _checked_port(port: int) -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            raise UserError(
                f"master_port={port}: {error.strerror}; leave it out and a free port is taken, or end what "
                "holds it"
            ) from error
    return port


def _say(message: str) -> None:
    _write_error(f"deepy: {message}")


def _write_error(line: str) -> None:
    """To standard error; a terminal that has gone away must not keep the ranks from saving."""
    try:
        print(line, file=sys.stderr, flush=True)
    except ValueError:  # closed
        pass
    except OSError:
        # What could not be written is still in the buffer, and Python would end with status 120 for it.
        with suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), sys.stderr.fileno())
