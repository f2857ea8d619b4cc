# SPDX-License-Identifier: Apache-2.0
"""The engine on a thread of its own, and the event loop's side of it: jobs that wait for tokens.

The event loop never computes and the engine's thread never waits for a client. What goes to the engine are
commands in a queue, what comes back are the tokens of a step, handed to the loop in one call.
"""

from __future__ import annotations

import asyncio
import functools
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

from megatron.neox_arguments.errors import UserError
from tools.serve_parts.refusal import Refused

if TYPE_CHECKING:
    from megatron.text_generation.requests import NewToken, Request

_MOST_RETRY_SECONDS = 60


class SessionLike(Protocol):
    """What is used of megatron/text_generation/session.py; tests give another."""

    @property
    def idle(self) -> bool: ...

    def add(self, request: Request) -> int: ...

    def cancel(self, number: int) -> None: ...

    def step(self) -> list[NewToken]: ...

    def close(self) -> None: ...


class Job:
    """The requests of one client, on the event loop's side."""

    def __init__(self, owner: EngineThread, count: int) -> None:
        self._owner = owner
        self._events: asyncio.Queue[list[tuple[int, NewToken]] | Exception] = asyncio.Queue()
        self._open = set(range(count))
        self.started_seconds = time.monotonic()

    @property
    def is_over(self) -> bool:
        """Whether nothing more comes."""
        return not self._open

    async def next(self) -> list[tuple[int, NewToken]]:
        """The next tokens: (index of the request, token).

        Raises:
            Refused: the engine, or the server, will give no more.
        """
        event = await self._events.get()
        if isinstance(event, Exception):
            raise event
        return event

    def put(self, tokens: list[tuple[int, NewToken]]) -> None:
        tokens = [(index, token) for index, token in tokens if index in self._open]
        for index, token in tokens:
            if token.finish_reason is not None:
                self._close(index)
        if tokens:
            self._events.put_nowait(tokens)

    def fail(self, error: Exception) -> None:
        """Gives up what is open, with `error` for the one who waits."""
        if self._open:
            self.cancel_all()
            self._events.put_nowait(error)

    def cancel(self, index: int) -> None:
        """One request's further tokens are not wanted."""
        if index in self._open:
            self._close(index)
            self._owner.command(lambda: self._owner.drop(self, index))

    def cancel_all(self) -> None:
        for index in list(self._open):
            self.cancel(index)

    def _close(self, index: int) -> None:
        self._open.discard(index)
        self._owner.finished(self)


class EngineThread:
    """Steps the engine while there is work. All public methods but `drop` are for the event loop's thread."""

    def __init__(self, session: SessionLike, capacity: int) -> None:
        """`capacity`: requests of all clients together, running or waiting."""
        self._session = session
        self._capacity = capacity
        self._commands: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._jobs: dict[int, tuple[Job, int]] = {}  # by the engine's number; of the engine's thread
        self._numbers: dict[tuple[Job, int], int] = {}  # the way back; of the engine's thread
        self._waiting_jobs: set[Job] = set()  # of the event loop's thread
        self._in_flight = 0
        self._mean_seconds = 1.0
        self.error: BaseException | None = None
        self.on_error: Callable[[], None] = lambda: None

    @property
    def in_flight(self) -> int:
        """Requests that are running or waiting."""
        return self._in_flight

    def start(self) -> None:
        """Called on the event loop that jobs are waited for on."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread after the step that it is in; who still waits is told."""
        for job in list(self._waiting_jobs):
            job.fail(Refused(503, "the server is shutting down"))
        self._commands.put(None)
        self._thread.join()

    def check_room(self, samples: int, prompts: int = 1) -> None:
        """Whether so many samples of each of so many prompts can be taken now.

        Raises:
            Refused: they are too many, or the engine has failed.
        """
        if self.error is not None:
            raise Refused(503, "the engine has failed; the server is ending")
        count = samples * prompts
        if count > self._capacity:
            field = "prompt" if prompts > samples else "n"
            of_each = f"{prompts:,} prompts of {samples:,} each are " if prompts > 1 else ""
            raise Refused(
                400,
                f"{field}: {of_each}{count:,} samples in one request; this server takes {self._capacity} at "
                "a time; send fewer, or start it with a larger --max-waiting",
                field=field,
            )
        if self._in_flight + count > self._capacity:
            raise Refused(
                429,
                f"{self._in_flight} samples are running or waiting, of at most {self._capacity}; try later",
                code="rate_limit_exceeded",
                retry_after_seconds=min(_MOST_RETRY_SECONDS, max(1, round(self._mean_seconds))),
            )

    def submit(self, requests: Sequence[Request]) -> Job:
        """Hands requests to the engine, after `check_room`."""
        job = Job(self, len(requests))
        if requests:
            self._in_flight += len(requests)
            self._waiting_jobs.add(job)
            self.command(lambda: self._add(job, requests))
        return job

    def command(self, action: Callable[[], None]) -> None:
        """Has the engine's thread do something before its next step."""
        self._commands.put(action)

    def finished(self, job: Job) -> None:
        """One request of a job has come to its end."""
        self._in_flight -= 1
        took_seconds = time.monotonic() - job.started_seconds
        self._mean_seconds += 0.2 * (took_seconds - self._mean_seconds)
        if job.is_over:
            self._waiting_jobs.discard(job)

    # What follows runs on the engine's thread.

    def _run(self) -> None:
        try:
            while self._obey():
                self._hand_over(self._session.step())
            self._session.close()
        except BaseException as error:
            self._die(error)

    def _obey(self) -> bool:
        """Does what was commanded, waiting where there is nothing to compute; False at the end."""
        while True:
            for action in self._commanded():
                if action is None:
                    return False
                action()
            if not self._session.idle:
                return True

    def _commanded(self) -> Iterator[Callable[[], None] | None]:
        if self._session.idle:
            yield self._commands.get()
        while not self._commands.empty():
            yield self._commands.get()

    def _add(self, job: Job, requests: Sequence[Request]) -> None:
        for index, request in enumerate(requests):
            try:
                number = self._session.add(request)
            except (UserError, ValueError) as error:  # too long for the cache, for one
                self._tell(functools.partial(job.fail, Refused(400, str(error))))
                return
            self._jobs[number] = (job, index)
            self._numbers[job, index] = number

    def drop(self, job: Job, index: int) -> None:
        """Ends a request on the engine's side, if it has not ended by itself."""
        number = self._numbers.pop((job, index), None)
        if number is not None:
            del self._jobs[number]
            self._session.cancel(number)

    def _hand_over(self, tokens: list[NewToken]) -> None:
        of_jobs: dict[Job, list[tuple[int, NewToken]]] = {}
        for token in tokens:
            if token.request not in self._jobs:
                continue  # cancelled
            job, index = self._jobs[token.request]
            of_jobs.setdefault(job, []).append((index, token))
            if token.finish_reason is not None:
                del self._jobs[token.request], self._numbers[job, index]

        def put_all() -> None:
            for job, found in of_jobs.items():
                job.put(found)

        if of_jobs:
            self._tell(put_all)

    def _tell(self, action: Callable[[], object]) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(action)

    def _die(self, error: BaseException) -> None:
        """No step can be trusted after one that failed: everyone is told, and the server ends."""

        def tell_all() -> None:
            self.error = error
            for job in list(self._waiting_jobs):
                job.fail(
                    Refused(500, f"the engine has failed ({type(error).__name__}); the server is ending")
                )
            self.on_error()

        self._tell(tell_all)
