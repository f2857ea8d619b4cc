# SPDX-License-Identifier: Apache-2.0
"""What OpenAI's two ways to ask have in common: sampling fields, usage, event streams, errors."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from tools.serve_parts.choices import Choice, Piece
from tools.serve_parts.fields import Fields
from tools.serve_parts.refusal import Refused
from tools.serve_parts.wanted import MOST_STOPS, MOST_TEMPERATURE, Wanted

_LARGEST_SEED = 2**63
_TINY = 1e-9


def common_fields(fields: Fields) -> dict[str, Any]:
    """The fields that both ways have, as Wanted calls them; OpenAI's defaults.

    Raises:
        Refused: one has a wrong type or value, or asks for what is not here.
    """
    is_stream = fields.flag("stream", False)
    options = fields.object("stream_options")
    has_usage = options.flag("include_usage", False)
    options.without_effect("include_obfuscation")
    options.nothing_else()
    fields.not_supported(
        frequency_penalty=0, presence_penalty=0, repetition_penalty=1, min_p=0, min_tokens=0, logit_bias={},
        use_beam_search=False,
    )  # fmt: skip
    # vLLM's, at what is done here anyway.
    fields.not_supported(
        add_special_tokens=False,
        skip_special_tokens=False,
        ignore_eos=False,
        include_stop_str_in_output=False,
    )
    fields.without_effect(
        "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"
    )
    return {
        "samples": fields.integer("n", 1, 1, 2**31),
        "temperature": fields.number("temperature", 1.0, 0.0, MOST_TEMPERATURE),
        "top_p": fields.number("top_p", 1.0, _TINY, 1.0),
        # Not OpenAI's, but vLLM's and others'; -1 and 0 take all ids.
        "top_k": max(0, fields.integer("top_k", 0, -1, 2**31) or 0),
        "seed": fields.integer("seed", None, -_LARGEST_SEED, _LARGEST_SEED),
        "stops": fields.texts("stop", MOST_STOPS),
        "is_stream": is_stream,
        "has_usage": has_usage,
    }


def usage(wanted: Wanted, choices: list[Choice]) -> dict[str, int]:
    """Tokens read and written; a prompt with several samples is read once."""
    prompt_tokens = sum(len(prompt) for prompt in wanted.prompts)
    completion_tokens = sum(choice.tokens for choice in choices) if wanted.max_new_tokens else 0
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def refusal(refused: Refused) -> dict[str, Any]:
    """An error in OpenAI's form."""
    return {
        "error": {
            "message": refused.message,
            "type": refused.kind,
            "param": refused.field,
            "code": refused.code,
        }
    }


def event(content: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return f"data: {json.dumps(content, ensure_ascii=False, allow_nan=False)}\n\n".encode()


class Stream:
    """An answer as server-sent events."""

    def __init__(
        self,
        head: dict[str, Any],
        wanted: Wanted,
        choices: list[Choice],
        chunks: Callable[[Piece], Iterator[dict[str, Any]]],
    ) -> None:
        self._head = head
        self._wanted = wanted
        self._choices = choices
        self._chunks = chunks

    def piece(self, piece: Piece) -> bytes:
        return b"".join(event(chunk) for chunk in self._chunks(piece))

    def end(self) -> bytes:
        last = b""
        if self._wanted.has_usage:
            last = event({**self._head, "choices": [], "usage": usage(self._wanted, self._choices)})
        return last + b"data: [DONE]\n\n"

    def broken(self, refused: Refused) -> bytes:
        """The error that ends a stream which has begun; there is no [DONE] after it."""
        return event(refusal(refused))
