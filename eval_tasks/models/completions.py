# SPDX-License-Identifier: Apache-2.0
"""A model behind an OpenAI-style `/v1/completions`: many requests at once, each with a seed of its own.

lm-eval's own class runs requests together only where all their settings are equal, and seeds differ.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import requests as http
from lm_eval.models.openai_completions import LocalCompletionsAPI

from megatron.neox_arguments.errors import UserError

# Statuses that a repetition does not help against.
REFUSALS = (400, 401, 403, 404, 405, 413, 422)


class ServerError(Exception):
    """A server said in words, with status 200, that something went wrong; `code` is what it calls it."""

    def __init__(self, said: object, code: object) -> None:
        super().__init__(str(said)[:300])
        self.code = code


class Completions(LocalCompletionsAPI):
    """`concurrent` requests are under way at a time. The key goes into the header and nowhere else.

    Without `tokenizer` (a folder or a name at the hub) it only generates: likelihoods need to know where the
    prompt ends in tokens.
    """

    def __init__(
        self,
        url: str,
        model: str,
        key: str | None,
        tokenizer: str | None,
        concurrent: int,
        timeout_seconds: int,
    ) -> None:
        super().__init__(
            base_url=f"{url.rstrip('/')}/completions",
            model=model,
            tokenizer=tokenizer,
            tokenizer_backend="huggingface" if tokenizer else None,
            tokenized_requests=tokenizer is not None,
            num_concurrent=concurrent,
            max_length=1 << 30,  # the server refuses what is too long
            timeout=timeout_seconds,
            # Never empty: lm-eval would then send the key of OPENAI_API_KEY, whose ever server this is.
            header={"Accept": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {}),
        )

        # What is scored is sent as ids, with the beginning of sequence that the tokenizer puts there, as in
        # lm-eval's HFLM. What is gone on from is sent as text, and the server puts it there.
        self.add_bos_token = tokenizer is not None and bool(self.tokenizer("").input_ids)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> list[str]:
        """The text that follows each prompt."""
        with ThreadPoolExecutor(self._concurrent) as pool:
            return list(pool.map(self._generate, requests))

    def _generate(self, instance: Any) -> str:
        prompt, settings = instance.args
        answer = self._ask([prompt], generate=True, gen_kwargs=copy.deepcopy(settings))
        try:
            (text,) = self.parse_generations(answer)
        except (KeyError, TypeError, IndexError, ValueError, AttributeError):
            text = None
        if not isinstance(text, str):
            raise UserError(f"{self.base_url}: answered without a text; choose another server")
        return text

    def _loglikelihood_tokens(self, requests: Sequence[Any], **_: Any) -> list[tuple[float, bool]]:
        with ThreadPoolExecutor(self._concurrent) as pool:
            return list(pool.map(self._score, requests))

    def _score(self, request: tuple[Any, list[int], list[int]]) -> tuple[float, bool]:
        _, context, continuation = request
        answer = self._ask([[*context, *continuation]], generate=False)
        try:
            ((loglikelihood, is_greedy),) = self.parse_logprobs(answer, ctxlens=[len(context)])
            return float(loglikelihood), bool(is_greedy)
        except (KeyError, TypeError, IndexError, ValueError, AttributeError):
            raise UserError(
                f"{self.base_url}: gives no log-probabilities of a prompt (echo with logprobs), so it cannot "
                "measure likelihood; take a server that does, or another --backend"
            ) from None

    def _ask(self, messages: list[Any], **options: Any) -> Any:
        """Sends one request, three times at most.

        Raises:
            UserError: the server cannot be reached, or refuses.
        """
        for attempt in range(self.max_retries):
            try:
                return _checked(self.model_call(messages=messages, **options))
            except http.HTTPError as error:
                response = error.response
                if response is not None and response.status_code in REFUSALS:
                    said = f"{response.status_code} {response.text[:300]}"
                    raise UserError(f"{self.base_url}: refuses the request ({said})") from None
                problem: Exception = error
            except ServerError as error:
                if error.code in REFUSALS:
                    raise UserError(f"{self.base_url}: refuses the request ({error.code} {error})") from None
                problem = error
            except (http.RequestException, ValueError) as error:
                problem = error
            time.sleep(min(10.0, 0.5 * 2**attempt))
        raise UserError(
            f"{self.base_url}: gives no answer ({type(problem).__name__}: {problem}); start the server and "
            "repeat the command, which goes on from here"
        )


def _checked(answer: Any) -> Any:
    """The answer, if it is none of an error: some servers send these with status 200.

    Raises:
        ServerError: it is one.
    """
    error = answer.get("error") if isinstance(answer, dict) else None
    if not error:
        return answer
    if isinstance(error, dict):
        raise ServerError(error.get("message"), error.get("code"))
    raise ServerError(error, None)
