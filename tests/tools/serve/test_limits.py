# SPDX-License-Identifier: Apache-2.0
"""What one client may cost the others: keys, bodies, queues, time; clients that go, engines that fail."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import httpx
import openai
import pytest

from megatron.text_generation.requests import NewToken, Request
from tests.tools.serve.servers import LIMITS, WAIT_SECONDS, Running, Scripted, running
from tools.serve_parts.engine_thread import EngineThread

ASKED = {"prompt": "x", "max_tokens": 20}


def endless() -> Scripted:
    return Scripted(lambda _: "." * 500)


def held() -> Scripted:
    """A session that takes no step until it is told to go."""
    session = Scripted(lambda request: f"to {bytes(request.prompt_ids).decode()}")
    session.go.clear()
    return session


def test_a_key_is_asked_for_everywhere_but_at_the_door() -> None:
    with running(endless(), keys=("first", "second")) as server:
        assert server.get("/health").status_code == 200
        for given in ({}, {"authorization": "Bearer third"}, {"authorization": "first"},
                      {"authorization": "Basic first"}, {"authorization": "Bearer"}):  # fmt: skip
            for path in ("/v1/models", "/api/tags", "/nowhere"):
                answer = server.get(path, headers=given)
                assert answer.status_code == 401, given
                assert answer.headers["www-authenticate"] == "Bearer"
        assert server.get("/v1/models").json()["error"]["code"] == "invalid_api_key"
        assert "Authorization" in server.get("/api/tags").json()["error"]
        for key in ("first", "second"):
            client = openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0)
            assert client.completions.create(model="llemma", prompt="x", max_tokens=2).choices[0].text == ".."
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=f"{server.url}/v1", api_key="fir", max_retries=0).models.list()


@pytest.mark.parametrize(("headers", "status"), [
    ({"host": "localhost:8000"}, 200),
    ({"host": "[::1]:8000"}, 200),
    ({"host": "127.0.0.2"}, 200),
    ({"host": "evil.example"}, 403),
    ({"host": "127.0.0.1.evil.example"}, 403),
    ({"host": "localhost.evil.example"}, 403),
    ({"host": "[::1"}, 403),
    ({"host": ""}, 403),
    ({"origin": "http://localhost:3000"}, 200),
    ({"origin": "https://evil.example"}, 403),
    ({"origin": "null"}, 403),
])  # fmt: skip
def test_web_pages_of_other_places_are_not_answered(headers: dict[str, str], status: int) -> None:
    with running(endless()) as server:
        assert server.get("/v1/models", headers=headers).status_code == status


def test_with_a_key_any_name_will_do() -> None:
    with running(endless(), keys=("key",)) as server:
        headers = {"host": "llemma.example", "authorization": "Bearer key"}
        assert server.get("/v1/models", headers=headers).status_code == 200


def test_paths_and_methods_that_are_not_there() -> None:
    with running(endless()) as server:
        missing = server.get("/v1/embeddings")
        assert (missing.status_code, missing.json()["error"]["type"]) == (404, "not_found_error")
        wrong = server.get("/v1/completions")
        assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")


def test_a_body_over_its_limit_is_refused_declared_or_not() -> None:
    with running(endless(), limits=replace(LIMITS, body_bytes=1000)) as server:
        assert server.post("/v1/completions", {"prompt": "x" * 1000}).status_code == 413

        def pieces() -> Any:
            for _ in range(100):
                yield b" " * 100

        assert httpx.post(f"{server.url}/v1/completions", content=pieces()).status_code == 413
        assert server.post("/v1/completions", {"prompt": "x" * 900, "max_tokens": 1}).status_code == 200


def test_a_body_that_does_not_come_is_not_waited_for_for_ever() -> None:
    for limits in (replace(LIMITS, body_seconds=0.2), replace(LIMITS, request_seconds=0.2)):
        with running(endless(), limits=limits) as server:
            answer = answer_to(server, b"content-length: 9\r\n\r\n{")
            assert b" 408 " in answer.split(b"\r\n")[0]
            assert b"connection: close" in answer.lower()


@pytest.mark.parametrize("sent", [b"", b"P", b"POST /v1/completions HTTP/1.1\r\nhost: loc"])
def test_a_head_that_does_not_come_is_not_waited_for_for_ever(sent: bytes) -> None:
    with running(endless(), head_seconds=0.2) as server:
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=WAIT_SECONDS) as client:
            client.sendall(sent)
            assert b"".join(iter(lambda: client.recv(10_000), b"")) == b""


def test_only_a_head_is_waited_for_so() -> None:
    session = held()
    with ThreadPoolExecutor(1) as pool, running(session) as server:
        connections: set[Any] = server.server.server_state.connections  # of uvicorn, of whatever class
        under_way = pool.submit(server.post, "/v1/completions", ASKED)
        session.wait_until(lambda: server.engine.in_flight == 1)
        assert [connection._limit for connection in connections] == [None]
        session.go.set()
        assert under_way.result().status_code == 200
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=WAIT_SECONDS) as client:
            client.sendall(f"GET /health HTTP/1.1\r\nhost: {host}\r\n\r\n".encode())
            assert client.recv(10_000).startswith(b"HTTP/1.1 200 ")
            client.sendall(b"GET /hea")  # of the next one on the same connection
            session.wait_until(lambda: any(connection._limit for connection in list(connections)))


def test_the_rest_of_a_body_over_its_limit_is_not_waited_for() -> None:
    with running(endless(), limits=replace(LIMITS, body_bytes=1000)) as server:
        chunk = b"3e9\r\n" + b"x" * 1001 + b"\r\n"
        for rest in (b"transfer-encoding: chunked\r\n\r\n" + chunk, b"content-length: 1001\r\n\r\n"):
            answer = answer_to(server, rest)
            assert b" 413 " in answer.split(b"\r\n")[0]
            assert b"connection: close" in answer.lower()


def answer_to(server: Running, rest: bytes) -> bytes:
    """What comes, until the server closes the connection, on a request with `rest` behind its first lines."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=WAIT_SECONDS) as client:
        client.sendall(f"POST /v1/completions HTTP/1.1\r\nhost: {host}\r\n".encode() + rest)
        return b"".join(iter(lambda: client.recv(10_000), b""))


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_a_body_is_json_whatever_its_head_calls_it(kind: str) -> None:
    with running(endless()) as server:
        headers = {"content-type": kind}
        assert server.post("/v1/completions", ASKED, headers=headers).json()["choices"][0]["text"] == "." * 20


def test_beyond_the_queue_clients_are_told_to_come_again() -> None:
    session = held()
    with ThreadPoolExecutor(4) as pool, running(session, limits=replace(LIMITS, in_flight=3)) as server:
        first = pool.submit(server.post, "/v1/completions", {**ASKED, "n": 3})
        session.wait_until(lambda: server.engine.in_flight == 3)
        refused = server.post("/v1/completions", ASKED)
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"]["type"] == "rate_limit_error"
        assert server.post("/api/generate", {"prompt": "x"}).status_code == 429
        session.go.set()
        assert [choice["text"] for choice in first.result().json()["choices"]] == ["to x"] * 3
        assert server.post("/v1/completions", ASKED).status_code == 200
        too_many = server.post("/v1/completions", {**ASKED, "n": 4})
        assert too_many.status_code == 400, "coming again would not help"
        assert server.get("/health").json() == {"status": "ok", "in_flight": 0}


@contextlib.contextmanager
def asking(server: Running, **content: Any) -> Iterator[socket.socket]:
    """A client that has asked, and closes the connection at the end of the block."""
    host, port = server.url.removeprefix("http://").split(":")
    body = json.dumps(content)
    head = f"POST /v1/completions HTTP/1.1\r\nhost: {host}\r\ncontent-length: {len(body)}\r\n\r\n"
    with socket.create_connection((host, int(port)), timeout=WAIT_SECONDS) as client:
        client.sendall((head + body).encode())
        yield client


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_takes_its_requests_with_it(stream: bool) -> None:
    session = Scripted(lambda _: "." * 100_000, step_seconds=0.001)
    limits = replace(LIMITS, new_tokens=100_000)
    with running(session, limits=limits, context_tokens=200_000) as server:
        with asking(server, prompt="x", max_tokens=100_000, n=2, stream=stream) as client:
            session.wait_until(lambda: session.steps > 20)
            if stream:
                assert client.recv(10).startswith(b"HTTP/1.1 2")
        session.wait_until(lambda: session.idle)
        assert sorted(session.cancelled) == [0, 1]
        session.wait_until(lambda: server.engine.in_flight == 0)


def test_a_client_that_goes_while_it_waits_is_forgotten() -> None:
    session = held()
    with running(session) as server:
        with asking(server, **ASKED):
            session.wait_until(lambda: server.engine.in_flight == 1)
        session.wait_until(lambda: server.engine.in_flight == 0)
        session.go.set()
        assert server.post("/v1/completions", {"prompt": "y"}).json()["choices"][0]["text"] == "to y"


def test_a_request_over_its_time_is_ended() -> None:
    session = held()
    with running(session, limits=replace(LIMITS, request_seconds=0.3)) as server:
        whole = server.post("/v1/completions", ASKED)
        assert whole.status_code == 504
        assert "0.3 s" in whole.json()["error"]["message"]
        # Nothing of a stream had been sent, so it has a status of its own, too.
        assert server.post("/api/generate", {"prompt": "x"}).status_code == 504
        session.go.set()
        session.wait_until(lambda: session.idle)
    assert sorted(session.cancelled) == [0, 1]


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/api/generate"])
def test_a_stream_that_has_begun_ends_with_the_error(path: str) -> None:
    session = Scripted(lambda _: "." * 100, fails_at_step=10)
    asked = {"messages": [{"role": "user", "content": "x"}]} if "chat" in path else {"prompt": "x"}
    with running(session) as server:
        answer = server.post(path, {**asked, "stream": True})
        assert answer.status_code == 200
        if path.startswith("/api"):
            *pieces, last = [json.loads(line) for line in answer.text.splitlines()]
            assert "".join(piece["response"] for piece in pieces) == "." * 9
            assert "the engine has failed" in last["error"]
        else:
            *pieces, last, end = answer.text.split("\n\n")
            assert (len(pieces), end) == (9, ""), "there is no [DONE]"
            assert "the engine has failed" in json.loads(last.removeprefix("data: "))["error"]["message"]


def test_many_clients_get_what_each_would_get_alone() -> None:
    def reply(request: Request) -> str:
        return f"<{bytes(request.prompt_ids).decode()}>" * 5

    session = Scripted(reply, most_at_once=5)
    session.go.clear()
    with ThreadPoolExecutor(32) as pool, running(session) as server:

        def ask(number: int) -> str:
            content: dict[str, Any] = {
                "prompt": str(number),
                "max_tokens": 100,
                "stream": number % 2 == 0,
                "stop": "#",
            }
            answer = server.post("/v1/completions", content)
            if number % 2:
                return str(answer.json()["choices"][0]["text"])
            events = [json.loads(event[6:]) for event in answer.text.split("\n\n")[:-2]]
            return "".join(event["choices"][0]["text"] for event in events)

        answers = pool.map(ask, range(48))
        session.wait_until(lambda: server.engine.in_flight >= 20)
        session.go.set()
        assert list(answers) == [f"<{number}>" * 5 for number in range(48)]
    assert session.most_running == 5


def test_an_engine_that_fails_ends_the_server_and_everyone_is_told() -> None:
    session = held()
    session.failure = RuntimeError("out of memory")
    with ThreadPoolExecutor(2) as pool, running(session) as server:
        asked = [pool.submit(server.post, "/v1/completions", ASKED) for _ in range(2)]
        session.wait_until(lambda: server.engine.in_flight == 2)
        session.go.set()
        for answer in asked:
            assert answer.result().status_code == 500
            assert "the engine has failed (RuntimeError)" in answer.result().json()["error"]["message"]
        session.wait_until(lambda: server.server.should_exit)
    assert not session.is_closed, "the other ranks are not waiting for a word"


def test_what_the_engine_itself_refuses_is_the_clients_to_mend() -> None:
    with running(Small(lambda _: "x")) as server:
        answer = server.post("/v1/completions", {"prompt": "x" * 200, "n": 2})
        assert answer.status_code == 400
        assert "do not fit into max_cache_tokens=100" in answer.json()["error"]["message"]
        assert server.post("/v1/completions", {"prompt": "x"}).status_code == 200
        assert server.get("/health").json()["in_flight"] == 0


class Small(Scripted):
    def add(self, request: Request) -> int:
        request.check(257, 100)
        return super().add(request)


def test_a_drained_server_finishes_its_answers() -> None:
    session = Scripted(lambda _: "." * 200, step_seconds=0.002)
    with running(session) as server:
        answers: list[httpx.Response] = []
        asked = threading.Thread(
            target=lambda: answers.append(server.post("/v1/completions", {"prompt": "x", "max_tokens": 200}))
        )
        asked.start()
        session.wait_until(lambda: session.steps > 3)
        server.server.end()
        asked.join(WAIT_SECONDS)
        assert answers[0].json()["choices"][0]["text"] == "." * 200
        session.wait_until(lambda: session.is_closed)
        with pytest.raises(httpx.ConnectError):
            server.get("/health")


def test_tokens_on_their_way_behind_a_cancelled_request_are_forgotten() -> None:
    engine = EngineThread(endless(), 4)
    job = engine.submit([Request([1], 5), Request([2], 5)])
    job.cancel(0)
    job.put([(0, NewToken(0, 46, -1.0, (), "length")), (1, NewToken(1, 46, -1.0, (), None))])
    assert engine.in_flight == 1
    assert [index for index, _ in asyncio.run(job.next())] == [1]
    job.fail(RuntimeError("late"))
    job.put([(1, NewToken(1, 46, -1.0, (), "length"))])
    assert engine.in_flight == 0
    assert job.is_over


def test_a_server_is_left_with_nothing_in_flight(server_with_answers: Running) -> None:
    assert server_with_answers.get("/health").json()["in_flight"] == 0


@pytest.fixture
def server_with_answers() -> Any:
    with running(endless()) as server:
        changes: list[dict[str, Any]] = [{}, {"n": 3, "stop": "...."}, {"stream": True}, {"prompt": []}]
        for change in changes:
            server.post("/v1/completions", {**ASKED, **change})
        yield server
