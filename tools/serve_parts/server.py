# SPDX-License-Identifier: Apache-2.0
"""uvicorn around the application: it says when it is ready, and ends when the answers under way are out."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp

from tools.serve_parts.engine_thread import EngineThread
from tools.serve_parts.head_limit import HEAD_SECONDS, protocol

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Server(uvicorn.Server):
    """uvicorn's server, which here tells of its start, and whose end by a signal is an ordinary end.

    After a signal nobody new is answered, and who waits gets the rest for up to `drain_seconds`.
    """

    def __init__(
        self,
        app: ASGIApp,
        engine: EngineThread,
        ready: str,
        drain_seconds: float,
        head_seconds: float = HEAD_SECONDS,
    ) -> None:
        config = uvicorn.Config(
            app,
            http=protocol(head_seconds),
            ws="none",
            lifespan="on",
            loop="asyncio",
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=max(1, round(drain_seconds)),
        )
        super().__init__(config)
        self._engine = engine
        self._ready = ready
        engine.on_error = self.end

    def end(self) -> None:
        """As a signal does."""
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if not self.should_exit:
            print(self._ready, file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """uvicorn would raise the signal again at the end: a drained server would seem to be killed by it."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def run_until_told(self, listener: socket.socket) -> int:
        """Serves until SIGTERM, SIGINT or SIGHUP, or until the engine fails; returns the exit status."""
        asyncio.run(self.serve(sockets=[listener]))
        if self._engine.error is None:
            return 0
        traceback.print_exception(self._engine.error)
        print("error: the engine has failed; start the server again", file=sys.stderr)
        return 1
