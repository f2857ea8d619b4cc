# SPDX-License-Identifier: Apache-2.0
"""Ranks on one machine: started together, watched, stopped together, none left behind.

Rank 0 has the launcher's own standard output and error, so that a terminal stays one for it. Of the others
only standard error is shown, each line after `[rank N]`. Every rank leads a process group of its own: a
Ctrl-C at the terminal reaches the launcher alone, which passes it on once.

Why not torch.distributed.run: it imports torch before it can say anything (seconds on a shared disk, and this
launcher has none on a login node), a Ctrl-C kills its ranks instead of letting them save, its restarts follow
each other at once, and a launcher that is killed leaves its ranks behind. The ranks find the same variables
as under it, and every program here can be started by it as well.
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from megatron.launcher.devices import available_cores
from megatron.launcher.ports import checked_port, free_port
from megatron.launcher.processes import (
    POLL_SECONDS,
    SCHEDULERS_SIGNALS,
    Patience,
    Stop,
    die_with,
    ending,
    kill_group,
    shell_status,
    write_error,
)
from megatron.launcher.processes import say as say_to_user
from megatron.launcher.rank import visible_gpus
from megatron.neox_arguments.errors import UserError

# Ranks that are about to start, or stopped, hear no SIGTERM and have nothing to lose. Less than the remote
# launchers have, which wait for this one.
_PATIENCE = Patience(exit_seconds=5.0)


@dataclass(frozen=True)
class Share:
    """The part of a world that one machine has; by default all of it."""

    first_rank: int
    world_size: int
    slots: tuple[int, ...]


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
        kill_group(self.process.pid)


def rank_environment(
    local_rank: int, share: Share, master_addr: str, master_port: int, base: Mapping[str, str], on_gpu: bool
) -> dict[str, str]:
    """`base` with what a rank needs to find its place. On CPU it also hides the GPUs."""
    environment = dict(base)
    environment.update(
        RANK=str(share.first_rank + local_rank),
        LOCAL_RANK=str(local_rank),
        WORLD_SIZE=str(share.world_size),
        LOCAL_WORLD_SIZE=str(len(share.slots)),
        MASTER_ADDR=master_addr,
        MASTER_PORT=str(master_port),
    )
    environment.setdefault("OMP_NUM_THREADS", str(max(1, available_cores() // len(share.slots))))
    environment.update(visible_gpus(share.slots, base) if on_gpu else {"CUDA_VISIBLE_DEVICES": ""})
    return environment


def launch(
    command: Sequence[str],
    ranks: int,
    *,
    environment: Mapping[str, str],
    on_gpu: bool,
    master_addr: str | None = None,
    master_port: int | None = None,
    share: Share | None = None,
    stop: Stop | None = None,
    lifeline: int | None = None,
    patience: Patience | None = None,
    say: Callable[[str], None] | None = None,
) -> int:
    """Runs `command` once per rank and waits for all of them; call it from the main thread.

    Args:
        ranks: how many here.
        environment: variables all ranks get; each has its own place added.
        master_addr: default 127.0.0.1. master_port: default a free one.
        share: which ranks of a larger world these are; its port is the other machines' business too.
        stop: where stop requests arrive; by default the signals are taken over.
        lifeline: a file descriptor; at its end of file all ranks are killed.
        say: takes the launcher's own messages, by default to standard error.

    Returns:
        0 when every rank ended with 0. The exit status of the rank that died first, 128 + the signal when one
        killed it. After a stop that all ranks obeyed 0 where a scheduler asked for it (SIGTERM or USR1: its
        batch script looks at the requeue file), 128 + the signal where a person did: `deepy.py … && next`
        must stop too.

    Raises:
        UserError: the command cannot be started, or the port is taken.
    """
    address = master_addr or "127.0.0.1"
    if share is None:
        share = Share(0, ranks, tuple(range(ranks)))
        port = free_port() if master_port is None else checked_port(master_port)
    else:
        assert master_port is not None
        port = master_port
    listening: AbstractContextManager[None] = nullcontext()
    if stop is None:
        stop = Stop()
        listening = stop.listening()
    started: list[_Rank] = []
    with listening:
        try:
            for local_rank in range(ranks):
                place = rank_environment(local_rank, share, address, port, environment, on_gpu)
                started.append(_start(command, share.first_rank + local_rank, place))
            return _Watch(started, stop, patience or _PATIENCE, say or say_to_user, lifeline).run()
        finally:
            for rank in started:
                rank.kill_group()
                rank.process.wait()
                if rank.process.stderr is not None:
                    rank.process.stderr.close()


class _Watch:
    """The wait for the ranks: output passed on, stop signals forwarded, a death made the end of all."""

    def __init__(
        self,
        ranks: list[_Rank],
        stop: Stop,
        patience: Patience,
        say: Callable[[str], None],
        lifeline: int | None = None,
    ) -> None:
        self._ranks, self._stop, self._patience, self._say = ranks, stop, patience, say
        self._lifeline = lifeline
        self._handled = 0  # stop signals acted on
        self._dead: _Rank | None = None  # the first to fail
        self._deadlines: list[tuple[float, int]] = []  # (time, signal) for the survivors

    def run(self) -> int:
        with selectors.DefaultSelector() as selector:
            for rank in self._ranks:
                if rank.process.stderr is not None:
                    os.set_blocking(rank.process.stderr.fileno(), False)
                    selector.register(rank.process.stderr, selectors.EVENT_READ, rank)
            if self._lifeline is not None:
                selector.register(self._lifeline, selectors.EVENT_READ, None)
            while self._alive():
                self._pass_on(selector, POLL_SECONDS)
                self._forward_stop()
                self._notice_death()
                self._press_survivors()
            self._pass_on(selector, 0)
        for rank in self._ranks:
            if rank.tail:
                write_error(f"[rank {rank.number}] {rank.tail.decode(errors='replace')}")
        return self._status()

    def _alive(self) -> list[_Rank]:
        return [rank for rank in self._ranks if rank.process.poll() is None]

    def _pass_on(self, selector: selectors.BaseSelector, wait_seconds: float) -> None:
        if not selector.get_map():
            time.sleep(wait_seconds)
            return
        for key, _ in selector.select(wait_seconds):
            rank: _Rank | None = key.data
            chunk = os.read(key.fd, 65536)
            if rank is None:
                if not chunk:
                    selector.unregister(key.fileobj)
                    self._cut_off()
                continue
            if not chunk:
                selector.unregister(key.fileobj)
            *lines, rank.tail = (rank.tail + chunk).split(b"\n")
            for line in lines:
                write_error(f"[rank {rank.number}] {line.decode(errors='replace')}")

    def _cut_off(self) -> None:
        """The launcher or the connection to it is gone: another attempt may begin, so nothing may go on."""
        for rank in self._ranks:
            rank.kill_group()

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
        failed = {
            place: rank.process.returncode for place, rank in enumerate(self._ranks) if rank.process.poll()
        }
        if not failed:
            return
        self._dead = self._ranks[to_blame(failed)]
        # A rank that found the user's mistake has said so; which rank it was says nothing.
        if self._dead.process.returncode != UserError.exit_code:
            self._say(f"{self._dead.name} {ending(self._dead.process.returncode)}{self._consequence()}")
        now = time.monotonic()
        self._deadlines = [
            (now + self._patience.report_seconds, signal.SIGTERM),
            (now + self._patience.report_seconds + self._patience.exit_seconds, signal.SIGKILL),
        ]

    def _consequence(self) -> str:
        others = len(self._alive())
        if not others:
            return ""
        seconds = self._patience.report_seconds + self._patience.exit_seconds
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
        if self._dead is None and self._handled < 2:
            asked = self._stop.received[0] if self._handled else signal.SIGTERM
            return 0 if asked in SCHEDULERS_SIGNALS else 128 + asked
        if self._handled > 1 or (self._handled and self._obeyed()):
            return 128 + self._stop.received[0]  # killed, some by the signal itself: not saved
        assert self._dead is not None
        return shell_status(self._dead.process.returncode)

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
            preexec_fn=die_with(os.getpid()),
        )
    except OSError as error:
        raise UserError(f"{command[0]}: {error.strerror}; rank {number} could not be started") from error
    return _Rank(number, process)
