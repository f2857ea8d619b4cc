# SPDX-License-Identifier: Apache-2.0
"""Models as proposers of tactics: an endpoint, a Hugging Face model, a checkpoint of this program."""

from __future__ import annotations

import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from eval_tasks.prompts import prompt
from megatron.neox_arguments.errors import UserError
from tests.llamas import save_hf_llama
from tests.runs import run, run_on_ranks
from tests.tools import repl_stand_in
from tests.tools.test_prove import records
from tools.prove_parts import endpoint as endpoint_module
from tools.prove_parts import hf_model
from tools.prove_parts.asking import Asking, template_of
from tools.prove_parts.endpoint import Endpoint
from tools.prove_parts.hf_model import HFModel
from tools.prove_parts.proposers import Candidate, TooLong
from tools.prove_parts.records import read_proofs

TEMPLATE = "w5 w9 {goals} w3"


class _Server(http.server.ThreadingHTTPServer):
    answers: list[tuple[int, Any]]
    asked: list[tuple[dict[str, Any], dict[str, str]]]


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((body, dict(self.headers.items())))
        status, answer = self.server.answers.pop(0)
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Server]:
    monkeypatch.setattr(endpoint_module, "_FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    server = _Server(("127.0.0.1", 0), _Handler)
    server.answers, server.asked = [], []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def choice(text: str, *logprobs: float | None) -> dict[str, Any]:
    return {"text": text, "logprobs": {"token_logprobs": list(logprobs)}}


def at(server: _Server, **changes: Any) -> Endpoint:
    asking = Asking(TEMPLATE, **{"decoding": "sample", "candidates": 3, "seed": 4, **changes})
    return Endpoint(f"http://127.0.0.1:{server.server_port}/v1/", "llemma", asking)


def test_an_endpoint_is_asked_as_the_paper_asks(server: _Server) -> None:
    answers = {
        "choices": [
            choice("\nsimp\n", -1.0, -3.0),
            choice("rfl", -0.5, None),
            choice("simp", -0.25),
            choice(" "),
        ]
    }
    server.answers = [(503, {}), (429, {"error": "busy"}), (200, answers)]
    found = at(server).propose("⊢ a")
    assert [(each.tactic, each.logprob) for each in found] == [("simp", -0.25), ("rfl", -0.5)]
    body, headers = server.asked[-1]
    assert headers["Authorization"] == "Bearer secret"
    assert body == {
        "model": "llemma", "prompt": "w5 w9 ⊢ a w3", "n": 3, "max_tokens": 256, "stop": ["---"],
        "logprobs": 1,
        "temperature": 1.0, "top_p": 1.0, "seed": Asking(TEMPLATE, "sample", seed=4).seed_of("⊢ a"),
    }  # fmt: skip
    server.answers = [(200, {"choices": []})]
    assert at(server, decoding="beam").propose("x") == []
    assert server.asked[-1][0]["use_beam_search"] is True


def test_an_endpoint_that_cannot_be_used(server: _Server) -> None:
    server.answers = [(400, {"error": {"message": "This model's maximum context length is 4096 tokens."}})]
    with pytest.raises(TooLong):
        at(server).propose("x")
    for status, answer, message in [
        (401, {"error": "key"}, "cannot be used.*401"),
        (200, {"choices": [{"text": "x"}]}, "no text with token_logprobs"),
        (200, {"choices": None}, "no text with token_logprobs"),
    ]:
        server.answers = [(status, answer)]
        with pytest.raises(UserError, match=message):
            at(server).propose("x")
    server.answers = [(500, {})] * 6
    with pytest.raises(UserError, match="cannot be used.*500"):
        at(server).propose("x")
    with pytest.raises(UserError, match="cannot be used"):
        Endpoint("http://127.0.0.1:1/v1", "m", Asking(TEMPLATE, "sample")).propose("x")


def test_prompts_end_where_the_answer_begins(tmp_path: Path) -> None:
    lean = Asking(template_of("lean", None), "beam").prompt("⊢ {goals}")
    assert lean.endswith("\n---\n\nTactic state:\n---\n⊢ {goals}\n---\nNext tactic:\n---")
    assert lean.count("Next tactic:") == 4
    # As published: the sha256 of the examples in the paper's own program.
    published = prompt("lean_next_tactic_3_shot")
    assert hashlib.sha256(published.text.encode()).hexdigest() == published.sha256
    assert template_of("coq", None).count("Next tactic:") == 4
    (tmp_path / "p.txt").write_text("a {goals} b\n")
    assert template_of("lean", tmp_path / "p.txt") == "a {goals} b"
    (tmp_path / "p.txt").write_text("{goals}{goals}")
    with pytest.raises(UserError, match="has 2 times"):
        template_of("lean", tmp_path / "p.txt")


def test_seeds_depend_on_the_state_only() -> None:
    asking = Asking(TEMPLATE, "sample", seed=1)
    seeds = {asking.seed_of(goals, number) for goals in "abc" for number in range(100)}
    assert len(seeds) == 300
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert asking.seed_of("a") == Asking("other", "sample", candidates=2, seed=1).seed_of("a")


@pytest.fixture(scope="module")
def hf_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_hf_llama(tmp_path_factory.mktemp("models") / "hf", seed=3)


def logprobs_after(model: Any, ids: list[int]) -> torch.Tensor:
    return torch.log_softmax(model(torch.tensor([ids])).logits[0, -1].float(), -1)


@torch.no_grad()
def test_beams_of_one_token_are_the_likeliest_tokens(hf_folder: Path) -> None:
    asking = Asking(TEMPLATE, "beam", candidates=6, tactic_tokens=1)
    proposer = HFModel(hf_folder, "float32", asking)
    ids = proposer._tokenizer("w5 w9 w20 w3")["input_ids"]
    best = logprobs_after(proposer._model, ids).topk(6)
    words = {
        proposer._tokenizer.decode([int(token)]): float(score) for score, token in zip(*best, strict=True)
    }
    found = {each.tactic: each.logprob for each in proposer.propose("w20")}
    assert found == pytest.approx({word: score for word, score in words.items() if word in found}, abs=1e-5)
    assert len(found) >= 5  # the end of the document is no tactic


@torch.no_grad()
def test_draws_have_the_mean_of_their_tokens(hf_folder: Path) -> None:
    asking = Asking(TEMPLATE, "sample", candidates=5, tactic_tokens=4)
    proposer = HFModel(hf_folder, "float32", asking)
    found = proposer.propose("w20")
    assert found == proposer.propose("w20")
    assert found != proposer.propose("w21")
    check(proposer, found)
    with pytest.raises(TooLong):
        proposer.propose("w20 " * 130)


@torch.no_grad()
def test_an_answer_ends_with_its_mark(hf_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proposer = HFModel(hf_folder, "float32", Asking(TEMPLATE, "sample", candidates=1, tactic_tokens=4))
    (whole,) = proposer.propose("w20")
    words = whole.tactic.split()
    assert len(words) == 4
    monkeypatch.setattr(hf_model, "STOP", words[2])
    (cut,) = proposer.propose("w20")
    assert cut.tactic.split() == words[:2]
    ids = proposer._tokenizer(f"w5 w9 w20 w3 {' '.join(words[:3])}")["input_ids"]
    scores = [float(logprobs_after(proposer._model, ids[:at])[ids[at]]) for at in range(4, 7)]
    assert cut.logprob == pytest.approx(sum(scores) / 3, abs=1e-4)  # the mark counts


def check(proposer: HFModel, found: list[Any]) -> None:
    """Token by token, without the code under test; answers that ended early have one token more."""
    assert len(found) > 1
    for each in found:
        ids = proposer._tokenizer("w5 w9 w20 w3")["input_ids"]
        answer = proposer._tokenizer(each.tactic)["input_ids"]
        scores = []
        for token in [*answer, *([0] if len(answer) < 4 else [])]:
            scores.append(float(logprobs_after(proposer._model, ids)[token]))
            ids = [*ids, token]
        assert each.logprob == pytest.approx(sum(scores) / len(scores), abs=1e-4)


@torch.no_grad()
def test_a_checkpoint_searches_on_one_rank_and_on_two(hf_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("lean_interact", reason="needs requirements-eval.txt")
    done = run(
        tmp_path,
        "tools/convert_checkpoint.py",
        "hf-to-neox",
        "--input",
        hf_folder,
        "--output",
        tmp_path / "ckpt",
    )
    assert done.status == 0, done.err
    (tmp_path / "prompt.txt").write_text(TEMPLATE)
    made = [{**record, "root": "w20", "steps": []} for record in records(3)]
    rows = [{"name": f"t{n}", "statement": record["statement"]} for n, record in enumerate(made)]
    (tmp_path / "theorems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = [
        "search", *repl_stand_in.install(tmp_path, made), "--theorems", tmp_path / "theorems.jsonl",
        "--native",
        tmp_path / "ckpt", "--prompt", tmp_path / "prompt.txt", "--candidates", "5", "--tactic-tokens", "4",
        "--dtype",
        "float32", "--cache-tokens", "256", "--tactic-timeout", "60",
    ]  # fmt: skip
    draws = ["--decoding", "sample"]
    done = run(tmp_path, "tools/prove.py", *options, *draws, "--workers", "2", "--output", tmp_path / "one")
    assert done.status == 0, done.err
    lines = read_proofs(tmp_path / "one" / "proofs.jsonl")
    tried = [{node["tactic"]: node["logprob"] for node in line["tree"][1:]} for line in lines.values()]
    assert tried[0] == tried[1] == tried[2]  # equal goals, equal draws, whatever was in the batch
    proposer = HFModel(hf_folder, "float32", Asking(TEMPLATE, "sample", candidates=5, tactic_tokens=4))
    check(proposer, [Candidate(*each) for each in tried[0].items()])
    both = run_on_ranks(
        tmp_path, 2, lambda rank: ["tools/prove.py", *options, *draws, "--output", tmp_path / "two"]
    )
    assert [done.status for done in both] == [0, 0], both[0].err + both[1].err
    cut = read_proofs(tmp_path / "two" / "proofs.jsonl")["t0"]
    assert {node["tactic"]: node["logprob"] for node in cut["tree"][1:]} == pytest.approx(tried[0], abs=1e-4)
    both = run_on_ranks(
        tmp_path, 2, lambda rank: ["tools/prove.py", *options, "--limit", "1", "--output", tmp_path / "beams"]
    )
    assert [done.status for done in both] == [0, 0], both[0].err + both[1].err
    beams = read_proofs(tmp_path / "beams" / "proofs.jsonl")["t0"]
    theirs = HFModel(hf_folder, "float32", Asking(TEMPLATE, "beam", candidates=5, tactic_tokens=4))
    assert {node["tactic"]: node["logprob"] for node in beams["tree"][1:]} == pytest.approx(
        {each.tactic: each.logprob for each in theirs.propose("w20")}, abs=1e-4
    )
    done = run(tmp_path, "tools/prove.py", *options, "--cache-tokens", "16", "--output", tmp_path / "small")
    assert done.status == 2
    assert "--cache-tokens=16: 5 beams of 4 tokens and the prompt without goals need " in done.err
