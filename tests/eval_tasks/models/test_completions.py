# SPDX-License-Identifier: Apache-2.0
"""A model behind a server: what is sent, what comes back, and what is said when it does not."""

from __future__ import annotations

import http.server
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from megatron.launcher.ports import free_port
from megatron.neox_arguments.errors import UserError
from tests.llamas import save_hf_llama

pytest.importorskip("lm_eval", reason="needs requirements/requirements-eval.txt")


class Server(http.server.ThreadingHTTPServer):
    """Answers each request with its prompt's last word and its seed; the first `refusals` with `status`."""

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.asked: list[tuple[str | None, dict[str, Any]]] = []
        self.refusals, self.status = 0, 500
        self.scorer: Any = None
        self.fixed: Any = None  # an answer to everything


class Handler(http.server.BaseHTTPRequestHandler):
    """One request."""

    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.headers.get("Authorization"), body))
        status, answer = 200, self._answer(body) if self.server.fixed is None else self.server.fixed
        if self.server.refusals > 0:
            self.server.refusals -= 1
            status, answer = self.server.status, {"error": {"message": "context is 4 tokens"}}
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _answer(self, body: dict[str, Any]) -> dict[str, Any]:
        if isinstance(body["prompt"], str):
            return {"choices": [{"index": 0, "text": f"{body['prompt'].split()[-1]} {body['seed']}"}]}
        if self.server.scorer is None:
            return {"choices": [{"index": 0, "text": "", "logprobs": None}]}
        assert (body["echo"], body["logprobs"]) == (True, 1)
        (ids,) = body["prompt"]
        return {"choices": [{"index": 0, "text": "", "logprobs": logprobs_of(self.server.scorer, ids)}]}

    def log_message(self, *_: Any) -> None:
        """Says nothing."""


def logprobs_of(model: Any, ids: list[int]) -> dict[str, Any]:
    """As OpenAI has them of an echoed prompt and one new token."""
    import torch

    with torch.no_grad():
        all_SV = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    new = int(all_SV[-1].argmax())
    own = [None, *(float(row[token]) for row, token in zip(all_SV, [*ids[1:], new], strict=True))]
    top = [None, *({"best": float(row.max())} for row in all_SV)]
    return {"token_logprobs": own, "top_logprobs": top}


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


def test_an_error_with_status_200_is_tried_again_or_passed_on(server: Server) -> None:
    server.refusals, server.status = 2, 200
    assert completions(server).generate_until([instance("say so", 1)]) == ["so 1"]
    server.fixed = {"error": {"message": "rate limited", "code": 429}}
    with pytest.raises(UserError, match=r"gives no answer .*rate limited"):
        completions(server).generate_until([instance("say so", 1)])
    server.fixed, server.asked = {"error": {"message": "no such model", "code": 404}}, []
    with pytest.raises(UserError, match="refuses the request .404 no such model"):
        completions(server).generate_until([instance("say so", 1)])
    assert len(server.asked) == 1


@pytest.mark.parametrize("answer", [
    {"choices": []}, [1], {}, "x", 5, {"choices": None}, {"choices": [{"index": 0}]},
    {"choices": [{"index": 0, "text": None}]}, {"choices": [1]},
])  # fmt: skip
def test_an_answer_of_another_form_is_said_in_one_line(server: Server, answer: Any) -> None:
    server.fixed = answer
    with pytest.raises(UserError, match="answered without a text") as caught:
        completions(server).generate_until([instance("say so", 1)])
    assert "\n" not in str(caught.value)


def test_a_refusal_is_passed_on_at_once(server: Server) -> None:
    server.refusals, server.status = 99, 400
    with pytest.raises(UserError, match="refuses the request .400 .*context is 4 tokens"):
        completions(server).generate_until([instance("say so", 1)])
    assert len(server.asked) == 1


def test_likelihoods_are_those_of_lm_evals_hf(server: Server, tmp_path: Path) -> None:
    """The server scores with transformers what it is sent; the tokenizer puts a token at the beginning."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer

    from eval_tasks.models.completions import Completions

    folder = save_hf_llama(tmp_path / "hf")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<eod> $A", pair="<eod> $A $B", special_tokens=[("<eod>", 0)]
    )
    tokenizer.save_pretrained(folder)
    theirs = HFLM(pretrained=str(folder), device="cpu", dtype="float32")
    server.scorer = theirs.model
    url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    ours = Completions(url, "llemma", None, str(folder), concurrent=2, timeout_seconds=20)
    pairs = [("w5 w6 w7", " w8 w9"), ("w200", " w3"), ("w9 w9", " w9 w10 w11 w12")]
    asked = [Instance("loglikelihood", {}, pair, 0) for pair in pairs]
    expected = theirs.loglikelihood(asked, disable_tqdm=True)
    found = ours.loglikelihood(asked, disable_tqdm=True)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], abs=1e-4)
    assert server.asked[0][1]["prompt"][0][0] == 0
    server.scorer = None
    with pytest.raises(UserError, match="no log-probabilities of a prompt"):
        ours.loglikelihood(asked[:1], disable_tqdm=True)


def test_a_server_that_is_not_there_is_said(server: Server) -> None:
    lm = completions(server)
    lm.base_url = f"http://127.0.0.1:{free_port()}/v1/completions"
    with pytest.raises(UserError, match="gives no answer"):
        lm.generate_until([instance("say so", 1)])
