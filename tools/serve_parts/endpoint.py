# SPDX-License-Identifier: Apache-2.0
"""One way to ask, over HTTP: a body is read, samples are generated, the answer goes out, whole or in pieces.

A client that goes away ends its requests, and so do its time limit and a failure of the engine: whatever ends
a job early comes out of `Job.next` as an exception.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any, Protocol

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from megatron.text_generation.text import TextStream
from tools.serve_parts.choices import Choice, Piece, TokenTexts, pieces
from tools.serve_parts.engine_thread import EngineThread, Job
from tools.serve_parts.fields import parse_json
from tools.serve_parts.refusal import Refused
from tools.serve_parts.wanted import Served, Wanted


class StreamLike(Protocol):
    """An answer in pieces, as bytes."""

    def piece(self, piece: Piece) -> bytes: ...

    def end(self) -> bytes: ...

    def broken(self, refused: Refused) -> bytes: ...


class Form(Protocol):
    """How a client asks and is answered: completions.py, chat.py, ollama.py."""

    media_type: str

    def refusal(self, refused: Refused, /) -> dict[str, Any]: ...

    def read(self, content: dict[str, Any]) -> Wanted: ...

    def whole(self, wanted: Wanted, choices: list[Choice], got: list[list[Piece]]) -> dict[str, Any]: ...

    def stream(self, wanted: Wanted, choices: list[Choice]) -> StreamLike: ...


class Gone(Exception):
    """The client has closed the connection."""


class JSON(Response):
    """JSON as every reader of it takes: UTF-8 as it is, and no NaN."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return json.dumps(content, ensure_ascii=False, allow_nan=False).encode()


async def read_body(scope: Scope, receive: Receive, limit_bytes: int) -> bytes:
    """All of a request's body.

    Raises:
        Refused: it is longer than the limit.
        Gone: it did not come to its end.
    """
    too_long = Refused(413, f"the body is longer than the {limit_bytes:,} bytes that this server reads")
    declared = Headers(scope=scope).get("content-length", "0")
    if declared.isdecimal() and int(declared[:20]) > limit_bytes:
        raise too_long
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Gone
        body += message.get("body", b"")
        if len(body) > limit_bytes:
            raise too_long
        if not message.get("more_body", False):
            return body


class Endpoint:
    """An ASGI application that answers POST requests of one form."""

    def __init__(self, form: Form, served: Served, engine: EngineThread, texts: TokenTexts) -> None:
        self._form = form
        self._served = served
        self._engine = engine
        self._texts = texts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            self._engine.check_room(1)  # before a body is taken in that could not be answered
            wanted = await self._read(scope, receive)
            self._engine.check_room(wanted.samples, len(wanted.prompts))
            job = self._engine.submit(wanted.requests(self._served.stop_ids))
        except Gone:
            return
        except Refused as refused:
            await self._refuse(refused, scope, receive, send)
            return
        limit = asyncio.get_running_loop().call_later(
            self._served.limits.request_seconds, job.fail, self._over_time()
        )
        try:
            await _while_there(receive, self._answer(wanted, job, scope, receive, send))
        finally:
            limit.cancel()
            job.cancel_all()

    async def _read(self, scope: Scope, receive: Receive) -> Wanted:
        limits = self._served.limits
        try:
            body = await asyncio.wait_for(
                read_body(scope, receive, limits.body_bytes), min(limits.body_seconds, limits.request_seconds)
            )
        except asyncio.TimeoutError:
            raise Refused(408, "the body did not come in time") from None
        # Tokenising a long prompt takes a while, in which others' tokens must go out.
        return await run_in_threadpool(lambda: self._form.read(parse_json(body)))

    def _over_time(self) -> Refused:
        return Refused(
            504, f"not done within the {self._served.limits.request_seconds:g} s that a request may take"
        )

    async def _refuse(self, refused: Refused, scope: Scope, receive: Receive, send: Send) -> None:
        answer = JSON(self._form.refusal(refused), refused.status, refused.headers)
        await answer(scope, receive, send)

    async def _answer(self, wanted: Wanted, job: Job, scope: Scope, receive: Receive, send: Send) -> None:
        choices = self._choices(wanted)
        if wanted.is_stream:
            await self._send_stream(
                self._form.stream(wanted, choices), pieces(job, choices), scope, receive, send
            )
            return
        got: list[list[Piece]] = [[] for _ in choices]
        try:
            async for piece in pieces(job, choices):
                got[piece.index].append(piece)
        except Refused as refused:
            await self._refuse(refused, scope, receive, send)
            return
        await JSON(self._form.whole(wanted, choices, got))(scope, receive, send)

    def _choices(self, wanted: Wanted) -> list[Choice]:
        """One for each sample, in the order of `wanted.requests`."""
        tokenizer = self._served.tokenizer
        return [
            Choice(
                place * wanted.samples + sample,
                TextStream(tokenizer, prompt, wanted.stops),
                self._texts,
                TextStream(tokenizer, () if wanted.echoes else prompt),
                wanted.num_logprobs,
                wanted.echoes[place] if wanted.echoes else "",
            )
            for place, prompt in enumerate(wanted.prompts)
            for sample in range(wanted.samples)
        ]

    async def _send_stream(
        self, stream: StreamLike, news: AsyncIterator[Piece], scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Sends pieces as they come. The head waits for the first: what fails at once has its status."""
        has_begun = False
        try:
            async for piece in news:
                if not has_begun:
                    await self._begin_stream(send)
                    has_begun = True
                if content := stream.piece(piece):
                    await send({"type": "http.response.body", "body": content, "more_body": True})
            last = stream.end()
        except Refused as refused:
            if not has_begun:
                await self._refuse(refused, scope, receive, send)
                return
            last = stream.broken(refused)
        if not has_begun:
            await self._begin_stream(send)
        await send({"type": "http.response.body", "body": last})

    async def _begin_stream(self, send: Send) -> None:
        headers = [
            (b"content-type", f"{self._form.media_type}; charset=utf-8".encode()),
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),  # nginx would collect the pieces
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})


async def _while_there(receive: Receive, answering: Any) -> None:
    """Lets a coroutine run to its end, or to that of its client."""
    answer = asyncio.ensure_future(answering)
    gone = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        # Also where the server cancels this: its patience with a client is over.
        gone.cancel()
        if not answer.done():
            answer.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await answer


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
