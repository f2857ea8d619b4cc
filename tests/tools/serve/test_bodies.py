# SPDX-License-Identifier: Apache-2.0
"""Bodies that no client should send: each is answered, or refused in the form of its path."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tools.serve.servers import Running, Scripted, running

PATHS = ("/v1/completions", "/v1/chat/completions", "/api/generate")
VALID: dict[str, dict[str, Any]] = {
    "/v1/completions": {
        "model": "llemma", "prompt": "x", "max_tokens": 3, "temperature": 0.5, "top_p": 0.9, "top_k": 5,
        "n": 2, "seed": 1, "stop": ["a"], "stream": False, "logprobs": 2,
        "stream_options": {"include_usage": True}, "echo": True, "best_of": None, "suffix": None,
        "logit_bias": {}, "user": "u",
    },
    "/v1/chat/completions": {
        "model": "llemma",
        "messages": [{"role": "user", "content": [{"type": "text", "text": "x"}], "name": "n"}],
        "max_tokens": 3, "max_completion_tokens": 3, "temperature": 0.5, "top_p": 0.9, "n": 2, "seed": 1,
        "stop": "a", "stream": False, "logprobs": True, "top_logprobs": 2, "tools": [], "tool_choice": "none",
    },
    "/api/generate": {
        "model": "llemma", "prompt": "x", "system": "", "raw": False, "stream": False, "keep_alive": "5m",
        "options": {"temperature": 0.5, "num_predict": 3, "stop": ["a"], "top_p": 0.9, "top_k": 5, "seed": 1,
                    "num_ctx": 100},
        "context": [], "images": [], "format": "",
    },
}  # fmt: skip

NUMBERS = st.one_of(
    st.integers(),
    st.floats(),  # NaN and the infinities, too
    st.sampled_from([10**400, -(10**400), 2**63, 2**64, 1e308, 5e-324, -0.0, True]),
)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(st.characters(exclude_categories=()), max_size=20),
    lambda children: (
        st.lists(children, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=()), max_size=8), children, max_size=4)
    ),
    max_leaves=12,
)


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(Scripted(lambda _: "answer")) as server:
        yield server


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with httpx.Client(timeout=60, headers={"content-type": "application/json"}) as client:
        yield client


def check(server: Running, client: httpx.Client, path: str, body: bytes) -> int:
    """Posts a body; the answer is one, or says in the path's form why there is none."""
    answer = client.post(server.url + path, content=body)
    assert answer.status_code in (200, 400, 404), answer.text
    if answer.status_code != 200:
        error = answer.json()["error"]
        message = error if path.startswith("/api") else error["message"]
        assert isinstance(message, str)
        assert len(message) < 1000
    return answer.status_code


@given(st.sampled_from(PATHS), st.binary(max_size=200))
@settings(max_examples=25)
def test_any_bytes(server: Running, client: httpx.Client, path: str, body: bytes) -> None:
    check(server, client, path, body)


@given(st.sampled_from(PATHS), VALUES)
@settings(max_examples=40)
def test_any_json(server: Running, client: httpx.Client, path: str, content: Any) -> None:
    check(server, client, path, json.dumps(content).encode())


@given(st.data(), st.sampled_from(PATHS), VALUES)
@settings(max_examples=120)
def test_any_value_in_any_field(
    server: Running, client: httpx.Client, data: st.DataObject, path: str, value: Any
) -> None:
    content = json.loads(json.dumps(VALID[path]))
    inside = content
    while True:  # down to a field at any depth
        places = list(inside) if isinstance(inside, dict) else list(range(len(inside)))
        place = data.draw(st.sampled_from(places))
        if not inside[place] or not isinstance(inside[place], (dict, list)) or data.draw(st.booleans()):
            break
        inside = inside[place]
    inside[place] = value
    check(server, client, path, json.dumps(content).encode())


@pytest.mark.parametrize("path", PATHS)
def test_the_bodies_that_are_changed_here_are_good_ones(
    server: Running, client: httpx.Client, path: str
) -> None:
    assert check(server, client, path, json.dumps(VALID[path]).encode()) == 200


@pytest.mark.parametrize(("body", "message"), [
    (b"", "the body is not JSON"),
    (b"{", "the body is not JSON"),
    (b"\xff\xfe", "the body is not JSON"),
    (b'"text"', "not a JSON object"),
    (b"[" * 90_000, "nested too deeply"),
    (b'{"prompt": ' * 9_000, "nested too deeply"),
    (b'{"temperature": NaN}', "NaN is not a JSON value"),
    (b'{"temperature": -Infinity}', "-Infinity is not a JSON value"),
    (b'{"\\ud800": 1, "prompt": "x"}', "\\ud800"),
    (b'{"prompt": "x", "temperature": ["\\ud800"]}', "\\ud800"),
    (b'{"prompt": "x", "stream_options": {"\\udc00": 1}}', "stream_options."),
    (b'{"prompt": "x", "temperature": 1e999}', "must be a number"),
    (b'{"prompt": "x", "seed": 1' + b"0" * 5000 + b"}", "the body is not JSON"),
    (b'{"prompt": "x", "seed": 1' + b"0" * 500 + b"}", "must be an integer"),
])  # fmt: skip
def test_bodies_that_readers_of_json_stumble_over(
    server: Running, client: httpx.Client, body: bytes, message: str
) -> None:
    answer = client.post(f"{server.url}/v1/completions", content=body)
    assert answer.status_code == 400
    assert message in answer.json()["error"]["message"]
