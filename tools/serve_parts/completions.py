# SPDX-License-Identifier: Apache-2.0
"""`/v1/completions` as OpenAI has it: a prompt goes on, n times, with log-probabilities and echo if asked."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

from megatron.neox_arguments.errors import shown
from tools.serve_parts import openai_form
from tools.serve_parts.choices import Choice, Piece, Spelt
from tools.serve_parts.fields import Fields, checked_text
from tools.serve_parts.llmlean import stops_of
from tools.serve_parts.refusal import Refused
from tools.serve_parts.wanted import MOST_LOGPROBS, Served, Wanted, check_lengths

DEFAULT_NEW_TOKENS = 16  # OpenAI's


class Completions:
    """Requests and answers of `/v1/completions`."""

    def __init__(self, served: Served, tactic_stop: str) -> None:
        self._served = served
        self._tactic_stop = tactic_stop

    refusal = staticmethod(openai_form.refusal)
    media_type = "text/event-stream"

    def read(self, content: dict[str, Any]) -> Wanted:
        """What a client wants.

        Raises:
            Refused: it is not to be had.
        """
        fields = Fields(content)
        self._served.check_name(fields.text("model", ""))
        prompts, text = self._prompts(fields.take("prompt"))
        echo = fields.flag("echo", False)
        lowest = 0 if echo else 1
        common = openai_form.common_fields(fields)
        max_new_tokens = fields.integer("max_tokens", DEFAULT_NEW_TOKENS, lowest, 2**31)
        num_logprobs = fields.integer("logprobs", None, 0, MOST_LOGPROBS)
        # The server would compute best_of samples and show n of them: nothing where they are as many.
        fields.not_supported(suffix="", best_of=common["samples"])
        fields.nothing_else()
        assert max_new_tokens is not None
        check_lengths(self._served, prompts, max_new_tokens)
        if text is not None:
            common["stops"] = stops_of(text, common["stops"], self._tactic_stop)
        return Wanted(
            prompts,
            max_new_tokens=max_new_tokens,
            num_logprobs=num_logprobs,
            echoes=self._echoes(prompts, text) if echo else (),
            **common,
        )

    def _prompts(self, value: object) -> tuple[tuple[tuple[int, ...], ...], str | None]:
        """The ids of each prompt; and the text, where one text was given.

        Raises:
            Refused: it is neither a text, a list of texts, a list of ids nor a list of those.
        """
        if isinstance(value, str):
            return (self._served.encode(checked_text(value, "prompt")),), value
        if isinstance(value, list) and value:
            if all(_is_id(one) for one in value):
                return (self._ids(value),), None
            if all(isinstance(one, str) for one in value):
                return tuple(self._served.encode(checked_text(one, "prompt")) for one in value), None
            if all(isinstance(one, list) and one and all(map(_is_id, one)) for one in value):
                return tuple(self._ids(one) for one in value), None
        constraint = "must be a string, a list of strings, or token ids, and not an empty list"
        raise Refused(400, f"prompt={shown(value)}: {constraint}", field="prompt")

    def _echoes(self, prompts: tuple[tuple[int, ...], ...], text: str | None) -> tuple[str, ...]:
        return (text,) if text is not None else tuple(map(self._served.tokenizer.decode, prompts))

    def _ids(self, ids: Sequence[int]) -> tuple[int, ...]:
        size = self._served.vocab_size
        for token_id in ids:
            if not 0 <= token_id < size:
                raise Refused(
                    400,
                    f"prompt: {shown(token_id)} is no token id; they go from 0 to {size - 1}",
                    field="prompt",
                )
        return tuple(ids)

    def whole(self, wanted: Wanted, choices: list[Choice], got: list[list[Piece]]) -> dict[str, Any]:
        """The answer at once."""
        head = self._head()
        head["choices"] = [self._choice(wanted, _merged(pieces)) for pieces in got]
        return {**head, "usage": openai_form.usage(wanted, choices)}

    def stream(self, wanted: Wanted, choices: list[Choice]) -> openai_form.Stream:
        """The answer piece by piece."""
        head = self._head()

        def chunks(piece: Piece) -> Iterator[dict[str, Any]]:
            yield {**head, "choices": [self._choice(wanted, piece)]}

        return openai_form.Stream(head, wanted, choices, chunks)

    def _head(self) -> dict[str, Any]:
        return {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": self._served.names[0],
        }

    def _choice(self, wanted: Wanted, piece: Piece) -> dict[str, Any]:
        return {
            "index": piece.index,
            "text": piece.text,
            "logprobs": None if wanted.num_logprobs is None else _logprobs(piece.tokens),
            "finish_reason": piece.finish_reason,
        }


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _merged(pieces: list[Piece]) -> Piece:
    """All of one sample as one piece."""
    return Piece(
        pieces[0].index,
        "".join(piece.text for piece in pieces),
        tuple(token for piece in pieces for token in piece.tokens),
        pieces[-1].finish_reason,
    )


def _logprobs(tokens: Sequence[Spelt]) -> dict[str, Any]:
    """OpenAI's four lists."""
    return {
        "tokens": [spelt.text for spelt in tokens],
        "token_logprobs": [spelt.logprob for spelt in tokens],
        "top_logprobs": [dict(spelt.top) if spelt.logprob is not None else None for spelt in tokens],
        "text_offset": [spelt.offset for spelt in tokens],
    }
