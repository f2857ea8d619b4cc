# SPDX-License-Identifier: Apache-2.0
"""A time for the head of a request: uvicorn waits for ever for one that was begun and not ended."""

from __future__ import annotations

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

# Apache's mod_reqtimeout gives a head as much.
HEAD_SECONDS = 20.0


def protocol(head_seconds: float = HEAD_SECONDS) -> type[H11Protocol]:
    """uvicorn's protocol, which closes a connection whose head, or whose first byte, is not there in time.

    The time of a body is `request_seconds`', and that between requests uvicorn's own.
    """

    class LimitedHead(H11Protocol):
        _limit: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._wait_for_head()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            # Of the next request on a connection that is kept, too; h11 is idle until it has a whole head.
            is_open = self.cycle is None or self.cycle.response_complete
            if is_open and self.conn.their_state is h11.IDLE:
                self._wait_for_head()
            else:
                self._stop_waiting()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_waiting()
            super().connection_lost(exc)

        def _wait_for_head(self) -> None:
            if self._limit is None:
                self._limit = self.loop.call_later(head_seconds, self.transport.close)

        def _stop_waiting(self) -> None:
            if self._limit is not None:
                self._limit.cancel()
                self._limit = None

    return LimitedHead
