# SPDX-License-Identifier: Apache-2.0
"""`/v1/chat/completions` as OpenAI has it: messages become a prompt by the model's chat template."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

from tools.serve_parts import openai_form
from tools.serve_parts.chat_template import ChatTemplate
from tools.serve_parts.choices import Choice, Piece, Spelt
from tools.serve_parts.fields import Fields, checked_text
from tools.serve_parts.llmlean import stops_of
from tools.serve_parts.refusal import Refused
from tools.serve_parts.wanted import MOST_LOGPROBS, Served, Wanted, check_lengths

_ROLES = ("system", "developer", "user", "assistant", "tool", "function")


class Chat:
    """Requests and answers of `/v1/chat/completions`."""

    def __init__(self, served: Served, template: ChatTemplate, tactic_stop: str) -> None:
        self._served = served
        self._template = template
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
        messages = read_messages(fields.take("messages"))
        common = openai_form.common_fields(fields)
        older = fields.integer("max_tokens", None, 1, 2**31)
        max_new_tokens = fields.integer("max_completion_tokens", older, 1, 2**31)
        if older not in (None, max_new_tokens):
            raise fields.refuse(
                "max_tokens", older, f"max_completion_tokens={max_new_tokens} differs; give one"
            )
        has_logprobs = fields.flag("logprobs", False)
        num_logprobs = fields.integer("top_logprobs", 0, 0, MOST_LOGPROBS)
        if num_logprobs and not has_logprobs:
            raise fields.refuse("top_logprobs", num_logprobs, "needs logprobs: true")
        fields.not_supported(
            tools=[], functions=[], tool_choice="none", function_call="none", audio=None, prediction=None,
            response_format={"type": "text"}, modalities=["text"], web_search_options=None,
        )  # fmt: skip
        fields.without_effect("parallel_tool_calls", "reasoning_effort", "verbosity")
        fields.nothing_else()
        prompts = (self._served.encode(self._template.render(messages)),)
        if max_new_tokens is None:
            max_new_tokens = self._served.room(prompts[0])
        check_lengths(self._served, prompts, max_new_tokens)
        common["stops"] = stops_of(str(messages[-1]["content"]), common["stops"], self._tactic_stop)
        return Wanted(
            prompts,
            max_new_tokens=max_new_tokens,
            num_logprobs=num_logprobs if has_logprobs else None,
            **common,
        )

    def whole(self, wanted: Wanted, choices: list[Choice], got: list[list[Piece]]) -> dict[str, Any]:
        """The answer at once."""
        head = self._head("chat.completion")
        head["choices"] = [
            {
                "index": choice.index,
                "message": {"role": "assistant", "content": choice.text, "refusal": None},
                "logprobs": _logprobs(wanted, [token for piece in pieces for token in piece.tokens]),
                "finish_reason": choice.finish_reason,
            }
            for choice, pieces in zip(choices, got, strict=True)
        ]
        return {**head, "usage": openai_form.usage(wanted, choices)}

    def stream(self, wanted: Wanted, choices: list[Choice]) -> openai_form.Stream:
        """The answer piece by piece; the first of each sample says whose words they are."""
        head = self._head("chat.completion.chunk")
        begun: set[int] = set()

        def chunks(piece: Piece) -> Iterator[dict[str, Any]]:
            role = {} if piece.index in begun else {"role": "assistant"}
            begun.add(piece.index)
            choice = {
                "index": piece.index,
                "delta": {**role, "content": piece.text},
                "logprobs": _logprobs(wanted, piece.tokens),
                "finish_reason": piece.finish_reason,
            }
            yield {**head, "choices": [choice]}

        return openai_form.Stream(head, wanted, choices, chunks)

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "object": kind,
            "created": int(time.time()),
            "model": self._served.names[0],
        }


def read_messages(value: object) -> list[dict[str, str]]:
    """The messages of a conversation, each with a role and a text.

    Raises:
        Refused: there is none, or one has another form.
    """
    if not isinstance(value, list) or not value:
        raise Refused(400, "messages: must be a list of at least one message", field="messages")
    return [_message(one, f"messages[{place}].") for place, one in enumerate(value)]


def _message(value: object, place: str) -> dict[str, str]:
    if not isinstance(value, dict):
        raise Refused(400, f"{place[:-1]}: must be an object with role and content", field="messages")
    fields = Fields(value, place)
    role = fields.text("role", "")
    if role not in _ROLES:
        raise fields.refuse("role", role, f"must be one of {', '.join(_ROLES)}")
    content = _content(fields.take("content"), place)
    # An answer of this API that is sent back has these; older lm-evals give each message a type.
    fields.not_supported(
        tool_calls=[], function_call=None, audio=None, refusal=None, annotations=[], type="text"
    )
    name = fields.text("name", "")
    tool_call_id = fields.text("tool_call_id", "")
    fields.nothing_else()
    named = {"name": name, "tool_call_id": tool_call_id}
    return {"role": role, "content": content, **{key: text for key, text in named.items() if text}}


def _content(value: object, place: str) -> str:
    """A text, or a list of parts that are texts."""
    if isinstance(value, str):
        return checked_text(value, place + "content")
    if not isinstance(value, list):
        raise Refused(400, f"{place}content: must be a string or a list of parts", field="messages")
    texts = []
    for part in value:
        if not isinstance(part, dict) or part.get("type") != "text":
            raise Refused(400, f"{place}content: only parts of type text are read", field="messages")
        texts.append(checked_text(part.get("text"), place + "content.text"))
    return "".join(texts)


def _logprobs(wanted: Wanted, tokens: Sequence[Spelt]) -> dict[str, Any] | None:
    if wanted.num_logprobs is None:
        return None
    content = [
        {
            **_entry(spelt.text, spelt.logprob),
            "top_logprobs": [_entry(text, value) for text, value in spelt.top[: wanted.num_logprobs]],
        }
        for spelt in tokens
    ]
    return {"content": content, "refusal": None}


def _entry(text: str, logprob: float | None) -> dict[str, Any]:
    is_text = not text.startswith("token_id:")
    return {"token": text, "logprob": logprob, "bytes": list(text.encode()) if is_text else None}
