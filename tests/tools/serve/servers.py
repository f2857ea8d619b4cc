# SPDX-License-Identifier: Apache-2.0
"""The server of tools/serve.py in this process, over a session that says what a test has written for it."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from megatron.checkpointing.export_files import PASS_THROUGH
from megatron.text_generation.requests import NewToken, PromptToken, Request
from tools.serve_parts.application import Access, application
from tools.serve_parts.chat_template import ChatTemplate
from tools.serve_parts.engine_thread import EngineThread, SessionLike
from tools.serve_parts.server import Server
from tools.serve_parts.wanted import Limits, Served

EOD = 256
WAIT_SECONDS = 60.0
# Reading the certificates of all authorities takes longer than a request does.
PLAIN: dict[str, Any] = {"timeout": WAIT_SECONDS, "verify": False}
LIMITS = Limits(body_bytes=100_000, request_seconds=WAIT_SECONDS, new_tokens=512, in_flight=64)


class ByteTokenizer:
    """An id a byte, so that most characters beyond ASCII are several tokens; 256 ends a document."""

    name, vocab_size, eod_id, fingerprint = "Bytes", 257, EOD, "bytes"
    files: list[Path] = []  # noqa: RUF012

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def encode_with_places(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        return self.encode(text), [(at, at + 1) for at, one in enumerate(text) for _ in one.encode()]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(i for i in ids if i != EOD).decode(errors="replace")


def logprob_of(token_id: int) -> float:
    """What the scripted session says of a token."""
    return -0.25 - token_id / 1000


@dataclass
class _Running:
    number: int
    request: Request
    reply: list[int]
    given: int = 0


@dataclass
class Scripted:
    """A session whose answers are those of `reply`; an answer is followed by the end of the document."""

    reply: Callable[[Request], str]
    most_at_once: int = 8
    step_seconds: float = 0.0
    running: list[_Running] = field(default_factory=list)
    waiting: list[_Running] = field(default_factory=list)
    cancelled: list[int] = field(default_factory=list)
    seen: list[Request] = field(default_factory=list)
    most_running: int = 0
    steps: int = 0
    is_closed: bool = False
    go: threading.Event = field(default_factory=threading.Event)
    failure: Exception | None = None
    fails_at_step: int | None = None

    def __post_init__(self) -> None:
        self.go.set()

    @property
    def idle(self) -> bool:
        return not (self.running or self.waiting)

    def add(self, request: Request) -> int:
        request.check(257, 10**6)
        number = len(self.seen)
        self.seen.append(request)
        self.waiting.append(_Running(number, request, [*self.reply(request).encode(), EOD]))
        return number

    def cancel(self, number: int) -> None:
        self.cancelled.append(number)
        self.running = [one for one in self.running if one.number != number]
        self.waiting = [one for one in self.waiting if one.number != number]

    def step(self) -> list[NewToken]:
        assert self.go.wait(WAIT_SECONDS)
        if self.failure is not None:
            raise self.failure
        time.sleep(self.step_seconds)
        self.steps += 1
        if self.steps == self.fails_at_step:
            raise RuntimeError("as the test wants it")
        while self.waiting and len(self.running) < self.most_at_once:
            self.running.append(self.waiting.pop(0))
        self.most_running = max(self.most_running, len(self.running))
        tokens = [self._token(one) for one in self.running]
        ended = {token.request for token in tokens if token.finish_reason is not None}
        self.running = [one for one in self.running if one.number not in ended]
        return tokens

    def wait_until(self, is_so: Callable[[], bool]) -> None:
        """Waits for what the server does in its own time."""
        deadline = time.monotonic() + WAIT_SECONDS
        while not is_so():
            assert time.monotonic() < deadline
            time.sleep(0.005)

    def close(self) -> None:
        self.is_closed = True

    def _token(self, one: _Running) -> NewToken:
        request = one.request
        prompt: tuple[PromptToken, ...] = ()
        if one.given == 0 and request.prompt_logprobs:
            first, *others = request.prompt_ids
            prompt = (
                PromptToken(first, None, ()),
                *(PromptToken(i, logprob_of(i), self._top(i, request)) for i in others),
            )
        if request.max_new_tokens == 0:
            return NewToken(one.number, -1, 0.0, (), "length", prompt)
        token_id = one.reply[one.given]
        one.given += 1
        reason: Any = None
        if token_id in request.stop_ids:
            reason = "stop"
        elif one.given == request.max_new_tokens:
            reason = "length"
        return NewToken(
            one.number, token_id, logprob_of(token_id), self._top(token_id, request), reason, prompt
        )

    def _top(self, token_id: int, request: Request) -> tuple[tuple[int, float], ...]:
        """The token is the second likeliest, after the one before it in the alphabet."""
        rivals = [
            ((token_id - 1) % 256, -0.125),
            (token_id, logprob_of(token_id)),
            ((token_id + 1) % 256, -9.0),
        ]
        return tuple(rivals[: request.num_logprobs])


@dataclass(frozen=True)
class Running:
    """A server that listens."""

    url: str
    server: Server
    engine: EngineThread

    def post(self, path: str, content: Any, **more: Any) -> httpx.Response:
        """Posts an object as JSON, or bytes as they are."""
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        headers = {"content-type": "application/json", **more.pop("headers", {})}
        return httpx.post(self.url + path, content=body, headers=headers, **PLAIN, **more)

    def get(self, path: str, **more: Any) -> httpx.Response:
        return httpx.get(self.url + path, **PLAIN, **more)


@contextlib.contextmanager
def running(
    session: SessionLike,
    *,
    limits: Limits = LIMITS,
    template: ChatTemplate | None = None,
    keys: tuple[str, ...] = (),
    names: tuple[str, ...] = ("llemma",),
    tactic_stop: str = "---",
    drain_seconds: float = WAIT_SECONDS,
    head_seconds: float = WAIT_SECONDS,
    tokenizer: Any = None,
    context_tokens: int = 1024,
) -> Iterator[Running]:
    """A server on a thread, at a port of its own; it is drained at the end."""
    tokenizer = tokenizer or ByteTokenizer()
    served = Served(names, tokenizer, context_tokens, (tokenizer.eod_id,), tokenizer.vocab_size, limits)
    engine = EngineThread(session, limits.in_flight)
    app = application(
        served,
        engine,
        template or ChatTemplate(PASS_THROUGH, {}),
        Access(keys, only_loopback_names=not keys),
        tactic_stop=tactic_stop,
        model_details={"size": 1, "digest": "0", "details": {}},
    )
    listener = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    server = Server(app, engine, "ready", drain_seconds, head_seconds)
    thread = threading.Thread(target=server.run_until_told, args=[listener])
    thread.start()
    try:
        yield Running(url, server, engine)
    finally:
        if isinstance(session, Scripted):
            session.go.set()
        server.end()
        thread.join(WAIT_SECONDS)
        assert not thread.is_alive()
