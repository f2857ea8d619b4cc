# SPDX-License-Identifier: Apache-2.0
"""`/api/generate` as Ollama's clients ask it, and what stands around it."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from megatron.text_generation.requests import Request
from tests.tools.serve.servers import Running, Scripted, running
from tools.serve_parts.chat_template import ChatTemplate

ANSWER = " naïve ∑\nend"


def reply(request: Request) -> str:
    return ANSWER


@pytest.fixture(scope="module")
def session() -> Scripted:
    return Scripted(reply)


@pytest.fixture(scope="module")
def server(session: Scripted) -> Iterator[Running]:
    with running(session) as server:
        yield server


def test_an_answer_at_once(server: Running, session: Scripted) -> None:
    options = {"temperature": 0.7, "num_predict": 100, "stop": ["end"], "top_p": 0.5, "top_k": 3, "seed": 11}
    answer = server.post(
        "/api/generate", {"model": "llemma", "prompt": "∑", "raw": False, "stream": False, "options": options}
    )
    assert answer.status_code == 200
    said = answer.json()
    assert (said["model"], said["response"]) == ("llemma", " naïve ∑\n")
    assert (said["done"], said["done_reason"]) == (True, "stop")
    assert said["prompt_eval_count"] == 3
    assert said["eval_count"] == len(ANSWER.encode())
    assert said["total_duration"] >= said["eval_duration"] >= 0
    assert said["created_at"].endswith("Z")
    asked = session.seen[-1]
    assert (asked.temperature, asked.top_p, asked.top_k, asked.seed) == (0.7, 0.5, 3, 11)
    assert asked.max_new_tokens == 100


def test_a_stream_is_lines_of_json_and_the_default(server: Running) -> None:
    answer = server.post("/api/generate", {"model": "llemma:latest", "prompt": "x"})
    assert answer.headers["content-type"] == "application/x-ndjson; charset=utf-8"
    *lines, last = [json.loads(line) for line in answer.text.splitlines()]
    assert "".join(line["response"] for line in lines) == ANSWER
    assert not any(line["done"] for line in lines)
    assert (last["done"], last["done_reason"], last["response"]) == (True, "stop", "")


def test_without_options_it_is_sampled_as_ollama_does(server: Running, session: Scripted) -> None:
    server.post("/api/generate", {"prompt": "x"})
    asked = session.seen[-1]
    assert (asked.temperature, asked.top_p, asked.top_k) == (0.8, 0.9, 40)
    assert asked.max_new_tokens == 512, "to the end of the context, or what the server gives"
    server.post("/api/generate", {"prompt": "x" * 1000, "options": {"num_predict": 10_000}})
    assert session.seen[-1].max_new_tokens == 24


@pytest.mark.parametrize(("options", "new_tokens"), [
    ({"num_ctx": 12}, 2), ({"num_ctx": 12, "num_predict": 1}, 1), ({"num_ctx": 12, "num_predict": 50}, 2),
    ({"num_ctx": 1024}, 512), ({"num_ctx": None}, 512),
])  # fmt: skip
def test_num_ctx_is_the_context(
    server: Running, session: Scripted, options: dict[str, object], new_tokens: int
) -> None:
    server.post("/api/generate", {"prompt": "x" * 10, "options": options})
    assert session.seen[-1].max_new_tokens == new_tokens


def test_no_prompt_asks_whether_the_model_is_there(server: Running, session: Scripted) -> None:
    before = len(session.seen)
    said = server.post("/api/generate", {"model": "llemma", "stream": False}).json()
    assert (said["response"], said["done"], said["done_reason"]) == ("", True, "load")
    streamed = server.post("/api/generate", {"model": "llemma"}).text
    assert json.loads(streamed)["done_reason"] == "load"
    assert len(session.seen) == before


def test_the_chat_template_applies_unless_the_prompt_is_raw() -> None:
    template = ChatTemplate(
        "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}",
        {"bos_token": "<s>"},
    )
    session = Scripted(reply)
    with running(session, template=template) as server:
        server.post("/api/generate", {"prompt": "x", "system": "S"})
        assert bytes(session.seen[-1].prompt_ids) == b"<s>[system]S[user]x[assistant]"
        server.post("/api/generate", {"prompt": "x", "raw": True})
        assert bytes(session.seen[-1].prompt_ids) == b"x"


@pytest.mark.parametrize(("change", "status", "message"), [
    ({"model": "other"}, 404, "is not served here"),
    ({"suffix": "x"}, 400, "suffix=\"x\": is not supported here"),
    ({"format": "json"}, 400, "format=\"json\": is not supported here"),
    ({"images": ["AA=="]}, 400, "is not supported here"),
    ({"context": [1, 2]}, 400, "is not supported here"),
    ({"raw": True, "system": "S"}, 400, "goes into a template"),
    ({"options": {"temperature": -1}}, 400, "options.temperature=-1: must be a number"),
    ({"options": {"temprature": 1}}, 400, "options.temprature: is not known here; did you mean temperature?"),
    ({"options": {"repeat_penalty": 1.1}}, 400, "options.repeat_penalty=1.1: is not supported here"),
    ({"options": {"num_ctx": 4096}}, 400, "options.num_ctx=4096: must be an integer from 1 to 1024"),
    ({"options": {"num_ctx": 1}}, 400, "has 1 tokens, which leaves no room in the context of 1;"),
    ({"options": []}, 400, "options=[]: must be an object"),
    ({"prompt": "x" * 1024}, 400, "leaves no room in the context of 1,024"),
])  # fmt: skip
def test_what_cannot_be_done_is_refused_in_ollamas_form(
    server: Running, change: dict[str, object], status: int, message: str
) -> None:
    answer = server.post("/api/generate", {"model": "llemma", "prompt": "x", **change})
    assert answer.status_code == status
    assert list(answer.json()) == ["error"]
    assert message in answer.json()["error"]


def test_the_model_and_a_version_are_told(server: Running) -> None:
    [model] = server.get("/api/tags").json()["models"]
    assert (model["name"], model["model"]) == ("llemma", "llemma")
    assert server.get("/api/version").json() == {"version": "0.0.0-llemma"}
    missing = server.get("/api/show")
    assert (missing.status_code, list(missing.json())) == (404, ["error"])
