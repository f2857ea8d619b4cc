# SPDX-License-Identifier: Apache-2.0
"""Processes that take tasks in turn and report on the way.

A process is started afresh (a forked copy of a process with threads may stand still for ever), ends with the
one that started it, and leaves Ctrl-C to that one."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Generic, TypeVar, cast

Setup = TypeVar("Setup")
Task = TypeVar("Task")
Report = TypeVar("Report")


class WorkerDied(Exception):
    """A process was killed from outside."""


class _Done:
    """A task has come to its end."""


class Workers(Generic[Setup, Task, Report]):
    """`count` processes; `make(setup)` gives each what turns a task into reports.

        with Workers(2, make) as workers:
            workers.set_up(setup)
            for report in workers.run(tasks): …

    Errors that are not `expected` show their traceback. The processes start at once, so that their imports
    run beside what comes before `set_up`. Leaving the block kills them, wherever they are."""

    def __init__(
        self,
        count: int,
        make: Callable[[Setup], Callable[[Task], Iterable[Report]]],
        expected: tuple[type[Exception], ...] = (),
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self._processes: list[tuple[BaseProcess, Connection]] = []
        resource_tracker.ensure_running()  # here, because starting it unblocks the signal
        # Processes inherit the blocked signal.
        unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            for _ in range(count):
                ours, theirs = context.Pipe()
                process = context.Process(target=_serve, args=(theirs, make, expected), daemon=True)
                process.start()
                theirs.close()
                self._processes.append((process, ours))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)

    def __enter__(self) -> Workers[Setup, Task, Report]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process, connection in self._processes:
            process.kill()
            connection.close()
        for process, _ in self._processes:
            process.join()

    def set_up(self, setup: Setup) -> None:
        """What all tasks that follow are done with."""
        for _, connection in self._processes:
            self._send(connection, ("set up", setup))

    def run(self, tasks: Iterable[Task], wait_seconds: float = 1.0) -> Iterator[Report | None]:
        """Do tasks, in their order as far as there are free processes; reports come as they are made, None
        where there was none for `wait_seconds`.

        Raises:
            WorkerDied: a process was killed.
            Exception: what a task has raised.
        """
        waiting = iter(tasks)
        busy: set[Connection] = set()
        for _, connection in self._processes:
            self._next(waiting, connection, busy)
        while busy:
            ready = cast("list[Connection]", wait(list(busy), wait_seconds))
            if not ready:
                yield None
            for connection in ready:
                try:
                    message = connection.recv()
                except (EOFError, ConnectionResetError):
                    raise WorkerDied from None
                if isinstance(message, _Done):
                    busy.discard(connection)
                    self._next(waiting, connection, busy)
                elif isinstance(message, BaseException):
                    raise message
                else:
                    yield message

    def _next(self, waiting: Iterator[Task], connection: Connection, busy: set[Connection]) -> None:
        for task in waiting:
            self._send(connection, ("task", task))
            busy.add(connection)
            return

    @staticmethod
    def _send(connection: Connection, message: object) -> None:
        try:
            connection.send(message)
        except (BrokenPipeError, ConnectionResetError):
            raise WorkerDied from None


def _serve(
    connection: Connection,
    make: Callable[[Setup], Callable[[Task], Iterable[Report]]],
    expected: tuple[type[Exception], ...],
) -> None:
    """The life of a process."""
    _end_with_parent()
    handle: Callable[[Task], Iterable[Report]] | None = None
    while True:
        try:
            kind, content = connection.recv()
        except EOFError:
            return
        try:
            if kind == "set up":
                handle = make(content)
                continue
            assert handle is not None, "a task before set_up"
            for report in handle(content):
                connection.send(report)
            connection.send(_Done())
        except Exception as error:
            if not isinstance(error, expected):
                traceback.print_exc()  # it does not travel with the error
            connection.send(error)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
