# SPDX-License-Identifier: Apache-2.0
"""LLMLean's requests, replayed: `ollama`, `openai` and `together`, for one tactic and for a whole proof.

Fields and defaults are those of LLMLean/API/Common.lean, TacticGen.lean and ProofGen.lean at
github.com/cmu-l3/llmlean; LLMLean posts by curl, with a key in every form.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from megatron.text_generation.requests import Request
from tests.tools.serve.servers import WAIT_SECONDS, Running, Scripted, running
from tools.serve_parts.llmlean import stops_of

BLOCK = "Tactic state:\n---\n{state}\n---\nNext tactic:\n---\n"
FEWSHOT = (
    "Given the Lean 4 tactic state, suggest a next tactic.\nHere are some examples:\n\n"
    + BLOCK.format(state="m n : ℕ\nh : Nat.coprime m n\n⊢ Nat.gcd m n = 1")
    + "rw [← h.gcd_eq_one]\n---\n\n"
    + BLOCK.format(state="x : ℝ\n⊢ 0 ≤ x ^ 2")
)
GOES_ON = "positivity\n---\n\nTactic state:\n---\n⊢ True\n---\nNext tactic:\n---\ntrivial\n---\n"
INSTRUCT = "/- You are proving a theorem in Lean 4. -/\n[CTX]\n[/CTX]\n[STATE]\n⊢ True\n[/STATE]\n[TAC]\n"
TACTIC_STOPS, PROOF_STOPS = ["[/TAC]"], ["[/PROOF]", "</think>"]


def reply(request: Request) -> str:
    prompt = bytes(request.prompt_ids).decode()
    return "trivial\n[/TAC] --- and on" if "[TAC]" in prompt else GOES_ON


@pytest.fixture(scope="module")
def session() -> Scripted:
    return Scripted(reply)


@pytest.fixture(scope="module")
def server(session: Scripted) -> Iterator[Running]:
    with running(session, names=("llemma-7b",)) as server:
        yield server


def by_curl(url: str, content: dict[str, Any]) -> dict[str, Any]:
    """As LLMLean's `post`."""
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    done = subprocess.run(
        [
            "curl", "-X", "POST", url,
            "-H", "accept: application/json", "-H", "Content-Type: application/json",
            "-H", "Authorization: Bearer ", "-H", "x-api-key: ", "-H", "anthropic-version: 2023-06-01",
            "-d", json.dumps(content, ensure_ascii=False),
        ],
        capture_output=True,
        check=True,
        timeout=WAIT_SECONDS,
    )  # fmt: skip
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def ollama(prompt: str, stops: list[str], temperature: float = 0.7) -> dict[str, Any]:
    options = {"temperature": temperature, "stop": stops, "num_predict": 256}
    return {"model": "llemma-7b", "prompt": prompt, "options": options, "raw": False, "stream": False}


def openai_form(prompt: str, stops: list[str]) -> dict[str, Any]:
    return {
        "model": "llemma-7b", "messages": [{"role": "user", "content": prompt}], "n": 32, "temperature": 0.7,
        "max_tokens": 256, "stream": False, "stop": stops,
    }  # fmt: skip


def test_ollama_one_call_a_sample(server: Running, session: Scripted) -> None:
    for temperature in (0.7, 0.0):
        said = by_curl(f"{server.url}/api/generate", ollama(FEWSHOT, TACTIC_STOPS, temperature))
        assert said["response"] == "positivity\n"
        assert session.seen[-1].temperature == temperature


@pytest.mark.parametrize("kind", ["openai", "together"])
def test_openai_and_together_32_samples_in_one_call(server: Running, session: Scripted, kind: str) -> None:
    said = by_curl(f"{server.url}/v1/chat/completions", openai_form(FEWSHOT, TACTIC_STOPS))
    assert isinstance(said["id"], str)
    assert [choice["message"]["content"] for choice in said["choices"]] == ["positivity\n"] * 32
    assert all(choice["message"]["role"] == "assistant" for choice in said["choices"])
    assert len({request.seed for request in session.seen[-32:]}) == 32


def test_a_prefix_of_the_tactic_is_gone_on_from(server: Running) -> None:
    said = by_curl(f"{server.url}/api/generate", ollama(FEWSHOT + "posi", TACTIC_STOPS))
    assert said["response"] == "positivity\n"


def test_the_instructed_prompt_ends_at_its_own_mark(server: Running) -> None:
    said = by_curl(f"{server.url}/v1/chat/completions", openai_form(INSTRUCT, TACTIC_STOPS))
    assert said["choices"][0]["message"]["content"] == "trivial\n"


def test_whole_proofs_and_other_clients_get_nothing_added(server: Running) -> None:
    said = by_curl(f"{server.url}/api/generate", ollama(FEWSHOT, PROOF_STOPS))
    assert said["response"] == GOES_ON
    completion = {"prompt": FEWSHOT, "max_tokens": 256, "stop": "[TAC]"}
    assert server.post("/v1/completions", completion).json()["choices"][0]["text"] == GOES_ON


def test_it_can_be_turned_off() -> None:
    with running(Scripted(reply), names=("llemma-7b",), tactic_stop="") as server:
        said = server.post("/api/generate", ollama(FEWSHOT, TACTIC_STOPS)).json()
    assert said["response"] == GOES_ON


@pytest.mark.parametrize(("prompt", "is_added"), [
    (FEWSHOT, True),
    (FEWSHOT + "rw [", True),
    (FEWSHOT + "rw\n---\n", False),  # the block is closed
    (FEWSHOT.replace("Tactic state:", "State:"), False),
    (FEWSHOT.replace("Next tactic:", "Next:"), False),
    ("theorem x : True := by\n", False),  # LLMLean's second prompt: the file so far
    ("", False),
])  # fmt: skip
def test_its_signs_are_the_stop_list_and_an_open_block(prompt: str, is_added: bool) -> None:
    added = ("---",) if is_added else ()
    assert stops_of(prompt, ("[/TAC]",), "---") == ("[/TAC]", *added)
    assert stops_of(prompt, (), "---") == ()
    assert stops_of(prompt, ("[/TAC]", "x"), "") == ("[/TAC]", "x")
