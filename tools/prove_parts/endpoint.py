# SPDX-License-Identifier: Apache-2.0
"""Tactics from a server that speaks OpenAI's completions: tools/serve.py, vLLM, and others with logprobs."""

from __future__ import annotations

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

from megatron.neox_arguments.errors import UserError
from tools.prove_parts.asking import STOP, Asking
from tools.prove_parts.proposers import Candidate, TooLong, unique_best_first

API_KEY_VARIABLE = "OPENAI_API_KEY"
_TRIES = 6
_FIRST_PAUSE_SECONDS = 1.0
# Answers of a server that may do better a little later.
_BUSY = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
_LARGEST_ANSWER_BYTES = 64 << 20


class Endpoint:
    """See `Proposer`. Beam search is asked for as vLLM has it (`use_beam_search`); servers without it refuse
    it or would ignore it, so it is the user's choice."""

    def __init__(self, url: str, model: str, asking: Asking, request_seconds: float = 600.0) -> None:
        """`url` is that of the API, such as http://127.0.0.1:8000/v1."""
        self._url, self._model, self._asking = url.rstrip("/"), model, asking
        self._request_seconds = request_seconds

    def propose(self, goals: str) -> list[Candidate]:
        """See `Proposer.propose`."""
        asking = self._asking
        body: dict[str, Any] = {
            "model": self._model,
            "prompt": asking.prompt(goals),
            "n": asking.candidates,
            "max_tokens": asking.tactic_tokens,
            "stop": [STOP],
            "logprobs": 1,
        }
        if asking.decoding == "beam":
            body |= {"use_beam_search": True, "temperature": 0.0}
        else:
            body |= {"temperature": asking.temperature, "top_p": asking.top_p, "seed": asking.seed_of(goals)}
        answer = self._post(body)
        try:
            return unique_best_first([_candidate(choice) for choice in answer["choices"]])
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"--endpoint={self._url}: its answer has no text with token_logprobs ({error!r}); use a "
                "server that gives logprobs with completions"
            ) from None

    def _post(self, body: Mapping[str, Any]) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(API_KEY_VARIABLE):
            headers["Authorization"] = f"Bearer {key}"
        pause, said = _FIRST_PAUSE_SECONDS, ""
        for attempt in range(_TRIES):
            if attempt:
                time.sleep(pause)
                pause *= 2
            request = urllib.request.Request(
                f"{self._url}/completions", json.dumps(body).encode(), headers, method="POST"
            )
            try:
                with urllib.request.urlopen(request, timeout=self._request_seconds) as response:
                    answer = json.loads(response.read(_LARGEST_ANSWER_BYTES))
                if isinstance(answer, dict):
                    return answer
                said = "it answers no JSON object"
            except urllib.error.HTTPError as error:
                said = f"{error.code} {error.read(2000).decode('utf-8', 'replace')}"
                if error.code == 400 and "context" in said and "length" in said:
                    raise TooLong(said) from None
                if error.code not in _BUSY:
                    break
            except (OSError, http.client.HTTPException, ValueError) as error:
                said = str(error)
        raise UserError(
            f"--endpoint={self._url}: cannot be used ({said}); start the server, or correct the URL"
        )

    def settings(self) -> Mapping[str, Any]:
        """See `Proposer.settings`. The URL is left out: a server may move."""
        return {"proposer": "endpoint", "model": self._model, **self._asking.settings()}

    def close(self) -> None:
        """Nothing is held."""


def _candidate(choice: Mapping[str, Any]) -> Candidate:
    logprobs = [float(value) for value in choice["logprobs"]["token_logprobs"] if value is not None]
    if not isinstance(choice["text"], str):
        raise TypeError("text")
    # As the paper counts: over the tokens of the answer, the one that ended it included.
    return Candidate(choice["text"], sum(logprobs) / max(len(logprobs), 1))
