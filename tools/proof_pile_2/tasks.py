# SPDX-License-Identifier: Apache-2.0
"""Tasks over processes: each process does one at a time, few wait, and all end when the command does."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing.synchronize import Event
from typing import IO, TypeVar

from megatron.neox_arguments.errors import UserError

T = TypeVar("T")
R = TypeVar("R")
_HEARTBEAT_SECONDS = 5.0


class Stopping(Exception):
    """The command ends; what is under way is given up."""


class _StopFlag:
    """Told to each process when it starts; asked between documents."""

    event: Event | None = None


def stop_if_asked() -> None:
    """To be called often inside a task.

    Raises:
        Stopping: the command was interrupted.
    """
    if _StopFlag.event is not None and _StopFlag.event.is_set():
        raise Stopping


def _start_process(event: Event) -> None:
    _StopFlag.event = event
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def run_tasks(
    function: Callable[[T], R], tasks: Iterable[T], workers: int, heartbeat: Callable[[], None] = lambda: None
) -> Iterator[R]:
    """The results of `function` over `tasks`, in the order in which they come. One worker, or one task,
    needs no other process than this.

    Tasks are taken from the iterable as processes become free, so that they may be many. Errors: what a
    task raises, after those under way have been stopped; `UserError` where a process is killed."""
    rest = iter(tasks)
    first = list(itertools.islice(rest, 2))
    rest = itertools.chain(first, rest)
    if workers == 1 or len(first) < 2:
        for task in rest:
            yield function(task)
            heartbeat()
        return
    context = multiprocessing.get_context("spawn")
    event = context.Event()
    pool = ProcessPoolExecutor(workers, context, initializer=_start_process, initargs=(event,))
    running: set[Future[R]] = set()
    try:
        while True:
            for task in itertools.islice(rest, workers + 1 - len(running)):
                # Processes are started here and inherit the blocked signal: Ctrl-C is for this one alone.
                unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
                try:
                    running.add(pool.submit(function, task))
                finally:
                    signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)
            if not running:
                return
            done, running = wait(running, timeout=_HEARTBEAT_SECONDS, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
            heartbeat()
    except BrokenProcessPool:
        raise UserError(
            f"--workers {workers}: a process was killed, most often for want of memory; use fewer workers, "
            "and "
            "start the same command again: what is finished is kept"
        ) from None
    finally:
        event.set()
        pool.shutdown(wait=True, cancel_futures=True)


@dataclass
class Progress:
    """Lines on the standard error stream: how much is done, how fast, and how long the rest will take."""

    title: str
    total: int
    total_bytes: int
    interval_seconds: float = 5.0
    stream: IO[str] = field(default_factory=lambda: sys.stderr)
    done: int = 0
    done_bytes: int = 0
    kept: int = 0
    _kept_bytes: int = 0
    _started: float = field(default_factory=time.monotonic)
    _shown: float = 0.0

    def advance(self, nbytes: int, already: bool = False) -> None:
        """A task is done, or was done by an earlier run."""
        self.done += 1
        self.done_bytes += nbytes
        if already:
            self.kept += 1
            self._kept_bytes += nbytes

    def show(self, what: str = "", force: bool = False) -> None:
        """Say where we are, if the interval has passed."""
        seconds = time.monotonic() - self._started
        if not force and seconds - self._shown < self.interval_seconds:
            return
        self._shown = seconds
        fresh = self.done_bytes - self._kept_bytes
        rate = fresh / seconds if seconds else 0.0
        left = _clock((self.total_bytes - self.done_bytes) / rate) if rate else "?"
        earlier = f", {self.kept:,} of them earlier" if self.kept else ""
        print(
            f"{self.title}: {self.done:,} of {self.total:,} shards{earlier} | {what + ' | ' if what else ''}"
            f"{rate / 1e6:.1f} MB/s | {left} left",
            file=self.stream, flush=True,
        )  # fmt: skip


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds + 0.5), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
