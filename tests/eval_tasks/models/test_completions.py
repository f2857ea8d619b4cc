# SPDX-License-Identifier: Apache-2.0
"""A model behind a server: what is sent, what comes back, and what is said when it does not."""

from __future__ import annotations

import http.server
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from megatron.launcher.ports import free_port
from megatron.neox_arguments.errors import UserError

pytest.importorskip("lm_eval", reason="needs requirements/requirements-eval.txt")


class Server(http.server.ThreadingHTTPServer):
    """Answers each request with its prompt's last word and its seed; the first `refusals` with `status`."""

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.asked: list[tuple[str | None, dict[str, Any]]] = []
        self.refusals, self.status = 0, 500


class Handler(http.server.BaseHTTPRequestHandler):
    """One request."""

    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.headers.get("Authorization"), body))
        status, answer = (
            200,
            {"choices": [{"index": 0, "text": f"{body['prompt'].split()[-1]} {body['seed']}"}]},
        )
        if self.server.refusals > 0:
            self.server.refusals -= 1
            status, answer = self.server.status, {"error": {"message": "context is 4 tokens"}}  # type: ignore[dict-item]
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Says nothing."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(time, "sleep", lambda _: None)
    server = Server(free_port())
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def instance(prompt: str, seed: int) -> Any:
    from lm_eval.api.instance import Instance

    settings = {"until": ["\n"], "do_sample": True, "temperature": 0.6, "top_p": 0.95, "max_gen_toks": 5}
    return Instance("generate_until", {}, (prompt, {**settings, "seed": seed}), 0)


def completions(server: Server, key: str | None = "secret") -> Any:
    from eval_tasks.models.completions import Completions

    url = f"http://127.0.0.1:{server.server_address[1]}/v1/"
    return Completions(url, "llemma", key, None, concurrent=4, timeout_seconds=20)


def test_each_request_has_its_settings_and_its_answer(server: Server) -> None:
    asked = [instance(f"say word{number}", 100 + number) for number in range(12)]
    answers = completions(server).generate_until(asked)
    assert answers == [f"word{number} {100 + number}" for number in range(12)]
    keys, bodies = zip(*server.asked, strict=True)
    assert set(keys) == {"Bearer secret"}
    assert {body["seed"] for body in bodies} == set(range(100, 112))
    for body in bodies:
        wanted = {"model": "llemma", "max_tokens": 5, "temperature": 0.6, "top_p": 0.95, "stop": ["\n"]}
        assert wanted.items() <= body.items()
        assert "do_sample" not in body


def test_without_a_key_no_header_is_sent(server: Server) -> None:
    completions(server, key=None).generate_until([instance("say so", 1)])
    assert server.asked[0][0] is None


def test_a_fault_of_the_server_is_tried_again(server: Server) -> None:
    server.refusals = 2
    assert completions(server).generate_until([instance("say so", 1)]) == ["so 1"]
    server.refusals = 99
    with pytest.raises(UserError, match=r"gives no answer .*goes on from here"):
        completions(server).generate_until([instance("say so", 1)])


def test_a_refusal_is_passed_on_at_once(server: Server) -> None:
    server.refusals, server.status = 99, 400
    with pytest.raises(UserError, match="refuses the request .400 .*context is 4 tokens"):
        completions(server).generate_until([instance("say so", 1)])
    assert len(server.asked) == 1


def test_a_server_that_is_not_there_is_said(server: Server) -> None:
    lm = completions(server)
    lm.base_url = f"http://127.0.0.1:{free_port()}/v1/completions"
    with pytest.raises(UserError, match="gives no answer"):
        lm.generate_until([instance("say so", 1)])
