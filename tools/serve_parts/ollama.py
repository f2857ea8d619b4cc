# SPDX-License-Identifier: Apache-2.0
"""`/api/generate` as Ollama has it: options in an object of their own, lines of JSON as the stream."""

from __future__ import annotations

import datetime
import json
import time
from collections.abc import Callable
from typing import Any

from tools.serve_parts.chat_template import ChatTemplate
from tools.serve_parts.choices import Choice, Piece
from tools.serve_parts.fields import Fields
from tools.serve_parts.llmlean import stops_of
from tools.serve_parts.refusal import Refused
from tools.serve_parts.wanted import MOST_STOPS, MOST_TEMPERATURE, Served, Wanted

# Ollama's own defaults (its Modelfile reference); a request without options is sampled with them there, too.
DEFAULT_TEMPERATURE, DEFAULT_TOP_P, DEFAULT_TOP_K = 0.8, 0.9, 40
_NANOSECONDS = 1_000_000_000


def refusal(refused: Refused) -> dict[str, Any]:
    """An error in Ollama's form."""
    return {"error": refused.message}


class Generate:
    """Requests and answers of `/api/generate`."""

    def __init__(self, served: Served, template: ChatTemplate, tactic_stop: str) -> None:
        self._served = served
        self._template = template
        self._tactic_stop = tactic_stop

    refusal = staticmethod(refusal)
    media_type = "application/x-ndjson"

    def read(self, content: dict[str, Any]) -> Wanted:
        """What a client wants; one without a prompt asks only whether the model is there.

        Raises:
            Refused: it is not to be had.
        """
        fields = Fields(content)
        self._served.check_name(fields.text("model", ""))
        text = fields.text("prompt", "")
        system = fields.text("system", "")
        is_raw = fields.flag("raw", False)
        is_stream = fields.flag("stream", True)
        options = fields.object("options")
        fields.not_supported(
            suffix="",
            images=[],
            format="",
            template="",
            context=[],
            think=False,
            logprobs=False,
            top_logprobs=0,
        )
        fields.without_effect("keep_alive")
        fields.nothing_else()
        if not text:
            return Wanted((), 0, 0, is_stream=is_stream)
        if is_raw and system:
            raise fields.refuse("system", system, "goes into a template, and raw: true asks for none")
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": text})
        prompt = self._served.encode(text if is_raw else self._template.render(messages))
        sampling = self._options(options, prompt)
        sampling["stops"] = stops_of(text, sampling["stops"], self._tactic_stop)
        return Wanted((prompt,), 1, is_stream=is_stream, **sampling)

    def _options(self, options: Fields, prompt: tuple[int, ...]) -> dict[str, Any]:
        room = self._served.room(prompt, options.integer("num_ctx", None, 1, self._served.context_tokens))
        asked = options.integer("num_predict", -1, -2, 2**31)
        assert asked is not None
        seed = options.integer("seed", None, -(2**63), 2**63)
        sampling = {
            # Until the context is full, or so many; Ollama's clients rely on the smaller of both.
            "max_new_tokens": room if asked < 1 else min(asked, room),
            "temperature": options.number("temperature", DEFAULT_TEMPERATURE, 0.0, MOST_TEMPERATURE),
            "top_p": options.number("top_p", DEFAULT_TOP_P, 1e-9, 1.0),
            "top_k": max(0, options.integer("top_k", DEFAULT_TOP_K, -1, 2**31) or 0),
            "seed": None if seed is None or seed < 0 else seed,
            "stops": options.texts("stop", MOST_STOPS),
        }
        options.not_supported(
            min_p=0, typical_p=1, tfs_z=1, repeat_penalty=1, presence_penalty=0, frequency_penalty=0,
            mirostat=0,
        )  # fmt: skip
        # Where and how Ollama would compute; repeat_last_n without a penalty is nothing.
        options.without_effect(
            "num_keep", "num_batch", "num_gpu", "main_gpu", "num_thread", "use_mmap", "use_mlock", "numa",
            "low_vram", "repeat_last_n", "mirostat_tau", "mirostat_eta", "penalize_newline",
        )  # fmt: skip
        options.nothing_else()
        return sampling

    def whole(self, wanted: Wanted, choices: list[Choice], got: list[list[Piece]]) -> dict[str, Any]:
        """The answer at once."""
        if not wanted.prompts:
            return {**self._head(), "response": "", "done": True, "done_reason": "load"}
        text = "".join(piece.text for piece in got[0])
        return {**self._head(), "response": text, **_end(wanted, choices[0])}

    def stream(self, wanted: Wanted, choices: list[Choice]) -> Lines:
        """The answer piece by piece."""
        return Lines(self._head, wanted, choices)

    def _head(self) -> dict[str, Any]:
        now = datetime.datetime.now(datetime.timezone.utc)
        return {"model": self._served.names[0], "created_at": now.isoformat().replace("+00:00", "Z")}


class Lines:
    """An answer as lines of JSON."""

    def __init__(self, head: Callable[[], dict[str, Any]], wanted: Wanted, choices: list[Choice]) -> None:
        self._head = head
        self._wanted = wanted
        self._choices = choices

    def piece(self, piece: Piece) -> bytes:
        if not piece.text:
            return b""
        return _line({**self._head(), "response": piece.text, "done": False})

    def end(self) -> bytes:
        if not self._choices:
            return _line({**self._head(), "response": "", "done": True, "done_reason": "load"})
        return _line({**self._head(), "response": "", **_end(self._wanted, self._choices[0])})

    def broken(self, refused: Refused) -> bytes:
        """The error that ends a stream which has begun."""
        return _line(refusal(refused))


def _line(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _end(wanted: Wanted, choice: Choice) -> dict[str, Any]:
    """What the last answer of a generation says; durations are in nanoseconds."""
    asked, first, last = choice.asked_seconds, choice.first_seconds, time.monotonic()
    return {
        "done": True,
        "done_reason": choice.finish_reason,
        "total_duration": int((last - asked) * _NANOSECONDS),
        "load_duration": 0,
        "prompt_eval_count": len(wanted.prompts[0]),
        "prompt_eval_duration": int((first - asked) * _NANOSECONDS),
        "eval_count": choice.tokens,
        "eval_duration": int((last - first) * _NANOSECONDS),
    }


def tags(served: Served, details: dict[str, Any]) -> dict[str, Any]:
    """`/api/tags`: the one model, under each of its names. `details` is what is known of its files."""
    return {"models": [{"name": name, "model": name, **details} for name in served.names]}
